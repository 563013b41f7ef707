"""Sizes that differ from call to call, as ints that know what they are made of.

A program is compiled for all sizes of its inputs at once by compiling it for some: the sizes are then `Size`s, ints of
these values that carry the polynomial they are. Arithmetic on them gives such ints again; what looks at them, be it a
comparison or a number of bits, gets its answer for these values, and is noted as a condition under which all that was
made of the answers is right for other sizes too. So passes and code generators are written for ints, and what they make
for one set of sizes says itself for which others it holds:

    size0 = 43:    if rows * columns < 4096: ...     rows = size0, columns = 64
                   -> True, on condition that size0*64 - 4096 < 0

This is concolic execution (Godefroid, Klarlund and Sen, DART, PLDI 2005) of the compiler.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from math import gcd
from typing import Any

from graphc.ir.dims import Dim, Expr, Sym, evaluate, floordiv, mod, substitute, symbol, symbols

NAME = "size"
"""Sizes are called this and a number."""

LEAST = 2
"""What sizes are at least: PyTorch itself does something else for dims of none and of one."""

_SIGNS: dict[str, Callable[[int, int], bool]] = {"<": operator.lt, "<=": operator.le, "==": operator.eq}
_NEGATED = {"<": ">=", "<=": ">", "==": "!="}


class Conditions:
    """What has been found out about sizes, and must be so of other sizes for the same to be right.

    Args:
        sizes: the values by name, as they are for now.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._values = dict(sizes)
        self._given = tuple(sizes)
        self._made: dict[Expr, str] = {}  # what a division gives -> the name of the size that it is
        self._found: dict[tuple[str, Expr], bool] = {}
        self._usual = {name: max(LEAST, 3 << value.bit_length() >> 2) for name, value in sizes.items()}

    def known(self, name: str) -> int:
        """The size of this name."""
        return Size(self._values[name], symbol(name), self)

    def size(self, value: int, expr: Dim) -> int:
        """The int that an expression is, of this value."""
        polynomial = self._without_divisions(expr)
        return polynomial if isinstance(polynomial, int) else Size(value, polynomial, self)

    def _without_divisions(self, expr: Dim) -> Dim:
        """The expression as a polynomial: what comes of a division is a size of its own."""
        if isinstance(expr, int) or all(isinstance(atom, Sym) for monomial, _ in expr.terms for atom in monomial):
            return expr
        total: Dim = 0
        for monomial, coefficient in expr.terms:
            product: Dim = coefficient
            for atom in monomial:
                factor = Expr((((atom,), 1),))
                product = product * (factor if isinstance(atom, Sym) else symbol(self._division(factor)))
            total = total + product
        return total

    def _division(self, expr: Expr) -> str:
        name = self._made.get(expr)
        if name is None:
            value, name = evaluate(expr, self._values), f"{NAME}{len(self._values)}"
            self._made[expr], self._values[name] = name, value
            try:
                self._usual[name] = evaluate(expr, self._usual)
            except ZeroDivisionError:
                self._usual[name] = value
        return name

    def spelled(self, polynomial: Expr) -> Dim:
        """A polynomial as an expression of the sizes of inputs."""
        total: Dim = polynomial
        divisions = {name: expr for expr, name in self._made.items()}
        while not isinstance(total, int) and (names := symbols(total) & divisions.keys()):
            total = substitute(total, {name: divisions[name] for name in names})
        return total

    def usual(self, polynomial: Expr) -> int:
        """The value of a polynomial where each size of an input is in the middle of those with as many bits."""
        return value_of(polynomial, self._usual)

    def never_negative(self, polynomial: Expr) -> bool:
        """Whether a polynomial is known to be 0 or more: one of what sizes are more than the least has no minus."""
        if not symbols(polynomial).issubset(self._given):
            return False
        beyond = substitute(polynomial, {name: symbol(name) + LEAST for name in self._given})
        return beyond >= 0 if isinstance(beyond, int) else all(coefficient > 0 for _, coefficient in beyond.terms)

    def note(self, sign: str, expr: Dim, holds: bool) -> bool:
        """Note whether an expression is below 0, or 0; gives that back."""
        if not isinstance(expr, int):
            common = gcd(*(coefficient for _, coefficient in expr.terms))
            if common != 1:
                expr = Expr(tuple((monomial, coefficient // common) for monomial, coefficient in expr.terms))
            self._found[sign, expr] = holds
        return holds

    def note_bits(self, size: Size) -> int:
        """Note how many bits a size has; gives that back."""
        value = plain(size)
        bits = value.bit_length()
        amount = size.expr if value > 0 else -size.expr
        if bits:
            self.note("<", amount - 2 ** (bits - 1), False)
            self.note("<", amount - 2**bits, True)
        else:
            self.note("==", amount, True)
        return bits

    def pin(self, size: Size) -> int:
        """The value of a size, to which it is bound from now on."""
        value = plain(size)
        self.note("==", size.expr - value, True)
        return value

    def given(self) -> dict[str, int]:
        """The sizes of the inputs, as they are for now."""
        return {name: self._values[name] for name in self._given}

    def all_sizes(self, given: Mapping[str, int]) -> dict[str, int]:
        """The values of all sizes where those of the inputs are these.

        Raises:
            ZeroDivisionError: one of them divides by what is 0 then.
        """
        values = {name: given[name] for name in self._given}
        for expr, name in self._made.items():
            values[name] = evaluate(expr, values)
        return values

    def hold(self, given: Mapping[str, int]) -> bool:
        """Whether all that was found is so where the inputs have these sizes."""
        try:
            values = self.all_sizes(given)
        except ZeroDivisionError:
            return False
        return all(_SIGNS[sign](value_of(expr, values), 0) is holds for (sign, expr), holds in self._found.items())

    def to_plain(self) -> dict[str, Any]:
        """All of this as numbers and text, for `from_plain`."""
        return {
            "sizes": self.given(),
            "made": [[name, str(expr)] for expr, name in self._made.items()],
            "found": [[sign, str(expr), holds] for (sign, expr), holds in self._found.items()],
        }

    @staticmethod
    def from_plain(body: Mapping[str, Any], parse: Callable[[str], Dim]) -> Conditions:
        """What `to_plain` gave.

        Args:
            parse: from the text of an expression to that.

        Raises:
            KeyError, ValueError: it is not.
        """
        self = Conditions(body["sizes"])
        for name, text in body["made"]:
            expr = parse(text)
            if not isinstance(expr, Expr) or self._division(expr) != name:
                raise ValueError(f"{name} = {text} is no division of sizes")
        for sign, text, holds in body["found"]:
            self.note(sign, parse(text), holds)
        return self

    def sized(self, expr: Dim) -> int:
        """The int that an expression is."""
        return self.size(evaluate(expr, self._values), expr)

    def __str__(self) -> str:
        lines = [f"{name} = {expr}" for expr, name in self._made.items()]
        lines += [f"{expr} {sign if holds else _NEGATED[sign]} 0" for (sign, expr), holds in self._found.items()]
        return "\n".join(lines)


def plain(value: int) -> int:
    """The value of an int, not noted: for choices that are right for all sizes."""
    return int.__add__(value, 0)


def typical(value: int) -> int:
    """An int where sizes are what they are about, not noted: for choices that are right for all sizes.

    About: in the middle of those with as many bits. So a choice does not depend on which of them has come first.
    """
    return value.conditions.usual(value.expr) if type(value) is Size else value


def depends_on_sizes(value: object) -> bool:
    """Whether a number is made of sizes."""
    return type(value) in (Size, Real, Reciprocal)


def bound(value: Any) -> Any:
    """A number as Python has it: the sizes that it is made of are bound to what they are."""
    return value if not depends_on_sizes(value) else int(value) if type(value) is Size else float(value)


def real(value: int) -> float:
    """An int as a float."""
    return Real(value) if type(value) is Size else float(value)


def one_over(value: int) -> float:
    """One over an int."""
    return Reciprocal(value) if type(value) is Size and plain(value) else 1.0 / bound(value)


def never_more(left: int, right: int) -> bool:
    """Whether an int is known to be at most another, whatever the sizes; of ints that know of none, whether it is."""
    difference = expression(right) - expression(left)
    if isinstance(difference, int):
        return difference >= 0
    sizes = right if type(right) is Size else left
    assert type(sizes) is Size
    return sizes.conditions.never_negative(difference)


def value_of(polynomial: Expr, values: Mapping[str, int]) -> int:
    """The value of a polynomial, as `graphc.ir.dims.evaluate` gives it, but faster."""
    total = 0
    for monomial, coefficient in polynomial.terms:
        for atom in monomial:
            coefficient *= values[atom.name]  # type: ignore[union-attr]
        total += coefficient
    return total


class Size(int):
    """An int that is a polynomial of sizes.

    Args:
        value: what it is for now.
        expr: the polynomial.
        conditions: where it is noted what is found out about it.
    """

    expr: Expr
    conditions: Conditions

    def __new__(cls, value: int, expr: Expr, conditions: Conditions) -> Size:
        self = int.__new__(cls, value)
        self.expr, self.conditions = expr, conditions
        return self

    def __hash__(self) -> int:
        return hash((id(self.conditions), self.expr))  # what is kept for other builds is nothing to this one

    def __str__(self) -> str:
        ((monomial, coefficient), *others) = self.expr.terms
        is_name = coefficient == 1 and len(monomial) == 1 and not others
        return str(self.expr) if is_name else f"({self.expr})"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return str(self) if not spec else format(self.conditions.pin(self), spec)

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (self.conditions.pin(self),)

    def __copy__(self) -> Size:
        return self

    def __deepcopy__(self, memo: object) -> Size:
        return self

    # what needs the value itself

    def __int__(self) -> int:
        return self.conditions.pin(self)

    __index__ = __trunc__ = __int__

    def __float__(self) -> float:
        return float(self.conditions.pin(self))

    def __bool__(self) -> bool:
        return not self.conditions.note("==", self.expr, plain(self) == 0)

    def bit_length(self) -> int:
        return self.conditions.note_bits(self)

    # arithmetic

    def __neg__(self) -> int:
        return self.conditions.size(-plain(self), -self.expr)

    def __pos__(self) -> int:
        return self

    def __abs__(self) -> int:
        return -self if self < 0 else self

    def __divmod__(self, other: int) -> tuple[int, int]:
        return self // other, self % other

    def __rdivmod__(self, other: int) -> tuple[int, int]:
        return other // self, other % self


def expression(value: int) -> Dim:
    """The polynomial that an int is."""
    return value.expr if type(value) is Size else value


def _arithmetic(
    make: Callable[[Dim, Dim], Dim], compute: Callable[[Any, Any], Any], swapped: bool
) -> Callable[[Size, Any], Any]:
    divides = make in (floordiv, mod)

    def method(self: Size, other: Any) -> Any:
        if isinstance(other, Expr):
            return NotImplemented
        conditions = self.conditions
        if not isinstance(other, int):
            value = conditions.pin(self)
            return compute(other, value) if swapped else compute(value, other)
        left, right = (other, self) if swapped else (self, other)
        value = compute(plain(left), plain(right))
        divisor = expression(right)
        if divides and not isinstance(divisor, int):
            conditions.note("==", divisor, False)
        return conditions.size(value, make(expression(left), divisor))

    return method


def _by_value(name: str) -> Callable[..., Any]:
    """An operation on the values themselves."""

    def method(self: Size, *others: Any) -> Any:
        values = [self.conditions.pin(item) if type(item) is Size else item for item in others]
        return getattr(self.conditions.pin(self), name)(*values)

    return method


def _divided_by(self: Size, other: Any) -> Any:
    """`other / self`."""
    return one_over(self) if type(other) is int and other == 1 else other / self.conditions.pin(self)


def _comparison(sign: str, holds: bool, swapped: bool) -> Callable[[Size, Any], Any]:
    """`self sign other`, or its opposite where `holds` is False; `other sign self` when swapped."""
    compare = _SIGNS[sign]

    def method(self: Size, other: Any) -> Any:
        if isinstance(other, float):
            value = self.conditions.pin(self)
            return compare(*((other, value) if swapped else (value, other))) is holds
        if not isinstance(other, int):
            return NotImplemented
        if type(other) is Size and other.conditions is not self.conditions:
            raise ValueError(f"{self} and {other} are sizes of two builds")
        left, right = (other, self) if swapped else (self, other)
        found = compare(plain(left), plain(right))
        return self.conditions.note(sign, expression(left) - expression(right), found) is holds

    return method


for _name, _make, _compute in (
    ("add", operator.add, operator.add),
    ("sub", operator.sub, operator.sub),
    ("mul", operator.mul, operator.mul),
    ("floordiv", floordiv, operator.floordiv),
    ("mod", mod, operator.mod),
):
    setattr(Size, f"__{_name}__", _arithmetic(_make, _compute, False))
    setattr(Size, f"__r{_name}__", _arithmetic(_make, _compute, True))
for _name in ("truediv", "pow", "and", "or", "xor", "lshift", "rshift"):
    setattr(Size, f"__{_name}__", _by_value(f"__{_name}__"))
    setattr(Size, f"__r{_name}__", _by_value(f"__r{_name}__"))
Size.__rtruediv__ = _divided_by  # type: ignore[assignment,method-assign]
for _name, _sign, _holds, _swapped in (
    ("eq", "==", True, False),
    ("ne", "==", False, False),
    ("lt", "<", True, False),
    ("le", "<=", True, False),
    ("gt", "<", True, True),
    ("ge", "<=", True, True),
):
    setattr(Size, f"__{_name}__", _comparison(_sign, _holds, _swapped))


class SizedFloat(float):
    """A float that is made of a size. What asks for more than a name binds the size."""

    size: Size

    def _now(self) -> float:
        """The float where its size is bound."""
        raise NotImplementedError

    def __hash__(self) -> int:
        return hash((type(self), self.size))

    def __str__(self) -> str:
        return repr(self)

    def __format__(self, spec: str) -> str:
        return format(self._now(), spec)

    def __float__(self) -> float:
        return self._now()

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (self._now(),)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __bool__(self) -> bool:
        return True


class Real(SizedFloat):
    """A size as a float, as means divide by."""

    def __new__(cls, size: Size) -> Real:
        self = float.__new__(cls, plain(size))
        self.size = size
        return self

    def _now(self) -> float:
        return float(self.size.conditions.pin(self.size))

    def __repr__(self) -> str:
        return str(self.size)

    def __hash__(self) -> int:
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        if type(other) is Real:
            return self.size == other.size
        return isinstance(other, (int, float)) and other == int(other) and self.size == int(other)


class Reciprocal(SizedFloat):
    """A float that is one over a size, as means multiply by."""

    def __new__(cls, size: Size) -> Reciprocal:
        self = float.__new__(cls, 1.0 / plain(size))
        self.size = size
        return self

    def _now(self) -> float:
        return 1.0 / self.size.conditions.pin(self.size)

    def __repr__(self) -> str:
        return f"1/{self.size}"

    def __hash__(self) -> int:
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        if type(other) is Reciprocal:
            return self.size == other.size
        if not isinstance(other, (int, float)) or other == 0:
            return False
        size = round(1.0 / other)
        return 1.0 / size == other and self.size == size if size > 0 else False


def is_one_over(size: int, value: object) -> bool:
    """Whether a number is one over an int, or over one where that is less."""
    if type(value) is Reciprocal:
        return value.size == size
    return type(size) is not Size and value == 1 / max(1, size)


def _by_float(name: str) -> Callable[..., Any]:
    def method(self: SizedFloat, *others: Any) -> Any:
        return getattr(float(self), name)(*(float(item) if isinstance(item, SizedFloat) else item for item in others))

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "divmod"):
    setattr(SizedFloat, f"__{_name}__", _by_float(f"__{_name}__"))
    setattr(SizedFloat, f"__r{_name}__", _by_float(f"__r{_name}__"))
for _name in (
    "__lt__", "__le__", "__gt__", "__ge__", "__neg__", "__abs__", "__int__", "__trunc__", "__floor__", "__ceil__",
    "__round__", "hex", "is_integer", "as_integer_ratio",
):  # fmt: skip
    setattr(SizedFloat, _name, _by_float(_name))
