"""What works on the rows of a large product, row by row: what can be done a chunk of rows at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from graphc.ir.graph import Graph, Op, Value
from graphc.ops.registry import Kind, get
from graphc.passes.layout import int_shape
from graphc.passes.rows import Refine, Rows, adds_up_rows, rows_of_result

EXPANSION = 4
"""A product is a candidate when its rows are at least so many times longer than those of its left operand."""


def is_expanding(op: Op) -> bool:
    """Whether an op is a product of two matrices with rows much longer than those of its left operand."""
    if op.name != "matmul" or op.result.type.rank != 2 or not op.result.dtype.is_float:
        return False
    left = op.operands[0]
    assert isinstance(left, Value)
    inner, (rows, columns) = int_shape(left)[1], int_shape(op.result)
    return rows > 1 and columns >= EXPANSION * max(inner, 1)


@dataclass
class Region:
    """A product and what works on its rows.

    Attributes:
        seed: the product.
        batches: B; see `graphc.passes.rows`.
        known: values that consist of rows.
        ops: ops to be done chunk by chunk, in program order: they read large values, or what they read needs them.
        sums: those of them that add up rows.
        level: of each op, the round in which it is done.
        large: values of about the size of the product.
    """

    seed: Op
    batches: int
    known: dict[Value, Rows]
    ops: list[Op] = field(default_factory=list)
    sums: set[Op] = field(default_factory=set)
    level: dict[Op, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Rows of the product."""
        return int_shape(self.seed.result)[0]

    def is_large(self, value: Value) -> bool:
        """Whether a value is about as large as the product."""
        return EXPANSION * math.prod(int_shape(value)) > math.prod(int_shape(self.seed.result))


def find_region(graph: Graph, seed: Op) -> Region | None:
    """What is to be done chunk by chunk with a product; None when the product, or its like, is needed whole."""
    region = _spread(graph, seed, 1)
    if region is None:
        return None
    live = graph.live_out()
    reads_large: set[Op] = {seed}
    for op in graph.ops:
        if any(item in region.known and region.is_large(item) for item in op.inputs):
            if op not in region.sums and not (op.results and op.result in region.known):
                return None
            reads_large.add(op)
    if any(value in live for value in region.known if region.is_large(value)):
        return None
    wanted: set[Value] = set()
    for op in reversed(graph.ops):
        is_row = len(op.results) == 1 and op.result in region.known
        if op in reads_large or (is_row and op.result in wanted):
            region.ops.append(op)
            wanted.update(op.inputs)
    region.ops.reverse()
    if not any(_reduces_rows(region, op, wanted) for op in graph.ops) or _has_effects(graph, region, wanted):
        return None
    _find_levels(graph, region)
    return region


def _has_effects(graph: Graph, region: Region, wanted: set[Value]) -> bool:
    """Whether an op with an effect would have to move up for what the region reads."""
    needed, inside = set(wanted), set(region.ops)
    for op in reversed(graph.ops[graph.ops.index(region.seed) :]):
        if op not in inside and any(result in needed for result in op.results):
            if get(op.name).effect or op.attrs.get("effect"):
                return True
            needed.update(op.inputs)
    return False


def _spread(graph: Graph, seed: Op, batches: int) -> Region | None:
    """All values that are made from the product row by row, and the sums over rows."""
    region = Region(seed, batches, {})
    region.known[seed.result] = Rows((0,), int_shape(seed.result)[0] // batches)
    try:
        for op in graph.ops[graph.ops.index(seed) + 1 :]:
            if not any(item in region.known for item in op.inputs):
                continue
            rows = rows_of_result(op, region.known, batches)
            if rows is not None:
                region.known[op.result] = rows
            elif op.name in ("sum", "matmul") and adds_up_rows(op, region.known):
                region.sums.add(op)
    except Refine as found:
        return None if batches > 1 or found.batches < 2 else _spread(graph, seed, found.batches)
    return region


def _reduces_rows(region: Region, op: Op, wanted: set[Value]) -> bool:
    """Whether an op takes one number of each row of a large value, which is one of the region or is for it."""
    if get(op.name).kind is not Kind.REDUCTION and op.name != "gather":
        return False
    if op in region.sums or len(op.results) != 1:
        return False
    operand = op.operands[0]
    assert isinstance(operand, Value)
    concerned = operand in region.known or op.result in wanted
    return concerned and region.is_large(operand) and not region.is_large(op.result)


def _find_levels(graph: Graph, region: Region) -> None:
    """The round of each op: what needs something of all rows comes one round after it."""
    inside = set(region.ops)
    made: dict[Value, int] = {}
    for op in graph.ops:
        known = [region.level[o] + (o in region.sums) for o in (item.op for item in op.inputs) if o in region.level]
        if op in inside:
            others = [made.get(item, 0) for item in op.inputs if item.op not in region.level]
            region.level[op] = max([*known, *others], default=0)
            made.update((result, region.level[op] + 1) for result in op.results)
        else:
            level = max((made.get(item, 0) for item in op.inputs), default=0)
            made.update((result, level) for result in op.results)
