"""Values that the backward pass needs of the forward pass, computed where the forward pass has all that it takes.

    forward    h = matmul(...)   y = gelu(h)     stored: h, erf(h), y          stored: y, gelu'(h)
    ...                                                                   ->
    backward   dh = dy * gelu'(h)                reads:  h, erf(h), dy         reads:  gelu'(h), dy

An activation and its slope share an expensive part. Left where autograd has it, the slope keeps that part and the
activation's argument in memory until then; computed next to the activation, it is the only thing that stays.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.ir.graph import Op, Value
from graphc.loopir.scalar import SCALAR_OPS
from graphc.ops.registry import Kind, get
from graphc.passes.layout import int_shape

MOST_LEAVES = 4
"""Values that an expression may be of to be looked at."""
EXPENSIVE = 8
"""Cost of one element, in additions, from which an op is worth sharing."""

_Leaves = frozenset[Value]


def hoisted(ops: Sequence[Op], live: set[Value]) -> dict[Value, Op]:
    """Slopes to compute early: each with the expensive op behind which it is best computed.

    Args:
        ops: in program order.
        live: values that are stored in any case.
    """
    leaves, users = _leaves(ops), _users(ops)
    calls, count = {}, 0
    for op in ops:
        count += _is_barrier(op)
        calls[op] = count
    found: dict[Value, Op] = {}
    for op in ops:
        if _cost(op) < EXPENSIVE or op.results[0] not in leaves or op.results[0] in live:
            continue
        ends = _ends(op.results[0], leaves, users)
        if ends is None or len(ends) != 2:
            continue
        early, late = sorted(map(_unviewed, ends), key=lambda value: calls[value.op] if value.op is not None else -1)
        if late.op is None:  # both are inputs
            continue
        is_full = int_shape(late) == int_shape(op.results[0]) and late.dtype.itemsize <= op.results[0].dtype.itemsize
        if calls[late.op] > calls[op] and is_full and late not in live and _needs(late, op, early):
            found[late] = op
    return found


def _leaves(ops: Sequence[Op]) -> dict[Value, _Leaves]:
    """Per value of pointwise code the few values that it is computed from."""
    found: dict[Value, _Leaves] = {}
    for op in ops:
        if get(op.name).kind not in (Kind.POINTWISE, Kind.VIEW) or len(op.results) != 1:
            continue
        below: set[Value] = set()
        for operand in op.inputs:
            below |= found.get(operand, {operand})
        if 0 < len(below) <= MOST_LEAVES:
            found[op.results[0]] = frozenset(below)
    return found


def _users(ops: Sequence[Op]) -> dict[Value, list[Op]]:
    found: dict[Value, list[Op]] = {}
    for op in ops:
        for operand in dict.fromkeys(op.inputs):
            found.setdefault(operand, []).append(op)
    return found


def _ends(value: Value, leaves: dict[Value, _Leaves], users: dict[Value, list[Op]]) -> set[Value] | None:
    """Where pointwise code of nothing but the leaves of `value` ends; None when `value` is such an end itself."""
    given = leaves[value]
    ends: set[Value] = set()
    seen = {value}
    stack = [value]
    while stack:
        at = stack.pop()
        for user in users.get(at, ()):
            result = user.results[0]
            inside = leaves.get(result)
            if inside is None or not inside <= given:
                ends.add(at)
            elif result not in seen:
                seen.add(result)
                stack.append(result)
        if len(ends) > 2 or value in ends:
            return None
    return ends


def _needs(late: Value, op: Op, early: Value) -> bool:
    """Whether `late` takes what `op` computes even when `early` is at hand: `1 - sigmoid(x)` does not."""
    seen: set[Value] = {early}
    stack = [late]
    while stack:
        value = stack.pop()
        if value in seen or value.op is None or get(value.op.name).kind not in (Kind.POINTWISE, Kind.VIEW):
            continue
        if value.op is op:
            return True
        seen.add(value)
        stack.extend(value.op.inputs)
    return False


def _unviewed(value: Value) -> Value:
    while value.op is not None and get(value.op.name).kind is Kind.VIEW:
        value = next(iter(value.op.inputs))
    return value


def _cost(op: Op) -> int:
    rule = SCALAR_OPS.get(op.name)
    return 0 if rule is None else rule.cost


def _is_barrier(op: Op) -> bool:
    """What no kernel computes: fusion does not reach across it."""
    return get(op.name).lower is None
