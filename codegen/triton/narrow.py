"""Values in float32 of which all that is kept is rounded to 16 bits: fast instructions compute them.

    v4 = exp v3;  v5 = reduce sum v4;  v6 = div v4 v5;  v7: bf16 = cast v6

The chip's own exponential is off by 2^-23 times its argument, and its division by two units in the last place of
float32: of the 8 or 11 bits that are left, these are none. But between a value and its rounding there may be only what
keeps relative errors small, so no difference of numbers that are nearly equal, and no jump.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.codegen.triton.ops import Operand
from graphc.ir.types import bf16, f16, f32
from graphc.loopir.kernel import Compute, Const, Define, Kernel, Reduce, Statement, operands

_KEEPING = frozenset(("mul", "div", "neg", "abs", "reciprocal", "sqrt", "rsqrt"))
"""Operators whose result is off by no more than their operands are, together, or half of it."""


def narrow_values(kernel: Kernel) -> frozenset[str]:
    """Ids of these values."""
    by_id = {s.id: s for s in kernel.defines}
    uses: dict[str, list[Statement]] = {name: [] for name in by_id}
    for s in kernel.body:
        for name in operands(s):
            uses[name].append(s)
    found = set[str]()
    for s in reversed(list(kernel.defines)):
        if s.dtype == f32 and uses[s.id] and all(_keeps(use, s.id, by_id, found) for use in uses[s.id]):
            found.add(s.id)
    return frozenset(found)


def _keeps(use: Statement, name: str, by_id: Mapping[str, Define], found: set[str]) -> bool:
    """Whether what reads a value rounds it to 16 bits, or hands its relative error on to what does."""
    if not isinstance(use, (Compute, Reduce)):
        return False
    if isinstance(use, Compute) and use.op == "cast":
        return use.dtype in (bf16, f16)
    if use.id not in found:
        return False
    if isinstance(use, Reduce):
        return use.op == "sum" and _is_positive(use.arg, by_id)
    if use.op == "add":
        return all(_is_positive(arg, by_id) for arg in use.args)
    return use.op in _KEEPING or (use.op == "where" and name != use.args[0])


def _is_positive(name: str, by_id: Mapping[str, Define]) -> bool:
    s = by_id[name]
    if isinstance(s, Const):
        return s.value > 0
    return isinstance(s, Compute) and s.op in ("exp", "exp2", "sigmoid")


def render_fast(op: str, args: list[Operand]) -> str | None:
    """The expression of such a value; None where there is nothing faster."""
    if op == "exp":
        return f"tl.exp({args[0].typed})"
    if op == "div":
        return f"{args[0].typed} / {args[1].typed}"
    return f"1.0 / {args[0].typed}" if op == "reciprocal" else None
