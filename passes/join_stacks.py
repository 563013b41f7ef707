"""What a loop stacks, side by side in rows like those of a sequence that it reads: it can lie in their place then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from graphc.ir.graph import Builder, Graph, Op, Value
from graphc.ops.registry import Kind, get
from graphc.passes.base import PassContext, PassResult, redirect_ends
from graphc.passes.layout import int_shape
from graphc.passes.partition import value_bytes
from graphc.passes.restack import Users, is_fused, users_of, with_outputs


@dataclass(frozen=True)
class JoinStacks:
    """Stacks that together have rows like a sequence of the loop, which nothing reads later, become one such stack.

    Before:
        %0: .., %1: f32[9, 2, 3], %2: f32[9, 2, 3] = scan(%h, %x) {carries=1, sequences=1, ..}    # %x: f32[9, 2, 6]
          body graph loop(..) {
            ...
            return %5, %6, %7
          }
    After:
        %0: .., %3: f32[9, 2, 6] = scan(%h, %x) {carries=1, sequences=1, ..}
          body graph loop(..) {
            ...
            %8: f32[2, 6] = concat(%6, %7) {dim=1}
            return %5, %8
          }
        %1: f32[9, 2, 3] = slice(%3) {dim=2, start=0, stop=3, step=1}
        %2: f32[9, 2, 3] = slice(%3) {dim=2, start=3, stop=6, step=1}
    """

    name: ClassVar[str] = "join-stacks"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        scans = [op for op in graph.ops if op.name == "scan"]
        if not scans:
            return PassResult(False)
        users, kept = users_of(graph), graph.live_out()
        number = {op: at for at, op in enumerate(graph.ops)}
        chosen = {op: found for op in scans if (found := _side_by_side(op, users, kept, number))}
        builder = Builder(graph, ctx.infer)
        replaced: dict[Value, Value] = {}
        ops, graph.ops = graph.ops, []
        for op in ops:
            op.operands = [replaced.get(item, item) if isinstance(item, Value) else item for item in op.operands]
            if op in chosen:
                replaced |= _join(op, chosen[op], builder, ctx)
            else:
                graph.ops.append(op)
        redirect_ends(graph, replaced)
        return PassResult(bool(chosen))


def _side_by_side(op: Op, users: Users, kept: set[Value], number: Mapping[Op, int]) -> list[int]:
    """Numbers of results that together have the rows of a sequence that ends with this loop."""
    carries = op.attrs["carries"]
    values = [output.value for output in op.attrs["body"].outputs]
    free = [
        at
        for at in range(carries, len(values))
        if values[at] not in values[:carries]
        and values[at].op is not None
        and values[at].type.rank > 0
        and users.get(op.results[at])
        and is_fused(op.results[at], users, kept)
    ]
    sequences = [item for item in op.operands[carries : carries + op.attrs["sequences"]] if isinstance(item, Value)]
    for item in sorted(sequences, key=lambda value: -value_bytes(value)):
        if item.type.rank < 2 or not _ends_with(item, op, users, kept, number):
            continue
        alike = [n for n in free if _but_width(op.results[n]) == _but_width(item)]
        found = _filling(alike, [int_shape(op.results[n])[-1] for n in alike], int_shape(item)[-1])
        if len(found) > 1:
            return found
    return []


def _but_width(value: Value) -> tuple[object, ...]:
    return (value.dtype, *value.shape[:-1])


def _ends_with(value: Value, op: Op, users: Users, kept: set[Value], number: Mapping[Op, int]) -> bool:
    """Whether nothing behind a loop reads what a sequence lies in: memory of its own, not an input's."""
    while value.op is not None and get(value.op.name).kind is Kind.VIEW:
        value = next(iter(value.op.inputs))
    views = [value]
    for view in views:
        if view.op is None or view in kept:
            return False
        for user in users.get(view, ()):
            if get(user.name).kind is Kind.VIEW:
                views += user.results
            elif number[user] > number[op]:
                return False
    return True


def _filling(numbers: Sequence[int], widths: Sequence[int], total: int) -> list[int]:
    """The first numbers whose widths add up to the total; none when there are none."""
    found: dict[int, list[int]] = {0: []}
    for number, width in zip(numbers, widths, strict=True):
        for reached, those in list(found.items()):
            if reached + width <= total:
                found.setdefault(reached + width, [*those, number])
    return found.get(total, [])


def _join(op: Op, numbers: Sequence[int], b: Builder, ctx: PassContext) -> dict[Value, Value]:
    """The loop with one stack in place of several; what stands for each of its results."""
    body: Graph = op.attrs["body"]
    values = [output.value for output in body.outputs]
    inner = Builder(body, ctx.infer)
    inner.location = op.location
    parts = [values[number] for number in numbers]
    joined = inner.op("concat", *parts, dim=parts[0].type.rank - 1)
    rest = [number for number in range(len(values)) if number not in numbers]
    new = with_outputs(op, b, ctx, [*(values[number] for number in rest), joined])
    found: dict[Value, Value] = dict(zip((op.results[number] for number in rest), new.results, strict=False))
    for old, made in found.items():
        made.strides = old.strides
    start = 0
    for number in numbers:
        old = op.results[number]
        stop = start + int_shape(old)[-1]
        found[old] = b.op("slice", new.results[-1], dim=old.type.rank - 1, start=start, stop=stop, step=1)
        start = stop
    return found
