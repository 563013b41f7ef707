"""Numbers of Python's in a step: learning rates, arguments that count, classes of numbers, numpy's."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphc

Step = Callable[..., Any]
STEPS = 5


def runs(make: Callable[[], Step], *arguments: Callable[[int], Any]) -> tuple[list[Any], list[Any], Any]:
    """What calls give, in eager and compiled, each from the same seeds, and the compiled function."""
    given = []
    for compiled in (False, True):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        step: Any = graphc.compile(make(), backend="interpret") if compiled else make()
        given.append([step(*(argument(turn) for argument in arguments)) for turn in range(STEPS)])
    return given[0], given[1], step


def training(rates: Callable[[Any], Any]) -> Callable[[], Step]:
    """A step that gives its loss and what `rates` gives of the optimizer, a model, a schedule and a list."""

    def make() -> Step:
        model = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        has = SimpleNamespace(optimizer=optimizer, schedule=schedule, log=[])

        def step(x: torch.Tensor) -> Any:
            first = optimizer.param_groups[0]["lr"]
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach(), first, rates(has)

        return step

    return make


def logged(has: Any) -> Any:
    rate = has.optimizer.param_groups[0]["lr"]
    has.log.append(rate)
    has.schedule.step()
    return rate


def last(has: Any) -> Any:
    rate = has.schedule.get_last_lr()[0]
    has.schedule.step()
    return rate


def decayed(has: Any) -> Any:
    for group in has.optimizer.param_groups:
        group["lr"] *= 0.5
    return has.optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("rates", [logged, last, decayed], ids=lambda rates: rates.__name__)
def test_learning_rates_that_the_step_reads_and_sets(rates: Callable[[Any], Any]) -> None:
    """The first step makes what only it can make; after that there is one program, whatever the rate."""
    wanted, found, step = runs(training(rates), lambda _: torch.ones(3, 4))
    torch.testing.assert_close(found, wanted)
    assert step.stats().compiles == 1
    assert len({rate for _, _, rate in found}) == len({first for _, first, _ in found}) == STEPS


def test_a_learning_rate_is_read_without_a_step() -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    scaled: Any = graphc.compile(lambda x: x * optimizer.param_groups[0]["lr"], backend="interpret")
    for rate in (0.5, 0.25, 0.125):
        optimizer.param_groups[0]["lr"] = rate
        assert scaled(torch.ones(2)).tolist() == [rate, rate]
    assert scaled.stats().compiles == 1 and optimizer.param_groups[0]["lr"] == 0.125
    assert "param_groups" not in vars(torch.optim.Optimizer)


def test_state_stays_where_no_step_is_made() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter], 0.5)
    parameter.grad = torch.ones(2)
    optimizer.step()
    graphc.compile(lambda x: x * optimizer.param_groups[0]["lr"], backend="interpret")(torch.ones(2))
    assert sorted(optimizer.state[parameter]) == ["exp_avg", "exp_avg_sq", "step"]


def test_what_is_set_is_a_number_for_python() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.5)

    @graphc.compile(backend="interpret")
    def set_rate(x: torch.Tensor, rate: float) -> torch.Tensor:
        for group in optimizer.param_groups:
            group["lr"] = rate
        return x + 1

    for rate in (0.5, 0.25, 0.75):
        set_rate(torch.ones(2), rate)
        assert type(optimizer.param_groups[0]["lr"]) is float and optimizer.param_groups[0]["lr"] == rate


def test_traced_numbers_are_of_pythons_classes() -> None:
    def classes(x: torch.Tensor, factor: float) -> Any:
        numbers = x.sum().item(), x.argmax().item(), (x > 0).any().item(), factor
        return [[isinstance(number, kind) for kind in (int, float, bool)] for number in numbers]

    wanted, found, _ = runs(lambda: classes, lambda _: torch.ones(2), lambda turn: 0.5 + turn)
    assert found == wanted


def test_traced_numbers_among_numbers_of_numpys() -> None:
    def mixed(x: torch.Tensor, factor: float) -> Any:
        total = x.sum().item()
        return x * np.float64(2.0) * factor, np.float64(3.0) - factor, total * np.float64(2.0), np.float64(2.0) / total

    wanted, found, step = runs(lambda: mixed, lambda _: torch.ones(2), lambda turn: 0.5 + turn)
    assert found[-1][1:] == wanted[-1][1:] and torch.equal(found[-1][0], wanted[-1][0])
    assert step.stats().compiles == 2  # the factor is an input from the second call on


def test_functions_of_numpys_take_the_value() -> None:
    wanted, found, _ = runs(lambda: lambda x, f: x * np.log(f), lambda _: torch.ones(2), lambda turn: 0.5 + turn)
    torch.testing.assert_close(found, wanted)


class Mix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.distribution = torch.distributions.Beta(torch.ones(1), torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (0.5 if float(self.distribution.sample()) < 2 else 1.0)


def test_tensors_in_objects_of_a_module_are_no_numbers() -> None:
    """A place at which a path's first program looks a tensor up is one for the next programs too."""
    mix: Any = graphc.compile(Mix(), backend="interpret")
    assert [mix(torch.ones(2)).tolist() for _ in range(2)] == [[0.5, 0.5]] * 2


def test_arguments_that_count_become_inputs() -> None:
    """With the third value, so that a choice among two has a program each."""

    def step(x: torch.Tensor, turn: int, unused: int) -> Any:
        scaled = x * turn + x[turn]
        if turn % 2 == 0:
            scaled = scaled / 2
        return scaled, turn + 1, isinstance(turn, int)

    wanted, found, compiled = runs(lambda: step, lambda _: torch.arange(8.0), lambda turn: turn, lambda turn: turn)
    torch.testing.assert_close(found, wanted)
    programs = compiled.stats().compiles
    for turn in range(STEPS, 8):
        torch.testing.assert_close(compiled(torch.arange(8.0), turn, 10 * turn), step(torch.arange(8.0), turn, 0))
    assert compiled.stats().compiles <= programs + 1 and not compiled.stats().eager_calls


def test_counters_are_indices() -> None:
    class Ring(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(4))
            self.place = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen[self.place] = x
            self.place = (self.place + 1) % 4
            return self.seen[self.place] + self.seen[-1]

    wanted, found, step = runs(Ring, lambda turn: torch.tensor(turn + 1.0))
    torch.testing.assert_close(found, wanted)
    assert step.compiled.stats().compiles == 2


def test_arguments_that_are_sizes_stay_constants() -> None:
    def cut(x: torch.Tensor, size: int) -> torch.Tensor:
        return torch.zeros(size, 2) + x[:size] + x.view(-1, 2).repeat(size, 1)[:size] * len(range(size))

    wanted, found, _ = runs(lambda: cut, lambda _: torch.ones(8, 2), lambda turn: turn + 1)
    torch.testing.assert_close(found, wanted)


def test_floats_of_numpys_become_inputs() -> None:
    wanted, found, step = runs(lambda: lambda x, f: x * f, lambda _: torch.ones(2), lambda turn: np.exp(-0.5 * turn))
    torch.testing.assert_close(found, wanted)
    assert step.stats().compiles == 2


def scheduled() -> Step:
    state = {"step": 0}

    def step(x: torch.Tensor) -> Any:
        state["step"] += 1
        done = state["step"] / 10
        rate = 0.5 * (1 + math.cos(math.pi * done)) * math.exp(-done) + math.pow(0.9, state["step"])
        return x * rate, math.log(1 + done, 2), math.sqrt(done), math.tanh(done), np.log(done)

    return step


def test_functions_of_math_are_computed_in_each_call() -> None:
    wanted, found, step = runs(scheduled, lambda _: torch.ones(3))
    torch.testing.assert_close(found, wanted)
    assert step.stats().compiles == 2


@pytest.mark.parametrize("name", ["sqrt", "log", "log1p", "exp", "cos"])
def test_functions_of_math_raise_as_in_eager(name: str) -> None:
    """The numbers for which they raise, or give infinity and NaN, are known when the program runs."""
    function = getattr(math, name)
    step: Any = graphc.compile(lambda x, number: x * getattr(math, name)(number), backend="interpret")
    for number in (1.0, 2.0, -2.0, 0.0, 800.0, math.inf, math.nan, 3.0, 4.0):
        try:
            wanted = torch.ones(2) * function(number)
        except (ValueError, OverflowError) as error:
            with pytest.raises(type(error), match=str(error)):
                step(torch.ones(2), number)
        else:
            torch.testing.assert_close(step(torch.ones(2), number), wanted, equal_nan=True)


def test_whether_a_loss_is_finite_is_one_decision() -> None:
    def step(x: torch.Tensor) -> Any:
        loss = x.sum().item()
        if not math.isfinite(loss):
            return "stop"
        return loss

    fn: Any = graphc.compile(step, backend="interpret")
    assert [fn(torch.full((2,), n)) for n in (1.0, 2.0, 3.0, math.nan, 4.0)] == [2.0, 4.0, 6.0, "stop", 8.0]
    assert fn.stats().paths == 2
