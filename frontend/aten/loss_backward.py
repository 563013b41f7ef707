"""Import rules of the gradients of losses and of softmax."""

from __future__ import annotations

from collections.abc import Callable

import torch

from graphc.frontend.aten.activation import floats, number
from graphc.frontend.aten.expression import Term, wide
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.loss import MEAN
from graphc.frontend.aten.registry import CONTIGUOUS, POINTWISE, Decline, rule
from graphc.ir.dims import static
from graphc.ir.graph import Operand, Value
from graphc.ir.sizes import one_over
from graphc.ir.types import i64


def _row_dim(grad: Value, output: Value, dim: int) -> int:
    floats(grad, output)
    rank = max(output.type.rank, 1)
    if grad.dtype != output.dtype or grad.shape != output.shape or not -rank <= dim < rank:
        raise Decline("eager raises")
    return dim % rank


@rule("aten._softmax_backward_data.default", layout=CONTIGUOUS)
def softmax_backward(imp: Importer, grad_output: Value, output: Value, dim: int, input_dtype: torch.dtype) -> Value:
    dim = _row_dim(grad_output, output, dim)
    return Term(imp, imp.b.op("softmax_gradient", grad_output, output, dim=dim)).to(imp.dtype(input_dtype))


@rule("aten._log_softmax_backward_data.default", layout=CONTIGUOUS)
def log_softmax_backward(imp: Importer, grad_output: Value, output: Value, dim: int, input_dtype: torch.dtype) -> Value:
    dim = _row_dim(grad_output, output, dim)
    g, y = wide(imp, grad_output), wide(imp, output)
    return (g - y.op("exp") * (g.sum((dim,)) if output.type.rank else g)).to(imp.dtype(input_dtype))


def _scaled(
    imp: Importer, grad_output: Value, self: Value, reduction: int, fn: Callable[..., Term], *rest: Value
) -> Value:
    """`fn` of the tensors times the incoming gradient, divided by the number of elements for a mean."""
    floats(grad_output, self, *rest)
    if any(value.dtype != self.dtype for value in (grad_output, *rest)):
        raise Decline("dtypes differ")
    if reduction == MEAN and self.type.numel == 0:
        raise Decline("nothing to divide by")
    share = one_over(static(self.type.numel)) if reduction == MEAN else 1.0
    slope = fn(*(wide(imp, value) for value in (self, *rest)))
    if reduction == MEAN:
        slope = slope * share
    return (slope * wide(imp, grad_output)).to(self.dtype)


@rule("aten.mse_loss_backward.default", layout=CONTIGUOUS)
def mse_loss_backward(imp: Importer, grad_output: Value, self: Value, target: Value, reduction: int) -> Value:
    return _scaled(imp, grad_output, self, reduction, lambda x, y: 2.0 * (x - y), target)


def _clipped(d: Term, width: float, limit: float, inner: Term) -> Term:
    """`inner` for differences smaller than `width`, beyond it `limit` with the sign of the difference."""
    return d.op("le", -width).where(-limit, d.op("ge", width).where(limit, inner))


@rule("aten.smooth_l1_loss_backward.default", layout=CONTIGUOUS)
def smooth_l1_loss_backward(
    imp: Importer, grad_output: Value, self: Value, target: Value, reduction: int, beta: Operand
) -> Value:
    width = number(beta)

    def slope(x: Term, y: Term) -> Term:
        d = x - y
        return _clipped(d, width, 1.0, d / width if width > 0 else d.op("sign"))

    return _scaled(imp, grad_output, self, reduction, slope, target)


@rule("aten.huber_loss_backward.default", layout=CONTIGUOUS)
def huber_loss_backward(
    imp: Importer, grad_output: Value, self: Value, target: Value, reduction: int, delta: Operand
) -> Value:
    width = number(delta)

    return _scaled(imp, grad_output, self, reduction, lambda x, y: _clipped(x - y, width, width, x - y), target)


@rule("aten.binary_cross_entropy_backward.default", layout=POINTWISE)
def binary_cross_entropy_backward(
    imp: Importer, grad_output: Value, self: Value, target: Value, weight: Value | None = None, reduction: int = MEAN
) -> Value:
    def slope(x: Term, y: Term, *weights: Term) -> Term:
        found = (x - y) / ((1.0 - x) * x).op("maximum", 1e-12)
        return found * weights[0] if weights else found

    rest = [target] if weight is None else [target, weight]
    return _scaled(imp, grad_output, self, reduction, slope, *rest)


@rule("aten.nll_loss_backward.default", "aten.nll_loss2d_backward.default", layout=CONTIGUOUS)
def nll_loss_backward(
    imp: Importer, grad_output: Value, self: Value, target: Value, weight: Value | None, reduction: int,
    ignore_index: int, total_weight: Value,
) -> Value:  # fmt: skip
    floats(grad_output, self)
    if grad_output.dtype != self.dtype or (weight is not None and weight.dtype != self.dtype):
        raise Decline("dtypes differ")
    if self.type.rank != target.type.rank + 1 or target.dtype != i64:
        raise Decline("one sample without a batch, or labels of another dtype")
    dim = 0 if self.type.rank == 1 else 1
    shape: tuple[int, ...] = self.shape  # type: ignore[assignment]  # static by construction
    spread = (*shape[:dim], 1, *shape[dim + 1 :])
    classes = imp.b.op("iota", size=shape[dim], start=0, step=1, dtype=i64, device=self.device)
    labels = Term(imp, imp.reshape(target, spread))
    column = tuple(shape[dim] if d == dim else 1 for d in range(len(shape)))
    hit = labels.op("eq", Term(imp, imp.reshape(classes, column)))
    slope = -wide(imp, grad_output)
    if grad_output.type.rank:
        slope = slope.reshape(spread)
    if reduction == MEAN:
        slope = slope / wide(imp, total_weight)
    if weight is not None:
        slope = slope * wide(imp, weight).reshape(column)
    counted = hit.op("logical_and", labels.op("ne", ignore_index))
    return counted.where(slope, 0.0).to(self.dtype)
