"""The scalar operators of loop IR: names, arity, result dtype and numpy meaning, in one table.

Semantics are torch's: integer arithmetic wraps; comparisons give bool; `maximum`/`minimum` give NaN when either side is
NaN while `fmax`/`fmin` prefer the number; `floordiv` and `remainder` round to minus infinity (sign of the divisor),
`truncdiv` and `fmod` to zero; `round` is half-to-even; integer division by zero gives a number that nobody sees, for
kernels check divisors where eager raises; shifts by a negative or too large amount give what shifting bit by bit would
(0, or the sign), as in eager. Operands have the result's dtype unless noted. Reduced floats never appear here: lowering
computes them in f32.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScalarOp:
    """A scalar operator.

    Args:
        name: as in kernels.
        arity: operand count.
        result: `same` as the operands, `bool`, or `given` (the statement's dtype: cast, bitcast, philox).
        kinds: operand dtype kinds it takes, of `float`, `int`, `uint`, `bool`.
        cost: rough cost in multiples of an addition, for the recompute-or-keep decision.
    """

    name: str
    arity: int
    result: str = "same"
    kinds: tuple[str, ...] = ("float", "int", "uint", "bool")
    cost: int = 1


_FLOAT = ("float",)
_NUMBER = ("float", "int", "uint")
_BITS = ("int", "uint", "bool")

SCALAR_OPS: dict[str, ScalarOp] = {
    op.name: op
    for op in (
        # arithmetic
        *(ScalarOp(n, 2, kinds=_NUMBER) for n in ("add", "sub", "mul")),
        ScalarOp("div", 2, kinds=_FLOAT, cost=4),
        *(ScalarOp(n, 2, kinds=_NUMBER, cost=8) for n in ("floordiv", "truncdiv", "remainder", "fmod")),
        *(ScalarOp(n, 2) for n in ("maximum", "minimum")),
        *(ScalarOp(n, 2, kinds=_FLOAT, cost=2) for n in ("fmax", "fmin", "copysign")),
        *(ScalarOp(n, 2, kinds=_FLOAT, cost=20) for n in ("atan2", "hypot", "nextafter")),
        ScalarOp("pow", 2, kinds=_NUMBER, cost=20),
        *(ScalarOp(n, 1, kinds=_NUMBER) for n in ("neg", "abs", "sign")),
        # float functions
        *(ScalarOp(n, 1, kinds=_FLOAT) for n in ("floor", "ceil", "trunc", "round")),
        *(ScalarOp(n, 1, kinds=_FLOAT, cost=6) for n in ("sqrt", "rsqrt", "reciprocal")),
        *(
            ScalarOp(n, 1, kinds=_FLOAT, cost=16)
            for n in (
                "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan",
                "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "erfinv", "lgamma", "digamma",
            )
        ),
        # tests
        *(ScalarOp(n, 2, "bool") for n in ("eq", "ne", "lt", "le", "gt", "ge")),
        *(ScalarOp(n, 1, "bool", kinds=_FLOAT) for n in ("isnan", "isinf", "signbit")),
        # logic on bool, bits on integers and bool
        *(ScalarOp(n, 2, "bool", kinds=("bool",)) for n in ("logical_and", "logical_or", "logical_xor")),
        ScalarOp("logical_not", 1, "bool", kinds=("bool",)),
        *(ScalarOp(n, 2, kinds=_BITS) for n in ("bitwise_and", "bitwise_or", "bitwise_xor")),
        ScalarOp("bitwise_not", 1, kinds=_BITS),
        *(ScalarOp(n, 2, kinds=("int", "uint")) for n in ("shl", "shr")),
        # choice and conversion: where(bool, a, b); cast to integers rounds to zero, to bool is != 0
        ScalarOp("where", 3),
        # a mask of which edges are known: bounded(position, first, last, end, x) is x, which is 0 at positions in
        # [first, end), and hides at those outside of [first, last): True of a bool, -inf of a float; integers but x
        ScalarOp("bounded", 5, kinds=("float", "bool"), cost=8),
        ScalarOp("cast", 1, "given"),
        ScalarOp("bitcast", 1, "given"),
        # random bits: philox(key, number) is a u32, word `number` of the stream that a key stands for
        ScalarOp("philox", 2, "given", kinds=("int",), cost=12),
    )
}  # fmt: skip

REDUCE_OPS = ("sum", "prod", "max", "min", "any", "all", "argmax", "argmin")
SCAN_OPS = ("sum", "prod", "max", "min")
