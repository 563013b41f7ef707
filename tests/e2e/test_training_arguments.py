"""What a training step works with, handed to it as arguments: modules, optimizers, schedules, scalers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import graphc

STEPS = 5
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 3), torch.tensor([1, 2, 0, 3, 1, 1])


class Trainer:
    """All that a step works with, as attributes."""

    def __init__(self, net: nn.Module, make: Callable[[Any], torch.optim.Optimizer], scaled: bool) -> None:
        self.net, self.optimizer = net, make(net.parameters())
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)
        self.scaler = torch.amp.GradScaler("cpu") if scaled else None
        self.steps = 0

    def parts(self) -> tuple[Any, ...]:
        return self.net, self.optimizer, self.schedule, self.scaler


def step(net: Any, optimizer: Any, schedule: Any, scaler: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(net(x), y)
    if scaler is not None:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    else:
        loss.backward()
        optimizer.step()
    schedule.step()
    return loss.detach()


def step_of(trainer: Trainer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    trainer.steps += 1
    return step(*trainer.parts(), x, y)


def check_equal(ours: Trainer, theirs: Trainer) -> None:
    for name, value in theirs.net.state_dict().items():
        torch.testing.assert_close(ours.net.state_dict()[name], value)
    assert ours.schedule.get_last_lr() == theirs.schedule.get_last_lr()
    for one, other in zip(ours.optimizer.state.values(), theirs.optimizer.state.values(), strict=True):
        for name, value in other.items():
            torch.testing.assert_close(one[name], value)
    for parameter, expected in zip(ours.net.parameters(), theirs.net.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


@pytest.mark.parametrize("scaled", (False, True))
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_as_arguments(name: str, scaled: bool) -> None:
    torch.manual_seed(0)
    net, given = network(), batch()
    ours, theirs = (Trainer(copy.deepcopy(net), OPTIMIZERS[name], scaled) for _ in range(2))
    compiled = graphc.compile(step)
    for _ in range(STEPS):
        torch.testing.assert_close(compiled(*ours.parts(), *given), step(*theirs.parts(), *given))
    check_equal(ours, theirs)
    stats = compiled.stats()
    assert stats.eager_calls == 0
    assert set(stats.recompiles) <= {"state of optimizer"}  # of momentum, there are buffers from the second step on


def test_as_attributes_of_an_argument() -> None:
    torch.manual_seed(0)
    net, given = network(), batch()
    ours, theirs = (Trainer(copy.deepcopy(net), OPTIMIZERS["adam"], True) for _ in range(2))
    compiled = graphc.compile(step_of)
    for _ in range(STEPS):
        torch.testing.assert_close(compiled(ours, *given), step_of(theirs, *given))
    check_equal(ours, theirs)
    assert ours.steps == STEPS
    stats = compiled.stats()
    assert stats.eager_calls == 0
    assert all("steps" in reason for reason in stats.recompiles)  # the counter, until it is an input
    assert stats.hits >= STEPS - 3


def test_another_optimizer_is_another_program() -> None:
    torch.manual_seed(0)
    net, given = network(), batch()
    compiled = graphc.compile(step)
    for _ in range(2):
        ours, theirs = (Trainer(copy.deepcopy(net), OPTIMIZERS["sgd"], False) for _ in range(2))
        for _ in range(STEPS):
            torch.testing.assert_close(compiled(*ours.parts(), *given), step(*theirs.parts(), *given))
        check_equal(ours, theirs)


def test_an_optimizer_alone() -> None:
    """The module is one of the function's own."""
    torch.manual_seed(0)
    net, given = network(), batch()
    ours, theirs = (Trainer(copy.deepcopy(net), OPTIMIZERS["sgd"], False) for _ in range(2))

    def stepping(net: nn.Module) -> Callable[..., torch.Tensor]:
        def run(optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return run

    compiled, expected = graphc.compile(stepping(ours.net)), stepping(theirs.net)
    for _ in range(STEPS):
        torch.testing.assert_close(compiled(ours.optimizer, *given), expected(theirs.optimizer, *given))
    check_equal(ours, theirs)
