"""Ops on all turns of a loop at once: what an op gives for tensors that have the turns as a new first dim."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from graphc.ir.graph import Builder, Literal, Op, Value
from graphc.ops.registry import Kind, get


class Stacked(NamedTuple):
    """An operand: per turn an item of `value` when it `varies`, else the same value in every turn."""

    value: Value
    varies: bool


Given = Stacked | Literal
Rule = Callable[[Builder, Op, list[Given], int], Value]

_SUMS = frozenset(("sum", "mean", "amax", "amin", "prod", "any", "all"))


def can_stack(op: Op) -> bool:
    """Whether `stack` knows the op."""
    if get(op.name).kind is Kind.POINTWISE:
        return len(op.results) == 1
    if op.name == "matmul":
        return all(isinstance(item, Value) and item.type.rank == 2 for item in op.operands)
    return op.name in _RULES or op.name in _SUMS


def stack(b: Builder, op: Op, operands: list[Given], length: int) -> Value:
    """The results of an op for all turns, along a new first dim.

    Args:
        op: one that `can_stack`, some operand of which varies.
        operands: in its order.
        length: turns.
    """
    if op.name in _SUMS:
        return _reduction(b, op, operands, length)
    rule = _RULES.get(op.name, _matmul if op.name == "matmul" else _pointwise)
    return rule(b, op, operands, length)


def _varying(operands: list[Given]) -> Value:
    (given,) = operands
    assert isinstance(given, Stacked) and given.varies
    return given.value


def _pointwise(b: Builder, op: Op, operands: list[Given], length: int) -> Value:
    rank = op.results[0].type.rank
    aligned = [_aligned(b, item, rank) if isinstance(item, Stacked) else item for item in operands]
    return b.op(op.name, *aligned, **op.attrs)


def _aligned(b: Builder, item: Stacked, rank: int) -> Value:
    """The operand with dims of size 1 between the turns and its own, as broadcasting wants them."""
    value = item.value
    if not item.varies or value.type.rank == rank + 1:
        return value
    missing = rank + 1 - value.type.rank
    return b.op("reshape", value, shape=(value.shape[0], *(1,) * missing, *value.shape[1:]))


def _reduction(b: Builder, op: Op, operands: list[Given], length: int) -> Value:
    value = _varying(operands)
    dims = tuple(dim + 1 for dim in op.attrs["dims"])
    return b.op(op.name, value, **{**op.attrs, "dims": dims})


def _matmul(b: Builder, op: Op, operands: list[Given], length: int) -> Value:
    left, right = operands
    assert isinstance(left, Stacked) and isinstance(right, Stacked)
    if right.varies:
        return b.op("matmul", left.value, right.value)  # of rank 2 or 3: batched, or one left factor for all turns
    rows, inner = op.operands[0].shape  # type: ignore[union-attr]
    flat = b.op("matmul", b.op("reshape", left.value, shape=(length * rows, inner)), right.value)
    return b.op("reshape", flat, shape=(length, *op.results[0].shape))


def _reshape(b: Builder, op: Op, operands: list[Given], length: int) -> Value:
    return b.op("reshape", _varying(operands), shape=(length, *op.results[0].shape))


def _permute(b: Builder, op: Op, operands: list[Given], length: int) -> Value:
    return b.op("permute", _varying(operands), dims=(0, *(dim + 1 for dim in op.attrs["dims"])))


def _expand(b: Builder, op: Op, operands: list[Given], length: int) -> Value:
    value = _aligned(b, Stacked(_varying(operands), True), op.results[0].type.rank)
    return b.op("expand", value, shape=(length, *op.results[0].shape))


def _slice(b: Builder, op: Op, operands: list[Given], length: int) -> Value:
    return b.op("slice", _varying(operands), **{**op.attrs, "dim": op.attrs["dim"] + 1})


def _pad(b: Builder, op: Op, operands: list[Given], length: int) -> Value:
    low, high = (0, *op.attrs["low"]), (0, *op.attrs["high"])
    return b.op("pad", _varying(operands), low=low, high=high, value=op.attrs["value"])


def _concat(b: Builder, op: Op, operands: list[Given], length: int) -> Value:
    parts = []
    for item in operands:
        assert isinstance(item, Stacked)
        whole = item.value if item.varies else b.op("expand", item.value, shape=(length, *item.value.shape))
        parts.append(whole)
    return b.op("concat", *parts, dim=op.attrs["dim"] + 1)


_RULES: dict[str, Rule] = {
    "reshape": _reshape, "permute": _permute, "expand": _expand, "slice": _slice, "pad": _pad, "concat": _concat,
}  # fmt: skip
