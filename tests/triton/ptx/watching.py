"""Accesses to global memory that a GPU may make in another order: between programs, and between the warps of one.

Programs of a launch run side by side: what one stores, no other may load or store, unless both do so atomically; see
`tests.triton.watch`. Warps of a program meet at barriers alone: what one has stored, no other may load before the next.
A load in front of the store is none of this: all warps load what one of them alone goes on to use.
"""

from __future__ import annotations

import numpy as np

from tests.triton.ptx.registers import Array
from tests.triton.watch import Launch


class Watch:
    """The accesses of one launch.

    Args:
        name: of the function.
    """

    def __init__(self, name: str) -> None:
        self._launch = Launch(name, [])
        self._within: dict[bool, list[tuple[Array, Array]]] = {False: [], True: []}
        self._noted = 0
        self._rows: list[tuple[int, int, Array, Array, int]] = []

    def note(self, kind: str, addresses: Array, programs: Array, warps: Array, epochs: Array) -> None:
        """Note accesses.

        Args:
            kind: `loads`, `stores` or `atomics`.
            addresses: of elements, a row per thread.
            programs, warps: of each thread.
            epochs: how many barriers each thread's program has passed.
        """
        self._noted += 1
        self._note(kind, addresses, programs, warps, epochs, self._noted)

    def note_rows(self, addresses: Array, width: int, count: int, program: int, warp: int, epoch: int) -> None:
        """Note loads of rows of blocks by a thread, of which there are many: what nobody stores is of no interest."""
        self._noted += 1
        self._rows.append((width, count, addresses, np.array([program, warp, epoch]), self._noted))

    def _note(
        self, kind: str, addresses: Array, programs: Array, warps: Array, epochs: Array, number: int
    ) -> None:  # fmt: skip
        count = addresses.shape[1]
        flat, owners = addresses.reshape(-1), np.repeat(programs, count)
        accesses = getattr(self._launch, kind)
        accesses.addresses.append(flat.astype(np.uint64))
        accesses.programs.append(owners.astype(np.uint64))
        if kind != "atomics":
            when = np.stack([flat.astype(np.int64), owners, np.repeat(epochs, count)])
            made = np.stack([np.repeat(warps, count), np.full(len(flat), number)])
            self._within[kind == "stores"].append((when, made))

    def judge(self) -> list[str]:
        """What is wrong."""
        self._note_rows_that_met()
        found = self._launch.judge()
        if self._within[True] and self._within[False] and self._warps_meet():
            found.append(f"{self._launch.name}: a warp loads what another one stores before the next barrier")
        return found

    def _note_rows_that_met(self) -> None:
        stored = np.sort(np.concatenate([kind.joined()[0] for kind in (self._launch.stores, self._launch.atomics)]))
        for width, count, rows, who, number in self._rows:
            ends = rows + np.uint64(width * count)
            met = rows[np.searchsorted(stored, ends) > np.searchsorted(stored, rows)]
            if len(met):
                elements = met[:, None] + (width * np.arange(count)).astype(np.uint64)
                self._note("loads", elements, *(np.full(len(met), one) for one in who), number)
        self._rows = []

    def _warps_meet(self) -> bool:
        """Whether some address is loaded by one warp and stored by another one, of one program between two barriers."""
        (stored, writers), (loaded, readers) = (
            tuple(np.concatenate(parts, -1) for parts in zip(*self._within[kind])) for kind in (True, False)
        )
        both = np.isin(stored[0], loaded[0]), np.isin(loaded[0], stored[0])
        if not both[0].any():
            return False
        stored, writers, loaded, readers = (
            stored[:, both[0]],
            writers[:, both[0]],
            loaded[:, both[1]],
            readers[:, both[1]],
        )
        _, numbers = np.unique(np.concatenate([stored, loaded], 1), axis=1, return_inverse=True)
        mine, theirs = numbers[: writers.shape[1]], numbers[writers.shape[1] :]
        most = np.iinfo(np.int64).max
        lowest, highest, first = (np.full(numbers.max() + 1, start) for start in (most, -1, most))
        np.minimum.at(lowest, mine, writers[0])
        np.maximum.at(highest, mine, writers[0])
        np.minimum.at(first, mine, writers[1])
        by_another = (lowest[theirs] != readers[0]) | (highest[theirs] != readers[0])
        return bool((by_another & (first[theirs] < readers[1])).any())
