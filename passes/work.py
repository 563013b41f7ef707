"""What an element costs to compute, and how much one kernel may hold."""

from __future__ import annotations

import math

from graphc.ir.graph import Op, Value
from graphc.loopir.scalar import SCALAR_OPS
from graphc.ops.registry import Kind, get
from graphc.passes.group import MAX_ARGUMENTS, MAX_VISITS, Group
from graphc.passes.layout import int_shape
from graphc.passes.updates import UPDATES

MANY_PIECES = 8
"""Operands of a concat from which on kernels do not choose between them."""
RANDOM_WORK = 2
"""Little, so that a mask and its scaling are computed again where they are needed, and take no memory in between."""


def is_full(group: Group) -> bool:
    return group.size >= MAX_VISITS or group.open >= MAX_ARGUMENTS


def element_count(value: Value) -> int:
    return math.prod(int_shape(value))


def element_work(op: Op) -> int:
    """Cost of one element, in additions."""
    rule = SCALAR_OPS.get(op.name)
    if rule is not None:
        return rule.cost
    kind = get(op.name).kind
    if kind is Kind.RANDOM:
        return RANDOM_WORK
    return 4 if kind is Kind.INDEXING else 2 if op.name in ("pad", "concat", *UPDATES) else 0
