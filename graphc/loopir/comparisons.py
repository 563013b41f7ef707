"""Comparisons of positions: what both sides have in common is left out, and what is left is compared in few bits."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from graphc.ir.dims import Dim, bounds, simplify
from graphc.ir.types import DType, i32, i64
from graphc.loopir.kernel import Compute, Const, Define, Index, Kernel, Statement, Store
from graphc.loopir.transform import axis_ranges, drop_dead

_COMPARISONS = ("eq", "ne")
_SHORT = 1 << 31


class _Sum(NamedTuple):
    """A value, or nothing, plus an index expression."""

    value: str | None
    offset: Dim


def cancel_positions(kernel: Kernel) -> Kernel:
    """Compare values that hold positions relative to a point of the iteration with nothing but what differs.

    Before:
        v1: i8 = load where[i0*12 + i1]
        v2: i64 = cast v1
        v3: i64 = index i0*48 + i1*2
        v4: i64 = add v2 v3
        v5: i64 = index i0*48 + i1*2 + i2*24 + i3
        v6: bool = eq v4 v5
    After:
        v1: i8 = load where[i0*12 + i1]
        v7: i32 = cast v1
        v8: i64 = index i2*24 + i3
        v9: i32 = cast v8
        v6: bool = eq v7 v9

    Integers wrap, so sums are equal when what is left of them is. The gradient of max pooling is such a comparison.
    """
    return _Canceller(kernel).run()


class _Canceller:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.ranges = axis_ranges(kernel.axes)
        self.sums: dict[str, _Sum] = {}  # of the i64 values that are one
        self.defined: dict[str, Define] = {}
        self.count = 1 + max((int(s.id[1:]) for s in kernel.body if not isinstance(s, Store)), default=0)
        self.body: list[Statement] = []
        self.modified = False

    def run(self) -> Kernel:
        for s in self.kernel.body:
            self.body.append(self._comparison(s) if isinstance(s, Compute) and s.op in _COMPARISONS else s)
            if not isinstance(s, Store):
                self.defined[s.id] = s
                found = self._sum(s)
                if found is not None:
                    self.sums[s.id] = found
        return drop_dead(replace(self.kernel, body=tuple(self.body))) if self.modified else self.kernel

    def _sum(self, s: Define) -> _Sum | None:
        if s.dtype is not i64:
            return None
        if isinstance(s, Index):
            return _Sum(None, s.expr)
        if isinstance(s, Const):
            return _Sum(None, int(s.value))
        if not isinstance(s, Compute) or s.op not in ("add", "sub", "mul"):
            return _Sum(s.id, 0)
        a, b = (self.sums[name] for name in s.args)
        if s.op == "mul":
            plain = a.value is None and b.value is None and (isinstance(a.offset, int) or isinstance(b.offset, int))
            return _Sum(None, a.offset * b.offset) if plain else _Sum(s.id, 0)
        if b.value is None:
            return _Sum(a.value, a.offset + b.offset if s.op == "add" else a.offset - b.offset)
        if a.value is None and s.op == "add":
            return _Sum(b.value, a.offset + b.offset)
        return _Sum(s.id, 0)

    def _comparison(self, s: Compute) -> Compute:
        """The comparison, with the statements that it needs put before it."""
        a, b = (self.sums.get(name) for name in s.args)
        if a is None or b is None:
            return s
        if a.value is None:
            a, b = b, a
        if a.value is None or b.value is not None or a.offset == 0:
            return s
        self.modified = True
        index = simplify(b.offset - a.offset, self.ranges)
        source = self.defined[a.value]
        dtype = self._narrow(source, index)
        value = a.value
        if dtype is i32 and isinstance(source, Compute):
            value = self._add(Compute("", i32, "cast", source.args))
        return replace(s, args=(value, self._index(index, dtype)))

    def _narrow(self, source: Define, index: Dim) -> DType:
        """i32 where both sides fit: a cast of fewer bits, and a range that is known."""
        low, high = bounds(index, self.ranges)
        fits = low is not None and high is not None and low >= -_SHORT and high < _SHORT
        if not fits or not isinstance(source, Compute) or source.op != "cast":
            return i64
        given = self.defined[source.args[0]].dtype
        return i32 if given.kind in ("int", "uint") and given.itemsize < i32.itemsize else i64

    def _index(self, index: Dim, dtype: DType) -> str:
        if isinstance(index, int):
            return self._add(Const("", dtype, index))
        name = self._add(Index("", i64, index))
        return name if dtype is i64 else self._add(Compute("", dtype, "cast", (name,)))

    def _add(self, s: Define) -> str:
        name = f"v{self.count}"
        self.count += 1
        self.body.append(replace(s, id=name))
        return name
