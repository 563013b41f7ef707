"""Conditions on positions that make a value zero, as bounds of the loop over one of them.

v2: bool = le v0 v1           key position <= query position
v3 = where v2 s -inf          weights of all other keys are 0
  -> the loop over keys ends at the last query of the block
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from graphc.codegen.triton.joined_axes import int_extent
from graphc.ir.dims import Dim, Expr, Sym, symbol, symbols
from graphc.ir.sizes import typical
from graphc.loopir.analysis import closure
from graphc.loopir.bounded import goes_along
from graphc.loopir.kernel import Axis, Compute, Const, Define, Index, Kernel, Load, Reduce

_NEGATED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}
_SWAPPED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
_WITHIN = "within"
Condition = tuple[str, Dim]
"""An operator and a difference: `difference op 0`; or `within` the edges of a bounded mask, and its name."""


@dataclass(frozen=True)
class Bound:
    """A bound of the loop's position: slope * row + offset, inclusive.

    Args:
        is_upper: else a lower bound.
        slope: 1, 0 or -1.
    """

    is_upper: bool
    slope: int
    offset: int

    def text(self, first: str, block: str, generous: bool = True) -> str:
        """The bound for a block of rows from `first` on: what the most generous row asks for, or the strictest."""
        asks_last = generous == (self.slope > 0 if self.is_upper else self.slope < 0)
        row = f"{first} + {block} - 1" if asks_last else first
        if self.slope == 0:
            return str(self.offset)
        return f"({row}) + {self.offset}" if self.slope > 0 else f"{self.offset} - ({row})"

    def implies(self, other: Bound) -> bool:
        """Whether what keeps to this bound keeps to the other one."""
        further = other.offset >= self.offset if self.is_upper else other.offset <= self.offset
        return (self.is_upper, self.slope) == (other.is_upper, other.slope) and further


class Conditions:
    """Finds out what must hold of positions for values of a kernel to count."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.by_id = {s.id: s for s in kernel.defines}
        self.domains = kernel.domains

    def bounds(self, names: Sequence[str], rows: tuple[Axis, ...], steps: tuple[Axis, ...]) -> list[Bound]:
        """Bounds of the position along `steps` outside of which values are zero, for a position along `rows`."""
        if len(steps) != 1 or len(rows) > 1:
            return []
        row = rows[0].name if rows else ""
        conditions = frozenset.intersection(*(self._nonzero(name) for name in names))
        if any(op == _WITHIN for op, _ in conditions):
            return []  # masks in memory have edges of their own, which take these conditions in
        found = [self._bound(condition, row, steps[0].name) for condition in conditions]
        bounds = sorted((bound for bound in set(found) if bound is not None), key=str)
        return bounds if self._meets_all(bounds, rows, steps[0]) else []

    def edges(self, names: Sequence[str], steps: tuple[Axis, ...]) -> list[Compute]:
        """Masks in memory whose edges are known, outside of which values are zero, in order."""
        if len(steps) != 1:
            return []
        conditions = frozenset.intersection(*(self._nonzero(name) for name in names))
        found = {str(value) for op, value in conditions if op == _WITHIN}
        bounded = [s for s in self.by_id.values() if isinstance(s, Compute) and s.id in found]
        return [s for s in bounded if goes_along(s, steps[0].name, self.by_id)]

    def _meets_all(self, bounds: Sequence[Bound], rows: tuple[Axis, ...], steps: Axis) -> bool:
        """Whether all sums of exponentials, which a kernel without sums of its own loads, are sums of something.

        One of nothing makes weights NaN wherever it is used, so that no loop may pass it by: neither one over what it
        is the sum of, nor one over many such sums.
        """
        if not bounds or any(isinstance(s, Reduce) for s in self.kernel.defines):
            return True
        if self._hides_by_data():
            return False  # together with positions it may leave nothing of a sum
        shifts = [self.by_id[s.args[0]] for s in self.by_id.values() if isinstance(s, Compute) and s.op == "exp"]
        along = frozenset[str]().union(
            *(self.domains[s.args[1]] for s in shifts if isinstance(s, Compute) and s.op == "sub")
        )
        count, length = int_extent(rows[0]) if rows else 1, int_extent(steps)
        if 0 in (count, length):
            return True
        # edges are lines, so that the interval that a row or a position meets is shortest at one end
        if steps.name in along and not all(_meets(bounds, position, count) for position in (0, length - 1)):
            return False
        return not rows or rows[0].name not in along or all(_kept(bounds, row, length) for row in (0, count - 1))

    def _hides_by_data(self) -> bool:
        """Whether scores are replaced by minus infinity where something in memory says so."""
        conditions = [
            s.args[0]
            for s in self.by_id.values()
            if isinstance(s, Compute) and s.op == "where" and any(self._is(arm, -math.inf) for arm in s.args[1:])
        ]
        return any(isinstance(self.by_id[name], Load) for name in closure(conditions, self.by_id))

    def known_within(self, bounds: Sequence[Bound], rows: tuple[Axis, ...], steps: tuple[Axis, ...]) -> dict[str, bool]:
        """Comparisons of positions that come out the same wherever all bounds are kept."""
        known: dict[str, bool] = {}
        row = rows[0].name if rows else ""
        for s in self.by_id.values() if bounds else ():
            for truth in (True, False):
                for condition in self._compared(s, truth):
                    asked = self._bound(condition, row, steps[0].name)
                    if asked is not None and any(bound.implies(asked) for bound in bounds):
                        known[s.id] = truth
        return known

    def _bound(self, condition: Condition, row: str, step: str) -> Bound | None:
        op, difference = condition
        if isinstance(difference, int) or not symbols(difference) <= {row, step}:
            return None
        parts = _coefficients(difference)
        if parts is None:
            return None
        along, across, offset = parts.get(step, 0), parts.get(row, 0) if row else 0, parts.get("", 0)
        if abs(along) != 1 or abs(across) > 1:
            return None
        if along < 0:  # -step + ... op 0
            op, across, offset = _SWAPPED[op], -across, -offset
        # step + across * row + offset op 0
        strict = 1 if op in ("lt", "gt") else 0
        if op in ("lt", "le"):
            return Bound(True, -across, -offset - strict)
        return Bound(False, -across, -offset + strict)

    # what must hold for a value to differ from zero, or from minus infinity

    def _nonzero(self, name: str) -> frozenset[Condition]:
        s = self.by_id[name]
        if not isinstance(s, Compute):
            return frozenset()
        if s.op in ("cast", "neg", "div"):
            return self._nonzero(s.args[0])
        if s.op == "mul":
            return self._nonzero(s.args[0]) | self._nonzero(s.args[1])
        if s.op in ("sub", "add"):
            return self._nonzero(s.args[0]) & self._nonzero(s.args[1])
        if s.op == "exp":
            return self._finite(s.args[0])
        if s.op == "where":
            return self._chosen(s, 0.0, self._nonzero)
        return frozenset()

    def _finite(self, name: str) -> frozenset[Condition]:
        s = self.by_id[name]
        if not isinstance(s, Compute):
            return frozenset()
        if s.op in ("cast", "sub"):
            return self._finite(s.args[0])
        if s.op == "bounded":
            return frozenset(((_WITHIN, symbol(s.id)),))
        if s.op == "add":  # minus infinity and NaN is NaN: edges of what is added are those of what is known to be none
            terms = frozenset[Condition]().union(*(self._finite(arg) for arg in s.args))
            return frozenset(condition for condition in terms if condition[0] == _WITHIN)
        if s.op == "mul":
            return frozenset[Condition]().union(
                *(self._finite(a) for a, b in (s.args, s.args[::-1]) if self._is_positive(b))
            )
        return self._chosen(s, -math.inf, self._finite) if s.op == "where" else frozenset()

    def _chosen(
        self, s: Compute, excluded: float, follow: Callable[[str], frozenset[Condition]]
    ) -> frozenset[Condition]:
        condition, first, second = s.args
        if self._is(second, excluded):
            return self._holds(condition, True) | follow(first)
        return self._holds(condition, False) | follow(second) if self._is(first, excluded) else frozenset()

    def _is_positive(self, name: str) -> bool:
        s = self.by_id[name]
        return isinstance(s, Const) and s.value > 0

    def _is(self, name: str, value: float) -> bool:
        s = self.by_id[name]
        return isinstance(s, Const) and s.value == value

    # what follows from a condition

    def _holds(self, name: str, truth: bool) -> frozenset[Condition]:
        s = self.by_id[name]
        if not isinstance(s, Compute):
            return frozenset()
        if s.op in ("bitwise_not", "logical_not"):
            return self._holds(s.args[0], not truth)
        if s.op in (("logical_and", "bitwise_and") if truth else ("logical_or", "bitwise_or")):
            return self._holds(s.args[0], truth) | self._holds(s.args[1], truth)
        if s.op == "bounded" and not truth:
            return frozenset(((_WITHIN, symbol(s.id)),)) | self._holds(s.args[-1], False)
        return self._of_choice(s, truth) if s.op == "where" else self._compared(s, truth)

    def _compared(self, s: Define, truth: bool) -> frozenset[Condition]:
        """What it means for two positions that they compare so."""
        if not isinstance(s, Compute) or s.op not in _NEGATED:
            return frozenset()
        left, right = (self._affine(arg) for arg in s.args)
        op = s.op if truth else _NEGATED[s.op]
        return frozenset(((op, left - right),)) if left is not None and right is not None else frozenset()

    def _of_choice(self, s: Compute, truth: bool) -> frozenset[Condition]:
        condition, first, second = s.args
        if self._is(second, not truth):  # the other branch gives the opposite
            return self._holds(condition, True) | self._holds(first, truth)
        return self._holds(condition, False) | self._holds(second, truth) if self._is(first, not truth) else frozenset()

    def _affine(self, name: str) -> Dim | None:
        """An integer as an expression of positions."""
        s = self.by_id[name]
        if isinstance(s, Index):
            return s.expr
        if isinstance(s, Const):
            return int(s.value) if s.dtype.is_integral and s.dtype.kind != "bool" else None
        if isinstance(s, Load) or not isinstance(s, Compute) or not s.dtype.is_integral:
            return None
        parts = [part for part in map(self._affine, s.args) if part is not None]
        if len(parts) != len(s.args):
            return None
        if s.op == "cast":
            return parts[0] if s.dtype.name in ("i32", "i64") else None
        if s.op in ("add", "sub"):
            return parts[0] + parts[1] if s.op == "add" else parts[0] - parts[1]
        return parts[0] * -1 if s.op == "neg" else None


def _meets(bounds: Sequence[Bound], position: int, rows: int) -> bool:
    """Whether some row keeps a position."""
    low, high = 0, rows - 1
    for bound in bounds:
        distance = position - bound.offset  # <= slope * row for an upper bound, >= for a lower one
        if bound.slope == 0:
            high = high if (distance <= 0) == bound.is_upper or distance == 0 else -1
        elif bound.is_upper == (bound.slope > 0):
            low = max(low, distance * bound.slope)
        else:
            high = min(high, distance * bound.slope)
    return low <= high


def _kept(bounds: Sequence[Bound], row: int, steps: int) -> int:
    """How many positions a row keeps."""
    low, high = 0, steps - 1
    for bound in bounds:
        edge = bound.slope * row + bound.offset
        low, high = (low, min(high, edge)) if bound.is_upper else (max(low, edge), high)
    return max(0, high - low + 1)


def share_within(bounds: Sequence[Bound], rows: tuple[Axis, ...], steps: Axis) -> float:
    """Which share of all pairs of a row, of one axis or none, and a position keeps to all bounds."""
    count, length = typical(int_extent(rows[0])) if rows else 1, typical(int_extent(steps))
    bounds = [replace(bound, slope=typical(bound.slope), offset=typical(bound.offset)) for bound in bounds]
    return sum(_kept(bounds, row, length) for row in range(count)) / max(1, count * length)


def _coefficients(expr: Expr) -> dict[str, int] | None:
    """Coefficient per symbol, the constant under ""; None when the expression is not linear."""
    found: dict[str, int] = {}
    for monomial, coefficient in expr.terms:
        if len(monomial) > 1 or (monomial and not isinstance(monomial[0], Sym)):
            return None
        found[monomial[0].name if monomial else ""] = coefficient  # type: ignore[union-attr]  # a Sym
    return found
