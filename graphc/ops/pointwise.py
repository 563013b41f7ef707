"""Elementwise ops: one graph op per scalar operator of loop IR, under the same name.

All tensor operands have the same dtype (import rules insert `cast`) and broadcast as numpy's do. Python numbers and
host scalars may stand beside tensors and take their compute dtype. bf16 and f16 are computed in f32 and rounded once.
When every operand is a host scalar or a number, so is the result: arithmetic of the host program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Op, Operand, Value
from graphc.ir.sizes import Real, Reciprocal, Size
from graphc.ir.types import HOST, DType, TensorType, bool_, i64
from graphc.loopir.scalar import SCALAR_OPS, ScalarOp
from graphc.ops import checks, rules
from graphc.ops.registry import ElementContext, Kind, LoopValue, LowerRule, OpDef, TypeRule, register


def _bounded(
    position: torch.Tensor, first: torch.Tensor, last: torch.Tensor, end: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    hides = True if value.dtype == torch.bool else -torch.inf
    inside = torch.where((first <= position) & (position < last), value, hides)
    return torch.where((first <= position) & (position < end), torch.zeros_like(value), inside)


_TORCH: dict[str, tuple[Callable[..., torch.Tensor], str]] = {
    "add": (torch.add, "a + b."),
    "sub": (torch.sub, "a - b."),
    "mul": (torch.mul, "a * b."),
    "div": (torch.true_divide, "a / b of floats."),
    "floordiv": (torch.floor_divide, "a / b rounded to minus infinity."),
    "truncdiv": (lambda a, b: torch.div(a, b, rounding_mode="trunc"), "a / b rounded to zero."),
    "remainder": (torch.remainder, "a - floordiv(a, b) * b: has the sign of b."),
    "fmod": (torch.fmod, "a - truncdiv(a, b) * b: has the sign of a."),
    "maximum": (torch.maximum, "The larger one; NaN if either is."),
    "minimum": (torch.minimum, "The smaller one; NaN if either is."),
    "fmax": (torch.fmax, "The larger one; the number if the other is NaN."),
    "fmin": (torch.fmin, "The smaller one; the number if the other is NaN."),
    "copysign": (torch.copysign, "Magnitude of a, sign of b."),
    "atan2": (torch.atan2, "Angle of the point (b, a), radians."),
    "hypot": (torch.hypot, "sqrt(a*a + b*b) without overflow."),
    "nextafter": (torch.nextafter, "The float next to a towards b."),
    "pow": (torch.pow, "a to the power b."),
    "neg": (torch.neg, "-a."),
    "abs": (torch.abs, "Absolute value."),
    "sign": (torch.sign, "-1, 0 or 1; 0 for NaN."),
    "floor": (torch.floor, "Rounded to minus infinity."),
    "ceil": (torch.ceil, "Rounded to infinity."),
    "trunc": (torch.trunc, "Rounded to zero."),
    "round": (torch.round, "Rounded to the nearest integer, half to even."),
    "sqrt": (torch.sqrt, "Square root."),
    "rsqrt": (torch.rsqrt, "1 / sqrt(a)."),
    "reciprocal": (torch.reciprocal, "1 / a."),
    "exp": (torch.exp, "e to the power a."),
    "exp2": (torch.exp2, "2 to the power a."),
    "expm1": (torch.expm1, "exp(a) - 1, exact near 0."),
    "log": (torch.log, "Natural logarithm."),
    "log2": (torch.log2, "Logarithm to base 2."),
    "log10": (torch.log10, "Logarithm to base 10."),
    "log1p": (torch.log1p, "log(1 + a), exact near 0."),
    "sin": (torch.sin, "Sine."),
    "cos": (torch.cos, "Cosine."),
    "tan": (torch.tan, "Tangent."),
    "asin": (torch.asin, "Arc sine."),
    "acos": (torch.acos, "Arc cosine."),
    "atan": (torch.atan, "Arc tangent."),
    "sinh": (torch.sinh, "Hyperbolic sine."),
    "cosh": (torch.cosh, "Hyperbolic cosine."),
    "tanh": (torch.tanh, "Hyperbolic tangent."),
    "asinh": (torch.asinh, "Inverse hyperbolic sine."),
    "acosh": (torch.acosh, "Inverse hyperbolic cosine."),
    "atanh": (torch.atanh, "Inverse hyperbolic tangent."),
    "erf": (torch.erf, "Error function."),
    "erfc": (torch.erfc, "1 - erf(a), exact for large a."),
    "erfinv": (torch.erfinv, "Inverse error function."),
    "lgamma": (torch.lgamma, "Logarithm of the absolute value of the gamma function."),
    "digamma": (torch.digamma, "Derivative of lgamma."),
    "eq": (torch.eq, "a == b."),
    "ne": (torch.ne, "a != b."),
    "lt": (torch.lt, "a < b."),
    "le": (torch.le, "a <= b."),
    "gt": (torch.gt, "a > b."),
    "ge": (torch.ge, "a >= b."),
    "isnan": (torch.isnan, "Is NaN."),
    "isinf": (torch.isinf, "Is plus or minus infinity."),
    "signbit": (torch.signbit, "The sign bit is set: negative, -0.0 included."),
    "logical_and": (torch.logical_and, "Both bools hold."),
    "logical_or": (torch.logical_or, "Either bool holds."),
    "logical_xor": (torch.logical_xor, "Exactly one bool holds."),
    "logical_not": (torch.logical_not, "The bool does not hold."),
    "bitwise_and": (torch.bitwise_and, "a & b."),
    "bitwise_or": (torch.bitwise_or, "a | b."),
    "bitwise_xor": (torch.bitwise_xor, "a ^ b."),
    "bitwise_not": (torch.bitwise_not, "~a."),
    "shl": (torch.bitwise_left_shift, "a << b."),
    "shr": (torch.bitwise_right_shift, "a >> b, arithmetic for signed integers."),
    "where": (torch.where, "b where the bool a holds, else c."),
    "bounded": (
        _bounded,
        "e, which is 0 at positions a in [b, d), and True or -inf at those outside of [b, c). A mask of which is known "
        "where it begins and ends: see graphc.passes.mask_bounds.",
    ),
}

_COMMUTATIVE = {
    "add", "mul", "maximum", "minimum", "fmax", "fmin", "hypot", "eq", "ne", "logical_and", "logical_or", "logical_xor",
    "bitwise_and", "bitwise_or", "bitwise_xor",
}  # fmt: skip


_LEADING = {"where": 1, "bounded": 4}
"""How many operands are of another dtype than the result."""

# type rules


def _type_rule(scalar: ScalarOp) -> TypeRule:
    name, arity, kinds, gives_bool = scalar.name, scalar.arity, scalar.kinds, scalar.result == "bool"

    def infer(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
        rules.check_count(name, operands, arity)
        if attrs:
            rules.check_attrs(name, attrs, ())
        dtype = _common_dtype(name, operands, kinds)
        return (_result_type(name, operands, bool_ if gives_bool else dtype),)

    return infer


def _infer_where(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_count("where", operands, 3)
    rules.check_attrs("where", attrs, ())
    _common_dtype("where", operands[:1], ("bool",))
    dtype = _common_dtype("where", operands[1:], SCALAR_OPS["where"].kinds)
    return (_result_type("where", operands, dtype),)


def _infer_bounded(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_count("bounded", operands, 5)
    rules.check_attrs("bounded", attrs, ())
    _common_dtype("bounded", operands[:4], ("int",))
    return (_result_type("bounded", operands, _common_dtype("bounded", operands[4:], SCALAR_OPS["bounded"].kinds)),)


def _common_dtype(op: str, operands: Sequence[Operand], kinds: Sequence[str]) -> DType:
    values = [operand for operand in operands if isinstance(operand, Value)]
    if not values:
        rules.fail(op, f"needs a tensor beside the numbers {', '.join(map(repr, operands))}")
    deciding = [value for value in values if value.type.device != HOST] or values
    dtype = deciding[0].type.dtype
    for value in deciding:
        if value.type.dtype != dtype:
            rules.fail(op, f"operands are {dtype.name} and {value.type.dtype.name}; insert a cast")
    if dtype.kind not in kinds:
        rules.fail(op, f"does not take {dtype.name}")
    if len(values) == len(operands) == len(deciding):
        return dtype
    for operand in operands:
        kind = operand.type.dtype.kind if isinstance(operand, Value) else _NUMBER_KINDS[type(operand)]
        if kind not in _FITS[dtype.kind] and kind != dtype.kind:
            rules.fail(op, f"{operand!r} does not fit beside {dtype.name}")
    return dtype


_NUMBER_KINDS: dict[type, str] = {
    bool: "bool", int: "int", float: "float", complex: "complex", Size: "int", Reciprocal: "float", Real: "float",
}  # fmt: skip
_FITS = {"float": ("bool", "int"), "int": ("bool",), "uint": ("bool", "int"), "bool": ()}


def _result_type(op: str, operands: Sequence[Operand], dtype: DType) -> TensorType:
    values = [operand for operand in operands if isinstance(operand, Value)]
    device = rules.common_device(op, values)
    first = values[0].type
    if len(values) == 1:
        return first if first.dtype == dtype else TensorType(dtype, first.shape, device)
    return TensorType(dtype, rules.broadcast(op, [value.type.shape for value in values]), device)


# references


def _number(x: bool | int | float, device: torch.device) -> torch.Tensor:
    """A number that may be too large for the dtype it is to have: integers wrap around."""
    return torch.tensor(x, dtype=torch.float64 if isinstance(x, float) else None, device=device)


def _reference(scalar: ScalarOp, fn: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    def reference(*operands: Any) -> Any:
        data = operands[_LEADING.get(scalar.name, 0) :]
        tensors = [x for x in data if isinstance(x, torch.Tensor)]
        if not tensors:
            return _on_host(scalar, fn, operands)
        dtype, device = tensors[0].dtype, max(tensors, key=torch.Tensor.dim).device
        reduced = dtype in (torch.bfloat16, torch.float16) and scalar.name != "nextafter"
        compute = torch.float32 if reduced else dtype
        inputs = [(x if isinstance(x, torch.Tensor) else _number(x, device)).to(compute) for x in data]
        result = fn(*(torch.as_tensor(x, device=device) for x in operands[: len(operands) - len(data)]), *inputs)
        return result.to(dtype) if result.dtype == compute else result

    return reference


def _on_host(scalar: ScalarOp, fn: Callable[..., torch.Tensor], operands: Sequence[Any]) -> Any:
    """The op on Python numbers: a float among the data makes all of it f64."""
    condition, data = (operands[:1], operands[1:]) if scalar.name == "where" else ((), operands)
    if any(isinstance(x, torch.Tensor) for x in condition):
        # where(tensor, host, host): the result is a tensor of the host dtype
        return fn(*condition, *(torch.tensor(x, dtype=_host_dtype(data)) for x in data))
    if scalar.name in checks.DIVISIONS and data[1] == 0:
        checks.raise_error("ZeroDivisionError", "division by zero", 0)
    tensors = [torch.tensor(x, dtype=torch.bool) for x in condition]
    tensors += [torch.tensor(x, dtype=_host_dtype(data)) for x in data]
    return fn(*tensors).item()


def _host_dtype(numbers: Sequence[bool | int | float]) -> torch.dtype:
    if any(isinstance(x, float) for x in numbers):
        return torch.float64
    return torch.bool if all(isinstance(x, bool) for x in numbers) else torch.int64


# lowering


def _lower_rule(scalar: ScalarOp) -> LowerRule:
    name = scalar.name

    def lower(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
        dtype = _data_dtype(op.operands)
        args = [rules.operand_element(ctx, operand, index, dtype) for operand in op.operands]
        if checks.divides(op, dtype):
            checks.nonzero(ctx, op.operands[1], args[1], dtype.compute, op.results[0].type.is_host)
        return ctx.compute(name, *args, dtype=op.results[0].type.dtype.compute)

    return lower


def _lower_where(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    dtype = _data_dtype(op.operands[1:])
    condition = rules.operand_element(ctx, op.operands[0], index, bool_)
    chosen = [rules.operand_element(ctx, operand, index, dtype) for operand in op.operands[1:]]
    return ctx.compute("where", condition, *chosen, dtype=dtype.compute)


def _lower_bounded(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    edges, dtype = _data_dtype(op.operands[:4]), _data_dtype(op.operands[4:])
    args = [rules.operand_element(ctx, operand, index, edges) for operand in op.operands[:4]]
    value = rules.operand_element(ctx, op.operands[4], index, dtype)
    return ctx.compute("bounded", *args, value, dtype=dtype.compute)


def _data_dtype(operands: Sequence[Operand]) -> DType:
    values = [operand.type for operand in operands if isinstance(operand, Value)]
    return next((type_.dtype for type_ in values if type_.device != HOST), values[0].dtype)


# casts


def _infer_cast(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("cast", attrs, ("dtype",))
    rules.check_count("cast", operands, 1)
    (value,) = operands
    if not isinstance(value, Value):
        rules.fail("cast", f"operand 0 must be a tensor, got the number {value!r}")
    dtype = rules.check_dtype("cast", attrs["dtype"])
    if "complex" in (dtype.kind, value.type.dtype.kind):
        rules.fail("cast", f"does not convert {value.type.dtype.name} to {dtype.name}")
    if value.type.device == HOST and dtype not in rules.HOST_DTYPES:
        rules.fail("cast", f"host scalars are f64, i64 or bool, not {dtype.name}")
    return (value.type.with_dtype(dtype),)


def _cast(x: Any, dtype: DType) -> Any:
    if isinstance(x, torch.Tensor):
        return x.to(rules.torch_dtype(dtype), copy=True)
    return {"float": float, "int": int, "bool": bool}[dtype.kind](x)


def _lower_cast(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    value = ctx.element(op.operands[0], index)
    return ctx.compute("cast", value, dtype=op.results[0].type.dtype.compute)


def _infer_bitcast(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("bitcast", attrs, ("dtype",))
    value = rules.only_tensor("bitcast", operands, ("float", "int", "uint"))
    dtype = rules.check_dtype("bitcast", attrs["dtype"])
    source = value.type.dtype
    if source.itemsize != dtype.itemsize or source.is_reduced or dtype.is_reduced or dtype.kind in ("bool", "complex"):
        rules.fail("bitcast", f"cannot reinterpret {source.name} as {dtype.name}")
    return (value.type.with_dtype(dtype),)


def _lower_bitcast(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    return ctx.compute("bitcast", ctx.element(op.operands[0], index), dtype=op.results[0].type.dtype)


# checks


def _infer_checked(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("checked", attrs, ("low", "high", "error", "message"))
    value = rules.only_tensor("checked", operands, ("float", "int", "uint"))
    if attrs["error"] not in ("IndexError", "RuntimeError", "ValueError", "AssumptionError"):
        rules.fail("checked", f"error={attrs['error']!r} is no class of errors in data")
    return (value.type,)


def _checked(x: torch.Tensor, low: float, high: float, error: str, message: str) -> torch.Tensor:
    if not bool(((x >= low) & (x <= high)).all()):
        checks.raise_error(error, message, 0)
    return x.clone()


def _lower_checked(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    value, dtype = ctx.element(op.operands[0], index), op.results[0].dtype.compute
    at_least = ctx.compute("ge", value, ctx.constant(op.attrs["low"], dtype), dtype=bool_)
    at_most = ctx.compute("le", value, ctx.constant(op.attrs["high"], dtype), dtype=bool_)
    inside = ctx.compute("logical_and", at_least, at_most, dtype=bool_)  # false for NaN
    failed = ctx.compute("logical_not", inside, dtype=bool_)
    ctx.check(failed, ctx.constant(0, i64), op.attrs["error"], op.attrs["message"])
    return value


def _register_all() -> None:
    for name, (fn, doc) in _TORCH.items():
        scalar = SCALAR_OPS[name]
        infer = {"where": _infer_where, "bounded": _infer_bounded}.get(name) or _type_rule(scalar)
        lower = {"where": _lower_where, "bounded": _lower_bounded}.get(name) or _lower_rule(scalar)
        reference = _reference(scalar, fn)
        register(OpDef(name, Kind.POINTWISE, doc, infer, reference, lower=lower, commutative=name in _COMMUTATIVE))
    register(
        OpDef(
            "cast", Kind.POINTWISE, "The same number in another dtype: to integers rounds to zero, to bool is != 0.",
            _infer_cast, _cast, lower=_lower_cast,
        )
    )  # fmt: skip
    register(
        OpDef(
            "checked", Kind.POINTWISE,
            "The number; the program raises error(message) where it is not in [low, high]. low, high, error, message.",
            _infer_checked, _checked, lower=_lower_checked,
        )
    )  # fmt: skip
    register(
        OpDef(
            "bitcast", Kind.POINTWISE, "The same bits as another dtype of the same size.",
            _infer_bitcast, lambda x, dtype: x.view(rules.torch_dtype(dtype)).clone(), lower=_lower_bitcast,
        )
    )  # fmt: skip


_register_all()
