"""What of a program can be recorded and replayed: told by its steps, before anything runs.

A recording holds launches on one device with their addresses. What Python or the CPU does in between would be done once
only, so it must be known to be the same in every replay, or be able to go before all launches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from graphc.program.plan import ARENA, CHECKS, INPUT, AtenStep, BufferSpec, ForeachStep, GemmStep, KernelStep, Step
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
    known = {spec.index for spec in buffers if spec.kind == INPUT}
    for step in program.steps:
        reason = _why_not_step(step, buffers, known, program)
        if reason:
            return f"{reason} (line {step.location.line} of {step.location.file})" if step.location.line else reason
    for output in program.program.outputs:
        spec = buffers[output.buffer]
        if spec.kind == ARENA and not spec.host:
            return "a result lies in working memory"
        if (spec.host or find_device(spec.device) is None) and spec.index not in known:
            return "a result on the CPU is not computed there"
    return ""


def _why_not_step(step: Step, buffers: Sequence[BufferSpec], known: set[int], program: TritonProgram) -> str:
    """Why a step cannot be recorded. `known` are buffers of the CPU with contents that the CPU can know by itself."""

    def with_cpu(indices: Sequence[int]) -> list[int]:
        return [i for i in indices if buffers[i].host or find_device(buffers[i].device) is None]

    if isinstance(step, AtenStep):
        used = [*(view.buffer for view in step.views()), *(index for index in step.outs if index >= 0)]
        if not step.op.startswith("aten."):
            return f"{step.op} is not torch's own: what it does on the CPU would be done once only"
        if set(overload(step.op).tags) & _UNSAFE:
            return f"{step.op} looks at data, or torch says that it cannot be recorded"
        return f"{step.op} works with the CPU's memory" if with_cpu(used) else ""
    if isinstance(step, GemmStep):
        return "a product on the CPU" if with_cpu([view.buffer for view in (step.a, step.b, step.out)]) else ""
    if isinstance(step, ForeachStep):
        unknown = [i for i in with_cpu(step.buffers) if i not in known and buffers[i].kind != CHECKS]
        return "an update of what a device has computed for the CPU" if unknown else ""
    assert isinstance(step, KernelStep)
    if runs_on_host(step.buffers, buffers):
        kernel = program.host_kernel(step.kernel)
        for index, buffer in zip(step.buffers, kernel.kernel.buffers, strict=True):
            if buffer.access != "out" and index not in known and buffers[index].kind != CHECKS:
                return f"kernel {step.kernel} runs on the CPU, on what a device has computed"
            known.add(index)
        return ""
    unknown = [i for i in with_cpu(step.buffers) if i not in known]
    if unknown:
        return f"kernel {step.kernel} computes a Python number"
    large = [i for i in with_cpu(step.buffers) if not buffers[i].host and math.prod(buffers[i].shape) != 1]
    return f"kernel {step.kernel} reads a tensor of the CPU" if large else ""
