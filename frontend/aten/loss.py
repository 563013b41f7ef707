"""Import rules of losses. `cross_entropy` arrives as log_softmax and nll_loss, `kl_div` and `l1_loss` pointwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from graphc.frontend.aten.activation import floats, number
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.registry import CONTIGUOUS, LIKE, POINTWISE, Decline, rule
from graphc.frontend.aten.stated import stated_call
from graphc.ir.graph import Attr, Operand, Value
from graphc.ir.types import i64, u8

REDUCTIONS = ("none", "mean", "sum")
"""By ATen's number."""

MEAN, SUM = 1, 2


def _shape(value: Value) -> tuple[int, ...]:
    return value.shape  # type: ignore[return-value]  # static


def _elementwise(imp: Importer, name: str, self: Value, target: Value, reduction: int, **attrs: Attr) -> Value:
    (x, y), dtype = imp.promote(self, target)
    if not dtype.is_float:
        raise Decline("eager raises")
    return imp.b.op(name, x, y, reduction=REDUCTIONS[reduction], **attrs)


@rule("aten.mse_loss.default", layout=POINTWISE)
def mse_loss(imp: Importer, self: Value, target: Value, reduction: int = MEAN) -> Value:
    return _elementwise(imp, "mse_loss", self, target, reduction)


@rule("aten.smooth_l1_loss.default", layout=POINTWISE)
def smooth_l1_loss(imp: Importer, self: Value, target: Value, reduction: int = MEAN, beta: Operand = 1.0) -> Value:
    if number(beta) < 0:
        raise Decline("eager raises")
    return _elementwise(imp, "smooth_l1_loss", self, target, reduction, beta=beta)


@rule("aten.huber_loss.default", layout=LIKE)
def huber_loss(imp: Importer, self: Value, target: Value, reduction: int = MEAN, delta: Operand = 1.0) -> Value:
    if number(delta) <= 0 or self.dtype != target.dtype or self.shape != target.shape:
        raise Decline("eager raises, or rounds to the dtype of the input")
    return _elementwise(imp, "huber_loss", self, target, reduction, delta=delta)


@rule("aten.soft_margin_loss.default", layout=POINTWISE)
def soft_margin_loss(imp: Importer, self: Value, target: Value, reduction: int = MEAN) -> Value:
    return _elementwise(imp, "soft_margin_loss", self, target, reduction)


def _same(*values: Value | None) -> list[Value]:
    """The tensors that are there, all of one float dtype.

    Raises:
        Decline: they are not.
    """
    given = [value for value in values if value is not None]
    floats(*given)
    if any(value.dtype != given[0].dtype for value in given):
        raise Decline("dtypes differ")
    return given


@rule("aten.binary_cross_entropy.default", layout=POINTWISE)
def binary_cross_entropy(
    imp: Importer, self: Value, target: Value, weight: Value | None = None, reduction: int = MEAN
) -> Value:
    if self.shape != target.shape:
        raise Decline("eager raises")
    attrs = {"reduction": REDUCTIONS[reduction], "weight": weight is not None}
    return imp.b.op("binary_cross_entropy", *_same(self, target, weight), **attrs)


@rule("aten.binary_cross_entropy_with_logits.default", layout=CONTIGUOUS)
def binary_cross_entropy_with_logits(
    imp: Importer,
    self: Value,
    target: Value,
    weight: Value | None = None,
    pos_weight: Value | None = None,
    reduction: int = MEAN,
) -> Value:
    if self.shape != target.shape:
        raise Decline("eager raises, or broadcasts step by step")
    attrs = {"weight": weight is not None, "pos_weight": pos_weight is not None}
    operands = _same(self, target, weight, pos_weight)
    loss = imp.b.op("binary_cross_entropy_with_logits", *operands, reduction=REDUCTIONS[reduction], **attrs)
    # eager computes in place on 1 - target
    return imp.with_strides(loss, imp.preserved_strides(target)) if loss.shape == target.shape else loss


def _nll_loss(
    imp: Importer, self: Value, target: Value, weight: Value | None, reduction: int, ignore_index: int
) -> tuple[Value, Value]:
    _same(self, weight)
    if target.dtype not in (i64, u8):
        raise Decline("eager raises")
    if target.shape != (self.shape[0], *self.shape[2:]) or (weight is not None and weight.shape != (self.shape[1],)):
        raise Decline("eager raises")
    if self.shape[1] == 0:
        raise Decline("no class to look up: the data decide whether eager raises")
    operands = [self, target] if weight is None else [self, target, weight]
    attrs = {"weight": weight is not None, "reduction": REDUCTIONS[reduction], "ignore_index": ignore_index}
    loss, total_weight = imp.b.multi("nll_loss", operands, attrs).results
    return loss, total_weight


@rule("aten.nll_loss_forward.default", layout=CONTIGUOUS)
def nll_loss_forward(
    imp: Importer, self: Value, target: Value, weight: Value | None, reduction: int, ignore_index: int
) -> tuple[Value, Value]:
    if self.type.rank == 2 and target.type.rank == 1:
        return _nll_loss(imp, self, target, weight, reduction, ignore_index)
    if self.type.rank != 1 or target.type.numel != 1:
        raise Decline("eager raises")
    batch, single = imp.reshape(self, (1, *self.shape)), imp.reshape(target, (1,))  # type: ignore[arg-type]  # static
    return _nll_loss(imp, batch, single, weight, reduction or SUM, ignore_index)


@rule("aten.nll_loss2d_forward.default", layout=CONTIGUOUS)
def nll_loss2d_forward(
    imp: Importer, self: Value, target: Value, weight: Value | None, reduction: int, ignore_index: int
) -> tuple[Value, Value]:
    if self.type.rank != 4:
        raise Decline("eager raises")
    return _nll_loss(imp, self, target, weight, reduction, ignore_index)


@rule("aten._ctc_loss.default", "aten._ctc_loss.Tensor", layout=CONTIGUOUS)
def ctc_loss(
    imp: Importer,
    log_probs: Value,
    targets: Value,
    input_lengths: Sequence[int] | Value,
    target_lengths: Sequence[int] | Value,
    blank: int = 0,
    zero_infinity: bool = False,
) -> tuple[Value, Value | None]:
    # the second result, which only the backward reads, has a shape that depends on the lengths
    if log_probs.type.rank != 3 or not log_probs.dtype.is_float:
        raise Decline("eager raises")
    if torch.is_grad_enabled():
        return _ctc_loss_with_alphas(imp, log_probs, targets, input_lengths, target_lengths, blank, zero_infinity)
    overload = "aten.ctc_loss.Tensor" if isinstance(input_lengths, Value) else "aten.ctc_loss.IntList"
    args = [log_probs, targets, input_lengths, target_lengths, blank, 0, False]
    (loss,) = stated_call(imp, overload, args, [log_probs.type.with_shape((log_probs.shape[1],))])
    return loss, None


def _ctc_loss_with_alphas(
    imp: Importer, log_probs: Value, targets: Value, input_lengths: Any, target_lengths: Any, *options: Any
) -> tuple[Value, Value]:
    """The alphas of a batch with one text more, as long as texts can be here, so that data do not decide their shape.

    Alphas of other texts have the same numbers, and columns behind them that the backward pass does not look at.
    """
    if not isinstance(target_lengths, Value) or not isinstance(input_lengths, Value) or targets.type.rank != 2:
        raise Decline("texts behind each other: how long they can be is not known")
    if log_probs.shape[1] != targets.shape[0] or {input_lengths.shape, target_lengths.shape} != {(targets.shape[0],)}:
        raise Decline("eager raises")
    (time, batch, _), (_, longest) = _shape(log_probs), _shape(targets)

    def with_one_more(value: Value, dim: int, filler: int) -> Value:
        shape = list(_shape(value))
        shape[dim] = 1
        return imp.b.op("concat", value, imp.full(shape, filler, value.dtype, value.device), dim=dim)

    args = [
        with_one_more(log_probs, 1, 0), with_one_more(targets, 0, 0),
        with_one_more(input_lengths, 0, 0), with_one_more(target_lengths, 0, longest), *options,
    ]  # fmt: skip
    types = [
        log_probs.type.with_shape((batch + 1,)),
        log_probs.type.with_shape((batch + 1, time, 2 * longest + 1)),
    ]
    loss, alphas = stated_call(imp, "aten._ctc_loss.Tensor", args, types)
    return imp.slice(loss, 0, 0, batch), imp.slice(alphas, 0, 0, batch)
