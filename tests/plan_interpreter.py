"""Runs a plan with the oracles: the loop-IR interpreter for kernels, torch for library calls.

The arena is one byte array filled with garbage, and so is every output, so that a value read before it is written, or
after its memory was given to another one, shows.
"""

from __future__ import annotations

import builtins
import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from graphc.ir.graph import Named
from graphc.ir.types import UNFAILED, DType
from graphc.loopir.interpreter import run as run_kernel
from graphc.loopir.numpy_ops import numpy_dtype
from graphc.loopir.verifier import verify
from graphc.ops.extern import overload, own_returns, torch_constant
from graphc.passes.foreach_tables import ELEMENTS
from graphc.program.loops import unroll
from graphc.program.plan import (
    ARENA,
    CHECKS,
    EXTERNAL,
    INPUT,
    AtenStep,
    BufferSpec,
    ForeachStep,
    GemmStep,
    KernelStep,
    Plan,
    View,
)

GARBAGE = 0xFB
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def run_plan(plan: Plan, inputs: Sequence[torch.Tensor | bool | int | float]) -> list[Any]:
    """Run a plan; inputs that it writes are changed in place.

    Args:
        plan: a plan for the CPU.
        inputs: one per graph input.

    Returns:
        One item per output: tensors, or numbers for host scalars.
    """
    for kernel in plan.kernels.values():
        verify(kernel)
    return _Run(plan, inputs).run()


class _Run:
    def __init__(self, plan: Plan, inputs: Sequence[torch.Tensor | bool | int | float]) -> None:
        self.plan, self.inputs = plan, inputs
        self.arena = np.full(plan.arena_bytes, GARBAGE, np.uint8)
        self.external: dict[int, torch.Tensor] = {}
        self.memory: dict[int, Bytes] = {}
        for spec in plan.buffers:
            if spec.kind == INPUT:
                self.memory[spec.index] = _input_bytes(spec, inputs[spec.source])
            elif spec.kind == ARENA:
                assert spec.arena_offset % 64 == 0
                assert spec.arena_offset + spec.nbytes <= max(plan.arena_bytes, spec.arena_offset)
                self.memory[spec.index] = self.arena[spec.arena_offset : spec.arena_offset + spec.nbytes]
            elif spec.kind == CHECKS:
                self.memory[spec.index] = np.full(spec.shape, UNFAILED, np.int64).view(np.uint8)
            elif spec.kind != EXTERNAL:
                self.memory[spec.index] = np.full(spec.nbytes, GARBAGE, np.uint8)

    def run(self) -> list[Any]:
        for step in unroll(self.plan.steps):
            if isinstance(step, KernelStep):
                self.kernel(step)
            elif isinstance(step, ForeachStep):
                self.rows(step)
            elif isinstance(step, GemmStep):
                self.gemm(step)
            else:
                self.call(step)
        return [self.output(number) for number in range(len(self.plan.outputs))]

    def flat(self, index: int) -> Bytes:
        """All bytes of a buffer, from its first element on."""
        if index in self.external:
            tensor, spec = self.external[index], self.plan.buffers[index]
            return _tensor_bytes(tensor, spec.nbytes)
        return self.memory[index]

    def kernel(self, step: KernelStep) -> None:
        kernel = self.plan.kernels[step.kernel]
        arrays = {}
        for buffer, index, offset in zip(kernel.buffers, step.buffers, step.offsets, strict=True):
            dtype = numpy_dtype(buffer.dtype)
            data = self.flat(index)
            usable = data[: data.size // dtype.itemsize * dtype.itemsize]
            arrays[buffer.name] = usable.view(dtype)[offset:]
        run_kernel(kernel, arrays)
        self.raise_failed()

    def rows(self, step: ForeachStep) -> None:
        """Kernels over a table of rows that needs nothing but the buffers of its rows."""
        for name, arguments in zip(step.kernels, step.arguments, strict=True):
            kernel = self.plan.kernels[name]
            for row, offsets, size in zip(step.rows, step.offsets, step.sizes, strict=True):
                arrays = {}
                for buffer, item in zip(kernel.buffers, arguments, strict=True):
                    assert item.kind == "row", "only rows' own buffers are known here"
                    dtype, data = numpy_dtype(buffer.dtype), self.flat(row[item.number])
                    usable = data[: data.size // dtype.itemsize * dtype.itemsize]
                    arrays[buffer.name] = usable.view(dtype)[offsets[item.number] :]
                run_kernel(kernel, arrays, {ELEMENTS: size})

    def raise_failed(self) -> None:
        for index, checks in self.plan.checks.items():
            for check, value in zip(checks, self.memory[index].view(np.int64), strict=True):
                if value != UNFAILED:
                    raise getattr(builtins, check.error)(check.message.replace("{value}", str(value)))

    def tensor(self, view: View) -> torch.Tensor:
        data, dtype = self.flat(view.buffer), getattr(torch, view.dtype.torch_name)
        if data.size == 0:
            return torch.empty_strided(view.shape, view.strides, dtype=dtype)
        whole = torch.from_numpy(data[: data.size // view.dtype.itemsize * view.dtype.itemsize]).view(dtype)
        return whole.as_strided(view.shape, view.strides, view.offset)

    def gemm(self, step: GemmStep) -> None:
        product = torch.matmul(self.tensor(step.a), self.tensor(step.b))
        assert product.shape == step.out.shape
        target = self.tensor(step.out)
        target.copy_(target + product if step.accumulate else product)

    def call(self, step: AtenStep) -> None:
        if step.op == "aten._local_scalar_dense.default":
            (view,) = step.args
            self.memory[step.outs[0]].view(np.int64 if view.dtype.is_integral else np.float64)[0] = self.tensor(
                view
            ).item()
            return
        call = overload(step.op)
        answer = call(*[self.value(item) for item in step.args], **{key: self.value(item) for key, item in step.kwargs})
        results = own_returns(call, answer)
        for result, index in zip(results, step.outs, strict=False):
            if index < 0:
                continue
            spec = self.plan.buffers[index]
            assert spec.kind == EXTERNAL
            if tuple(result.stride()) != spec.strides:
                result = torch.empty_strided(spec.shape, spec.strides, dtype=result.dtype).copy_(result)
            self.external[index] = result

    def value(self, item: Any) -> Any:
        if isinstance(item, View):
            spec = self.plan.buffers[item.buffer]
            return self.number(spec) if spec.host else self.tensor(item)
        if isinstance(item, tuple):
            return [self.value(part) for part in item]
        return torch_constant(item) if isinstance(item, (Named, DType)) else item

    def number(self, spec: BufferSpec) -> int | float:
        return self.memory[spec.index].view(numpy_dtype(spec.dtype))[0].item()  # type: ignore[no-any-return]

    def output(self, number: int) -> Any:
        out = self.plan.outputs[number]
        spec = self.plan.buffers[out.buffer]
        if spec.kind == INPUT:
            tensor = self.inputs[spec.source]
            if out.whole or not isinstance(tensor, torch.Tensor):
                return tensor
            return tensor.as_strided(out.shape, out.strides, tensor.storage_offset() + out.offset)
        if spec.host:
            return self.number(spec)
        if out.buffer in self.external:  # the memory lives as long as this tensor does
            tensor = self.external[out.buffer]
            return tensor.as_strided(out.shape, out.strides, tensor.storage_offset() + out.offset)
        return self.tensor(View(out.buffer, spec.dtype, out.shape, out.strides, out.offset))


def _input_bytes(spec: BufferSpec, value: torch.Tensor | bool | int | float) -> Bytes:
    if spec.host:
        return np.array([value], numpy_dtype(spec.dtype)).view(np.uint8)
    assert isinstance(value, torch.Tensor)
    assert tuple(value.shape) == spec.shape
    assert 0 in spec.shape or all(
        n == 1 or a == b for n, a, b in zip(spec.shape, value.stride(), spec.strides, strict=True)
    )
    return _tensor_bytes(value, spec.nbytes)


def _tensor_bytes(tensor: torch.Tensor, nbytes: int) -> Bytes:
    if nbytes == 0:
        return np.empty(0, np.uint8)
    address = (ctypes.c_uint8 * nbytes).from_address(tensor.data_ptr())
    return np.frombuffer(address, np.uint8)
