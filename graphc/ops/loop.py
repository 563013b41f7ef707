"""`scan`: a loop over the first dim of tensors, with values that go from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from graphc.errors import InvalidGraphError
from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Graph, Op, Operand, Output, Value
from graphc.ir.interpreter import run
from graphc.ir.types import HOST, TensorType
from graphc.ops import rules
from graphc.ops.registry import Kind, OpDef, get, register

ATTRS = ("carries", "sequences", "length", "reverse", "body")


def _infer(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("scan", attrs, ATTRS)
    carries, sequences, length, body = (attrs[name] for name in ("carries", "sequences", "length", "body"))
    if not isinstance(body, Graph):
        raise InvalidGraphError("scan: body is not a graph")
    values = [operand for operand in operands if isinstance(operand, Value)]
    if len(values) != len(operands) or len(operands) != len(body.inputs) or carries + sequences > len(operands):
        raise InvalidGraphError(f"scan: {len(operands)} operands for a body of {len(body.inputs)} inputs")
    if isinstance(length, bool) or not isinstance(length, int) or length < 1 or len(body.outputs) < carries:
        raise InvalidGraphError("scan: it has at least one step, and its body gives every carry")
    for number, (value, item) in enumerate(zip(values, body.inputs, strict=True)):
        wanted = item.type
        if carries <= number < carries + sequences:
            wanted = stacked(wanted, length)
        if value.type != wanted:
            raise InvalidGraphError(f"scan: operand {number} is {value.type}, the body needs {wanted}")
    for item, output in zip(body.inputs[:carries], body.outputs, strict=False):
        if output.value.type != item.type or output.view is not None:
            raise InvalidGraphError(f"scan: the carry {item.name} is {item.type} and becomes {output.value.type}")
    found = [output.value.type for output in body.outputs]
    if any(type.device == HOST for type in found):
        raise InvalidGraphError("scan: a body gives tensors, not host scalars")
    return (*found[:carries], *(stacked(type, length) for type in found[carries:]))


def stacked(type: TensorType, length: Dim) -> TensorType:
    """The type of one such tensor per step, along a new first dim."""
    return TensorType(type.dtype, (length, *type.shape), type.device)


def _reference(
    *operands: Any, carries: int, sequences: int, length: int, reverse: bool, body: Graph
) -> tuple[torch.Tensor, ...]:
    state, fixed = list(operands[:carries]), list(operands[carries + sequences :])
    items = operands[carries : carries + sequences]
    plain = Graph(body.name, body.inputs, body.ops, [], [Output(output.value) for output in body.outputs])
    pieces: list[list[torch.Tensor]] = [[] for _ in body.outputs[carries:]]
    for t in reversed(range(length)) if reverse else range(length):
        results: list[Any] = run(plain, [*state, *(item[t] for item in items), *fixed], get)
        state = [result.clone() for result in results[:carries]]  # a step may hand on what it was given
        for collected, result in zip(pieces, results[carries:], strict=True):
            collected.append(result.clone())
    stacks = [torch.stack(found[::-1] if reverse else found) for found in pieces]
    return (*state, *stacks)


def _flops(op: Op) -> Dim:
    total: Dim = 0
    for inner in op.attrs["body"].ops:
        rule = get(inner.name).flops
        total = total + (rule(inner) if rule is not None else 0)
    return total * op.attrs["length"]


register(
    OpDef(
        "scan",
        Kind.LOOP,
        "A loop of `length` steps. Operands: `carries` initial values, `sequences` tensors of which step t sees item t "
        "of the first dim, and tensors that every step sees. `body` takes them in this order and gives the carries for "
        "the next step, then what is stacked, item t by step t. Results: the last carries, then the stacks. reverse: "
        "the first step has the last t.",
        _infer,
        _reference,
        flops=_flops,
    )
)
