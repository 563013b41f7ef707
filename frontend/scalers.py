"""Gradient scalers (`torch.amp.GradScaler`) inside a compiled function.

The scale and the count of good steps are tensors that a scaler makes when it first scales something: that is done for
real, and the program updates them in place. Whether a step is made is a decision on data: gradients that are not finite
make it another path. What a scaler keeps about optimizers from `unscale_` to `update` is left after the run as eager
leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from graphc.errors import EagerOnlyError
from graphc.frontend import tree
from graphc.frontend.inputs import Access
from graphc.frontend.leaves import OutputLeaf
from graphc.frontend.traced import TracedTensor

if TYPE_CHECKING:
    from graphc.frontend.guards import GuardBuilder
    from graphc.frontend.recorder import Recorder

_TENSORS = ("_scale", "_growth_tracker")
_STATES = "_per_optimizer_states"
_NUMBERS = ("_enabled", "_growth_factor", "_backoff_factor", "_growth_interval")


@dataclass(frozen=True)
class CreatedScale:
    """The tensors of a scaler that a capture made for real."""

    scaler: Any

    def remove(self) -> None:
        """None, as before the capture."""
        for name in _TENSORS:
            setattr(self.scaler, name, None)


@dataclass(frozen=True)
class ScalerEffect:
    """What a run leaves in a scaler about optimizers: stages, and whether gradients were finite.

    Args:
        node: structure of its table.
        leaves: constants, and numbers of the effects' outputs.
    """

    scaler: Any
    node: tree.Node
    leaves: tuple[OutputLeaf, ...]

    def apply(self, outputs: list[Any], inputs: Sequence[Any]) -> None:
        """Put it there."""
        found = [outputs[leaf.number] if leaf.number >= 0 else leaf.constant for leaf in self.leaves]
        getattr(self.scaler, _STATES).update(tree.rebuild(self.node, iter(found)))


class _Met:
    """One scaler as the capture found it."""

    def __init__(self, scaler: Any) -> None:
        self.scaler, self.created = scaler, False
        self.numbers = _numbers(scaler)
        self.states: dict[int, dict[str, Any]] | None = None  # its table, once it is used
        self.under_way = False


class Scalers:
    """All gradient scalers of one capture.

    Args:
        recorder: the capture.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._met: dict[int, _Met] = {}

    def enter(self, scaler: Any, uses_states: bool) -> None:
        """A method of an enabled scaler is called.

        Args:
            uses_states: it looks at what the scaler knows of optimizers.

        Raises:
            EagerOnlyError: the scaler is between the steps of optimizers.
        """
        met = self._met.get(id(scaler))
        if met is None:
            met = self._met[id(scaler)] = _Met(scaler)
            self._note(scaler)
        if uses_states and met.states is None:
            met.states, met.under_way = scaler._per_optimizer_states, bool(scaler._per_optimizer_states)
            if met.under_way:
                raise EagerOnlyError(
                    "a GradScaler comes with gradients that were unscaled, or steps made, before the call; compile the "
                    "whole from unscale_() to update(), or none of it",
                    self._recorder.locator.here(),
                )

    def create(self, scaler: Any, original: Any, device: torch.device) -> None:
        """The scaler makes its tensors."""
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            original(scaler, device)
        self._met[id(scaler)].created = True
        self._note(scaler)

    def _note(self, scaler: Any) -> None:
        for name in _TENSORS:
            tensor = getattr(scaler, name)
            if tensor is not None:
                access = Access(scaler.__dict__, f"[{name!r}]")
                self._recorder.sources.note_looked_up(tensor, f"scaler.{name.lstrip('_')}", access)

    # after the run

    def effects(self, first: int) -> tuple[list[ScalerEffect], list[torch.Tensor]]:
        """What is left in the scalers, and the tensors that takes; `first` is the number of the first of these."""
        effects: list[ScalerEffect] = []
        made: list[torch.Tensor] = []
        for met in self._met.values():
            now = met.scaler._per_optimizer_states
            if met.states is None or not now:
                continue
            flat, node = tree.flatten({key: dict(state) for key, state in now.items()})
            leaves = []
            for leaf in flat:
                is_made = type(leaf) is TracedTensor
                leaves.append(OutputLeaf(first + len(made)) if is_made else OutputLeaf(constant=leaf))
                made += [leaf] if is_made else []
            effects.append(ScalerEffect(met.scaler, node, tuple(leaves)))
        return effects, made

    def settle(self) -> None:
        """After a good run: tables as before; tensors that were made stay."""
        for met in self._met.values():
            if met.states is not None and not met.under_way:
                met.states.clear()
                met.scaler._per_optimizer_states = met.states

    def undo(self) -> None:
        """After a failed run: tensors that were made go too."""
        self.settle()
        for created in self.created():
            created.remove()

    def created(self) -> list[CreatedScale]:
        """Tensors that were made for real."""
        return [CreatedScale(met.scaler) for met in self._met.values() if met.created]

    def guards(self, g: GuardBuilder) -> None:
        """The numbers of the scalers, and that nothing is under way."""
        for met in self._met.values():
            scaler = g.hold(met.scaler)
            g.check(f"{g.hold(_numbers)}({scaler}) == {g.hold(met.numbers)}", "numbers of a GradScaler")
            g.check(f"{scaler}._scale is not None", "whether a GradScaler has a scale")
            if met.states is not None:
                g.check(f"not {scaler}._per_optimizer_states", "what a GradScaler knows of optimizers")


def _numbers(scaler: Any) -> tuple[Any, ...]:
    return tuple(getattr(scaler, name) for name in _NUMBERS)


# the two operators, which write to their arguments


def unscale(grads: list[torch.Tensor], found_inf: torch.Tensor, inverse: torch.Tensor) -> None:
    """`_amp_foreach_non_finite_check_and_unscale_` in operators that are recorded once for many gradients."""
    filled = [grad for grad in grads if grad.numel()]
    if not filled:
        return
    largest = torch.stack([norm.float() for norm in torch._foreach_norm(filled, float("inf"))])
    finite = torch.isfinite(largest).all()
    found_inf.copy_(torch.where(finite, found_inf, torch.ones_like(found_inf)))
    torch._foreach_mul_(filled, inverse)


def update_scale(
    scale: torch.Tensor, tracker: torch.Tensor, found_inf: torch.Tensor, growth: float, backoff: float, interval: int
) -> torch.Tensor:
    """`_amp_update_scale_`: backs off where a gradient was not finite, grows after `interval` good steps in a row."""
    is_bad, good = found_inf != 0, tracker + 1
    grows = good == interval
    larger, smaller = (scale.double() * growth).float(), (scale.double() * backoff).float()
    grown = torch.where(grows & torch.isfinite(larger), larger, scale)
    tracker.copy_(torch.where(is_bad | grows, torch.zeros_like(tracker), good))
    return scale.copy_(torch.where(is_bad, smaller, grown))
