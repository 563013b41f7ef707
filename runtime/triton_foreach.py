"""Runs a step over a table of rows on a device: numbers on the CPU, one upload of the table, one launch per kernel.

step counters ── kernels on numbers, in C ──> numbers of rows ─────┐
addresses of the rows' buffers ────────────────────────────────────┴─> table ──> one launch over all blocks
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from graphc.ir.types import DType
from graphc.program.plan import ForeachStep, RowArgument
from graphc.program.triton_kernel import ALIGNMENT, TABLE_BLOCK, TritonKernel
from graphc.runtime.checks import DeviceCells, raise_failed
from graphc.runtime.host_kernels import Array, numpy_dtype
from graphc.runtime.host_list import Call, HostLibrary, Walk
from graphc.runtime.tensors import staged

_WORD = 8
_BLOCK_BITS = 32
_FIRST_BUFFER = 2
"""Words of a row before the addresses of its buffers: its elements, and the number of its first block."""

Locator = Callable[[Any], int]
"""From a running call to an address."""
Launcher = Callable[[Any, torch.Tensor, torch.Tensor], None]
"""Launches a kernel in a running call, on a table and its blocks."""


class TableStep:
    """A step over a table of rows, ready to run on one device.

    Args:
        step: the step.
        library: its kernels on numbers.
        rows: per row and buffer of the row how to find its address.
        shared: per shared operand that kernels on numbers take its value in a running call, as an array.
        cells: of the checks that kernels on numbers make; None when there are none.
        device: where the rows lie.

    Attributes:
        plain: the words of the table without addresses and numbers.
        columns: those of addresses of buffers that kernels on the device use.
        has_numbers: kernels on the CPU compute numbers for it, in every call; else a table holds addresses only.
    """

    def __init__(
        self,
        step: ForeachStep,
        library: HostLibrary,
        rows: Sequence[Sequence[Locator]],
        shared: Mapping[int, Callable[[Any], Array]],
        cells: DeviceCells | None,
        device: torch.device,
    ) -> None:
        self.step, self.rows, self.device = step, rows, device
        self.width = len(step.rows[0])
        plain = np.zeros((len(rows), _FIRST_BUFFER + self.width + step.scratch_bytes // _WORD), np.int64)
        plain[:, 0] = step.sizes
        plain[1:, 1] = np.cumsum([-(-size // TABLE_BLOCK) for size in step.sizes])[:-1]
        self.plain = plain
        self.blocks = torch.from_numpy(blocks_of(step.sizes)).to(device)
        here = [(name, found) for name, found in self._parts() if library.has(name)]
        launched = [item for name, found in self._parts() if not library.has(name) for item in found]
        self.has_numbers = bool(here)
        self._numbers = _Numbers(here, library, rows, shared, cells, step.first_cell) if here else None
        self.columns = sorted({_FIRST_BUFFER + item.number for item in launched if item.kind == "row"})
        self._sent: tuple[bytes, int, torch.Tensor] | None = None

    def _parts(self) -> list[tuple[str, tuple[RowArgument, ...]]]:
        return list(zip(self.step.kernels, self.step.arguments, strict=True))

    def compute(self, frame: Any) -> Array:
        """The words of the table with the numbers of the rows, which kernels on the CPU compute; counters count."""
        words = self.plain.copy()
        if self._numbers is not None:
            for number, values in self._numbers.compute(frame):
                column = _WORD // values.itemsize * (_FIRST_BUFFER + self.width + number)
                words.view(values.dtype)[:, column] = values
        return words

    def locate(self, frame: Any, words: Array) -> bool:
        """Put the addresses of the rows into the table; whether all are aligned for the widest accesses."""
        for column in self.columns:
            words[:, column] = [row[column - _FIRST_BUFFER](frame) for row in self.rows]
        return not bool((words[:, self.columns] & (ALIGNMENT - 1)).any())

    def send(self, words: Array, stream: int) -> torch.Tensor:
        """Have the table on the device, for what comes next on a stream."""
        data = words.tobytes()
        sent = self._sent
        if sent is not None and sent[0] == data and sent[1] == stream:
            return sent[2]
        made = staged(words, self.device)
        if made.device != self.device:
            made = made.to(self.device, non_blocking=True)
        self._sent = (data, stream, made)
        return made


class _Numbers:
    """Kernels on the numbers of all rows: an array per number that they share, in one block of memory per call.

    Args:
        parts: kernels with their arguments, in order.
        library, rows, shared, cells, first_cell: as for `TableStep`, and the first of its cells.
    """

    def __init__(
        self,
        parts: Sequence[tuple[str, tuple[RowArgument, ...]]],
        library: HostLibrary,
        rows: Sequence[Sequence[Locator]],
        shared: Mapping[int, Callable[[Any], Array]],
        cells: DeviceCells | None,
        first_cell: int,
    ) -> None:
        self._library, self._cells = library, cells
        starts: dict[tuple[str, int], int] = {}
        width = _WORD * len(rows)
        for item in (item for _, found in parts for item in found if item.kind != "checks"):
            starts.setdefault((item.kind, item.number), width * len(starts))
        self._bytes = width * len(starts)
        written: dict[tuple[str, int], int] = {}
        dtypes: dict[tuple[str, int], DType] = {}
        calls = []
        for at, (name, found) in enumerate(parts):
            for item, buffer in zip(found, library.kernel(name).kernel.buffers, strict=True):
                if item.kind != "checks":
                    dtypes[item.kind, item.number] = item.dtype
                    if buffer.access != "in":
                        written.setdefault((item.kind, item.number), at)
            checks = any(item.kind == "checks" for item in found)
            calls.append(Call(name, tuple(self._place(item, starts, first_cell) for item in found),
                              cells=cells if checks else None))  # fmt: skip
        self._walk = Walk(library, calls)
        self._rows = [
            (start, dtypes[key].itemsize, [row[key[1]] for row in rows], written.get(key, len(calls)))
            for key, start in starts.items() if key[0] == "row"
        ]  # fmt: skip
        self._shared = [(start, shared[key[1]]) for key, start in starts.items() if key[0] == "shared"]
        # each has a word of the table to itself, whatever its dtype
        self._handed = [
            (key[1] // _WORD, start, numpy_dtype(dtypes[key]), len(rows))
            for key, start in starts.items() if key[0] == "scratch"
        ]  # fmt: skip

    def _place(self, item: RowArgument, starts: Mapping[tuple[str, int], int], first_cell: int) -> tuple[int, int]:
        """Place 0 of the table is the block, place 1 holds 0."""
        if item.kind != "checks":
            return 0, starts[item.kind, item.number]
        assert self._cells is not None
        return 1, self._cells.values.data_ptr() + _WORD * (first_cell + item.number)

    def compute(self, frame: Any) -> list[tuple[int, Array]]:
        """Run the kernels: they read and write step counters. What they hand on: which word of a row, and its values.

        Raises:
            What eager raises for bad data; nothing that the kernel which found it has written is kept then.
        """
        block = (ctypes.c_char * self._bytes)()
        base = ctypes.addressof(block)
        places = [[find(frame) for find in row] for _, _, row, _ in self._rows]
        for (start, size, _, _), addresses in zip(self._rows, places, strict=True):
            self._library.gather(addresses, size, base + start)
        for start, find in self._shared:
            value = find(frame)
            ctypes.memmove(base + start, value.ctypes.data, value.nbytes)
        made = self._walk.run((ctypes.c_uint64 * 2)(base, 0))
        for (start, size, _, first), addresses in zip(self._rows, places, strict=True):
            if first < made:
                self._library.scatter(addresses, size, base + start)
        if made < len(self._walk.calls) and self._cells is not None:
            raise_failed([self._cells])
        return [
            (word, np.frombuffer(memoryview(block), dtype, count, start)) for word, start, dtype, count in self._handed
        ]


def blocks_of(sizes: Sequence[int]) -> Array:
    """The blocks of all rows, one number each: its row, and above which block of the row it is."""
    counts = [-(-size // TABLE_BLOCK) for size in sizes]
    rows = np.repeat(np.arange(len(sizes), dtype=np.int64), counts)
    numbers = np.concatenate([np.arange(count, dtype=np.int64) for count in counts]) if counts else rows
    found: Array = (rows << _BLOCK_BITS) | numbers
    return found


def over_blocks(kernel: TritonKernel, blocks: int, rows: int, aligned: bool) -> TritonKernel:
    """A kernel for a number of blocks and of rows, with the widest accesses or without."""
    launches = []
    for launch, programs in zip(kernel.launches, (blocks, rows), strict=False):
        constexprs = tuple((name, value if name != "ALIGNMENT" or aligned else 1) for name, value in launch.constexprs)
        launches.append(replace(launch, grid=(programs, 1, 1), constexprs=constexprs))
    return replace(
        kernel, launches=tuple(launches), scratch=tuple(replace(part, size=blocks) for part in kernel.scratch)
    )
