"""The softmax family: composite ops that expand into a maximum and sums over one dim and pointwise ops.

Every expansion keeps the reduced dims (`keepdim`), so that it lowers to one kernel with one row per statistic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from graphc.errors import InvalidGraphError
from graphc.ir.graph import Attr, Builder, Op, Operand, Value
from graphc.ir.types import TensorType, f32, f64
from graphc.ops import composite
from graphc.ops.registry import Kind, OpDef, register

_ROUNDING = 1e-4
"""How far from 1 the sum of float32 weights of a softmax may be by rounding; eager sums long rows in float32."""

_NOISE = 2.0**-48
"""Relative errors of sums in float64."""

_MANY_ROWS = 128
"""Rows whose largest error is no luck any more: eager's is as large, so sums in float64 would only take time."""


def _softmax_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    x = composite.floating(operands[0], "softmax")
    if not 0 <= attrs["dim"] < max(x.type.rank, 1):
        raise InvalidGraphError(f"softmax over dim {attrs['dim']} of {x.type}")
    return [x.type]


def _shifted_exponentials(b: Builder, op: Op) -> tuple[Value, Value, Value]:
    """(x - max, its exponential, the sum of the exponentials), in compute dtype, at least one-dimensional."""
    source = composite.tensor(op.operands[0], op.name)
    x, dims = composite.reshape(b, composite.wide(b, source), source.shape or (1,)), (op.attrs["dim"],)
    shifted = b.op("sub", x, b.op("amax", x, dims=dims, keepdim=True))
    exponential = b.op("exp", shifted)
    return shifted, exponential, b.op("sum", exponential, dims=dims, keepdim=True)


def _nothing(b: Builder, type: TensorType) -> Value:
    """A tensor with no elements."""
    return b.op("full", shape=type.shape, dtype=type.dtype, value=0, device=type.device)


def _expand_softmax(b: Builder, op: Op) -> Sequence[Value]:
    result = op.result.type
    if 0 in result.shape:
        return [_nothing(b, result)]
    _, exponential, total = _shifted_exponentials(b, op)
    y = composite.cast(b, b.op("div", exponential, total), result.dtype)
    return [composite.reshape(b, y, result.shape)]


def _expand_log_softmax(b: Builder, op: Op) -> Sequence[Value]:
    result = op.result.type
    if 0 in result.shape:
        return [_nothing(b, result)]
    shifted, _, total = _shifted_exponentials(b, op)
    y = composite.cast(b, b.op("sub", shifted, b.op("log", total)), result.dtype)
    return [composite.reshape(b, y, result.shape)]


register(
    OpDef(
        "softmax",
        Kind.COMPOSITE,
        "exp(x - max) / sum(exp(x - max)) along dim; a row with no finite maximum is NaN, as in eager.",
        _softmax_type,
        lambda x, dim: torch.softmax(x, dim),
        expand=_expand_softmax,
    )
)
register(
    OpDef(
        "log_softmax",
        Kind.COMPOSITE,
        "x - max - log(sum(exp(x - max))) along dim.",
        _softmax_type,
        lambda x, dim: torch.log_softmax(x, dim),
        expand=_expand_log_softmax,
    )
)


def _expand_safe_softmax(b: Builder, op: Op) -> Sequence[Value]:
    result = op.result.type
    if 0 in result.shape:
        return [_nothing(b, result)]
    source = composite.tensor(op.operands[0], op.name)
    x, dims = composite.reshape(b, composite.wide(b, source), source.shape or (1,)), (op.attrs["dim"],)
    peak = b.op("amax", x, dims=dims, keepdim=True)
    exponential = b.op("exp", b.op("sub", x, peak))
    quotient = b.op("div", exponential, b.op("sum", exponential, dims=dims, keepdim=True))
    y = b.op("where", b.op("eq", peak, -math.inf), 0.0, quotient)
    return [composite.reshape(b, composite.cast(b, y, result.dtype), result.shape)]


register(
    OpDef(
        "safe_softmax",
        Kind.COMPOSITE,
        "softmax along dim, but 0 in rows that are -inf throughout: attention with every key masked.",
        _softmax_type,
        lambda x, dim: torch.softmax(x, dim).masked_fill((x == -math.inf).all(dim, keepdim=True), 0.0),
        expand=_expand_safe_softmax,
    )
)


def _softmax_gradient_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    grad, weights = (composite.floating(operand, "softmax_gradient") for operand in operands)
    if grad.type != weights.type:
        raise InvalidGraphError(f"softmax_gradient of weights {weights.type} for a gradient {grad.type}")
    if not 0 <= attrs["dim"] < max(weights.type.rank, 1):
        raise InvalidGraphError(f"softmax_gradient over dim {attrs['dim']} of {weights.type}")
    return [weights.type.with_dtype(weights.dtype.compute)]


def _reference_softmax_gradient(grad: torch.Tensor, weights: torch.Tensor, dim: int) -> torch.Tensor:
    compute = torch.float32 if weights.dtype in (torch.float16, torch.bfloat16) else weights.dtype
    g, p = grad.to(compute), weights.to(compute)
    return (g - (g * p).sum(dim, keepdim=True)) * p


def _rows_of_gradient(b: Builder, op: Op) -> tuple[Value, Value]:
    """(gradient, weights) in compute dtype, at least one-dimensional."""
    wide = (composite.wide(b, composite.tensor(operand, op.name)) for operand in op.operands)
    grad, weights = (composite.reshape(b, value, value.shape or (1,)) for value in wide)
    return grad, weights


def _expand_softmax_gradient(b: Builder, op: Op) -> Sequence[Value]:
    result = op.result.type
    if 0 in result.shape:
        return [_nothing(b, result)]
    g, p = _rows_of_gradient(b, op)
    total = b.op("sum", b.op("mul", g, p), dims=(op.attrs["dim"],), keepdim=True)
    # as eager: where one weight is nearly 1, `g - total` is exact, and differences of products would not be
    return [composite.reshape(b, b.op("mul", b.op("sub", g, total), p), result.shape)]


def _has_few_rows(weights: Value, dim: int) -> bool:
    rows = composite.product([size for d, size in enumerate(weights.shape) if d != dim])
    return isinstance(rows, int) and rows < _MANY_ROWS


def _expand_softmax_gradient_precisely(b: Builder, op: Op) -> Sequence[Value]:
    """With t = sum(g * p) / sum(p) in float64, handed on as two float32 numbers: (g - high - low) * p.

    Where one weight is nearly 1, `g - t` there is far below the rounding of t to float32, and below what the rounding
    of the weights themselves does to sum(g * p). The division takes the latter out: a result is then as exact as its
    own weight. Only sums that are 1 but for rounding are divided by; others are no softmax, or masked whole.
    """
    result, weights = op.result.type, composite.tensor(op.operands[1], op.name)
    if weights.dtype != f32 or 0 in result.shape or not _has_few_rows(weights, op.attrs["dim"]):
        return _expand_softmax_gradient(b, op)
    g, p = _rows_of_gradient(b, op)
    wide_g, wide_p = (b.op("cast", value, dtype=f64) for value in (g, p))
    dims = (op.attrs["dim"],)
    total = b.op("sum", b.op("mul", wide_g, wide_p), dims=dims, keepdim=True)
    excess = b.op("sub", b.op("sum", wide_p, dims=dims, keepdim=True), 1.0)
    is_rounding = b.op("lt", b.op("abs", excess), _ROUNDING)
    # 1 / (1 + excess), to the square of excess
    total = b.op("mul", total, b.op("where", is_rounding, b.op("sub", 1.0, excess), 1.0))
    high = b.op("cast", total, dtype=f32)
    rest = b.op("cast", b.op("sub", total, b.op("cast", high, dtype=f64)), dtype=f32)
    # not what float64 rounds by itself, nor where the total overflows float32
    is_exact = b.op("gt", b.op("abs", rest), b.op("mul", b.op("abs", high), _NOISE))
    low = b.op("where", is_exact, rest, 0.0)
    slope = b.op("sub", b.op("sub", g, high), low)
    return [composite.reshape(b, b.op("mul", slope, p), result.shape)]


register(
    OpDef(
        "softmax_gradient",
        Kind.COMPOSITE,
        "(grad - sum(grad * weights)) * weights along dim, for grad and weights, the result of a softmax; in the dtype "
        "that they are computed in.",
        _softmax_gradient_type,
        _reference_softmax_gradient,
        expand=_expand_softmax_gradient,
        expand_precisely=_expand_softmax_gradient_precisely,
    )
)
