"""When the steps of a program use which buffers. Used where programs are written and where they are run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from graphc.program.loops import LoopStep
from graphc.program.plan import EXTERNAL, AtenStep, BufferSpec, GemmStep, KernelStep, OutputSpec, Step

if TYPE_CHECKING:
    from graphc.loopir.kernel import Kernel


def step_buffers(step: Step) -> list[int]:
    """Buffers a step reads or writes, with repeats."""
    if isinstance(step, AtenStep):
        return [*(view.buffer for view in step.views()), *(index for index in step.outs if index >= 0)]
    if isinstance(step, GemmStep):
        return [step.a.buffer, step.b.buffer, step.out.buffer]
    return step.buffers() if isinstance(step, LoopStep) else list(step.buffers)


def written_buffers(step: Step, kernels: Mapping[str, Kernel]) -> set[int]:
    """Buffers that a step stores to, or may store to."""
    if isinstance(step, KernelStep):
        arguments = zip(kernels[step.kernel].buffers, step.buffers, strict=True)
        return {index for buffer, index in arguments if buffer.access != "in"}
    if isinstance(step, GemmStep):
        return {step.out.buffer}
    if isinstance(step, LoopStep):
        inner = {index for one in step.steps for index in written_buffers(one, kernels)}
        return {index for number in inner for index in step.bindings[number].buffers}
    return set(step_buffers(step))


def last_external_uses(
    buffers: Sequence[BufferSpec], steps: Sequence[Step], outputs: Iterable[OutputSpec]
) -> dict[int, list[int]]:
    """Per step number the EXTERNAL buffers that nothing after it needs; outputs are needed for good."""
    kept = {output.buffer for output in outputs}
    last = {index: number for number, step in enumerate(steps) for index in step_buffers(step)}
    ended: dict[int, list[int]] = {}
    for index, number in last.items():
        if buffers[index].kind == EXTERNAL and index not in kept:
            ended.setdefault(number, []).append(index)
    return ended
