"""The order of steps: what frees memory first, otherwise as the program has it; what waits for a device last."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple


class Task(NamedTuple):
    """A node as the scheduler sees it.

    Args:
        after: tasks that must come before it.
        makes: storages that come into being with it.
        uses: storages that it reads or writes.
        rank: SENDS, WAITS or 0.
        device: the one that it runs on; "" for the CPU, BETWEEN for what works on several.
    """

    after: frozenset[int]
    makes: tuple[int, ...]
    uses: tuple[int, ...]
    rank: int = 0
    device: str = ""


BETWEEN = "*"
SENDS, WAITS = -1, 1
"""Ranks of tasks: it sends something from the CPU to another device, before anything else; the CPU waits for what
another device has computed, when there is nothing else left to launch."""


def in_order(after: Sequence[Collection[int]], wanted: Sequence[Any]) -> list[int]:
    """A valid order of items, as near to the wanted one as can be.

    Args:
        after: per item the numbers of those that it waits for.
        wanted: per item what tells which of two goes first.
    """
    waiting = [len(earlier) for earlier in after]
    followers: list[list[int]] = [[] for _ in after]
    for number, earlier_ones in enumerate(after):
        for earlier in earlier_ones:
            followers[earlier].append(number)
    ready = [(wanted[number], number) for number, count in enumerate(waiting) if not count]
    heapify(ready)
    found: list[int] = []
    while ready:
        number = heappop(ready)[1]
        found.append(number)
        for later in followers[number]:
            waiting[later] -= 1
            if not waiting[later]:
                heappush(ready, (wanted[later], later))
    assert len(found) == len(after), "dependencies form a cycle"
    return found


def order_tasks(tasks: Sequence[Task], sizes: Mapping[int, int], kept: frozenset[int]) -> list[int]:
    """A valid order in which little memory is alive at a time.

    List scheduling: of the tasks that are ready, one that frees at least what it allocates goes first; otherwise the
    first in the given order, of the lowest rank. Linear in the number of dependencies, but for the heap.

    Args:
        tasks: in a valid order already.
        sizes: bytes of each storage; 0 for those outside the arena.
        kept: storages that stay alive to the end.
    """
    readers: dict[int, set[int]] = {}
    for number, task in enumerate(tasks):
        for storage in (*task.uses, *task.makes):
            readers.setdefault(storage, set()).add(number)
    waiting = [len(task.after) for task in tasks]
    followers: list[list[int]] = [[] for _ in tasks]
    for number, task in enumerate(tasks):
        for earlier in task.after:
            followers[earlier].append(number)
    ready = [(tasks[number].rank, number) for number, count in enumerate(waiting) if not count]
    shrinking: list[int] = []
    done = [False] * len(tasks)
    found: list[int] = []

    def shrinks(number: int) -> bool:
        task = tasks[number]
        if task.rank:
            return False
        growth = sum(sizes.get(storage, 0) for storage in task.makes)
        freed = sum(
            sizes.get(storage, 0)
            for storage in set(task.uses)
            if storage not in kept and len(readers[storage]) == 1 and storage not in task.makes
        )
        return freed > 0 and freed >= growth

    heapify(ready)
    for _, number in ready:
        if shrinks(number):
            heappush(shrinking, number)
    while ready or shrinking:
        number = heappop(shrinking) if shrinking else heappop(ready)[1]
        if done[number]:
            continue
        done[number] = True
        found.append(number)
        for storage in {*tasks[number].uses, *tasks[number].makes}:
            left = readers[storage]
            left.discard(number)
            if len(left) == 1:
                (last,) = left
                if not waiting[last] and not done[last] and shrinks(last):
                    heappush(shrinking, last)
        for later in followers[number]:
            waiting[later] -= 1
            if not waiting[later]:
                heappush(ready, (tasks[later].rank, later))
                if shrinks(later):
                    heappush(shrinking, later)
    return found
