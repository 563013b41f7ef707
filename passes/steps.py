"""Records of library calls: templates filled in, products brought to their plainest form, bytes counted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from graphc.ir.dims import static
from graphc.ir.graph import Attr, Op, Ref
from graphc.ops.extern import LIBRARY_CALL, gives_views, is_library
from graphc.ops.registry import Kind, get
from graphc.passes.layout import view_strides
from graphc.program.loops import LoopStep
from graphc.program.plan import AtenStep, BufferSpec, ForeachStep, GemmStep, KernelStep, Plan, Step, View

GEMM = "gemm"


def call_of(op: Op) -> tuple[str, tuple[Attr, ...], dict[str, Attr], tuple[int, ...]]:
    """Overload, args, kwargs and the operands written to."""
    if op.name == "extern":
        mutates = op.attrs.get("mutates") or ()
        return op.attrs["op"], op.attrs.get("args") or (), op.attrs.get("kwargs") or {}, tuple(mutates)
    call = get(op.name).call
    assert call is not None
    name, args, kwargs = call(op)
    return name, args, dict(kwargs), ()


def operands_read(op: Op) -> Collection[int]:
    """Positions of the operands that the ATen call for an op is given: kernels may need others too."""
    call = get(op.name).call
    if op.name == "extern" or call is None:
        return range(len(op.operands))
    found: set[int] = set()
    pending: list[Attr] = [*call(op)[1], *call(op)[2].values()]
    while pending:
        item = pending.pop()
        if isinstance(item, Ref):
            found.add(item.index)
        elif isinstance(item, tuple):
            pending.extend(item)
    return found


def reason(op: Op) -> str:
    """Why an op is an ATen call."""
    if op.name == "extern":
        return LIBRARY_CALL if is_library(op.attrs["op"]) else "graphc has no rule for this operator"
    kind = get(op.name).kind
    if kind is Kind.CONTRACTION:
        return LIBRARY_CALL
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


def without_lead(view: View) -> View:
    """The same without leading dims along which nothing changes: libraries know a bias by its one dim."""
    lead = 0
    while lead < len(view.shape) - 1 and (view.shape[lead] == 1 or view.strides[lead] == 0):
        lead += 1
    return View(view.buffer, view.dtype, view.shape[lead:], view.strides[lead:], view.offset)


def traffic(plan: Plan) -> tuple[int, int]:
    """Bytes that all steps read and write, each buffer counted once per step that touches it."""
    read = written = 0
    for step in plan.steps:
        if isinstance(step, LoopStep):
            found = [_traffic(plan, inner, step.specs) for inner in step.steps]
            read += step.length * sum(one for one, _ in found)
            written += step.length * sum(other for _, other in found)
        else:
            one, other = _traffic(plan, step, plan.buffers)
            read, written = read + one, written + other
    return read, written


def call_traffic(plan: Plan) -> dict[str, int]:
    """Bytes that ATen calls read and write, by name of the call; those of products of matrices as `GEMM`."""
    found: dict[str, int] = {}

    def add(step: Step, buffers: Sequence[BufferSpec], times: int) -> None:
        if isinstance(step, AtenStep | GemmStep):
            name = step.op if isinstance(step, AtenStep) else GEMM
            found[name] = found.get(name, 0) + times * sum(_traffic(plan, step, buffers))

    for step in plan.steps:
        if isinstance(step, LoopStep):
            for inner in step.steps:
                add(inner, step.specs, step.length)
        else:
            add(step, plan.buffers, 1)
    return found


def _traffic(plan: Plan, step: Step, buffers: Sequence[BufferSpec]) -> tuple[int, int]:
    """The same of one step, which is no loop."""
    if isinstance(step, KernelStep):
        sizes = [
            (min(buffers[index].nbytes, static(buffer.size) * buffer.dtype.itemsize), buffer.access)
            for index, buffer in zip(step.buffers, plan.kernels[step.kernel].buffers, strict=True)
        ]
        return sum(size for size, access in sizes if access == "in"), sum(s for s, access in sizes if access != "in")
    if isinstance(step, ForeachStep):
        read = sum(buffers[index].nbytes for index in {index for row in step.rows for index in row})
        return read, sum(buffers[index].nbytes for index in {row[at] for row in step.rows for at in step.written})
    if isinstance(step, GemmStep):
        return buffers[step.a.buffer].nbytes + buffers[step.b.buffer].nbytes, buffers[step.out.buffer].nbytes
    assert isinstance(step, AtenStep), "a loop in a loop is written out before"
    if gives_views(step.op):
        return 0, 0
    read = sum(buffers[view.buffer].nbytes for view in step.views())
    return read, sum(buffers[index].nbytes for index in step.outs if index >= 0)
