"""Composite ops to core ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from graphc.ir.graph import Graph, Op, Value
from graphc.ops.registry import Kind
from graphc.passes.base import PassContext, PassResult, Rewriter


@dataclass(frozen=True)
class ExpandComposites:
    """Replaces each composite op by the core ops that its definition expands it into.

    Before:
        %0: f32[4] = sigmoid(%x)              # mlp.py:14
    After:
        %1: f32[4] = neg(%x)                  # mlp.py:14
        %2: f32[4] = exp(%1)                  # mlp.py:14
        %3: f32[4] = add(%2, 1.0)             # mlp.py:14
        %4: f32[4] = div(1.0, %3)             # mlp.py:14

    Composites in `ctx.keep` stay whole. Expansions compute reduced floats in f32 and round once at the end, as eager's
    kernels do, so they are right under both settings of `ctx.numerics`.
    """

    name: ClassVar[str] = "expand-composites"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        return Rewriter(graph, ctx).run(_expand)


def _expand(rewriter: Rewriter, op: Op) -> Sequence[Value] | None:
    ctx = rewriter.ctx
    definition = ctx.get_def(op.name)
    if definition.kind is not Kind.COMPOSITE or definition.expand is None or op.name in ctx.keep:
        return None
    values: list[Value] = []
    for value in definition.expand(rewriter.builder, op):
        # a result must be a value of its own: an operand or another result could not be handed out in its place
        own = value not in values and value not in op.operands
        values.append(value if own else rewriter.op("reshape", value, shape=value.shape))
    return values
