"""A plan to a program record with Triton kernels."""

from __future__ import annotations

from dataclasses import replace

from graphc.codegen.host import host_text
from graphc.codegen.size_text import has_sizes
from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.foreach import emit_table_kernel
from graphc.codegen.triton.loop_kernels import emit_loop, fits
from graphc.codegen.triton.size_arguments import conditions_of, with_sizes
from graphc.errors import CodegenError
from graphc.program.loops import LoopStep, unroll
from graphc.program.plan import ForeachStep, KernelStep, Plan, Step
from graphc.program.record import PYTHON, Program, Segment
from graphc.program.triton_kernel import HOST_TEXT, TritonKernel, host_source, runs_on_host, triton_source


def generate(plan: Plan, target: str = "") -> Program:
    """The program record of a plan for the Triton backend.

    Args:
        plan: with its kernels in loop IR.
        target: the chip that tiles of matrix products are chosen for (`cuda:90`); "" = a common one.

    Returns:
        A record whose `sources` hold one module per distinct kernel (`softmax.triton.py`) and whose `kernels` hold
        grids, constants and scratch sizes as plain data. Kernels on what lies with the CPU in a program for a device,
        which are about single numbers, are kept in loop IR (`add.loop`) and together in C (`host.c`).

    Raises:
        CodegenError: a kernel cannot be written in Triton.
    """
    sources, kernels = {}, {}
    steps, loops = with_loop_kernels(plan, target)
    conditions = conditions_of(plan.buffers)
    for name, emitted in (triton_kernels(replace(plan, steps=steps), target) | loops).items():
        made = with_sizes(emitted, conditions)
        sources[triton_source(name)] = made.text
        kernels[name] = made.to_plain()
    here = {name: plan.kernels[name] for name in host_kernels(replace(plan, steps=steps))}
    sources |= {host_source(name): str(kernel) for name, kernel in here.items()}
    text = host_text(here)
    if conditions is not None and has_sizes("".join((text, *map(str, here.values())))):
        raise CodegenError(f"{plan.name}: kernels on numbers of the CPU do not take sizes")
    sources |= {HOST_TEXT: text} if text else {}
    return Program(
        name=plan.name,
        backend="triton",
        buffers=list(plan.buffers),
        steps=steps,
        outputs=list(plan.outputs),
        written=plan.written,
        copied=plan.copied,
        exposed=plan.exposed,
        draws=plan.draws,
        arena_bytes=plan.arena_bytes,
        arena_blocks=plan.arena_blocks,
        checks=dict(plan.checks),
        segments=[Segment(PYTHON, 0, len(steps))] if steps else [],
        sources=sources,
        kernels=kernels,
        stats=dict(plan.stats),
    )


def with_loop_kernels(plan: Plan, target: str = "") -> tuple[list[Step], dict[str, TritonKernel]]:
    """The steps of a plan with loops that are one kernel as steps that run it, and these kernels; as for `generate`."""
    steps, found = list[Step](), dict[str, TritonKernel]()
    for step in plan.steps:
        if isinstance(step, LoopStep) and fits(step, target):
            inner = [one.kernel for one in step.steps if isinstance(one, KernelStep)]
            name = f"loop{len(found)}_{inner[-1] if inner else 'product'}"
            found[name], buffers = emit_loop(step, plan, name)
            step = KernelStep(name, buffers, (0,) * len(buffers), step.location)
        steps.append(step)
    return steps, found


def triton_kernels(plan: Plan, target: str = "") -> dict[str, TritonKernel]:
    """The kernels of a plan's steps that a device runs, by name in the plan; `target` as for `generate`.

    Raises:
        CodegenError: a kernel cannot be written in Triton.
    """
    found: dict[str, TritonKernel] = {}
    for step in unroll(plan.steps):
        if isinstance(step, KernelStep) and step.kernel not in found:
            if step.kernel in plan.kernels and not runs_on_host(step.buffers, plan.buffers):
                form = plan.forms.get(step.kernel, "")
                found[step.kernel] = emit_kernel(plan.kernels[step.kernel], target=target, form=form)
        elif isinstance(step, ForeachStep):
            width, numbers = len(step.rows[0]), step.scratch_bytes // 8
            for name, arguments in zip(step.kernels, step.arguments, strict=True):
                if name not in found and any(item.elementwise for item in arguments):
                    found[name] = emit_table_kernel(plan.kernels[name], arguments, width, numbers)
    return found


def host_kernels(plan: Plan) -> list[str]:
    """The kernels that the CPU runs in a program for a device, by name."""
    found: dict[str, None] = {}
    for step in unroll(plan.steps):
        if isinstance(step, KernelStep) and runs_on_host(step.buffers, plan.buffers):
            found[step.kernel] = None
        elif isinstance(step, ForeachStep):
            for name, arguments in zip(step.kernels, step.arguments, strict=True):
                if not any(item.elementwise for item in arguments):
                    found[name] = None
    return list(found)
