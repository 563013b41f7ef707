"""Constant folding: what is known while compiling is computed while compiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import torch

from graphc.ir.graph import Graph, Literal, Op, Operand, Value
from graphc.ir.sizes import depends_on_sizes
from graphc.ir.types import DType
from graphc.loopir.scalar import SCALAR_OPS
from graphc.passes.base import PassContext, PassResult, Rewriter, Rules, constant_of, defined_by, literal_as

RULES = Rules()
_POINTWISE = (*SCALAR_OPS, "cast")
_VIEWS = ("reshape", "permute", "expand", "slice", "flip", "as_strided")


@dataclass(frozen=True)
class FoldConstants:
    """Computes with `full`, `iota` and literals.

    Before:
        %0: f32[4] = full() {shape=[4], dtype=f32, value=2.0, device="cpu"}
        %1: f32[4] = sqrt(%0)
        %2: f32[4] = mul(%x, %1)
    After:
        %2: f32[4] = mul(%x, 1.4142135381698608)

    Only constants of one number are folded, so the program never grows. Numbers are computed by the ops' references, in
    the dtype of the op: the same as at run time.
    """

    name: ClassVar[str] = "fold-constants"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        return RULES.run(graph, ctx)


@RULES.add(*_POINTWISE)
def fold_pointwise(rewriter: Rewriter, op: Op) -> Value | None:
    """A pointwise op on constants only is a `full`."""
    result = op.result
    if result.type.is_host:
        return None
    numbers: list[Any] = []
    for operand in op.operands:
        number = constant_of(operand)
        if number is None or depends_on_sizes(number):
            return None
        numbers.append(_tensor(number, operand.dtype) if isinstance(operand, Value) else number)
    try:
        value = rewriter.ctx.get_def(op.name).reference(*numbers, **op.attrs)
    except (ArithmeticError, RuntimeError):
        return None  # division by zero and the like: the program raises when it runs
    return rewriter.full(result.type, value.item())


def _tensor(number: Literal, dtype: DType) -> torch.Tensor:
    return torch.full((), number, dtype=getattr(torch, dtype.torch_name))


@RULES.add(*SCALAR_OPS)
def full_to_literal(rewriter: Rewriter, op: Op) -> Value | None:
    """`mul(x, full)` is `mul(x, number)` where x alone decides shape, dtype and device of the result."""
    if len(op.operands) < 2 or op.result.type.is_host:
        return None
    operands = list(op.operands)
    for number in range(op.name == "where", len(operands)):
        operand = operands[number]
        value = constant_of(operand)
        if value is None or not isinstance(operand, Value):
            continue
        candidate: list[Operand] = [*operands[:number], literal_as(value, operand.dtype), *operands[number + 1 :]]
        if _decides(candidate[op.name == "where" :], operand.dtype) and _same_types(rewriter, op, candidate):
            operands = candidate
    if operands == op.operands:
        return None
    op.operands = operands
    return op.result


def _decides(operands: Sequence[Operand], dtype: DType) -> bool:
    """Whether a tensor of `dtype` is left among the operands, so that numbers beside it mean that dtype."""
    return any(isinstance(item, Value) and not item.type.is_host and item.dtype == dtype for item in operands)


def _same_types(rewriter: Rewriter, op: Op, operands: list[Operand]) -> bool:
    (type,) = rewriter.ctx.infer(op.name, operands, op.attrs)
    return type == op.result.type


@RULES.add(*_VIEWS)
def view_of_full(rewriter: Rewriter, op: Op) -> Value | None:
    """A view of a `full` is a `full`."""
    number = constant_of(op.operands[0])
    return None if number is None else rewriter.full(op.result.type, number)


@RULES.add("pad")
def pad_of_full(rewriter: Rewriter, op: Op) -> Value | None:
    """A `full` padded with its own number is a `full`."""
    number, type = constant_of(op.operands[0]), op.result.type
    if number is None or repr(literal_as(number, type.dtype)) != repr(literal_as(op.attrs["value"], type.dtype)):
        return None
    return rewriter.full(type, number)


@RULES.add("concat")
def concat_of_fulls(rewriter: Rewriter, op: Op) -> Value | None:
    """A concat of `full`s of one number is a `full`."""
    numbers = [constant_of(part) for part in op.operands]
    if None in numbers or len({repr(number) for number in numbers}) != 1 or numbers[0] is None:
        return None
    return rewriter.full(op.result.type, numbers[0])


@RULES.add("amax", "amin", "any", "all", "sum")
def reduction_of_full(rewriter: Rewriter, op: Op) -> Value | None:
    """amax, amin, any and all of a `full` are that number; a sum is a multiple of it, for integers and zeros."""
    source = op.operands[0]
    number = constant_of(source)
    if number is None or not isinstance(source, Value):
        return None
    extents = [source.shape[dim] for dim in op.attrs["dims"]]
    if any(not isinstance(size, int) or size == 0 for size in extents):
        return None
    if op.name != "sum":
        return rewriter.full(op.result.type, number)
    count = reduce(lambda total, size: total * size, extents, 1)
    if not source.dtype.is_integral:
        return rewriter.full(op.result.type, 0.0) if number == 0 else None
    return rewriter.full(op.result.type, number * count) if isinstance(count, int) else None


# iota


@RULES.add("add", "sub", "mul")
def iota_arithmetic(rewriter: Rewriter, op: Op) -> Value | None:
    """`iota + c` and `iota * c` of integers are an iota."""
    iota, number = defined_by(op.operands[0], "iota"), op.operands[1]
    if iota is None or isinstance(number, (Value, float, complex)) or not op.result.dtype.is_integral:
        return None
    start, step = iota.attrs["start"], iota.attrs["step"]
    if op.name == "mul":
        return _iota(rewriter, iota, op.result, start * number, step * number)
    return _iota(rewriter, iota, op.result, start + number if op.name == "add" else start - number, step)


@RULES.add("cast")
def cast_of_iota(rewriter: Rewriter, op: Op) -> Value | None:
    """An integer iota in another integer dtype that holds it is an iota."""
    iota = defined_by(op.operands[0], "iota")
    if iota is None or not iota.result.dtype.is_integral or op.result.dtype.kind not in ("int", "uint"):
        return None
    return _iota(rewriter, iota, op.result, iota.attrs["start"], iota.attrs["step"])


@RULES.add("slice")
def slice_of_iota(rewriter: Rewriter, op: Op) -> Value | None:
    """A slice of an integer iota is an iota."""
    iota = defined_by(op.operands[0], "iota")
    if iota is None or not iota.result.dtype.is_integral or not isinstance(op.attrs["start"], int):
        return None
    start, step = iota.attrs["start"], iota.attrs["step"]
    return _iota(rewriter, iota, op.result, start + op.attrs["start"] * step, step * op.attrs["step"])


def _iota(rewriter: Rewriter, iota: Op, result: Value, start: Any, step: Any) -> Value | None:
    """An iota of the result's dtype and size, if none of its numbers is out of range."""
    (size,), dtype = result.shape, result.dtype
    if not isinstance(size, int) or not isinstance(start, int) or not isinstance(step, int):
        return None
    ends = (start, start + step * max(size - 1, 0))
    source = iota.result.dtype
    if any(literal_as(end, dtype) != end or literal_as(end, source) != end for end in ends):
        return None
    device = iota.attrs["device"]
    return rewriter.op("iota", size=size, start=start, step=step, dtype=dtype, device=device)
