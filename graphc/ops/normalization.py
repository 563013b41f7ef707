"""The normalizations: composite ops that expand into reductions over one set of dims and pointwise ops.

Every expansion keeps the reduced dims (`keepdim`), so that it lowers to one kernel with one row per statistic.
Variances are two-pass (mean first, then the mean of squared distances), which is at least as accurate as eager's
streaming form. An error in a row's 1/sqrt(var + eps) is an error of all its elements, so the precise expansions keep
what is one number per row in float64, down to that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from graphc.errors import InvalidGraphError
from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Builder, Op, Operand, Value
from graphc.ir.types import DType, TensorType, f32, f64
from graphc.ops import composite
from graphc.ops.registry import Kind, OpDef, register


def _parameters(
    operands: Sequence[Operand], attrs: Mapping[str, Attr], first: int
) -> tuple[Value | None, Value | None]:
    """The optional weight and bias of a normalization: attributes `weight` and `bias` say which are there."""
    rest = [composite.floating(operand, "a normalization") for operand in operands[first:]]
    if len(rest) != bool(attrs["weight"]) + bool(attrs["bias"]):
        raise InvalidGraphError("attributes weight and bias do not agree with the number of operands")
    return rest.pop(0) if attrs["weight"] else None, rest.pop(0) if attrs["bias"] else None


def _stat_dtype(x: Value, *others: Value | None) -> DType:
    """Dtype of returned statistics: the input's own, but f32 when reduced inputs come with f32 parameters."""
    mixed = x.dtype.is_reduced and any(o is not None and o.dtype == f32 for o in others)
    return f32 if mixed else x.dtype


def _affine(b: Builder, y: Value, weight: Value | None, bias: Value | None) -> Value:
    """`y * weight + bias`."""
    for name, parameter in (("mul", weight), ("add", bias)):
        if parameter is not None:
            y = b.op(name, y, composite.cast(b, composite.wide(b, parameter), y.dtype))
    return y


def _channel_affine(
    b: Builder, centered: Value, rstd: Value, weight: Value | None, bias: Value | None, shape: Sequence[Dim]
) -> Value:
    """`centered * (rstd * weight) + bias` with parameters reshaped to `shape`: one product per element."""
    scale = _affine(b, rstd, None if weight is None else composite.reshape(b, weight, shape), None)
    return _affine(b, b.op("mul", centered, scale), None, None if bias is None else composite.reshape(b, bias, shape))


def _summed(b: Builder, x: Value, precise: bool) -> Value:
    """What sums over `x` are taken of: in float64 they, and what a row's numbers are made of, are rounded once."""
    return b.op("cast", x, dtype=f64) if precise and x.dtype == f32 else x


def _moments(b: Builder, x: Value, dims: tuple[int, ...], precise: bool) -> tuple[Value, Value, Value]:
    """(mean, x - mean, biased variance) over `dims`, kept as size 1; the variance as `_summed` has it."""
    mean = composite.cast(b, composite.mean(b, _summed(b, x, precise), dims), x.dtype)
    centered = b.op("sub", x, mean)
    return mean, centered, composite.mean(b, _summed(b, b.op("mul", centered, centered), precise), dims)


def _inverse_deviation(b: Builder, variance: Value, eps: float, dtype: DType) -> Value:
    return composite.cast(b, b.op("rsqrt", b.op("add", variance, float(eps))), dtype)


def _trailing(x: Value, dims: int, weight: Value | None, bias: Value | None, op: str) -> tuple[Dim, ...]:
    """Sizes of the last `dims` dims, which the parameters must have."""
    if not 0 < dims <= x.type.rank:
        raise InvalidGraphError(f"{op} over the last {dims} dims of {x.type}")
    shape = x.shape[x.type.rank - dims :]
    for parameter in (weight, bias):
        if parameter is not None and parameter.shape != shape:
            raise InvalidGraphError(f"{op}: a parameter is {parameter.type}, normalized shape is {shape}")
    return shape


def _layer_norm_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    x = composite.floating(operands[0], "layer_norm")
    weight, bias = _parameters(operands, attrs, 1)
    shape = _trailing(x, attrs["dims"], weight, bias, "layer_norm")
    stat = TensorType(_stat_dtype(x, weight, bias), x.shape[: -len(shape)] + (1,) * len(shape), x.device)
    return [x.type, stat, stat]


def _expand_layer_norm(b: Builder, op: Op, precise: bool = False) -> Sequence[Value]:
    source = composite.tensor(op.operands[0], op.name)
    weight, bias = _parameters(op.operands, op.attrs, 1)
    x, rank = composite.wide(b, source), source.type.rank
    mean, centered, variance = _moments(b, x, tuple(range(rank - op.attrs["dims"], rank)), precise)
    rstd = _inverse_deviation(b, variance, op.attrs["eps"], x.dtype)
    y = _affine(b, b.op("mul", centered, rstd), weight, bias)
    return [composite.cast(b, value, result.dtype) for value, result in zip((y, mean, rstd), op.results, strict=True)]


def _reference_layer_norm(x: torch.Tensor, *parameters: torch.Tensor, **attrs: Any) -> tuple[torch.Tensor, ...]:
    rest = list(parameters)
    weight, bias = rest.pop(0) if attrs["weight"] else None, rest.pop(0) if attrs["bias"] else None
    return torch.native_layer_norm(x, x.shape[x.dim() - attrs["dims"] :], weight, bias, attrs["eps"])


register(
    OpDef(
        "layer_norm",
        Kind.COMPOSITE,
        "(x - mean) / sqrt(var + eps) * weight + bias over the last `dims` dims; weight, bias: which parameters "
        "follow. Results: output, mean, 1/sqrt(var + eps). Source: Ba et al., arXiv 1607.06450.",
        _layer_norm_type,
        _reference_layer_norm,
        expand=_expand_layer_norm,
        expand_precisely=partial(_expand_layer_norm, precise=True),
    )
)


def _rms_norm_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    x = composite.floating(operands[0], "rms_norm")
    weight, _ = _parameters(operands, {**attrs, "bias": False}, 1)
    shape = _trailing(x, attrs["dims"], weight, None, "rms_norm")
    stat = TensorType(x.dtype.compute, x.shape[: -len(shape)] + (1,) * len(shape), x.device)
    return [x.type, stat]


def _expand_rms_norm(b: Builder, op: Op, precise: bool = False) -> Sequence[Value]:
    source = composite.tensor(op.operands[0], op.name)
    weight, _ = _parameters(op.operands, {**op.attrs, "bias": False}, 1)
    x, rank = composite.wide(b, source), source.type.rank
    square = composite.mean(b, _summed(b, b.op("mul", x, x), precise), tuple(range(rank - op.attrs["dims"], rank)))
    rrms = _inverse_deviation(b, square, op.attrs["eps"], x.dtype)
    return [composite.cast(b, _affine(b, b.op("mul", x, rrms), weight, None), source.dtype), rrms]


def _reference_rms_norm(
    x: torch.Tensor, *parameters: torch.Tensor, dims: int, eps: float, weight: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    rrms = torch.rsqrt(wide.pow(2).mean(tuple(range(-dims, 0)), keepdim=True) + eps)
    y = wide * rrms
    return (y * parameters[0].to(y.dtype) if weight else y).to(x.dtype), rrms


register(
    OpDef(
        "rms_norm",
        Kind.COMPOSITE,
        "x / sqrt(mean(x^2) + eps) * weight over the last `dims` dims; weight: whether it follows. Results: output, "
        "1/sqrt(mean(x^2) + eps). Source: Zhang and Sennrich, arXiv 1910.07467.",
        _rms_norm_type,
        _reference_rms_norm,
        expand=_expand_rms_norm,
        expand_precisely=partial(_expand_rms_norm, precise=True),
    )
)


def _per_channel(x: Value, parameters: Sequence[Value | None], op: str) -> Dim:
    """Number of channels, dim 1, which every parameter must have."""
    if x.type.rank < 2:
        raise InvalidGraphError(f"{op} takes (N, C, ...), got {x.type}")
    for parameter in parameters:
        if parameter is not None and parameter.type.numel != x.shape[1]:
            raise InvalidGraphError(f"{op}: a parameter is {parameter.type}, there are {x.shape[1]} channels")
    return x.shape[1]


def _group_norm_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    x = composite.floating(operands[0], "group_norm")
    weight, bias = _parameters(operands, attrs, 1)
    channels, groups = _per_channel(x, (weight, bias), "group_norm"), attrs["groups"]
    if groups <= 0 or channels % groups != 0:
        raise InvalidGraphError(f"group_norm: {channels} channels do not divide into {groups} groups")
    stat = TensorType(_stat_dtype(x, weight, bias), (x.shape[0], groups), x.device)
    return [x.type, stat, stat]


def _expand_group_norm(b: Builder, op: Op, precise: bool = False) -> Sequence[Value]:
    source = composite.tensor(op.operands[0], op.name)
    weight, bias = _parameters(op.operands, op.attrs, 1)
    (batch, channels, *rest), groups = source.shape, op.attrs["groups"]
    grouped = (groups, channels // groups)
    x = composite.wide(b, composite.reshape(b, source, (batch, *grouped, *rest)))
    mean, centered, variance = _moments(b, x, tuple(range(2, x.type.rank)), precise)
    rstd = _inverse_deviation(b, variance, op.attrs["eps"], x.dtype)
    y = _channel_affine(b, centered, rstd, weight, bias, (1, *grouped, *(1 for _ in rest)))
    out, *stats = op.results
    y = composite.reshape(b, composite.cast(b, y, out.dtype), out.shape)
    return [y, *(composite.reshape(b, composite.cast(b, s, stats[0].dtype), stats[0].shape) for s in (mean, rstd))]


def _reference_group_norm(x: torch.Tensor, *parameters: torch.Tensor, **attrs: Any) -> tuple[torch.Tensor, ...]:
    rest = list(parameters)
    weight, bias = rest.pop(0) if attrs["weight"] else None, rest.pop(0) if attrs["bias"] else None
    batch, channels = x.shape[:2]
    pixels = x[0, 0].numel() if x.numel() else 0
    args = (weight, bias, batch, channels, pixels, attrs["groups"], attrs["eps"])
    return torch.native_group_norm(x.contiguous(), *args)


register(
    OpDef(
        "group_norm",
        Kind.COMPOSITE,
        "layer_norm over each of `groups` groups of channels of (N, C, ...), then weight and bias per channel. "
        "Results: output, mean and 1/sqrt(var + eps) of shape (N, groups). Source: Wu and He, arXiv 1803.08494.",
        _group_norm_type,
        _reference_group_norm,
        expand=_expand_group_norm,
        expand_precisely=partial(_expand_group_norm, precise=True),
    )
)


def _batch_dims(x: Value) -> tuple[int, ...]:
    # dims of size 1 need no reduction; without them instance norm (N = 1) reduces over trailing dims only
    dims = tuple(d for d in range(x.type.rank) if d != 1)
    return tuple(d for d in dims if x.shape[d] != 1) or dims


def _batch_norm_train_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    x = composite.floating(operands[0], "batch_norm_train")
    weight, bias = _parameters(operands, attrs, 1)
    stat = TensorType(x.dtype.compute, (_per_channel(x, (weight, bias), "batch_norm_train"),), x.device)
    return [x.type, stat, stat, stat]


def _expand_batch_norm_train(b: Builder, op: Op, precise: bool = False) -> Sequence[Value]:
    source = composite.tensor(op.operands[0], op.name)
    weight, bias = _parameters(op.operands, op.attrs, 1)
    x, dims = composite.wide(b, source), _batch_dims(source)
    mean, centered, variance = _moments(b, x, dims, precise)
    rstd = _inverse_deviation(b, variance, op.attrs["eps"], x.dtype)
    channel = (1, source.shape[1], *(1 for _ in source.shape[2:]))
    y = _channel_affine(b, centered, rstd, weight, bias, channel)
    stats = [composite.reshape(b, composite.cast(b, s, x.dtype), (source.shape[1],)) for s in (mean, rstd, variance)]
    return [composite.cast(b, y, source.dtype), *stats]


def _reference_batch_norm_train(
    x: torch.Tensor, *parameters: torch.Tensor, weight: bool, bias: bool, eps: float
) -> tuple[torch.Tensor, ...]:
    dims = tuple(d for d in range(x.dim()) if d != 1)
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    rest = [p.to(wide.dtype) for p in parameters]
    variance, mean = torch.var_mean(wide.double(), dims, correction=0)  # as precise as eager's sums
    scale = rest.pop(0) if weight else None
    shift = rest.pop(0) if bias else None
    if not x.numel():
        y = F.batch_norm(wide, mean.to(wide), variance.to(wide), scale, shift, False, 0.0, eps)
    else:
        y = torch.native_batch_norm(wide, scale, shift, None, None, True, 0.0, eps)[0]
    return y.to(x.dtype), mean.to(wide), torch.rsqrt(variance + eps).to(wide), variance.to(wide)


register(
    OpDef(
        "batch_norm_train",
        Kind.COMPOSITE,
        "(x - mean) / sqrt(var + eps) * weight + bias with statistics of the batch per channel (dim 1). Results: "
        "output, mean, 1/sqrt(var + eps), biased var. Source: Ioffe and Szegedy, arXiv 1502.03167.",
        _batch_norm_train_type,
        _reference_batch_norm_train,
        expand=_expand_batch_norm_train,
        expand_precisely=partial(_expand_batch_norm_train, precise=True),
    )
)


def _batch_norm_eval_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    x, mean, variance = (composite.floating(operand, "batch_norm_eval") for operand in operands[:3])
    _per_channel(x, (mean, variance, *_parameters(operands, attrs, 3)), "batch_norm_eval")
    return [x.type]


def _expand_batch_norm_eval(b: Builder, op: Op) -> Sequence[Value]:
    source, mean, variance = (composite.tensor(operand, op.name) for operand in op.operands[:3])
    weight, bias = _parameters(op.operands, op.attrs, 3)
    x = composite.wide(b, source)
    mean, variance = (composite.cast(b, composite.wide(b, s), x.dtype) for s in (mean, variance))
    # one multiplication and one addition per element, as eager folds them
    scale = _affine(b, _inverse_deviation(b, variance, op.attrs["eps"], x.dtype), weight, None)
    shift = b.op("neg", b.op("mul", mean, scale))
    if bias is not None:
        shift = b.op("sub", composite.cast(b, composite.wide(b, bias), x.dtype), b.op("mul", mean, scale))
    channel = (1, source.shape[1], *(1 for _ in source.shape[2:]))
    scale, shift = (composite.reshape(b, s, channel) for s in (scale, shift))
    return [composite.cast(b, b.op("add", b.op("mul", x, scale), shift), source.dtype)]


def _reference_batch_norm_eval(
    x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, *parameters: torch.Tensor, **attrs: Any
) -> torch.Tensor:
    rest = list(parameters)
    weight, bias = rest.pop(0) if attrs["weight"] else None, rest.pop(0) if attrs["bias"] else None
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, attrs["eps"])


register(
    OpDef(
        "batch_norm_eval",
        Kind.COMPOSITE,
        "x * scale + (bias - mean * scale) with scale = weight / sqrt(var + eps), per channel (dim 1); operands: x, "
        "mean, var, then weight and bias as the attributes say. Source: Ioffe and Szegedy, arXiv 1502.03167.",
        _batch_norm_eval_type,
        _reference_batch_norm_eval,
        expand=_expand_batch_norm_eval,
    )
)
