"""Symbolic integers: dims of shapes and index expressions of kernels.

A `Dim` is an int or an `Expr`: a polynomial with integer coefficients over atoms, where an atom is a symbol, a floor
division or a modulo. Expressions are kept in one canonical form, so structural equality is what `==` tests, and they
are small and hashable. No general algebra system: `simplify` knows the ranges of symbols and a handful of rules, which
is all that views, padding and broadcasting need, in linear time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias, Union

Dim: TypeAlias = Union[int, "Expr"]
Ranges: TypeAlias = Mapping[str, tuple[int, int | None]]
"""Inclusive bounds (low, high) of symbols by name; high None = unbounded. A symbol not listed is >= 0."""


@dataclass(frozen=True)
class Sym:
    """A symbol: a shape variable, a kernel axis, or a loaded index (`v12`)."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class FloorDiv:
    """`numerator // denominator`, rounding to minus infinity."""

    numerator: Expr
    denominator: Dim

    def __str__(self) -> str:
        return f"({_numerator_text(self.numerator)} // {_atom_text(self.denominator)})"


@dataclass(frozen=True)
class Mod:
    """`numerator % denominator`, with the sign of the denominator."""

    numerator: Expr
    denominator: Dim

    def __str__(self) -> str:
        return f"({_numerator_text(self.numerator)} % {_atom_text(self.denominator)})"


Atom: TypeAlias = Sym | FloorDiv | Mod
Monomial: TypeAlias = tuple[Atom, ...]


def _numerator_text(value: Expr) -> str:
    """In parentheses where `//` and `%`, which bind like `*`, would take only a part of it."""
    return f"({value})" if len(value.terms) > 1 or value.terms[0][1] < 0 else str(value)


def _atom_text(value: Dim) -> str:
    return str(value) if isinstance(value, int) else f"({value})"


class Expr:
    """A polynomial: a sum of `coefficient * atom * atom ...`. Immutable; build with operators on `symbol(...)`.

    `terms` maps a sorted tuple of atoms to its non-zero coefficient; `()` is the constant term. An Expr is never a
    plain constant: arithmetic that cancels every atom gives back an int.
    """

    __slots__ = ("_hash", "terms")

    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        object.__setattr__(self, "terms", terms)
        object.__setattr__(self, "_hash", hash(terms))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Expr is immutable")

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined]

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Expr) and self.terms == other.terms)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return Expr, (self.terms,)

    def __add__(self, other: Dim) -> Dim:
        if isinstance(other, int):
            if other == 0:
                return self
            other_terms: Iterable[tuple[Monomial, int]] = (((), other),)
        elif isinstance(other, Expr):
            other_terms = other.terms
        else:
            return NotImplemented
        total = dict(self.terms)
        for monomial, coefficient in other_terms:
            total[monomial] = total.get(monomial, 0) + coefficient
        return _build(total)

    __radd__ = __add__

    def __mul__(self, other: Dim) -> Dim:
        if isinstance(other, int):
            return 0 if other == 0 else _build({monomial: c * other for monomial, c in self.terms})
        if not isinstance(other, Expr):
            return NotImplemented
        total: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in other.terms:
                monomial = tuple(sorted(left + right, key=str))
                total[monomial] = total.get(monomial, 0) + a * b
        return _build(total)

    __rmul__ = __mul__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + other * -1

    def __rsub__(self, other: Dim) -> Dim:
        return self * -1 + other

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return mod(self, other)

    def __rmod__(self, other: int) -> Dim:
        return mod(other, self)

    def __str__(self) -> str:
        parts: list[str] = []
        for monomial, coefficient in self.terms:
            body = "*".join(str(atom) for atom in monomial)
            if not monomial:
                text = str(abs(coefficient))
            elif abs(coefficient) == 1:
                text = body
            else:
                text = f"{body}*{abs(coefficient)}"
            sign = "-" if coefficient < 0 else "+"
            parts.append(f"{sign} {text}" if parts else (f"-{text}" if coefficient < 0 else text))
        return " ".join(parts)

    def __repr__(self) -> str:
        return f"Expr({self})"


def _order(item: tuple[Monomial, int]) -> tuple[bool, str]:
    return (not item[0], "*".join(str(atom) for atom in item[0]))


def _build(terms: dict[Monomial, int]) -> Dim:
    kept = [(monomial, c) for monomial, c in terms.items() if c]
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    kept.sort(key=_order)
    return Expr(tuple(kept))


@lru_cache(maxsize=4096)
def symbol(name: str) -> Expr:
    """The expression that is just the symbol `name`."""
    return Expr((((Sym(name),), 1),))


def _from_atom(atom: Atom) -> Dim:
    return Expr((((atom,), 1),))


def _split_multiple(value: Dim, denominator: int) -> tuple[Dim, Dim]:
    """`value = multiple * denominator + rest` with every term that is a whole multiple taken out."""
    terms = ((((), value),) if value else ()) if isinstance(value, int) else value.terms
    multiple: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for monomial, coefficient in terms:
        quotient, remainder = divmod(coefficient, denominator)
        if monomial and remainder:
            rest[monomial] = coefficient
            continue
        multiple[monomial] = quotient
        rest[monomial] = remainder
    return _build(multiple), _build(rest)


def floordiv(numerator: Dim, denominator: Dim) -> Dim:
    """`numerator // denominator`, with whole multiples of an int denominator taken out.

    Raises:
        ZeroDivisionError: the denominator is 0.
    """
    if isinstance(denominator, int):
        if isinstance(numerator, int):
            return numerator // denominator
        if denominator == 1:
            return numerator
        if denominator == 0:
            raise ZeroDivisionError("dimension divided by zero")
        if denominator > 0:
            multiple, rest = _split_multiple(numerator, denominator)
            if isinstance(rest, int):
                return multiple + rest // denominator
            return multiple + _from_atom(FloorDiv(rest, denominator))
    if numerator == denominator:
        return 1
    if isinstance(numerator, int):
        return 0 if numerator == 0 else _from_atom(FloorDiv(Expr((((), numerator),)), denominator))
    exact = _exact_quotient(numerator, denominator)
    return exact if exact is not None else _from_atom(FloorDiv(numerator, denominator))


def _exact_quotient(numerator: Expr, denominator: Dim) -> Dim | None:
    """Division by a single symbolic monomial when every term contains it, else None."""
    if isinstance(denominator, int) or len(denominator.terms) != 1:
        return None
    ((divisor, scale),) = denominator.terms
    result: dict[Monomial, int] = {}
    for monomial, coefficient in numerator.terms:
        left = list(monomial)
        if coefficient % scale:
            return None
        for atom in divisor:
            if atom not in left:
                return None
            left.remove(atom)
        result[tuple(left)] = coefficient // scale
    return _build(result)


def mod(numerator: Dim, denominator: Dim) -> Dim:
    """`numerator % denominator`, with whole multiples of an int denominator dropped."""
    if isinstance(denominator, int):
        if isinstance(numerator, int):
            return numerator % denominator
        if denominator == 1:
            return 0
        if denominator > 0:
            _, rest = _split_multiple(numerator, denominator)
            return rest % denominator if isinstance(rest, int) else _from_atom(Mod(rest, denominator))
    if numerator == denominator:
        return 0
    if isinstance(numerator, int):
        return 0 if numerator == 0 else _from_atom(Mod(Expr((((), numerator),)), denominator))
    return 0 if _exact_quotient(numerator, denominator) is not None else _from_atom(Mod(numerator, denominator))


def slice_bounds(start: int | None, stop: int | None, size: int) -> tuple[int, int]:
    """First and behind last place of `x[start:stop]` in a dim, as `slice.indices` tells of plain ints."""

    def place(bound: int) -> int:
        bound = bound + size if bound < 0 else bound
        return 0 if bound < 0 else size if bound > size else bound

    return 0 if start is None else place(start), size if stop is None else place(stop)


def static(value: Dim) -> int:
    """A dim that is an int.

    Raises:
        TypeError: it is symbolic.
    """
    if isinstance(value, int):
        return value
    raise TypeError(f"{value} is symbolic")


def symbols(value: Dim) -> frozenset[str]:
    """Names of all symbols in `value`."""
    return frozenset() if isinstance(value, int) else _symbols(value)


@lru_cache(maxsize=65536)
def _symbols(value: Expr) -> frozenset[str]:
    found: set[str] = set()
    for monomial, _ in value.terms:
        for atom in monomial:
            if isinstance(atom, Sym):
                found.add(atom.name)
            else:
                found |= symbols(atom.numerator) | symbols(atom.denominator)
    return frozenset(found)


def substitute(value: Dim, mapping: Mapping[str, Dim]) -> Dim:
    """`value` with symbols replaced; the result is in canonical form again."""
    if isinstance(value, int) or not (symbols(value) & mapping.keys()):
        return value
    total: Dim = 0
    for monomial, coefficient in value.terms:
        product: Dim = coefficient
        for atom in monomial:
            if isinstance(atom, Sym):
                factor = mapping.get(atom.name, _from_atom(atom))
            else:
                numerator, denominator = substitute(atom.numerator, mapping), substitute(atom.denominator, mapping)
                operation = floordiv if isinstance(atom, FloorDiv) else mod
                factor = operation(_without_symbols(numerator), denominator)
            product = product * factor
        total = total + product
    return total


def _without_symbols(value: Dim) -> Dim:
    """A numerator that is but a number, as that."""
    is_number = not isinstance(value, int) and len(value.terms) == 1 and not value.terms[0][0]
    return value.terms[0][1] if is_number else value  # type: ignore[union-attr]


def evaluate(value: Dim, values: Mapping[str, int]) -> int:
    """The int that `value` has when every symbol has the given value.

    Raises:
        KeyError: a symbol has no value.
    """
    result = substitute(value, values)
    if isinstance(result, int):
        return result
    raise KeyError(f"no value for {', '.join(sorted(symbols(result)))}")


def bounds(value: Dim, ranges: Ranges) -> tuple[int | None, int | None]:
    """Inclusive (low, high) of `value` by interval arithmetic; None = unbounded on that side."""
    if isinstance(value, int):
        return value, value
    low: int | None = 0
    high: int | None = 0
    for monomial, coefficient in value.terms:
        bottom: int | None = 1
        top: int | None = 1
        for atom in monomial:
            atom_low, atom_high = _atom_bounds(atom, ranges)
            if bottom is None or atom_low is None or bottom < 0 or atom_low < 0:
                bottom, top = (atom_low, atom_high) if len(monomial) == 1 else (None, None)
            else:
                bottom = bottom * atom_low
                top = None if top is None or atom_high is None else top * atom_high
        if coefficient < 0:
            bottom, top = top, bottom
        low = None if low is None or bottom is None else low + coefficient * bottom
        high = None if high is None or top is None else high + coefficient * top
    return low, high


def _atom_bounds(atom: Atom, ranges: Ranges) -> tuple[int | None, int | None]:
    if isinstance(atom, Sym):
        return ranges.get(atom.name, (0, None))
    if not isinstance(atom.denominator, int) or atom.denominator <= 0:
        return None, None
    low, high = bounds(atom.numerator, ranges)
    if isinstance(atom, FloorDiv):
        return (
            None if low is None else low // atom.denominator,
            None if high is None else high // atom.denominator,
        )
    if low is not None and high is not None and low >= 0 and high < atom.denominator:
        return low, high
    return 0, atom.denominator - 1


def simplify(value: Dim, ranges: Ranges) -> Dim:
    """`value` with floor divisions and modulos removed where the ranges of symbols decide them.

    `(i*64 + j) // 64` is `i` and `(i*64 + j) % 64` is `j` for `0 <= j < 64`; `(x // a) // b` is `x // (a*b)`;
    `(x // a)*a + x % a` is `x`.
    """
    if isinstance(value, int):
        return value
    if all(isinstance(atom, Sym) for monomial, _ in value.terms for atom in monomial):
        return value
    total: Dim = 0
    for monomial, coefficient in value.terms:
        product: Dim = coefficient
        for atom in monomial:
            product = product * _simplify_atom(atom, ranges)
        total = total + product
    return total if isinstance(total, int) else _join_division_and_modulo(total)


def _simplify_atom(atom: Atom, ranges: Ranges) -> Dim:
    if isinstance(atom, Sym):
        return _from_atom(atom)
    numerator, denominator = simplify(atom.numerator, ranges), simplify(atom.denominator, ranges)
    is_div = isinstance(atom, FloorDiv)
    if isinstance(numerator, int) or not isinstance(denominator, int) or denominator <= 0:
        return floordiv(numerator, denominator) if is_div else mod(numerator, denominator)
    multiple, rest = _split_multiple(numerator, denominator)
    low, high = bounds(rest, ranges)
    if low is not None and high is not None and low // denominator == high // denominator:
        shift = low // denominator
        return multiple + shift if is_div else rest - shift * denominator
    nested = _nested(rest)
    if is_div and isinstance(nested, FloorDiv) and isinstance(nested.denominator, int):
        inner = floordiv(nested.numerator, nested.denominator * denominator)
        return multiple + (inner if isinstance(inner, int) else simplify(inner, ranges))
    if not is_div and isinstance(nested, Mod) and _divides(denominator, nested.denominator):
        return simplify(mod(nested.numerator, denominator), ranges)
    reduced = _drop_small_rest(rest, denominator, ranges) if is_div else None
    if reduced is not None:
        return multiple + reduced
    return multiple + floordiv(rest, denominator) if is_div else mod(rest, denominator)


def _divides(divisor: int, value: Dim) -> bool:
    return isinstance(value, int) and value % divisor == 0


def _nested(value: Dim) -> Atom | None:
    if isinstance(value, int) or len(value.terms) != 1:
        return None
    ((monomial, coefficient),) = value.terms
    return monomial[0] if coefficient == 1 and len(monomial) == 1 else None


def _drop_small_rest(value: Dim, denominator: int, ranges: Ranges) -> Dim | None:
    """`(a*g + r) // (g*k)` is `a // k` when `0 <= r < g`: take out the greatest such g."""
    if isinstance(value, int):
        return None
    candidates = sorted({abs(c) for _, c in value.terms if abs(c) > 1 and denominator % abs(c) == 0}, reverse=True)
    for step in candidates:
        multiple, rest = _split_multiple(value, step)
        if isinstance(multiple, int) or rest == 0:
            continue
        low, high = bounds(rest, ranges)
        if low is not None and high is not None and low >= 0 and high < step:
            return simplify(floordiv(multiple, denominator // step), ranges)
    return None


def _join_division_and_modulo(value: Expr) -> Dim:
    """`(x // a)*a*c + (x % a)*c` is `x*c`."""
    terms = dict(value.terms)
    for monomial, coefficient in value.terms:
        if len(monomial) != 1 or not isinstance(monomial[0], Mod):
            continue
        atom = monomial[0]
        partner = (FloorDiv(atom.numerator, atom.denominator),)
        if not isinstance(atom.denominator, int) or terms.get(partner) != coefficient * atom.denominator:
            continue
        rest = _build({m: c for m, c in terms.items() if m not in (monomial, partner)})
        joined = rest + atom.numerator * coefficient
        return joined if isinstance(joined, int) else _join_division_and_modulo(joined)
    return value
