"""`foreach` ops: the kernels of one row, run over a table of rows.

The body is planned like any program, for one row of a size that stands for all: kernels on what is 0-d (step counters)
first, then kernels on elements, whose extent becomes a symbol. Each of these kernels, a stage, runs for all rows before
the next one starts; what one hands to the next is a few numbers per row. So one op costs a few kernels, however many
rows it has. A body that does not come out like this is written out, row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

from graphc.ir.dims import symbol
from graphc.ir.graph import Builder, Graph, Input, Op, Output, Role, Value, Write
from graphc.ir.parser import parse
from graphc.ir.types import TensorType
from graphc.loopir.kernel import Kernel, Store
from graphc.ops.foreach import NUMBER, inline, rows_of, shaped
from graphc.passes.base import PassContext, PassResult, Rewriter
from graphc.passes.foreach_tables import ELEMENTS, as_table
from graphc.program.plan import ARENA, CHECKS, INPUT, OUTPUT, KernelStep, Plan, RowArgument

SAMPLE = 40_009
"""Elements of the row that a body is planned for; a number that nothing else is likely to be."""


@dataclass(frozen=True)
class Stages:
    """The kernels of a body.

    Args:
        kernels: in order, with what each is called with; `elements` is the symbolic extent of those on elements.
        arguments: per kernel.
        whole: numbers of the kernels that reduce a row, and so get all of it at once.
        scratch: bytes per row that kernels hand numbers on in.
        plan: of the sample row.
    """

    kernels: tuple[Kernel, ...]
    arguments: tuple[tuple[RowArgument, ...], ...]
    whole: tuple[int, ...]
    scratch: int
    plan: Plan


Planner = Callable[[Graph], Plan]


@dataclass(frozen=True)
class ExpandForeach:
    """Writes out `foreach` ops row by row, where the body has no kernels that run over a table of rows.

    Before:
        %2: f32[4], %3: f32[2] = foreach(%a, %b, %lr) {count=2, mutates=[0], like=[]}      # train.py:14
          body graph body(%x0: f32[] arg "list 0", %lr: f64[]@host arg "lr") { ... }
    After:
        %4: f32[4] = mul(%a, %lr)             # train.py:14
        %5: f32[2] = mul(%b, %lr)             # train.py:14
    """

    name: ClassVar[str] = "expand-foreach"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        return Rewriter(graph, ctx).run(_expand_if_needed, ("foreach",))


def _expand_if_needed(rewriter: Rewriter, op: Op) -> Sequence[Value] | None:
    ctx = rewriter.ctx
    if stages_of(op, ctx.numerics, ctx.target) is not None:
        return None
    return expand(rewriter.builder, op)


def expand(builder: Builder, op: Op) -> list[Value]:
    """Append what an op does as plain ops; gives a value per result."""
    rows = rows_of(op)
    count, like, mutates, body = (op.attrs[name] for name in ("count", "like", "mutates", "body"))
    found: list[list[Value]] = [[] for _ in body.outputs]
    taken: set[Value] = set()
    for row in range(count):
        results = inline(builder, body, [*(values[row] for values in rows.lists), *rows.shared])
        for kept, place, value in zip(found, (*like, *mutates), results, strict=True):
            if place == NUMBER:
                kept.append(builder.op("reshape", value, shape=(1,)))
            else:
                kept.append(_own(builder, shaped(builder, value, rows.lists[place][row].shape), taken))
    for number, place in enumerate(like):
        if place == NUMBER:
            found[number] = [builder.op("concat", *found[number], dim=0)]
    return [value for kept in found for value in kept]


def _own(builder: Builder, value: Value, taken: set[Value]) -> Value:
    """A value that is no input and no other result of the op: either may be handed out, in memory of its own."""
    if isinstance(value, Input) or value in taken:
        value = builder.op("cast", value, dtype=value.dtype)
    taken.add(value)
    return value


def stages_of(op: Op, numerics: str, target: str) -> Stages | None:
    """The kernels of an op; None when its body does not come out as such.

    Args:
        op: a `foreach`.
        numerics, target: as in `PassContext`.
    """
    rows = rows_of(op)
    body: Graph = op.attrs["body"]
    stages = _stages(str(body), tuple(rows.elementwise), op.attrs["like"], op.attrs["mutates"], numerics)
    if stages is None or target == "cpu":
        return stages
    lists = tuple(values[0].device for values in rows.lists)
    return as_table(stages, lists, tuple(value.device for value in rows.shared), op.attrs["count"])


@lru_cache(maxsize=64)
def _stages(
    body: str, elementwise: tuple[bool, ...], like: tuple[int, ...], mutates: tuple[int, ...], numerics: str
) -> Stages | None:
    from graphc.passes.pipeline import optimize
    from graphc.passes.plan import make_plan

    sample = _sample(parse(body), elementwise, like, mutates)
    optimize(sample, PassContext(numerics=numerics, target="cpu"))
    for number, output in enumerate(sample.outputs):
        if isinstance(output.value, Input):
            copy = Op("reshape", [output.value], {"shape": output.value.shape}, [output.value.type], result_names=["c"])
            sample.ops.append(copy)
            sample.outputs[number] = Output(copy.results[0])
    plan = make_plan(sample, numerics=numerics)
    return _as_stages(plan, len(like), len(elementwise), mutates)


def _sample(body: Graph, elementwise: tuple[bool, ...], like: tuple[int, ...], mutates: tuple[int, ...]) -> Graph:
    """The body for one row of `SAMPLE` elements, which it updates in place."""
    from graphc.ops import infer

    graph = Graph("row")
    builder = Builder(graph, infer)
    inputs: list[Input] = []
    for number, item in enumerate(body.inputs):
        wide = number < len(elementwise) and elementwise[number]
        type = TensorType(item.dtype, (SAMPLE,), item.device) if wide else item.type
        inputs.append(builder.input(item.name, type, Role.ARG, item.path))
    results = inline(builder, body, inputs)
    values = [
        shaped(builder, value, inputs[place].shape if place != NUMBER else ())
        for place, value in zip((*like, *mutates), results, strict=True)
    ]
    graph.outputs = [Output(value) for value in values[: len(like)]]
    graph.writes = [Write(inputs[place], value) for place, value in zip(mutates, values[len(like) :], strict=True)]
    return graph


def _as_stages(plan: Plan, own: int, lists: int, mutates: tuple[int, ...]) -> Stages | None:
    steps = [step for step in plan.steps if isinstance(step, KernelStep)]
    if len(steps) < len(plan.steps) or any(any(step.offsets) and not _has_checks(plan, step) for step in steps):
        return None
    arena = [spec for spec in plan.buffers if spec.kind == ARENA]
    if any(spec.shape not in ((), (1,)) for spec in arena):
        return None
    outputs = {output.buffer: number for number, output in enumerate(plan.outputs)}
    if len(outputs) < own or any(not output.whole for output in plan.outputs):
        return None
    kernels: list[Kernel] = []
    arguments: list[tuple[RowArgument, ...]] = []
    scratch = {spec.index: 8 * number for number, spec in enumerate(arena)}
    for step in steps:
        kernel = _with_symbol(plan.kernels[step.kernel])
        if kernel is None:
            return None
        found: list[RowArgument] = []
        for buffer, index, offset in zip(kernel.buffers, step.buffers, step.offsets, strict=True):
            spec = plan.buffers[index]
            if spec.kind == INPUT:
                kind, number = ("row", spec.source) if spec.source < lists else ("shared", spec.source - lists)
            elif spec.kind == OUTPUT:
                kind, number = "row", lists + outputs[index]
            elif spec.kind == CHECKS:
                kind, number = "checks", offset
            else:
                kind, number = "scratch", scratch[index]
            found.append(RowArgument(kind, number, buffer.dtype, spec.shape == (SAMPLE,)))
        kernels.append(kernel)
        arguments.append(tuple(found))
    whole = tuple(number for number, kernel in enumerate(kernels) if kernel.row_axes)
    return Stages(tuple(kernels), tuple(arguments), whole, 8 * len(scratch), plan)


def _has_checks(plan: Plan, step: KernelStep) -> bool:
    return plan.buffers[step.buffers[-1]].kind == CHECKS and not any(step.offsets[:-1])


def _with_symbol(kernel: Kernel) -> Kernel | None:
    """The kernel for rows of any size; None when it is neither one step per element nor one reduction of a row."""
    if not kernel.axes:
        return kernel
    if len(kernel.axes) != 1 or kernel.axes[0].extent != SAMPLE:
        return None
    if kernel.row_axes and any(b.access != "in" and b.size == SAMPLE for b in kernel.buffers):
        return None  # what needs a row twice may not fit into a buffer
    if all(buffer.size != SAMPLE for buffer in kernel.buffers):
        return replace(kernel, axes=())  # it looks at single numbers only, once per row is enough
    (axis,) = kernel.axes
    for statement in () if kernel.row_axes else kernel.body:
        if isinstance(statement, Store) and statement.mode == "set" and statement.index != symbol(axis.name):
            return None  # a store once per row: rows are cut in pieces
    size = symbol(ELEMENTS)
    buffers = tuple(replace(b, size=size) if b.size == SAMPLE else b for b in kernel.buffers)
    return replace(kernel, axes=(replace(axis, extent=size),), buffers=buffers)
