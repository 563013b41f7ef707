"""A compiled forward pass and its compiled backward pass as one function of autograd."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from graphc.errors import UnsupportedError
from graphc.frontend.argument_tensors import shares_storage
from graphc.frontend.aten.promotion import to_torch
from graphc.frontend.cotangents import canonical, laid_out, layout_of
from graphc.frontend.not_given import reached_by

if TYPE_CHECKING:
    from graphc.frontend.cotangents import Strides
    from graphc.frontend.joint import Joint
    from graphc.ir.graph import Input
    from graphc.passes.partition import Split

Execute: TypeAlias = Callable[[list[Any]], list[Any]]

_LAYOUTS = 8
"""So many backward programs are compiled for given cotangents of one forward program, each for others' strides."""
_KNOWN = 256
"""So many sets of strides are remembered with the program for each."""


Program: TypeAlias = tuple[Execute, Sequence[int]]
"""Runs a backward graph on saved values and cotangents; and the numbers of the gradients that it gives."""


@dataclass(frozen=True)
class _Backward:
    """A backward program, and how it takes cotangents.

    Args:
        execute: runs it on those that are given.
        reached: numbers of the gradients that it gives.
        layouts: strides of all cotangents, given or not; empty where those that come have them already.
        fills: it takes zeros for those that are not given.
    """

    execute: Execute
    reached: Sequence[int]
    layouts: tuple[Strides | None, ...] = ()
    fills: bool = False


class Differentiable:
    """Runs a forward program; autograd runs the backward program when its time comes.

    Args:
        name: of the function.
        joint: which results can be differentiated, with respect to which inputs.
        split: the two graphs.
        forward: runs the forward graph.
        compile_backward: compiles the backward graph for cotangents with given strides, None for those that are not
            given, or (None) for all with the strides that it was recorded with; called at the first backward pass with
            such ones. Gives None where it has no program but the latter.
        cotangents: those of the call, where the graphs are for many sizes.
    """

    def __init__(
        self, name: str, joint: Joint, split: Split, forward: Execute,
        compile_backward: Callable[[Sequence[Strides | None] | None], Program | None],
        cotangents: Sequence[Input] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self._results, self._wanted, self._anchor = joint.results, joint.wanted, joint.anchor
        self._outputs = len(split.forward.outputs) - split.saved
        self._flagged = joint.flagged
        self._constant = [number for number in range(self._outputs) if number not in joint.results]
        self._reused = split.reused
        self._saved_from = split.saved_from
        self._forward, self._compile_backward = forward, compile_backward
        cotangents = cotangents_of(split, joint) if cotangents is None else cotangents
        self._recorded = tuple(layout_of(value) for value in cotangents)
        self._cotangents, self._backward = cotangents, split.backward
        self._adapts = joint.question is not None
        self._programs: dict[tuple[Strides | None, ...], Program | None] = {}
        self._by_strides: dict[tuple[Strides | None, ...], _Backward] = {}
        self._lock = threading.Lock()

    def __call__(self, inputs: list[Any]) -> list[Any]:
        """Run the forward program.

        Args:
            inputs: as for the forward program.

        Returns:
            Its outputs without the saved values; those that can be differentiated are attached to autograd's graph.
        """
        if not self._flagged:
            return self._run(inputs)
        flagged = [inputs[number] for number in self._flagged]
        for tensor in flagged:
            tensor.requires_grad_()
        try:
            return self._run(inputs)
        except BaseException:
            for tensor in flagged:
                tensor.requires_grad_(False)
            raise

    def _run(self, inputs: list[Any]) -> list[Any]:
        outputs: list[Any] = []
        wanted = [inputs[number] for number in self._wanted or (self._anchor,)]
        if torch.is_grad_enabled():
            results = _Function.apply(self, inputs, outputs, *wanted)
        else:  # the function itself turned it on
            with torch.enable_grad():
                results = _Function.apply(self, inputs, outputs, *wanted)
        for number, result in zip(self._results, results, strict=True):
            outputs[number] = result
        for number in self._constant:  # autograd has marked what else sees the memory of a result, undetached
            item = outputs[number]
            if isinstance(item, torch.Tensor) and item.requires_grad and shares_storage(item, results):
                outputs[number] = item.detach()
        return outputs

    def run_forward(self, inputs: list[Any], outputs: list[Any]) -> tuple[list[Any], tuple[torch.Tensor, ...]]:
        """Outputs into `outputs`; returns what the backward pass needs, and the differentiable results."""
        made = self._forward(inputs)
        outputs.extend(made[: self._outputs])
        kept = [made[number] for number in self._saved_from] + [inputs[number] for number in self._reused]
        results = (made[number] for number in self._results)
        return kept, tuple(result.detach() if result._is_view() else result for result in results)  # to be written to

    def run_backward(self, kept: list[Any], given: Sequence[torch.Tensor | None]) -> Sequence[torch.Tensor | None]:
        """The gradients, one per wanted input: as in eager None where none of the given cotangents leads to it."""
        if not self._wanted:
            return [None]
        if all(item is None for item in given):
            return [None] * len(self._wanted)
        strides = tuple([None if cotangent is None else cotangent.stride() for cotangent in given])
        found = self._by_strides.get(strides)
        if found is None:
            with self._lock:
                found = self._choose(strides, given)
        cotangents = self._filled(given) if found.fills else [item for item in given if item is not None]
        if found.layouts:
            layouts = [steps for steps in found.layouts if steps is not None]
            cotangents = [laid_out(item, wanted) for item, wanted in zip(cotangents, layouts, strict=True)]
        made = found.execute([*kept, *cotangents])
        if len(made) == len(self._wanted):
            return made
        gradients: list[torch.Tensor | None] = [None] * len(self._wanted)
        for number, gradient in zip(found.reached, made, strict=True):
            gradients[number] = gradient
        return gradients

    def _choose(self, strides: tuple[Strides | None, ...], given: Sequence[torch.Tensor | None]) -> _Backward:
        """The backward program for cotangents that lie so."""
        layouts = tuple(None if item is None else self._layout(number, item) for number, item in enumerate(given))
        absent = frozenset(number for number, item in enumerate(given) if item is None)
        alike = sum(absent == _absent(others) for others in self._programs)
        program = self._program(layouts) if layouts in self._programs or alike < _LAYOUTS else None
        fills = program is None and bool(absent)
        if program is None:
            layouts = self._recorded
            program = self._program(layouts)
        assert program is not None
        execute, reached = program
        if fills:
            chosen = reached_by(self._backward, len(given), absent)
            reached = [number for number, is_reached in enumerate(chosen) if is_reached]
            execute = _some(execute, chosen)
        if len(self._by_strides) >= _KNOWN:
            self._by_strides.clear()
        found = _Backward(execute, reached, () if layouts == strides else layouts, fills)
        self._by_strides[strides] = found
        return found

    def _layout(self, number: int, cotangent: torch.Tensor) -> Strides:
        if not self._adapts:
            return self._recorded[number]
        return canonical(tuple(cotangent.shape), cotangent.stride())

    def _program(self, layouts: tuple[Strides | None, ...]) -> Program | None:
        if layouts not in self._programs:
            self._programs[layouts] = self._compile_backward(None if layouts == self._recorded else layouts)
        return self._programs[layouts]

    def _filled(self, given: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
        pairs = zip(given, self._cotangents, strict=True)
        return [_zeros(value) if item is None else item for item, value in pairs]


class _Function(torch.autograd.Function):
    """The one node in autograd's graph that a compiled call is."""

    @staticmethod
    def forward(ctx: Any, program: Differentiable, inputs: list[Any], outputs: list[Any], *wanted: torch.Tensor) -> Any:
        ctx.set_materialize_grads(False)
        kept, results = program.run_forward(inputs, outputs)
        ctx.program = program
        ctx.numbers = [None if isinstance(item, torch.Tensor) else item for item in kept]
        ctx.save_for_backward(*(item for item in kept if isinstance(item, torch.Tensor)))
        return results

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> Any:
        twice = torch.is_grad_enabled()  # by create_graph=True
        with torch.no_grad():
            tensors = iter(ctx.saved_tensors)
            kept = [next(tensors) if number is None else number for number in ctx.numbers]
            gradients = ctx.program.run_backward(kept, cotangents)
        if twice:
            made = [gradient.detach().requires_grad_() for gradient in gradients if gradient is not None]
            checked = iter(_Once.apply(ctx.program.name, *made))
            gradients = [None if gradient is None else next(checked) for gradient in gradients]
        return None, None, None, *gradients


class _Once(torch.autograd.Function):
    """Gradients that a program has computed: of right values, and with an error for who differentiates them."""

    @staticmethod
    def forward(ctx: Any, name: str, *gradients: torch.Tensor) -> Any:
        ctx.name = name
        return gradients

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> Any:
        raise UnsupportedError(
            f"{ctx.name} is compiled, and its gradients are differentiated again, which its backward program does not "
            "offer. Compile the function that calls autograd.grad(create_graph=True) together with the backward() "
            "that follows, or run this with graphc.eager()"
        )


def cotangents_of(split: Split, joint: Joint) -> list[Input]:
    """The inputs of a backward graph that are cotangents."""
    return split.backward.inputs[len(split.backward.inputs) - len(joint.results) :]


def _absent(layouts: Sequence[Strides | None]) -> frozenset[int]:
    return frozenset(number for number, strides in enumerate(layouts) if strides is None)


def _some(execute: Execute, chosen: Sequence[bool]) -> Execute:
    """The same program, of which some outputs are dropped."""
    return lambda inputs: list(itertools.compress(execute(inputs), chosen))


def _zeros(cotangent: Input) -> torch.Tensor:
    shape: tuple[int, ...] = cotangent.shape  # type: ignore[assignment]  # static
    return torch.zeros(shape, dtype=to_torch(cotangent.dtype), device=cotangent.device)
