"""Import rules of softmax and the normalizations."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graphc.frontend.aten import layout
from graphc.frontend.aten.activation import floats, number
from graphc.frontend.aten.expression import wide
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.memory_format import batch_format, like_input, suggested
from graphc.frontend.aten.registry import CONTIGUOUS, Decline, rule
from graphc.frontend.aten.stated import stated_call
from graphc.ir.graph import Operand, Value
from graphc.ir.sizes import real
from graphc.ir.types import DType, f32, f64, u8
from graphc.ops import composite


def _softmax_dim(self: Value, dim: int) -> int:
    rank = max(self.type.rank, 1)
    if not -rank <= dim < rank:
        raise Decline("eager raises")
    return dim % rank


def _softmax(imp: Importer, name: str, self: Value, dim: int, dtype: DType) -> Value:
    if self.dtype.kind == "complex" or not dtype.is_float:
        raise Decline("complex softmax")
    x = imp.cast(self, dtype)
    assert isinstance(x, Value)
    floats(x)
    return imp.b.op(name, x, dim=_softmax_dim(self, dim))


@rule("aten._softmax.default", layout=CONTIGUOUS)
def softmax(imp: Importer, self: Value, dim: int, half_to_float: bool) -> Value:
    return _softmax(imp, "softmax", self, dim, f32 if half_to_float else self.dtype)


@rule("aten._log_softmax.default", layout=CONTIGUOUS)
def log_softmax(imp: Importer, self: Value, dim: int, half_to_float: bool) -> Value:
    return _softmax(imp, "log_softmax", self, dim, f32 if half_to_float else self.dtype)


@rule("aten.softmax.int", layout=CONTIGUOUS)
def softmax_int(imp: Importer, self: Value, dim: int, dtype: torch.dtype | None = None) -> Value:
    return _softmax(imp, "softmax", self, dim, imp.dtype(dtype, self.dtype))


@rule("aten.log_softmax.int", layout=CONTIGUOUS)
def log_softmax_int(imp: Importer, self: Value, dim: int, dtype: torch.dtype | None = None) -> Value:
    return _softmax(imp, "log_softmax", self, dim, imp.dtype(dtype, self.dtype))


@rule("aten._safe_softmax.default", layout=CONTIGUOUS)
def safe_softmax(imp: Importer, self: Value, dim: int, dtype: torch.dtype | None = None) -> Value:
    return _softmax(imp, "safe_softmax", self, dim, imp.dtype(dtype, self.dtype))


def _mixes(self: Value, *parameters: Value | None) -> None:
    """Let pass what eager's norms take: parameters of the input's dtype, or all f32 beside a reduced input.

    Raises:
        Decline: another mix; eager raises.
    """
    floats(self)
    given = [p for p in parameters if p is not None]
    same = all(p.dtype == self.dtype for p in given)
    if not same and not (self.dtype.is_reduced and all(p.dtype == f32 for p in given)):
        raise Decline("dtypes do not fit")


def _present(*values: Value | None) -> list[Value]:
    return [value for value in values if value is not None]


@rule("aten.native_layer_norm.default", layout=CONTIGUOUS)
def native_layer_norm(
    imp: Importer, input: Value, normalized_shape: Sequence[int], weight: Value | None, bias: Value | None, eps: Operand
) -> tuple[Value, ...]:
    _mixes(input, weight, bias)
    shape, dims = tuple(normalized_shape), len(normalized_shape)
    if not 0 < dims <= input.type.rank or input.shape[input.type.rank - dims :] != shape:
        raise Decline("eager raises")
    if any(p.shape != shape for p in _present(weight, bias)):
        raise Decline("eager raises")
    attrs = {"dims": dims, "eps": number(eps), "weight": weight is not None, "bias": bias is not None}
    return tuple(imp.b.multi("layer_norm", [input, *_present(weight, bias)], attrs).results)


def _rms_norm(
    imp: Importer, input: Value, normalized_shape: Sequence[int], weight: Value | None, eps: Operand | None
) -> tuple[Value, ...]:
    _mixes(input, weight)
    shape, dims = tuple(normalized_shape), len(normalized_shape)
    if not 0 < dims <= input.type.rank or input.shape[input.type.rank - dims :] != shape:
        raise Decline("eager raises")
    if weight is not None and weight.shape != shape:
        raise Decline("eager raises")
    if eps is None:
        eps = torch.finfo(torch.float64 if input.dtype == f64 else torch.float32).eps
    attrs = {"dims": dims, "eps": number(eps), "weight": weight is not None}
    return tuple(imp.b.multi("rms_norm", [input, *_present(weight)], attrs).results)


@rule("aten._fused_rms_norm.default", layout=CONTIGUOUS)
def fused_rms_norm(
    imp: Importer, input: Value, normalized_shape: Sequence[int], weight: Value | None, eps: Operand | None
) -> tuple[Value, ...]:
    return _rms_norm(imp, input, normalized_shape, weight, eps)


@rule("aten.rms_norm.default", layout=CONTIGUOUS)
def rms_norm(
    imp: Importer,
    input: Value,
    normalized_shape: Sequence[int],
    weight: Value | None = None,
    eps: Operand | None = None,
) -> Value:
    return _rms_norm(imp, input, normalized_shape, weight, eps)[0]


@rule("aten.native_group_norm.default")
def native_group_norm(
    imp: Importer,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    N: int,
    C: int,
    HxW: int,
    group: int,
    eps: Operand,
) -> tuple[Value, ...]:
    _mixes(input, weight, bias)
    fits = input.type.rank >= 2 and input.shape[:2] == (N, C) and input.type.numel == N * C * HxW
    shape, strides = composite.static(input.shape, "native_group_norm"), imp.strides(input)
    fits = fits and (layout.is_contiguous(shape, strides) or layout.is_channels_last(shape, strides))
    if not fits or group <= 0 or C % group != 0 or any(p.type.numel != C for p in _present(weight, bias)):
        raise Decline("eager raises, or a layout of its own")
    attrs = {"groups": group, "eps": number(eps), "weight": weight is not None, "bias": bias is not None}
    operands = [input, *_present(weight, bias)]
    if input.device == "cpu" and suggested(imp, input):
        # groups of channels_last images are strided rows, which ATen's own kernel walks better
        types = imp.b.infer("group_norm", operands, attrs)
        args = [input, weight, bias, N, C, HxW, group, number(eps)]
        out, *stats = stated_call(imp, "aten.native_group_norm.default", args, types)
    else:
        out, *stats = imp.b.multi("group_norm", operands, attrs).results
    return (like_input(imp, out, input), *stats)


def _batch_norm_eval(
    imp: Importer, input: Value, weight: Value | None, bias: Value | None, mean: Value, var: Value, eps: Operand
) -> Value:
    attrs = {"eps": number(eps), "weight": weight is not None, "bias": bias is not None}
    out = imp.b.op("batch_norm_eval", input, mean, var, *_present(weight, bias), **attrs)
    return batch_format(imp, out, input)


def _moving_average(imp: Importer, running: Value, batch: Value, momentum: Operand) -> Value:
    """`(1 - momentum) * running + momentum * batch` in the dtype of the batch statistic, stored as `running`."""
    # momentum is a traced number when batch norm averages over all batches
    kept = imp.b.op("sub", 1.0, momentum) if isinstance(momentum, Value) else 1.0 - momentum
    old = imp.b.op("mul", imp.cast(running, batch.dtype), kept)
    new = imp.cast(imp.b.op("add", old, imp.b.op("mul", batch, momentum)), running.dtype)
    assert isinstance(new, Value)
    return new


def _batch_norm_train(
    imp: Importer,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    momentum: Operand,
    eps: Operand,
) -> tuple[Value, Value, Value]:
    attrs = {"eps": number(eps), "weight": weight is not None, "bias": bias is not None}
    op = imp.b.multi("batch_norm_train", [input, *_present(weight, bias)], attrs)
    out, mean, rstd, variance = op.results
    if running_mean is not None:
        imp.write(running_mean, _moving_average(imp, running_mean, mean, momentum))
    if running_var is not None:
        (count,) = composite.static((input.type.numel // input.shape[1],), "batch norm")
        unbiased = imp.b.op("div", imp.b.op("mul", variance, real(count)), real(count - 1))
        imp.write(running_var, _moving_average(imp, running_var, unbiased, momentum))
    stat = next((p.dtype for p in _present(weight, bias, running_mean, running_var)), input.dtype)
    if not (input.dtype.is_reduced and stat == f32):
        stat = input.dtype
    saved = [imp.cast(value, stat) for value in (mean, rstd)]
    assert all(isinstance(value, Value) for value in saved)
    return (batch_format(imp, out, input), *saved)  # type: ignore[return-value]


@rule("aten.native_batch_norm.default")
def native_batch_norm(
    imp: Importer,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    training: bool,
    momentum: Operand,
    eps: Operand,
) -> tuple[Value, Value, Value]:
    given = _present(weight, bias, running_mean, running_var)
    _mixes(input, *given)
    if input.type.rank < 2 or input.type.numel == 0 or any(p.shape != (input.shape[1],) for p in given):
        raise Decline("eager raises, or an empty batch")
    if training:
        return _batch_norm_train(imp, input, weight, bias, running_mean, running_var, momentum, eps)
    if running_mean is None or running_var is None:
        raise Decline("eager raises")
    out = _batch_norm_eval(imp, input, weight, bias, running_mean, running_var, eps)
    stat = running_mean.dtype
    return out, imp.full((0,), 0.0, stat, input.device), imp.full((0,), 0.0, stat, input.device)


@rule("aten.cudnn_batch_norm.default")
def cudnn_batch_norm(
    imp: Importer,
    input: Value,
    weight: Value,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    training: bool,
    exponential_average_factor: Operand,
    epsilon: Operand,
) -> tuple[Value, ...]:
    """The same on a GPU; the last result is memory of the library's own, which the gradients here do without."""
    statistics = (running_mean, running_var, training, exponential_average_factor, epsilon)
    found = native_batch_norm(imp, input, weight, bias, *statistics)
    return *found, imp.full((0,), 0, u8, input.device)


@rule("aten._native_batch_norm_legit_no_training.default")
def native_batch_norm_no_training(
    imp: Importer,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    momentum: Operand,
    eps: Operand,
) -> tuple[Value, Value, Value]:
    return native_batch_norm(imp, input, weight, bias, running_mean, running_var, False, momentum, eps)


@rule("aten._native_batch_norm_legit.no_stats")
def native_batch_norm_no_stats(
    imp: Importer,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    training: bool,
    momentum: Operand,
    eps: Operand,
) -> tuple[Value, Value, Value]:
    return native_batch_norm(imp, input, weight, bias, None, None, training, momentum, eps)


@rule("aten._weight_norm_interface.default", layout=CONTIGUOUS)
def weight_norm_interface(imp: Importer, v: Value, g: Value, dim: int = 0) -> tuple[Value, ...]:
    """`v * (g / norm)`, with the norm over all dims but one."""
    rest = weight_norm_dims(v, g, dim)
    direction, scale = wide(imp, v), wide(imp, g)
    norm = (direction * direction).sum(rest).op("sqrt")
    return (direction * (scale / norm)).to(v.dtype), norm.to(v.dtype)


def weight_norm_dims(v: Value, g: Value, dim: int) -> tuple[int, ...]:
    """The dims that a weight norm sums over.

    Raises:
        Decline: eager raises, or keeps norms in another dtype.
    """
    floats(v, g)
    rank = v.type.rank
    kept = tuple(size if d == dim else 1 for d, size in enumerate(v.shape))
    if v.dtype != g.dtype or v.dtype.is_reduced or g.shape != kept or not rank or dim not in (0, rank - 1):
        raise Decline("eager raises, or norms of another dtype")
    return tuple(d for d in range(rank) if d != dim)
