"""What each scalar operator of loop IR means, in numpy. The interpreter and the tests of generated code use it.

Functions of f32 are computed in float64 and rounded once, so that they are the exact answer in practice; arithmetic is
done in the dtype itself, as eager does it. bf16 values are held as their bits in uint16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from graphc.errors import CodegenError
from graphc.ir.types import FLOAT8, DType, f8e5m2
from graphc.loopir.philox import philox_words

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
    "i64": np.dtype(np.int64),
    "i32": np.dtype(np.int32),
    "i16": np.dtype(np.int16),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
    "u16": np.dtype(np.uint16),
    "u32": np.dtype(np.uint32),
    "u64": np.dtype(np.uint64),
    "bool": np.dtype(np.bool_),
}


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """How the interpreter holds values of a dtype.

    Raises:
        CodegenError: a dtype kernels cannot hold (complex).
    """
    found = np.dtype(np.uint8) if dtype in FLOAT8 else NUMPY_DTYPES.get(dtype.name)  # their bits
    if found is None:
        raise CodegenError(f"kernels cannot hold {dtype.name}")
    return found


def constant(value: bool | int | float, dtype: DType) -> Array:
    """A 0-d array with a constant of loop IR; integers wrap."""
    if dtype.name == "bf16":
        return float_to_bf16(np.asarray(value, np.float32))
    target = numpy_dtype(dtype)
    if dtype.kind in ("int", "uint"):
        bits = 8 * dtype.itemsize
        return np.asarray(int(value) & ((1 << bits) - 1), np.uint64).astype(target)
    return np.asarray(value, np.float64).astype(target) if dtype.is_float else np.asarray(bool(value))


def bf16_to_float(bits: Array) -> Array:
    """f32 array with the values of bf16 bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float8_to_float(bits: Array, dtype: DType) -> Array:
    """f32 array with the values of 8-bit floats: 5 bits of exponent are those of f16, 4 bits have no infinity."""
    if dtype == f8e5m2:
        return (bits.astype(np.uint16) << np.uint16(8)).view(np.float16).astype(np.float32)
    exponent, mantissa = (bits >> 3 & 15).astype(np.int32), (bits & 7).astype(np.float32)
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, np.ldexp(1 + mantissa / 8, exponent - 7))
    size = np.where(bits & 127 == 127, np.float32(np.nan), size.astype(np.float32))
    return np.where(bits >> 7 == 1, -size, size)


def float_to_bf16(value: Array) -> Array:
    """Bits of f32 values rounded to bf16, half to even; NaN becomes 0x7fc0 as in eager."""
    bits = np.ascontiguousarray(value, np.float32).reshape(value.shape).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(value), np.uint16(0x7FC0), rounded.astype(np.uint16))


def cast(value: Array, source: DType, target: DType) -> Array:
    """Conversion as eager does it on x86: floats to integers round to zero, and out of range give the lowest i32 or i64
    (cut to the target's width; u32 through i64, narrower ones through i32); reduced floats go through f32."""
    if source == target and source in FLOAT8:
        return value
    if source.name == "bf16":
        value = bf16_to_float(value)
    if source in FLOAT8:
        value = float8_to_float(value, source)
    if target in FLOAT8:
        raise CodegenError(f"kernels do not round to {target.name}")
    if target.name == "bf16":
        return float_to_bf16(value.astype(np.float32))
    if target.name == "f16" and source.name == "f64":
        value = value.astype(np.float32)
    if target.kind == "bool":
        return np.asarray(value != 0)
    if source.is_float and target.is_integral:
        return _float_to_int(value, target)
    return value.astype(numpy_dtype(target))


def _float_to_int(value: Array, target: DType) -> Array:
    middle = np.int32 if target.itemsize < 4 or target.name == "i32" else np.int64
    wide = np.trunc(value.astype(np.float64))
    info = np.iinfo(middle)
    fits = (wide >= float(info.min)) & (wide < -float(info.min))
    whole = np.where(fits, wide, float(info.min)).astype(middle)
    if target.name == "u64":
        high = (wide >= 2.0**63) & (wide < 2.0**64)
        above = np.where(high, wide - 2.0**63, 0.0).astype(np.uint64) + np.uint64(1 << 63)
        return np.where(high, above, whole.astype(np.uint64))
    return whole.astype(numpy_dtype(target))


def apply(op: str, args: Sequence[Array], source: DType, target: DType) -> Array:
    """One scalar op.

    Args:
        op: name in `graphc.loopir.scalar.SCALAR_OPS`.
        args: operand arrays, broadcastable.
        source: dtype of the last operand.
        target: dtype of the result.
    """
    if op == "cast":
        return cast(args[0], source, target)
    if op == "bitcast":
        return np.ascontiguousarray(args[0]).view(numpy_dtype(target)).reshape(args[0].shape)
    if op == "where":
        return np.where(*args)
    if op == "bounded":
        position, first, last, end, value = args
        hides = value.dtype.type(-np.inf if source.is_float else True)
        inside = np.where((first <= position) & (position < last), value, hides)
        return np.where((first <= position) & (position < end), value.dtype.type(0), inside)
    if op == "philox":
        return philox_words(args[0], args[1])
    if op in IN_FLOAT64:
        wide = [arg.astype(np.float64) for arg in args]
        return np.asarray(IN_FLOAT64[op](*wide)).astype(numpy_dtype(target))
    table = _FLOAT if source.is_float else _INT
    function = table.get(op) or _ANY[op]
    return np.asarray(function(*args)).astype(numpy_dtype(target), copy=False)


def _elementwise(function: Callable[[float], float]) -> Callable[[Array], Array]:
    def apply_all(value: Array) -> Array:
        flat = [function(x) for x in value.reshape(-1).tolist()]
        return np.asarray(flat, np.float64).reshape(value.shape)

    return apply_all


def _lgamma(x: float) -> float:
    if math.isinf(x) or (x <= 0 and x == math.floor(x)):
        return math.inf
    try:
        return math.lgamma(x)
    except OverflowError:
        return math.inf


def _digamma(x: float) -> float:
    """Recurrence up to 10, then the asymptotic series.

    Source: Cephes psi.c, as in ATen's calc_digamma.
    """
    if x == 0:
        return math.copysign(math.inf, -x)
    if x < 0:
        if math.isinf(x) or x == math.trunc(x):
            return math.nan
        return _digamma(1 - x) - math.pi / math.tan(math.pi * math.modf(x)[0])
    result = 0.0
    while x < 10:
        result -= 1 / x
        x += 1
    if x == 10:
        return result + 2.25175258906672110764
    series = 0.0
    if x < 1e17:
        z = 1 / (x * x)
        for coefficient in _DIGAMMA_SERIES:
            series = series * z + coefficient
        series *= z
    return result + (math.log(x) - 0.5 / x - series) if math.isfinite(x) else x


_DIGAMMA_SERIES = (
    8.33333333333333333333e-2,
    -2.10927960927960927961e-2,
    7.57575757575757575758e-3,
    -4.16666666666666666667e-3,
    3.96825396825396825397e-3,
    -8.33333333333333333333e-3,
    8.33333333333333333333e-2,
)


def _erfinv(y: float) -> float:
    """A rational approximation and three Newton steps.

    Source: the rational forms of Giles' family in ATen's calc_erfinv.
    """
    if math.isnan(y) or abs(y) > 1:
        return math.nan
    if abs(y) == 1:
        return math.copysign(math.inf, y)
    if abs(y) <= 0.7:
        z = y * y
        top = ((-0.140543331 * z + 0.914624893) * z - 1.645349621) * z + 0.886226899
        x = y * top / ((((0.012229801 * z - 0.329097515) * z + 1.442710462) * z - 2.118377725) * z + 1)
    else:
        z = math.sqrt(-math.log((1 - abs(y)) / 2))
        top = ((1.641345311 * z + 3.429567803) * z - 1.624906493) * z - 1.970840454
        x = math.copysign(top, y) / ((1.637067800 * z + 3.543889200) * z + 1)
    x = abs(x)
    for _ in range(3):  # near 1 the error function has too few digits
        miss = math.erf(x) - abs(y) if abs(y) <= 0.7 else (1 - abs(y)) - math.erfc(x)
        x -= miss / (2 / math.sqrt(math.pi) * math.exp(-x * x))
    return math.copysign(x, y)


def _float_remainder(a: Array, b: Array) -> Array:
    rest = np.fmod(a, b)
    return np.where((rest != 0) & ((b < 0) != (rest < 0)), rest + b, rest)


def _float_floordiv(a: Array, b: Array) -> Array:
    """Source: CPython's float floor division, as in c10's div_floor_floating."""
    rest = np.fmod(a, b)
    quotient = (a - rest) / b
    quotient = np.where((rest != 0) & ((b < 0) != (rest < 0)), quotient - a.dtype.type(1), quotient)
    whole = np.floor(quotient)
    whole = np.where(quotient - whole > 0.5, whole + a.dtype.type(1), whole)
    whole = np.where(quotient != 0, whole, np.copysign(a.dtype.type(0), a / b))
    return np.where(b == 0, a / b, whole)


def _int_quotient(a: Array, b: Array, to_zero: bool) -> Array:
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = np.floor_divide(a, safe)
    if to_zero:
        quotient = quotient + ((a - quotient * safe != 0) & (quotient < 0)).astype(a.dtype)
    return np.where(b == 0, a.dtype.type(0), quotient)


def _int_rest(a: Array, b: Array, to_zero: bool) -> Array:
    return np.asarray(np.where(b == 0, a.dtype.type(0), a - _int_quotient(a, b, to_zero) * b))


def _int_pow(a: Array, b: Array) -> Array:
    one = a.dtype.type(1)
    power = np.power(a, np.where(b < 0, a.dtype.type(0), b))
    if a.dtype.kind == "u":
        return power
    negative = np.where(a == 1, one, np.where(a == -1, np.where(b % 2 != 0, -one, one), a.dtype.type(0)))
    return np.where(b < 0, negative, power)


def _shift(a: Array, b: Array, left: bool) -> Array:
    bits = 8 * a.dtype.itemsize
    valid = (b >= 0) & (b < bits)
    amount = np.where(valid, b, b.dtype.type(0))
    if left:
        return np.where(valid, np.left_shift(a, amount), a.dtype.type(0))
    filled = np.right_shift(a, a.dtype.type(bits - 1)) if a.dtype.kind == "i" else a.dtype.type(0)
    return np.where(valid, np.right_shift(a, amount), filled)


def _sign(a: Array) -> Array:
    return np.asarray((a > 0).astype(a.dtype) - (a < 0).astype(a.dtype))


IN_FLOAT64: dict[str, Callable[..., Array]] = {
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2, "log10": np.log10,
    "log1p": np.log1p, "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos,
    "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh, "acosh": np.arccosh,
    "atanh": np.arctanh, "atan2": np.arctan2, "hypot": np.hypot,
    "erf": _elementwise(math.erf), "erfc": _elementwise(math.erfc), "erfinv": _elementwise(_erfinv),
    "lgamma": _elementwise(_lgamma), "digamma": _elementwise(_digamma),
}  # fmt: skip
"""Functions that are computed in float64 and rounded once."""

_FLOAT: dict[str, Callable[..., Array]] = {
    "div": np.divide,
    "floordiv": _float_floordiv,
    "truncdiv": lambda a, b: np.trunc(a / b),
    "remainder": _float_remainder,
    "fmod": np.fmod,
    "pow": lambda a, b: np.power(a.astype(np.float64), b.astype(np.float64)),
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "round": np.rint,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: a.dtype.type(1) / np.sqrt(a),
    "reciprocal": lambda a: a.dtype.type(1) / a,
}

_INT: dict[str, Callable[..., Array]] = {
    "floordiv": lambda a, b: _int_quotient(a, b, False),
    "truncdiv": lambda a, b: _int_quotient(a, b, True),
    "remainder": lambda a, b: _int_rest(a, b, False),
    "fmod": lambda a, b: _int_rest(a, b, True),
    "pow": _int_pow,
    "shl": lambda a, b: _shift(a, b, True),
    "shr": lambda a, b: _shift(a, b, False),
}

_ANY: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "maximum": np.maximum, "minimum": np.minimum,
    "fmax": np.fmax, "fmin": np.fmin, "copysign": np.copysign, "nextafter": np.nextafter, "neg": np.negative,
    "abs": np.abs, "sign": _sign, "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "isnan": np.isnan, "isinf": np.isinf, "signbit": np.signbit,
    "logical_and": np.logical_and, "logical_or": np.logical_or, "logical_xor": np.logical_xor,
    "logical_not": np.logical_not, "bitwise_and": np.bitwise_and, "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor, "bitwise_not": np.invert,
}  # fmt: skip
