"""Runs a program whose kernels are Triton text: on CUDA, or on any tensors in Triton's interpreter.

Steps are bound once into closures over buffer numbers; a call makes the outputs and one arena with torch's allocator,
on torch's current stream, and runs them in order. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from graphc.errors import LoweringError, UnsupportedError, add_location
from graphc.ir.types import HOST, f64, i64
from graphc.program.lifetimes import last_external_uses
from graphc.program.loops import unroll
from graphc.program.plan import (
    ARENA,
    CHECKS,
    EXTERNAL,
    INPUT,
    OUTPUT,
    AtenStep,
    BufferSpec,
    ForeachStep,
    GemmStep,
    KernelStep,
    OutputSpec,
    View,
)
from graphc.program.record import Program
from graphc.program.triton_kernel import TritonKernel, host_source, runs_on_host, triton_source
from graphc.runtime.aten_calls import AtenCall, run_call, run_gemm
from graphc.runtime.checks import DeviceCells, raise_failed
from graphc.runtime.host_kernels import HostKernel, array_at
from graphc.runtime.tensors import bump_versions, same_strides, torch_dtype, view_into, with_strides
from graphc.runtime.triton_foreach import TableStep, over_blocks
from graphc.runtime.triton_launcher import CudaKernel, InterpretedKernel, require_interpreter, torch_type
from graphc.runtime.triton_module import is_interpreting

_BUILD_THREADS = 8

Runner = Callable[["_Frame"], None]


class _Frame:
    """What one running call owns."""

    __slots__ = ("arenas", "cells", "inputs", "made", "numbers", "streams")

    def __init__(self, inputs: Sequence[Any]) -> None:
        self.inputs = inputs
        self.made: dict[int, torch.Tensor] = {}
        self.numbers: dict[int, Any] = {}
        self.cells: dict[int, torch.Tensor] = {}  # numbers that kernels compute
        self.arenas: dict[str, torch.Tensor] = {}
        self.streams: dict[int, int] = {}


class TritonProgram:
    """A program with Triton kernels.

    Args:
        program: the record; `sources` and `kernels` as `graphc.codegen.triton.program` makes them.

    Raises:
        BackendUnavailableError: triton is missing, the device is too old, or there are CPU tensors and the interpreter
            is off.
        CompilerError: a kernel does not compile.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._buffers = program.buffers
        self.kernels = {
            name: TritonKernel.from_plain(program.sources[triton_source(name)], plain)
            for name, plain in program.kernels.items()
        }
        self._cells = {
            index: DeviceCells(found, self._buffers[index].device) for index, found in program.checks.items()
        }
        self._interpreted: dict[str, InterpretedKernel] = {}
        self._hosted: dict[str, HostKernel] = {}
        self._compiled: dict[tuple[str, int], CudaKernel] = {}
        steps = unroll(program.steps)  # launches are the same either way
        ended = last_external_uses(program.buffers, steps, program.outputs)
        self._runners: list[Runner] = []
        for number, step in enumerate(steps):
            self._runners.append(self._runner(step))
            if ended.get(number):
                self._runners.append(_forget(ended[number]))
        self._outputs = [self._output_maker(program.buffers[o.buffer], o) for o in program.outputs]
        self._fresh = [spec for spec in program.buffers if spec.kind == OUTPUT and not spec.host]
        self._arena_devices = sorted({s.device for s in program.buffers if s.kind == ARENA and not s.host})
        self._calls_torch = any(not isinstance(step, (KernelStep, ForeachStep)) for step in steps)
        self._prepare()

    def _prepare(self) -> None:
        """Compile the kernels with all pointers aligned, several at a time: the assembler is a process of its own."""
        kernels = list(self._compiled.values())
        if len(kernels) > 1:
            with ThreadPoolExecutor(_BUILD_THREADS) as pool:
                list(pool.map(CudaKernel.prepare, kernels))
        elif kernels:
            kernels[0].prepare()

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
        raise_failed(self._cells.values())
        frame = _Frame(inputs)
        written = self.program.written
        was_enabled = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            self._allocate(frame)
            if self._calls_torch:
                with torch._C._DisableAutocast():
                    for run in self._runners:
                        run(frame)
            else:
                for run in self._runners:
                    run(frame)
            for cells in self._cells.values():
                cells.fetch()
            return [make(frame) for make in self._outputs]
        finally:
            torch._C._set_grad_enabled(was_enabled)
            if written:
                bump_versions([inputs[index] for index in written])

    # ------------------------------------------------------------------------------------------------------- memory

    def _allocate(self, frame: _Frame) -> None:
        try:
            for device in self._arena_devices:
                frame.arenas[device] = torch.empty(self.program.arena_bytes, dtype=torch.uint8, device=device)
            for spec in self._fresh:
                frame.made[spec.index] = torch.empty_strided(
                    spec.shape, spec.strides, dtype=torch_dtype(spec.dtype), device=spec.device
                )
        except torch.OutOfMemoryError as error:
            outputs = sum(spec.nbytes for spec in self._fresh)
            error.args = (
                f"{error}\nThe compiled program {self.program.name} needs {self.program.arena_bytes} bytes of working "
                f"memory and {outputs} bytes for its outputs.",
            )
            raise

    def _tensor_of(self, frame: _Frame) -> Callable[[View], Any]:
        return lambda view: self._view(frame, view)

    def _view(self, frame: _Frame, view: View) -> Any:
        spec = self._buffers[view.buffer]
        if spec.host:
            return self._number(frame, spec)
        if spec.kind == ARENA:
            storage = frame.arenas[spec.device].untyped_storage()
            start = spec.arena_offset // view.dtype.itemsize + view.offset
            empty = torch.empty(0, dtype=torch_dtype(view.dtype), device=storage.device)
            return empty.set_(storage, start, view.shape, view.strides)
        return view_into(self._base(frame, spec), view.dtype, view.shape, view.strides, view.offset)

    def _base(self, frame: _Frame, spec: BufferSpec) -> torch.Tensor:
        if spec.kind == INPUT:
            base = frame.inputs[spec.source]
            assert isinstance(base, torch.Tensor)
            return base
        if spec.kind == CHECKS:
            return self._cells[spec.index].values
        return frame.made[spec.index]

    def _number(self, frame: _Frame, spec: BufferSpec) -> Any:
        if spec.kind == INPUT:
            return frame.inputs[spec.source]
        if spec.index not in frame.numbers:  # a kernel has computed it
            frame.numbers[spec.index] = frame.cells[spec.index].item()
        return frame.numbers[spec.index]

    # -------------------------------------------------------------------------------------------------------- steps

    def _runner(self, step: Any) -> Runner:
        if isinstance(step, KernelStep):
            return self._kernel_runner(step)
        if isinstance(step, ForeachStep):
            return self._foreach_runner(step)
        if isinstance(step, GemmStep):
            return lambda frame: run_gemm(step, self._tensor_of(frame))
        call = AtenCall(step)

        def run(frame: _Frame) -> None:
            results = run_call(call, self._tensor_of(frame))
            for index, result in zip(step.outs, results, strict=True):
                if index >= 0:
                    self._store(frame, self._buffers[index], result, step)

        return run

    def _store(self, frame: _Frame, spec: BufferSpec, result: Any, step: AtenStep) -> None:
        """Put a result of an ATen call where the plan wants it."""
        if spec.host:
            frame.numbers[spec.index] = result.item() if isinstance(result, torch.Tensor) else result
            return
        wanted = torch_dtype(spec.dtype)
        if not isinstance(result, torch.Tensor) or result.shape != spec.shape or result.dtype is not wanted:
            found = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, torch.Tensor) else repr(result)
            raise LoweringError(f"{step.op} was expected to return {wanted} {spec.shape}, got {found}", step.location)
        if spec.kind != EXTERNAL:
            self._view(frame, View(spec.index, spec.dtype, spec.shape, spec.strides)).copy_(result)
        elif same_strides(result, spec.strides):
            frame.made[spec.index] = with_strides(result, spec.strides)
        else:
            copy = torch.empty_strided(spec.shape, spec.strides, dtype=wanted, device=result.device)
            frame.made[spec.index] = copy.copy_(result)

    def _kernel_runner(self, step: KernelStep) -> Runner:
        devices = {self._buffers[i].device for i in step.buffers if not self._buffers[i].host}
        cuda = sorted(device for device in devices if device.startswith("cuda"))
        if len(cuda) > 1:
            raise UnsupportedError(f"kernel {step.kernel} has operands on {' and '.join(cuda)}", step.location)
        if runs_on_host(step.buffers, self._buffers):
            return self._host_runner(step)
        if is_interpreting() or (not cuda and (devices or not torch.cuda.is_available())):
            return self._interpreted_runner(step, cuda[0] if cuda else "cpu")
        return self._cuda_runner(step, torch.device(cuda[0] if cuda else self._main_device()))

    def _main_device(self) -> str:
        """Where arithmetic on Python numbers alone runs."""
        return next((spec.device for spec in self._buffers if spec.device.startswith("cuda")), "cuda")

    def _interpreted_runner(self, step: KernelStep, device: str) -> Runner:
        require_interpreter()
        kernel = self._interpreted.get(step.kernel)
        if kernel is None:
            kernel = self._interpreted[step.kernel] = InterpretedKernel(self.kernels[step.kernel])
        run_kernel = kernel
        dtypes = [torch_type(kind) for _, kind in self.kernels[step.kernel].signature]
        places = list(zip(step.buffers, step.offsets, dtypes))
        reports = [self._cells[index] for index in step.buffers if self._buffers[index].kind == CHECKS]

        def run(frame: _Frame) -> None:
            tensors = [self._flat(frame, index, offset, dtype, device) for index, offset, dtype in places]
            try:
                run_kernel(tensors)
            except Exception as error:
                add_location(error, step.location)
                raise
            for cells in reports:
                cells.wait()
            raise_failed(reports)

        return run

    def _flat(self, frame: _Frame, index: int, offset: int, dtype: torch.dtype, device: str) -> torch.Tensor:
        """A buffer from element `offset` on as a tensor whose only meaning is its address and its dtype."""
        spec = self._buffers[index]
        if spec.host:
            return self._cell(frame, spec, torch.device(device)).view(dtype)[:1]
        if spec.kind == ARENA:
            arena = frame.arenas[spec.device]
            storage, start = arena.untyped_storage(), arena.storage_offset() + spec.arena_offset
        else:
            base = self._base(frame, spec)
            storage, start = base.untyped_storage(), base.storage_offset() * base.element_size()
        # a tensor without elements has no address, and needs none: nothing of an empty buffer is touched
        size = (1,) if storage.nbytes() >= start + (offset + 1) * dtype.itemsize else (0,)
        found = torch.empty(0, dtype=dtype, device=storage.device)
        found.set_(storage, start // dtype.itemsize + offset if size[0] else 0, size, (1,))
        return found if str(found.device) == device else self._brought(frame, spec, torch.device(device))

    def _host_runner(self, step: KernelStep) -> Runner:
        kernel = self._host_kernel(step.kernel)
        places = [(index, offset, buffer.dtype) for index, offset, buffer in zip(
            step.buffers, step.offsets, kernel.kernel.buffers, strict=True)]  # fmt: skip
        reports = [self._cells[index] for index in step.buffers if self._buffers[index].kind == CHECKS]

        def run(frame: _Frame) -> None:
            found = [self._flat(frame, index, offset, torch_dtype(dtype), "cpu") for index, offset, dtype in places]
            kernel.at([tensor.data_ptr() for tensor in found])
            raise_failed(reports)

        return run

    def _host_kernel(self, name: str) -> HostKernel:
        if name not in self._hosted:
            self._hosted[name] = HostKernel(self.program.sources[host_source(name)])
        return self._hosted[name]

    # ---------------------------------------------------------------------------------------------- tables of rows

    def _foreach_runner(self, step: ForeachStep) -> Runner:
        names = [name for name in step.kernels if host_source(name) not in self.program.sources]
        wide = next(item for found in step.arguments for item in found if item.kind == "row" and item.elementwise)
        device = torch.device(self._buffers[step.rows[0][wide.number]].device)
        rows = [
            [self._locator(index, offset, torch.device(self._buffers[index].device))
             for index, offset in zip(row, offsets, strict=True)]
            for row, offsets in zip(step.rows, step.offsets, strict=True)
        ]  # fmt: skip
        cells = self._cells[step.checks] if step.cells else None
        table = TableStep(
            step,
            {name: self._host_kernel(name) for name in step.kernels if name not in names},
            rows,
            {at: self._number_array(index) for at, index in enumerate(step.shared)},
            cells.values.numpy()[step.first_cell :] if cells is not None else np.zeros(0, np.int64),
            lambda: raise_failed([cells] if cells is not None else []),
            device,
        )
        launches = [self._table_launch(step, name, table) for name in names]

        def run(frame: _Frame) -> None:
            try:
                stream = self._stream(frame, device)
                words, aligned = table.table(frame, stream)
                for launch in launches:
                    launch(frame, words, aligned)
            except Exception as error:
                add_location(error, step.location)
                raise

        return run

    def _number_array(self, index: int) -> Callable[[_Frame], Any]:
        """A shared operand of kernels on numbers."""
        spec = self._buffers[index]

        def find(frame: _Frame) -> Any:
            tensor = self._flat(frame, index, 0, torch_dtype(spec.dtype), "cpu")
            return array_at(tensor.data_ptr(), spec.dtype).copy()

        return find

    def _table_launch(
        self, step: ForeachStep, name: str, table: TableStep
    ) -> Callable[[_Frame, torch.Tensor, bool], None]:
        arguments = step.arguments[step.kernels.index(name)]
        shared = [step.shared[item.number] for item in arguments if item.kind == "shared"]
        count, device = len(table.blocks), table.device
        rows = len(step.rows)
        variants = [over_blocks(self.kernels[name], count, rows, aligned) for aligned in (False, True)]
        if device.type == "cpu" or is_interpreting():
            kernels = [InterpretedKernel(made) for made in variants]
            dtypes = [torch_type(kind) for _, kind in self.kernels[name].signature[2 : 2 + len(shared)]]

            def interpret(frame: _Frame, words: torch.Tensor, aligned: bool) -> None:
                found = [self._flat(frame, i, 0, dtype, str(device)) for i, dtype in zip(shared, dtypes, strict=True)]
                kernels[aligned]([words, table.blocks, *found])

            return interpret
        number = device.index if device.index is not None else torch.cuda.current_device()
        launchers = [CudaKernel(made, number) for made in variants]
        self._compiled[f"{name} over {count} blocks", number] = launchers[True]
        locate = [self._locator(index, 0, device) for index in shared]

        def run(frame: _Frame, words: torch.Tensor, aligned: bool) -> None:
            pointers = [words.data_ptr(), table.blocks.data_ptr(), *(find(frame) for find in locate)]
            with torch.cuda.device(number):
                launchers[aligned](pointers, self._stream(frame, device))

        return run

    def _stream(self, frame: _Frame, device: torch.device) -> int:
        """The stream of a device on which the call runs; 0 for the CPU."""
        if device.type == "cpu":
            return 0
        number = device.index if device.index is not None else torch.cuda.current_device()
        if number not in frame.streams:
            frame.streams[number] = torch.cuda.current_stream(number).cuda_stream
        return frame.streams[number]

    def _cuda_runner(self, step: KernelStep, device: torch.device) -> Runner:
        number = device.index if device.index is not None else torch.cuda.current_device()
        key = (step.kernel, number)
        kernel = self._compiled.get(key)
        if kernel is None:
            kernel = self._compiled[key] = CudaKernel(self.kernels[step.kernel], number)
        launch = kernel
        locate = [self._locator(index, offset, device) for index, offset in zip(step.buffers, step.offsets)]
        from triton.runtime.driver import driver

        stream_of = driver.active.get_current_stream

        def run(frame: _Frame) -> None:
            pointers = [find(frame) for find in locate]
            stream = frame.streams.get(number)
            if stream is None:
                stream = frame.streams[number] = stream_of(number)
            if torch.cuda.current_device() == number:
                launch(pointers, stream)
            else:
                with torch.cuda.device(number):
                    launch(pointers, stream)

        return run

    def _locator(self, index: int, offset: int, device: torch.device) -> Callable[[_Frame], int]:
        """How to find the address of a kernel's argument in a call."""
        spec = self._buffers[index]
        skip = offset * spec.dtype.itemsize
        if spec.host:
            return lambda frame: self._kept(frame, spec, self._cell(frame, spec, device)).data_ptr()
        if not spec.device.startswith("cuda") and device.type == "cuda":
            # a 0-d tensor of the CPU among operands of the device
            return lambda frame: self._kept(frame, spec, self._brought(frame, spec, device)).data_ptr() + skip
        if spec.kind == ARENA:
            total, place = skip + spec.arena_offset, spec.device
            return lambda frame: frame.arenas[place].data_ptr() + total
        if spec.kind == CHECKS:
            address = self._cells[index].values.data_ptr() + skip
            return lambda frame: address
        if spec.kind == INPUT:
            source = spec.source
            return lambda frame: frame.inputs[source].data_ptr() + skip
        return lambda frame: frame.made[index].data_ptr() + skip

    def _cell(self, frame: _Frame, spec: BufferSpec, device: torch.device) -> torch.Tensor:
        """A Python number as the 8-byte cell that kernels read, or write when no step has given it before."""
        dtype = torch_dtype(f64 if spec.dtype.is_float else i64)
        if spec.kind == INPUT or spec.index in frame.numbers:
            return torch.full((1,), self._number(frame, spec), dtype=dtype, device=device)
        if spec.index not in frame.cells:
            frame.cells[spec.index] = torch.zeros((1,), dtype=dtype, device=device)
        return frame.cells[spec.index].to(device)

    def _brought(self, frame: _Frame, spec: BufferSpec, device: torch.device) -> torch.Tensor:
        """A copy on the kernel's device of a buffer that lies elsewhere."""
        whole = View(spec.index, spec.dtype, spec.shape, spec.strides)
        found: torch.Tensor = self._view(frame, whole)
        return found.to(device)

    def _kept(self, frame: _Frame, spec: BufferSpec, tensor: torch.Tensor) -> torch.Tensor:
        """Hold a temporary until the call ends, so that its memory is not given to another one."""
        frame.made[-1 - spec.index] = tensor
        return tensor

    # ------------------------------------------------------------------------------------------------------ outputs

    def _output_maker(self, spec: BufferSpec, output: OutputSpec) -> Callable[[_Frame], Any]:
        index, source = spec.index, spec.source
        if spec.host or spec.device == HOST:
            return lambda frame: self._number(frame, spec)
        if spec.kind == INPUT and output.whole:
            return lambda frame: frame.inputs[source]
        if spec.kind != ARENA and output.whole:
            return lambda frame: frame.made[index]
        view = View(index, spec.dtype, output.shape, output.strides, output.offset)
        if spec.kind == ARENA:
            return lambda frame: self._view(frame, view).clone()
        return lambda frame: self._view(frame, view)


def _forget(indices: Sequence[int]) -> Runner:
    def run(frame: _Frame) -> None:
        for index in indices:
            frame.made.pop(index, None)

    return run
