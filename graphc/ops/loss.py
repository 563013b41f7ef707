"""Losses: composite ops that expand into pointwise ops, a gather for class indices, and one reduction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from graphc.errors import InvalidGraphError
from graphc.ir.graph import Attr, Builder, Op, Operand, Value
from graphc.ir.types import TensorType, i64
from graphc.ops import checks, composite, rules
from graphc.ops.registry import Kind, OpDef, register

Formula: TypeAlias = Callable[[Builder, Value, Value, Mapping[str, Attr]], Value]
"""Writes a loss per element of an input and a target in compute dtype."""


def _elementwise_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    tensors = [composite.floating(operand, "a loss") for operand in operands]
    if any(t.dtype != tensors[0].dtype for t in tensors):
        raise InvalidGraphError(f"a loss of different dtypes: {', '.join(str(t.type) for t in tensors)}")
    shape = rules.broadcast("a loss", [t.shape for t in tensors])
    return [composite.reduced_type(shape, tensors[0].type, attrs["reduction"])]


def _elementwise_loss(name: str, doc: str, formula: Formula, reference: Callable[..., Any]) -> OpDef:
    def expand(b: Builder, op: Op) -> Sequence[Value]:
        x, y = (composite.wide(b, composite.tensor(operand, name)) for operand in op.operands)
        loss = composite.reduce_loss(b, formula(b, x, y, op.attrs), op.attrs["reduction"])
        return [composite.cast(b, loss, op.result.dtype)]

    return register(OpDef(name, Kind.COMPOSITE, doc, _elementwise_type, reference, expand=expand))


def mse(b: Builder, x: Value, y: Value, attrs: Mapping[str, Attr]) -> Value:
    difference = b.op("sub", x, y)
    return b.op("mul", difference, difference)


def smooth_l1(b: Builder, x: Value, y: Value, attrs: Mapping[str, Attr]) -> Value:
    beta, distance = float(attrs["beta"]), b.op("abs", b.op("sub", x, y))
    if beta == 0:
        return distance
    square = b.op("div", b.op("mul", b.op("mul", distance, 0.5), distance), beta)
    return b.op("where", b.op("lt", distance, beta), square, b.op("sub", distance, 0.5 * beta))


def huber(b: Builder, x: Value, y: Value, attrs: Mapping[str, Attr]) -> Value:
    delta, distance = float(attrs["delta"]), b.op("abs", b.op("sub", x, y))
    square = b.op("mul", b.op("mul", distance, 0.5), distance)
    linear = b.op("mul", b.op("sub", distance, 0.5 * delta), delta)
    return b.op("where", b.op("le", distance, delta), square, linear)


def soft_margin(b: Builder, x: Value, y: Value, attrs: Mapping[str, Attr]) -> Value:
    return b.op("log1p", b.op("exp", b.op("mul", b.op("neg", x), y)))


_elementwise_loss("mse_loss", "(x - y)^2, reduced: none, mean or sum.", mse, F.mse_loss)
_elementwise_loss(
    "smooth_l1_loss",
    "d^2 / (2 beta) where d = |x - y| < beta, else d - beta/2; reduced. Source: Girshick, arXiv 1504.08083.",
    smooth_l1,
    F.smooth_l1_loss,
)
_elementwise_loss(
    "huber_loss",
    "d^2 / 2 where d = |x - y| <= delta, else delta (d - delta/2); reduced. Source: Huber, 1964.",
    huber,
    F.huber_loss,
)
_elementwise_loss("soft_margin_loss", "log1p(exp(-x y)), reduced.", soft_margin, F.soft_margin_loss)


def _optional(operands: Sequence[Value], attrs: Mapping[str, Attr], *names: str) -> list[Value | None]:
    """Optional trailing operands; the boolean attribute of each name says whether it is there."""
    rest = list(operands)
    if len(rest) != sum(bool(attrs[name]) for name in names):
        raise InvalidGraphError(f"attributes {', '.join(names)} do not agree with the number of operands")
    return [rest.pop(0) if attrs[name] else None for name in names]


def _reference_bce(x: torch.Tensor, y: torch.Tensor, *rest: torch.Tensor, weight: bool, reduction: str) -> torch.Tensor:
    return F.binary_cross_entropy(x, y, rest[0] if weight else None, reduction=reduction)


def _between_0_and_1(b: Builder, x: Value, what: str) -> Value:
    message = f"all elements of {what} should be between 0 and 1"
    return b.op("checked", x, low=0.0, high=1.0, error="RuntimeError", message=message)


def _expand_bce(b: Builder, op: Op) -> Sequence[Value]:
    x, y, *rest = (composite.wide(b, composite.tensor(operand, op.name)) for operand in op.operands)
    (weight,) = _optional(rest, op.attrs, "weight")
    x = _between_0_and_1(b, x, "input")
    if checks.bce_checks_targets():
        y = _between_0_and_1(b, y, "target")
    # logarithms are cut off at -100, so that a sure and wrong answer has a finite loss
    log_no = b.op("maximum", b.op("log1p", b.op("neg", x)), -100.0)
    log_yes = b.op("maximum", b.op("log", x), -100.0)
    loss = b.op("sub", b.op("mul", b.op("sub", y, 1.0), log_no), b.op("mul", y, log_yes))
    if weight is not None:
        loss = b.op("mul", loss, weight)
    return [composite.cast(b, composite.reduce_loss(b, loss, op.attrs["reduction"]), op.result.dtype)]


register(
    OpDef(
        "binary_cross_entropy",
        Kind.COMPOSITE,
        "-(y log x + (1 - y) log(1 - x)) with logarithms cut off at -100, times weight (operand 2 if weight is set), "
        "reduced. x outside [0, 1] is refused.",
        _elementwise_type,
        _reference_bce,
        expand=_expand_bce,
    )
)


def _reference_bce_logits(
    x: torch.Tensor, y: torch.Tensor, *rest: torch.Tensor, weight: bool, pos_weight: bool, reduction: str
) -> torch.Tensor:
    given = list(rest)
    scale = given.pop(0) if weight else None
    positive = given.pop(0) if pos_weight else None
    return F.binary_cross_entropy_with_logits(x, y, scale, reduction=reduction, pos_weight=positive)


def _expand_bce_logits(b: Builder, op: Op) -> Sequence[Value]:
    x, y, *rest = (composite.wide(b, composite.tensor(operand, op.name)) for operand in op.operands)
    weight, positive = _optional(rest, op.attrs, "weight", "pos_weight")
    tail = b.op("log1p", b.op("exp", b.op("neg", b.op("abs", x))))
    log_sigmoid = b.op("sub", b.op("minimum", x, 0.0), tail)
    loss = b.op("mul", b.op("sub", 1.0, y), x)
    if positive is not None:
        log_sigmoid = b.op("mul", b.op("add", b.op("mul", b.op("sub", positive, 1.0), y), 1.0), log_sigmoid)
    loss = b.op("sub", loss, log_sigmoid)
    if weight is not None:
        loss = b.op("mul", loss, weight)
    return [composite.cast(b, composite.reduce_loss(b, loss, op.attrs["reduction"]), op.result.dtype)]


register(
    OpDef(
        "binary_cross_entropy_with_logits",
        Kind.COMPOSITE,
        "(1 - y) x - (1 + (pos_weight - 1) y) log(sigmoid(x)), times weight, reduced; attributes weight and pos_weight "
        "say which operands follow, in that order.",
        _elementwise_type,
        _reference_bce_logits,
        expand=_expand_bce_logits,
    )
)


def _nll_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    x, target, *rest = (composite.tensor(operand, "nll_loss") for operand in operands)
    _optional(rest, attrs, "weight")
    if not x.dtype.is_float or not target.dtype.is_integral or x.type.rank < 2:
        raise InvalidGraphError(f"nll_loss takes (N, C, ...) floats and class numbers, got {x.type} and {target.type}")
    if target.shape != (x.shape[0], *x.shape[2:]):
        raise InvalidGraphError(f"nll_loss: target is {target.type}, input {x.type}")
    if rest and rest[0].shape != (x.shape[1],):
        raise InvalidGraphError(f"nll_loss: weight is {rest[0].type}, there are {x.shape[1]} classes")
    return [composite.reduced_type(target.shape, x.type, attrs["reduction"]), x.type.with_shape(())]


def _expand_nll(b: Builder, op: Op) -> Sequence[Value]:
    x, target, *rest = (composite.tensor(operand, op.name) for operand in op.operands)
    (weight,) = _optional(rest, op.attrs, "weight")
    reduction, result = op.attrs["reduction"], op.results[0]
    target = composite.cast(b, target, i64)
    kept = b.op("ne", target, op.attrs["ignore_index"])
    safe = b.op("where", kept, target, 0)
    index = b.op("reshape", safe, shape=(x.shape[0], 1, *x.shape[2:]))
    picked = b.op("gather", x, index, dim=1, check="target")
    loss = b.op("neg", composite.reshape(b, composite.wide(b, picked), target.shape))
    if weight is not None:
        chosen = composite.cast(b, composite.wide(b, b.op("take", weight, safe, dim=0, check="none")), loss.dtype)
        weights = b.op("where", kept, chosen, 0.0)
        loss = b.op("mul", loss, chosen)
    else:
        weights = b.op("cast", kept, dtype=loss.dtype)
    loss = b.op("where", kept, loss, 0.0)
    if reduction == "none":
        nothing = b.op("full", shape=(), dtype=result.dtype, value=0.0, device=result.device)
        return [composite.cast(b, loss, result.dtype), nothing]
    total, total_weight = (composite.reduce_loss(b, value, "sum") for value in (loss, weights))
    if reduction == "mean":
        total = b.op("div", total, total_weight)
    return [composite.cast(b, total, result.dtype), composite.cast(b, total_weight, result.dtype)]


def _reference_nll(
    x: torch.Tensor, target: torch.Tensor, *rest: torch.Tensor, weight: bool, reduction: str, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    scale = rest[0] if weight else None
    loss = F.nll_loss(x, target, scale, ignore_index=ignore_index, reduction=reduction)
    kept = target != ignore_index
    weights = kept.to(x.dtype) if scale is None else torch.where(kept, scale[torch.where(kept, target, 0)], 0)
    return loss, x.new_zeros(()) if reduction == "none" else weights.sum()


register(
    OpDef(
        "nll_loss",
        Kind.COMPOSITE,
        "-x[n, target[n]] * weight[target[n]] for x (N, C, ...), 0 where target is ignore_index; the mean divides by "
        "the sum of the weights used. weight: whether operand 2 is there. Results: loss, sum of weights (0 for none).",
        _nll_type,
        _reference_nll,
        expand=_expand_nll,
    )
)
