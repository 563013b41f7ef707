"""Algebraic simplification: cheaper ops with exactly the same result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from graphc.ir.graph import Graph, Literal, Op, Operand, Value
from graphc.ir.types import HOST, DType
from graphc.passes.base import PassContext, PassResult, Rewriter, Rules, constant_of, defined_by, literal_as

RULES = Rules()


@dataclass(frozen=True)
class Simplify:
    """Rewrites arithmetic that a cheaper op does.

    Before:
        %0: f32[4] = mul(%x, 1.0)
        %1: f32[4] = pow(%0, 2.0)
        %2: f32[4] = div(%1, 8.0)
    After:
        %1: f32[4] = mul(%x, %x)
        %2: f32[4] = mul(%1, 0.125)

    Every rule gives the same bits for every input, NaN payloads aside: `x + 0.0` stays, for it turns -0.0 into 0.0;
    `x * 0` is 0 only for integers; a division becomes a multiplication only when the reciprocal is exact. `pow` with a
    small literal becomes what eager computes for it.
    """

    name: ClassVar[str] = "simplify"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        return RULES.run(graph, ctx)


def _number(op: Op, position: int) -> Literal | None:
    """The number at `position` as the op computes with it, or None."""
    number = constant_of(op.operands[position])
    return None if number is None or isinstance(number, complex) else literal_as(number, _data_dtype(op))


def _data_dtype(op: Op) -> DType:
    """The dtype that the operands of a pointwise op of two operands have in common."""
    values = [item.type for item in op.operands if isinstance(item, Value)]
    for type in values:
        if type.device != HOST:
            return type.dtype
    return values[0].dtype


def _is(number: Literal | None, wanted: float) -> bool:
    """Whether `number` is `wanted`, signs of zeros told apart."""
    if number is None or number != wanted:
        return False
    return wanted != 0 or isinstance(number, int) or math.copysign(1, number) == math.copysign(1, wanted)  # type: ignore[arg-type]


def _value(operand: Operand) -> Value | None:
    return operand if isinstance(operand, Value) else None


def _operand(op: Op | None) -> Value | None:
    return None if op is None else _value(op.operands[0])


# neutral elements


@RULES.add("mul", "div")
def drop_multiplication_by_one(rewriter: Rewriter, op: Op) -> Value | None:
    """`x * 1` and `x / 1` are x."""
    return _value(op.operands[0]) if _is(_number(op, 1), 1) else None


@RULES.add("add")
def drop_addition_of_zero(rewriter: Rewriter, op: Op) -> Value | None:
    """`x + 0` is x for integers, `x + -0.0` for floats."""
    number = _number(op, 1)
    if number is None:
        return None
    return _value(op.operands[0]) if _is(number, -0.0 if _data_dtype(op).is_float else 0) else None


@RULES.add("sub")
def drop_subtraction_of_zero(rewriter: Rewriter, op: Op) -> Value | None:
    """`x - 0` is x; for floats `x - -0.0` is not."""
    return _value(op.operands[0]) if _is(_number(op, 1), 0.0) else None


@RULES.add("mul", "bitwise_and")
def integer_times_zero(rewriter: Rewriter, op: Op) -> Value | None:
    """`x * 0` and `x & 0` are 0, for integers."""
    if op.result.type.is_host or not op.result.dtype.is_integral or not _is(_number(op, 1), 0):
        return None
    return rewriter.full(op.result.type, 0)


@RULES.add("logical_and", "logical_or", "bitwise_or")
def drop_neutral_bit(rewriter: Rewriter, op: Op) -> Value | None:
    """`x & True` and `x | False` are x; `x & False` and `x | True` are constants."""
    number = _number(op, 1)
    if number is None or op.result.type.is_host:
        return None
    neutral = op.name == "logical_and"
    if op.name == "bitwise_or" and number != 0:
        return None
    return _value(op.operands[0]) if bool(number) is neutral else rewriter.full(op.result.type, number)


@RULES.add("maximum", "minimum", "fmax", "fmin", "logical_and", "logical_or", "bitwise_and", "bitwise_or")
def drop_idempotent_pair(rewriter: Rewriter, op: Op) -> Value | None:
    """`maximum(x, x)` is x, and so on."""
    return _value(op.operands[0]) if op.operands[0] is op.operands[1] else None


# signs


@RULES.add("neg", "logical_not", "bitwise_not")
def drop_double_negation(rewriter: Rewriter, op: Op) -> Value | None:
    """`neg(neg(x))` is x."""
    return _operand(defined_by(op.operands[0], op.name))


@RULES.add("mul", "div")
def multiplication_by_minus_one_is_neg(rewriter: Rewriter, op: Op) -> Value | None:
    """`x * -1` and `x / -1` are -x."""
    value = _value(op.operands[0])
    return rewriter.op("neg", value) if value is not None and _is(_number(op, 1), -1) else None


@RULES.add("sub")
def subtraction_from_zero_is_neg(rewriter: Rewriter, op: Op) -> Value | None:
    """`0 - x` is -x for integers, `-0.0 - x` for floats."""
    value = _value(op.operands[1])
    zero = -0.0 if _data_dtype(op).is_float else 0
    return rewriter.op("neg", value) if value is not None and _is(_number(op, 0), zero) else None


@RULES.add("add", "sub")
def fold_neg_into_sum(rewriter: Rewriter, op: Op) -> Value | None:
    """`a + -b` is `a - b` and `a - -b` is `a + b`."""
    left, right = op.operands
    negated = _operand(defined_by(right, "neg"))
    if negated is not None:
        return rewriter.op("sub" if op.name == "add" else "add", left, negated)
    negated = _operand(defined_by(left, "neg"))
    return rewriter.op("sub", right, negated) if negated is not None and op.name == "add" else None


@RULES.add("mul", "div")
def drop_two_negs_of_product(rewriter: Rewriter, op: Op) -> Value | None:
    """`-a * -b` is `a * b`."""
    left, right = (_operand(defined_by(item, "neg")) for item in op.operands)
    return None if left is None or right is None else rewriter.op(op.name, left, right)


@RULES.add("abs")
def drop_neg_before_abs(rewriter: Rewriter, op: Op) -> Value | None:
    """`abs(-x)` is `abs(x)`."""
    inner = _operand(defined_by(op.operands[0], "neg"))
    return None if inner is None else rewriter.op("abs", inner)


@RULES.add("abs", "floor", "ceil", "trunc", "round", "sign")
def drop_repeated_rounding(rewriter: Rewriter, op: Op) -> Value | None:
    """`floor(floor(x))` is `floor(x)`, and so on."""
    return _value(op.operands[0]) if defined_by(op.operands[0], op.name) else None


@RULES.add("logical_not")
def fold_not_into_equality(rewriter: Rewriter, op: Op) -> Value | None:
    """`not (a == b)` is `a != b`. Orders are left alone: neither a < b nor a >= b holds with a NaN."""
    for name, opposite in (("eq", "ne"), ("ne", "eq")):
        inner = defined_by(op.operands[0], name)
        if inner is not None:
            return rewriter.op(opposite, *inner.operands)
    return None


# strength


@RULES.add("pow")
def pow_by_small_literal(rewriter: Rewriter, op: Op) -> Value | None:
    """`pow` by 1, 2, 3, 0.5, -0.5 and -1 is what eager computes: x, x*x, x*x*x, sqrt, rsqrt, reciprocal."""
    base, exponent = _value(op.operands[0]), op.operands[1]
    if base is None or isinstance(exponent, (Value, complex)) or base.type.is_host:
        return None
    if exponent == 1:
        return base
    if exponent == 2:
        return rewriter.op("mul", base, base)
    if exponent == 3:
        return rewriter.op("mul", rewriter.op("mul", base, base), base)
    root = {0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}.get(float(exponent))
    return None if root is None or not base.dtype.is_float else rewriter.op(root, base)


@RULES.add("div")
def division_by_power_of_two(rewriter: Rewriter, op: Op) -> Value | None:
    """`x / 8` is `x * 0.125`, for powers of two whose reciprocal is a normal number of the compute dtype."""
    value, number, dtype = _value(op.operands[0]), _number(op, 1), _data_dtype(op).compute
    if value is None or not isinstance(number, float) or not math.isfinite(number) or number == 0:
        return None
    mantissa, exponent = math.frexp(number)
    limit = {"f32": 125, "f64": 1021}.get(dtype.name, 0)
    if abs(mantissa) != 0.5 or abs(exponent) > limit:
        return None
    return rewriter.op("mul", value, 1.0 / number)


@RULES.add("add", "mul")
def merge_integer_literals(rewriter: Rewriter, op: Op) -> Value | None:
    """`(x + 2) + 3` is `x + 5` for integers, which wrap; floats round in between and stay."""
    inner, dtype = defined_by(op.operands[0], op.name), op.result.dtype
    if inner is None or dtype.kind not in ("int", "uint") or op.result.type.is_host:
        return None
    base, first, second = _value(inner.operands[0]), inner.operands[1], op.operands[1]
    if base is None or base.type.is_host or not isinstance(first, int) or not isinstance(second, int):
        return None
    return rewriter.op(op.name, base, literal_as(first + second if op.name == "add" else first * second, dtype))


# choice


@RULES.add("where")
def where_of_known_condition(rewriter: Rewriter, op: Op) -> Value | None:
    """`where` of a constant condition is one of its sides."""
    condition, type = constant_of(op.operands[0]), op.result.type
    if condition is None or type.is_host:
        return None
    chosen = op.operands[1 if condition else 2]
    number = constant_of(chosen)
    if number is not None and not isinstance(number, complex):
        return rewriter.full(type, number)
    if not isinstance(chosen, Value) or chosen.dtype != type.dtype or chosen.device != type.device:
        return None
    return chosen if chosen.shape == type.shape else rewriter.op("expand", chosen, shape=type.shape)


@RULES.add("where")
def where_of_equal_sides(rewriter: Rewriter, op: Op) -> Value | None:
    """`where(c, x, x)` is x, when c does not widen its shape."""
    side = _value(op.operands[1])
    return side if side is op.operands[2] and side is not None and side.type == op.result.type else None


@RULES.add("where")
def where_of_negated_condition(rewriter: Rewriter, op: Op) -> Value | None:
    """`where(not c, a, b)` is `where(c, b, a)`."""
    condition = _operand(defined_by(op.operands[0], "logical_not"))
    return None if condition is None else rewriter.op("where", condition, op.operands[2], op.operands[1])


# reductions


@RULES.add("sum", "prod", "amax", "amin", "any", "all")
def reduction_of_unit_dims(rewriter: Rewriter, op: Op) -> Value | None:
    """A reduction over dims of size 1 is a reshape; a sum of floats adds 0.0 to it, as sums start from there."""
    source, result, dims = _value(op.operands[0]), op.result, op.attrs["dims"]
    if source is None or any(source.shape[dim] != 1 for dim in dims):
        return None
    value = source if source.shape == result.shape else rewriter.op("reshape", source, shape=result.shape)
    return rewriter.op("add", value, 0.0) if dims and op.name == "sum" and result.dtype.is_float else value


# gathering


@RULES.add("gather")
def gather_of_row_arithmetic(rewriter: Rewriter, op: Op) -> Value | None:
    """`gather(x - row)` is `gather(x) - row` for a row of one element: the picked elements alone are computed.

    So the loss of a log_softmax reads the logits themselves, and these need not be kept for it.
    """
    dim, indices = op.attrs["dim"], _value(op.operands[1])
    inner = op.operands[0].op if isinstance(op.operands[0], Value) else None
    if inner is None or inner.name not in ("add", "sub", "mul", "div") or indices is None:
        return None
    table, row = (_value(operand) for operand in inner.operands)
    if table is None or row is None or table.type != inner.result.type or row.dtype != table.dtype:
        return None
    if row.type.rank != table.type.rank or row.device != table.device or row.shape[dim] != 1:
        return None
    if any(i != dim and not row.shape[i] == table.shape[i] == indices.shape[i] for i in range(table.type.rank)):
        return None
    picked = rewriter.op("gather", table, indices, **op.attrs)
    return rewriter.op(inner.name, picked, row)
