"""The memory that threads see: global with its bounds, and local; `shared` has a module of its own.

Global addresses are real ones, of the tensors that a launch was handed; an access elsewhere is an error.

Source: PTX ISA 8.7, 5.1 State Spaces.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import numpy as np

from tests.triton.ptx.parse import Instruction
from tests.triton.ptx.registers import RUBBISH, UNSIGNED, Array


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

    def block(
        self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], width: int, instruction: Instruction
    ) -> Array:
        """A part of a matrix as a view: elements of `width` bytes, the last dim side by side.

        Args:
            strides: bytes from one index of each other dim to the next.
        """
        size = sum((count - 1) * stride for count, stride in zip(shape, strides)) + shape[-1] * width
        piece = int(np.searchsorted(self.starts, np.uint64(address), "right")) - 1
        if address % width or piece < 0 or address + size > int(self.ends[piece]):
            raise instruction.unknown(f"a block of {size} bytes that is not in memory, at {address:#x}")
        start, view = self._view(piece, width)
        return np.lib.stride_tricks.as_strided(view[(address - start) // width :], shape, (*strides, width))


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
