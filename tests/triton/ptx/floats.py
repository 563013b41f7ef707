"""Float arithmetic: exact instructions as IEEE 754 has them, approximate ones by their best result.

NaN results of float32 are the one that the ISA names, 0x7fffffff. Of functions that are approximate in hardware
(`ex2.approx`, `sin.approx`, ...) the result is computed in float64 and rounded, so it is within any bound that the ISA
gives; `rcp.approx.ftz.f64` and `rsqrt.approx.ftz.f64` have just the 20 bits of mantissa that are promised.

Source: PTX ISA 8.7, 9.7.3 Floating Point Instructions, 9.7.4 Half Precision Floating Point Instructions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.triton.ptx.exact import MODES, exactly
from tests.triton.ptx.integers import Function, stepping
from tests.triton.ptx.parse import Instruction
from tests.triton.ptx.registers import Array, Builder, Step, types

NAN = np.asarray(0x7FFFFFFF, np.uint32).view(np.float32)
_HALVES = {"f16", "bf16", "f16x2", "bf16x2"}


def canonical(value: Array) -> Array:
    """The one NaN of float32 instead of any."""
    missing = np.isnan(value)
    return np.where(missing, NAN, value) if value.dtype == np.float32 and missing.any() else value


def flush(value: Array) -> Array:
    """Zeros of the same sign for subnormal numbers."""
    small = np.abs(value) < np.finfo(value.dtype).tiny
    return np.where(small, np.copysign(value.dtype.type(0), value), value) if small.any() else value


def saturate(value: Array) -> Array:
    """Between 0 and 1, NaN being 0."""
    dtype = value.dtype.type
    return np.where(np.isnan(value) | (value <= 0), dtype(0), np.minimum(value, dtype(1)))


def mode_of(flags: set[str], default: str = "rn") -> str:
    """The rounding that an instruction names."""
    return next((mode for mode in MODES if mode in flags), default)


def framed(flags: set[str], function: Function) -> Function:
    """A function with what flags say of its operands and its result."""
    flushes, saturates = "ftz" in flags, "sat" in flags

    def call(*operands: Array) -> Array:
        result = function(*(map(flush, operands) if flushes else operands))
        result = flush(result) if flushes else result
        return saturate(result) if saturates else canonical(result)

    return call


# ------------------------------------------------------------------------------------------------------ 16-bit floats


def widen(kind: str, bits: Array) -> Array:
    """float32 values of float16, or of the bits of bfloat16."""
    if kind == "f16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow(kind: str, value: Array) -> Array:
    """Bits of float32 values rounded to nearest even; NaN as the ISA has it."""
    missing = np.isnan(value)
    if kind == "f16":
        bits = value.astype(np.float16).view(np.uint16)
    else:
        held = np.ascontiguousarray(value).view(np.uint32)
        odd = held >> np.uint32(16) & np.uint32(1)
        bits = (held + np.uint32(0x7FFF) + odd >> np.uint32(16)).astype(np.uint16)
    return np.where(missing, np.uint16(0x7FFF), bits) if missing.any() else bits


def _of_halves(kind: str, function: Callable[..., Array]) -> Function:
    """A function of float32 that is rounded to odd, applied to one or two halves of a register."""
    scalar = kind.removesuffix("x2")

    def one(*bits: Array) -> Array:
        return narrow(scalar, function(*(widen(scalar, part) for part in bits)))

    def two(*pairs: Array) -> Array:
        low = one(*(pair.astype(np.uint16) for pair in pairs)).astype(np.uint32)
        high = one(*((pair >> np.uint32(16)).astype(np.uint16) for pair in pairs)).astype(np.uint32)
        return low | high << np.uint32(16)

    return two if kind.endswith("x2") else lambda *parts: one(*(part.view(np.uint16) for part in parts))


_ONE, _MINUS_ZERO = np.float32(1), np.float32(-0.0)
_HALF_FUNCTIONS: dict[str, Function] = {
    "fma": lambda a, b, c: exactly("fma_odd", "rn", a, b, c),
    "add": lambda a, b: exactly("fma_odd", "rn", a, _ONE, b),
    "sub": lambda a, b: exactly("fma_odd", "rn", b, -_ONE, a),
    "mul": lambda a, b: exactly("fma_odd", "rn", a, b, _MINUS_ZERO),
    "neg": np.negative,
    "abs": np.abs,
}


def _half(instruction: Instruction, arity: int) -> Step:
    kind, _ = types(instruction, "rn")
    function = _of_halves(kind, _HALF_FUNCTIONS[instruction.opcode])
    return stepping(instruction, function, [kind] * arity, kind)


# -------------------------------------------------------------------------------------------------------- arithmetic


def rounded(name: str, plain: Function, arity: int) -> Builder:
    """An instruction with a rounding of its own; numpy does it where that is to nearest."""

    def build(instruction: Instruction) -> Step:
        kind = instruction.modifiers[-1]
        if kind in _HALVES and instruction.opcode in _HALF_FUNCTIONS:
            return _half(instruction, arity)
        if kind not in ("f32", "f64"):
            raise instruction.unknown()
        kind, flags = types(instruction, "rn rz rm rp ftz sat")
        mode = mode_of(flags)
        function = plain if mode == "rn" else (lambda *operands: exactly(name, mode, *operands))
        return stepping(instruction, framed(flags, function), [kind] * arity, kind)

    return build


def fused(instruction: Instruction) -> Step:
    kind = instruction.modifiers[-1]
    if kind in _HALVES:
        return _half(instruction, 3)
    kind, flags = types(instruction, "rn rz rm rp ftz sat")
    mode = mode_of(flags)
    function = framed(flags, lambda a, b, c: exactly("fma", mode, a, b, c))
    return stepping(instruction, function, [kind] * 3, kind)


def _subtract(instruction: Instruction) -> Step:
    if instruction.modifiers[-1] in _HALVES:
        return _half(instruction, 2)
    kind, flags = types(instruction, "rn rz rm rp ftz sat")
    mode = mode_of(flags)
    plain = np.subtract if mode == "rn" else (lambda a, b: exactly("add", mode, a, -b))
    return stepping(instruction, framed(flags, plain), [kind] * 2, kind)


def maximum(a: Array, b: Array, propagates: bool = False) -> Array:
    """The larger number, +0 being above -0; with `propagates`, NaN when there is one."""
    larger = np.fmax(a, b)
    zeros = (a == 0) & (b == 0)
    if zeros.any():
        positive = ~(np.signbit(a) & np.signbit(b))
        larger = np.where(zeros, np.copysign(a.dtype.type(0), np.where(positive, 1, -1).astype(a.dtype)), larger)
    return np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), larger) if propagates else larger


def _extremum(instruction: Instruction) -> Step:
    kind, flags = types(instruction, "ftz NaN")
    nan, is_maximum = "NaN" in flags, instruction.opcode == "max"

    def function(a: Array, b: Array) -> Array:
        return maximum(a, b, nan) if is_maximum else -maximum(-a, -b, nan)

    if kind in _HALVES and "ftz" not in flags:
        return stepping(instruction, _of_halves(kind, function), [kind] * 2, kind)
    if kind not in ("f32", "f64"):
        raise instruction.unknown()
    return stepping(instruction, framed(flags, function), [kind] * 2, kind)


def _sign_only(function: Function, arity: int) -> Builder:
    """Instructions that change no more than the sign bit, of NaN too."""

    def build(instruction: Instruction) -> Step:
        kind, flags = types(instruction, "ftz")
        if kind in _HALVES:
            return _half(instruction, arity)
        change = (lambda *operands: flush(function(*map(flush, operands)))) if flags else function
        return stepping(instruction, change, [kind] * arity, kind)

    return build


# ------------------------------------------------------------------------------------------- division and functions


def _divide_approximately(a: Array, b: Array) -> Array:
    quotient = (a.astype(np.float64) / b.astype(np.float64)).astype(np.float32)
    size = np.abs(b)
    huge = (size > np.float32(2.0**126)) & (size <= np.finfo(np.float32).max)
    lost = np.where(np.isinf(a), np.float32(np.nan), np.copysign(np.float32(0), quotient))
    return np.where(huge, lost, quotient)


def divide(instruction: Instruction) -> Step:
    kind, flags = types(instruction, "rn rz rm rp approx full ftz")
    if kind == "f32" and "approx" in flags:
        return stepping(instruction, framed(flags, _divide_approximately), [kind] * 2, kind)
    mode = mode_of(flags)
    plain = np.divide if mode == "rn" else (lambda a, b: exactly("div", mode, a, b))
    return stepping(instruction, framed(flags, plain), [kind] * 2, kind)


def _upper_half(value: Array) -> Array:
    """float64 cut to the 20 upper bits of its mantissa."""
    return (np.ascontiguousarray(value).view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)


def _seed(function: Function) -> Function:
    """Gross approximation of float64: only the upper 32 bits go in and come out."""
    return lambda value: _upper_half(flush(function(_upper_half(flush(value)))))


def _reciprocal_root(value: Array) -> Array:
    return (1 / np.sqrt(value.astype(np.longdouble))).astype(value.dtype)


def function_of_one(plain: Function, exact: str = "") -> Builder:
    """A function that is approximate, or exact where the instruction names a rounding."""

    def build(instruction: Instruction) -> Step:
        kind, flags = types(instruction, "rn rz rm rp approx ftz")
        mode = mode_of(flags, "")
        if mode and exact:
            one = np.ones((), np.float32 if kind == "f32" else np.float64)
            call = (lambda a: exactly("div", mode, one, a)) if exact == "div" else (lambda a: exactly(exact, mode, a))
        elif "approx" in flags and kind == "f64":
            call = _seed(plain) if "ftz" in flags else plain
            flags = flags - {"ftz"}
        elif "approx" in flags and kind == "f32":
            call = lambda a: plain(a.astype(np.float64)).astype(np.float32)
        else:
            raise instruction.unknown()
        return stepping(instruction, framed(flags, call), [kind], kind)

    return build


BUILDERS: dict[str, Builder] = {
    "fma": fused,
    "rcp": function_of_one(lambda a: 1 / a, "div"),
    "sqrt": function_of_one(np.sqrt, "sqrt"),
    "rsqrt": function_of_one(_reciprocal_root),
    "ex2": function_of_one(np.exp2),
    "lg2": function_of_one(np.log2),
    "sin": function_of_one(np.sin),
    "cos": function_of_one(np.cos),
    "tanh": function_of_one(np.tanh),
    "copysign": _sign_only(lambda sign, value: np.copysign(value, sign), 2),
}
"""Instructions of floats alone."""
ARITHMETIC: dict[str, Builder] = {
    "add": rounded("add", np.add, 2),
    "sub": _subtract,
    "mul": rounded("mul", np.multiply, 2),
    "div": divide,
    "neg": _sign_only(np.negative, 1),
    "abs": _sign_only(np.abs, 1),
    "min": _extremum,
    "max": _extremum,
}
"""Those that integers have too."""
