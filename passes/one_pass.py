"""Reductions that wait for one another as written, and that a generated kernel makes in one pass over the row.

    %t = sum(%x);  %m = div(%t, n);  %d = sub(%x, %m);  %s = mul(%d, %d);  %v = sum(%s)

See `graphc.codegen.triton.moments`. So the groups of both sums may be one kernel however long the row: it is not walked
again.
"""

from __future__ import annotations

from math import prod

from graphc.ir.graph import Op, Value
from graphc.ir.sizes import is_one_over
from graphc.ops.registry import Kind, get
from graphc.passes.group import Group
from graphc.passes.layout import int_shape


def takes_no_other_pass(group: Group, total: Value) -> bool:
    """Whether a group that reads the sum of a row has nothing to do for the row's elements but to add up the squares of
    their distances from the mean.
    """
    if not group.rows or any(not group.axes_of(index).isdisjoint(group.rows) for index in group.roots.values()):
        return False
    return all(
        _is_squared_distance(value.op, total)
        for value, places in group.visits.items()
        if any(visit.expanded for visit in places.values())
        and value.op is not None
        and get(value.op.name).kind in (Kind.REDUCTION, Kind.SCAN)
    )


def _is_squared_distance(op: Op, total: Value) -> bool:
    square = _made_by(op.operands[0], "mul") if op.name == "sum" else None
    distance = None if square is None or square.operands[0] is not square.operands[1] else square.operands[0]
    difference = _made_by(distance, "sub")
    source = _made_by(total, "sum")
    if difference is None or source is None or source.attrs["dims"] != op.attrs["dims"]:
        return False
    x, mean = difference.operands
    if source.operands[0] is not x or not isinstance(x, Value):
        return False
    count = prod(int_shape(x)) // max(1, prod(int_shape(total)))
    divided, scaled = _made_by(mean, "div"), _made_by(mean, "mul")
    if divided is not None and divided.operands[0] is total and divided.operands[1] == count:
        return True
    return scaled is not None and scaled.operands[0] is total and is_one_over(count, scaled.operands[1])


def _made_by(value: object, name: str) -> Op | None:
    """The op that gives a value, if it is this one."""
    return value.op if isinstance(value, Value) and value.op is not None and value.op.name == name else None
