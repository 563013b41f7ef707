"""For kernels that multiply rows group by group: to which group each row belongs, as a vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from graphc.ir.graph import Graph, Op, Value
from graphc.ir.types import i32, i64
from graphc.ops import grouped
from graphc.passes.base import PassContext, PassResult, Rewriter
from graphc.passes.layout import int_shape


@dataclass(frozen=True)
class NameGroupsOfRows:
    """The group of a row is the number of groups that end at or before it: one vector for all products that share it.

    Before:
        %y: bf16[64, 32] = grouped_matmul(%x, %w, %ends)
    After:
        %0: i32[64] = iota() {size=64, ...}
        %1: i32[64, 1] = reshape(%0) {shape=[64, 1]}
        %2: bool[64, 4] = le(%ends, %1)
        %3: i64[64, 4] = cast(%2) {dtype=i64}
        %4: i64[64] = sum(%3) {dims=[1], keepdim=False}
        %y: bf16[64, 32] = grouped_matmul(%x, %w, %ends, %4)

    It does nothing without templates, nor for products that they leave to the library.
    """

    name: ClassVar[str] = "name-groups-of-rows"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        templates = ctx.templates
        if templates is None:
            return PassResult(False)

        def rewrite(rewriter: Rewriter, op: Op) -> Sequence[Value] | None:
            if len(op.operands) != 3 or op.results[0].type.rank != 2 or not templates.may_take_groups(op):
                return None
            a, _, ends = op.inputs
            rows = rewriter.op("iota", size=int_shape(a)[0], start=0, step=1, dtype=i32, device=a.device)
            at_or_before = rewriter.op("le", ends, rewriter.op("reshape", rows, shape=(int_shape(a)[0], 1)))
            groups = rewriter.op("sum", rewriter.op("cast", at_or_before, dtype=i64), dims=(1,), keepdim=False)
            return (rewriter.op(grouped.NAME, *op.operands, groups),)

        return Rewriter(graph, ctx).run(rewrite, (grouped.NAME,))
