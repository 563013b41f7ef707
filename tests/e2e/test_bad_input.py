"""Training with input that is not as it was or as it should be: eager's answer, counted recompiles, clear errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphc

TOLERANCE = 1e-9


pytestmark = pytest.mark.usefixtures("float64_on_one_thread")


class Net(nn.Module):
    """`spare` takes no part in the result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.spare = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


class Side:
    """A model with its optimizer, trained compiled or eager."""

    def __init__(self, net: nn.Module, optimizer: Callable[[Any], torch.optim.Optimizer], form: str) -> None:
        self.net, self.opt, self.form = net, optimizer(net), form
        self.model: Any = graphc.compile(net) if form == "module" else net
        self.step: Any = graphc.compile(self.train) if form == "step" else self.train

    def train(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.opt.zero_grad()
        loss = F.mse_loss(self.model(x), y)
        loss.backward()
        self.opt.step()
        return loss.detach()

    def stats(self) -> Any:
        return (self.step if self.form == "step" else self.model).stats()


def adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), 1e-2, eps=1e-5)


class Pair:
    """The same training compiled and eager."""

    def __init__(self, form: str, optimizer: Callable[[Any], torch.optim.Optimizer] = adam) -> None:
        torch.manual_seed(0)
        net = Net()
        self.sides = Side(copy.deepcopy(net), optimizer, form), Side(net, optimizer, "eager")
        self.ours, self.theirs = self.sides

    def both(self, change: Callable[[Side], Any]) -> None:
        for side in self.sides:
            change(side)

    def steps(self, count: int = 3, rows: int = 5, scale: float = 1.0) -> None:
        """Train both and compare all they have."""
        for number in range(count):
            generator = torch.Generator().manual_seed(number)
            x, y = (torch.randn(rows, size, generator=generator) * scale for size in (4, 3))
            close(self.ours.step(x, y), self.theirs.step(x, y))
        close(self.ours.net.state_dict(), self.theirs.net.state_dict())
        close(self.ours.opt.state_dict(), self.theirs.opt.state_dict())
        for p, q in zip(self.ours.net.parameters(), self.theirs.net.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None) and p.requires_grad == q.requires_grad
            if p.grad is not None:
                close(p.grad, q.grad)

    def recompiled(self, *reasons: str) -> None:
        """What `stats` tells, oldest first."""
        stats = self.ours.stats()
        found = stats.recompiles[::-1]
        assert len(found) == len(reasons) and all(part in text for part, text in zip(reasons, found, strict=True)), (
            found
        )
        assert stats.compiles == len(reasons) + 1 and stats.eager_calls == 0


def close(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            close(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            close(x, y)
    else:
        assert a == b


FORMS = pytest.mark.parametrize("form", ["step", "module"])


@FORMS
@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e200])
def test_not_a_number_flows_on(form: str, number: float) -> None:
    pair = Pair(form)
    if number == 1e200:  # where only the loss overflows, and no sum of squares on the way
        pair.both(lambda side: setattr(side.net, "norm", nn.Identity()))
    pair.steps()
    pair.steps(1, scale=number)
    pair.steps()
    assert number == 1e200 or any(p.isnan().any() for p in pair.theirs.net.parameters())
    pair.recompiled()


@FORMS
def test_parameter_without_gradient(form: str) -> None:
    pair = Pair(form)
    pair.steps()
    assert pair.ours.net.spare.weight.grad is None and len(pair.ours.opt.state) == 6
    pair.recompiled()


@FORMS
def test_optimizer_of_another_module(form: str) -> None:
    other = nn.Linear(2, 2)
    pair = Pair(form, lambda net: torch.optim.SGD(other.parameters(), 0.1, momentum=0.9))
    before = copy.deepcopy(other.state_dict())
    pair.ours.net.zero_grad()
    pair.steps(1)
    close(other.state_dict(), before)
    assert pair.ours.net.first.weight.grad is not None and not pair.ours.opt.state


@FORMS
def test_last_smaller_batch(form: str) -> None:
    pair = Pair(form)
    for _ in range(3):  # epochs
        pair.steps(2, rows=5)
        pair.steps(1, rows=3)
    pair.recompiled("shape (3, 4), compiled for (5, 4)")


@FORMS
def test_frozen_and_thawed(form: str) -> None:
    pair = Pair(form)
    pair.steps()
    for _ in range(2):
        pair.both(lambda side: side.net.first.requires_grad_(False))
        pair.steps()
        pair.both(lambda side: side.net.first.requires_grad_(True))
        pair.steps()
    assert all("first" in reason for reason in pair.ours.stats().recompiles)
    assert 1 <= len(pair.ours.stats().recompiles) <= 2 and pair.ours.stats().eager_calls == 0


@FORMS
def test_replaced_parameter(form: str) -> None:
    """The optimizer still has the old one, as in eager."""
    pair = Pair(form)
    pair.steps()
    fresh = torch.randn(3, 6)
    pair.both(lambda side: setattr(side.net.last, "weight", nn.Parameter(fresh.clone())))
    pair.steps()
    reasons = pair.ours.stats().recompiles  # in the whole step, its gradient is not there at first, and then adds up
    assert 1 <= len(reasons) <= 2 and all("last.weight" in reason for reason in reasons)
    pair.both(lambda side: side.opt.add_param_group({"params": [side.net.last.weight], "lr": 0.1}))
    pair.steps()
    assert pair.ours.stats().eager_calls == 0


@FORMS
def test_moved_parameter(form: str) -> None:
    """New memory or dtype under the same Parameter."""
    pair = Pair(form)
    pair.steps()
    pair.both(lambda side: setattr(side.net.first.weight, "data", side.net.first.weight.data.clone()))
    pair.steps()
    pair.recompiled()
    pair.both(lambda side: setattr(side.net.first.weight, "data", side.net.first.weight.data.t().contiguous().t()))
    pair.steps()
    pair.recompiled("first.weight")


@FORMS
def test_replaced_layer_and_buffer(form: str) -> None:
    pair = Pair(form)
    pair.steps()
    torch.manual_seed(1)
    layer = nn.Linear(6, 3)
    pair.both(lambda side: setattr(side.net, "last", copy.deepcopy(layer)))
    pair.steps()
    pair.both(lambda side: setattr(side.net.norm, "running_mean", torch.ones(6)))
    pair.steps()
    assert len(pair.ours.stats().recompiles) >= 1 and pair.ours.stats().eager_calls == 0


@FORMS
def test_other_dtype_says_where(form: str) -> None:
    pair = Pair(form)
    pair.steps()
    state = copy.deepcopy(pair.ours.net.state_dict())
    with pytest.raises(RuntimeError, match="dtype") as caught:
        pair.ours.step(torch.randn(5, 4, dtype=torch.float32), torch.randn(5, 3))
    assert "test_bad_input.py" in str(caught.value)
    close(pair.ours.net.state_dict(), state)
    pair.theirs.opt.zero_grad()
    pair.steps()


def test_loss_that_is_no_scalar_says_where() -> None:
    net = Net()

    @graphc.compile
    def step(x: torch.Tensor) -> None:
        net(x).backward()

    with pytest.raises(RuntimeError, match="scalar outputs"):
        step(torch.randn(5, 4))
    assert net.first.weight.grad is None


def test_gradients_turn_up_and_go() -> None:
    """`zero_grad(set_to_none=False)`, gradients added up, and dropped by hand."""
    net = Net()
    twin = copy.deepcopy(net)
    add = graphc.compile(lambda x: net(x).square().mean().backward())
    x = torch.randn(5, 4)
    for number in range(6):
        if number == 2:
            net.first.weight.grad = twin.first.weight.grad = None
        if number == 4:
            net.zero_grad(set_to_none=False)
            twin.zero_grad(set_to_none=False)
        add(x)
        twin(x).square().mean().backward()
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                close(p.grad, q.grad)
    assert all("gradient" in reason for reason in add.stats().recompiles) and add.stats().eager_calls == 0
