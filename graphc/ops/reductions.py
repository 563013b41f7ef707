"""Reductions over dims: core ones that kernels accumulate, and composites made of them.

`dims` is an ascending tuple; empty means no dim at all (the operand as it is, in the result's dtype). bf16 and f16 are
accumulated in f32 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Builder, Op, Operand, Ref, Value
from graphc.ir.sizes import Size
from graphc.ir.types import DType, TensorType, i64
from graphc.ops import composite, rules
from graphc.ops.registry import AtenCall, ElementContext, Kind, LoopValue, LowerRule, OpDef, TypeRule, register
from graphc.ops.rules import Shape

_NUMBER = ("float", "int", "uint")


def reduced_shape(shape: Shape, dims: Sequence[int], keepdim: bool) -> Shape:
    """Shape after reducing over `dims`."""
    if keepdim:
        return tuple(1 if d in dims else size for d, size in enumerate(shape))
    return tuple(size for d, size in enumerate(shape) if d not in dims)


def _type_rule(
    name: str, kinds: Sequence[str], extra: Sequence[str] = (), dtype: DType | None = None, nonempty: bool = False
) -> TypeRule:
    required = ("dims", "keepdim", *extra)

    def infer(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
        rules.check_attrs(name, attrs, required)
        value = rules.only_tensor(name, operands, kinds)
        dims = rules.check_dims(name, attrs["dims"], value.type.rank)
        if nonempty and any(value.type.shape[d] == 0 for d in dims):
            rules.fail(name, f"has no value over an empty dim: {value.type} over {dims}")
        shape = reduced_shape(value.type.shape, dims, attrs["keepdim"])
        return (TensorType(dtype or value.type.dtype, shape, value.type.device),)

    return infer


def _lower_rule(loop_op: str) -> LowerRule:
    def lower(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
        return _reduce(ctx, loop_op, op, op.attrs["dims"], index)

    return lower


def _reduce(ctx: ElementContext, loop_op: str, op: Op, dims: tuple[int, ...], index: tuple[Dim, ...]) -> LoopValue:
    if op.attrs["keepdim"]:
        index = tuple(position for d, position in enumerate(index) if d not in dims)
    if not dims:
        return ctx.element(op.operands[0], index)
    return ctx.reduce(loop_op, op.operands[0], dims, index, op.results[0].type.dtype.compute)


def _over_dims(fn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def reference(x: torch.Tensor, dims: tuple[int, ...], keepdim: bool) -> torch.Tensor:
        return fn(x, dims, keepdim) if dims else x.clone()

    return reference


def _prod(x: torch.Tensor, dims: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    for dim in reversed(dims):
        x = torch.prod(x, dim, keepdim, dtype=x.dtype)
    return x


def _register_core() -> None:
    table: tuple[tuple[str, str, Sequence[str], Callable[..., torch.Tensor], str, bool], ...] = (
        ("sum", "sum", _NUMBER, lambda x, d, k: torch.sum(x, d, k, dtype=x.dtype), "Sum; 0 of nothing.", False),
        ("prod", "prod", _NUMBER, _prod, "Product; 1 of nothing.", False),
        ("amax", "max", _NUMBER, torch.amax, "Largest element; NaN wins.", True),
        ("amin", "min", _NUMBER, torch.amin, "Smallest element; NaN wins.", True),
        ("any", "any", ("bool",), torch.any, "Some bool holds; False of nothing.", False),
        ("all", "all", ("bool",), torch.all, "Every bool holds; True of nothing.", False),
    )
    for name, loop_op, kinds, fn, doc, nonempty in table:
        register(
            OpDef(
                name, Kind.REDUCTION, f"{doc} dims; keepdim.", _type_rule(name, kinds, nonempty=nonempty),
                rules.in_compute_dtype(_over_dims(fn)), lower=_lower_rule(loop_op), flops=rules.operand_numel,
            )
        )  # fmt: skip


# argmax, argmin


def _infer_arg(name: str) -> TypeRule:
    def infer(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
        rules.check_attrs(name, attrs, ("dim", "keepdim"))
        value = rules.only_tensor(name, operands, _NUMBER)
        dims = _arg_dims(name, attrs["dim"], value.type.rank)
        if any(value.type.shape[d] == 0 for d in dims):
            rules.fail(name, f"has no value over an empty dim: {value.type}")
        return (TensorType(i64, reduced_shape(value.type.shape, dims, attrs["keepdim"]), value.type.device),)

    return infer


def _arg_dims(name: str, dim: Attr, rank: int) -> tuple[int, ...]:
    return tuple(range(rank)) if dim is None else (rules.check_dim(name, dim, rank),)


def _lower_arg(name: str) -> LowerRule:
    def lower(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
        operand = op.operands[0]
        assert isinstance(operand, Value)
        dims = _arg_dims(name, op.attrs["dim"], operand.type.rank)
        return _reduce(ctx, name, op, dims, index) if dims else ctx.constant(0, i64)

    return lower


def _arg_call(name: str) -> Callable[[Op], AtenCall]:
    return lambda op: (f"aten.{name}.default", (Ref(0), op.attrs["dim"], op.attrs["keepdim"]), {})


def _register_arg() -> None:
    for name, fn, which in (("argmax", torch.argmax, "largest"), ("argmin", torch.argmin, "smallest")):
        register(
            OpDef(
                name, Kind.REDUCTION,
                f"Index of the {which} element, the first of equals; NaN wins. dim: None = of the flattening; keepdim.",
                _infer_arg(name), fn, lower=_lower_arg(name), call=_arg_call(name), flops=rules.operand_numel,
            )
        )  # fmt: skip


# composites


def _float_operand(op: Op) -> Value:
    return composite.floating(op.operands[0], op.name)


def _expand_mean(builder: Builder, op: Op) -> Sequence[Value]:
    x = _float_operand(op)
    dims, keepdim = op.attrs["dims"], op.attrs["keepdim"]
    total = builder.op("sum", composite.wide(builder, x), dims=dims, keepdim=keepdim)
    mean = builder.op("div", total, _count(builder, x, dims, total))
    return [composite.cast(builder, mean, x.dtype)]


def _count(builder: Builder, x: Value, dims: tuple[int, ...], like: Value) -> Operand:
    return composite.as_count(builder, composite.product([x.shape[d] for d in dims]), like)


def _variance(builder: Builder, op: Op) -> Value:
    """Two passes: the mean, then the mean square of what is left."""
    x = _float_operand(op)
    dims, correction = op.attrs["dims"], op.attrs["correction"]
    wide = composite.wide(builder, x)
    centered = builder.op("sub", wide, composite.mean(builder, wide, dims))
    squares = builder.op("sum", builder.op("mul", centered, centered), dims=dims, keepdim=op.attrs["keepdim"])
    count = composite.product([x.shape[d] for d in dims])
    if type(count) is Size and correction == int(correction):
        return builder.op("div", squares, max(count - int(correction), 0))
    if isinstance(count, int):
        return builder.op("div", squares, max(float(count) - correction, 0.0))
    left = builder.op("sub", composite.as_count(builder, count, squares), float(correction))
    return builder.op("div", squares, builder.op("maximum", left, 0.0))


def _expand_var(builder: Builder, op: Op) -> Sequence[Value]:
    return [composite.cast(builder, _variance(builder, op), op.results[0].dtype)]


def _expand_std(builder: Builder, op: Op) -> Sequence[Value]:
    return [composite.cast(builder, builder.op("sqrt", _variance(builder, op)), op.results[0].dtype)]


def _infer_spread(name: str) -> TypeRule:
    check = _type_rule(name, ("float",), ("correction",))

    def infer(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
        types = check(operands, attrs)
        correction = attrs["correction"]
        if isinstance(correction, bool) or not isinstance(correction, (int, float)):
            rules.fail(name, f"correction={correction!r} must be a number")
        return types

    return infer


def _expand_logsumexp(builder: Builder, op: Op) -> Sequence[Value]:
    """The maximum is taken out first; an infinite one is not, so that inf - inf never arises."""
    x = _float_operand(op)
    dims, keepdim = op.attrs["dims"], op.attrs["keepdim"]
    wide = composite.wide(builder, x)
    if not dims:
        return [x]
    if any(x.shape[d] == 0 for d in dims):
        shape = reduced_shape(x.shape, dims, keepdim)
        return [builder.op("full", shape=shape, dtype=x.dtype, value=-math.inf, device=x.device)]
    top = builder.op("amax", wide, dims=dims, keepdim=True)
    finite_top = builder.op("where", builder.op("isinf", top), 0.0, top)
    exps = builder.op("exp", builder.op("sub", wide, finite_top))
    log = builder.op("log", builder.op("sum", exps, dims=dims, keepdim=keepdim))
    shift = composite.reshape(builder, finite_top, log.shape)
    return [composite.cast(builder, builder.op("add", log, shift), x.dtype)]


def _expand_norm(builder: Builder, op: Op) -> Sequence[Value]:
    x = _float_operand(op)
    p, dims, keepdim = float(op.attrs["p"]), op.attrs["dims"], op.attrs["keepdim"]
    wide = composite.wide(builder, x)
    if p == 0.0:
        powers = builder.op("cast", builder.op("ne", wide, 0.0), dtype=wide.dtype)
    else:
        powers = builder.op("mul", wide, wide) if p == 2.0 else builder.op("abs", wide)
    if math.isinf(p):
        total = builder.op("amax" if p > 0 else "amin", powers, dims=dims, keepdim=keepdim)
        return [composite.cast(builder, total, x.dtype)]
    if p not in (0.0, 1.0, 2.0):
        powers = builder.op("pow", powers, p)
    total = builder.op("sum", powers, dims=dims, keepdim=keepdim)
    if p == 2.0:
        total = builder.op("sqrt", total)
    elif p not in (0.0, 1.0):
        total = builder.op("pow", total, 1.0 / p)
    return [composite.cast(builder, total, x.dtype)]


def _infer_norm(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    infinite = isinstance(attrs.get("p"), float) and math.isinf(attrs["p"])
    return _type_rule("norm", ("float",), ("p",), nonempty=infinite)(operands, attrs)


def _norm(x: torch.Tensor, dims: tuple[int, ...], keepdim: bool, p: float) -> torch.Tensor:
    if not dims:
        x, dims, keepdim = x.unsqueeze(-1), (-1,), False
    result: torch.Tensor = torch.linalg.vector_norm(x, p, dims, keepdim)
    return result


def _spread(fn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def reference(x: torch.Tensor, dims: tuple[int, ...], keepdim: bool, correction: float) -> torch.Tensor:
        if not dims:
            return fn(x.unsqueeze(-1), dim=-1, correction=correction)
        return fn(x, dim=dims, correction=correction, keepdim=keepdim)

    return reference


def _register_composites() -> None:
    def add(name: str, doc: str, infer: TypeRule, reference: Callable[..., Any], expand: Any, cost: int) -> None:
        register(
            OpDef(
                name, Kind.COMPOSITE, doc, infer, rules.in_compute_dtype(reference), expand=expand,
                flops=lambda op: rules.operand_numel(op) * cost,
            )
        )  # fmt: skip

    add(
        "mean", "Mean; NaN of nothing. dims; keepdim.", _type_rule("mean", ("float",)),
        _over_dims(torch.mean), _expand_mean, 1,
    )  # fmt: skip
    add(
        "var", "Variance, by two passes. dims; keepdim; correction: taken from the count.",
        _infer_spread("var"), _spread(torch.var), _expand_var, 4,
    )  # fmt: skip
    add(
        "std", "Square root of var. dims; keepdim; correction.",
        _infer_spread("std"), _spread(torch.std), _expand_std, 4,
    )  # fmt: skip
    add(
        "logsumexp", "log(sum(exp(x))) without overflow. dims; keepdim.", _type_rule("logsumexp", ("float",)),
        _over_dims(torch.logsumexp), _expand_logsumexp, 3,
    )  # fmt: skip
    add(
        "norm", "Vector norm. dims; keepdim; p: its order, 0 counts, inf is the largest magnitude.",
        _infer_norm, _norm, _expand_norm, 2,
    )  # fmt: skip


_register_core()
_register_arg()
_register_composites()
