"""Splitting a joint graph into a forward and a backward graph, by a minimum cut.

What the backward pass needs of the forward pass is either saved (memory held until then, written and read once) or
computed again from something saved. The choice that saves the fewest bytes is a minimum cut of the data flow: an edge
per value with its size for capacity, from what the forward pass has at hand to what the backward pass must have. Cheap
ops may lie behind the cut, since they fuse into the kernels that need them; products, reductions and calls may not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container
from dataclasses import dataclass

from graphc.ir.dims import Dim
from graphc.ir.graph import Builder, Graph, Input, Op, Output, Role, Value
from graphc.ops import infer, registry
from graphc.ops.registry import Kind
from graphc.passes.cut import smallest_cut
from graphc.passes.layout import int_shape, is_dense

_CHEAP = (Kind.POINTWISE, Kind.VIEW, Kind.CREATION, Kind.RANDOM)
_CHEAP_NAMES = frozenset({"relu", "gelu", "silu", "leaky_relu", "hardtanh", "softplus", "elu", "mish"})


@dataclass(frozen=True)
class Split:
    """Two graphs in place of one.

    Attributes:
        forward: inputs as in the joint graph without the cotangents; outputs: its results, then the saved values.
        backward: inputs: the saved values, then forward inputs it reads, then the cotangents; outputs: the gradients.
        saved: number of outputs of the forward graph, behind its results, that are saved values.
        saved_from: for each saved value the output of the forward graph that it is.
        reused: forward inputs that the backward graph reads, by number.
    """

    forward: Graph
    backward: Graph
    saved: int
    saved_from: list[int]
    reused: list[int]


def partition(
    graph: Graph, cotangents: int, gradients: int, again: Container[Op] = (), overwritten: Collection[int] = ()
) -> Split:
    """Split a joint graph.

    Args:
        cotangents: how many of its last inputs are cotangents.
        gradients: how many of its last outputs are gradients.
        again: products that may be computed again, since their results are too large to be saved.
        overwritten: inputs that are written after the forward graph has run, by number.
    """
    given = set(graph.inputs[len(graph.inputs) - cotangents :])
    late: set[Value] = set(given)
    for op in graph.ops:
        if any(operand in late for operand in op.inputs):
            late.update(op.results)
    count = len(graph.outputs) - gradients
    wanted = [output.value for output in graph.outputs[count:]]
    needed = _needed_late(graph, late, wanted)
    written = {write.target for write in graph.writes} | {graph.inputs[number] for number in overwritten}
    saved = _cut(graph, needed, written, again)
    return _Splitter(graph, given, late, saved, written, count).run()


def _needed_late(graph: Graph, late: set[Value], wanted: list[Value]) -> set[Value]:
    """Forward values that ops of the backward pass read, or that are gradients themselves."""
    live = set(wanted)
    needed = {value for value in wanted if value not in late}
    for op in reversed(graph.ops):
        if not any(result in live and result in late for result in op.results):
            continue
        for operand in op.inputs:
            live.add(operand)
            if operand not in late:
                needed.add(operand)
    return needed


def is_cheap(op: Op) -> bool:
    """Whether what an op gives is better computed again than kept."""
    if _has_effect(op) or any(result.type.is_host for result in op.results):
        return False
    return registry.get(op.name).kind in _CHEAP or op.name in _CHEAP_NAMES


def value_bytes(value: Value) -> int:
    """Bytes of a value of static shape."""
    return math.prod(int_shape(value)) * value.dtype.itemsize


def _cut(graph: Graph, needed: set[Value], written: set[Input], again: Container[Op]) -> list[Value]:
    """The values to save: inputs among them cost next to nothing, unless the forward pass overwrites them."""
    if not needed:
        return []

    def is_computed(value: Value) -> bool:
        return value.op is not None and (is_cheap(value.op) or value.op in again)

    order = {value: number for number, value in enumerate(graph.values())}
    found = smallest_cut(needed, lambda value: _cost(value, written), is_computed)
    return sorted((value for value in found if not _is_constant(value)), key=order.__getitem__)


def _cost(value: Value, written: set[Input]) -> int:
    """What saving a value costs: its bytes, written and read once; nothing for a constant, which is made again."""
    if _is_constant(value):
        return 0
    alive = isinstance(value, Input) and value not in written
    return 1 if alive else 2 * value_bytes(value) + 2


def _is_constant(value: Value) -> bool:
    return value.op is not None and is_cheap(value.op) and not any(True for _ in value.op.inputs)


class _Splitter:
    def __init__(
        self, graph: Graph, given: set[Input], late: set[Value], saved: list[Value], written: set[Input], count: int
    ) -> None:
        self.graph, self.given, self.late, self.count = graph, given, late, count
        self.reused = [value for value in saved if isinstance(value, Input) and value not in written]
        self.saved = [value for value in saved if not isinstance(value, Input) or value in written]
        for value in self.saved:
            if not isinstance(value, Input) and value.strides and not is_dense(int_shape(value), value.strides):  # type: ignore[arg-type]  # static shapes
                value.strides = None  # it had these as a part of a larger tensor; now it gets memory of its own

    def run(self) -> Split:
        positions = {value: number for number, value in enumerate(self.graph.inputs)}
        whole = [(o.value, n) for n, o in enumerate(self.graph.outputs[: self.count]) if o.view is None]
        place: dict[Value, int] = {value: number for value, number in whole if not isinstance(value, Input)}
        own = [value for value in self.saved if value not in place]
        place |= {value: self.count + number for number, value in enumerate(own)}
        saved_from = [place[value] for value in self.saved]
        forward, backward = self._forward(own), self._backward()
        return Split(forward, backward, len(own), saved_from, [positions[value] for value in self.reused])

    def _forward(self, own: list[Value]) -> Graph:
        joint = self.graph
        forward = Graph(joint.name)
        forward.inputs = [value for value in joint.inputs if value not in self.given]
        outputs = joint.outputs[: self.count]
        live = {output.value for output in outputs} | {write.value for write in joint.writes} | set(self.saved)
        effects = {op for op in joint.ops if _has_effect(op) and not any(item in self.late for item in op.inputs)}
        forward.ops = _slice(joint, live, set(), effects)
        forward.writes = list(joint.writes)
        forward.outputs = [*outputs, *(Output(value) for value in own)]
        forward = forward.copy()
        _own_saved(forward, len(own))
        return forward

    def _strides(self, value: Value) -> tuple[Dim, ...] | None:
        copied = isinstance(value, Input) and value not in self.given and value not in self.reused
        return None if copied else value.strides

    def _backward(self) -> Graph:
        joint = self.graph
        backward = Graph(f"{joint.name}_backward")
        values = [*self.saved, *self.reused, *(value for value in joint.inputs if value in self.given)]
        gradients = joint.outputs[self.count :]
        wanted = {output.value for output in gradients}
        backward.inputs = [
            Input(value.name, value.type, *_label(value), strides=self._strides(value)) for value in values
        ]
        twins: dict[Value, Value] = dict(zip(values, backward.inputs, strict=True))
        for op in _slice(joint, wanted, set(values)):
            operands = [twins[item] if isinstance(item, Value) else item for item in op.operands]
            made = Op(
                op.name, operands, op.attrs, [r.type for r in op.results], op.location, [r.name for r in op.results]
            )
            for old, new in zip(op.results, made.results, strict=True):
                new.strides = old.strides
                twins.setdefault(old, new)
            backward.ops.append(made)
        backward.outputs = [Output(twins[output.value], output.view) for output in gradients]
        return backward


def _label(value: Value) -> tuple[Role, str]:
    return (value.role, value.path) if isinstance(value, Input) else (Role.STATE, f"saved.{value.name}")


def _has_effect(op: Op) -> bool:
    return bool(registry.get(op.name).effect or op.attrs.get("effect"))


def _slice(graph: Graph, live: set[Value], stop: set[Value], forced: set[Op] | None = None) -> list[Op]:
    """The ops that compute `live`, in order, without going beyond `stop`; and those that are `forced`."""
    needed = live - stop
    kept: list[Op] = []
    for op in reversed(graph.ops):
        if op not in (forced or ()) and not any(result in needed for result in op.results):
            continue
        needed.update(operand for operand in op.inputs if operand not in stop)
        kept.append(op)
    kept.reverse()
    return kept


def _own_saved(forward: Graph, saved: int) -> None:
    """A saved value whose memory a result looks into, or an input that is overwritten, is saved as a copy."""
    first = len(forward.outputs) - saved
    taken = {output.value for output in forward.outputs[:first]}
    for number in range(first, len(forward.outputs)):
        value = forward.outputs[number].value
        if isinstance(value, Input) or value in taken:
            copy = Builder(forward, infer).op("cast", value, dtype=value.dtype)
            forward.outputs[number] = Output(copy)
