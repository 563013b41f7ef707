"""Choices by two conditions: LLVM makes two of each, one per condition, as if they were branches.

    v4 = gt v1 v2;  v5 = isnan v1;  v6 = logical_or v4 v5;  v7 = where v6 v3 v0

Where at most one of the conditions is true, whether any is true is whether they differ, and of a choice by `xor` LLVM
makes one. So has max pooling half the choices for the places of maxima.

    v11 = eq v8 v10;  v14 = logical_and v11 v13;  v21 = where v14 v19 0.0

Where one of the conditions, and what is chosen from, are known per row, a choice by it is made per row, and one per
element is left. So has the gradient of a cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.loopir.kernel import Compute, Define, Kernel

_ORDERED = frozenset(("lt", "le", "gt", "ge", "eq"))
"""Comparisons that are false where an operand is NaN."""


def exclusive(kernel: Kernel) -> frozenset[str]:
    """Ids of `logical_or` whose operands are never both true."""
    by_id = {s.id: s for s in kernel.defines}
    either = [s for s in kernel.defines if isinstance(s, Compute) and s.op == "logical_or"]
    return frozenset(s.id for s in either if _never_both(by_id[s.args[0]], by_id[s.args[1]]))


def _never_both(left: Define, right: Define) -> bool:
    """Whether one is that a value is NaN, the other a comparison with it."""
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Compute) and isinstance(other, Compute) and other.op in _ORDERED:
            is_nan = one.op == "isnan" or (one.op == "ne" and one.args[0] == one.args[1])
            if is_nan and one.args[0] in other.args:
                return True
    return False


def conjunctions(kernel: Kernel) -> dict[str, tuple[str, ...]]:
    """The two conditions of a choice by both of them, by its id."""
    by_id: Mapping[str, Define] = {s.id: s for s in kernel.defines}
    found: dict[str, tuple[str, ...]] = {}
    for s in kernel.defines:
        condition = by_id[s.args[0]] if isinstance(s, Compute) and s.op == "where" else None
        if isinstance(condition, Compute) and condition.op == "logical_and":
            found[s.id] = condition.args
    return found
