"""Branches that only guard against errors are checked by the program, and take none of their own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

import graphc

BACKENDS = ("interpret", pytest.param("c", marks=pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")))


def plain(x):
    if x.min() < 0:
        raise ValueError(f"{x.min()} is negative")
    return x * 2


def otherwise(x):
    if (x >= 0).all():
        y = x * 2
    else:
        raise ValueError("negative")
    return y


def negated(x):
    if not torch.all(x >= 0):
        raise ValueError("negative")
    return x * 2


def both(x):
    if x.dim() == 1 and x.numel() > 1 and x.min() < 0:
        raise ValueError("negative")
    return x * 2


def asserted(x):
    assert x.min().item() >= 0, "negative"
    return x * 2


def checked(x):
    torch._check((x >= 0).all().item(), lambda: "negative")
    return x * 2


def in_a_block(x):
    with torch.no_grad():
        if x.min() < 0:
            detail = "negative"
            raise ValueError(detail)
    return x * 2


def by_distribution(x):
    return torch.distributions.Poisson(x, validate_args=True).log_prob(torch.ones(3))  # torch.compile turns it off


FORMS = (plain, otherwise, negated, both, asserted, checked, in_a_block, by_distribution)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fn", FORMS, ids=lambda fn: fn.__name__)
def test_one_program_and_eagers_error(fn: Callable[..., Any], backend: str) -> None:
    compiled = graphc.compile(fn, backend=backend)
    good, bad = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.5, -1.0, 2.0])
    for _ in range(2):
        torch.testing.assert_close(compiled(good), fn(good))
        with pytest.raises(Exception) as theirs:
            fn(bad)
        with pytest.raises(type(theirs.value)) as ours:
            compiled(bad)
        if fn is not asserted:  # pytest adds addresses to the message
            assert str(ours.value) == str(theirs.value)
    stats = compiled.stats()
    assert (stats.compiles, stats.paths, stats.eager_calls, stats.hits) == (1, 0, 2, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_failed_check_changes_nothing(backend: str) -> None:
    state = torch.zeros(4)

    def fn(x):
        state.add_(x)
        noise = torch.rand(4)
        if state.sum() > 10:
            raise ValueError("too much")
        return noise + state

    compiled = graphc.compile(fn, backend=backend, numerics="eager")
    assert torch.equal(compiled(torch.ones(4)) - state >= 0, torch.ones(4, dtype=torch.bool))
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="too much"):
        compiled(torch.full((4,), 5.0))
    after = torch.rand(1)
    assert torch.equal(state, torch.full((4,), 6.0))  # eager has written once, and the program not at all
    torch.manual_seed(0)
    torch.rand(4)
    assert torch.equal(after, torch.rand(1))


def test_gradients_go_through_one_program() -> None:
    def fn(x):
        if x.isnan().any():
            raise ValueError("nan")
        return (x * x).sum()

    compiled = graphc.compile(fn, backend="interpret")
    x = torch.randn(5, requires_grad=True)
    compiled(x).backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())
    with pytest.raises(ValueError, match="nan"):
        compiled(x * torch.nan)
    assert compiled.stats().compiles == 1


def test_an_error_that_is_caught_makes_it_a_decision() -> None:
    def refuse(x):
        if x.sum() < 0:
            raise ValueError("negative")
        return x

    @graphc.compile(backend="interpret")
    def fn(x):
        try:
            return refuse(x) * 2
        except ValueError:
            return -x

    for _ in range(3):
        assert torch.equal(fn(torch.ones(2)), torch.full((2,), 2.0))
        assert torch.equal(fn(-torch.ones(2)), torch.ones(2))
    stats = fn.stats()
    assert stats.eager_calls == 1 and stats.paths == 2


def test_an_error_caught_in_the_same_function_is_a_decision_at_once() -> None:
    @graphc.compile(backend="interpret")
    def fn(x):
        try:
            if x.sum() < 0:
                raise ValueError("negative")
        except ValueError:
            return -x
        return x * 2

    assert torch.equal(fn(-torch.ones(2)), torch.ones(2))
    assert torch.equal(fn(torch.ones(2)), torch.full((2,), 2.0))
    assert (fn.stats().eager_calls, fn.stats().paths) == (0, 2)


def test_behind_a_decision() -> None:
    @graphc.compile(backend="interpret")
    def fn(x):
        if x.max() > 10:
            raise ValueError("large")
        y = x + 1 if x.sum() > 0 else x - 1
        if y.min() < -10:
            raise ValueError("small")
        return y

    assert torch.equal(fn(torch.ones(2)), torch.full((2,), 2.0))
    assert torch.equal(fn(-torch.ones(2)), torch.full((2,), -2.0))
    for bad, message in ((11.0, "large"), (-11.0, "small")):
        with pytest.raises(ValueError, match=message):
            fn(torch.full((2,), bad))
    assert fn.stats().paths == 2


def _match(condition, message):
    torch._check(condition.item(), lambda: message)


def test_text_in_messages_is_no_decision() -> None:
    @graphc.compile(backend="interpret")
    def fn(x):
        count = (x > 0).sum()
        _match(count < 3, f"{count} are too many of {x.numel()}")
        return x * 2

    for count in (0, 1, 2):
        x = torch.tensor([1.0] * count + [-1.0] * (4 - count))
        assert torch.equal(fn(x), x * 2)
    with pytest.raises(RuntimeError, match="4 are too many of 4"):
        fn(torch.ones(4))
    assert fn.stats().compiles == 1


def _store(table, name, value):
    table[name] = value


def _call(table, name, value):
    return table[name](value)


def test_text_that_is_more_than_a_message_has_its_numbers() -> None:
    table: dict[str, Any] = {"f1": torch.sin, "f2": torch.cos}

    @graphc.compile(backend="interpret")
    def by_name(x, n):
        return _call(table, f"f{n}", x)

    @graphc.compile(backend="interpret")
    def named(x, n):
        found = {}
        _store(found, f"f{n}", x * 2)
        return found

    @graphc.compile(backend="interpret")
    def applied(x, n):
        result = []
        _append(result, f"f{n}", x)
        return result[0]

    def _append(result, name, x):
        result.append(table[name](x))

    x = torch.ones(2)
    assert torch.equal(by_name(x, torch.tensor(1)), x.sin()) and torch.equal(by_name(x, torch.tensor(2)), x.cos())
    assert list(named(x, torch.tensor(7))) == ["f7"] and list(named(x, torch.tensor(8))) == ["f8"]
    assert torch.equal(applied(x, torch.tensor(1)), x.sin()) and torch.equal(applied(x, torch.tensor(2)), x.cos())
