"""Ints that know what they are made of: what is computed with them is right wherever their conditions hold."""

import json
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.ir.dims import slice_bounds
from graphc.ir.parser import parse_dim
from graphc.ir.sizes import Conditions, Size, never_more, one_over, plain, real, typical, value_of

BINARY: list[Callable[[Any, Any], Any]] = [operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod]
COMPARED = [operator.lt, operator.le, operator.eq, operator.ne, operator.gt, operator.ge]


def run(steps: list[tuple[int, int, int, int]], a: int, b: int) -> list[Any]:
    """A computation that looks at its numbers on the way, as passes do."""
    numbers: list[Any] = [a, b, 1, 3, 16]
    seen: list[Any] = []
    for kind, left, right, which in steps:
        x, y = numbers[left % len(numbers)], numbers[right % len(numbers)]
        if kind == 0:
            made = BINARY[which % len(BINARY)]
            try:
                numbers.append(made(x, y))
            except ZeroDivisionError:
                numbers.append(7)
        elif kind == 1:
            seen.append(COMPARED[which % len(COMPARED)](x, y))
            numbers.append(x if seen[-1] else y)
        elif kind == 2:
            numbers.append(min(x, y) if which % 2 else max(x, y, 5))
        elif kind == 3:
            numbers.append(abs(x) + 1 if which % 2 else (-x if x else 4))
        elif kind == 4:
            numbers.append(x.bit_length() + y)
        else:
            numbers.extend(divmod(x, 4 + which))
    return [*numbers, *seen]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 40)] * 4).map(lambda t: (t[0] % 6, *t[1:])), max_size=12),
    st.integers(2, 40),
    st.integers(2, 40),
    st.lists(st.tuples(st.integers(2, 60), st.integers(2, 60)), min_size=1, max_size=12),
)
def test_what_is_computed_holds_for_all_sizes_that_meet_the_conditions(steps, a, b, others):
    conditions = Conditions({"size0": a, "size1": b})
    found = run(steps, conditions.known("size0"), conditions.known("size1"))
    assert [plain(item) if type(item) is Size else item for item in found] == run(steps, a, b)
    assert conditions.hold({"size0": a, "size1": b})
    for x, y in others:
        given_sizes = {"size0": x, "size1": y}
        if conditions.hold(given_sizes):
            values = conditions.all_sizes(given_sizes)
            now = [value_of(item.expr, values) if type(item) is Size else item for item in found]
            assert now == run(steps, x, y), f"{conditions}"


def sizes(**values: int) -> tuple[Conditions, list[int]]:
    conditions = Conditions(values)
    return conditions, [conditions.known(name) for name in values]


def test_text_is_that_of_the_polynomial():
    conditions, (n, m) = sizes(size0=7, size1=5)
    assert (str(n), str(n * 64), str(n * m + 1), f"{n - m}") == (
        "size0",
        "(size0*64)",
        "(size0*size1 + 1)",
        "(size0 - size1)",
    )
    assert (str(n * m), str(n * n), str(-n)) == ("(size0*size1)", "(size0*size0)", "(-size0)")
    assert str(n // 2) == "size2" and str(n % 4 + n // 2) == "(size2 + size3)"
    assert type(n * 3 // n) is int and n - n == 0 and type(n * 0) is int
    assert conditions.all_sizes({"size0": 9, "size1": 2}) == {"size0": 9, "size1": 2, "size2": 4, "size3": 1}


@pytest.mark.parametrize(
    "look, holds, fails",
    [
        (lambda n: n * 48 <= 2048, range(2, 43), range(43, 60)),
        (lambda n: n * 64 == 448, [7], [6, 8]),
        (lambda n: n % 4 == 3, [3, 11], [8, 9]),
        (lambda n: n.bit_length(), [4, 5, 6, 7], [3, 8]),
        (lambda n: bool(n - 9), [2, 8, 10], [9]),
        (lambda n: max(n, 16), [2, 15], [17]),
        (lambda n: sorted([n * 2, 20]), [9, 10], [11]),
        (float, [7], [6, 8]),
        (int, [7], [6, 8]),
        (lambda n: n / 2, [7], [6, 8]),
        (lambda n: n < 7.5, [7], [6, 8]),
        (lambda n: n & 1, [7], [5, 9]),
        (lambda n: f"{n:04d}", [7], [8]),
        (pickle.dumps, [7], [8]),
    ],
)
def test_whoever_looks_leaves_a_condition(look, holds, fails):
    conditions, (n,) = sizes(size0=7)
    look(n)
    assert all(conditions.hold({"size0": value}) for value in holds)
    assert not any(conditions.hold({"size0": value}) for value in fails)


def test_equal_polynomials_are_equal_without_condition():
    conditions, (n, m) = sizes(size0=7, size1=7)
    assert n * 64 == 32 * n + n * 32 and {n * 2: "found"}[n + n] == "found"
    assert not str(conditions)
    assert n == m and conditions.hold({"size0": 9, "size1": 9}) and not conditions.hold({"size0": 9, "size1": 8})


def test_division_by_what_may_be_none():
    conditions, (n,) = sizes(size0=7)
    assert 21 // (n - 5) == 10
    assert not conditions.hold({"size0": 5}) and conditions.all_sizes({"size0": 8}) == {"size0": 8, "size1": 7}
    with pytest.raises(ZeroDivisionError):
        1 % (n - 7)


def test_known_to_be_at_most():
    conditions, (n, m) = sizes(size0=7, size1=5)
    assert never_more(n, n * 2) and never_more(n * 64, n * m * 32) and never_more(4, n * 2) and never_more(3, 3)
    assert not never_more(n, m) and not never_more(5, n) and not never_more(n * 2, n) and not never_more(4, 3)
    assert not str(conditions)
    assert not never_more(1, n // 2), "what a division gives may be anything"


def test_what_is_typical_depends_on_bits_alone():
    found = set()
    for size in (16, 21, 31):
        conditions, (n,) = sizes(size0=size)
        found.add((typical(n), typical(n * n - 3), typical(n // 5), typical(1 % (n - 23)), typical(8)))
        assert typical(n // (n - 24)) == size // (size - 24), "where nothing is typical, what there is"
        assert all(" = " in line or line.endswith("!= 0") for line in str(conditions).splitlines())
    assert found == {(24, 573, 4, 0, 8)}
    assert [typical(sizes(size0=size)[1][0]) for size in (2, 3, 4, 7, 8)] == [3, 3, 6, 6, 12]


@given(
    st.lists(st.tuples(*[st.integers(0, 40)] * 4).map(lambda t: (t[0] % 6, *t[1:])), max_size=12),
    st.tuples(st.integers(2, 99), st.integers(2, 99)),
    st.lists(st.tuples(st.integers(2, 99), st.integers(2, 99)), min_size=1, max_size=8),
)
@settings(max_examples=60)
def test_conditions_as_text(steps, sizes, others):
    conditions = Conditions(dict(zip("ab", sizes, strict=True)))
    run(steps, conditions.known("a"), conditions.known("b"))
    again = Conditions.from_plain(json.loads(json.dumps(conditions.to_plain())), parse_dim)
    assert str(again) == str(conditions)
    for other in others:
        given = dict(zip("ab", other, strict=True))
        assert again.hold(given) == conditions.hold(given)


@given(st.integers(2, 20), st.integers(-30, 30) | st.none(), st.integers(-30, 30) | st.none(), st.integers(2, 20))
def test_bounds_of_slices(size, start, stop, other):
    assert slice_bounds(start, stop, size) == slice(start, stop).indices(size)[:2]
    conditions = Conditions({"a": size})
    found = slice_bounds(start, stop, conditions.known("a"))
    if conditions.hold({"a": other}):
        values = [value_of(bound.expr, {"a": other}) if type(bound) is Size else bound for bound in found]
        assert tuple(values) == slice(start, stop).indices(other)[:2]


def test_floats_that_are_made_of_sizes():
    conditions = Conditions({"a": 12})
    n = conditions.known("a")
    whole, part = real(n), one_over(n * 4)
    assert (str(whole), str(part)) == ("a", "1/(a*4)")
    assert 1 / (n * 4) == part and whole == real(n) and whole != real(n + 1) and conditions.hold({"a": 13})
    assert (plain(n), float.__add__(part, 0.0)) == (12, 1 / 48)
    for look in (
        lambda: whole * 0.5,
        lambda: 0.5 - part,
        lambda: float(whole),
        lambda: f"{part:.3f}",
        lambda: part < 1,
    ):
        conditions = Conditions({"a": 12})
        whole, part = real(conditions.known("a")), one_over(conditions.known("a"))
        look()
        assert not conditions.hold({"a": 13}) and conditions.hold({"a": 12})
