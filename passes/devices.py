"""Steps of several devices in turns: grouped, so that there are few runs of steps on one device.

    before    a0 b0 a1 b1 copy(a1) a2 copy(b1) b2
    after     a0 a1 b0 b1 copy(a1) copy(b1) a2 b2

What runs on a device is recorded run by run, see `graphc.runtime.recordable`, and copies from one device to another,
which come in between, have both wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush

from graphc.passes.memory import Block, most_alive
from graphc.passes.schedule import BETWEEN, Task

SHORTEST_RUN = 8
"""Steps of a run, or one in `MOST_RUNS` of all if that is more: so long a device goes on where it can, though a copy
comes next. Not for longer: meanwhile another one may have nothing to do."""
MOST_RUNS = 64
REACHES = (1 << 30, 64, 16, 0)
"""Copies are made together that lie so many steps apart; fewer where their results would take too much memory."""
GROWTH, FREE_GROWTH = 8, 4 << 20
"""Grouping may take one in so many of the bytes that a device needs without it, and so many bytes in any case."""


def group_devices(
    tasks: Sequence[Task],
    order: list[int],
    early: int,
    sizes: Mapping[int, int],
    places: Sequence[str],
    kept: frozenset[int],
) -> list[int]:
    """A valid order in which tasks of one device follow each other, where that takes no device much more memory.

    Args:
        order: a valid one of the tasks, which is kept as far as can be.
        early: so many of the first ones stay in front of the others.
        sizes: bytes of each storage; 0 for those outside the arena.
        places: the device of each storage.
        kept: storages that stay alive to the end.
    """
    if len({task.device for task in tasks} - {"", BETWEEN}) < 2:
        return order
    peaks = most_alive_by_device(tasks, order, sizes, places, kept)
    for reach in REACHES:
        grouped = _Runs(tasks, order, early, reach).order()
        found = most_alive_by_device(tasks, grouped, sizes, places, kept)
        if all(found[name] <= peak + max(peak // GROWTH, FREE_GROWTH) for name, peak in peaks.items()):
            return grouped
    return order


class _Runs:
    """List scheduling: of the tasks that are ready, early ones and the lowest rank before others, the first one of the
    device that is on; the first one of all where it has none."""

    def __init__(self, tasks: Sequence[Task], order: Sequence[int], early: int, reach: int) -> None:
        self.tasks, self.given, self.early, self.reach = tasks, order, early, reach
        self.place = {number: at for at, number in enumerate(order)}
        self.shortest = max(SHORTEST_RUN, len(tasks) // MOST_RUNS)
        self.ready: dict[str, list[tuple[bool, int, int]]] = {}
        self.current, self.length = "", 0

    def order(self) -> list[int]:
        waiting = [len(task.after) for task in self.tasks]
        followers: list[list[int]] = [[] for _ in self.tasks]
        for number, task in enumerate(self.tasks):
            for earlier in task.after:
                followers[earlier].append(number)
            if not task.after:
                self._offer(number)
        found: list[int] = []
        while any(self.ready.values()):
            device = self._next()
            number = self.given[heappop(self.ready[device])[2]]
            found.append(number)
            if device:
                self.length = self.length + 1 if device == self.current else 1
                self.current = device
            for later in followers[number]:
                waiting[later] -= 1
                if not waiting[later]:
                    self._offer(later)
        return found

    def _offer(self, number: int) -> None:
        task, at = self.tasks[number], self.place[number]
        heappush(self.ready.setdefault(task.device, []), (at >= self.early, task.rank, at))

    def _next(self) -> str:
        """Where the next task is taken from; work of the CPU goes where it was."""
        firsts = {device: heap[0] for device, heap in self.ready.items() if heap}
        device = min(firsts, key=firsts.__getitem__)
        if not device or self.current not in firsts or firsts[self.current][:2] != firsts[device][:2]:
            return device
        if self.current == BETWEEN:
            return BETWEEN if firsts[BETWEEN][2] <= firsts[device][2] + self.reach else device
        return device if device == BETWEEN and self.length >= self.shortest else self.current


def most_alive_by_device(
    tasks: Sequence[Task],
    order: Sequence[int],
    sizes: Mapping[int, int],
    places: Sequence[str],
    kept: frozenset[int],
) -> dict[str, int]:
    """Bytes that are alive at once on each device, at most; arguments as for `group_devices`."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for at, number in enumerate(order):
        for storage in (*tasks[number].uses, *tasks[number].makes):
            first.setdefault(storage, at)
            last[storage] = len(order) if storage in kept else at
    alive: dict[str, list[Block]] = {}
    for storage, at in first.items():
        alive.setdefault(places[storage], []).append(Block(at, last[storage], sizes.get(storage, 0)))
    return {name: most_alive(blocks)[1] for name, blocks in alive.items()}
