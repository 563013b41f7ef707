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

    def note(self, kind: str, addresses: Array, programs: Array, warps: Array, epochs: Array) -> None:
        """Note accesses.

        Args:
            kind: `loads`, `stores` or `atomics`.
            addresses: of elements, a row per thread.
            programs, warps: of each thread.
            epochs: how many barriers each thread's program has passed.
        """
        count = addresses.shape[1]
        flat, owners = addresses.reshape(-1), np.repeat(programs, count)
        accesses = getattr(self._launch, kind)
        accesses.addresses.append(flat.astype(np.uint64))
        accesses.programs.append(owners.astype(np.uint64))
        if kind != "atomics":
            when = np.stack([flat.astype(np.int64), owners, np.repeat(epochs, count)])
            self._noted += 1
            made = np.stack([np.repeat(warps, count), np.full(len(flat), self._noted)])
            self._within[kind == "stores"].append((when, made))

    def judge(self) -> list[str]:
        """What is wrong."""
        found = self._launch.judge()
        if self._within[True] and self._within[False] and self._warps_meet():
            found.append(f"{self._launch.name}: a warp loads what another one stores before the next barrier")
        return found

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
