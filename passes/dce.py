"""Dead code elimination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphc.ir.graph import Graph, Op
from graphc.passes.base import PassContext, PassResult


@dataclass(frozen=True)
class EliminateDeadCode:
    """Drops ops whose results nothing needs.

    Before:
        %0: f32[4] = exp(%x)
        %1: f32[4] = neg(%x)
        return %1
    After:
        %1: f32[4] = neg(%x)
        return %1

    Needed are outputs, the contents of writes, and ops with an effect: a dropout mask that nobody reads still moves
    torch's generator on. Inputs stay: they are the signature of the program.
    """

    name: ClassVar[str] = "dce"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        needed = graph.live_out()
        kept: list[Op] = []
        for op in reversed(graph.ops):
            live = any(value in needed for value in op.results)
            if not live and not ctx.get_def(op.name).effect and not op.attrs.get("effect"):
                continue
            needed.update(op.inputs)
            kept.append(op)
        modified = len(kept) < len(graph.ops)
        kept.reverse()
        graph.ops = kept
        return PassResult(modified)
