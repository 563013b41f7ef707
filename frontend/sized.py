"""Captures for inputs of many sizes: what is taken for a size when one begins, and for which calls it holds then.

A function that has been captured for inputs of two sizes is captured once more with sizes that know what they are
(`graphc.ir.sizes`) in the place of those dims that were found to differ. Python, ATen and autograd compute with them as
with numbers, and what they find out by looking at one is noted as a condition. For further sizes that meet the
conditions the function does not run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from graphc.frontend.aten import layout
from graphc.frontend.aten.sized_trials import OneSizeOnly, SizedTrial, at
from graphc.ir.dims import Dim, Expr, evaluate
from graphc.ir.generalize import General
from graphc.ir.sizes import LEAST, Conditions, Size, plain
from graphc.program.facts import stride_facts

Shape: TypeAlias = tuple[int, ...]
Key: TypeAlias = tuple[Any, ...]
"""Shapes and strides of the inputs that have sizes."""


@dataclass(frozen=True)
class SizedInputs:
    """The inputs of a capture that have sizes, by path.

    Attributes:
        conditions: where it is noted what is found out about the sizes.
        geometry: shape and strides.
    """

    conditions: Conditions
    geometry: Mapping[str, tuple[Shape, Shape]]

    def of(self, path: str, tensor: torch.Tensor) -> tuple[Shape, Shape] | None:
        """Shape and strides of an input; None where it has no sizes.

        Raises:
            OneSizeOnly: it is not as inputs of this path have been before.
        """
        found = self.geometry.get(path)
        if found is not None and not _lies_so(tensor, *(tuple(map(plain, numbers)) for numbers in found)):
            raise OneSizeOnly(f"{path} has dims or strides that are no expression of the sizes")
        return found


def sized_inputs(general: General, tensors: Mapping[str, torch.Tensor]) -> SizedInputs | None:
    """What inputs of a call are taken for; None where they are not like those of the calls before.

    Args:
        general: the graph of these.
        tensors: inputs of the call by path.
    """
    names = {position: name for name, position in general.sizes.items()}
    known: dict[str, int] = {}
    shapes: dict[str, tuple[tuple[Dim, ...], tuple[Dim, ...] | None]] = {}
    first = 0
    for item in general.first.graph.inputs:
        count, rank = item.type.rank + len(item.strides or ()), item.type.rank
        sources = general.exprs[first : first + count]
        if any(isinstance(source, Expr) for source in sources):
            tensor = tensors.get(item.path)
            if tensor is None or tensor.dim() != rank or item.path in shapes:
                return None
            for dim in range(rank):
                if first + dim in names:
                    known[names[first + dim]] = tensor.shape[dim]
            shapes[item.path] = sources[:rank], sources[rank:] or None  # type: ignore[assignment]  # ints
        first += count
    if known.keys() != general.sizes.keys() or min(known.values()) < LEAST:
        return None
    conditions = Conditions(known)

    def sized(numbers: Sequence[Dim]) -> Shape:
        return tuple([n if isinstance(n, int) else conditions.size(evaluate(n, known), n) for n in numbers])

    geometry = {}
    for path, (dims, steps) in shapes.items():
        shape = sized(dims)
        geometry[path] = shape, layout.contiguous(shape) if steps is None else sized(steps)
    return SizedInputs(conditions, geometry)


class Sized:
    """For which calls a capture for many sizes holds.

    Args:
        conditions: what it has found out about its sizes.
        inputs: shape and strides of the program's inputs that have sizes, by position.
        trials: of libraries, to be run for other sizes.
    """

    def __init__(
        self, conditions: Conditions, inputs: Mapping[int, tuple[Shape, Shape]], trials: Sequence[SizedTrial]
    ) -> None:
        self.conditions = conditions
        self._inputs, self._trials = inputs, trials
        self._places = tuple(inputs)
        self._sizes = {
            str(size.expr): (place, dim)
            for place, (shape, _) in reversed(list(inputs.items()))
            for dim, size in enumerate(shape)
            if type(size) is Size
        }

    def key(self, inputs: Sequence[Any]) -> Key:
        """What tells calls apart that need programs of their own."""
        return tuple([(inputs[place].shape, inputs[place].stride()) for place in self._places])

    def sizes_of(self, inputs: Sequence[Any]) -> dict[str, int] | None:
        """The sizes of a call, or None where the capture does not hold for it."""
        sizes = {}
        for name in self.conditions.given():
            place, dim = self._sizes[name]
            sizes[name] = inputs[place].shape[dim]
        if min(sizes.values()) < LEAST or not self.conditions.hold(sizes):
            return None
        values = self.conditions.all_sizes(sizes)
        fit = all(_lies_so(inputs[place], *at(found, values)) for place, found in self._inputs.items())
        return sizes if fit and all(trial.holds(values) for trial in self._trials) else None

    def at(self, item: Any, sizes: Mapping[str, int]) -> Any:
        """A number that is made of sizes as it is for some; anything else as it is."""
        return at(item, self.conditions.all_sizes(sizes))


def _lies_so(tensor: torch.Tensor, shape: Shape, strides: Shape) -> bool:
    return tuple(tensor.shape) == shape and stride_facts(shape, tensor.stride()) == stride_facts(shape, strides)
