"""Rows that are 0 but at one place, which a label names: as the gradient of a loss by labels is made of them.

    %e: bool[M, N] = eq(%label, %positions)                   %z: i32[M, 1] = cast(where(%inside, %label, -1))
                                                        ->    %e: bool[M, N] = eq(%z, %positions as i32)
    %w: f32[M, N] = where(logical_and(%e, %m), %a, 0.0)       %w: f32[M, N] = where(logical_and(%e, %m), %a, 0.0)
    %s: f32[M, 1] = sum(%w) {dims=[1], keepdim=True}          %s: f32[M, 1] = where(logical_and(%inside, %m), %a, 0.0)

with `inside = logical_and(ge(%label, 0), lt(%label, N))`. The sum is known without a walk over the row, and places are
compared as numbers of 32 bits, which half as many instructions do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

from graphc.ir.graph import Graph, Op, Operand, Value
from graphc.ir.types import TensorType, i32, i64
from graphc.passes.base import PassContext, PassResult, Rewriter, constant_of, defined_by
from graphc.passes.layout import int_shape
from graphc.passes.positions import Line, Told, tell

_FEWEST = 32
"""Places of a row from which on it is worth to say what a label is in other terms."""


@dataclass(frozen=True)
class ShrinkOneHots:
    """See the module. Results are the same bits."""

    name: ClassVar[str] = "shrink-one-hots"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        finder = _Finder()
        return Rewriter(graph, ctx).run(finder.rewrite, {"eq", "sum"})


@dataclass(frozen=True)
class _Label:
    """What is compared with the places along a dim.

    Args:
        value: has size 1 along that dim.
        dim: counted from the last one as -1.
        places: the 0, 1, ... that it is compared with.
    """

    value: Value
    dim: int
    places: Value

    @property
    def extent(self) -> int:
        return int_shape(self.places)[self.dim]

    def inside(self, rewriter: Rewriter) -> Value:
        """Whether it names a place at all."""
        behind = rewriter.op("lt", self.value, self.extent)
        return rewriter.op("logical_and", rewriter.op("ge", self.value, 0), behind)


@dataclass
class _Finder:
    known: dict[Value, Told | None] = field(default_factory=dict)

    def rewrite(self, rewriter: Rewriter, op: Op) -> Sequence[Value] | None:
        value = self._sum(rewriter, op) if op.name == "sum" else self._eq(rewriter, op)
        return None if value is None else (value,)

    def _label(self, operand: Operand) -> _Label | None:
        """That of a comparison with all places of a row."""
        op = operand.op if isinstance(operand, Value) else None
        if op is None or op.name != "eq":
            return None
        for value, places in (op.operands, reversed(op.operands)):
            if not isinstance(value, Value) or not isinstance(places, Value) or value.type.is_host:
                continue
            told = tell(places, self.known)
            if not isinstance(told, Line) or told.start or list(told.steps.values()) != [1]:
                continue
            (dim,) = told.steps
            label = _Label(value, dim, places)
            if value.dtype in (i32, i64) and _is_one(value, dim) and label.extent == prod(int_shape(places)) >= _FEWEST:
                return label
        return None

    def _eq(self, rewriter: Rewriter, op: Op) -> Value | None:
        label = self._label(op.result)
        if label is None or label.value.dtype != i64 or label.extent >= 1 << 31:
            return None
        chosen = rewriter.op("where", label.inside(rewriter), label.value, -1)
        places = rewriter.op("iota", size=label.extent, start=0, step=1, dtype=i32, device=label.places.device)
        if places.shape != label.places.shape:
            places = rewriter.op("reshape", places, shape=label.places.shape)
        return rewriter.op("eq", rewriter.op("cast", chosen, dtype=i32), places)

    def _sum(self, rewriter: Rewriter, op: Op) -> Value | None:
        source, dims = op.operands[0], op.attrs["dims"]
        if not isinstance(source, Value) or len(dims) != 1 or not op.result.dtype.is_float:
            return None
        dim = dims[0] - source.type.rank
        casts, chosen = _without_casts(source)
        if chosen is None or constant_of(chosen.operands[2]) != 0:
            return None
        conditions = {item: self._label(item) for item in _conditions(chosen.operands[0])}
        labels = [label for label in conditions.values() if label is not None]
        others = [item for item, label in conditions.items() if label is None]
        picked = chosen.operands[1]
        if len(labels) != 1 or labels[0].dim != dim or not all(_is_one(x, dim) for x in (picked, *others)):
            return None
        is_there = labels[0].inside(rewriter)
        for other in others:
            is_there = rewriter.op("logical_and", is_there, other)
        if not isinstance(picked, Value):
            picked = rewriter.full(TensorType(chosen.result.dtype, (), chosen.result.device), picked)
        value = rewriter.op("where", is_there, picked, 0.0)
        for dtype in (*reversed([cast.result.dtype for cast in casts]), op.result.dtype):
            value = value if value.dtype == dtype else rewriter.op("cast", value, dtype=dtype)
        row = tuple(1 if at == dims[0] else size for at, size in enumerate(int_shape(source)))
        if value.shape != row:
            value = rewriter.op("expand", value, shape=row)
        if row != op.result.shape:
            value = rewriter.op("reshape", value, shape=op.result.shape)
        return rewriter.op("add", value, 0.0)  # a sum starts from there


def _is_one(operand: Operand, dim: int) -> bool:
    """Whether an operand is the same along a dim."""
    if not isinstance(operand, Value):
        return True
    shape = int_shape(operand)
    return len(shape) < -dim or shape[dim] == 1


def _without_casts(value: Value) -> tuple[list[Op], Op | None]:
    """The `where` that a value is, and how it is cast before, the last one first."""
    casts: list[Op] = []
    while (cast := defined_by(value, "cast")) is not None:
        operand = cast.operands[0]
        if not isinstance(operand, Value) or not operand.dtype.is_float or not cast.result.dtype.is_float:
            return casts, None
        casts.append(cast)
        value = operand
    return casts, defined_by(value, "where")


def _conditions(operand: Operand) -> list[Operand]:
    """What has to hold together, each once."""
    stack, seen = [operand], dict[Operand, bool]()
    while stack:
        item = stack.pop()
        both = defined_by(item, "logical_and")
        if item not in seen and both is not None:
            stack += reversed(both.operands)
        seen.setdefault(item, both is None)
    return [item for item, is_plain in seen.items() if is_plain]
