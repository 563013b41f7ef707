"""The memory that threads see: global with its bounds, shared with what warps do to each other there, local.

Global addresses are real ones, of the tensors that a launch was handed; an access elsewhere is an error. Shared memory
knows, per byte, which warp stored it and which loaded it since the last barrier of the program: a load of what another
warp has stored, a store over what another one has loaded or stored, and a load of bytes that an asynchronous copy is
still to bring are errors. Two warps may store the same bits.

Source: PTX ISA 8.7, 5.1 State Spaces, 8 Memory Consistency Model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import numpy as np

from tests.triton.ptx.parse import Instruction
from tests.triton.ptx.registers import RUBBISH, UNSIGNED, Array

_NOBODY, _SEVERAL = -1, -2


class GlobalMemory:
    """Memory of the process, as far as a launch may touch it.

    Args:
        places: address and bytes of each piece.
    """

    def __init__(self, places: Iterable[tuple[int, int]]) -> None:
        pieces: list[list[int]] = []
        for start, size in sorted(place for place in set(places) if place[1]):
            if pieces and start < pieces[-1][1]:
                pieces[-1][1] = max(pieces[-1][1], start + size)
            else:
                pieces.append([start, start + size])
        self.starts, self.ends = (np.array([piece[at] for piece in pieces], np.uint64) for at in (0, 1))
        self._views: dict[tuple[int, int], tuple[int, Array]] = {}

    def _view(self, piece: int, width: int) -> tuple[int, Array]:
        """A piece as elements of some bytes, and the address of the first one."""
        found = self._views.get((piece, width))
        if found is None:
            first = int(self.starts[piece]) & ~15
            count = (int(self.ends[piece]) - first) // width
            raw = (ctypes.c_uint8 * (count * width)).from_address(first)
            found = self._views[piece, width] = first, np.frombuffer(raw, UNSIGNED[8 * width])
        return found

    def _found(
        self, addresses: Array, width: int, count: int, instruction: Instruction
    ) -> list[tuple[Array | slice, Array, Array]]:
        """Threads, elements and their numbers, by piece."""
        if (addresses % np.uint64(width * count)).any():
            raise instruction.unknown("an address that is not a multiple of what is accessed")
        pieces = np.searchsorted(self.starts, addresses, "right").astype(np.int64) - 1
        inside = (pieces >= 0) & (addresses + np.uint64(width * count) <= self.ends[np.maximum(pieces, 0)])
        if not inside.all():
            at = int(addresses[~inside][0])
            raise instruction.unknown(f"{int((~inside).sum())} accesses outside of all memory, the first at {at:#x}")
        found: list[tuple[Array | slice, Array, Array]] = []
        first = int(pieces[0])
        for piece in [first] if (pieces == first).all() else np.unique(pieces).tolist():
            chosen = slice(None) if (pieces == piece).all() else np.flatnonzero(pieces == piece)
            start, view = self._view(piece, width)
            places = (addresses[chosen] - np.uint64(start)) // np.uint64(width)
            found.append((chosen, view, places.astype(np.int64)[:, None] + np.arange(count)))
        return found

    def load(self, addresses: Array, width: int, count: int, instruction: Instruction) -> Array:
        """`count` elements of `width` bytes per address, as unsigned integers."""
        result = np.empty((len(addresses), count), UNSIGNED[8 * width])
        for chosen, view, places in self._found(addresses, width, count, instruction):
            result[chosen] = view[places]
        return result

    def store(self, addresses: Array, values: Array, instruction: Instruction) -> None:
        """Store a row of unsigned integers per address; of several at one address the last stays."""
        width, count = values.dtype.itemsize, values.shape[1]
        for chosen, view, places in self._found(addresses, width, count, instruction):
            view[places] = values[chosen]


class SharedMemory:
    """The shared memory of some programs.

    Args:
        programs: how many run at a time.
        size: bytes of each one.
    """

    def __init__(self, programs: int, size: int) -> None:
        self.size = -(-max(size, 16) // 16) * 16
        self.bytes = np.full(programs * self.size, RUBBISH, np.uint8)
        self._writer, self._reader = (np.full(programs * self.size, _NOBODY, np.int16) for _ in range(2))
        self._pending = np.zeros(programs * self.size, np.int16)

    def places(self, programs: Array, addresses: Array, size: int, instruction: Instruction) -> Array:
        """Where accesses of some bytes begin.

        Raises:
            PtxError: one is outside, or not aligned.
        """
        if (addresses.astype(np.uint64) + np.uint64(size) > self.size).any():
            raise instruction.unknown(f"an access outside of the {self.size} bytes of shared memory")
        if (addresses % addresses.dtype.type(size)).any():
            raise instruction.unknown("an address that is not a multiple of what is accessed")
        return programs * self.size + addresses.astype(np.int64)

    def load(self, places: Array, width: int, count: int, warps: Array, instruction: Instruction) -> Array:
        """`count` elements of `width` bytes from each place, which must be free of races."""
        touched = places[:, None] + np.arange(width * count)
        warp = warps[:, None].astype(np.int16)
        writer, reader = self._writer[touched], self._reader[touched]
        if ((writer != _NOBODY) & (writer != warp)).any():
            raise instruction.unknown("a race: another warp has stored this since the last barrier")
        if self._pending[touched].any():
            raise instruction.unknown("a race: an asynchronous copy to here has not been waited for")
        now = np.where((reader == _NOBODY) | (reader == warp), warp, np.int16(_SEVERAL))
        self._reader[touched] = now
        differs = self._reader[touched] != now
        if differs.any():
            self._reader[touched[differs]] = _SEVERAL
        elements = self.bytes.view(UNSIGNED[8 * width])
        return elements[places[:, None] // width + np.arange(count)]

    def _claim(self, touched: Array, warps: Array, instruction: Instruction) -> None:
        reader = self._reader[touched]
        if ((reader != _NOBODY) & (reader != warps)).any():
            raise instruction.unknown("a race: another warp has loaded what is stored over since the last barrier")
        if self._pending[touched].any():
            raise instruction.unknown("a race: an asynchronous copy to here has not been waited for")

    def store(self, places: Array, values: Array, warps: Array, instruction: Instruction) -> None:
        """Store a row of unsigned integers at each place, which must be free of races."""
        values = np.ascontiguousarray(values)
        raw = values.view(np.uint8).reshape(len(places), -1)
        touched, warp = places[:, None] + np.arange(raw.shape[1]), warps[:, None].astype(np.int16)
        self._claim(touched, warp, instruction)
        writer = self._writer[touched]
        others = (writer != _NOBODY) & (writer != warp)
        if (others & (self.bytes[touched] != raw)).any():
            raise instruction.unknown("a race: another warp has stored something else here since the last barrier")
        self.bytes[touched] = raw
        if (self.bytes[touched] != raw).any():
            raise instruction.unknown("a race: threads store different values to one address")
        self._writer[touched] = warp

    def begin(self, places: Array, size: int, warps: Array, instruction: Instruction) -> None:
        """An asynchronous copy to some places begins."""
        touched, warp = places[:, None] + np.arange(size), warps[:, None].astype(np.int16)
        self._claim(touched, warp, instruction)
        writer = self._writer[touched]
        if ((writer != _NOBODY) & (writer != warp)).any():
            raise instruction.unknown("a race: another warp has stored here since the last barrier")
        self._pending[touched] = 1

    def end(self, places: Array, raw: Array, warps: Array) -> None:
        """An asynchronous copy of bytes is over, for the warp that has waited for it."""
        touched = places[:, None] + np.arange(raw.shape[1])
        self.bytes[touched] = raw
        self._pending[touched] = 0
        self._writer[touched] = warps[:, None]

    def barrier(self, programs: Array) -> None:
        """Warps of some programs have met."""
        for held in (self._writer, self._reader):
            held.reshape(-1, self.size)[programs] = _NOBODY


class LocalMemory:
    """Each thread's own memory; grows as functions are called."""

    def __init__(self, threads: int) -> None:
        self.bytes = np.full((threads, 0), RUBBISH, np.uint8)

    def reach(self, size: int) -> None:
        """Make room for so many bytes."""
        size = -(-size // 16) * 16
        if size > self.bytes.shape[1]:
            more = np.full((len(self.bytes), size - self.bytes.shape[1]), RUBBISH, np.uint8)
            self.bytes = np.concatenate([self.bytes, more], 1)

    def _places(self, addresses: Array, width: int, count: int, instruction: Instruction) -> Array:
        if (addresses + addresses.dtype.type(width * count) > self.bytes.shape[1]).any():
            raise instruction.unknown(f"an access outside of the {self.bytes.shape[1]} bytes of local memory")
        if (addresses % addresses.dtype.type(width * count)).any():
            raise instruction.unknown("an address that is not a multiple of what is accessed")
        return (addresses // addresses.dtype.type(width)).astype(np.int64)[:, None] + np.arange(count)

    def load(self, threads: Array, addresses: Array, width: int, count: int, instruction: Instruction) -> Array:
        places = self._places(addresses, width, count, instruction)
        found: Array = self.bytes.view(UNSIGNED[8 * width])[threads[:, None], places]
        return found

    def store(self, threads: Array, addresses: Array, values: Array, instruction: Instruction) -> None:
        places = self._places(addresses, values.dtype.itemsize, values.shape[1], instruction)
        self.bytes.view(values.dtype)[threads[:, None], places] = values
