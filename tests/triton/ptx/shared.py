"""Shared memory, with what warps and the chip's own copies and products do to each other there.

It knows, per byte, which warp stored it and which loaded it since the last barrier of the program: a load of what
another warp has stored, a store over what another one has loaded or stored, and a load of bytes that an asynchronous
copy is still to bring are errors. Two warps may store the same bits.

Products and copies of blocks see memory another way than threads do: what a thread has stored is there for them behind
a `fence.proxy.async`, of the thread itself or of one that has met it at a barrier. That of `cp.async` is, too, by the
ISA; as Triton 3.6 leaves fences for it out, and chips bear it, that is told and no error. What they read may not be
stored over until they have been waited for.

Source: PTX ISA 8.7, 8 Memory Consistency Model, 8.6 Causality Order (proxies), 9.7.13.4 membar/fence.
"""

from __future__ import annotations

import numpy as np

from tests.triton.ptx.parse import Instruction
from tests.triton.ptx.registers import RUBBISH, UNSIGNED, Array

_NOBODY, _SEVERAL, _CHIP = -1, -2, -3
_COPIED, _RESERVED = 1, 2
_BY_THREAD, _BY_COPY = 1, 2
_WHY = {_COPIED: "an asynchronous copy to here has not been waited for", _RESERVED: "an mbarrier lies here"}
CHUNK = 16
"""Bytes that products and copies of blocks take at a time."""


class SharedMemory:
    """The shared memory of some programs.

    Args:
        programs: how many run at a time.
        size: bytes of each one.
        has_proxies: the chip reads and writes it by itself, too.
    """

    def __init__(self, programs: int, size: int, has_proxies: bool = False) -> None:
        self.size = -(-max(size, CHUNK) // CHUNK) * CHUNK
        self.bytes = np.full(programs * self.size, RUBBISH, np.uint8)
        self._programs, self._has_proxies = programs, has_proxies
        self._writer, self._reader = (np.full(programs * self.size, _NOBODY, np.int16) for _ in range(2))
        self._pending = np.zeros(programs * self.size, np.uint8)
        self._unfenced = np.zeros(programs * self.size, np.uint8)
        self._stored: list[Array] = []
        self._seen = np.zeros(programs * self.size, np.uint32)  # warps that have waited for what the chip wrote
        self._reads = np.zeros(programs * self.size // CHUNK, np.int32)

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

    # ------------------------------------------------------------------------------------------------- by threads

    def load(self, places: Array, width: int, count: int, warps: Array, instruction: Instruction) -> Array:
        """`count` elements of `width` bytes from each place, which must be free of races."""
        touched = places[:, None] + np.arange(width * count)
        warp = warps[:, None].astype(np.int16)
        self._awaited(touched, instruction)
        writer, reader = self._writer[touched], self._reader[touched]
        if self._by_others(touched, writer, warp).any():
            raise instruction.unknown("a race: another warp has stored this since the last barrier")
        now = np.where((reader == _NOBODY) | (reader == warp), warp, np.int16(_SEVERAL))
        self._reader[touched] = now
        differs = self._reader[touched] != now
        if differs.any():
            self._reader[touched[differs]] = _SEVERAL
        elements = self.bytes.view(UNSIGNED[8 * width])
        return elements[places[:, None] // width + np.arange(count)]

    def _awaited(self, touched: Array | slice, instruction: Instruction) -> None:
        pending = self._pending[touched]
        if pending.any():
            raise instruction.unknown(f"a race: {_WHY[int(pending.max())]}")

    def _by_others(self, touched: Array, writer: Array, warp: Array) -> Array:
        """Which bytes have been written since the last barrier, but by this warp, and not seen to be by it."""
        found = (writer != _NOBODY) & (writer != warp)
        if self._has_proxies and found.any():
            seen = self._seen[touched] >> warp.astype(np.uint32) & np.uint32(1)
            found &= (writer != _CHIP) | (seen == 0)
        return found

    def _claim(self, touched: Array, warps: Array, instruction: Instruction) -> None:
        self._awaited(touched, instruction)
        reader = self._reader[touched]
        if ((reader != _NOBODY) & (reader != warps)).any():
            raise instruction.unknown("a race: another warp has loaded what is stored over since the last barrier")
        if self._has_proxies and self._reads[touched // CHUNK].any():
            raise instruction.unknown("a race: what still reads this asynchronously has not been waited for")

    def store(self, places: Array, values: Array, warps: Array, instruction: Instruction) -> None:
        """Store a row of unsigned integers at each place, which must be free of races."""
        values = np.ascontiguousarray(values)
        raw = values.view(np.uint8).reshape(len(places), -1)
        touched, warp = places[:, None] + np.arange(raw.shape[1]), warps[:, None].astype(np.int16)
        self._claim(touched, warp, instruction)
        others = self._by_others(touched, self._writer[touched], warp)
        if (others & (self.bytes[touched] != raw)).any():
            raise instruction.unknown("a race: another warp has stored something else here since the last barrier")
        self.bytes[touched] = raw
        if (self.bytes[touched] != raw).any():
            raise instruction.unknown("a race: threads store different values to one address")
        self._written(touched, warp)

    def _written(self, touched: Array, warps: Array, how: int = _BY_THREAD) -> None:
        self._writer[touched] = warps
        if self._has_proxies:
            self._unfenced[touched] = how
            self._stored.append(touched.reshape(-1))

    def begin(self, places: Array, size: int, warps: Array, instruction: Instruction) -> None:
        """An asynchronous copy to some places begins."""
        touched, warp = places[:, None] + np.arange(size), warps[:, None].astype(np.int16)
        self._claim(touched, warp, instruction)
        if self._by_others(touched, self._writer[touched], warp).any():
            raise instruction.unknown("a race: another warp has stored here since the last barrier")
        self._pending[touched] = _COPIED

    def end(self, places: Array, raw: Array, warps: Array) -> None:
        """An asynchronous copy of bytes is over, for the warp that has waited for it."""
        touched = places[:, None] + np.arange(raw.shape[1])
        self.bytes[touched] = raw
        self._pending[touched] = 0
        self._written(touched, np.broadcast_to(warps[:, None], touched.shape), _BY_COPY)

    def barrier(self, programs: Array) -> None:
        """Warps of some programs have met."""
        for held in (self._writer, self._reader):
            held.reshape(-1, self.size)[programs] = _NOBODY

    # ------------------------------------------------------------------------------------------------ by the chip

    def fence(self, programs: Array, warps: Array) -> None:
        """Warps have what they have stored, or know of by a barrier, seen by the chip: `fence.proxy.async`."""
        if not self._stored:
            return
        fenced = np.zeros((self._programs, 64 - _CHIP), bool)  # by warp; the last three are for the names of no warp
        fenced[programs, warps] = True
        fenced[programs, _CHIP:] = True
        touched = np.concatenate(self._stored)
        over = fenced[touched // self.size, self._writer[touched]]
        self._unfenced[touched[over]] = 0
        self._stored = [] if over.all() else [touched[~over]]

    def reserve(self, place: int, size: int, warp: int, instruction: Instruction) -> None:
        """Nothing but operations on an mbarrier may touch some bytes."""
        touched = np.arange(place, place + size)
        self._claim(touched, np.int16(warp), instruction)
        if self._by_others(touched, self._writer[touched], np.int16(warp)).any():
            raise instruction.unknown("a race: another warp has stored here since the last barrier")
        self._pending[touched] = _RESERVED

    def give_back(self, place: int, size: int, warp: int) -> None:
        """The mbarrier there is no more; what it leaves behind is rubbish."""
        touched = np.arange(place, place + size)
        self.bytes[touched], self._pending[touched] = RUBBISH, 0
        self._written(touched, np.int16(warp))

    def begin_block(self, place: int, size: int, warp: int, instruction: Instruction) -> None:
        """The chip begins to copy a block to here; until it has been waited for, there is rubbish."""
        touched = slice(place, place + size)
        self._claim(np.arange(place, place + size), np.int16(warp), instruction)
        writer = self._writer[touched]
        if ((writer != _NOBODY) & (writer != warp) & (writer != _CHIP)).any():
            raise instruction.unknown("a race: another warp has stored here since the last barrier")
        if self._unfenced[touched].any():
            raise instruction.unknown("a race: no fence.proxy.async behind what a thread has stored here")
        self.bytes[touched], self._pending[touched] = RUBBISH, _COPIED

    def end_block(self, place: int, raw: Array, warps: int) -> None:
        """The copy of a block is over for the warps of a bit set."""
        touched = slice(place, place + len(raw))
        self.bytes[touched], self._pending[touched] = raw, 0
        self._writer[touched], self._seen[touched] = _CHIP, warps

    def seen(self, place: int, size: int, warps: int) -> None:
        """More warps have waited for a block."""
        self._seen[place : place + size] |= np.uint32(warps)

    def begin_read(self, chunks: Array, warps: Array, instruction: Instruction) -> bool:
        """The chip reads chunks from now on; gives whether no fence lies behind a copy to them.

        Args:
            chunks: numbers of them, a row for each of its readers.
            warps: bit sets of the warps that each reader is.
        """
        if (self._pending.reshape(-1, CHUNK)[chunks] != 0).any():
            self._awaited((chunks[..., None] * CHUNK + np.arange(CHUNK)).reshape(-1), instruction)
        writer = self._writer.reshape(-1, CHUNK)[chunks]
        if (writer != _NOBODY).any():
            unseen = (self._seen.reshape(-1, CHUNK)[chunks] & warps[:, None, None]) != warps[:, None, None]
            if ((writer != _NOBODY) & ((writer != _CHIP) | unseen)).any():
                raise instruction.unknown("a race: a warp has stored this since the last barrier")
        unfenced = self._unfenced.reshape(-1, CHUNK)[chunks]
        if (unfenced == _BY_THREAD).any():
            raise instruction.unknown("a race: no fence.proxy.async behind what a thread has stored here")
        np.add.at(self._reads, chunks, 1)
        return bool(unfenced.any())

    def read(self, chunks: Array) -> Array:
        """The bytes of chunks as the chip finds them now."""
        found: Array = self.bytes.reshape(-1, CHUNK)[chunks]
        return found

    def end_read(self, chunks: Array) -> None:
        """Those that have waited know that chunks have been read; others will at a barrier."""
        np.add.at(self._reads, chunks, -1)
        self._reader.reshape(-1, CHUNK)[chunks] = _SEVERAL
