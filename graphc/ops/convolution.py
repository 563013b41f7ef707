"""Convolution of any rank, plain or transposed: a library call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch

from graphc.errors import InvalidGraphError
from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Op, Operand, Ref
from graphc.ir.types import DType, TensorType, bf16, f16, f32
from graphc.ops import composite
from graphc.ops.registry import AtenCall, Kind, OpDef, register


@cache
def library_convolves(dtype: DType) -> bool:
    """Whether oneDNN convolves this dtype on this processor."""
    if not torch._C._has_mkldnn:
        return False
    if dtype == bf16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == f16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == f32


def output_size(
    size: Dim, kernel: Dim, stride: int, padding: int, dilation: int, transposed: bool, output_padding: int
) -> Dim:
    """Size of a spatial dim after a convolution."""
    reach = dilation * (kernel - 1)
    if transposed:
        return (size - 1) * stride - 2 * padding + reach + output_padding + 1
    return (size + 2 * padding - reach - 1) // stride + 1


def _convolution_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    x, weight, *rest = (composite.tensor(operand, "convolution") for operand in operands)
    rank, groups, transposed = x.type.rank - 2, attrs["groups"], attrs["transposed"]
    names = ("stride", "padding", "dilation", "output_padding")
    if rank < 1 or weight.type.rank != rank + 2 or any(len(attrs[name]) != rank for name in names):
        raise InvalidGraphError(f"convolution of {x.type} with {weight.type}: ranks do not fit")
    if x.dtype != weight.dtype or x.dtype.kind == "bool":
        raise InvalidGraphError(f"convolution of {x.type} with {weight.type}: dtypes do not fit")
    inputs, outputs = (
        (weight.shape[0], weight.shape[1] * groups) if transposed else (weight.shape[1] * groups, weight.shape[0])
    )
    if inputs != x.shape[1] or outputs % groups != 0:
        raise InvalidGraphError(f"convolution of {x.type} with {weight.type} in {groups} groups: channels do not fit")
    if len(rest) != bool(attrs["bias"]) or any(bias.shape != (outputs,) for bias in rest):
        raise InvalidGraphError(f"convolution with {outputs} output channels: bias does not fit")
    settings = zip(*(attrs[name] for name in names), strict=True)
    sizes = [
        output_size(size, kernel, s, p, d, transposed, extra)
        for size, kernel, (s, p, d, extra) in zip(x.shape[2:], weight.shape[2:], settings, strict=True)
    ]
    if any(isinstance(size, int) and size < 0 for size in sizes):
        raise InvalidGraphError(f"convolution of {x.type} with {weight.type}: the kernel is larger than the input")
    return [x.type.with_shape((x.shape[0], outputs, *sizes))]


def _reference_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    *rest: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    bias: bool,
) -> torch.Tensor:
    added = rest[0] if bias else None
    return torch.convolution(x, weight, added, stride, padding, dilation, transposed, output_padding, groups)


def _call_convolution(op: Op) -> AtenCall:
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    args = (Ref(0), Ref(1), Ref(2) if op.attrs["bias"] else None, *(op.attrs[name] for name in names))
    return "aten.convolution.default", args, {}


def _convolution_flops(op: Op) -> Dim:
    x, weight = (composite.tensor(operand, op.name) for operand in op.operands[:2])
    # every weight meets every output pixel, or every input pixel when transposed
    pixels = composite.product((x if op.attrs["transposed"] else op.result).shape[2:])
    return 2 * x.shape[0] * pixels * weight.type.numel


register(
    OpDef(
        "convolution",
        Kind.CONTRACTION,
        "Cross-correlation of x (N, C, ...) with weight (O, C/groups, ...), or its transpose with weight (C, O/groups, "
        "...). stride, padding, dilation, output_padding: one number per spatial dim; bias: operand 2 is there.",
        _convolution_type,
        _reference_convolution,
        call=_call_convolution,
        flops=_convolution_flops,
    )
)
