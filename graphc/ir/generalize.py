"""One graph for several that differ in numbers alone: the captures of one function for inputs of several sizes.

    f(x: f32[33, 64]):  view(x) {shape=[2112]}
    f(x: f32[43, 64]):  view(x) {shape=[2752]}     ->     f(x: f32[size0, 64]):  view(x) {shape=[size0*64]}

Dims of inputs that differ are sizes, and every other number that differs is looked for as an expression of them. That
is a guess (anti-unification: Plotkin, A note on inductive generalization, 1970), and good for a graph whose numbers it
gives, all of them: `General.sizes_of` looks. A graph that it fails for is one more to guess from.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations_with_replacement
from math import prod
from typing import Any

from graphc.ir.dims import Dim, Expr, evaluate, floordiv, symbol
from graphc.ir.graph import Graph, Output, Role, StridedView, Value, regions
from graphc.ir.sizes import LEAST, NAME, Conditions, Reciprocal, Size, SizedFloat, plain
from graphc.ir.types import TensorType

_MOST_BASES = 12
_DEGREE = 3
_DIVISORS = (2, 4, 8, 16, 32, 64)
_SHIFTS = {
    divisor: sorted(range(-2 * divisor, 2 * divisor), key=lambda shift: (shift not in (0, divisor - 1), abs(shift)))
    for divisor in _DIVISORS
}
"""What is added before a division: nothing or all but one first, as of what is rounded down or up."""
_FIXED = frozenset((Role.PARAM, Role.CONST))
"""Inputs whose shapes are the program's own."""

Number = int | float
Row = tuple[int, ...]
"""A number as it is in each of several graphs."""


@dataclass(frozen=True)
class Inverse:
    """A float that is one over an expression."""

    expr: Expr


Source = Dim | float | Inverse
"""What a number is made of: a float that is an expression is whole."""


@dataclass(frozen=True)
class Outline:
    """A graph taken apart.

    Attributes:
        graph: the graph.
        numbers: its ints, and floats that ops are given for values, in order.
        rest: everything else, locations and names of values left out; equal for graphs that differ in numbers alone.
        dims: positions in `numbers` of those that come with the user's tensors.
    """

    graph: Graph
    numbers: tuple[Number, ...]
    rest: Hashable
    dims: tuple[int, ...]


def outline(graph: Graph) -> Outline:
    """Take a graph apart."""
    numbers: list[Number] = []

    def take(number: Number) -> Number:
        numbers.append(number)
        return 0 if isinstance(number, int) else 0.0

    bare = with_numbers(graph, take)
    _rename(bare)
    rest = bare.signature()
    dims: list[int] = []
    at = 0
    for item in graph.inputs:
        if item.role not in _FIXED:
            dims += range(at, at + item.type.rank)
        at += item.type.rank + len(item.strides or ())
    return Outline(graph, tuple(numbers), rest, tuple(dims))


def _rename(graph: Graph) -> None:
    """Name the values that ops give by their order."""
    for number, value in enumerate(value for op in graph.ops for value in op.results):
        value.name = f"#{number}"
    for op in graph.ops:
        for region in regions(op):
            _rename(region)


def with_numbers(graph: Graph, change: Callable[[Number], Number]) -> Graph:
    """A copy of a graph with all ints in it changed, and floats that ops are given for values.

    They are changed in an order that depends on the rest of the graph alone.
    """
    twin = graph.copy()
    for item in twin.inputs:
        _change_value(item, change)
    for op in twin.ops:
        op.operands = [change(o) if isinstance(o, float) else _changed(o, change) for o in op.operands]
        op.attrs = {key: _changed(value, change) for key, value in op.attrs.items()}
        for result in op.results:
            _change_value(result, change)
    twin.outputs = [Output(output.value, _changed(output.view, change)) for output in twin.outputs]
    return twin


def _change_value(value: Value, change: Callable[[Number], Number]) -> None:
    value.type = TensorType(value.dtype, _changed(value.shape, change), value.device)
    value.strides = _changed(value.strides, change)


def _changed(item: Any, change: Callable[[Number], Number]) -> Any:
    if isinstance(item, int) and not isinstance(item, bool):
        return change(item)
    if isinstance(item, tuple):
        return tuple([_changed(part, change) for part in item])
    if isinstance(item, dict):
        return {key: _changed(part, change) for key, part in item.items()}
    if isinstance(item, StridedView):
        return StridedView(*(_changed(part, change) for part in (item.shape, item.strides, item.offset)))
    return with_numbers(item, change) if isinstance(item, Graph) else item


@dataclass(frozen=True)
class General:
    """A graph whose numbers are expressions of sizes.

    Attributes:
        first: one of the graphs that it was made from.
        sizes: name -> the position of the dim that it is.
        exprs: what each number is made of.
    """

    first: Outline
    sizes: Mapping[str, int]
    exprs: tuple[Source, ...]

    def sizes_of(self, found: Outline) -> dict[str, int] | None:
        """The sizes for which this is the graph that was taken apart, or None when it never is."""
        if found.rest != self.first.rest:
            return None
        sizes = {name: int(found.numbers[position]) for name, position in self.sizes.items()}
        known: dict[Expr | Inverse, Number] = {}
        for source, number in zip(self.exprs, found.numbers, strict=True):
            if isinstance(source, (int, float)):
                if _key(source) != _key(number):
                    return None
                continue
            value = known.get(source)
            if value is None:
                value = known[source] = _evaluated(source, sizes)
            if value != number:
                return None
        return sizes

    def is_like(self, other: General) -> bool:
        """Whether the numbers of another one are made of the same, under the same names; of graphs of one `rest`."""
        return self is other or (self.sizes == other.sizes and self.exprs == other.exprs)

    def gives(self, found: Outline) -> bool:
        """Whether this is the graph that was taken apart, for some sizes."""
        return self.sizes_of(found) is not None

    def outline(self, sizes: Mapping[str, int]) -> Outline:
        """The graph for some sizes, taken apart."""
        known: dict[Expr | Inverse, Number] = {}
        numbers: list[Number] = []
        for source, first in zip(self.exprs, self.first.numbers, strict=True):
            if isinstance(source, (int, float)):
                numbers.append(source)
                continue
            if source not in known:
                known[source] = _evaluated(source, sizes)
            numbers.append(known[source] if isinstance(first, int) else float(known[source]))
        return replace(self.first, numbers=tuple(numbers))

    def at(self, sizes: Mapping[str, int]) -> Graph:
        """The graph for some sizes, which are plain ints in it."""
        numbers = iter(self.outline(sizes).numbers)
        return with_numbers(self.first.graph, lambda _: next(numbers))

    def graph(self, sizes: Mapping[str, int]) -> tuple[Graph, Conditions]:
        """The graph for some sizes, which know what they are; and where it is noted what is found out about them.

        They are at least `LEAST`, and within a factor of two of others for which the same holds: what is chosen for
        them is chosen well for those.
        """
        conditions = Conditions(sizes)
        for name in sizes:
            size = conditions.known(name)
            assert size >= LEAST
            size.bit_length()
        sources = iter(self.exprs)

        def change(_: Number) -> Number:
            source = next(sources)
            if isinstance(source, (int, float)):
                return source
            expr = source.expr if isinstance(source, Inverse) else source
            size = conditions.size(evaluate(expr, sizes), expr)
            return Reciprocal(size) if isinstance(source, Inverse) and isinstance(size, Size) else size

        return with_numbers(self.first.graph, change), conditions


def generalize(outlines: Sequence[Outline]) -> General | None:
    """The graph that all of several are for some sizes, or None where none is found.

    Args:
        outlines: two or more, of equal `rest`.
    """
    first = outlines[0]
    rows: list[tuple[Any, ...]] = list(zip(*(found.numbers for found in outlines), strict=True))
    whole = [_whole(row) for row in rows]
    fit = _Fit(len(outlines))
    sizes: dict[str, int] = {}
    for position in first.dims:
        if fit.find(rows[position]) is None:
            name = f"{NAME}{len(sizes)}"
            sizes[name] = position
            fit.add(symbol(name), rows[position])
    if not sizes or None in whole or not fit.divide({row for row in whole if row and fit.find(row) is None}):
        return None
    sources: list[Source] = []
    for row, ints in zip(rows, whole, strict=True):
        expr = fit.find(ints) if ints else None
        assert expr is not None or not ints
        if expr is None or isinstance(expr, int):
            sources.append(row[0])
        else:
            sources.append(expr if ints == row else Inverse(expr))
    return General(first, sizes, tuple(sources))


def generalize_inputs(outlines: Sequence[Outline]) -> General | None:
    """As `generalize`, of the inputs alone: there are expressions for their numbers, which are the first ones."""
    first = outlines[0]
    count = sum(item.type.rank + len(item.strides or ()) for item in first.graph.inputs)
    bare = Graph(first.graph.name, first.graph.inputs)
    return generalize([Outline(bare, found.numbers[:count], None, first.dims) for found in outlines])


def derived(graph: Graph, conditions: Conditions) -> General:
    """The graph that one is whose numbers know what they are made of."""
    found = outline(graph)
    sources: list[Source] = []
    for number in found.numbers:
        size = number.size if isinstance(number, SizedFloat) else number
        expr = conditions.spelled(size.expr) if isinstance(size, Size) else number
        sources.append(Inverse(expr) if isinstance(number, Reciprocal) and isinstance(expr, Expr) else expr)
    places = {str(sources[position]): position for position in reversed(found.dims)}
    sizes = {name: places[name] for name in conditions.given()}
    return General(replace(found, numbers=tuple(map(_value, found.numbers))), sizes, tuple(sources))


def _value(number: Number) -> Number:
    """A number as it is for now."""
    return plain(number) if isinstance(number, int) else float.__add__(number, 0.0)


def fitted(bases: Sequence[tuple[Expr, Row]], rows: set[Row]) -> Callable[[Row], Dim] | None:
    """What each of some rows of numbers is, as an expression of rows that have names; None where one is not."""
    fit = _Fit(len(bases[0][1]))
    for expr, row in bases:
        fit.add(expr, row)
    if not fit.divide({row for row in rows if fit.find(row) is None}):
        return None

    def expression(row: Row) -> Dim:
        found = fit.find(row)
        assert found is not None
        return found

    return expression


def _whole(row: tuple[Any, ...]) -> Row | None:
    """A row as ints: of floats that differ what they are, or are one over; empty where they do not differ."""
    if isinstance(row[0], int):
        return row
    if len(set(map(_key, row))) == 1:
        return ()
    if all(value > 0 and value.is_integer() for value in row):
        return tuple(map(int, row))
    if not all(0 < value < 1 for value in row):
        return None
    found = tuple(round(1 / value) for value in row)
    return found if all(1 / size == value for size, value in zip(found, row, strict=True)) else None


def _key(number: Number) -> Number | str:
    """What tells floats apart that are equal, as zeros are, and makes NaN equal to itself."""
    return number if isinstance(number, int) else number.hex()


def _evaluated(source: Expr | Inverse, sizes: Mapping[str, int]) -> Number:
    return 1 / evaluate(source.expr, sizes) if isinstance(source, Inverse) else evaluate(source, sizes)


class _Fit:
    """Finds rows of numbers as expressions of rows that have names."""

    def __init__(self, count: int) -> None:
        self.bases: list[tuple[Dim, Row]] = []
        self.products: list[tuple[Dim, Row]] = []
        self.known: dict[Row, Dim | None] = {}
        self.count = count

    def add(self, expr: Dim, row: Row) -> None:
        """Give a row a name."""
        self.bases.append((expr, row))
        self.products = [
            (_product(factor for factor, _ in some), tuple(map(prod, zip(*(row for _, row in some), strict=True))))
            for degree in range(1, _DEGREE + 1)
            for some in combinations_with_replacement(self.bases, degree)
        ]
        self.known = {row: expr for row, expr in self.known.items() if expr is not None}

    def find(self, row: Row) -> Dim | None:
        """The expression that a row is."""
        if row not in self.known:
            self.known[row] = row[0] if len(set(row)) == 1 else self._fitted(row)
        return self.known[row]

    def _fitted(self, row: Row) -> Dim | None:
        found = self._multiple(row)
        found = self._affine(row) if found is None else found
        return self._quadratic(row) if found is None else found

    def _multiple(self, row: Row) -> Dim | None:
        for expr, base in self.products:
            if all(base) and not any(value % size for value, size in zip(row, base, strict=True)):
                factors = {value // size for value, size in zip(row, base, strict=True)}
                if len(factors) == 1:
                    return expr * factors.pop()
        return None

    def _affine(self, row: Row) -> Dim | None:
        for expr, base in self.products:
            at = next((n for n in range(self.count) if base[n] != base[0]), None)
            if at is None:
                continue
            slope, rest = divmod(row[at] - row[0], base[at] - base[0])
            shift = row[0] - slope * base[0]
            if not rest and all(value == slope * size + shift for value, size in zip(row, base, strict=True)):
                return expr * slope + shift
        return None

    def _quadratic(self, row: Row) -> Dim | None:
        """As of pixels where both sides are so much longer than one size."""
        for expr, base in self.bases:
            points = dict(zip(base, row, strict=True))
            if len(points) < 3:
                continue
            (a, at_a), (b, at_b), (c, at_c), *_ = points.items()
            slope, next_slope = Fraction(at_b - at_a, b - a), Fraction(at_c - at_b, c - b)
            square = (next_slope - slope) / (c - a)
            linear = slope - square * (a + b)
            shift = at_a - (square * a + linear) * a
            if any(part.denominator != 1 for part in (square, linear, shift)):
                continue
            if all(value == (square * size + linear) * size + shift for size, value in zip(base, row, strict=True)):
                return expr * expr * int(square) + expr * int(linear) + int(shift)
        return None

    def divide(self, rows: set[Row]) -> bool:
        """Name what comes of floor divisions, as of strides of convolutions, until all of some rows are found.

        By the least divisor first: of halves and eighths of a few sizes, halves may be sums of eighths.
        """
        while missing := sorted(row for row in rows if self.find(row) is None):
            quotients = ((self._quotient(row, divisor), row) for divisor in _DIVISORS for row in missing)
            found = next(((expr, row) for expr, row in quotients if expr is not None), None)
            if found is None or len(self.bases) == _MOST_BASES:
                return False
            self.add(*found)
        return True

    def _quotient(self, row: Row, divisor: int) -> Dim | None:
        for expr, base in self.bases:
            for shift in _SHIFTS[divisor]:
                if all((size + shift) // divisor == value for value, size in zip(row, base, strict=True)):
                    return floordiv(expr + shift, divisor)
        return None


def _product(factors: Any) -> Dim:
    total: Dim = 1
    for factor in factors:
        total = total * factor
    return total
