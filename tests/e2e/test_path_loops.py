"""Loops over data: eager's numbers for any number of turns, from programs whose number does not grow with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import graphc
from graphc.errors import FallbackWarning
from graphc.settings import override


@pytest.fixture(autouse=True)
def _nothing_falls_back() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        yield


def _same(ours: Any, eager: Any) -> None:
    torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-5)


def _newton(x: torch.Tensor) -> torch.Tensor:
    root = torch.ones_like(x)
    while ((root * root - x) / x).abs().max() > 1e-5:
        root = (root + x / root) / 2
    return root


def _power(matrix: torch.Tensor, vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    while True:
        product = matrix @ vector
        product = product / product.norm()
        change, vector = (product - vector).norm(), product
        if change < 1e-4:
            return vector, vector @ matrix @ vector


def _count_down(x: torch.Tensor) -> torch.Tensor:
    while x.max() > 1:
        x = x - 1
    return x


def _nested(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    while y.max() > 1:
        while x.max() > 1:
            x = x / 2
        y, x = y - 1, x + y
    return x, y


def _write_in_place(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    view = out[:2]
    while out.sum() < x.sum():
        view += 1
        out[2] += view[0]
    return view


def _collatz(n: torch.Tensor) -> torch.Tensor:
    steps = torch.zeros((), dtype=torch.int64)
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps


class _Countdown(nn.Module):
    """Its state is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while self.total.max() < x.max():
            self.total = self.total + 1
        self.total = self.total * 0
        return x * 2


def _ones(*sizes: float) -> list[tuple[torch.Tensor, ...]]:
    return [(torch.ones(3) * size,) for size in sizes]


class _Solver(nn.Module):
    """The loop is in a helper, the decision in another, and a module is called in each turn."""

    def __init__(self) -> None:
        super().__init__()
        self.shrink = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh())
        nn.init.eye_(self.shrink[0].weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.solve(x) * 2

    def solve(self, x: torch.Tensor) -> torch.Tensor:
        while not self.is_small(x):
            x = self.shrink(x)
        return x

    def is_small(self, x: torch.Tensor) -> bool:
        return bool(x.max() < 0.2)


_CLOSING: list[tuple[Callable[..., Any], list[tuple[torch.Tensor, ...]], int]] = [
    (_newton, _ones(1, 9, 1e4, 1e-6, 3e7), 5),
    (_power, [(torch.diag(torch.tensor([1.0, s, 0.1])), torch.ones(3)) for s in (0.05, 0.5, 0.9, 0.99)], 5),
    (_count_down, _ones(8, 1, 2, 3, 1000, 517, 12), 5),
    (_nested, [(torch.ones(3) * a, torch.ones(3) * b) for a, b in ((9, 7), (99, 3), (1, 1), (5, 40))], 16),
    (_write_in_place, [(torch.ones(3) * s, torch.zeros(3)) for s in (10, 1, 100, 3000)], 6),
    (_collatz, [(torch.tensor(n),) for n in (6, 7, 27, 1, 97, 871)], 20),
    (_Countdown(), _ones(9, 1, 300, 44), 8),
    (_Solver(), _ones(1, 0.1, 0.21, 5, 0.3), 6),
]


@pytest.mark.parametrize(("fn", "calls", "most"), _CLOSING, ids=lambda item: getattr(item, "__name__", None))
def test_a_loop_closes(fn: Any, calls: list[tuple[torch.Tensor, ...]], most: int) -> None:
    compiled = graphc.compile(fn)
    with torch.no_grad():
        for arguments in calls:
            ours, theirs = [a.clone() for a in arguments], [a.clone() for a in arguments]
            _same(compiled(*ours), fn(*theirs))
            _same(ours, theirs)
        grown = compiled.stats().compiles
        for arguments in calls[::-1]:
            _same(compiled(*(a.clone() for a in arguments)), fn(*(a.clone() for a in arguments)))
    stats = compiled.stats()
    assert stats.compiles <= grown + 1, "the same calls again need at most the program of a whole path"
    assert stats.compiles <= most and stats.eager_calls == 0, stats


def _counting(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    turns = 0
    while x.max() > 1:
        x = x - 1
        turns += 1
    return x, turns


def _at_most(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    for turn in range(100):
        x = x / 2
        if x.max() < 1:
            break
    return x, turn


def _keeping(x: torch.Tensor) -> torch.Tensor:
    seen = []
    while x.max() > 1:
        x = x - 1
        seen.append(x)
    return torch.stack(seen).sum(0) if seen else x


def _other_in_turn_ten(x: torch.Tensor) -> torch.Tensor:
    turns = 0
    while x.max() > 1:
        x = x - (2 if turns == 10 else 1)
        turns += 1
    return x


class _Iterating:
    """The position of its iterator decides; a variable does not show it."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        for factor in [1.0] * 12 + [3.0] * 50:
            x = x - factor
            del factor
            if x.max() < 1:
                break
        return x


@pytest.mark.parametrize(
    ("fn", "most"),
    [(_counting, 5), (_at_most, 5), (_other_in_turn_ten, 8), (_Iterating(), 7)],
    ids=["counting", "at_most", "other_in_turn_ten", "iterating"],
)
def test_turns_that_python_counts_share_programs(fn: Any, most: int) -> None:
    compiled = graphc.compile(fn)
    with torch.no_grad():
        for size in (5, 1, 2, 30, 29, 7, 90, 30):
            x = torch.ones(3) * size
            _same(compiled(x), fn(x))
    stats = compiled.stats()
    assert stats.compiles <= most and stats.eager_calls == 0, stats


TURNS = 0


def _bump() -> None:
    global TURNS
    TURNS += 1


class _Counts:
    turns = 0


class _Hiding(nn.Module):
    """Counts its turns where no variable of a running function shows it, and acts on that."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def count(self) -> int:
        if self.where == "class":
            _Counts.turns += 1
            return _Counts.turns
        _bump()
        return TURNS

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        global TURNS
        TURNS = _Counts.turns = 0
        while x.max() > 1:
            x = x - 1
            if self.count() == 12:
                x = x * 0.5
        return x


@pytest.mark.parametrize("where", ["global", "class"])
def test_hidden_counters_are_no_equal_states(where: str) -> None:
    eager, compiled = _Hiding(where), graphc.compile(_Hiding(where))
    with torch.no_grad():
        for size in (6, 40, 9, 50):
            _same(compiled(torch.ones(3) * size), eager(torch.ones(3) * size))


def test_what_turns_have_made_is_kept() -> None:
    compiled = graphc.compile(_keeping)
    with torch.no_grad():
        for size in (5, 1, 9, 5):
            _same(compiled(torch.ones(3) * size), _keeping(torch.ones(3) * size))
    assert compiled.stats().eager_calls == 0


def test_random_numbers_in_a_loop() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        while x.max() > 1:
            x = x - torch.rand(3)
        return x + torch.rand(3)

    compiled = graphc.compile(fn, numerics="eager")
    with torch.no_grad():
        for size in (4, 40, 7, 40):
            seen = []
            for call in (fn, compiled):
                torch.manual_seed(size)
                seen.append((call(torch.ones(3) * size), torch.rand(2)))
            _same(*seen)
    assert compiled.stats().eager_calls == 0


def test_explain_shows_a_loop_once() -> None:
    compiled = graphc.compile(_count_down)
    with torch.no_grad():
        compiled(torch.ones(3) * 50)
        text = str(compiled.explain(torch.ones(3) * 50))
    assert "while x.max() > 1:" in text and __file__ in text and ": a loop" in text
    counting = graphc.compile(_counting)
    with torch.no_grad():
        for size in (50, 20):
            counting(torch.ones(3) * size)
        tree = str(counting.explain(torch.ones(3) * 50)).partition("the path of")[0]
    assert "turns of a loop" in tree and "False after 19, 49 turns -> " in tree.replace("18, 48", "19, 49")
    assert len(tree.splitlines()) < 16, tree


# gradients


def test_gradients_through_a_loop() -> None:
    weight = nn.Parameter(torch.eye(3) * 0.7)

    def fn(x: torch.Tensor) -> torch.Tensor:
        while x.norm() > 1:
            x = torch.tanh(x @ weight)
        return x.square().sum()

    compiled = graphc.compile(fn)
    for size in (1, 0.1, 5, 1, 5):
        found = []
        for call in (fn, compiled):
            weight.grad = None
            loss = call(torch.ones(3) * size)
            if loss.requires_grad:
                loss.backward()
            found.append((loss.detach(), weight.grad))
        _same(*found)
    assert compiled.stats().eager_calls == 0


def test_gradients_behind_a_loop_without_any() -> None:
    layer = nn.Linear(3, 3)

    def fn(x: torch.Tensor) -> torch.Tensor:
        while x.max() > 1:
            x = x / 2
        return layer(x).square().sum()

    compiled = graphc.compile(fn)
    for size in (100, 1, 3, 5000, 100, 900):
        found = []
        for call in (fn, compiled):
            layer.zero_grad()
            loss = call(torch.ones(3) * size)
            loss.backward()
            found.append((loss.detach(), layer.weight.grad.clone()))
        _same(*found)
    assert compiled.stats().eager_calls == 0


def test_a_training_step_with_a_loop() -> None:
    def make(compile_: Any) -> Any:
        torch.manual_seed(0)
        layer = nn.Linear(3, 3)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)

        @compile_
        def step(x: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad()
            while x.norm() > 2:
                x = torch.tanh(layer(x)) * 1.5
                if x.sum() < 0:
                    x = -x
            loss = (layer(x) - 1).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        return step, layer

    (eager, theirs), (step, layer) = make(lambda fn: fn), make(graphc.compile)
    for turn in range(12):
        x = torch.ones(3) * (turn % 4 + 0.5)
        _same(step(x), eager(x))
    _same(dict(layer.named_parameters()), dict(theirs.named_parameters()))
    assert step.stats().eager_calls == 0


# bounds


def test_the_number_of_programs_is_bounded() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(3)
        while x.max() > 1:
            x = torch.cat((x - 1, x))[: len(x) + 1]  # another shape in each turn
        return x.sum() + noise

    compiled = graphc.compile(fn, numerics="eager")
    with (
        override(max_paths=6),
        pytest.warns(FallbackWarning, match="take 6 programs already .GRAPHC_MAX_PATHS.") as seen,
    ):
        for size in (2, 9, 3, 9, 2):
            torch.manual_seed(size)
            ours = compiled(torch.ones(1) * size)
            torch.manual_seed(size)
            _same(ours, fn(torch.ones(1) * size))
    assert __file__ in str(seen[0].message)
    assert compiled.stats().eager_calls >= 2
    assert compiled.stats().compiles <= 6


def test_the_number_of_turns_kept_is_bounded() -> None:
    compiled = graphc.compile(_counting)
    with (
        override(max_paths=6),
        torch.no_grad(),
        pytest.warns(FallbackWarning, match="turns through . programs already"),
    ):
        for size in (100, 100, 500, 500):
            _same(compiled(torch.ones(3) * size), _counting(torch.ones(3) * size))
    assert compiled.stats().eager_calls == 2
