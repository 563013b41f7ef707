"""Import rules of elementwise operators: arithmetic, comparisons, logic, bits, choice."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from graphc.frontend.aten import layout
from graphc.frontend.aten.expression import Term, wide
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.operands import (
    as_bool,
    comparable,
    converted,
    dtype_of,
    fitting,
    floating,
    is_number,
    numeric,
    rounding_once,
    supported,
)  # fmt: skip
from graphc.frontend.aten.promotion import common_dtype, to_torch
from graphc.frontend.aten.registry import CONTIGUOUS, LIKE, POINTWISE, Decline, RuleFn, rule
from graphc.ir.graph import Operand, Value
from graphc.ir.types import DType, bool_, f32, i32

Prepare = Callable[..., list[Operand]]


def _unary(names: str, prepare: Prepare) -> None:
    for name in names.split():
        rule(f"aten.{name}.default", layout=POINTWISE)(_unary_rule(name, prepare))


def _unary_rule(name: str, prepare: Prepare) -> RuleFn:
    def import_unary(imp: Importer, self: Value) -> Value:
        return imp.b.op(name, *prepare(imp, self))

    return import_unary


def _binary(overloads: str, name: str, prepare: Prepare) -> None:
    def import_binary(imp: Importer, self: Operand, other: Operand) -> Value:
        return imp.b.op(name, *prepare(imp, self, other))

    rule(*(f"aten.{overload}" for overload in overloads.split()), layout=POINTWISE)(import_binary)


def _integers(imp: Importer, *args: Operand) -> list[Operand]:
    dtype = common_dtype(args)
    if not dtype.is_integral:
        raise Decline("bits of floats")
    return converted(imp, args, dtype)


def _floats_only(imp: Importer, *args: Operand) -> list[Operand]:
    dtype = common_dtype(args)
    if not dtype.is_float:
        raise Decline("floats only")
    return converted(imp, args, dtype)


def _bools(imp: Importer, *args: Operand) -> list[Operand]:
    return [as_bool(imp, arg) if isinstance(arg, Value) else bool(arg) for arg in args]


def _nonzero_divisor(imp: Importer, *args: Operand) -> list[Operand]:
    operands = numeric(imp, *args)
    if dtype_of(operands).is_integral and is_number(args[-1], 0):
        raise Decline("eager raises for integers divided by zero")
    return operands


_unary(
    "acos acosh asin asinh atan atanh cos cosh digamma erf erfc erfinv exp exp2 expm1 lgamma log log10 log1p log2 "
    "reciprocal rsqrt sin sinh sqrt tan tanh",
    floating,
)
_unary("abs neg sign", numeric)
_unary("bitwise_not", _integers)
_unary("logical_not", _bools)

for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _binary(f"{_name}.Tensor {_name}.Scalar", _name, comparable)
for _name in ("logical_and", "logical_or", "logical_xor"):
    _binary(f"{_name}.default", _name, _bools)
for _name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
    _binary(f"{_name}.Tensor {_name}.Scalar {_name}.Scalar_Tensor", _name, _integers)
for _short in ("and", "or", "xor"):
    _binary(f"__{_short}__.Tensor __{_short}__.Scalar", f"bitwise_{_short}", _integers)
_binary("remainder.Tensor remainder.Scalar remainder.Scalar_Tensor", "remainder", _nonzero_divisor)
_binary("fmod.Tensor fmod.Scalar", "fmod", _nonzero_divisor)
_binary("floor_divide.default floor_divide.Scalar", "floordiv", _nonzero_divisor)
_binary("maximum.default max.other clamp_min.default clamp_min.Tensor", "maximum", numeric)
_binary("minimum.default min.other clamp_max.default clamp_max.Tensor", "minimum", numeric)
_binary("atan2.default", "atan2", floating)
_binary("copysign.Tensor copysign.Scalar", "copysign", floating)
_binary("hypot.default", "hypot", _floats_only)


@rule("aten.sgn.default", layout=POINTWISE)
def sgn(imp: Importer, self: Value) -> Value:
    return imp.b.op("sign", *numeric(imp, self))


@rule("aten.nextafter.default", layout=POINTWISE)
def nextafter(imp: Importer, self: Value, other: Value) -> Value:
    operands = _floats_only(imp, self, other)
    if dtype_of(operands).is_reduced:
        raise Decline("steps of reduced floats are not those of f32")
    return imp.b.op("nextafter", *operands)


@rule("aten.fmax.default", layout=POINTWISE)
def fmax(imp: Importer, self: Value, other: Value) -> Value:
    operands = numeric(imp, self, other)
    return imp.b.op("fmax" if dtype_of(operands).is_float else "maximum", *operands)


@rule("aten.fmin.default", layout=POINTWISE)
def fmin(imp: Importer, self: Value, other: Value) -> Value:
    operands = numeric(imp, self, other)
    return imp.b.op("fmin" if dtype_of(operands).is_float else "minimum", *operands)


# arithmetic


def _times(imp: Importer, value: Operand, factor: Operand, dtype: DType) -> Operand:
    """`value * factor`, either of which may be a number; the product takes part in an op of `dtype`."""
    if is_number(factor, 1):
        return value
    if not isinstance(factor, Value):
        factor = fitting(factor, dtype)  # type: ignore[arg-type]  # complex is declined there
    if not isinstance(value, Value) and not isinstance(factor, Value):
        return fitting(value * factor, dtype)  # type: ignore[arg-type]  # as above
    return imp.b.op("mul", value, factor)


@rule("aten.add.Tensor", "aten.add.Scalar", layout=POINTWISE)
@rounding_once
def add(imp: Importer, self: Value, other: Operand, alpha: Operand = 1) -> Value:
    dtype = common_dtype((self, other))
    x, y = converted(imp, (self, other), dtype)
    if dtype == bool_:
        if not is_number(alpha, 1):
            raise Decline("a factor of bools")
        return imp.b.op("logical_or", x, y)
    return imp.b.op("add", x, _times(imp, y, alpha, dtype))


@rule("aten.sub.Tensor", "aten.sub.Scalar", layout=POINTWISE)
@rounding_once
def sub(imp: Importer, self: Operand, other: Operand, alpha: Operand = 1) -> Value:
    if any(isinstance(value, Value) and value.dtype == bool_ for value in (self, other)):
        raise TypeError("a bool is not subtracted")  # eager says so in its own words
    x, y = numeric(imp, self, other)
    return imp.b.op("sub", x, _times(imp, y, alpha, dtype_of((x, y))))


@rule("aten.rsub.Tensor", "aten.rsub.Scalar", layout=POINTWISE)
def rsub(imp: Importer, self: Value, other: Operand, alpha: Operand = 1) -> Value:
    result: Value = sub(imp, other, self, alpha)
    # eager calls sub, so it iterates over the operands in that order
    return imp.with_strides(result, imp.pointwise_strides(result, [other, self]))


@rule("aten.mul.Tensor", "aten.mul.Scalar", layout=POINTWISE)
def mul(imp: Importer, self: Value, other: Operand) -> Value:
    operands = comparable(imp, self, other)
    return imp.b.op("logical_and" if dtype_of(operands) == bool_ else "mul", *operands)


@rule("aten.div.Tensor", "aten.div.Scalar", "aten.true_divide.Tensor", "aten.true_divide.Scalar", layout=POINTWISE)
def div(imp: Importer, self: Value, other: Operand) -> Value:
    return imp.b.op("div", *floating(imp, self, other))


@rule("aten.div.Tensor_mode", "aten.div.Scalar_mode", layout=POINTWISE)
def div_mode(imp: Importer, self: Value, other: Operand, rounding_mode: str | None) -> Value:
    if rounding_mode is None:
        return div(imp, self, other)
    return imp.b.op({"trunc": "truncdiv", "floor": "floordiv"}[rounding_mode], *_nonzero_divisor(imp, self, other))


@rule("aten.pow.Tensor_Scalar", layout=POINTWISE)
@rounding_once
def pow_scalar(imp: Importer, self: Value, exponent: Operand) -> Value:
    x, power = numeric(imp, self, exponent)
    assert isinstance(x, Value)
    if isinstance(power, Value):
        return imp.b.op("pow", x, power)
    if x.dtype.is_integral:
        return _integer_power(imp, x, int(power))  # type: ignore[arg-type]  # complex was declined
    if power == 0:
        return imp.full_like(x, 1.0)
    return _float_power(imp, x, float(power))  # type: ignore[arg-type]  # as above


def _float_power(imp: Importer, x: Value, power: float) -> Value:
    """As eager's kernel: small powers by products and roots."""
    if power in (1.0, 2.0, 3.0, -2.0):
        square = x if power == 1.0 else imp.b.op("mul", x, x)
        if power == 3.0:
            return imp.b.op("mul", square, x)
        return square if power > 0 else imp.b.op("reciprocal", square)
    special = {0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}.get(power)
    return imp.b.op(special, x) if special else imp.b.op("pow", x, power)


def _integer_power(imp: Importer, x: Value, power: int) -> Value:
    """Repeated squaring: exact, since integers wrap around."""
    if power < 0:
        raise Decline("eager raises for negative powers of integers")
    result: Value | None = None
    while power:
        if power & 1:
            result = x if result is None else imp.b.op("mul", result, x)
        power >>= 1
        if power:
            x = imp.b.op("mul", x, x)
    return imp.full_like(x, 1) if result is None else result


@rule("aten.pow.Tensor_Tensor", layout=POINTWISE)
def pow_tensor(imp: Importer, self: Value, exponent: Value) -> Value:
    return imp.b.op("pow", *_floats_only(imp, self, exponent))


@rule("aten.pow.Scalar", layout=CONTIGUOUS)
def pow_of_scalar(imp: Importer, self: Operand, exponent: Value) -> Value:
    base, power = _floats_only(imp, self, exponent)
    if is_number(base, 1):
        assert isinstance(power, Value)
        return imp.full_like(power, 1.0)
    return imp.b.op("pow", base, power)


@rule("aten.addcmul.default", layout=POINTWISE)
@rounding_once
def addcmul(imp: Importer, self: Value, tensor1: Value, tensor2: Value, value: Operand = 1) -> Value:
    x, a, b = numeric(imp, self, tensor1, tensor2)
    return imp.b.op("add", x, imp.b.op("mul", _times(imp, a, value, dtype_of((x, a))), b))


@rule("aten.addcdiv.default", layout=POINTWISE)
@rounding_once
def addcdiv(imp: Importer, self: Value, tensor1: Value, tensor2: Value, value: Operand = 1) -> Value:
    x, a, b = _floats_only(imp, self, tensor1, tensor2)
    return imp.b.op("add", x, imp.b.op("div", _times(imp, a, value, dtype_of((x, a))), b))


@rule("aten.lerp.Scalar", "aten.lerp.Tensor", layout=POINTWISE)
@rounding_once
def lerp(imp: Importer, self: Value, end: Value, weight: Operand) -> Value:
    if self.dtype != end.dtype or (
        isinstance(weight, Value) and not weight.type.is_host and weight.dtype != self.dtype
    ):
        raise Decline("dtypes differ")
    x, y, w = converted(imp, (self, end, weight), self.dtype)
    if not self.dtype.is_float:
        raise Decline("floats only")
    distance = imp.b.op("sub", y, x)

    def from_start() -> Value:
        return imp.b.op("add", x, imp.b.op("mul", distance, w))

    def from_end() -> Value:
        rest = imp.b.op("sub", 1.0, w) if isinstance(w, Value) else 1.0 - float(w)  # type: ignore[arg-type]  # real
        return imp.b.op("sub", y, imp.b.op("mul", distance, rest))

    # as eager, from the nearer end, so that both ends are met exactly
    if not isinstance(w, Value):
        return from_start() if abs(w) < 0.5 else from_end()
    near = imp.b.op("lt", imp.b.op("abs", w), 0.5)
    return imp.b.op("where", near, from_start(), from_end())


# rounding and tests


def _rounding(name: str) -> None:
    @rule(f"aten.{name}.default", layout=POINTWISE)
    def import_rounding(imp: Importer, self: Value) -> Value:
        (x,) = numeric(imp, self)
        assert isinstance(x, Value)
        return imp.b.op(name, x) if x.dtype.is_float else x


for _name in ("floor", "ceil", "trunc", "round"):
    _rounding(_name)


@rule("aten.round.decimals", layout=POINTWISE)
@rounding_once
def round_decimals(imp: Importer, self: Value, decimals: int) -> Value:
    (x,) = _floats_only(imp, self)
    if decimals == 0:
        return imp.b.op("round", x)
    scale = fitting(10.0 ** abs(decimals), dtype_of((x,)))
    there, back = ("mul", "div") if decimals > 0 else ("div", "mul")
    return imp.b.op(back, imp.b.op("round", imp.b.op(there, x, scale)), scale)


@rule("aten.frac.default", layout=POINTWISE)
@rounding_once
def frac(imp: Importer, self: Value) -> Value:
    (x,) = _floats_only(imp, self)
    return imp.b.op("sub", x, imp.b.op("trunc", x))


def _test(
    name: str, of_float: Callable[[Importer, Value], Value], of_integer: bool = False, preserves: bool = False
) -> None:
    """A test of floats; of integers eager fills a tensor, which some tests make with their strides."""

    @rule(f"aten.{name}.default", layout=POINTWISE)
    def import_test(imp: Importer, self: Value) -> Value:
        supported(self)
        if self.dtype.is_float:
            return of_float(imp, self)
        result = imp.full_like(self, of_integer, bool_)
        return imp.with_strides(result, imp.preserved_strides(self)) if preserves else result


_test("isnan", lambda imp, x: imp.b.op("isnan", x))
_test("isinf", lambda imp, x: imp.b.op("isinf", x), preserves=True)
_test("isposinf", lambda imp, x: imp.b.op("eq", x, math.inf))
_test("isneginf", lambda imp, x: imp.b.op("eq", x, -math.inf))
_test("isfinite", lambda imp, x: imp.b.op("lt", imp.b.op("abs", x), math.inf), of_integer=True)


@rule("aten.signbit.default", layout=POINTWISE)
def signbit(imp: Importer, self: Value) -> Value:
    supported(self)
    if self.dtype == bool_:
        return imp.full_like(self, False, bool_)
    return imp.b.op("signbit", self) if self.dtype.is_float else imp.b.op("lt", self, 0)


# choice


def _shift(overloads: str, name: str) -> None:
    def import_shift(imp: Importer, self: Value, other: Operand) -> Value:
        x, amount = _integers(imp, self, other)
        dtype = dtype_of((x,))
        if isinstance(amount, Value) or dtype == bool_ or not 0 <= amount < 8 * dtype.itemsize:  # type: ignore[operator]
            raise Decline("C leaves other shifts undefined")
        return imp.b.op(name, x, amount)

    rule(*(f"aten.{overload}" for overload in overloads.split()), layout=POINTWISE)(import_shift)


_shift("bitwise_left_shift.Tensor_Scalar __lshift__.Scalar", "shl")
_shift("bitwise_right_shift.Tensor_Scalar __rshift__.Scalar", "shr")


@rule("aten.where.self", layout=POINTWISE)
def where(imp: Importer, condition: Value, self: Value, other: Value) -> Value:
    if condition.dtype != bool_:
        raise Decline("a condition that is not bool")
    result = imp.b.op("where", condition, *comparable(imp, self, other))
    return imp.with_strides(result, imp.pointwise_strides(result, [self, other], uncast=[condition]))


@rule("aten.masked_fill.Scalar", "aten.masked_fill.Tensor", layout=CONTIGUOUS)
def masked_fill(imp: Importer, self: Value, mask: Value, value: Operand) -> Value:
    supported(self, value)
    if mask.dtype != bool_ or (isinstance(value, Value) and value.shape):
        raise Decline("eager raises")
    if self.dtype.is_integral and (value.dtype.is_float if isinstance(value, Value) else isinstance(value, float)):
        raise Decline("a float into integers")
    if isinstance(value, Value) and value.type.is_host and not self.dtype.is_float:
        raise Decline("a traced number into integers")
    x, fill = converted(imp, (self, value), self.dtype)
    return imp.b.op("where", mask, fill, x)


@rule("aten.clamp.default", "aten.clamp.Tensor", layout=POINTWISE)
def clamp(imp: Importer, self: Value, min: Operand | None = None, max: Operand | None = None) -> Value:
    bounds = [bound for bound in (min, max) if bound is not None]
    if not bounds:
        raise Decline("eager raises")
    if any(isinstance(bound, float) and math.isnan(bound) for bound in bounds):
        raise Decline("versions of torch differ in what NaN bounds")
    x, *limits = numeric(imp, self, *bounds)
    result: Operand = x
    if min is not None:
        result = imp.b.op("maximum", result, limits[0])
    if max is not None:
        result = imp.b.op("minimum", result, limits[-1])
    assert isinstance(result, Value)
    return result


@rule("aten.nan_to_num.default", layout=LIKE)
def nan_to_num(
    imp: Importer, self: Value, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Value:
    supported(self)
    if not self.dtype.is_float:
        return self
    largest = torch.finfo(to_torch(self.dtype)).max
    above, below = largest if posinf is None else posinf, -largest if neginf is None else neginf
    x = imp.b.op("where", imp.b.op("isnan", self), _rounded(0.0 if nan is None else nan, self.dtype), self)
    x = imp.b.op("where", imp.b.op("eq", self, math.inf), _rounded(above, self.dtype), x)
    return imp.b.op("where", imp.b.op("eq", self, -math.inf), _rounded(below, self.dtype), x)


def _rounded(value: float, dtype: DType) -> float:
    return float(torch.tensor(value, dtype=torch.float64).to(to_torch(dtype)))


@rule("aten.heaviside.default", layout=POINTWISE)
def heaviside(imp: Importer, self: Value, values: Value) -> Value:
    if self.dtype != values.dtype:
        raise Decline("eager raises")
    x, middle = numeric(imp, self, values)
    step = imp.b.op("cast", imp.b.op("gt", x, 0), dtype=self.dtype)
    return imp.b.op("where", imp.b.op("eq", x, 0), middle, step)


# functions made of several


@rule("aten.logaddexp.default", layout=POINTWISE)
@rounding_once
def logaddexp(imp: Importer, self: Value, other: Value) -> Value:
    return _log_add(imp, self, other, "exp", 1.0)


@rule("aten.logaddexp2.default", layout=POINTWISE)
@rounding_once
def logaddexp2(imp: Importer, self: Value, other: Value) -> Value:
    return _log_add(imp, self, other, "exp2", 1.0 / math.log(2.0))


def _log_add(imp: Importer, self: Value, other: Value, exp: str, unit: float) -> Value:
    """The larger one + log(1 + exp(-distance)); two equal infinities have no distance."""
    x, y = _floats_only(imp, self, other)
    distance = imp.b.op("abs", imp.b.op("sub", x, y))
    rest = imp.b.op("log1p", imp.b.op(exp, imp.b.op("neg", distance)))
    if unit != 1.0:
        rest = imp.b.op("mul", rest, unit)
    total = imp.b.op("add", imp.b.op("maximum", x, y), rest)
    same_infinity = imp.b.op("logical_and", imp.b.op("isinf", x), imp.b.op("eq", x, y))
    return imp.b.op("where", same_infinity, x, total)


@rule("aten.sinc.default", layout=POINTWISE)
@rounding_once
def sinc(imp: Importer, self: Value) -> Value:
    (x,) = floating(imp, self)
    angle = imp.b.op("mul", x, math.pi)
    return imp.b.op("where", imp.b.op("eq", x, 0.0), 1.0, imp.b.op("div", imp.b.op("sin", angle), angle))


@rule("aten.xlogy.Tensor", "aten.xlogy.Scalar_Other", "aten.xlogy.Scalar_Self", layout=POINTWISE)
@rounding_once
def xlogy(imp: Importer, self: Operand, other: Operand) -> Value:
    return _x_times_log(imp, self, other, "log")


@rule(
    "aten.special_xlog1py.default", "aten.special_xlog1py.other_scalar", "aten.special_xlog1py.self_scalar",
    layout=POINTWISE,
)  # fmt: skip
@rounding_once
def xlog1py(imp: Importer, self: Operand, other: Operand) -> Value:
    return _x_times_log(imp, self, other, "log1p")


def _x_times_log(imp: Importer, self: Operand, other: Operand, log: str) -> Value:
    x, y = floating(imp, self, other)
    dtype = dtype_of((x, y))
    if not isinstance(y, Value):
        y = imp.full((), y, dtype, x.device)  # type: ignore[union-attr]  # one of the two is a tensor
    if not isinstance(x, Value):
        x = imp.full((), x, dtype, y.device)
    product = imp.b.op("where", imp.b.op("eq", x, 0.0), 0.0, imp.b.op("mul", x, imp.b.op(log, y)))
    return imp.b.op("where", imp.b.op("isnan", y), math.nan, product)


@rule("aten.special_entr.default", layout=POINTWISE)
@rounding_once
def entr(imp: Importer, self: Value) -> Value:
    (x,) = floating(imp, self)
    inside = imp.b.op("mul", imp.b.op("neg", x), imp.b.op("log", x))
    rest = imp.b.op("where", imp.b.op("eq", x, 0.0), 0.0, imp.full((), -math.inf, dtype_of((x,)), self.device))
    found = imp.b.op("where", imp.b.op("gt", x, 0.0), inside, rest)
    return imp.b.op("where", imp.b.op("isnan", x), x, found)


@rule("aten.logit.default", layout=POINTWISE)
@rounding_once
def logit(imp: Importer, self: Value, eps: float | None = None) -> Value:
    (x,) = floating(imp, self)
    if eps is not None:
        x = imp.b.op("minimum", imp.b.op("maximum", x, eps), 1.0 - eps)
    return imp.b.op("log", imp.b.op("div", x, imp.b.op("sub", 1.0, x)))


@rule("aten.deg2rad.default")
def deg2rad(imp: Importer, self: Value) -> Value:
    return _scaled(imp, self, math.pi / 180.0)


@rule("aten.rad2deg.default")
def rad2deg(imp: Importer, self: Value) -> Value:
    return _scaled(imp, self, 180.0 / math.pi)


def _scaled(imp: Importer, self: Value, factor: float) -> Value:
    """A product with a number, which has a part in eager's strides as any operand has."""
    result = imp.b.op("mul", *floating(imp, self), factor)
    return imp.with_strides(result, imp.pointwise_strides(result, [self, factor]))


@rule("aten.ldexp.Tensor", layout=LIKE)
def ldexp(imp: Importer, self: Value, other: Value) -> Value:
    if self.dtype.is_float and other.dtype.is_integral and other.dtype != bool_:
        return _times_power(imp, self, other)
    if imp.strides(other) != layout.contiguous(other.shape):  # type: ignore[arg-type]  # static
        raise Decline("whether eager follows them depends on the dtype")
    result: Value = mul(imp, self, pow_of_scalar(imp, 2.0, other))
    return result


def _times_power(imp: Importer, self: Value, other: Value) -> Value:
    """A tensor times a power of two by steps: the power may be no number of this dtype where the result is one."""
    x = wide(imp, self)
    exponent = Term(imp, Term(imp, imp.b.op("cast", other, dtype=i32)).to(x.value.dtype))  # eager takes a C int
    step = 100 if x.value.dtype == f32 else 1000
    for _ in range(3):
        part = exponent.op("maximum", -step).op("minimum", step)
        x, exponent = x * part.op("exp2"), exponent - part
    return x.to(self.dtype)


@rule("aten.angle.default", layout=POINTWISE)
def angle(imp: Importer, self: Value) -> Value:
    (x,) = floating(imp, self)
    zero = imp.full((), 0.0, dtype_of((x,)), self.device)
    found = imp.b.op("where", imp.b.op("lt", x, 0.0), math.pi, zero)
    return imp.b.op("where", imp.b.op("isnan", x), x, found)


@rule("aten.polygamma.default", layout=POINTWISE)
def polygamma(imp: Importer, n: int, self: Value) -> Value:
    if n != 0:
        raise Decline("higher derivatives")
    return imp.b.op("digamma", *floating(imp, self))
