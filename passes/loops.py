"""The plan of a loop: its body planned like any graph, and where the buffers of the body lie from turn to turn.

    body                         in the program
    input, every turn the same   the operand's buffer
    input, item of a sequence    the operand's buffer, moving on from turn to turn
    output that is stacked       its item of the result, likewise
    output that is a carry       the item of the result it is stacked in; else one of two buffers, in turns
    input that is a carry        where the turn before it has put that output; in the first turn the initial value

So nothing is copied between turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from graphc.ir.graph import Graph, Input, Op, Output, StridedView, Value
from graphc.ir.types import contiguous_strides
from graphc.passes.fused import Library
from graphc.passes.layout import int_shape
from graphc.passes.updates import copy_op
from graphc.passes.work import is_kernel_op
from graphc.program.loops import Binding, LoopStep, unroll
from graphc.program.plan import ARENA, CHECKS, EXTERNAL, INPUT, OUTPUT, BufferSpec, Check, Plan

if TYPE_CHECKING:
    from graphc.passes.layout import Place
    from graphc.passes.templates import Templates

AddBuffer = Callable[[BufferSpec], int]
AddChecks = Callable[[list[Check], str], tuple[int, int]]


def plan_loop(
    node: Library, settings: tuple[str, str, Templates | None], names: dict[str, int], needed: Callable[[Value], bool]
) -> PlannedLoop:
    """Plan the body of a loop.

    Args:
        node: the loop, with the places of its operands.
        settings: numerics, backend and templates.
        names: how often names of kernels are taken.
        needed: whether a result of the loop has memory.
    """
    from graphc.passes.plan import Planner

    op = node.op
    carries: int = op.attrs["carries"]
    body: Graph = op.attrs["body"].copy()
    for number, (item, place) in enumerate(zip(body.inputs, node.operands, strict=True)):
        assert place is not None
        if number >= carries:
            strides = place.strides[1:] if number < carries + op.attrs["sequences"] else place.strides
            item.strides = None if strides == contiguous_strides(item.shape) else strides
    kept = [number for number, result in enumerate(op.results) if number < carries or needed(result)]
    values, stacked = _own_outputs(body, [body.outputs[number].value for number in kept], carries)
    body.outputs = [_whole(value) for value in values]
    plan = Planner(body, *settings, names).run(None)
    plan.steps = unroll(plan.steps)  # a loop in a loop is written out
    return PlannedLoop(plan, kept, stacked, [needed(result) for result in op.results[:carries]])


def _own_outputs(body: Graph, values: list[Value], carries: int) -> tuple[list[Value], dict[int, int]]:
    """Outputs that are each a buffer of their own, made by a kernel or a product; and carries that are stacked as well.

    Returns:
        The values of the outputs; and for a carry that is the same value as a stack, the number of that output.
    """
    found: list[Value] = []
    first: dict[Value, int] = {}
    stacked: dict[int, int] = {}
    for number, value in reversed(list(enumerate(values))):
        other = first.get(value)
        made = value.op is not None and (is_kernel_op(value.op) or _is_product(value.op))
        if other is not None and number < carries <= other:
            stacked[number] = other
        elif other is not None or not made or isinstance(value, Input):
            copy = copy_op(value)
            copy.results[0].name += f"_{number}"
            body.ops.append(copy)
            value = copy.results[0]
        first.setdefault(value, number)
        found.append(value)
    for value in found:
        value.strides = None
    return found[::-1], stacked


def _is_product(op: Op) -> bool:
    """A product in memory of its own, or a sum of such products."""
    if op.name == "gemm" and op.attrs["accumulate"]:
        below = op.operands[2]
        return isinstance(below, Value) and below.op is not None and _is_product(below.op)
    return op.name == "matmul"


def _whole(value: Value) -> Output:
    """An output that is stored as a whole, and not as a view of something else."""
    return Output(value, StridedView(value.shape, tuple(contiguous_strides(value.shape)), 0))


@dataclass
class PlannedLoop:
    """The plan of a body.

    Args:
        plan: of one turn; its inputs and outputs as those of the body.
        kept: per output of the plan the result of the loop it belongs to.
        stacked: carries that lie where an output with this number does.
        wanted: whether the last value of a carry is a result that something needs.
    """

    plan: Plan
    kept: list[int]
    stacked: dict[int, int]
    wanted: list[bool]

    def step(self, node: Library, buffer_of: Mapping[Value, int], add: AddBuffer, add_checks: AddChecks) -> LoopStep:
        """The loop as a step.

        Args:
            node: the loop.
            buffer_of: buffers of the program.
            add: adds a buffer like a given one to the program.
            add_checks: adds cells of checks on a device; gives their buffer and the number of the first one.
        """
        op, plan = node.op, self.plan
        length: int = op.attrs["length"]
        bindings: dict[int, Binding] = {}
        for number, output in enumerate(plan.outputs):
            if number not in self.stacked:
                bindings[output.buffer] = self._output(op, number, plan.buffers[output.buffer], buffer_of, add)
        for spec in plan.buffers:
            if spec.kind == INPUT:
                place = node.operands[spec.source]
                assert place is not None
                bindings[spec.index] = self._input(op, spec.source, place, buffer_of, bindings)
            elif spec.kind == CHECKS:
                index, first = add_checks(plan.checks[spec.index], spec.device)
                bindings[spec.index] = Binding((index, index), (first, first))
            elif spec.kind in (ARENA, EXTERNAL):
                index = add(spec)
                bindings[spec.index] = Binding((index, index), (0, 0))
        ordered = tuple(bindings[spec.index] for spec in plan.buffers)
        return LoopStep(length, tuple(plan.buffers), ordered, tuple(plan.steps), op.location)

    def _output(self, op: Op, number: int, spec: BufferSpec, buffer_of: Mapping[Value, int], add: AddBuffer) -> Binding:
        assert spec.kind == OUTPUT and spec.strides == contiguous_strides(spec.shape), f"{spec} as an output of a loop"
        length, result = op.attrs["length"], op.results[self.kept[number]]
        if self.kept[number] >= op.attrs["carries"]:
            size = prod(int_shape(result)[1:])
            index = buffer_of[result]
            return _moving(index, 0, size, length, op.attrs["reverse"])
        spare = BufferSpec(0, ARENA, spec.dtype, spec.shape, spec.strides, spec.nbytes, spec.device)
        other = add(spare)
        last = buffer_of[result] if self.wanted[number] else add(spare)
        pair = (other, last) if length % 2 == 0 else (last, other)  # the last turn stores where it is wanted
        return Binding(pair, (0, 0))

    def _input(
        self, op: Op, source: int, place: Place, buffer_of: Mapping[Value, int], bindings: Mapping[int, Binding]
    ) -> Binding:
        carries, length = op.attrs["carries"], op.attrs["length"]
        index = buffer_of[place.base]
        if source < carries:
            number = self.stacked.get(source, source)
            made = bindings[self.plan.outputs[number].buffer]
            swapped = made.buffers[::-1]  # where the turn before this one put it
            offset = made.offsets[0] - made.stride
            return Binding(swapped, (offset, offset), made.stride, index, place.offset)
        if source < carries + op.attrs["sequences"]:
            return _moving(index, place.offset, place.strides[0], length, op.attrs["reverse"])
        return Binding((index, index), (place.offset, place.offset))


def _moving(index: int, offset: int, stride: int, length: int, reverse: bool) -> Binding:
    """An item of a stack, from the last one on when the loop runs in reverse."""
    if reverse:
        offset, stride = offset + (length - 1) * stride, -stride
    return Binding((index, index), (offset, offset), stride)
