"""Values in float32 of which all that is kept is rounded to 16 bits: fast instructions compute them.

    v4 = exp v3;  v5 = reduce sum v4;  v6 = div v4 v5;  v7: bf16 = cast v6

The chip's own exponential is off by 2^-23 times its argument, and its division by two units in the last place of
float32: of the 8 or 11 bits that are left, these are none. But between a value and its rounding there may be only what
keeps relative errors small, so no difference of numbers that are nearly equal, and no jump.

    v8 = mul x 0.7071;  v9 = erf v8;  v11 = add v9 1.0;  v12 = mul half v11;  v13: bf16 = cast v12

Of 1 + erf(y), as in gelu, eager has an absolute error: of small results erf's rounding is what is left. So a formula
with an absolute error of that size will do, also where sums and differences follow, as in gelu's gradient. 1 + erf(y)
is 2 / (1 + 2^p) where p = log2((1 - erf(y)) / (1 + erf(y))), the logarithm of odds: y times a smooth function of
y * y, which needs neither cases nor signs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from graphc.codegen.triton.ops import Context, Operand
from graphc.ir.types import bf16, f16, f32
from graphc.loopir.kernel import Compute, Const, Define, Kernel, Reduce, Statement, operands

_KEEPING = frozenset(("mul", "div", "neg", "abs", "reciprocal", "sqrt", "rsqrt"))
"""Operators whose result is off by no more than their operands are, together, or half of it."""
_Use = Callable[[Compute | Reduce, str, Mapping[str, Define]], bool]


@dataclass(frozen=True)
class ErrorFunction:
    """A value that is 1 + erf(operand * scale)."""

    operand: str
    scale: float


@dataclass(frozen=True)
class Fast:
    """What of a kernel fast instructions compute.

    Args:
        narrow: values between which and their rounding relative errors stay small.
        error_functions: values 1 + erf(y) between which and their rounding errors do what eager's do.
        unread: what nothing reads then.
    """

    narrow: frozenset[str]
    error_functions: Mapping[str, ErrorFunction]
    unread: frozenset[str]

    def operands(self, s: Compute) -> tuple[str, ...]:
        """Values that a statement is computed from."""
        function = self.error_functions.get(s.id)
        return s.args if function is None else (function.operand,)

    def render(self, context: Context, s: Compute, args: list[Operand]) -> str | None:
        """The expression of a value by these operands; None where there is nothing faster than its operator."""
        function = self.error_functions.get(s.id)
        if function is not None:
            power = context.helper("_erf_odds", args[0].typed, repr(function.scale))
            return context.reciprocal(f"tl.fma({context.exp2()}({power}), 0.5, 0.5)")
        return _render_narrow(s.op, args) if s.id in self.narrow else None


def fast_values(kernel: Kernel) -> Fast:
    """Find them."""
    by_id = {s.id: s for s in kernel.defines}
    rounded = _rounded(kernel, _keeps_absolute)
    found = {s.id: _error_function(s, by_id) for s in kernel.defines if s.id in rounded}
    functions = {name: function for name, function in found.items() if function is not None}
    return Fast(_rounded(kernel, _keeps_relative), functions, _unread(kernel, functions) if functions else frozenset())


def _unread(kernel: Kernel, functions: Mapping[str, ErrorFunction]) -> frozenset[str]:
    left = set[str]()
    for s in reversed(kernel.body):
        if not isinstance(s, Compute):
            left.update(operands(s))
        elif s.id in functions:
            left.add(functions[s.id].operand)
        elif s.id in left:
            left.update(s.args)
    return frozenset(s.id for s in kernel.defines if isinstance(s, Compute) and s.id not in left)


def _rounded(kernel: Kernel, keeps: _Use) -> frozenset[str]:
    """Float32 values that are rounded to 16 bits, or that others have to do with that are."""
    by_id = {s.id: s for s in kernel.defines}
    uses: dict[str, list[Statement]] = {name: [] for name in by_id}
    for s in kernel.body:
        for name in operands(s):
            uses[name].append(s)
    found = set[str]()
    for s in reversed(list(kernel.defines)):
        if s.dtype == f32 and uses[s.id] and all(_ends(use, s.id, by_id, found, keeps) for use in uses[s.id]):
            found.add(s.id)
    return frozenset(found)


def _ends(use: Statement, name: str, by_id: Mapping[str, Define], found: set[str], keeps: _Use) -> bool:
    """Whether what reads a value rounds it to 16 bits, or hands its error on to what does."""
    if not isinstance(use, (Compute, Reduce)):
        return False
    if isinstance(use, Compute) and use.op == "cast":
        return use.dtype in (bf16, f16)
    return use.id in found and keeps(use, name, by_id)


def _keeps_relative(use: Compute | Reduce, name: str, by_id: Mapping[str, Define]) -> bool:
    if isinstance(use, Reduce):
        return use.op == "sum" and _is_positive(use.arg, by_id)
    if use.op == "add":
        return all(_is_positive(arg, by_id) for arg in use.args)
    return use.op in _KEEPING or (use.op == "where" and name != use.args[0])


def _keeps_absolute(use: Compute | Reduce, name: str, by_id: Mapping[str, Define]) -> bool:
    if isinstance(use, Reduce):
        return use.op == "sum"
    return use.op in ("add", "sub", "mul", "neg") or (use.op == "where" and name != use.args[0])


def _error_function(s: Define, by_id: Mapping[str, Define]) -> ErrorFunction | None:
    if not isinstance(s, Compute) or s.op != "add":
        return None
    for one, other in (s.args, s.args[::-1]):
        constant, erf = by_id[one], by_id[other]
        if isinstance(constant, Const) and constant.value == 1 and isinstance(erf, Compute) and erf.op == "erf":
            return _scaled(erf.args[0], by_id)
    return None


def _scaled(name: str, by_id: Mapping[str, Define]) -> ErrorFunction:
    s = by_id[name]
    if isinstance(s, Compute) and s.op == "mul":
        for factor, other in (s.args, s.args[::-1]):
            constant = by_id[factor]
            if isinstance(constant, Const) and 0.01 < abs(constant.value) < 100:
                return ErrorFunction(other, float(constant.value))
    return ErrorFunction(name, 1.0)


def _is_positive(name: str, by_id: Mapping[str, Define]) -> bool:
    s = by_id[name]
    if isinstance(s, Const):
        return s.value > 0
    return isinstance(s, Compute) and s.op in ("exp", "exp2", "sigmoid")


def _render_narrow(op: str, args: list[Operand]) -> str | None:
    if op == "exp":
        return f"tl.exp({args[0].typed})"
    if op == "div":
        return f"{args[0].typed} / {args[1].typed}"
    return f"1.0 / {args[0].typed}" if op == "reciprocal" else None
