"""Scalar operators of loop IR as Triton expressions, family by family as in `graphc.loopir.scalar`.

Numerics: f32 division and square root are the correctly rounded ones (`tl.div_rn`, `tl.sqrt_rn`; Triton's plain `/` and
`tl.sqrt` are approximate on f32), transcendental functions are libdevice's (1 to 2 ulp; `tl.exp` is the fast one), and
`maximum` / `minimum` give NaN when either side is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from graphc.errors import CodegenError
from graphc.ir.sizes import Size
from graphc.ir.types import DType, bf16, bool_, f16, f32, f64, i32, i64

TL_NAMES: dict[str, str] = {
    "f64": "tl.float64", "f32": "tl.float32", "f16": "tl.float16", "bf16": "tl.bfloat16",
    "i64": "tl.int64", "i32": "tl.int32", "i16": "tl.int16", "i8": "tl.int8",
    "u64": "tl.uint64", "u32": "tl.uint32", "u16": "tl.uint16", "u8": "tl.uint8", "bool": "tl.int1",
    "f8e4m3fn": "tl.float8e4nv", "f8e5m2": "tl.float8e5",
}  # fmt: skip
POINTERS: dict[str, str] = {
    "f64": "*fp64", "f32": "*fp32", "f16": "*fp16", "bf16": "*bf16",
    "i64": "*i64", "i32": "*i32", "i16": "*i16", "i8": "*i8",
    "u64": "*u64", "u32": "*u32", "u16": "*u16", "u8": "*u8", "bool": "*i1",
    "f8e4m3fn": "*fp8e4nv", "f8e5m2": "*fp8e5",
}  # fmt: skip


def tl_dtype(dtype: DType) -> str:
    """`tl.float32` for f32.

    Raises:
        CodegenError: Triton kernels here do not take the dtype (complex).
    """
    name = TL_NAMES.get(dtype.name)
    if name is None:
        raise CodegenError(f"the Triton backend has no element type {dtype.name}; run the operation through ATen")
    return name


def literal(value: bool | int | float, dtype: DType) -> str:
    """Text that Triton reads as `value`, inside any expression; bits for -0.0, which as a literal it takes for 0.0."""
    if dtype.kind == "bool":
        return str(bool(value))
    if type(value) is Size and not dtype.is_float:
        return str(value)
    if not dtype.is_float:
        return str(int(value)) if value >= 0 else f"({int(value)})"
    number = float(value)
    if math.isnan(number):
        return 'float("nan")'
    if math.isinf(number):
        return 'float("inf")' if number > 0 else 'float("-inf")'
    text = repr(number)
    if number == 0 and math.copysign(1.0, number) < 0:
        bits = 8 * dtype.itemsize
        return f"tl.full([], {-(1 << bits - 1)}, tl.int{bits}).to({tl_dtype(dtype)}, bitcast=True)"
    return text if number >= 0 else f"({text})"


def _is_default(text: str, dtype: DType) -> bool:
    """True when Triton gives the literal this dtype by itself."""
    if dtype == f32:
        # Triton takes numbers outside the normal range of float32 for float64
        return text.startswith("float") or float(text.strip("()")) == 0 or 1e-37 < abs(float(text.strip("()"))) < 3e38
    return dtype in (i32, bool_)


@dataclass(frozen=True)
class Operand:
    """An operand of a scalar op.

    Args:
        text: name of a variable, or a literal.
        dtype: its element type.
        is_literal: `text` is a Python number, whose type Triton would guess.
    """

    text: str
    dtype: DType
    is_literal: bool = False

    @property
    def typed(self) -> str:
        """Text whose Triton type is `dtype` for certain."""
        return f"tl.full([], {self.text}, {tl_dtype(self.dtype)})" if self.is_literal else self.text

    @property
    def argument(self) -> str:
        """Text that means a number of `dtype` as an argument of a function that makes tensors of numbers."""
        return self.text if self.is_literal and _is_default(self.text, self.dtype) else self.typed

    @property
    def filling(self) -> str:
        """Text that means a number of `dtype` where Triton converts what it gets; it takes a literal for a float32."""
        return self.argument if self.dtype == f64 else self.text


@dataclass
class Context:
    """What rendering has asked for so far: helper functions and whether libdevice is imported.

    Args:
        takes_ptx: as in `graphc.codegen.triton.tiles.Machine`.
    """

    helpers: set[str] = field(default_factory=set)
    libdevice: bool = False
    takes_ptx: bool = False

    def helper(self, name: str, *args: str) -> str:
        from graphc.codegen.triton.helpers import needed, text_of

        self.helpers.add(name)
        self.libdevice = self.libdevice or any("libdevice" in text_of({part}) for part in needed({name}))
        return f"{name}({', '.join(args)})"

    def exp2(self) -> str:
        """The function for powers of two of float32 where those below 2^-126 may be 0."""
        if not self.takes_ptx:
            return "tl.exp2"
        self.helpers.add("_flushed_exp2")
        return "_flushed_exp2"

    def reciprocal(self, text: str) -> str:
        """The chip's own reciprocal of float32, where those below 2^-126 may be 0."""
        return self.helper("_flushed_reciprocal", text) if self.takes_ptx else f"1.0 / {text}"

    def device(self, name: str, *args: str) -> str:
        self.libdevice = True
        return f"libdevice.{name}({', '.join(args)})"


def constant(value: bool | int | float, dtype: DType) -> Operand:
    """A number as an operand."""
    text = literal(value, dtype)
    return Operand(text, dtype, is_literal=not text.startswith("tl."))


Rule = Callable[[Context, DType, list[Operand]], str]


def _infix(symbol: str) -> Rule:
    def rule(_: Context, __: DType, args: list[Operand]) -> str:
        left, right = args
        # one variable is enough for Triton to give a literal the variable's type
        return f"{left.typed if right.is_literal else left.text} {symbol} {right.text}"

    return rule


def _device(name: str) -> Rule:
    return lambda context, _, args: context.device(name, *(arg.argument for arg in args))


def _tl(name: str) -> Rule:
    return lambda _, __, args: f"tl.{name}({', '.join(arg.typed for arg in args)})"


def _by_kind(floats: Rule, integers: Rule) -> Rule:
    return lambda context, dtype, args: (floats if args[-1].dtype.is_float else integers)(context, dtype, args)


def _helper(name: str) -> Rule:
    return lambda context, _, args: context.helper(name, *(arg.typed for arg in args))


# ------------------------------------------------------------------------------------------------------ arithmetic


def _div(_: Context, dtype: DType, args: list[Operand]) -> str:
    left, right = args
    if dtype == f64:
        return f"{left.typed if right.is_literal else left.text} / {right.text}"
    return f"tl.div_rn({left.argument}, {right.argument})"


def _float_truncdiv(context: Context, dtype: DType, args: list[Operand]) -> str:
    return context.device("trunc", _div(context, dtype, args))


def _int_pow(context: Context, dtype: DType, args: list[Operand]) -> str:
    helper, bits = ("_uint_pow", dtype.itemsize * 8) if dtype.kind == "uint" else ("_int_pow", dtype.itemsize * 8 - 1)
    return context.helper(helper, args[0].typed, args[1].typed, str(bits))


def _extremum(name: str, on_bool: str, propagate: str) -> Rule:
    def rule(_: Context, dtype: DType, args: list[Operand]) -> str:
        left, right = args[0].argument, args[1].argument
        if dtype.kind == "bool":
            return f"{args[0].typed} {on_bool} {args[1].typed}"
        if not dtype.is_float:
            return f"tl.{name}({left}, {right})"
        return f"tl.{name}({left}, {right}, propagate_nan=tl.PropagateNan.{propagate})"

    return rule


def _neg(_: Context, dtype: DType, args: list[Operand]) -> str:
    # Triton's unary minus is 0 - x, which loses the sign of zero
    return f"{args[0].typed} * -1.0" if dtype.is_float else f"-{args[0].typed}"


def _sign(_: Context, dtype: DType, args: list[Operand]) -> str:
    x, name = args[0].typed, tl_dtype(dtype)
    above = f"({x} > 0).to({name})"
    return above if dtype.kind == "uint" else f"{above} - ({x} < 0).to({name})"


_ARITHMETIC: dict[str, Rule] = {
    "add": _infix("+"),
    "sub": _infix("-"),
    "mul": _infix("*"),
    "div": _div,
    "floordiv": _by_kind(_helper("_float_floordiv"), _helper("_int_floordiv")),
    "truncdiv": _by_kind(_float_truncdiv, _helper("_int_truncdiv")),
    "remainder": _by_kind(_helper("_float_remainder"), _helper("_int_remainder")),
    "fmod": _by_kind(_device("fmod"), _helper("_int_fmod")),
    "maximum": _extremum("maximum", "|", "ALL"),
    "minimum": _extremum("minimum", "&", "ALL"),
    "fmax": _extremum("maximum", "|", "NONE"),
    "fmin": _extremum("minimum", "&", "NONE"),
    "copysign": _device("copysign"),
    "atan2": _device("atan2"),
    "hypot": _device("hypot"),
    "nextafter": _device("nextafter"),
    "pow": _by_kind(_device("pow"), _int_pow),
    "neg": _neg,
    "abs": lambda _, __, args: f"tl.abs({args[0].typed})",
    "sign": _sign,
}

# -------------------------------------------------------------------------------------------------- float functions


def _sqrt(context: Context, dtype: DType, args: list[Operand]) -> str:
    return context.device("sqrt", args[0].typed) if dtype == f64 else f"tl.sqrt_rn({args[0].typed})"


def _reciprocal(_: Context, dtype: DType, args: list[Operand]) -> str:
    return f"1.0 / {args[0].typed}" if dtype == f64 else f"tl.div_rn(1.0, {args[0].typed})"


_FLOAT_FUNCTIONS: dict[str, Rule] = {
    "floor": _tl("floor"),
    "ceil": _tl("ceil"),
    "trunc": _device("trunc"),
    "round": _device("rint"),
    "sqrt": _sqrt,
    "rsqrt": _device("rsqrt"),
    "reciprocal": _reciprocal,
    "digamma": _helper("_digamma"),
    **{
        name: _device(name)
        for name in (
            "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan",
            "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "erfinv", "lgamma",
        )
    },
}  # fmt: skip

# ----------------------------------------------------------------------------------------------- tests, logic, bits


def _comparison(symbol: str) -> Rule:
    def rule(_: Context, __: DType, args: list[Operand]) -> str:
        left, right = (arg.filling for arg in args)
        return f"{args[0].typed if args[1].is_literal else left} {symbol} {right}"

    return rule


def _isnan(_: Context, __: DType, args: list[Operand]) -> str:
    return f"{args[0].typed} != {args[0].text}"


def _signbit(_: Context, __: DType, args: list[Operand]) -> str:
    bits = "tl.int64" if args[0].dtype == f64 else "tl.int32"
    return f"{args[0].typed}.to({bits}, bitcast=True) < 0"


_TESTS: dict[str, Rule] = {
    "eq": _comparison("=="),
    "ne": _comparison("!="),
    "lt": _comparison("<"),
    "le": _comparison("<="),
    "gt": _comparison(">"),
    "ge": _comparison(">="),
    "isnan": _isnan,
    "isinf": lambda _, __, args: f'tl.abs({args[0].typed}) == float("inf")',
    "signbit": _signbit,
}


def _both_typed(symbol: str) -> Rule:
    return lambda _, __, args: f"{args[0].typed} {symbol} {args[1].typed}"


def _bitwise_not(_: Context, dtype: DType, args: list[Operand]) -> str:
    # the interpreter has no ~ on unsigned integers
    return f"{args[0].typed} ^ {2 ** (8 * dtype.itemsize) - 1}" if dtype.kind == "uint" else f"~{args[0].typed}"


def _shift(symbol: str, helper: str, of_unsigned: str) -> Rule:
    def rule(context: Context, dtype: DType, args: list[Operand]) -> str:
        value, amount = args[0].typed, args[1]
        bits = 8 * dtype.itemsize
        if amount.is_literal and 0 <= int(amount.text.strip("()")) < bits:
            return f"{value} {symbol} {amount.typed}"
        return context.helper(of_unsigned if dtype.kind == "uint" else helper, value, amount.typed, str(bits))

    return rule


_LOGIC: dict[str, Rule] = {
    "logical_and": _both_typed("&"),
    "logical_or": _both_typed("|"),
    "logical_xor": _both_typed("^"),
    "logical_not": lambda _, __, args: f"~{args[0].typed}",
    "bitwise_and": _both_typed("&"),
    "bitwise_or": _both_typed("|"),
    "bitwise_xor": _both_typed("^"),
    "bitwise_not": _bitwise_not,
    "shl": _shift("<<", "_shl", "_shl"),
    "shr": _shift(">>", "_shr", "_ushr"),
}

# -------------------------------------------------------------------------------------------- choice and conversion


def _where(_: Context, __: DType, args: list[Operand]) -> str:
    return f"tl.where({args[0].typed}, {args[1].argument}, {args[2].argument})"


def _bounded(_: Context, dtype: DType, args: list[Operand]) -> str:
    position, first, last, end = (arg.typed for arg in args[:-1])
    zero, hides = (constant(value, dtype).argument for value in ((0.0, -math.inf) if dtype.is_float else (False, True)))
    inside = f"tl.where(({first} <= {position}) & ({position} < {last}), {args[-1].argument}, {hides})"
    return f"tl.where(({first} <= {position}) & ({position} < {end}), {zero}, {inside})"


def cast(text: str, source: DType, target: DType) -> str:
    """`text` of dtype `source` converted as torch converts: to zero for integers, `!= 0` for bool."""
    if source == target:
        return text
    if target == bool_:
        return f"({text} != 0)"
    name = tl_dtype(target)
    if target in (bf16, f16) and source != f32:
        return f"{text}.to(tl.float32).to({name})"  # torch's own path, double rounding included
    if source.is_reduced and target != f32:
        return cast(f"{text}.to(tl.float32)", f32, target)
    if source.is_float and target.is_integral and target != i64:
        # the machine's conversion to a wide integer, then wrapping, as eager does for narrow and unsigned targets
        wide = "tl.uint64" if target.name == "u64" else "tl.int32" if target.itemsize < 4 else ""
        wide = "tl.int64" if target.name == "u32" else wide
        return f"{text}.to({wide}).to({name})" if wide and wide != name else f"{text}.to({name})"
    return f"{text}.to({name})"


_CHOICE: dict[str, Rule] = {
    "where": _where,
    "bounded": _bounded,
    "cast": lambda _, dtype, args: cast(args[0].typed, args[0].dtype, dtype),
    "bitcast": lambda _, dtype, args: f"{args[0].typed}.to({tl_dtype(dtype)}, bitcast=True)",
    "philox": _helper("_philox_word"),
}

RULES: dict[str, Rule] = {**_ARITHMETIC, **_FLOAT_FUNCTIONS, **_TESTS, **_LOGIC, **_CHOICE}


def render(context: Context, op: str, dtype: DType, args: list[Operand]) -> str:
    """The expression for scalar op `op` with result type `dtype`.

    Raises:
        CodegenError: no rule for the op, or an element type that Triton lacks.
    """
    rule = RULES.get(op)
    if rule is None:
        raise CodegenError(f"the Triton backend has no rule for the scalar operator {op}")
    if dtype.is_reduced and op not in ("cast", "bitcast", "where"):
        raise CodegenError(f"{op} on {dtype.name}: loop IR computes reduced floats in f32")
    return rule(context, dtype, args)
