"""A plan to a program record with Triton kernels."""

from __future__ import annotations

from graphc.codegen.triton.emit import emit_kernel
from graphc.program.plan import Plan
from graphc.program.record import PYTHON, Program, Segment


def generate(plan: Plan, target: str = "") -> Program:
    """The program record of a plan for the Triton backend.

    Args:
        plan: with its kernels in loop IR.
        target: the chip that tiles of matrix products are chosen for (`cuda:90`); "" = a common one.

    Returns:
        A record whose `sources` hold one module per distinct kernel (`softmax.triton.py`) and whose `kernels` hold
        grids, constants and scratch sizes as plain data.

    Raises:
        CodegenError: a kernel cannot be written in Triton.
    """
    sources, kernels = {}, {}
    for name, kernel in plan.kernels.items():
        made = emit_kernel(kernel, target=target)
        sources[f"{name}.triton.py"] = made.text
        kernels[name] = made.to_plain()
    return Program(
        name=plan.name,
        backend="triton",
        buffers=list(plan.buffers),
        steps=list(plan.steps),
        outputs=list(plan.outputs),
        written=plan.written,
        copied=plan.copied,
        exposed=plan.exposed,
        draws=plan.draws,
        arena_bytes=plan.arena_bytes,
        checks=dict(plan.checks),
        segments=[Segment(PYTHON, 0, len(plan.steps))] if plan.steps else [],
        sources=sources,
        kernels=kernels,
        stats=dict(plan.stats),
    )
