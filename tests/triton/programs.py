"""Plans with Triton kernels, for the tests in the interpreter and on a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from graphc.codegen.triton.program import generate
from graphc.ir.dims import symbol
from graphc.ir.types import f32, f64
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.kernel import Axis, Buffer, Kernel
from graphc.program.plan import KernelStep
from graphc.program.record import Program
from graphc.runtime.triton_program import TritonProgram
from tests.runtime.plans import LINE, PlanBuilder


class TritonPlan(PlanBuilder):
    """A plan builder whose kernels are loop IR."""

    def launch(self, kernel: Kernel, *buffers: int, offsets: tuple[int, ...] | None = None) -> None:
        self.plan.kernels[kernel.name] = kernel
        self.plan.steps.append(KernelStep(kernel.name, buffers, offsets or (0,) * len(buffers), LINE))

    def record(self, device: str = "cpu") -> Program:
        """The program, through JSON, with every buffer on `device`."""
        program = Program.from_json(generate(self.plan).to_json())
        program.buffers = [s if s.host else dataclasses.replace(s, device=device) for s in program.buffers]
        return program

    def run(self, inputs: Sequence[Any], device: str = "cpu") -> list[Any]:
        return TritonProgram(self.record(device))(inputs)


def scale_by_host(n: int) -> Kernel:
    """y = x * s, with s a Python number in its 8-byte cell."""
    b = KernelBuilder((Axis("i", n),))
    s = b.compute("cast", b.load("s", f64, 0), dtype=f32)
    b.store("y", symbol("i"), b.compute("mul", b.load("x", f32, symbol("i")), s))
    return b.finish("scale", (Buffer("x", f32, n, "in"), Buffer("s", f64, 1, "in"), Buffer("y", f32, n, "out")))
