"""Accesses to global memory that a GPU may make in another order: between programs, and between the warps of one.

Programs of a launch run side by side: what one stores, no other may load or store, unless both do so atomically; see
`tests.triton.watch`. Warps of a program meet at barriers alone: what one has stored, no other may load before the next.
A load in front of the store is none of this: all warps load what one of them alone goes on to use.

Most accesses are their warp's alone, as the span between the first and the last address of each tells; only those whose
spans meet are compared element by element.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from tests.triton.ptx.registers import Array
from tests.triton.watch import Launch


class Watch:
    """The accesses of one launch.

    Args:
        name: of the function.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._made: dict[str, list[_Accesses]] = {"loads": [], "stores": [], "atomics": []}
        self._noted = 0

    def note(
        self, kind: str, starts: Array, width: int, count: int, programs: Array, warps: Array, epochs: Array
    ) -> None:  # fmt: skip
        """Note accesses.

        Args:
            kind: `loads`, `stores` or `atomics`.
            starts: address of the first element of each thread.
            width: bytes of an element.
            count: elements of each thread.
            programs, warps: of each thread; those of a warp stand side by side.
            epochs: how many barriers each thread's program has passed.
        """
        self._noted += 1
        if len(starts):
            who = np.stack([programs, epochs, warps]).astype(np.int32)
            self._made[kind].append(_Accesses(starts.astype(np.int64), width, count, who, self._noted))

    def judge(self) -> list[str]:
        """What is wrong."""
        written = _Spans.of([*self._made["stores"], *self._made["atomics"]])
        if not written.first.size:
            return []
        read = _Spans.of(self._made["loads"])
        alone = _alone(written, read)
        count = sum(len(one.spans.first) for one in self._made["stores"])
        chosen = {"stores": alone[0][:count], "atomics": alone[0][count:], "loads": alone[1]}
        launch, elements = Launch(self._name, []), {}
        for kind, made in self._made.items():
            elements[kind] = _elements(made, ~chosen[kind])
            accesses = getattr(launch, kind)
            accesses.addresses.append(elements[kind][0].astype(np.uint64))
            accesses.programs.append(elements[kind][1].astype(np.uint64))
        found = launch.judge()
        if _warps_meet(elements["stores"], elements["loads"]):
            found.append(f"{self._name}: a warp loads what another one stores before the next barrier")
        return found


class _Spans(NamedTuple):
    """Addresses between which warps access memory, each with the program and the warp as one number."""

    first: Array
    last: Array
    owner: Array

    @staticmethod
    def of(accesses: Iterable[_Accesses]) -> _Spans:
        empty = np.zeros(0, np.int64)
        return _Spans(*(np.concatenate([empty, *some]) for some in zip((empty,) * 3, *(one.spans for one in accesses))))


@dataclass(frozen=True)
class _Accesses:
    """What an instruction accesses.

    Attributes:
        starts: address of the first element of each thread.
        who: program, barriers passed and warp of each thread.
        number: of the instruction, in the order of their execution.
    """

    starts: Array
    width: int
    count: int
    who: Array
    number: int

    @cached_property
    def begins(self) -> Array:
        """Where the threads of another warp begin."""
        changes = (self.who[0, 1:] != self.who[0, :-1]) | (self.who[2, 1:] != self.who[2, :-1])
        return np.concatenate([[0], np.flatnonzero(changes) + 1])

    @cached_property
    def spans(self) -> _Spans:
        first, last = (by.reduceat(self.starts, self.begins) for by in (np.minimum, np.maximum))
        programs, _, warps = self.who[:, self.begins].astype(np.int64)
        return _Spans(first, last + self.width * (self.count - 1), programs << 16 | warps)

    def elements(self, spans: Array) -> Array:
        """Of some spans, a column each: address, program, barriers passed, warp, number."""
        threads = np.repeat(spans, np.diff(self.begins, append=len(self.starts)))
        addresses = self.starts[threads, None] + self.width * np.arange(self.count)
        who = np.repeat(self.who[:, threads], self.count, 1)
        return np.concatenate([addresses.reshape(1, -1), who, np.full((1, addresses.size), self.number)])


def _elements(accesses: list[_Accesses], chosen: Array) -> Array:
    """Those of some spans, all spans numbered through."""
    at, found = 0, [np.zeros((5, 0), np.int64)]
    for one in accesses:
        mine = chosen[at : at + len(one.spans.first)]
        at += len(mine)
        if mine.any():
            found.append(one.elements(mine))
    return np.concatenate(found, 1)


def _alone(written: _Spans, read: _Spans) -> tuple[Array, Array]:
    """Which spans, written and read ones, no other warp's meet of which one is written.

    Written spans that overlap are an island. Neighbouring islands of one warp alone are land that this warp may read.
    """
    order = np.argsort(written.first, kind="stable")
    first, last, owner = (one[order] for one in written)
    reach = np.maximum.accumulate(last)
    begins = np.flatnonzero(np.concatenate([[True], first[1:] > reach[:-1]]))
    lowest, highest = (by.reduceat(owner, begins) for by in (np.minimum, np.maximum))
    land = np.cumsum(
        np.concatenate([[0], (lowest[1:] != lowest[:-1]) | (lowest != highest)[1:] | (lowest != highest)[:-1]])
    )
    low = np.searchsorted(reach[np.append(begins[1:], len(first)) - 1], read.first)
    high = np.searchsorted(first[begins], read.last, "right")  # islands low to high are those that are read
    none, end = high <= low, np.maximum(high - 1, 0)
    start = np.minimum(low, len(begins) - 1)
    alone = none | (land[start] == land[end]) & (lowest[end] == read.owner) & (highest[end] == read.owner)
    visits = np.zeros(len(begins) + 1, np.int64)
    np.add.at(visits, low[~alone], 1)
    np.add.at(visits, high[~alone], -1)
    quiet = (lowest == highest) & (np.cumsum(visits)[:-1] == 0)
    kept = np.empty(len(order), bool)
    kept[order] = np.repeat(quiet, np.diff(begins, append=len(order)))
    return kept, alone


def _warps_meet(stored: Array, loaded: Array) -> bool:
    """Whether some address is loaded by one warp and stored by another one, of one program between two barriers.

    Args:
        stored, loaded: a column per access: address, program, barriers passed, warp, number of the access.
    """
    places = np.unique(stored[0])
    loaded = loaded[:, np.isin(loaded[0], places)]
    if not loaded.size:
        return False
    programs, epochs = (1 + max(stored[row].max(), loaded[row].max()) for row in (1, 2))

    def keys(accesses: Array) -> Array:
        return (np.searchsorted(places, accesses[0]) * programs + accesses[1]) * epochs + accesses[2]

    known, mine = np.unique(keys(stored), return_inverse=True)
    most = np.iinfo(np.int64).max
    lowest, highest, first = (np.full(len(known), start) for start in (most, -1, most))
    np.minimum.at(lowest, mine, stored[3])
    np.maximum.at(highest, mine, stored[3])
    np.minimum.at(first, mine, stored[4])
    wanted = keys(loaded)
    theirs = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    by_another = (lowest[theirs] != loaded[3]) | (highest[theirs] != loaded[3])
    return bool((by_another & (known[theirs] == wanted) & (first[theirs] < loaded[4])).any())
