"""C text of scalar operators, constants and index expressions."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence

from graphc.codegen.c.prelude import C_TYPES, VECTOR_BINARY, VECTOR_UNARY, libm_name
from graphc.errors import CodegenError
from graphc.ir.dims import Atom, Dim, FloorDiv, Ranges, Sym, bounds
from graphc.ir.sizes import Size
from graphc.ir.types import DType

Use = Callable[[str], str]
"""Notes that a helper of the prelude is needed and gives back its name."""

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "logical_and": "&", "logical_or": "|", "logical_xor": "^",
    "bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^",
}  # fmt: skip
_BUILTIN = {"floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "rint", "sqrt": "sqrt", "abs": "fabs"}
_TESTS = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))
_FLOAT_HELPERS = {"maximum": "max", "minimum": "min", "fmax": "fmax", "fmin": "fmin", "floordiv": "floordiv",
                  "remainder": "remainder", "lgamma": "lgamma", "erfinv": "erfinv", "digamma": "digamma"}  # fmt: skip
_INT_HELPERS = frozenset(("floordiv", "truncdiv", "remainder", "fmod", "pow", "shl", "shr"))


def c_type(dtype: DType) -> str:
    """C type of a value.

    Raises:
        CodegenError: a dtype kernels cannot hold.
    """
    found = C_TYPES.get(dtype.name)
    if found is None:
        raise CodegenError(f"C kernels cannot hold {dtype.name}")
    return found


def expression(op: str, args: Sequence[str], source: DType, target: DType, use: Use) -> str:
    """C text of one scalar op.

    Args:
        op: name in `graphc.loopir.scalar.SCALAR_OPS`.
        args: operand texts, each a name or in parentheses.
        source: dtype of the last operand.
        target: dtype of the result.
        use: called with each helper needed.

    Raises:
        CodegenError: the op does not exist for that dtype.
    """
    if op == "cast":
        return cast(args[0], source, target, use)
    if op == "bitcast":
        return _bitcast(args[0], source, target, use)
    if op == "where":
        return f"{args[0]} ? {args[1]} : {args[2]}"
    if op == "bounded":
        position, first, last, end, value = args
        hides = number(-math.inf if source.is_float else True, source)
        inside = f"{position} < {end} ? 0 : {position} < {last} ? {value} : {hides}"
        return f"{position} < {first} ? {hides} : {inside}"
    if op == "philox":
        return f"{use('gc_philox_word')}({', '.join(args)})"
    if op in _INFIX:
        text = f"{args[0]} {_INFIX[op]} {args[1]}"
        return text if op in _TESTS else _narrow(text, source)
    if op == "logical_not" or (op == "bitwise_not" and source.kind == "bool"):
        return f"!{args[0]}"
    return _float(op, args, source, use) if source.is_float else _integer(op, args, source, use)


def _narrow(text: str, dtype: DType) -> str:
    """Arithmetic of narrow integers happens in int; cut it back."""
    return f"({c_type(dtype)})({text})" if dtype.kind in ("int", "uint") and dtype.itemsize < 4 else text


def _float(op: str, args: Sequence[str], dtype: DType, use: Use) -> str:
    name, arguments = dtype.name, ", ".join(args)
    one = number(1.0, dtype)
    if op in _BUILTIN:
        return f"__builtin_{libm_name(_BUILTIN[op], name)}({arguments})"
    if op == "tanh" and name == "f32":
        return f"{use('gc_tanh_f32')}({arguments})"
    if op in VECTOR_UNARY or op in VECTOR_BINARY or op in ("fmod", "nextafter"):
        return f"{use(libm_name(op, name))}({arguments})"
    if op in _FLOAT_HELPERS:
        return f"{use(f'gc_{_FLOAT_HELPERS[op]}_{name}')}({arguments})"
    if op == "truncdiv":
        return f"__builtin_{libm_name('trunc', name)}({args[0]} / {args[1]})"
    if op == "copysign":
        return f"__builtin_{libm_name('copysign', name)}({arguments})"
    if op == "rsqrt":
        return f"{one} / __builtin_{libm_name('sqrt', name)}({arguments})"
    if op == "reciprocal":
        return f"{one} / {args[0]}"
    if op == "neg":
        return f"-{args[0]}"
    if op == "sign":
        zero = number(0.0, dtype)
        return f"({c_type(dtype)})(({args[0]} > {zero}) - ({args[0]} < {zero}))"
    if op == "isnan":
        return f"{args[0]} != {args[0]}"
    if op == "isinf":
        return f"__builtin_{libm_name('fabs', name)}({args[0]}) == {number(math.inf, dtype)}"
    if op == "signbit":
        return f"{use(f'gc_bits_{name}')}({args[0]}) >> {8 * dtype.itemsize - 1} != 0"
    raise CodegenError(f"no C text for {op} on {name}")


def _integer(op: str, args: Sequence[str], dtype: DType, use: Use) -> str:
    if op in _INT_HELPERS:
        return f"{use(f'gc_{op}_{dtype.name}')}({', '.join(args)})"
    if op in ("maximum", "minimum"):
        if dtype.kind == "bool":
            return f"{args[0]} {'|' if op == 'maximum' else '&'} {args[1]}"
        return f"{args[0]} {'>' if op == 'maximum' else '<'} {args[1]} ? {args[0]} : {args[1]}"
    if op == "neg":
        return _narrow(f"-{args[0]}", dtype)
    if op == "bitwise_not":
        return _narrow(f"~{args[0]}", dtype)
    if op == "abs":
        return args[0] if dtype.kind == "uint" else _narrow(f"{args[0]} < 0 ? -{args[0]} : {args[0]}", dtype)
    if op == "sign":
        return _narrow(f"({args[0]} > 0) - ({args[0]} < 0)", dtype)
    raise CodegenError(f"no C text for {op} on {dtype.name}")


def cast(text: str, source: DType, target: DType, use: Use) -> str:
    """Conversion as eager does it on x86; reduced floats go through f32."""
    if source == target:
        return text
    if source.is_reduced:
        wide = f"{use(f'gc_{source.name}_to_f32')}({text})"
        return wide if target.name == "f32" else cast(wide, source.compute, target, use)
    if target.is_reduced:
        narrow = text if source.name == "f32" else f"(float){text}"
        return f"{use(f'gc_f32_to_{target.name}')}({narrow})"
    if target.kind == "bool":
        return f"{text} != 0"
    if source.is_float and target.is_integral:
        middle = "i32" if target.itemsize < 4 or target.name == "i32" else "u64" if target.name == "u64" else "i64"
        converted = f"{use(f'gc_{source.name}_to_{middle}')}({text})"
        return converted if middle == target.name else f"({c_type(target)}){converted}"
    return f"({c_type(target)}){text}"


def _bitcast(text: str, source: DType, target: DType, use: Use) -> str:
    if source == target or (source.itemsize == 2 and target.itemsize == 2 and c_type(source) == c_type(target)):
        return text
    if source.name in ("f32", "f64"):
        bits = f"{use(f'gc_bits_{source.name}')}({text})"
        return bits if target.kind == "uint" else f"({c_type(target)}){bits}"
    if target.name in ("f32", "f64"):
        return f"{use(f'gc_from_bits_{target.name}')}({text})"
    if target.kind == "bool":
        return f"{text} != 0"
    return f"({c_type(target)}){text}"


def number(value: bool | int | float, dtype: DType) -> str:
    """A constant in C, in parentheses when it starts with a minus."""
    if dtype.kind == "bool":
        return "1" if value else "0"
    if dtype.is_float:
        return _float_number(float(value), dtype)
    if type(value) is Size and dtype.name == "i64":
        return str(value)
    bits = 8 * dtype.itemsize
    wrapped = int(value) & ((1 << bits) - 1)
    if dtype.kind == "int" and wrapped >> (bits - 1):
        wrapped -= 1 << bits
    if dtype.name == "i64":
        return "INT64_MIN" if wrapped == -(1 << 63) else _signed_text(f"{wrapped}", wrapped)
    suffix = {"u64": "u", "u32": "u"}.get(dtype.name, "")
    return _signed_text(f"{wrapped}{suffix}", wrapped)


def _signed_text(text: str, value: float) -> str:
    return f"({text})" if value < 0 or text.startswith("-") else text


def _float_number(value: float, dtype: DType) -> str:
    if dtype.is_reduced:
        return f"{_reduced_bits(value, dtype):#06x}"
    suffix = "f" if dtype.name == "f32" else ""
    if math.isnan(value):
        return f'__builtin_nan{suffix}("")'
    if dtype.name == "f32":
        value = _round_f32(value)
    if math.isinf(value):
        return _signed_text(("-" if value < 0 else "") + f"__builtin_inf{suffix}()", value)
    text = f"{value:.9g}" if dtype.name == "f32" else repr(value)
    if not any(mark in text for mark in ".en"):
        text += ".0"
    return _signed_text(text + suffix, value)


def _round_f32(value: float) -> float:
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def _reduced_bits(value: float, dtype: DType) -> int:
    if dtype.name == "f16":
        if math.isnan(value):
            return 0x7E00
        try:
            return int(struct.unpack("H", struct.pack("e", value))[0])
        except OverflowError:
            return 0xFC00 if value < 0 else 0x7C00
    if dtype.name != "bf16":
        raise CodegenError(f"C kernels cannot hold {dtype.name}")
    bits = int(struct.unpack("I", struct.pack("f", _round_f32(value)))[0])
    return 0x7FC0 if math.isnan(value) else (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


def index_text(expr: Dim, ranges: Ranges, use: Use, names: Mapping[str, str]) -> str:
    """C text of an index expression in int64_t arithmetic.

    Args:
        expr: over axes, values and sizes.
        names: C text of symbols that are not C variables of the same name.
        ranges: bounds of symbols; divisions of numbers known to be small and not negative become 32-bit unsigned ones,
            which gcc vectorises.
        use: called with each helper needed.
    """
    if isinstance(expr, int):
        return str(expr)
    parts: list[str] = []
    for monomial, coefficient in expr.terms:
        factors = [_atom(atom, ranges, use, names) for atom in monomial]
        if abs(coefficient) != 1 or not factors:
            factors.append(str(abs(coefficient)))
        text = "*".join(factors)
        parts.append(f"{' - ' if parts else '-'}{text}" if coefficient < 0 else f"{' + ' if parts else ''}{text}")
    return "".join(parts)


def _atom(atom: Atom, ranges: Ranges, use: Use, names: Mapping[str, str]) -> str:
    if isinstance(atom, Sym):
        return names.get(atom.name, atom.name)
    is_div = isinstance(atom, FloorDiv)
    numerator, denominator = atom.numerator, atom.denominator
    top, bottom = index_text(numerator, ranges, use, names), index_text(denominator, ranges, use, names)
    low, high = bounds(numerator, ranges)
    positive = low is not None and low >= 0 and isinstance(denominator, int) and denominator > 0
    operator = "/" if is_div else "%"
    if positive and high is not None and high < 1 << 31:
        bottom = f"(uint32_t){bottom}" if type(denominator) is Size else f"{bottom}u"
        return f"(int64_t)((uint32_t)({top}) {operator} {bottom})"
    if positive:
        return f"(({top}) {operator} {bottom})"
    return f"{use('gc_div_index' if is_div else 'gc_mod_index')}({top}, {bottom})"
