"""What one running call of a program on a device owns, and where in it each buffer lies."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from graphc.errors import LoweringError, add_location
from graphc.ir.types import f64, i64
from graphc.program.plan import ARENA, CHECKS, EXTERNAL, INPUT, OUTPUT, AtenStep, BufferSpec, View
from graphc.program.record import Program
from graphc.runtime.checks import DeviceCells
from graphc.runtime.device import find_device, index_of
from graphc.runtime.tensors import copied, same_strides, torch_dtype, view_into, with_strides

T = TypeVar("T")

_LARGE = 64 << 20
"""Bytes of memory for which the device is asked first whether it has them."""


class Frame:
    """What one running call owns.

    Args:
        inputs: of the call.
        places: length of the table.

    Attributes:
        made: tensors by buffer: outputs and what library calls returned.
        numbers: Python numbers by buffer.
        cells: numbers that kernels compute, as tensors of one element.
        arenas: by device.
        table: the address of every buffer that kernels on a device may read, see `graphc.runtime.launch_list`.
        words: per step over a table of rows the words of that table.
        kept: what the CPU keeps and kernels read that is on the device already, by buffer: what a recording reads.
        sent: tables of rows that are on the device already, likewise.
        scratch: memory for the launches of one kernel, by device.
        fixed: where copies store what they make, by buffer, when a recording reads it there.
    """

    __slots__ = (
        "arenas", "cells", "fixed", "inputs", "kept", "made", "numbers", "scratch", "sent", "streams", "table", "words"
    )  # fmt: skip

    def __init__(self, inputs: Sequence[Any], places: int) -> None:
        self.inputs = inputs
        self.made: dict[int, torch.Tensor] = {}
        self.numbers: dict[int, Any] = {}
        self.cells: dict[int, torch.Tensor] = {}
        self.arenas: dict[str, torch.Tensor] = {}
        self.streams: dict[int, int] = {}
        self.table = (ctypes.c_uint64 * places)()
        self.words: dict[int, Any] = {}
        self.kept: dict[int, torch.Tensor] = {}
        self.sent: dict[int, torch.Tensor] = {}
        self.scratch: dict[torch.device, torch.Tensor] = {}
        self.fixed: dict[int, torch.Tensor] = {}


@dataclass(frozen=True)
class Working:
    """Memory in which one call at a time works.

    Args:
        arenas: by device.
        scratch: for the launches of one kernel, by device.
    """

    arenas: dict[str, torch.Tensor]
    scratch: dict[torch.device, torch.Tensor]

    def tensors(self) -> list[torch.Tensor]:
        return [*self.arenas.values(), *self.scratch.values()]


class Memory:
    """The buffers of a program in its calls.

    Args:
        program: the record.

    Attributes:
        cells: per buffer of checks its cells.
        places: the length of a table so far.
        nowhere: a place in tables that holds 0.
        computed: Python numbers that kernels on the CPU compute.
        make_room: has other programs give memory back that they only keep for reuse; says whether any did.
    """

    def __init__(self, program: Program) -> None:
        self.program, self.buffers = program, program.buffers
        self.cells = {
            index: DeviceCells(found, self.place_of(self.buffers[index].device))
            for index, found in program.checks.items()
        }
        self._fresh = [spec for spec in self.buffers if spec.kind == OUTPUT and not spec.host]
        arena = [spec for spec in self.buffers if spec.kind == ARENA and not spec.host]
        self._arena_devices = sorted({spec.device for spec in arena})
        self._arena_bytes = {
            name: max(spec.arena_offset + spec.nbytes for spec in arena if spec.device == name)
            for name in self._arena_devices
        }
        self._arena_places = {name: len(self.buffers) + at for at, name in enumerate(self._arena_devices)}
        self.places = len(self.buffers) + len(self._arena_devices)
        self._scratch: dict[torch.device, tuple[int, int]] = {}
        self.nowhere = self.more_places(1)
        self.computed: set[int] = set()
        self.make_room: Callable[[], bool] = lambda: False
        self._host_places: dict[int, int] = {}
        self._tabled: set[int] = set()
        self._inputs: list[tuple[int, int]] = []
        self._asked = False

    def place_of(self, name: str) -> torch.device:
        """Where tensors of a buffer's device are made."""
        device = find_device(name)
        return torch.device(name) if device is None else device.place(index_of(name, device))

    def more_places(self, count: int) -> int:
        """Make a call's table longer, and say where the new part begins."""
        self.places += count
        return self.places - count

    def scratch_place(self, device: torch.device, nbytes: int = 0) -> int:
        """Where in a table scratch memory of a device is, which has so many bytes at least."""
        place, known = self._scratch.get(device) or (self.more_places(1), 0)
        self._scratch[device] = place, max(known, nbytes)
        return place

    def in_table(self, index: int, offset: int) -> tuple[int, int]:
        """Where an argument of a kernel is found: a place in the table, and bytes.

        Args:
            index: its buffer.
            offset: in elements.
        """
        spec = self.buffers[index]
        skip = offset * spec.dtype.itemsize
        is_there = not spec.host and find_device(spec.device) is not None
        if spec.kind == ARENA and is_there:
            return self._arena_places[spec.device], spec.arena_offset + skip
        if index not in self._tabled:
            self._tabled.add(index)
            if spec.kind == INPUT and is_there:
                self._inputs.append((index, spec.source))
        return index, skip

    def on_host(self, index: int) -> int:
        """Where in a table is the address by which the CPU finds one of its buffers.

        That of a Python number is followed by its cell. What lies in an arena begins `arena_offset` bytes behind the
        address; that of the cells of checks never changes, and is in no table: their place holds 0.
        """
        spec = self.buffers[index]
        if spec.kind == CHECKS:
            return self.nowhere
        if spec.kind == ARENA and not spec.host:
            return self._arena_places[spec.device]
        if index not in self._host_places:  # not its own number: there the address of a copy on a device may be
            self._host_places[index] = self.more_places(2 if spec.host else 1)
        return self._host_places[index]

    # ------------------------------------------------------------------------------------------------------ per call

    def begin(self, inputs: Sequence[Any]) -> Frame:
        """A call's frame, with what is known at its start."""
        frame = Frame(inputs, self.places)
        table = frame.table
        for index, source in self._inputs:
            address = inputs[source].data_ptr()
            if not address:
                check_storage(inputs[source])
            table[index] = address
        for index, cells in self.cells.items():
            table[index] = cells.values.data_ptr()
        return frame

    def allocate(self, frame: Frame) -> None:
        """Make the working memory and the outputs of a call.

        Raises:
            torch.OutOfMemoryError: with the program's own peak added.
        """
        try:
            self.with_room(lambda: self._allocate(frame))
        except torch.OutOfMemoryError as error:
            error.args = (f"{error}\n{self._needs()}",)
            raise

    def with_room(self, work: Callable[[], T]) -> T:
        """Do what allocates memory, and once more where there is too little until other programs give theirs back."""
        try:
            return work()
        except torch.OutOfMemoryError:
            if not self.make_room():
                raise
        return work()

    def _allocate(self, frame: Frame) -> None:
        if not self._asked:
            self._ask()
        self.use_working(frame, self.working())
        self.allocate_outputs(frame)

    def working(self) -> Working:
        """Memory that a call works in."""
        arenas = {
            name: torch.empty(nbytes, dtype=torch.uint8, device=self.place_of(name))
            for name, nbytes in self._arena_bytes.items()
        }
        scratch = {
            device: torch.empty(nbytes, dtype=torch.uint8, device=device)
            for device, (_, nbytes) in self._scratch.items()
            if nbytes
        }
        return Working(arenas, scratch)

    def use_working(self, frame: Frame, working: Working) -> None:
        """Have a call work there."""
        frame.arenas = working.arenas
        for name, arena in working.arenas.items():
            frame.table[self._arena_places[name]] = arena.data_ptr()
        frame.scratch = working.scratch
        for device, scratch in working.scratch.items():
            frame.table[self._scratch[device][0]] = scratch.data_ptr()

    def allocate_outputs(self, frame: Frame) -> None:
        """Make the outputs of a call."""
        for spec in self._fresh:
            self.put(frame, spec.index, self.empty(spec))

    def empty(self, spec: BufferSpec) -> torch.Tensor:
        """Memory that lies as a buffer does."""
        dtype, device = torch_dtype(spec.dtype), self.place_of(spec.device)
        return torch.empty_strided(spec.shape, spec.strides, dtype=dtype, device=device)

    def put(self, frame: Frame, index: int, tensor: torch.Tensor) -> None:
        """Have a tensor be a buffer of a call."""
        frame.made[index] = tensor
        frame.table[index] = tensor.data_ptr()

    def peak(self, name: str) -> int:
        """Bytes that a call allocates on a device at once, besides what library calls return."""
        fresh = sum(spec.nbytes for spec in self._fresh if spec.device == name)
        return fresh + self._arena_bytes.get(name, 0) + self._scratch.get(self.place_of(name), (0, 0))[1]

    def _needs(self) -> str:
        outputs = sum(spec.nbytes for spec in self._fresh)
        return (
            f"The compiled program {self.program.name} needs {self.program.arena_bytes} bytes of working memory and "
            f"{outputs} bytes for its outputs."
        )

    def _ask(self) -> None:
        """Before the first call of a program that needs much: does the device have so much?"""
        for name in {*self._arena_devices, *(spec.device for spec in self._fresh)}:
            device, peak = find_device(name), self.peak(name)
            if device is None or peak < _LARGE:
                continue
            free, total = device.memory(index_of(name, device))
            if peak > free:
                raise torch.OutOfMemoryError(
                    f"not started, since {name} has {free} bytes free of {total}, and {peak} are asked for"
                )
        self._asked = True

    # ------------------------------------------------------------------------------------------------------- buffers

    def view(self, frame: Frame, view: View) -> Any:
        """The tensor of a view of a buffer, or the number of a view of a host buffer."""
        spec = self.buffers[view.buffer]
        if spec.host:
            return self.number(frame, spec)
        if spec.kind == ARENA:
            storage = frame.arenas[spec.device].untyped_storage()
            start = spec.arena_offset // view.dtype.itemsize + view.offset
            empty = torch.empty(0, dtype=torch_dtype(view.dtype), device=storage.device)
            return empty.set_(storage, start, view.shape, view.strides)
        return view_into(self.base(frame, spec), view.dtype, view.shape, view.strides, view.offset)

    def tensor_of(self, frame: Frame) -> Callable[[View], Any]:
        """`view` for one call."""
        return lambda view: self.view(frame, view)

    def base(self, frame: Frame, spec: BufferSpec) -> torch.Tensor:
        """The tensor that is a whole buffer outside of the arena."""
        if spec.kind == INPUT:
            base = frame.inputs[spec.source]
            assert isinstance(base, torch.Tensor)
            return base
        if spec.kind == CHECKS:
            return self.cells[spec.index].values
        return frame.made[spec.index]

    def number(self, frame: Frame, spec: BufferSpec) -> Any:
        """The Python number of a host buffer. One that a device computes is waited for."""
        if spec.kind == INPUT:
            return frame.inputs[spec.source]
        if spec.index not in frame.numbers:  # a kernel has computed it
            frame.numbers[spec.index] = frame.cells[spec.index].item()
        return frame.numbers[spec.index]

    def cell(self, frame: Frame, spec: BufferSpec, device: torch.device) -> torch.Tensor:
        """A Python number as the 8-byte cell that kernels read, or write when no step has given it before."""
        dtype = cell_dtype(spec)
        if spec.kind == INPUT or spec.index in frame.numbers:
            return torch.full((1,), self.number(frame, spec), dtype=dtype, device=device)
        if spec.index not in frame.cells:
            frame.cells[spec.index] = torch.zeros((1,), dtype=dtype, device=device)
        return frame.cells[spec.index].to(device)

    def brought(self, frame: Frame, spec: BufferSpec, device: torch.device) -> torch.Tensor:
        """A copy on the kernel's device of a buffer that lies elsewhere."""
        return self.whole(frame, spec).to(device)

    def whole(self, frame: Frame, spec: BufferSpec) -> torch.Tensor:
        """A buffer as its defining value lies in it."""
        found: torch.Tensor = self.view(frame, View(spec.index, spec.dtype, spec.shape, spec.strides))
        return found

    def bring(self, frame: Frame, index: int, device: torch.device) -> None:
        """Have a Python number or a 0-d tensor of the CPU in a call's table, in memory that the call holds."""
        spec = self.buffers[index]
        tensor = self.cell(frame, spec, device) if spec.host else self.brought(frame, spec, device)
        frame.made[-2 - index] = tensor
        frame.table[index] = tensor.data_ptr()

    def flat(self, frame: Frame, index: int, offset: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A buffer from element `offset` on as a tensor whose only meaning is its address and its dtype."""
        spec = self.buffers[index]
        if index in frame.kept:
            return frame.kept[index]
        if spec.host:
            return self.cell(frame, spec, device).view(dtype)[:1]
        if spec.kind == ARENA:
            arena = frame.arenas[spec.device]
            storage, start = arena.untyped_storage(), arena.storage_offset() + spec.arena_offset
        else:
            base = self.base(frame, spec)
            storage, start = base.untyped_storage(), base.storage_offset() * base.element_size()
        # a tensor without elements has no address, and needs none: nothing of an empty buffer is touched
        size = (1,) if storage.nbytes() >= start + (offset + 1) * dtype.itemsize else (0,)
        found = torch.empty(0, dtype=dtype, device=storage.device)
        found.set_(storage, start // dtype.itemsize + offset if size[0] else 0, size, (1,))
        return found if found.device == device else self.brought(frame, spec, device)

    def store(self, frame: Frame, index: int, result: Any, step: AtenStep) -> None:
        """Put a result of an ATen call where the plan wants it.

        Raises:
            LoweringError: it is not what the plan expects.
        """
        spec = self.buffers[index]
        if spec.host:
            frame.numbers[spec.index] = result.item() if isinstance(result, torch.Tensor) else result
            return
        wanted = torch_dtype(spec.dtype)
        if not isinstance(result, torch.Tensor) or result.shape != spec.shape or result.dtype is not wanted:
            found = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, torch.Tensor) else repr(result)
            raise LoweringError(f"{step.op} was expected to return {wanted} {spec.shape}, got {found}", step.location)
        if spec.kind != EXTERNAL:
            self.view(frame, View(spec.index, spec.dtype, spec.shape, spec.strides)).copy_(result)
        elif same_strides(result, spec.strides):
            self.put(frame, index, with_strides(result, spec.strides))
        else:
            self.put(frame, index, copied(result, spec.strides))

    def copy(self, frame: Frame, step: AtenStep) -> None:
        """Do what a call of `_to_copy` asks for, straight to where its result is read."""
        (index,), target = step.outs, frame.fixed[step.outs[0]]
        assert isinstance(step.args[0], View)
        waits_not = bool(dict(step.kwargs).get("non_blocking"))
        try:
            target.copy_(self.view(frame, step.args[0]), non_blocking=waits_not)
        except Exception as error:
            add_location(error, step.location)
            raise
        self.put(frame, index, target)


def cell_dtype(spec: BufferSpec) -> torch.dtype:
    """The dtype of the cell of a host buffer."""
    return torch_dtype(f64 if spec.dtype.is_float else i64)


def check_storage(tensor: torch.Tensor) -> None:
    """For a tensor without an address.

    Raises:
        RuntimeError: it has elements.
    """
    if tensor.numel():
        raise RuntimeError(
            f"a tensor of shape {list(tensor.shape)} that the program reads is out of bounds for storage of size "
            f"{tensor.untyped_storage().nbytes()}"
        )
