"""Numbers that a function draws from the generators of Python and numpy: compiled, the very ones that eager draws."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable
from random import choice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphc
from graphc.errors import EagerOnlyError, FallbackWarning

CALLS = 12


def seed() -> None:
    random.seed(0), np.random.seed(0), torch.manual_seed(0)


def runs(make: Callable[[], Any], calls: int = CALLS) -> Any:
    """Calls in eager and compiled give the same, and leave the generators alike; the compiled function."""
    found = []
    for compiler in (lambda fn: fn, lambda fn: graphc.compile(fn, backend="interpret", numerics="eager")):
        seed()
        step = compiler(make())
        results = [step(torch.arange(3.0) - 1 + call % 2) for call in range(calls)]
        found.append((results, random.random(), np.random.rand()))
    torch.testing.assert_close(found[1], found[0])
    return step


def own_generators() -> Any:
    has = SimpleNamespace(rng=np.random.default_rng(0), old=np.random.RandomState(1), python=random.Random(2))
    return lambda x: x * has.rng.beta(1.0, 1.0) + has.old.rand() - has.python.gauss(0.0, 1.0) + has.rng.integers(9)


def dynamic_net() -> nn.Module:
    """As the one of PyTorch's tutorial: as many terms as are drawn, with weights that are used again."""

    class DynamicNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(())), nn.Parameter(torch.randn(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a + self.b * x
            for exponent in range(4, random.randint(4, 6)):
                y = y + self.b * x**exponent
            return y

    return DynamicNet()


def mixup() -> Any:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(x: torch.Tensor) -> torch.Tensor:
        portion = np.random.beta(1.0, 1.0)
        loss = model(portion * x + (1 - portion) * x.flip(0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def layer_of_many() -> Any:
    layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])
    return lambda x: random.choice(layers)(x) * choice([1, 2])


def stochastic_depth() -> Any:
    layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])

    def forward(x: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            if random.random() < 0.5:
                x = x + layer(x) / np.random.uniform(0.5, 1.0)
        return x

    return forward


def behind_a_decision() -> Any:
    """The path of the calls before is tried first: what it has drawn is drawn back where it is not this call's."""

    def step(x: torch.Tensor) -> torch.Tensor:
        x = x * random.random()
        return x * random.random() + np.random.normal() if x.sum() > 0 else x

    return step


def random_crop() -> Any:
    def crop(x: torch.Tensor) -> torch.Tensor:
        start = random.randint(0, 40)
        return x.repeat(20)[start : start + 3] * 2

    return crop


COMPILED: dict[str, tuple[Callable[[], Any], int]] = {
    "mixup": (mixup, 1),
    "branch": (lambda: lambda x: x * 2 if random.random() < 0.5 else x + random.randint(0, 9), 5),
    "own generators": (own_generators, 1),
    "dynamic net": (dynamic_net, 3),
    "layer of many": (layer_of_many, 6),
    "choice of numpy": (lambda: lambda x: x * np.random.choice([0.5, 0.25], p=[0.75, 0.25]) + np.random.choice(40), 2),
    "stochastic depth": (stochastic_depth, 8),
    "decision": (behind_a_decision, 4),
    "crop": (random_crop, 2),
    "coin": (lambda: lambda x: -x if random.getrandbits(1) and np.random.binomial(1, 0.5) else x, 4),
}


@pytest.mark.parametrize("name", COMPILED)
def test_numbers_are_drawn_for_each_call(name: str) -> None:
    """From the generators, in eager's order, in programs whose number depends on what Python does with them alone."""
    make, most = COMPILED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        stats = runs(make, 30).stats()
    assert not stats.eager_calls and stats.compiles <= most, stats


def test_a_turn_of_calls_that_takes_one_path_goes_back() -> None:
    """Three calls on one path, then one on another: the program of the whole path has drawn too much by then."""
    step = graphc.compile(behind_a_decision(), backend="interpret")
    signs = [1, 1, 1, 1, -1, 1, -1, -1]
    seed()
    found = [step(torch.full((2,), float(sign))) for sign in signs]
    assert step.stats().eager_calls == 0
    seed()
    torch.testing.assert_close(found, [step.target(torch.full((2,), float(sign))) for sign in signs])


def of_any_length() -> Any:
    return lambda x: x.repeat(20)[: random.randint(1, 40)]


def shuffled() -> Any:
    def minibatch(x: torch.Tensor) -> torch.Tensor:
        order = list(range(3))
        random.shuffle(order)
        return x[order]

    return minibatch


EAGER: dict[str, tuple[Callable[[], Any], str]] = {
    "wide": (of_any_length, "Python looks at what random.randint"),
    "array": (
        lambda: lambda x: x[torch.from_numpy(np.random.permutation(3))],
        r"draws from numpy.random.permutation",
    ),
    "in place": (shuffled, r"draws from random.shuffle"),
    "system": (lambda rng=random.SystemRandom(): lambda x: x * 0 * rng.random(), "draws from random.random"),
    "sample": (lambda: lambda x: x * random.sample(range(9), 2)[0], r"draws from random.sample"),
    "traced": (lambda: lambda x: x * random.uniform(0, x.sum().item()), "draws from random"),
}


@pytest.mark.parametrize("name", EAGER)
def test_what_programs_cannot_draw_runs_eager(name: str) -> None:
    make, message = EAGER[name]
    with pytest.warns(FallbackWarning, match=message):
        stats = runs(make).stats()
    assert stats.eager_calls == CALLS


def test_arguments_and_attributes_that_are_generators() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rng = random.Random(0)

        def forward(self, x: torch.Tensor, rng: Any) -> Any:
            return x * self.rng.random() + rng.normal(), rng, rng is self.rng

    module, rng = Noisy(), np.random.default_rng(0)
    compiled: Any = graphc.compile(module, backend="interpret")
    found = [compiled(torch.ones(2), rng) for _ in range(4)]
    assert all(given is rng and not same for _, given, same in found)
    assert compiled.stats().compiles == 1 and type(module.rng) is random.Random
    module.rng, other = random.Random(0), np.random.default_rng(0)
    torch.testing.assert_close([y for y, *_ in found], [module(torch.ones(2), other)[0] for _ in range(4)])


def test_questions_and_failing_calls_draw_nothing() -> None:
    @graphc.compile(backend="interpret")
    def step(x: torch.Tensor) -> torch.Tensor:
        return x * random.random() @ torch.ones(3)

    step(torch.ones(3))
    before = random.getstate()
    step.graph(torch.ones(3))
    step.explain(torch.ones(2, 3))
    with pytest.raises(RuntimeError):
        step(torch.ones(2))
    assert random.getstate() == before
    with pytest.raises(EagerOnlyError, match="draws from random"):
        graphc.trace(step, torch.ones(3))


def test_threads_draw_for_their_own_calls() -> None:
    """Each with a generator of its own: the numbers of one thread never reach the calls of another."""
    step = graphc.compile(lambda x, rng: x * rng.uniform(1.0, 2.0) + rng.random(), backend="interpret")
    wrong: list[Any] = []

    def work(number: int) -> None:
        rng, same = random.Random(number), random.Random(number)
        for _ in range(50):
            found, wanted = step(torch.ones(2), rng), same.uniform(1.0, 2.0) + same.random()
            if not torch.allclose(found, torch.full((2,), wanted)):
                wrong.append((number, found, wanted))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_draws_that_raise() -> None:
    """As in eager, in the capture and in later calls, and the next draw is the generator's next."""
    items = [1.0, 2.0]

    def step(x: torch.Tensor) -> torch.Tensor:
        return x * random.random() * random.choice(items)

    compiled: Any = graphc.compile(step, backend="interpret")
    for call in range(4):
        items[:] = [] if call % 2 else [1.0, 2.0]
        found: list[Any] = []
        for function in (compiled, step):
            random.seed(call)
            try:
                found.append(function(torch.ones(2)))
            except IndexError as error:
                found.append(type(error))
        if call % 2:
            assert found == [IndexError, IndexError]
        else:
            torch.testing.assert_close(*found)
