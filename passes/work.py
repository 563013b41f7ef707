"""What kernels can compute, what an element costs them, and how much one of them may hold."""

from __future__ import annotations

import math

from graphc.ir.graph import Op, Value
from graphc.loopir.scalar import SCALAR_OPS
from graphc.ops.registry import Kind, get
from graphc.passes.group import MAX_ARGUMENTS, MAX_VISITS, Group
from graphc.passes.layout import int_shape
from graphc.passes.updates import UPDATES

KERNEL_DTYPES = frozenset(("f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "u16", "u32", "u64", "bool"))
MANY_PIECES = 8
"""Operands of a concat from which on kernels do not choose between them."""
RANDOM_WORK = 2
"""Little, so that a mask and its scaling are computed again where they are needed, and take no memory in between."""


def is_kernel_op(op: Op) -> bool:
    """Whether generated kernels can compute the op: it has a lowering and all dtypes are real numbers."""
    if get(op.name).lower is None:
        return False
    for value in (*op.operands, *op.results):
        if isinstance(value, Value) and value.type.dtype.name not in KERNEL_DTYPES:
            return False
    return True


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
