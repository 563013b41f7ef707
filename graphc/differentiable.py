"""A compiled forward pass and its compiled backward pass as one function of autograd."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from graphc.errors import UnsupportedError
from graphc.frontend.argument_tensors import shares_storage
from graphc.frontend.aten.promotion import to_torch
from graphc.frontend.cotangents import canonical, laid_out, layout_of

if TYPE_CHECKING:
    from graphc.frontend.cotangents import Strides
    from graphc.frontend.joint import Joint
    from graphc.ir.graph import Graph, Input, Value
    from graphc.passes.partition import Split

Execute: TypeAlias = Callable[[list[Any]], list[Any]]

_LAYOUTS = 8
"""So many backward programs are compiled for one forward program, each for cotangents that lie differently."""
_KNOWN = 256
"""So many sets of strides are remembered with the program for each."""


@dataclass(frozen=True)
class _Backward:
    """A backward program, and how it takes cotangents.

    Args:
        layouts: their strides; empty where those that come have them already.
    """

    execute: Execute
    layouts: tuple[Strides, ...] = ()


class Differentiable:
    """Runs a forward program; autograd runs the backward program when its time comes.

    Args:
        name: of the function.
        joint: which results can be differentiated, with respect to which inputs.
        split: the two graphs.
        forward: runs the forward graph.
        compile_backward: compiles the backward graph for cotangents with given strides, or (None) with those that it
            was recorded with; called at the first backward pass with such ones.
    """

    def __init__(
        self, name: str, joint: Joint, split: Split, forward: Execute,
        compile_backward: Callable[[Sequence[Strides] | None], Execute],
    ) -> None:  # fmt: skip
        self.name = name
        self._results, self._wanted, self._anchor = joint.results, joint.wanted, joint.anchor
        self._outputs = len(split.forward.outputs) - split.saved
        self._constant = [number for number in range(self._outputs) if number not in joint.results]
        self._reused = split.reused
        self._saved_from = split.saved_from
        self._forward, self._compile_backward = forward, compile_backward
        cotangents = split.backward.inputs[len(split.backward.inputs) - len(joint.results) :]
        self._recorded = tuple(layout_of(value) for value in cotangents)
        self._cotangents, self._backward = cotangents, split.backward
        self._adapts = joint.question is not None
        self._programs: dict[tuple[Strides, ...], Execute] = {}
        self._by_strides: dict[tuple[Strides, ...], _Backward] = {}
        self._lock = threading.Lock()

    @functools.cached_property
    def _used(self) -> list[frozenset[int]]:
        """By gradient, the cotangents that it is computed from; asked for when some are not given."""
        return _uses(self._backward, self._cotangents)

    def __call__(self, inputs: list[Any]) -> list[Any]:
        """Run the forward program.

        Args:
            inputs: as for the forward program.

        Returns:
            Its outputs without the saved values; those that can be differentiated are attached to autograd's graph.
        """
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
        if not any(item is None for item in given):
            return self._run_backward(kept, given)  # type: ignore[arg-type]  # none is None
        there = frozenset(number for number, item in enumerate(given) if item is not None)
        pairs = zip(given, self._cotangents, strict=True)
        gradients = self._run_backward(kept, [_zeros(value) if item is None else item for item, value in pairs])
        pairs_of = zip(gradients, self._used, strict=True)
        return [None if used and used.isdisjoint(there) else gradient for gradient, used in pairs_of]

    def _run_backward(self, kept: list[Any], cotangents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        strides = tuple([cotangent.stride() for cotangent in cotangents])
        found = self._by_strides.get(strides)
        if found is None:
            with self._lock:
                found = self._choose(strides, cotangents)
        if found.layouts:
            cotangents = [laid_out(item, wanted) for item, wanted in zip(cotangents, found.layouts, strict=True)]
        return found.execute([*kept, *cotangents])

    def _choose(self, strides: tuple[Strides, ...], cotangents: Sequence[torch.Tensor]) -> _Backward:
        """The backward program for cotangents that lie so."""
        layouts = self._recorded
        if self._adapts:
            pairs = zip(cotangents, strides, strict=True)
            layouts = tuple([canonical(tuple(cotangent.shape), steps) for cotangent, steps in pairs])
            if layouts not in self._programs and len(self._programs) >= _LAYOUTS:
                layouts = self._recorded
        if layouts not in self._programs:
            self._programs[layouts] = self._compile_backward(None if layouts == self._recorded else layouts)
        if len(self._by_strides) >= _KNOWN:
            self._by_strides.clear()
        found = _Backward(self._programs[layouts], () if layouts == strides else layouts)
        self._by_strides[strides] = found
        return found


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


def _uses(graph: Graph, cotangents: Sequence[Input]) -> list[frozenset[int]]:
    """By gradient, the cotangents that it is computed from."""
    found: dict[Value, frozenset[int]] = {value: frozenset((number,)) for number, value in enumerate(cotangents)}
    nothing: frozenset[int] = frozenset()
    for op in graph.ops:
        uses = nothing.union(*(found.get(value, nothing) for value in op.inputs))
        found.update(dict.fromkeys(op.results, uses))
    return [found.get(output.value, nothing) for output in graph.outputs]


def _zeros(cotangent: Input) -> torch.Tensor:
    shape: tuple[int, ...] = cotangent.shape  # type: ignore[assignment]  # static
    return torch.zeros(shape, dtype=to_torch(cotangent.dtype), device=cotangent.device)
