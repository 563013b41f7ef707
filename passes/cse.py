"""Common subexpression elimination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from graphc.ir.graph import Graph, Op, Value
from graphc.ops.registry import OpDef
from graphc.passes.base import ORDERED_ZEROS, PassContext, PassResult, redirect_ends


@dataclass(frozen=True)
class EliminateCommonSubexpressions:
    """Computes equal ops once.

    Before:
        %0: f32[4] = exp(%x)
        %1: f32[4] = exp(%x)
        %2: f32[4] = add(%0, %1)
    After:
        %0: f32[4] = exp(%x)
        %2: f32[4] = add(%0, %0)

    Numbers are compared with their type (`1`, `1.0`, `True`, `-0.0` all differ); the operands of commutative ops in any
    order. Ops with an effect stay. So does a copy of an output: two outputs never come to share memory.
    """

    name: ClassVar[str] = "cse"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        first: dict[Any, Op] = {}
        replaced: dict[Value, Value] = {}
        escaping = {output.value for output in graph.outputs}
        kept: list[Op] = []
        for op in graph.ops:
            if replaced and not replaced.keys().isdisjoint(op.operands):
                op.operands = [replaced.get(item, item) if isinstance(item, Value) else item for item in op.operands]
            definition = ctx.get_def(op.name)
            if definition.effect or op.attrs.get("effect") or op.name == "scan":
                kept.append(op)
                continue
            earlier = first.setdefault(_key(op, definition), op)
            if earlier is op or not _merge(earlier, op, escaping, replaced):
                kept.append(op)
        modified = len(kept) < len(graph.ops)
        graph.ops = kept
        redirect_ends(graph, replaced)
        return PassResult(modified)


def _merge(earlier: Op, op: Op, escaping: set[Value], replaced: dict[Value, Value]) -> bool:
    pairs = list(zip(earlier.results, op.results, strict=True))
    if any(a in escaping and b in escaping for a, b in pairs):
        return False
    for a, b in pairs:
        replaced[b] = a
        if b in escaping:
            escaping.add(a)
    return True


def _key(op: Op, definition: OpDef) -> Any:
    # values are compared by identity; two numbers only with their type and every bit
    operands = tuple([item if isinstance(item, Value) else (item.__class__, repr(item)) for item in op.operands])
    if definition.commutative and op.name not in ORDERED_ZEROS and _order(operands[0]) > _order(operands[1]):
        operands = operands[::-1]
    attrs = "" if not op.attrs else repr(op.attrs) if len(op.attrs) == 1 else repr(sorted(op.attrs.items()))
    # equal operands and attributes give equal types; layouts are hints and may differ
    return op.name, operands, attrs, tuple([value.strides for value in op.results])


def _order(operand: Any) -> tuple[bool, int | str]:
    """Any order will do, as long as equal pairs of operands get one."""
    return (False, id(operand)) if isinstance(operand, Value) else (True, operand[1])
