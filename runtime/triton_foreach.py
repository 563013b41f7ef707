"""Runs a step over a table of rows on a device: numbers on the CPU, one upload of the table, one launch per kernel.

step counters ── kernels on numbers, in numpy ──> numbers of rows ─┐
addresses of the rows' buffers ────────────────────────────────────┴─> table ──> one launch over all blocks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from graphc.program.plan import ForeachStep, RowArgument
from graphc.program.triton_kernel import ALIGNMENT, TABLE_BLOCK, TritonKernel
from graphc.runtime.host_kernels import Array, HostKernel, array_at, numpy_dtype
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
        host: its kernels on numbers, by name.
        rows: per row and buffer of the row how to find its address.
        shared: per shared operand that kernels on numbers take its value in a running call, as an array.
        cells: of the checks that kernels on numbers make; as an array. Empty when there are none.
        raise_failed: raises for what they found.
        device: where the rows lie.

    Attributes:
        columns: those of addresses of buffers that kernels on the device use.
    """

    def __init__(
        self,
        step: ForeachStep,
        host: Mapping[str, HostKernel],
        rows: Sequence[Sequence[Locator]],
        shared: Mapping[int, Callable[[Any], Array]],
        cells: Array,
        raise_failed: Callable[[], None],
        device: torch.device,
    ) -> None:
        self.step, self.host, self.rows, self.shared = step, host, rows, shared
        self.cells, self.raise_failed, self.device = cells, raise_failed, device
        self.width = len(step.rows[0])
        plain = np.zeros((len(rows), _FIRST_BUFFER + self.width + step.scratch_bytes // _WORD), np.int64)
        plain[:, 0] = step.sizes
        plain[1:, 1] = np.cumsum([-(-size // TABLE_BLOCK) for size in step.sizes])[:-1]
        self.plain = plain
        self.blocks = torch.from_numpy(blocks_of(step.sizes)).to(device)
        launched = [item for name, found in self._parts() if name not in host for item in found]
        self.columns = sorted({_FIRST_BUFFER + item.number for item in launched if item.kind == "row"})
        self._sent: tuple[bytes, int, torch.Tensor] | None = None

    def _parts(self) -> list[tuple[str, tuple[RowArgument, ...]]]:
        return list(zip(self.step.kernels, self.step.arguments, strict=True))

    def compute(self, frame: Any) -> Array:
        """The words of the table with the numbers of the rows, which kernels on the CPU compute; counters count."""
        words = self.plain.copy()
        self._compute_numbers(frame, words)
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

    def _compute_numbers(self, frame: Any, words: Array) -> None:
        """Run the kernels on numbers: they read and write step counters, and leave numbers in the table."""
        places: dict[int, list[Array]] = {}
        gathered: dict[int, Array] = {}
        for name, found in self._parts():
            kernel = self.host.get(name)
            if kernel is None:
                continue
            for item in found:
                if item.kind == "row" and item.number not in gathered:
                    here = [array_at(row[item.number](frame), item.dtype) for row in self.rows]
                    places[item.number], gathered[item.number] = here, np.concatenate(here)
            kernel([self._array(frame, words, gathered, item) for item in found])
            for item, buffer in zip(found, kernel.kernel.buffers, strict=True):
                if item.kind == "checks":
                    self.raise_failed()
                elif item.kind == "row" and buffer.access != "in":
                    for place, value in zip(places[item.number], gathered[item.number], strict=True):
                        place[0] = value

    def _array(self, frame: Any, words: Array, gathered: Mapping[int, Array], item: RowArgument) -> Array:
        """What a kernel on numbers takes for one of its buffers."""
        if item.kind == "row":
            return gathered[item.number]
        if item.kind == "scratch":
            column = words[:, _FIRST_BUFFER + self.width + item.number // _WORD]
            kind = numpy_dtype(item.dtype)
            return np.ndarray((len(self.rows),), kind, words, _offset(words, column), (words.strides[0],))
        return self.shared[item.number](frame) if item.kind == "shared" else self.cells[item.number :]


def _offset(words: Array, column: Array) -> int:
    """Bytes from the start of a table to a column of it."""
    return int(column.__array_interface__["data"][0]) - int(words.__array_interface__["data"][0])


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
