"""`foreach`: the same elementwise update of many tensors, as optimizers do it, whatever their shapes.

    %6: f32[9], %7: f32[2, 3] = foreach(%p, %q, %p.grad, %q.grad, %lr) {count=2, mutates=[0], like=[]}
      body graph body(%p: f32[] arg "p", %grad: f32[] arg "grad", %lr: f64[]@host arg "lr") {
        %0: f32[] = mul(%grad, %lr)
        %1: f32[] = sub(%p, %0)
        return %1
      }

Operands come in lists of `count`, one list per input of the body, then what all rows share. The body sees one element
of each tensor of a row, and a 0-d tensor (a step counter) as it is. A reduction in the body has no dims and is over all
elements of the row; a result that is made of it, `NUMBER` in `like`, is one tensor with a number for each row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Builder, Graph, Op, Operand, Output, Value
from graphc.ir.interpreter import run
from graphc.ir.types import TensorType
from graphc.ops import rules
from graphc.ops.registry import Kind, OpDef, get, register

ATTRS = ("count", "mutates", "like", "body")
NUMBER = -1
"""In `like`: a result has one number per row."""
WHOLE = ("norm",)
"""Reductions that a body may do, over all elements of a row."""


@dataclass(frozen=True)
class Rows:
    """The operands of a `foreach` op, sorted.

    Args:
        lists: per list the operand of each row.
        shared: operands of all rows.
    """

    lists: list[list[Value]]
    shared: list[Value]

    @property
    def elementwise(self) -> list[bool]:
        """Per list: the body sees its tensors element by element; the others are 0-d."""
        return [any(value.type.rank for value in items) for items in self.lists]


def rows_of(op: Op) -> Rows:
    """The operands of an op that is well-formed."""
    return _rows(op.operands, op.attrs["count"], len(op.attrs["body"].inputs))


def _rows(operands: Sequence[Any], count: int, inputs: int) -> Rows:
    lists = (len(operands) - inputs) // (count - 1)
    found = [list(operands[at * count : (at + 1) * count]) for at in range(lists)]
    return Rows(found, list(operands[lists * count :]))


def updated(op: Op) -> list[tuple[Value, int]]:
    """(result, number of the operand that it is the new contents of) pairs."""
    count, mutates = op.attrs["count"], op.attrs["mutates"]
    results = op.results[len(op.results) - count * len(mutates) :]
    numbers = [place * count + row for place in mutates for row in range(count)]
    return list(zip(results, numbers, strict=True))


def inline(builder: Builder, body: Graph, given: Sequence[Operand]) -> list[Operand]:
    """Append the ops of a body with tensors in the place of its inputs; gives its results."""
    known: dict[Value, Operand] = dict(zip(body.inputs, given, strict=True))
    for op in body.ops:
        operands = [known[item] if isinstance(item, Value) else item for item in op.operands]
        builder.location, builder.origin = op.location, op.origin
        attrs = dict(op.attrs)
        if op.name in WHOLE:
            assert isinstance(operands[0], Value)
            attrs["dims"] = tuple(range(operands[0].type.rank))
        known[op.results[0]] = builder.op(op.name, *operands, **attrs)
    return [known[output.value] for output in body.outputs]


def reduces(body: Graph) -> bool:
    """Whether a body has reductions over all elements of a row."""
    return any(op.name in WHOLE for op in body.ops)


def shaped(builder: Builder, value: Operand, shape: tuple[Dim, ...]) -> Value:
    """A result of `inline` with the shape of its row: one that depends on no element is repeated."""
    assert isinstance(value, Value)
    return value if value.shape == shape else builder.op("expand", value, shape=shape)


def _infer(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("foreach", attrs, ATTRS)
    count, body, mutates, like = attrs["count"], attrs["body"], attrs["mutates"], attrs["like"]
    if not isinstance(body, Graph) or body.writes:
        rules.fail("foreach", "body is not a graph without writes")
    if type(count) is not int or count < 2 or (len(operands) - len(body.inputs)) % (count - 1):
        rules.fail(
            "foreach", f"{len(operands)} operands are no lists of {count} for a body of {len(body.inputs)} inputs"
        )
    if not all(isinstance(item, Value) for item in operands):
        rules.fail("foreach", "takes no numbers")
    found = _rows(operands, count, len(body.inputs))
    _check_lists(found, body)
    if len(set(mutates)) < len(mutates) or not all(
        0 <= place < len(found.lists) for place in (*mutates, *(place for place in like if place != NUMBER))
    ):
        rules.fail("foreach", f"mutates={mutates!r}, like={like!r} name no lists, or one twice")
    if len(body.outputs) != len(like) + len(mutates):
        rules.fail("foreach", f"the body gives {len(body.outputs)} values, {len(like) + len(mutates)} are named")
    types: list[TensorType] = []
    for output, place in zip(body.outputs, (*like, *mutates), strict=True):
        own = output.value.type
        if own.shape or output.view is not None:
            rules.fail("foreach", f"the body gives {own}, not one element")
        if place in mutates and own.dtype != body.inputs[place].dtype:
            rules.fail("foreach", f"the body gives {own.dtype.name} for a list of {body.inputs[place].dtype.name}")
        if place == NUMBER:
            types.append(TensorType(own.dtype, (count,), own.device))
        else:
            types += [TensorType(own.dtype, item.shape, item.device) for item in found.lists[place]]
    return types


def _check_lists(found: Rows, body: Graph) -> None:
    for item in body.inputs:
        if item.shape:
            rules.fail("foreach", f"the body takes {item.type}, not one element")
    shapes: list[tuple[Dim, ...]] | None = None
    for values, item, wide in zip(found.lists, body.inputs, found.elementwise, strict=False):
        if any(value.dtype != item.dtype or value.device != item.device for value in values):
            rules.fail("foreach", f"a list for {item.name} does not hold {item.type}")
        if wide:
            shapes = shapes or [value.shape for value in values]
            if [value.shape for value in values] != shapes:
                rules.fail("foreach", "tensors of one row have different shapes")
    for value, item in zip(found.shared, body.inputs[len(found.lists) :], strict=True):
        if value.type != item.type:
            rules.fail("foreach", f"{value!r} is given for {item.name}: {item.type}")


def _reference(
    *operands: Any, count: int, mutates: tuple[int, ...], like: tuple[int, ...], body: Graph
) -> tuple[torch.Tensor, ...]:
    found: Any = _rows(operands, count, len(body.inputs))
    results: list[list[torch.Tensor]] = [[] for _ in body.outputs]
    for row in range(count):
        given = [*(items[row] for items in found.lists), *found.shared]
        answers: list[Any] = run(_of_rank(body, given), given, get)
        for kept, place, answer in zip(results, (*like, *mutates), answers, strict=True):
            shape = found.lists[place][row].shape if place != NUMBER else ()
            kept.append(answer.expand(shape).clone(memory_format=torch.preserve_format))
    joined = [
        [torch.stack(kept)] if place == NUMBER else kept for kept, place in zip(results, (*like, *mutates), strict=True)
    ]
    return tuple(item for kept in joined for item in kept)


def _of_rank(body: Graph, given: Sequence[Any]) -> Graph:
    """The body with the dims of its reductions, as the interpreter needs them."""
    ranks: dict[Value, int] = {
        item: value.dim() for item, value in zip(body.inputs, given, strict=True) if isinstance(value, torch.Tensor)
    }
    known: dict[Value, Value] = {item: item for item in body.inputs}
    plain = Graph(body.name, body.inputs)
    for op in body.ops:
        operands = [known[item] if isinstance(item, Value) else item for item in op.operands]
        rank = max((ranks.get(item, 0) for item in op.inputs), default=0)
        attrs = {**op.attrs, "dims": tuple(range(rank))} if op.name in WHOLE else op.attrs
        ranks[op.results[0]] = 0 if op.name in WHOLE else rank
        same = Op(op.name, operands, attrs, [op.results[0].type], op.location, [op.results[0].name])
        known[op.results[0]] = same.results[0]
        plain.ops.append(same)
    plain.outputs = [Output(known[output.value]) for output in body.outputs]
    return plain


def _flops(op: Op) -> Dim:
    per_element = sum(get(inner.name).kind is Kind.POINTWISE for inner in op.attrs["body"].ops)
    elements: Dim = 0
    for value in rows_of(op).lists[0]:
        elements = elements + value.type.numel
    return elements * per_element


register(
    OpDef(
        "foreach",
        Kind.LOOP,
        "Pointwise ops on many tensors. Operands: lists of `count` tensors, then what all rows share; `body` takes an "
        "element of one tensor of each list, and the shared values. like: per result of its own the list whose shapes "
        "it has; mutates: lists that it gives new contents of, which come last. Results: `count` tensors per result of "
        "the body.",
        _infer,
        _reference,
        flops=_flops,
    )
)
