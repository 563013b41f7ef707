"""Runs a program whose kernels are Triton text: on a GPU, or on any tensors in Triton's interpreter.

Steps are bound once into closures over buffer numbers; a call makes the outputs and one arena with torch's allocator,
on torch's current stream, and runs them in order. Nothing waits for the device. What need not be launched again step by
step is recorded and replayed as a whole: see `graphc.runtime.replay`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch.autograd.graph import increment_version

from graphc.errors import BackendUnavailableError, UnsupportedError, add_location
from graphc.ir.types import HOST, Location, f64, i64
from graphc.program.facts import EntryFact, FactCheck, TensorFact
from graphc.program.lifetimes import last_external_uses
from graphc.program.loops import unroll
from graphc.program.plan import (
    ARENA,
    CHECKS,
    INPUT,
    BufferSpec,
    ForeachStep,
    GemmStep,
    KernelStep,
    OutputSpec,
    Step,
    View,
)
from graphc.program.record import Program
from graphc.program.triton_kernel import TritonKernel, runs_on_host, triton_source
from graphc.runtime import launch_list
from graphc.runtime.aten_calls import AtenCall, at_whole_accesses, reads_whole_accesses, run_call, run_gemm
from graphc.runtime.checks import raise_failed
from graphc.runtime.device import Device, find_device, index_of, present_device
from graphc.runtime.frame import Frame, Memory
from graphc.runtime.host_kernels import array_at, numpy_dtype
from graphc.runtime.host_list import HostLibrary, HostRun
from graphc.runtime.launches import Launches
from graphc.runtime.native_facts import guard_library, native_check
from graphc.runtime.replay import Replay, make_room
from graphc.runtime.tensors import torch_dtype
from graphc.runtime.triton_foreach import TableStep, over_blocks
from graphc.runtime.triton_launcher import DeviceKernel, InterpretedKernel, require_interpreter, torch_type
from graphc.runtime.triton_module import is_interpreting

_BUILD_THREADS = 8
_COPY = "aten._to_copy.default"
"""A call whose result can as well be stored where it is wanted."""

Runner = Callable[[Frame], None]
TableRunner = Callable[[Frame, torch.Tensor, bool], None]


@dataclass(frozen=True)
class Part:
    """What one or more steps do.

    Args:
        run: does it.
        on_host: only the CPU works, on its own memory.
        writes: buffers that the CPU stores to, where `run` does not tell itself.
    """

    run: Runner
    on_host: bool = False
    writes: tuple[int, ...] = ()


class TritonProgram:
    """A program with Triton kernels.

    Args:
        program: the record; `sources` and `kernels` as `graphc.codegen.triton.program` makes them.

    Attributes:
        device, index: the accelerator that the program is for, None and 0 when all its tensors are the CPU's; of
            several the first one.
        indices: numbers of all devices that it has tensors on, or the one that it runs on.
        memory: its buffers.
        parts: its steps, in order.
        parts_of: numbers of the parts that each step is in.
        launches_of: launches and library calls of each step.
        tables: its steps over tables of rows, by number of the step.
        library: its kernels that the CPU runs.
        brought: what the CPU keeps and kernels on the device read: Python numbers and 0-d tensors, by buffer.
        launch_count: launches and library calls on the device, made one by one.

    Raises:
        BackendUnavailableError: triton is missing, the device is too old, or there are CPU tensors and the interpreter
            is off.
        CompilerError: a kernel does not compile.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.kernels = {
            name: TritonKernel.from_plain(program.sources[triton_source(name)], plain)
            for name, plain in program.kernels.items()
        }
        self._buffers = program.buffers
        self.device, self.indices = self._find_devices()
        self.index = self.indices[0]
        self.memory = Memory(program)
        self._interpreted: dict[str, InterpretedKernel] = {}
        self.library = HostLibrary(program)
        self._compiled: dict[tuple[str, int], DeviceKernel] = {}
        self._lists: list[_Run] = []
        self.tables: dict[int, TableStep] = {}
        self.brought: set[int] = set()
        self.launch_count = 0
        self.steps = unroll(program.steps)  # launches are the same either way
        ended = last_external_uses(program.buffers, self.steps, program.outputs)
        self.parts: list[Part] = []
        self.parts_of: list[range] = []
        self.launches_of: list[int] = []
        for number, step in enumerate(self.steps):
            known, counted = len(self.parts), self.launch_count
            self._add(number, step)
            self.parts_of.append(range(min(known, len(self.parts) - 1), len(self.parts)))
            self.launches_of.append(self.launch_count - counted)
            if ended.get(number):
                self.parts.append(Part(_forget(ended[number])))
        self._outputs = [self._output_maker(program.buffers[o.buffer], o) for o in program.outputs]
        self._calls_torch = any(not isinstance(step, (KernelStep, ForeachStep)) for step in self.steps)
        self._prepare()
        # no cycle: its memory goes with the last reference to the program
        self._replay = Replay(cast(TritonProgram, weakref.proxy(self)))
        self.memory.make_room = partial(make_room, weakref.ref(self._replay))

    def _find_devices(self) -> tuple[Device | None, list[int]]:
        """Their kind and numbers; where arithmetic on Python numbers alone is to run, the machine's own."""
        found: dict[int, Device] = {}
        for name in sorted({spec.device for spec in self._buffers if not spec.host}):
            device = find_device(name)
            if device is None:
                continue
            index = 0 if name == device.kind else index_of(name, device)
            refusal = "" if is_interpreting() else device.refusal(index)
            if refusal:
                raise BackendUnavailableError(f"{self.program.name}: {refusal}")
            found[index_of(name, device)] = device
        if found:
            first = next(iter(found))
            return found[first], [number for number in found if found[number] is found[first]]
        has_tensors = any(not spec.host for spec in self._buffers)
        present = None if has_tensors or is_interpreting() else present_device()
        return present, [present.current() if present is not None else 0]

    def _prepare(self) -> None:
        """Compile the launches as they are expected, several at a time: the assembler is a process of its own.

        The longest are begun with, so that none is left to the end alone.
        """
        variants = dict.fromkeys(variant for launches in self._lists for variant in launches.variants())
        builds: list[Callable[[], object]] = [
            partial(kernel.bound, number, unaligned)
            for kernel, number, unaligned in sorted(variants, key=lambda variant: variant[0].effort(), reverse=True)
        ]
        if any(part.on_host for part in self.parts):
            builds.append(self.library.prepare)
        if self._lists:
            builds.append(launch_list.prepare)
        builds.append(guard_library)
        if len(builds) > 1:
            with ThreadPoolExecutor(_BUILD_THREADS) as pool:
                running = [pool.submit(copy_context().run, build) for build in builds]  # with this thread's settings
                for one in running:
                    one.result()
        for launches in self._lists:
            launches.finish()
            launches.tell_scratch()

    def lend(self, numbers: Sequence[int]) -> None:
        """Users drop these outputs, as old gradients, before they call again."""
        self._replay.lend(numbers)

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Run the program.

        Args:
            inputs: one tensor or Python number per graph input, as the guards have checked them.

        Returns:
            One tensor or number per graph output; tensors may still be being computed on the current stream.

        Raises:
            What an ATen call in the program raises, of its own class, with the user's source line added.
            What eager raises for bad data, likewise; on a GPU the call that comes after the device got there does.
            torch.OutOfMemoryError: with the program's own peak added.
        """
        raise_failed(self.memory.cells.values())
        written = self.program.written
        was_enabled = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            outputs = self._replay(inputs)
            return self.launch(inputs) if outputs is None else outputs
        finally:
            torch._C._set_grad_enabled(was_enabled)
            if written:
                increment_version([inputs[index] for index in written])

    def launch(self, inputs: Sequence[Any]) -> list[Any]:
        """Run it step by step."""
        frame = self.memory.begin(inputs)
        self.memory.allocate(frame)
        self.run(frame, self.parts)
        self.fetch()
        return self.outputs(frame)

    def run_alone(self, inputs: Sequence[Any]) -> Callable[[], object]:
        """What runs the program's steps on these inputs, as often as wanted: for measuring; outputs are not handed out.

        Where that can be, the launches are recorded, so that what is measured is the device. It has run once by then.
        """
        frame = self.memory.begin(inputs)
        self.memory.allocate(frame)

        def run() -> None:
            with torch.no_grad():
                self.run(frame, self.parts)

        run()
        if self.device is None or is_interpreting() or self.device.cannot_record():
            return run
        return self.device.record(self.index, self.device.pool(), run).replay

    def run(self, frame: Frame, parts: Sequence[Part]) -> None:
        """Do some of the program's parts."""
        if not self._calls_torch:
            for part in parts:
                part.run(frame)
            return
        with torch._C._DisableAutocast():
            for part in parts:
                part.run(frame)

    def fact_check(self, entries: Sequence[EntryFact], tensors: Sequence[TensorFact]) -> FactCheck | None:
        """A check of guards in C, or None where that cannot be; see `FactChecker`."""
        library = guard_library()
        return None if library is None else native_check(library, entries, tensors)

    def fetch(self) -> None:
        """Have the device tell the CPU what kernels found in data, when it gets there."""
        for cells in self.memory.cells.values():
            cells.fetch()

    def outputs(self, frame: Frame) -> list[Any]:
        """What a call returns."""
        return [make(frame) for make in self._outputs]

    def report(self) -> dict[str, str]:
        """How the program is launched, in words, for `explain`."""
        if self.device is None or self.device.interpreted or is_interpreting():
            found = {"kernels": "run by Triton's interpreter"}
        else:
            by_triton = next((item.one_by_one for item in self._lists if item.one_by_one), "")
            runs = len(self._lists)
            found = {
                "kernels": f"launched by Triton one by one: {by_triton}"
                if by_triton
                else f"{sum(map(len, self._lists))} launches in {runs} foreign calls"
            }
            notes = [note for kernel in self._compiled.values() for note in kernel.notes]
            found |= {"compiled again": "; ".join(notes)} if notes else {}
        numbers = self.library.report()
        found |= {"numbers": numbers} if numbers else {}
        return {**found, "replay": self._replay.report()}

    # -------------------------------------------------------------------------------------------------------- steps

    def _add(self, number: int, step: Step) -> None:
        if isinstance(step, KernelStep):
            self._add_kernel(step)
            return
        if isinstance(step, ForeachStep):
            self._add_table(number, step)
            return
        self.launch_count += 1
        memory = self.memory  # closures hold no program, so that there is no cycle
        if isinstance(step, GemmStep):
            self.parts.append(Part(lambda frame: run_gemm(step, memory.tensor_of(frame))))
            return
        assert not isinstance(step, (KernelStep, ForeachStep))
        call = AtenCall(step)  # type: ignore[arg-type]  # loops have been unrolled
        moves = reads_whole_accesses(call.step.op)

        is_copy = step.op == _COPY and isinstance(step.args[0], View)  # type: ignore[union-attr]

        def run(frame: Frame) -> None:
            if is_copy and call.step.outs[0] in frame.fixed:
                memory.copy(frame, call.step)
                return
            tensor_of = memory.tensor_of(frame)
            find = (lambda view: at_whole_accesses(tensor_of(view))) if moves else tensor_of
            results = run_call(call, find) if call.step.mutates else memory.with_room(lambda: run_call(call, find))
            for index, result in zip(call.step.outs, results, strict=True):
                if index >= 0:
                    memory.store(frame, index, result, call.step)

        self.parts.append(Part(run))

    def _add_kernel(self, step: KernelStep) -> None:
        names = {self._buffers[i].device for i in step.buffers if not self._buffers[i].host}
        there = sorted(name for name in names if find_device(name) is not None)
        if len(there) > 1:
            raise UnsupportedError(f"kernel {step.kernel} has operands on {' and '.join(there)}", step.location)
        if runs_on_host(step.buffers, self._buffers):
            last = self.parts[-1].run if self.parts else None
            if not isinstance(last, HostRun):
                last = HostRun(self.memory, self.library)
                self.parts.append(Part(last, on_host=True))
            last.add(step)
            return
        device = find_device(there[0]) if there else self.device
        index = index_of(there[0], device) if there and device is not None else self.index
        self.launch_count += len(self.kernels[step.kernel].launches)
        if device is None or device.interpreted or is_interpreting():
            place = torch.device("cpu") if device is None else device.place(index)
            self._note_brought(step.buffers)
            self.parts.append(Part(self._interpreted_runner(step, place)))
            return
        launches = self._launches(device, index)
        self._note_brought(step.buffers, launches)
        kernel = self._device_kernel(step.kernel, self.kernels[step.kernel], device, index, step.location)
        places = [self.memory.in_table(i, offset) for i, offset in zip(step.buffers, step.offsets, strict=True)]
        launches.add(kernel, places, step.location)

    def _note_brought(self, buffers: Sequence[int], launches: _Run | None = None) -> None:
        """Kernels on the device read these; some may lie with the CPU."""
        found = {i for i in buffers if self._is_here(i)}
        if self.device is not None:
            self.brought |= found
        if launches is not None:
            launches.brought |= found

    def _is_here(self, index: int) -> bool:
        """Whether a buffer is a Python number or lies with the CPU."""
        return self._buffers[index].host or find_device(self._buffers[index].device) is None

    def _launches(self, device: Device, index: int) -> _Run:
        """What the next kernel on a device is appended to: the last part of the program, if it is of that kind."""
        last = self.parts[-1].run if self.parts else None
        if isinstance(last, _Run) and last.device is device and last.index == index:
            return last
        made = _Run(device, index, self.memory)
        self._lists.append(made)
        self.parts.append(Part(made))
        return made

    def _device_kernel(
        self, key: str, kernel: TritonKernel, device: Device, index: int, location: Location
    ) -> DeviceKernel:
        found = self._compiled.get((key, index))
        if found is None:
            found = self._compiled[key, index] = DeviceKernel(kernel, index, device, location)
        return found

    def _interpreted_runner(self, step: KernelStep, place: torch.device) -> Runner:
        require_interpreter()
        kernel = self._interpreted.get(step.kernel)
        if kernel is None:
            kernel = self._interpreted[step.kernel] = InterpretedKernel(self.kernels[step.kernel])
        run_kernel, memory, cells = kernel, self.memory, self.memory.cells
        dtypes = [torch_type(kind) for _, kind in self.kernels[step.kernel].signature]
        places = list(zip(step.buffers, step.offsets, dtypes))
        reports = [cells[index] for index in step.buffers if self._buffers[index].kind == CHECKS]
        perform = _performer(self.device)
        is_made_up = self.device is not None and self.device.interpreted

        def run(frame: Frame) -> None:
            tensors = [memory.flat(frame, index, offset, dtype, place) for index, offset, dtype in places]
            try:
                perform(lambda: run_kernel(tensors))
            except Exception as error:
                add_location(error, step.location)
                raise
            if is_made_up:
                return
            for found in reports:
                found.wait()
            raise_failed(reports)

        return run

    # ---------------------------------------------------------------------------------------------- tables of rows

    def _add_table(self, number: int, step: ForeachStep) -> None:
        table = self._table(step)
        self.tables[number] = table
        names = [name for name in step.kernels if not self.library.has(name)]
        launches = [self._table_launch(step, name, table) for name in names]
        stream_of = self._stream_of(table.device)

        def compute(frame: Frame) -> None:
            try:
                frame.words[number] = table.compute(frame)
            except Exception as error:
                add_location(error, step.location)
                raise

        def run(frame: Frame) -> None:
            try:
                words = frame.words.get(number)
                if words is None:
                    words = frame.words[number] = table.plain.copy()
                aligned = table.locate(frame, words)
                sent = frame.sent.get(number)
                if sent is None:
                    sent = table.send(words, stream_of())
                for launch in launches:
                    launch(frame, sent, aligned)
            except Exception as error:
                add_location(error, step.location)
                raise

        written = tuple(row[at] for row in step.rows for at in step.written if self._is_here(row[at]))
        self.parts += [Part(compute, True, written), Part(run)] if table.has_numbers else [Part(run)]

    def _table(self, step: ForeachStep) -> TableStep:
        wide = next(item for found in step.arguments for item in found if item.kind == "row" and item.elementwise)
        device = self.memory.place_of(self._buffers[step.rows[0][wide.number]].device)
        rows = [
            [self._locator(index, offset) for index, offset in zip(row, offsets, strict=True)]
            for row, offsets in zip(step.rows, step.offsets, strict=True)
        ]
        cells = self.memory.cells[step.checks] if step.cells else None
        return TableStep(
            step,
            self.library,
            rows,
            {at: self._number_array(index) for at, index in enumerate(step.shared)},
            cells,
            device,
        )

    def _number_array(self, index: int) -> Callable[[Frame], Any]:
        """A shared operand of kernels on numbers."""
        spec, memory, cpu = self._buffers[index], self.memory, torch.device("cpu")
        if spec.host:
            cell = numpy_dtype(f64 if spec.dtype.is_float else i64)
            return lambda frame: np.array([memory.number(frame, spec)], cell)

        def find(frame: Frame) -> Any:
            tensor = memory.flat(frame, index, 0, torch_dtype(spec.dtype), cpu)
            return array_at(tensor.data_ptr(), spec.dtype).copy()

        return find

    def _table_launch(self, step: ForeachStep, name: str, table: TableStep) -> TableRunner:
        arguments = step.arguments[step.kernels.index(name)]
        shared = [step.shared[item.number] for item in arguments if item.kind == "shared"]
        count, rows = len(table.blocks), len(step.rows)
        variants = [over_blocks(self.kernels[name], count, rows, aligned) for aligned in (False, True)]
        self.launch_count += len(variants[0].launches)
        self._note_brought(shared)
        device = self.device
        if device is None or device.interpreted or is_interpreting():
            kernels = [InterpretedKernel(made) for made in variants]
            dtypes = [torch_type(kind) for _, kind in self.kernels[name].signature[2 : 2 + len(shared)]]
            perform, memory = _performer(device), self.memory

            def interpret(frame: Frame, words: torch.Tensor, aligned: bool) -> None:
                found = [memory.flat(frame, i, 0, dtype, table.device) for i, dtype in zip(shared, dtypes)]
                perform(lambda: kernels[aligned]([words, table.blocks, *found]))

            return interpret
        first, index = self.memory.more_places(2), table.device.index
        runs = []
        for made in variants:
            launches = _Run(device, index, self.memory)
            self._note_brought(shared, launches)
            kernel = DeviceKernel(made, index, device, step.location)
            places = [(first, 0), (first + 1, 0), *(self.memory.in_table(i, 0) for i in shared)]
            launches.add(kernel, places, step.location)
            runs.append(launches)
            launches.tell_scratch()
        self._compiled[f"{name} over {count} blocks of {rows} rows", index] = kernel
        self._lists.append(runs[True])  # the other one is compiled when it is needed

        def run(frame: Frame, words: torch.Tensor, aligned: bool) -> None:
            frame.table[first], frame.table[first + 1] = words.data_ptr(), table.blocks.data_ptr()
            runs[aligned](frame)

        return run

    def _stream_of(self, place: torch.device) -> Callable[[], int]:
        """How to find the stream on which a call runs; 0 for the CPU."""
        device, index = self.device, place.index
        if device is None or place.type == "cpu":
            return lambda: 0
        return lambda: device.stream(index)

    def _locator(self, index: int, offset: int) -> Callable[[Frame], int]:
        """How to find the address of a row's buffer in a call."""
        spec, memory = self._buffers[index], self.memory
        skip = offset * spec.dtype.itemsize
        if spec.host:
            cpu = torch.device("cpu")

            def find(frame: Frame) -> int:
                frame.made[-2 - index] = cell = memory.cell(frame, spec, cpu)
                return cell.data_ptr()

            return find
        if spec.kind == ARENA:
            total, name = skip + spec.arena_offset, spec.device
            return lambda frame: frame.arenas[name].data_ptr() + total
        if spec.kind == INPUT:
            source = spec.source
            return lambda frame: frame.inputs[source].data_ptr() + skip
        return lambda frame: memory.base(frame, spec).data_ptr() + skip

    # ------------------------------------------------------------------------------------------------------ outputs

    def _output_maker(self, spec: BufferSpec, output: OutputSpec) -> Callable[[Frame], Any]:
        index, source, memory = spec.index, spec.source, self.memory
        if spec.host or spec.device == HOST:
            return lambda frame: memory.number(frame, spec)
        if spec.kind == INPUT and output.whole:
            return lambda frame: frame.inputs[source]
        if spec.kind != ARENA and output.whole:
            return lambda frame: frame.made[index]
        view = View(index, spec.dtype, output.shape, output.strides, output.offset)
        if spec.kind == ARENA:
            return lambda frame: memory.view(frame, view).clone()
        return lambda frame: memory.view(frame, view)


class _Run(Launches):
    """Launches as a part of a program.

    Attributes:
        brought: what the CPU keeps and the kernels read, by buffer.
    """

    def __init__(self, device: Device, index: int, memory: Memory) -> None:
        super().__init__(device, index, memory.scratch_place(device.place(index)), memory.nowhere)
        self.device, self.index, self._memory = device, index, memory
        self.brought: set[int] = set()

    def tell_scratch(self) -> None:
        """Have calls make as much scratch memory as its kernels need."""
        self._memory.scratch_place(self.device.place(self.index), self.scratch_bytes)

    def __call__(self, frame: Frame) -> None:
        for number in self.brought:
            if number not in frame.kept:
                self._memory.bring(frame, number, self.device.place(self.index))
        stream = frame.streams.get(self.index)
        if stream is None:
            stream = frame.streams[self.index] = self.device.stream(self.index)
        with nullcontext() if self.device.current() == self.index else self.device.guard(self.index):
            self.run(frame.table, stream)


def _performer(device: Device | None) -> Callable[[Callable[[], None]], None]:
    """How an interpreted kernel is run: a device that is made up may want to keep it for later."""
    perform: Callable[[Callable[[], None]], None] | None = getattr(device, "perform", None)
    return perform if perform is not None else lambda work: work()


def _forget(indices: Sequence[int]) -> Runner:
    def run(frame: Frame) -> None:
        for index in indices:
            frame.made.pop(index, None)

    return run
