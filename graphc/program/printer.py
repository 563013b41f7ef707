"""A plan as text: buffers, kernels in loop IR, steps in order, outputs."""

from __future__ import annotations

from typing import Any

from graphc.ir.types import Location
from graphc.program.loops import Binding, LoopStep
from graphc.program.plan import ARENA, INPUT, AtenStep, BufferSpec, ForeachStep, GemmStep, KernelStep, Plan, Step, View


def print_plan(plan: Plan) -> str:
    """The scheduled stage as people read it; buffers are `b0`, `b1`, ... in all lines."""
    lines = [f"plan {plan.name} {{  # arena {plan.arena_bytes} bytes"]
    lines += [f"  {_buffer(buffer)}" for buffer in plan.buffers]
    lines += [
        f"  check b{index}[{cell}]: {check.error} {check.message!r}{_note(check.location)}"
        for index, checks in plan.checks.items()
        for cell, check in enumerate(checks)
    ]
    lines.append("")
    for step in plan.steps:
        lines += _lines(plan, step)
    outputs = ", ".join(
        f"b{o.buffer}" if o.whole else f"b{o.buffer} as {list(o.shape)}{{{_list(o.strides)}}}+{o.offset}"
        for o in plan.outputs
    )
    lines += [f"  return {outputs}", "}"]
    return "\n\n".join(["\n".join(lines), *(str(kernel) for kernel in plan.kernels.values())])


def _list(values: tuple[Any, ...]) -> str:
    return ", ".join(str(value) for value in values)


def _buffer(spec: BufferSpec) -> str:
    where = spec.kind
    if spec.kind == INPUT:
        where = f"input {spec.source}"
    if spec.kind == ARENA:
        where = f"arena +{spec.arena_offset}"
    form = " number" if spec.host else f"[{_list(spec.shape)}]{{{_list(spec.strides)}}}"
    return f"b{spec.index}: {spec.dtype.name}{form} {where}, {spec.nbytes} bytes"


def _view(view: View) -> str:
    offset = f"+{view.offset}" if view.offset else ""
    return f"b{view.buffer}{offset}[{_list(view.shape)}]{{{_list(view.strides)}}}"


def _argument(value: Any) -> str:
    if isinstance(value, View):
        return _view(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_argument(item) for item in value)}]"
    return repr(value)


def _lines(plan: Plan, step: Step) -> list[str]:
    """One line, or those of a loop: in it, `b0`, `b1`, ... are its own buffers."""
    if not isinstance(step, LoopStep):
        return [f"  {_step(plan, step)}{_note(step.location)}"]
    lines = [f"  loop {step.length} times {{{_note(step.location)}"]
    for spec, binding in zip(step.specs, step.bindings, strict=True):
        lines.append(
            f"    b{spec.index}: {spec.dtype.name}[{_list(spec.shape)}]{{{_list(spec.strides)}}} {_bound(binding)}"
        )
    for inner in step.steps:
        lines += [f"  {line}" for line in _lines(plan, inner)]
    return [*lines, "  }"]


def _bound(binding: Binding) -> str:
    even, odd = (f"outer b{index}+{offset}" for index, offset in zip(binding.buffers, binding.offsets, strict=True))
    place = even if even == odd else f"{even} or {odd}"
    place += f" + turn * {binding.stride}" if binding.stride else ""
    return place if binding.first < 0 else f"{place}, first outer b{binding.first}+{binding.first_offset}"


def _step(plan: Plan, step: Step) -> str:
    if isinstance(step, KernelStep):
        kernel = plan.kernels[step.kernel]
        arguments = (
            f"{spec.name}=b{buffer}" + (f"+{offset}" if offset else "")
            for spec, buffer, offset in zip(kernel.buffers, step.buffers, step.offsets, strict=True)
        )
        return f"kernel {step.kernel}({', '.join(arguments)}){_form(plan.forms.get(step.kernel, ''))}"
    if isinstance(step, ForeachStep):
        return _foreach(step)
    if isinstance(step, GemmStep):
        sign = "+=" if step.accumulate else "="
        return f"gemm {_view(step.out)} {sign} {_view(step.a)} @ {_view(step.b)}{_form(step.form)}"
    assert isinstance(step, AtenStep)
    return _aten(step)


def _foreach(step: ForeachStep) -> str:
    """The kernels with their arguments, then a line per row."""
    lines = [f"foreach of {len(step.rows)} rows, {step.scratch_bytes} bytes of scratch each"]
    for name, arguments in zip(step.kernels, step.arguments, strict=True):
        found = [f"{item.kind} {item.number}{'[]' if item.elementwise else ''}" for item in arguments]
        lines.append(f"    kernel {name}({', '.join(found)})")
    for buffers, offsets, size in zip(step.rows, step.offsets, step.sizes, strict=True):
        row = [f"b{buffer}" + (f"+{offset}" if offset else "") for buffer, offset in zip(buffers, offsets, strict=True)]
        lines.append(f"    row {', '.join(row)}: {size} elements")
    return "\n".join(lines)


def _aten(step: AtenStep) -> str:
    arguments = [_argument(value) for value in step.args]
    arguments += [f"{name}={_argument(value)}" for name, value in step.kwargs]
    results = ", ".join("_" if buffer < 0 else f"b{buffer}" for buffer in step.outs)
    changed = f"  writes {list(step.mutates)}" if step.mutates else ""
    return f"{results + ' = ' if results else ''}{step.op}({', '.join(arguments)}){changed}{_form(step.form)}"


def _form(form: str) -> str:
    return f"  as {form}" if form else ""


def _note(location: Location) -> str:
    if not location:
        return ""
    module = f" {location.module}" if location.module else ""
    return f"  # {location.file.rpartition('/')[2]}:{location.line}{module}"
