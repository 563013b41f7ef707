"""Backward passes from some of the results: what the cotangents that are not given lead to is left out.

Eager's autograd does not go there either. Zeros in the place of such a cotangent cost passes over memory, and are NaN
behind a derivative that is infinite: 0 times infinity. So an absent cotangent is nothing, as is what is computed from
nothing by linear ops, and what is added to nothing stays as it is. Where anything else meets it, zeros stand for it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from graphc.frontend.cotangents import layout_of, own_gradient
from graphc.ir.graph import Builder, Graph, Op, Output, Ref, Value
from graphc.ops import infer
from graphc.ops.extern import effect

_FIRST = frozenset((
    "neg", "cast", "copy", "div", "reshape", "permute", "expand", "slice", "flip", "as_strided", "sum", "mean",
    "cumsum", "gather", "take", "index", "max_pool_backward", "avg_pool_backward", "upsample_linear_backward",
    "attention_gradient",
))  # fmt: skip
"""Ops that are linear in their first operand."""
_EITHER = frozenset(("mul", "matmul", "grouped_matmul"))
"""Ops that are linear in the first two operands each."""
_ADDING = frozenset(("put", "scatter"))
_LAYING = frozenset(("update_slice", "update_strided"))


def reached_by(graph: Graph, count: int, absent: Collection[int]) -> list[bool]:
    """By gradient, whether cotangents that are given lead to it, or none at all does.

    Args:
        graph: its last inputs are the cotangents, its outputs the gradients.
        count: of cotangents.
        absent: cotangents that are not given, by number.
    """
    first = len(graph.inputs) - count
    missing = {graph.inputs[first + number] for number in absent}
    absents: dict[Value, bool] = {value: value in missing for value in graph.inputs[first:]}
    for op in graph.ops:
        found = [absents[value] for value in op.inputs if value in absents]
        if found:
            absents.update(dict.fromkeys(op.results, all(found)))
    return [not absents.get(output.value, False) for output in graph.outputs]


def without(graph: Graph, count: int, absent: Collection[int], kept: Sequence[int]) -> Graph | None:
    """A backward graph for cotangents of which some are not given.

    Args:
        graph: its last inputs are the cotangents, its outputs the gradients.
        count: of cotangents.
        absent: cotangents that are no inputs of the new graph, by number.
        kept: gradients that are its outputs, by number.

    Returns:
        The graph, or None where it needs zeros of a dtype that kernels do not hold.
    """
    made = graph.copy()
    first = len(made.inputs) - count
    missing = {made.inputs[first + number] for number in absent}
    try:
        swept = _Sweep(made, missing)
        swept.run()
        taken: set[Value] = set()
        outputs = []
        for output in (made.outputs[number] for number in kept):
            value = swept.present(output.value)
            if value is not output.value or value in taken:
                value = own_gradient(swept.builder, value, layout_of(output.value), taken).value
            taken.add(value)
            outputs.append(Output(value, output.view))
    except _NoZeros:
        return None
    made.outputs = outputs
    made.inputs = [value for value in made.inputs if value not in missing]
    return made


class _NoZeros(Exception):
    """Zeros are wanted of a dtype that kernels do not hold."""


class _Sweep:
    """Rewrites a graph in which some inputs are nothing."""

    def __init__(self, graph: Graph, missing: Collection[Value]) -> None:
        self.graph, self.builder = graph, Builder(graph, infer)
        self.nothing: set[Value] = set(missing)
        self.replaced: dict[Value, Value] = {}
        self.zeros: dict[Value, Value] = {}

    def run(self) -> None:
        ops, self.graph.ops[:] = list(self.graph.ops), []
        for op in ops:
            op.operands = [self.replaced.get(item, item) if isinstance(item, Value) else item for item in op.operands]
            self.builder.location = op.location
            if self.nothing.isdisjoint(op.inputs):
                self.graph.ops.append(op)
                continue
            gone = [isinstance(item, Value) and item in self.nothing for item in op.operands]
            if self._is_nothing(op, gone):
                self.nothing.update(op.results)
            elif (same := self._as_it_is(op, gone)) is not None:
                self.replaced[op.results[0]] = same
            else:
                op.operands = [self.present(item) if isinstance(item, Value) else item for item in op.operands]
                self.graph.ops.append(op)

    def present(self, value: Value) -> Value:
        """What stands for a value in the new graph: zeros for nothing."""
        value = self.replaced.get(value, value)
        if value not in self.nothing:
            return value
        if value not in self.zeros:
            if not value.dtype.is_float:
                raise _NoZeros
            zeros = self.builder.op("full", shape=value.shape, dtype=value.dtype, value=0.0, device=value.device)
            zeros.strides = value.strides
            self.zeros[value] = zeros
        return self.zeros[value]

    def _is_nothing(self, op: Op, gone: Sequence[bool]) -> bool:
        """Whether nothing comes of an op, whose operands are partly nothing."""
        if op.name in _FIRST:
            return gone[0]
        if op.name in _EITHER:
            return gone[0] or gone[1]
        if op.name == "convolution":
            return not op.attrs["bias"] and any(gone)
        if op.name in ("add", "sub", "concat"):
            return all(gone)
        if op.name == "where":
            return gone[1] and gone[2]
        if op.name == "pad":
            return gone[0] and op.attrs["value"] == 0
        if op.name in _LAYING or (op.name in _ADDING and op.attrs["mode"] == "add"):
            return gone[-1] and (gone[0] or _is_zero(op.operands[0]))
        return op.name == "extern" and not effect(op) and _gradient_of(op) in self.nothing

    def _as_it_is(self, op: Op, gone: Sequence[bool]) -> Value | None:
        """The operand that an op gives back, since it adds nothing to it."""
        (result, *_) = op.results
        others = [item for item, is_gone in zip(op.operands, gone, strict=True) if not is_gone]
        if op.name == "add" or (op.name == "sub" and gone[1]):
            kept = others[0]
        elif op.name in _ADDING and op.attrs["mode"] == "add" and gone[-1]:
            kept = op.operands[0]
        elif op.name == "sub" and isinstance(others[0], Value) and others[0].type == result.type:
            return self.builder.op("neg", others[0])
        else:
            return None
        if not isinstance(kept, Value) or kept in self.nothing:
            return None
        return kept if (kept.type, kept.strides) == (result.type, result.strides) else None


def _is_zero(item: object) -> bool:
    while isinstance(item, Value) and item.op is not None and item.op.name in ("expand", "reshape", "cast"):
        item = item.op.operands[0]
    return isinstance(item, Value) and item.op is not None and item.op.name == "full" and item.op.attrs["value"] == 0


def _gradient_of(op: Op) -> Value | None:
    """The gradient that a backward operator of ATen's takes first, in which it is linear."""
    name, args = str(op.attrs["op"]).split(".")[1], op.attrs["args"]
    if "_backward" not in name or "double" in name or not isinstance(args, tuple) or not args:
        return None
    found = op.operands[args[0].index] if isinstance(args[0], Ref) else None
    return found if isinstance(found, Value) else None
