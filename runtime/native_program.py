"""Running a native program: fill a pointer table, make one foreign call, hand out the outputs.

A call works in a frame of its own: the table of buffer addresses, which generated code reads by buffer number; the
handles of libtorch tensors it makes on the way; and one 8-byte cell per Python number. It works in an arena that other
programs use too. Outputs are fresh memory in every call, so nothing that the user holds is ever overwritten.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import increment_version

from graphc.errors import LoweringError, add_location
from graphc.program.facts import EntryFact, FactCheck, TensorFact
from graphc.program.lifetimes import last_external_uses
from graphc.program.loops import LoopStep
from graphc.program.plan import (
    ARENA,
    CHECKS,
    EXTERNAL,
    INPUT,
    OUTPUT,
    AtenStep,
    BufferSpec,
    GemmStep,
    KernelStep,
    OutputSpec,
    Step,
    View,
)
from graphc.program.record import NATIVE, Program, Segment
from graphc.runtime.arena import ARENAS, Arena, Pool
from graphc.runtime.aten_calls import AtenCall, run_aten, run_call, run_gemm
from graphc.runtime.checks import Cells, raise_failed
from graphc.runtime.library import last_error, tensor_offset
from graphc.runtime.native_facts import native_check
from graphc.runtime.sized_library import SizedLibrary, load_library, tell_sizes
from graphc.runtime.spare import SpareOutputs
from graphc.runtime.tensors import (
    copied,
    empty_strided,
    same_strides,
    torch_dtype,
    view_into,
    with_strides,
)
from graphc.runtime.undo import Undo

_CPU = torch.device("cpu")

Runner = Callable[["Frame"], None]
Getter = Callable[["Frame"], Any]


class Frame:
    """What one running call owns.

    Args:
        program: the record.
        getters: per `id` of a view in the program's steps how to get its tensor.
    """

    def __init__(self, program: Program, getters: dict[int, Getter]) -> None:
        count = max(len(program.buffers), 1)
        self.table = (ctypes.c_void_p * count)()
        self.handles = (ctypes.c_void_p * count)()
        self.cells = (ctypes.c_int64 * count)()
        self.cell_bytes = memoryview(self.cells).cast("B")
        self.table_address = ctypes.addressof(self.table)
        self.arguments = (self.table_address, ctypes.addressof(self.handles))
        self.arena: Arena | None = None  # during a call
        self.inputs: Sequence[Any] = ()
        self.made: Sequence[torch.Tensor] = ()
        self.external: dict[int, torch.Tensor] = {}
        self.failed: dict[int, Cells] = {}
        self.reached = -1  # the last step that may have run
        self._getters = getters
        self._places = {spec.index: place for place, spec in enumerate(made_buffers(program))}
        arena = [spec for spec in program.buffers if is_in_arena(spec)]
        self._in_arena = np.array([spec.index for spec in arena], dtype=np.intp)
        self._offsets = np.array([spec.arena_offset for spec in arena], dtype=np.uintp)
        self._addresses = np.frombuffer(memoryview(self.table).cast("B"), dtype=np.uintp)
        self._arena_address = 0
        for spec in program.buffers:
            if spec.host:
                self.table[spec.index] = ctypes.addressof(self.cells) + 8 * spec.index
            elif spec.kind == CHECKS:
                self.failed[spec.index] = Cells(program.checks[spec.index])
                self.table[spec.index] = self.failed[spec.index].address

    def tensor_of(self, view: View) -> Any:
        """The tensor of a view in the program's steps, or the number of a view of a host buffer."""
        return self._getters[id(view)](self)

    def work_in(self, arena: Arena) -> None:
        """Have the next call use an arena."""
        self.arena = arena
        if self._arena_address != arena.address:
            self._arena_address = arena.address
            self._addresses[self._in_arena] = self._offsets + np.uintp(arena.address)

    def arena_view(self, spec: BufferSpec, view: View) -> torch.Tensor:
        """A tensor over a part of the arena, of a view in the program's steps."""
        assert self.arena is not None
        views = self.arena.views.setdefault(self, {})
        found = views.get(id(view))
        if found is None:
            memory = self.arena.tensor
            offset = (memory.storage_offset() + spec.arena_offset) // view.dtype.itemsize + view.offset
            with torch.inference_mode(False), torch.no_grad():
                empty = torch.empty(0, dtype=torch_dtype(view.dtype), device=_CPU)
                found = empty.set_(memory.untyped_storage(), offset, view.shape, view.strides)
            views[id(view)] = found
        return found

    def output(self, index: int) -> torch.Tensor:
        """The tensor of an OUTPUT buffer."""
        return self.made[self._places[index]]

    def adopt(self, index: int) -> torch.Tensor:
        """The tensor of an EXTERNAL buffer, taken over from native code when that made it."""
        handle = self.handles[index]
        if handle is not None:
            self.external[index] = _tensor_from_handle(handle)
            self.handles[index] = None
        return self.external[index]

    def clear(self) -> None:
        """Let go of everything that belongs to one call."""
        self.inputs = self.made = ()
        if self.external:
            self.external.clear()

    def drop_handles(self) -> None:
        """Free the tensors that native code made and has not freed, after an error."""
        for index, handle in enumerate(self.handles):
            if handle is not None:
                _tensor_from_handle(handle)
                self.handles[index] = None


def made_buffers(program: Program) -> list[BufferSpec]:
    """The buffers that are fresh memory in every call, in the order in which it is made."""
    return [spec for spec in program.buffers if spec.kind == OUTPUT and not spec.host]


def is_in_arena(spec: BufferSpec) -> bool:
    """Whether a buffer is a part of the arena."""
    return spec.kind == ARENA and not spec.host


def getter(spec: BufferSpec, view: View) -> Getter:
    """How to get the tensor of a view of a buffer, or the number of a host buffer."""
    index, source = spec.index, spec.source
    if spec.host:
        return lambda frame: read_cell(frame.cell_bytes, spec)
    if spec.kind == ARENA:
        return lambda frame: frame.arena_view(spec, view)
    bases: dict[str, Getter] = {
        INPUT: lambda frame: frame.inputs[source],
        OUTPUT: lambda frame: frame.output(index),
        EXTERNAL: lambda frame: frame.adopt(index),
    }
    base = bases[spec.kind]
    if (view.dtype, view.shape, view.strides, view.offset) == (spec.dtype, spec.shape, spec.strides, 0):
        return base
    return lambda frame: view_into(base(frame), view.dtype, view.shape, view.strides, view.offset)


def _address(tensor: torch.Tensor) -> int:
    """Where the elements of an input are.

    Raises:
        RuntimeError: its storage has been emptied, as `untyped_storage().resize_(0)` does.
    """
    address = tensor.data_ptr()
    if not address and tensor.numel():
        raise RuntimeError(
            f"a tensor of shape {list(tensor.shape)} that the program reads is out of bounds for storage of size "
            f"{tensor.untyped_storage().nbytes()}"
        )
    return address


class NativeProgram:
    """A program whose sources are built into a shared library.

    Args:
        program: the record.
        library: the file of its library; or a library that programs of other sizes have too; or None when the program
            has no native step.

    Raises:
        OSError: the library cannot be loaded.
        BackendUnavailableError: it needs a function that this torch does not have.
    """

    def __init__(self, program: Program, library: Path | SizedLibrary | None) -> None:
        self.program = program
        self._shared = library if isinstance(library, SizedLibrary) else None
        self._twin: NativeProgram | None = None
        self._library = self._shared.loaded if self._shared is not None else None
        if isinstance(library, Path):
            self._library = load_library(library, program.symbols)
            tell_sizes(self._library, program.sizes)
        self._entries = {
            segment.entry: _entry(self._library, segment.entry)
            for segment in program.segments
            if segment.kind == NATIVE and self._library is not None
        }
        getters = {
            id(view): getter(program.buffers[view.buffer], view) for step in program.steps for view in _views(step)
        }
        self._pool = Pool(lambda: Frame(program, getters))
        self._arena_bytes = program.arena_bytes if any(is_in_arena(spec) for spec in program.buffers) else None
        if self._arena_bytes is not None:
            ARENAS.expect(self, self._arena_bytes)
        ended = last_external_uses(program.buffers, program.steps, program.outputs)
        self._runners = [runner for segment in program.segments for runner in self._segment_runners(segment, ended)]
        self._calls_torch = any(isinstance(step, AtenStep) for step in program.steps) or any(
            not isinstance(step, AtenStep)
            for segment in program.segments
            if segment.kind != NATIVE
            for step in program.steps[segment.first : segment.stop]
        )
        self._inputs = [spec for spec in program.buffers if spec.kind == INPUT and not spec.host]
        self._numbers = [spec for spec in program.buffers if spec.kind == INPUT and spec.host]
        self._made = made_buffers(program)
        self._layouts = [(spec.shape, spec.strides, torch_dtype(spec.dtype)) for spec in self._made]
        self._locate = _list_function(self._library, "graphc_locate", 1)
        in_one_call = len(program.segments) == 1 and not self._calls_torch
        self._call = _list_function(self._library, "graphc_call", 2) if in_one_call else None
        self.spare_outputs = SpareOutputs(program.outputs, self._made, program.steps)
        whole = [output.buffer for output in program.outputs if output.whole]
        self._returns_made = whole == [spec.index for spec in self._made] and len(whole) == len(program.outputs)
        self._outputs = [_output_maker(program.buffers[output.buffer], output) for output in program.outputs]
        self._written = tuple(program.written)
        self._undo = Undo(program)
        self._last = len(program.steps) - 1

    def __call__(self, inputs: Sequence[Any], spare: dict[int, torch.Tensor] | None = None) -> list[Any]:
        """Run the program.

        Args:
            inputs: one tensor or Python number per graph input, as the guards have checked them.
            spare: per number of an output a tensor that nobody else holds, in whose memory it may be stored. A call
                that fails leaves in there those that it has not written to.

        Returns:
            One tensor or number per graph output.

        Raises:
            What an ATen call in the program raises, of its own class, with the user's source line added; what the call
            would have changed is as before, but for inputs in `program.exposed`.
        """
        if self._shared is None:
            return self._run(inputs, spare)
        if not self._shared.enter(self.program.sizes):
            return self._with_own_library()._run(inputs, spare)
        try:
            return self._run(inputs, spare)
        finally:
            self._shared.leave()

    def _with_own_library(self) -> NativeProgram:
        """The same program, with a library that no other one has."""
        assert self._shared is not None
        if self._twin is None:
            self._twin = NativeProgram(self.program, self._shared.copy())
        return self._twin

    def _run(self, inputs: Sequence[Any], spare: dict[int, torch.Tensor] | None) -> list[Any]:
        frame = self._take_frame()
        before = self._undo.remember(inputs)
        frame.reached = -1
        try:
            frame.inputs = inputs
            if spare:
                frame.made = made = self.spare_outputs.make(self._layouts, spare)
            else:
                frame.made = made = [empty_strided(*layout) for layout in self._layouts]
            for spec in self._numbers:
                write_cell(frame.cell_bytes, spec, inputs[spec.source])
            torch.get_num_threads()  # brings this thread's OpenMP and MKL to torch's setting
            if self._call is None or type(inputs) is not list:
                self._run_segments(frame)
            else:
                frame.reached = self._last
                if status := self._call(inputs, made, *frame.arguments):
                    frame.reached = status - 1
                    if status > 0:
                        _explain_failure(self.program.steps[status - 1], frame)
                    frame.reached = -1
                    self._run_segments(frame)
            outputs = made if self._returns_made else [make(frame) for make in self._outputs]
        except BaseException:
            self._undo.undo(inputs, before)
            if spare:
                self.spare_outputs.keep_intact(spare, frame.reached)
            raise
        else:
            if self._written:
                increment_version([inputs[index] for index in self._written])
            return outputs
        finally:
            self._give_back(frame)

    def _take_frame(self) -> Frame:
        frame = self._pool.take()
        if self._arena_bytes is not None:
            frame.work_in(ARENAS.take(self._arena_bytes))
        return frame

    def _give_back(self, frame: Frame) -> None:
        if frame.arena is not None:
            ARENAS.give_back(frame.arena)
            frame.arena = None
        frame.clear()
        self._pool.give_back(frame)

    def _run_segments(self, frame: Frame) -> None:
        """Run segment by segment."""
        if not self._runners:
            return
        self._locate_tensors(frame)
        if self._calls_torch:
            self._run_calling_torch(frame)
        else:
            for run in self._runners:
                run(frame)

    def _locate_tensors(self, frame: Frame) -> None:
        """Tell native code where the tensors of a call are."""
        if self._locate is None or type(frame.inputs) is not list or self._locate(
            frame.inputs, frame.made, frame.table_address
        ):  # fmt: skip
            for spec in self._inputs:
                frame.table[spec.index] = _address(frame.inputs[spec.source])
            for spec, tensor in zip(self._made, frame.made, strict=True):
                frame.table[spec.index] = tensor.data_ptr()

    @contextlib.contextmanager
    def segments_apart(self, inputs: list[Any]) -> Iterator[list[Callable[[], None]]]:
        """The program's segments, each of which can be run alone on these inputs, as often as wanted, in the block.

        For measuring: nothing is undone, no outputs are handed out. A program without steps for Python has a run per
        segment.
        """
        assert self._shared is None, "programs that are measured have libraries of their own"
        frame = self._take_frame()
        try:
            frame.inputs, frame.made = inputs, [empty_strided(*layout) for layout in self._layouts]
            for spec in self._numbers:
                write_cell(frame.cell_bytes, spec, inputs[spec.source])
            torch.get_num_threads()  # as for a call
            self._locate_tensors(frame)
            with torch.no_grad(), torch._C._DisableAutocast():
                yield [functools.partial(run, frame) for run in self._runners]
        finally:
            frame.drop_handles()
            self._give_back(frame)

    def fact_check(self, entries: Sequence[EntryFact], tensors: Sequence[TensorFact]) -> FactCheck | None:
        """A check of guards by this program's native code, or None where that cannot be; see `FactChecker`."""
        return None if self._library is None else native_check(self._library, entries, tensors)

    def _run_calling_torch(self, frame: Frame) -> None:
        """Run with autograd and autocast out of the way: the graph has been captured below both."""
        was_enabled = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            if torch._C._is_any_autocast_enabled():
                with torch._C._DisableAutocast():
                    for run in self._runners:
                        run(frame)
            else:
                for run in self._runners:
                    run(frame)
        except BaseException:
            frame.drop_handles()
            raise
        finally:
            torch._C._set_grad_enabled(was_enabled)

    def _segment_runners(self, segment: Segment, ended: dict[int, list[int]]) -> list[Runner]:
        steps = range(segment.first, segment.stop)
        if segment.kind == NATIVE:
            done = [index for number in steps for index in ended.get(number, ())]
            return [self._native_runner(self._entries[segment.entry], segment.stop - 1, done)]
        return [self._python_runner(number, ended.get(number, [])) for number in steps]

    def _native_runner(self, entry: Callable[[int, int], int], last: int, ended: list[int]) -> Runner:
        steps = self.program.steps

        def run(frame: Frame) -> None:
            frame.reached = last
            status = entry(*frame.arguments)
            if status:
                frame.reached = status - 1
                _explain_failure(steps[status - 1], frame)
            for index in ended:
                frame.external.pop(index, None)

        return run

    def _python_runner(self, number: int, ended: list[int]) -> Runner:
        buffers, step = self.program.buffers, self.program.steps[number]
        if isinstance(step, AtenStep):
            call = AtenCall(step)

            stores = [None if index < 0 else _store(buffers[index], step) for index in step.outs]

            def run(frame: Frame) -> None:
                frame.reached = number
                for store, result in zip(stores, run_call(call, frame.tensor_of), strict=True):
                    if store is not None:
                        store(frame, result)
                for index in ended:
                    _end(frame, index)

            return run
        if isinstance(step, GemmStep):

            def run_product(frame: Frame) -> None:
                frame.reached = number
                run_gemm(step, frame.tensor_of)
                for index in ended:
                    _end(frame, index)

            return run_product
        what = "a loop"
        if not isinstance(step, LoopStep):
            what = f"kernel {', '.join((step.kernel,) if isinstance(step, KernelStep) else step.kernels)}"
        raise LoweringError(f"{what} cannot be run from Python", step.location)


def _list_function(library: ctypes.CDLL | None, name: str, addresses: int) -> Callable[..., int] | None:
    """A function of the program that looks into lists of tensors, 10 ns each, where that is possible.

    Args:
        addresses: how many arguments it has after the lists of inputs and of outputs.
    """
    offset = tensor_offset()
    if library is None or offset is None or not hasattr(library, name):
        return None
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    lists = (ctypes.py_object, ctypes.py_object)
    # a PYFUNCTYPE keeps the interpreter's lock during the call
    prototype = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ssize_t, *lists, *[ctypes.c_void_p] * addresses)
    return functools.partial(prototype(address), offset)


def read_cell(cells: memoryview, spec: BufferSpec) -> bool | int | float:
    """The number in the cell of a host buffer."""
    if spec.dtype.is_float:
        return float(struct.unpack_from("d", cells, 8 * spec.index)[0])
    value = int(struct.unpack_from("q", cells, 8 * spec.index)[0])
    return bool(value) if spec.dtype.kind == "bool" else value


def write_cell(cells: memoryview, spec: BufferSpec, value: bool | int | float) -> None:
    """Put a number into the cell of a host buffer."""
    struct.pack_into("d" if spec.dtype.is_float else "q", cells, 8 * spec.index, value)


def _store(spec: BufferSpec, step: AtenStep) -> Callable[[Frame, Any], None]:
    """How to put a result of an ATen call where the plan wants it."""
    if spec.host:

        def write(frame: Frame, result: Any) -> None:
            write_cell(frame.cell_bytes, spec, result.item() if isinstance(result, torch.Tensor) else result)

        return write
    wanted, shape, strides, index = torch_dtype(spec.dtype), spec.shape, spec.strides, spec.index
    view = View(index, spec.dtype, shape, strides)  # lives as long as the getter that knows it by its id
    target = getter(spec, view)

    def store(frame: Frame, result: Any) -> None:
        if not isinstance(result, torch.Tensor) or result.shape != shape or result.dtype is not wanted:
            found = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, torch.Tensor) else repr(result)
            raise LoweringError(
                f"{step.op} was expected to return {wanted} {shape} and returned {found}", step.location
            )
        if spec.kind != EXTERNAL:
            target(frame).copy_(result)
            return
        if result.stride() != strides and not same_strides(result, strides):
            result = copied(result, strides)
        frame.external[index] = result
        frame.table[index] = result.data_ptr()

    return store


def _end(frame: Frame, index: int) -> None:
    """Nothing reads this EXTERNAL buffer any more."""
    if frame.handles[index] is not None:
        frame.adopt(index)
    frame.external.pop(index, None)


def _explain_failure(step: Step, frame: Frame) -> None:
    """Raise for a native step that failed: done again from Python it raises torch's own class and message."""
    message = last_error()
    if isinstance(step, (KernelStep, LoopStep)):
        raise_failed(frame.failed.values())
    if isinstance(step, AtenStep):
        run_aten(step, frame.tensor_of)
    elif isinstance(step, GemmStep):
        run_gemm(step, frame.tensor_of)
    error = RuntimeError(message or f"a step of the compiled program failed: {step}")
    add_location(error, step.location)
    raise error


def _output_maker(spec: BufferSpec, output: OutputSpec) -> Getter:
    """How one output is handed out."""
    if output.whole and spec.kind != ARENA:
        whole, strides = getter(spec, View(spec.index, spec.dtype, spec.shape, spec.strides)), spec.strides
        if spec.kind == EXTERNAL and 1 in spec.shape:  # strides of such dims are where torch reads a memory format off
            return lambda frame: with_strides(whole(frame), strides)
        return whole
    get = getter(spec, View(spec.index, spec.dtype, output.shape, output.strides, output.offset))
    return get if spec.host or spec.kind != ARENA else lambda frame: get(frame).clone()


def _views(step: Step) -> Iterable[View]:
    if isinstance(step, AtenStep):
        return step.views()
    return (step.a, step.b, step.out) if isinstance(step, GemmStep) else ()


def _entry(library: ctypes.CDLL, name: str) -> Callable[[int, int], int]:
    function = getattr(library, name)
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    function.restype = ctypes.c_int
    entry: Callable[[int, int], int] = function
    return entry


def _tensor_from_handle(handle: int) -> torch.Tensor:
    """The tensor of an owned libtorch handle; the handle is used up."""
    # the singular form of this function does not steal, whatever its name says: it leaks the handle
    (tensor,) = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs([_new_capsule(handle, None, None)])
    return tensor


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
