"""Whether two values of a graph are computed alike: `y != -100` written twice, `a * 8` in both bounds of a slice."""

from __future__ import annotations

from graphc.ir.graph import Op, Value
from graphc.ops.extern import effect
from graphc.ops.registry import Kind, get

_DEPTH = 8
"""How values are computed is compared down to this depth."""


def is_same(first: Value, second: Value, depth: int = 0) -> bool:
    """Whether two values are computed alike, by the same ops of the same values."""
    if first is second:
        return True
    mine, other = first.op, second.op
    if mine is None or other is None or depth > _DEPTH or first.type != second.type:
        return False
    if mine.name != other.name or mine.attrs != other.attrs or len(mine.operands) != len(other.operands):
        return False
    if mine.results.index(first) != other.results.index(second) or not _is_pure(mine):
        return False
    return all(
        is_same(a, b, depth + 1) if isinstance(a, Value) and isinstance(b, Value) else type(a) is type(b) and a == b
        for a, b in zip(mine.operands, other.operands, strict=True)
    )


def _is_pure(op: Op) -> bool:
    return not effect(op) and get(op.name).kind is not Kind.RANDOM
