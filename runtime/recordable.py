"""What of a program can be recorded and replayed: told by its steps, before anything runs.

    stage 0   copies from the CPU                launched in every call
    stage 1   forward, backward, update          recorded
    stage 2   loss.item()                        launched in every call

A recording holds launches on one device with their addresses. What Python or the CPU does in between would be done once
only. So what the CPU does goes before all launches of its stage, where these leave alone what it works on; else there a
new stage begins, as it does where a call looks at data, or works with memory of the CPU.

A program on several devices has stages of each, and between them what works on several:

    stage 0   forward on device 0                recorded there
    stage 1   copy of what it made to device 1   launched in every call
    stage 2   forward, backward, update          recorded on device 1
    stage 3   copy of the gradient to device 0   launched in every call
    stage 4   backward, update                   recorded on device 0

Nothing else orders devices among each other: a copy waits on the current streams of both for what came before, and what
comes after waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from graphc.program.lifetimes import step_buffers
from graphc.program.plan import ARENA, CHECKS, EXTERNAL, INPUT, AtenStep, ForeachStep, GemmStep, KernelStep, Step
from graphc.runtime.aten_calls import overload
from graphc.runtime.device import find_device, index_of
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
_LOOKS = frozenset(("aten._linalg_check_errors.default",))
"""Calls without such a mark that look at data, to raise errors."""


@dataclass
class Stage:
    """Parts of a program that are recorded together, or launched in every call.

    Attributes:
        reason: why they are launched in every call; "" when they are recorded.
        device: number of the device that they work on; None: on several, or on none.
        before: numbers of the parts that the CPU does first.
        parts: numbers of the parts that follow.
        steps: numbers of the steps behind these.
        launches: launches and library calls in them.
        finds: buffers of the CPU that calls in it fill.
        handed_on: tensors on the device that its calls return and a recorded stage reads: they need an address.
    """

    reason: str = ""
    device: int | None = None
    before: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    launches: int = 0
    finds: set[int] = field(default_factory=set)
    handed_on: set[int] = field(default_factory=set)


def stages_of(
    program: TritonProgram,
    refused: Mapping[int, str] = MappingProxyType({}),
    lost: Mapping[int, str] = MappingProxyType({}),
) -> tuple[list[Stage], str]:
    """The stages of a program in order; none, and why, when nothing can be recorded or is worth it.

    Args:
        refused: numbers of parts that could not be recorded when that was tried, with what was said.
        lost: likewise numbers of devices.
    """
    reason = _refusal(program)
    if reason:
        return [], reason
    cutter = _Cutter(program, refused, lost)
    stages, reason = cutter.stages()
    if reason:
        return [], reason
    first = next((stage.reason for stage in stages if stage.reason), "")
    for stage in stages:
        if not stage.reason and stage.launches < FEWEST_LAUNCHES:
            stage.reason = f"{stage.launches} launches, which a replay would not make quicker"
    if all(stage.reason for stage in stages):
        return [], first or (stages[0].reason if stages else "0 launches, which a replay would not make quicker")
    return stages, _hand_on(program, stages)


def _refusal(program: TritonProgram) -> str:
    """Why nothing can be recorded, whatever the steps are."""
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
    buffers = program.memory.buffers
    kinds = {found.kind for spec in buffers if not spec.host and (found := find_device(spec.device)) is not None}
    if len(kinds) > 1:
        return f"it has tensors on devices of kinds {' and '.join(sorted(kinds))}"
    if any(
        buffers[output.buffer].kind == ARENA and not buffers[output.buffer].host for output in program.program.outputs
    ):
        return "a result lies in working memory"
    return ""


def _hand_on(program: TritonProgram, stages: Sequence[Stage]) -> str:
    """Say of stages what they hand on; why that cannot be done, or ""."""
    buffers = program.memory.buffers
    used = {i for stage in stages if not stage.reason for n in stage.steps for i in step_buffers(program.steps[n])}
    for stage in (stage for stage in stages if stage.reason):
        calls = [step for n in stage.steps if isinstance(step := program.steps[n], AtenStep)]
        for spec in (buffers[index] for step in calls for index in step.outs if index in used):
            if spec.kind != EXTERNAL or find_device(spec.device) is None:
                continue
            if any(size > 1 and not stride for size, stride in zip(spec.shape, spec.strides, strict=True)):
                return "a call that is made every time returns a tensor with several elements at one place"
            stage.handed_on.add(spec.index)
    return ""


class _Cutter:
    """What the CPU knows and does, followed part by part.

    Attributes:
        known: buffers of the CPU with contents that it has at this point.
        read: buffers of the CPU that launches of the newest stage read.
    """

    def __init__(self, program: TritonProgram, refused: Mapping[int, str], lost: Mapping[int, str]) -> None:
        self.program, self.buffers, self.refused, self.lost = program, program.memory.buffers, refused, lost
        self.known = {spec.index for spec in self.buffers if spec.kind in (INPUT, CHECKS)}
        self.read: set[int] = set()
        self.found: list[Stage] = []
        self._steps: list[list[int]] = [[] for _ in program.parts]
        for number, parts in enumerate(program.parts_of):
            for part in parts:
                self._steps[part].append(number)

    def stages(self) -> tuple[list[Stage], str]:
        """The stages, or none and why nothing can be recorded."""
        for number, part in enumerate(self.program.parts):
            steps = [self.program.steps[n] for n in self._steps[number]]
            if not steps:  # it lets go of memory
                self._newest().parts.append(number)
                continue
            reason = self._do_here(number, steps) if part.on_host else self._launch(number, steps)
            if reason:
                return [], reason
        return self.found, ""

    def has(self, index: int) -> bool:
        """Whether a buffer is a Python number or lies with the CPU."""
        return self.buffers[index].host or find_device(self.buffers[index].device) is None

    # -------------------------------------------------------------------------------------------------------- stages

    def _newest(self) -> Stage:
        if not self.found:
            self.found.append(Stage())
        return self.found[-1]

    def _begin(self, reason: str = "", device: int | None = None) -> Stage:
        self.read = set()
        self.found.append(Stage(reason, device))
        return self.found[-1]

    def _devices_of(self, steps: list[Step]) -> dict[int, str]:
        """The devices that steps work on, by number; for numbers alone the program's own."""
        assert self.program.device is not None
        names = {self.buffers[i].device for step in steps for i in step_buffers(step) if not self.has(i)}
        found = {index_of(name, self.program.device): name for name in sorted(names)}
        return found or {self.program.index: self.program.device.kind}

    def _do_here(self, number: int, steps: list[Step]) -> str:
        """Work of the CPU goes before the launches of the newest stage, if it may."""
        stage = self._newest()
        written = set(self.program.parts[number].writes)
        for step in steps:
            read, stored = self._works_on(step)
            if not read - written <= self.known:
                return _located(f"{_called(step)} runs on the CPU, on what a device has computed", step)
            written |= stored
        if stage.reason or written & self.read:  # calls may use memory of the CPU that is something else by now
            stage = self._begin()
        self.known |= written
        stage.before.append(number)
        return ""

    def _works_on(self, step: Step) -> tuple[set[int], set[int]]:
        """Buffers of the CPU that work there reads, and kernels store to."""
        if isinstance(step, ForeachStep):
            return {index for index in step.buffers if self.has(index)}, set()
        assert isinstance(step, KernelStep)
        kernel = self.program.library.kernel(step.kernel).kernel
        arguments = list(zip(step.buffers, kernel.buffers, strict=True))
        read = {index for index, buffer in arguments if buffer.access != "out"}
        return read, {index for index, buffer in arguments if buffer.access != "in"}

    def _launch(self, number: int, steps: list[Step]) -> str:
        """Launches go to the newest stage, if that is of their kind."""
        used = {index for step in steps for index in step_buffers(step) if self.has(index)}
        for step in steps:
            if isinstance(step, KernelStep) and not used <= self.known:
                return _located(f"kernel {step.kernel} computes a Python number", step)
        devices = self._devices_of(steps)
        device = next(iter(devices)) if len(devices) == 1 else None
        reason = self.refused.get(number) or next((why for step in steps if (why := self._why_not(step))), "")
        if device is None:
            reason = reason or _located(f"{_called(steps[0])} works on {' and '.join(devices.values())}", steps[0])
        else:
            reason = reason or self.lost.get(device, "")
        stage = self._newest()
        has_launches = any(self._steps[part] for part in stage.parts)
        if not has_launches and not stage.finds:
            stage.reason, stage.device = reason, device
        elif device != stage.device or bool(reason) != bool(stage.reason) or used & stage.finds:
            stage = self._begin(reason, device)
        stage.parts.append(number)
        stage.steps += self._steps[number]
        stage.launches += sum(self.program.launches_of[n] for n in self._steps[number])
        self.read |= used
        if reason:
            stage.finds |= used - self.known
            self.known |= used
        return ""

    # ---------------------------------------------------------------------------------------------------- single steps

    def _why_not(self, step: Step) -> str:
        """Why launches of a step cannot be recorded; "" when they can."""
        if isinstance(step, AtenStep):
            return _located(self._why_not_call(step), step)
        if isinstance(step, GemmStep):
            used = [view.buffer for view in (step.a, step.b, step.out)]
            return _located("a product on the CPU", step) if any(map(self.has, used)) else ""
        if isinstance(step, KernelStep):
            used = [index for index in step.buffers if self.has(index)]
            if any(not self.buffers[i].host and math.prod(self.buffers[i].shape) != 1 for i in used):
                return _located(f"kernel {step.kernel} reads a tensor of the CPU", step)
        return ""

    def _why_not_call(self, step: AtenStep) -> str:
        if not step.op.startswith("aten."):
            return f"{step.op} is not torch's own: what it does on the CPU would be done once only"
        if step.op in _LOOKS or set(overload(step.op).tags) & _UNSAFE:
            return f"{step.op} looks at data, or torch says that it cannot be recorded"
        used = [*(view.buffer for view in step.views()), *(index for index in step.outs if index >= 0)]
        return f"{step.op} works with the CPU's memory" if any(map(self.has, used)) else ""


def _called(step: Step) -> str:
    if isinstance(step, AtenStep):
        return step.op
    return f"kernel {step.kernel}" if isinstance(step, KernelStep) else "an update of many tensors"


def _located(reason: str, step: Step) -> str:
    line, file = step.location.line, step.location.file
    return f"{reason} (line {line} of {file})" if reason and line else reason
