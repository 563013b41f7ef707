"""What a plan calls, as numbers: kernels, products and ATen calls, those of loops once per turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from graphc.passes.transient import EMPTY
from graphc.program.loops import LoopStep
from graphc.program.plan import AtenStep, ForeachStep, GemmStep, KernelStep, Plan, Step


def call_counts(plan: Plan, backend: str) -> dict[str, Any]:
    """The counts among `Plan.stats` that steps tell: see `graphc.passes.plan.make_plan`."""
    loops = [step for step in plan.steps if isinstance(step, LoopStep)]
    steps = [*plan.steps, *(inner for loop in loops for inner in loop.steps)]
    return {
        "kernels": len(plan.kernels),
        "kernel_calls": _count(plan.steps, _launches if backend == "c" else _device_launches),
        "gemm_calls": _count(plan.steps, lambda step: isinstance(step, GemmStep)),
        "loops": {
            f"loop {number}": f"{loop.length} turns of {len(loop.steps)} steps" for number, loop in enumerate(loops)
        },
        "extern": dict(Counter(step.op for step in steps if isinstance(step, AtenStep) and step.op != EMPTY)),
    }


def _count(steps: Sequence[Step], of: Callable[[Step], int]) -> int:
    """The sum over all steps, those of loops once per turn."""
    return sum(step.length * _count(step.steps, of) if isinstance(step, LoopStep) else of(step) for step in steps)


def _launches(step: Step) -> int:
    return len(step.kernels) if isinstance(step, ForeachStep) else isinstance(step, KernelStep)


def _device_launches(step: Step) -> int:
    """Without what the CPU does with the numbers of a table."""
    if isinstance(step, ForeachStep):
        return sum(any(item.elementwise for item in found) for found in step.arguments)
    return _launches(step)
