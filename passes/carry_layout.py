"""Values between others that lie in another order than the plain one lie in that order too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphc.ir.dims import Dim
from graphc.ir.graph import Graph, Op, Value
from graphc.ops.registry import Kind, get
from graphc.passes.base import PassContext, PassResult


@dataclass(frozen=True)
class CarryLayout:
    """Gives results of pointwise ops that have no layout of their own that of their operands.

    Before:
        %0: f32[8, 16, 9, 9] = cast(%x)            # %x: bf16, channels last
        %1: f32[8, 16, 9, 9] = add(%0, %y)         # %y: f32, channels last
        %2: f32[8, 16, 9, 9] strides=[1296, 1, 144, 16] = abs(%1)
    After:
        %0: f32[8, 16, 9, 9] strides=[1296, 1, 144, 16] = cast(%x)
        %1: f32[8, 16, 9, 9] strides=[1296, 1, 144, 16] = add(%0, %y)
        %2: f32[8, 16, 9, 9] strides=[1296, 1, 144, 16] = abs(%1)

    An op on several dtypes arrives as casts around the op, and eager has no strides for what is between them. If such
    a value is stored, in the plain order, neighbours in memory of one side lie far apart on the other side. What calls
    and the user see keeps eager's strides.
    """

    name: ClassVar[str] = "carry-layout"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if ctx.target == "cpu":
            return PassResult(False)
        seen = {output.value for output in graph.outputs} | {write.value for write in graph.writes}
        for op in graph.ops:
            if get(op.name).lower is None:
                seen.update(op.inputs)
        modified = False
        for op in graph.ops:
            if get(op.name).kind is Kind.POINTWISE and op.result.strides is None and op.result not in seen:
                found = _layout_of_operands(op)
                if found is not None:
                    op.result.strides = found
                    modified = True
        return PassResult(modified)


def _layout_of_operands(op: Op) -> tuple[Dim, ...] | None:
    """The one layout of all operands as large as the result, but for repeated values and filled ones; None without."""
    found: set[tuple[Dim, ...] | None] = set()
    for operand in op.inputs:
        if operand.shape == op.result.shape and not _is_made_of_less(operand):
            found.add(None if operand.strides is None else tuple(operand.strides))
    return found.pop() if len(found) == 1 else None


def _is_made_of_less(value: Value) -> bool:
    return value.op is not None and (value.op.name == "expand" or get(value.op.name).kind is Kind.CREATION)
