"""Hand-made plans: a small builder that stands in for the passes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from graphc.codegen.native import generate_native
from graphc.ir.types import BY_TORCH_NAME, DType, Location, contiguous_strides
from graphc.program.plan import (
    ARENA,
    EXTERNAL,
    INPUT,
    OUTPUT,
    AtenStep,
    BufferSpec,
    GemmStep,
    KernelStep,
    OutputSpec,
    Plan,
    View,
)
from graphc.program.record import Program
from graphc.runtime.build import build_library
from graphc.runtime.load import LIBRARY, load_program

LINE = Location("model.py", 14, "forward", "fc1")


def dtype_of(dtype: torch.dtype) -> DType:
    return BY_TORCH_NAME[str(dtype).removeprefix("torch.")]


@dataclass
class Emitted:
    """A kernel written by hand."""

    name: str
    text: str
    helpers: tuple[str, ...] = ()

    @property
    def prototype(self) -> str:
        return self.text[self.text.index("static ") + len("static ") :].partition("{")[0].strip()


class PlanBuilder:
    """Builds a plan buffer by buffer and step by step."""

    def __init__(self, name: str = "test") -> None:
        self.plan = Plan(name)
        self.kernel_texts: dict[str, str] = {}

    def _buffer(self, kind: str, dtype: DType, shape: Sequence[int], strides: Sequence[int] | None, **more: Any) -> int:
        shape = tuple(shape)
        strides = contiguous_strides(shape) if strides is None else tuple(strides)
        elements = 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        index = len(self.plan.buffers)
        self.plan.buffers.append(BufferSpec(index, kind, dtype, shape, strides, elements * dtype.itemsize, **more))
        return index

    def input(self, tensor: torch.Tensor) -> int:
        source = sum(spec.kind == INPUT for spec in self.plan.buffers)
        return self._buffer(INPUT, dtype_of(tensor.dtype), tensor.shape, tensor.stride(), source=source)

    def number(self, dtype: DType) -> int:
        source = sum(spec.kind == INPUT for spec in self.plan.buffers)
        return self._buffer(INPUT, dtype, (), (), source=source, host=True, device="host")

    def cell(self, dtype: DType) -> int:
        return self._buffer(ARENA, dtype, (), (), arena_offset=0, host=True, device="host")

    def output(self, dtype: DType, shape: Sequence[int], strides: Sequence[int] | None = None) -> int:
        index = self._buffer(OUTPUT, dtype, shape, strides)
        self.returns(index)
        return index

    def arena(self, dtype: DType, shape: Sequence[int], strides: Sequence[int] | None = None) -> int:
        offset = -(-self.plan.arena_bytes // 64) * 64
        index = self._buffer(ARENA, dtype, shape, strides, arena_offset=offset)
        self.plan.arena_bytes = offset + self.plan.buffers[index].nbytes
        return index

    def external(self, dtype: DType, shape: Sequence[int], strides: Sequence[int] | None = None) -> int:
        return self._buffer(EXTERNAL, dtype, shape, strides)

    def returns(self, index: int, view: tuple[tuple[int, ...], tuple[int, ...], int] | None = None) -> None:
        spec = self.plan.buffers[index]
        shape, strides, offset = view or (spec.shape, spec.strides, 0)
        self.plan.outputs.append(OutputSpec(index, shape, strides, offset, view is None))

    def view(self, index: int) -> View:
        spec = self.plan.buffers[index]
        return View(index, spec.dtype, spec.shape, spec.strides)

    def gemm(self, a: View | int, b: View | int, out: View | int, accumulate: bool = False) -> None:
        views = [self.view(x) if isinstance(x, int) else x for x in (a, b, out)]
        self.plan.steps.append(GemmStep(*views, accumulate, LINE))

    def aten(self, op: str, args: tuple[Any, ...], outs: tuple[int, ...], **kwargs: Any) -> None:
        self.plan.steps.append(AtenStep(op, args, tuple(kwargs.items()), outs, (), LINE))

    def kernel(self, name: str, text: str, *buffers: int, offsets: tuple[int, ...] | None = None) -> None:
        """A kernel given as C text of a function called `name`."""
        self.kernel_texts[name] = text
        self.plan.kernels[name] = name  # type: ignore[assignment]
        self.plan.steps.append(KernelStep(name, buffers, offsets or (0,) * len(buffers), LINE))

    def program(self) -> Program:
        return generate_native(self.plan, lambda name: Emitted(str(name), self.kernel_texts[str(name)]))


def run_plan(builder: PlanBuilder, folder: Path, inputs: Sequence[Any]) -> list[Any]:
    """Generate, build, load and run."""
    return load(builder.program(), folder)(inputs)


def load(program: Program, folder: Path) -> Any:
    """Build and load without the cache."""
    folder = Path(tempfile.mkdtemp(dir=folder))  # a library in use must not be written over
    if program.sources:
        (folder / LIBRARY).write_bytes(build_library(program))
    return load_program(program, folder)
