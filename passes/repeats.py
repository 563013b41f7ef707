"""Repeats in the flat list of ops: the same few ops again and again, as an unrolled Python loop leaves them."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from graphc.ir.graph import Op, Value, regions

LOOSE = {"slice": ("start", "stop"), "update_slice": ("starts",), "pad": ("low", "high")}
"""Attributes that may move on from turn to turn of a loop."""

_GRAM = 3
_LOOK_BACK = 4
_MOST_PERIODS = 24


class Run(NamedTuple):
    """Ops `start` to `start + length` of which each, but for the last period, is like the one a period later.

    Args:
        start: number of the first op.
        period: ops in one turn.
        length: ops in all.
    """

    start: int
    period: int
    length: int


def tokens_of(ops: Sequence[Op]) -> list[int]:
    """A number per op; equal ones have equal names, types, literals and attributes, but for the loose ones."""
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(_key(op), len(numbers)) for op in ops]


def _key(op: Op) -> Any:
    operands = tuple([_type(item) if isinstance(item, Value) else repr(item) for item in op.operands])
    results = tuple([(_type(value), value.strides) for value in op.results])
    attrs = op.attrs
    if not attrs:
        return op.name, operands, results
    loose = LOOSE.get(op.name)
    if loose is not None:
        attrs = {key: value for key, value in attrs.items() if key not in loose}
    elif regions(op):
        return op.name, id(op)  # a loop is not rolled again
    return op.name, operands, results, repr(attrs)


def _type(value: Value) -> Any:
    type = value.type
    return type.dtype.name, type.shape, type.device


def find_runs(tokens: Sequence[int], least: int) -> list[Run]:
    """Runs of at least `least` turns, those that cover most ops first, among equals those of the shortest period.

    Near-linear: periods are guessed from how far apart equal groups of three tokens lie, and each of the few that are
    guessed often is checked in one sweep.
    """
    found: list[Run] = []
    for period in _periods(tokens, least):
        same = bytes([a == b for a, b in zip(tokens, tokens[period:])])
        matches = re.finditer(b"\x01{%d,}" % ((least - 1) * period), same)
        found += [Run(match.start(), period, match.end() - match.start() + period) for match in matches]
    return sorted(found, key=lambda run: (-(run.length // run.period) * run.period, run.period, run.start))


def _periods(tokens: Sequence[int], least: int) -> list[int]:
    seen: dict[tuple[int, ...], deque[int]] = {}
    apart: Counter[int] = Counter()
    for at, gram in enumerate(zip(*(tokens[shift:] for shift in range(_GRAM)))):
        before = seen.get(gram)
        if before is None:
            before = seen[gram] = deque(maxlen=_LOOK_BACK)
        for earlier in before:
            apart[at - earlier] += 1
        before.append(at)
    likely = [period for period, count in apart.most_common(4 * _MOST_PERIODS) if count >= least - 1]
    return likely[:_MOST_PERIODS]
