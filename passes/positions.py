"""Values that are told from positions alone: the masks that people make of `tril`, `triu`, `arange` and constants.

    %0: i64[8] = iota() {size=8, ...}          Line of dim -1: 0 + 1 * j
    %1: i64[8, 1] = reshape(%0)                Line of dim -2: 0 + 1 * i
    %2: bool[8, 8] = ge(%0, add(%1, 1))        Step: True where j - i >= 1, else False
    %3: f32[8, 8] = where(%2, -inf, 0.0)       Step: -inf where j - i >= 1, else 0.0

Nothing is computed for single elements, so it does not matter how many there are. What is neither a line, nor a step
along one diagonal, nor the same number everywhere is not told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from graphc.ir.graph import Op, Operand, Value
from graphc.ir.sizes import bound
from graphc.ops.registry import Kind, get
from graphc.passes.layout import int_shape

Number: TypeAlias = "bool | int | float"
_MOST = 256
"""Values that are looked at for one graph's masks: few are needed, and what has inputs is soon given up."""
_COMPARISONS = frozenset(("lt", "le", "gt", "ge"))


@dataclass(frozen=True)
class Line:
    """The integers `start + sum(step * index)`.

    Args:
        start: at index 0.
        steps: per dim, counted from the last one as -1, of dims along which it changes.
    """

    start: int
    steps: Mapping[int, int]


@dataclass(frozen=True)
class Step:
    """`above` where j - i >= `at`, else `below`, for i along dim -2 and j along dim -1.

    Args:
        at: None for the same number, `below`, everywhere.
    """

    below: Number
    above: Number
    at: int | None = None

    @property
    def is_constant(self) -> bool:
        return self.at is None


Told: TypeAlias = "Line | Step"


def tell(operand: Operand, known: dict[Value, Told | None]) -> Told | None:
    """What an operand is at each position, None where that does not follow from positions alone.

    Args:
        known: what has been told of values so far; it grows.
    """
    if not isinstance(operand, Value):
        return Step(operand, operand) if isinstance(operand, (bool, int, float)) else None
    if operand not in known:
        known[operand] = None  # beyond the depth of Python's stack, too
        known[operand] = _tell(operand, known)
    return known[operand]


def _tell(value: Value, known: dict[Value, Told | None]) -> Told | None:
    op = value.op
    if op is None or len(op.results) != 1 or len(known) > _MOST:
        return None
    if op.name == "full":
        number = op.attrs["value"]
        return Step(number, number) if isinstance(number, (bool, int, float)) else None
    if op.name == "iota":
        start, step = op.attrs["start"], op.attrs["step"]
        return Line(start, {-1: step}) if isinstance(start, int) and isinstance(step, int) else None
    if op.name in _VIEWS:
        (operand,) = op.inputs
        source = tell(operand, known)
        if source is None or (isinstance(source, Step) and source.is_constant):
            return source
        return _VIEWS[op.name](op, source, int_shape(operand), int_shape(value))
    if get(op.name).kind is not Kind.POINTWISE:
        return None
    told: list[Told] = []
    for item in op.operands:
        found = tell(item, known)
        if found is None:
            return None
        told.append(found)
    return _pointwise(op, told)


# views


def _reshape(op: Op, told: Told, before: tuple[int, ...], after: tuple[int, ...]) -> Told | None:
    """Dims of size 1 come and go; others keep their order."""
    olds = [dim - len(before) for dim, size in enumerate(before) if size != 1]
    news = [dim - len(after) for dim, size in enumerate(after) if size != 1]
    if [before[dim] for dim in olds] != [after[dim] for dim in news]:
        return None
    return _moved(told, dict(zip(olds, news, strict=True)), before)


def _permute(op: Op, told: Told, before: tuple[int, ...], after: tuple[int, ...]) -> Told | None:
    rank = len(before)
    return _moved(told, {old - rank: new - rank for new, old in enumerate(op.attrs["dims"])}, before)


def _expand(op: Op, told: Told, before: tuple[int, ...], after: tuple[int, ...]) -> Told | None:
    return told  # dims are counted from the last one, and nothing changes along dims of size 1


def _slice(op: Op, told: Told, before: tuple[int, ...], after: tuple[int, ...]) -> Told | None:
    dim, start, step = op.attrs["dim"] - len(before), op.attrs["start"], op.attrs["step"]
    if isinstance(told, Line):
        if dim not in told.steps:
            return told
        own = told.steps[dim]
        return Line(told.start + start * own, {**told.steps, dim: own * step})
    if dim < -2:
        return told
    assert told.at is not None
    return replace(told, at=told.at + (start if dim == -2 else -start)) if step == 1 else None


def _moved(told: Told, places: Mapping[int, int], before: tuple[int, ...]) -> Told | None:
    """With its dims elsewhere; those of size 1 have no place, and need none."""
    if isinstance(told, Line):
        steps = {dim: step for dim, step in told.steps.items() if len(before) >= -dim and before[dim] != 1}
        if any(dim not in places for dim in steps):
            return None
        return Line(told.start, {places[dim]: step for dim, step in steps.items()})
    # along dims of size 1 a step would be one of another kind
    return told if places.get(-1) == -1 and places.get(-2) == -2 else None


_VIEWS = {"reshape": _reshape, "permute": _permute, "expand": _expand, "slice": _slice}


# pointwise ops


def _pointwise(op: Op, told: Sequence[Told]) -> Told | None:
    steps = [item for item in told if isinstance(item, Step)]
    if len(steps) == len(told):
        return _of_steps(op, steps)
    if all(isinstance(item, Line) or (item.is_constant and isinstance(item.below, int)) for item in told):
        lines = [item if isinstance(item, Line) else Line(int(item.below), {}) for item in told]
        return _of_lines(op, lines)
    return None


def _of_steps(op: Op, steps: Sequence[Step]) -> Step | None:
    """Computed once on either side of the diagonal."""
    places = {item.at for item in steps} - {None}
    if len(places) > 1:
        return None
    below = _computed(op, [item.below for item in steps])
    if not places:
        return Step(below, below)
    above = _computed(op, [item.below if item.is_constant else item.above for item in steps])
    return Step(below, above, places.pop())


def _computed(op: Op, numbers: Sequence[Number]) -> Number:
    """One element of an op, by its reference."""
    given = [
        torch.tensor(bound(number), dtype=getattr(torch, item.dtype.torch_name))
        if isinstance(item, Value)
        else bound(item)
        for number, item in zip(numbers, op.operands, strict=True)
    ]
    found: Number = get(op.name).reference(*given, **op.attrs).item()
    return found


def _of_lines(op: Op, lines: Sequence[Line]) -> Told | None:
    if op.name == "cast":
        return lines[0] if op.results[0].dtype.kind == "int" and op.results[0].dtype.itemsize >= 4 else None
    if op.name in ("add", "sub"):
        return _sum(lines[0], lines[1], 1 if op.name == "add" else -1)
    if op.name == "neg":
        return _sum(Line(0, {}), lines[0], -1)
    if op.name not in _COMPARISONS:
        return None
    # left < right where 0 < right - left, and so on
    left, right = lines
    more = _sum(right, left, -1) if op.name in ("lt", "le") else _sum(left, right, -1)
    if {dim for dim, step in more.steps.items() if step} != {-1, -2} or more.steps[-1] != -more.steps[-2]:
        return None
    least = -more.start + (op.name in ("lt", "gt"))  # step * (j - i) >= least
    step = more.steps[-1]
    if step > 0:
        return Step(False, True, math.ceil(least / step))
    return Step(True, False, math.floor(least / step) + 1)  # j - i <= least / step


def _sum(left: Line, right: Line, sign: int) -> Line:
    steps = dict(left.steps)
    for dim, step in right.steps.items():
        steps[dim] = steps.get(dim, 0) + sign * step
    return Line(left.start + sign * right.start, steps)
