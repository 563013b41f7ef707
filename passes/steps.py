"""Records of library calls: templates filled in, products brought to their plainest form, bytes counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphc.ir.graph import Attr, Op, Ref
from graphc.ops.registry import Kind, get
from graphc.passes.layout import view_strides
from graphc.program.plan import ForeachStep, GemmStep, KernelStep, Plan, View


def call_of(op: Op) -> tuple[str, tuple[Attr, ...], dict[str, Attr], tuple[int, ...]]:
    """Overload, args, kwargs and the operands written to."""
    if op.name == "extern":
        mutates = op.attrs.get("mutates") or ()
        return op.attrs["op"], op.attrs.get("args") or (), op.attrs.get("kwargs") or {}, tuple(mutates)
    call = get(op.name).call
    assert call is not None
    name, args, kwargs = call(op)
    return name, args, dict(kwargs), ()


def reason(op: Op) -> str:
    """Why an op is an ATen call."""
    if op.name == "extern":
        return "graphc has no rule for this operator"
    kind = get(op.name).kind
    if kind is Kind.CONTRACTION:
        return "library call"
    return "the order of colliding writes matters" if kind is Kind.SCATTER else "kernels do not hold its dtype"


def resolve(template: Attr, op: Op, views: Sequence[View | None], numbers: list[int]) -> Any:
    """A template of a call with views for its operands; notes which operands the tensors in it are, in order."""
    if isinstance(template, Ref):
        view = views[template.index]
        if view is None:
            return op.operands[template.index]
        numbers.append(template.index)
        return view
    if isinstance(template, tuple):
        return tuple(resolve(item, op, views, numbers) for item in template)
    return template


def normal_product(a: View, b: View, out: View) -> tuple[View, View, View]:
    """A product as few-dimensional as it goes: one matrix b for all batches makes their rows one matrix a."""
    batch = out.shape[:-2]
    rows, inner, columns = out.shape[-2], a.shape[-1], out.shape[-1]
    if all(size == 1 for size in b.shape[:-2]):
        flat = rows
        for size in batch:
            flat *= size
        a_strides = view_strides(a.shape, a.strides, (flat, inner)) if a.shape[:-2] == batch else None
        out_strides = view_strides(out.shape, out.strides, (flat, columns))
        if a_strides is not None and out_strides is not None:
            b = View(b.buffer, b.dtype, b.shape[-2:], b.strides[-2:], b.offset)
            return (
                View(a.buffer, a.dtype, (flat, inner), a_strides, a.offset),
                b,
                View(out.buffer, out.dtype, (flat, columns), out_strides, out.offset),
            )
    return _broadcast(a, batch), _broadcast(b, batch), out


def _broadcast(view: View, batch: tuple[int, ...]) -> View:
    own = view.shape[:-2]
    lead = len(batch) - len(own)
    strides = tuple(
        0 if d < lead or (own[d - lead] == 1 and size != 1) else view.strides[d - lead] for d, size in enumerate(batch)
    )
    return View(view.buffer, view.dtype, (*batch, *view.shape[-2:]), (*strides, *view.strides[-2:]), view.offset)


def traffic(plan: Plan) -> tuple[int, int]:
    """Bytes that all steps read and write, each buffer counted once per step that touches it."""
    read = written = 0
    for step in plan.steps:
        if isinstance(step, KernelStep):
            for index, buffer in zip(step.buffers, plan.kernels[step.kernel].buffers, strict=True):
                size = min(plan.buffers[index].nbytes, int(buffer.size) * buffer.dtype.itemsize)  # type: ignore[arg-type]
                if buffer.access == "in":
                    read += size
                else:
                    written += size
        elif isinstance(step, ForeachStep):
            for row in step.rows:
                read += sum(plan.buffers[index].nbytes for index in row)
                written += sum(plan.buffers[row[at]].nbytes for at in step.written)
        elif isinstance(step, GemmStep):
            read += plan.buffers[step.a.buffer].nbytes + plan.buffers[step.b.buffer].nbytes
            written += plan.buffers[step.out.buffer].nbytes
        else:
            read += sum(plan.buffers[view.buffer].nbytes for view in step.views())
            written += sum(plan.buffers[index].nbytes for index in step.outs if index >= 0)
    return read, written
