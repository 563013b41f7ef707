"""What of a program can be recorded and replayed: told by its steps, before anything runs.

A recording holds launches on one device with their addresses. What Python or the CPU does in between would be done once
only, so it must be known to be the same in every replay, or be able to go before all launches.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from graphc.program.plan import ARENA, CHECKS, INPUT, AtenStep, ForeachStep, GemmStep, KernelStep, Step
from graphc.program.triton_kernel import runs_on_host
from graphc.runtime.aten_calls import overload
from graphc.runtime.device import find_device
from graphc.runtime.triton_module import is_interpreting
from graphc.settings import settings

if TYPE_CHECKING:
    from graphc.runtime.triton_program import TritonProgram

FEWEST_LAUNCHES = 3
"""Fewer are launched as quickly as a recording is replayed."""

_UNSAFE = frozenset(
    getattr(torch.Tag, name)
    for name in ("data_dependent_output", "dynamic_output_shape", "cudagraph_unsafe")
    if hasattr(torch.Tag, name)
)
"""Torch's own marks of calls that look at data, or cannot be recorded."""


def why_not(program: TritonProgram) -> str:
    """Why a program cannot be recorded and replayed, or is not worth it; "" when it can and is."""
    device = program.device
    if not settings().replay:
        return "GRAPHC_REPLAY is off"
    if device is None:
        return "its tensors are the CPU's"
    if is_interpreting() and not device.interpreted:
        return "kernels are run by Triton's interpreter"
    reason = device.cannot_record()
    if reason:
        return reason
    if program.launch_count < FEWEST_LAUNCHES:
        return f"{program.launch_count} launches, which a replay would not make quicker"
    buffers = program.memory.buffers
    names = {spec.device for spec in buffers if not spec.host and find_device(spec.device) is not None}
    if len(names) > 1:
        return f"it has tensors on {' and '.join(sorted(names))}"
    cpu = _Cpu(program)
    for step in program.steps:
        reason = cpu.why_not(step)
        if reason:
            return f"{reason} (line {step.location.line} of {step.location.file})" if step.location.line else reason
    for output in program.program.outputs:
        spec = buffers[output.buffer]
        if spec.kind == ARENA and not spec.host:
            return "a result lies in working memory"
        if cpu.has(spec.index) and spec.index not in cpu.known:
            return "a result on the CPU is not computed there"
    return ""


class _Cpu:
    """What the CPU knows and does, followed step by step.

    Attributes:
        known: buffers of the CPU with contents that it knows by itself.
        read: buffers of the CPU that a device has read.
    """

    def __init__(self, program: TritonProgram) -> None:
        self.program, self.buffers = program, program.memory.buffers
        self.known = {spec.index for spec in self.buffers if spec.kind in (INPUT, CHECKS)}
        self.read: set[int] = set()

    def has(self, index: int) -> bool:
        """Whether a buffer is a Python number or lies with the CPU."""
        return self.buffers[index].host or find_device(self.buffers[index].device) is None

    def why_not(self, step: Step) -> str:
        """Why a step cannot be recorded, or be done before all that is recorded; "" when it can."""
        if isinstance(step, AtenStep):
            return self._why_not_call(step)
        if isinstance(step, GemmStep):
            used = [view.buffer for view in (step.a, step.b, step.out)]
            return "a product on the CPU" if any(map(self.has, used)) else ""
        if isinstance(step, ForeachStep):
            return self._why_not_table(step)
        assert isinstance(step, KernelStep)
        if runs_on_host(step.buffers, self.buffers):
            return self._why_not_here(step)
        used = [index for index in step.buffers if self.has(index)]
        if any(index not in self.known for index in used):
            return f"kernel {step.kernel} computes a Python number"
        if any(not self.buffers[i].host and math.prod(self.buffers[i].shape) != 1 for i in used):
            return f"kernel {step.kernel} reads a tensor of the CPU"
        self.read.update(used)
        return ""

    def _why_not_call(self, step: AtenStep) -> str:
        if not step.op.startswith("aten."):
            return f"{step.op} is not torch's own: what it does on the CPU would be done once only"
        if set(overload(step.op).tags) & _UNSAFE:
            return f"{step.op} looks at data, or torch says that it cannot be recorded"
        used = [*(view.buffer for view in step.views()), *(index for index in step.outs if index >= 0)]
        return f"{step.op} works with the CPU's memory" if any(map(self.has, used)) else ""

    def _why_not_table(self, step: ForeachStep) -> str:
        used = [index for index in step.buffers if self.has(index)]
        if any(index not in self.known for index in used):
            return "an update of what a device has computed for the CPU"
        rows = {row[number] for row in step.rows for number in step.written if self.has(row[number])}
        return self._write(rows)

    def _why_not_here(self, step: KernelStep) -> str:
        kernel = self.program.library.kernel(step.kernel).kernel
        written = set()
        for index, buffer in zip(step.buffers, kernel.buffers, strict=True):
            if buffer.access != "out" and index not in self.known:
                return f"kernel {step.kernel} runs on the CPU, on what a device has computed"
            if buffer.access != "in":
                written.add(index)
        return self._write(written)

    def _write(self, indices: set[int]) -> str:
        self.known |= indices
        return "the CPU changes a number after a kernel has read it" if indices & self.read else ""
