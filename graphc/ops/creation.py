"""Ops that make tensors from numbers, and those that cross between tensors and host scalars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Op, Operand, Value
from graphc.ir.types import HOST, DType, TensorType, bool_, f64, i64
from graphc.ops import rules
from graphc.ops.registry import ElementContext, Kind, LoopValue, OpDef, register

_EXACT_IN_F32 = 1 << 24


def _infer_full(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("full", attrs, ("shape", "dtype", "value", "device"))
    rules.check_count("full", operands, 0)
    dtype, shape = rules.check_dtype("full", attrs["dtype"]), rules.check_shape("full", attrs["shape"])
    value = attrs["value"]
    if dtype.kind == "complex" or isinstance(value, complex) or (isinstance(value, float) and dtype.is_integral):
        rules.fail("full", f"value={value!r} does not fit {dtype.name}")
    return (TensorType(dtype, shape, attrs["device"]),)


def _full(shape: tuple[int, ...], dtype: DType, value: Any, device: str) -> torch.Tensor:
    return torch.full(shape, value, dtype=rules.torch_dtype(dtype), device=device)


def _lower_full(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    value, dtype = op.attrs["value"], op.results[0].type.dtype.compute
    if isinstance(value, (bool, int, float)):
        return ctx.constant(value, dtype)
    return ctx.compute("cast", ctx.index_value(value), dtype=dtype)


def _infer_iota(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("iota", attrs, ("size", "start", "step", "dtype", "device"))
    rules.check_count("iota", operands, 0)
    dtype = rules.check_dtype("iota", attrs["dtype"])
    if dtype.kind in ("bool", "complex"):
        rules.fail("iota", f"does not count in {dtype.name}")
    for name in ("start", "step"):
        if dtype.is_integral and isinstance(attrs[name], float):
            rules.fail("iota", f"{name}={attrs[name]!r} does not fit {dtype.name}")
    return (TensorType(dtype, rules.check_shape("iota", (attrs["size"],), "size"), attrs["device"]),)


def _iota(size: int, start: int | float, step: int | float, dtype: DType, device: str) -> torch.Tensor:
    wide = torch.float64 if dtype.is_float else torch.int64
    count = torch.arange(size, dtype=torch.int64, device=device).to(wide)
    return (count * step + start).to(rules.torch_dtype(dtype))


def _lower_iota(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    dtype = op.results[0].type.dtype.compute
    size, start, step = op.attrs["size"], op.attrs["start"], op.attrs["step"]
    if dtype.is_integral or _small_integers(size, start, step):
        return ctx.compute("cast", ctx.index_value(index[0] * _whole(step) + _whole(start)), dtype=dtype)
    # as eager's arange: counted in f64, rounded once
    position = ctx.compute("cast", ctx.index_value(index[0]), dtype=f64)
    scaled = ctx.compute("mul", position, ctx.constant(float(step), f64), dtype=f64)
    return ctx.compute("cast", ctx.compute("add", scaled, ctx.constant(float(start), f64), dtype=f64), dtype=dtype)


def _small_integers(size: Dim, start: int | float, step: int | float) -> bool:
    first, step_by = _whole(start), _whole(step)
    if not isinstance(size, int) or start != first or step != step_by:
        return False
    return max(abs(first), abs(first + step_by * size)) < _EXACT_IN_F32


def _whole(number: int | float) -> int:
    """A number without what is behind its point; an int is left as it is, with what it knows of sizes."""
    return number if isinstance(number, int) else int(number)


def _infer_to_tensor(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("to_tensor", attrs, ("dtype", "device"))
    rules.check_count("to_tensor", operands, 1)
    (value,) = operands
    if not isinstance(value, Value) or value.type.device != HOST:
        rules.fail("to_tensor", f"operand 0 must be a host scalar, got {value!r}")
    dtype = rules.check_dtype("to_tensor", attrs["dtype"])
    if dtype.kind == "complex" or attrs["device"] == HOST:
        rules.fail("to_tensor", f"does not make {dtype.name} on {attrs['device']}")
    return (TensorType(dtype, (), attrs["device"]),)


def _to_tensor(x: bool | int | float, dtype: DType, device: str) -> torch.Tensor:
    wide = torch.float64 if isinstance(x, float) else None
    return torch.tensor(x, dtype=wide).to(rules.torch_dtype(dtype)).to(device)


def _infer_item(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("item", attrs, ())
    value = rules.only_tensor("item", operands, ("float", "int", "uint", "bool"))
    if value.type.shape:
        rules.fail("item", f"takes a 0-d tensor, got {value.type}")
    dtype = f64 if value.type.dtype.is_float else bool_ if value.type.dtype == bool_ else i64
    return (TensorType(dtype, (), HOST),)


def _lower_convert(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    return ctx.compute("cast", ctx.element(op.operands[0], ()), dtype=op.results[0].type.dtype.compute)


register(
    OpDef(
        "full", Kind.CREATION,
        "A tensor filled with one number. shape; dtype; value: a number, or a dim expression; device.",
        _infer_full, _full, lower=_lower_full,
    )
)  # fmt: skip
register(
    OpDef(
        "iota", Kind.CREATION,
        "start + i*step for i in [0, size), one dim. size; start; step; dtype; device. Floats are counted in f64.",
        _infer_iota, _iota, lower=_lower_iota,
    )
)  # fmt: skip
register(
    OpDef(
        "to_tensor", Kind.POINTWISE, "A host scalar as a 0-d tensor. dtype; device.",
        _infer_to_tensor, _to_tensor, lower=_lower_convert,
    )
)  # fmt: skip
register(
    OpDef(
        "item", Kind.POINTWISE, "A 0-d tensor as a host scalar: f64, i64 or bool.",
        _infer_item, lambda x: x.item(), lower=_lower_convert,
    )
)  # fmt: skip
