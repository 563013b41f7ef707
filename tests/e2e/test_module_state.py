"""What a step leaves on modules and takes from schedules: assigned buffers, modes, momentum; LSTMs in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import graphc


class Counter(nn.Module):
    def __init__(self, resets: bool) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(3))
        self.resets = resets

    def step(self, x: torch.Tensor) -> torch.Tensor:
        self.state = self.state + x
        if self.resets and self.state.sum() > 5:
            self.state = torch.zeros(3)
        return self.state.sum()


@pytest.mark.parametrize("resets", [False, True])
def test_an_assigned_buffer_is_another_tensor(resets: bool) -> None:
    """Whoever keeps the tensor that was there before still sees what it held."""
    seen = {}
    for compiled in (False, True):
        module = Counter(resets)
        step = graphc.compile(module.step) if compiled else module.step
        kept = [module.state]
        for _ in range(5):
            step(torch.ones(3))
            kept.append(module.state)
        seen[compiled] = [tensor.tolist() for tensor in kept]
    assert seen[True] == seen[False]
    assert step.stats().compiles == (3 if resets else 1)


def test_an_assigned_buffer_replaced_from_outside() -> None:
    module = Counter(False)
    step = graphc.compile(module.step)
    step(torch.ones(3))
    module.state = torch.full((3,), 10.0)
    assert step(torch.ones(3)) == 33
    assert step.stats().compiles == 1


class Cart(nn.Module):
    """Its state is bound before or after the decision."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(3))
        self.late = late

    def step(self, x: torch.Tensor) -> torch.Tensor:
        if not self.late:
            self.state = self.state + x
        if x.sum() > 0:
            self.state = self.state * 0.5 + x
        return self.state * 1.0


@pytest.mark.parametrize("late", [False, True])
def test_a_buffer_assigned_on_a_path_is_found_by_the_next_call(late: bool) -> None:
    """Each call binds another tensor, which is no reason to compile again."""
    cart, expected = Cart(late), Cart(late)
    step = graphc.compile(cart.step)
    for turn in range(12):
        x = torch.full((3,), 1.0 if turn % 3 else -1.0)
        assert torch.equal(step(x), expected.step(x))
        assert torch.equal(cart.state, expected.state)
    stats = step.stats()
    assert stats.compiles == 4  # the prefix, two paths, and the one that calls keep to as a whole
    assert stats.recompiles == []


def test_a_buffer_that_is_replaced_again_and_again() -> None:
    """By code outside: looked up in each call from the second time on."""
    module = Counter(False)
    scale = graphc.compile(lambda x: module.state * x)
    for turn in range(6):
        module.state = torch.full((3,), float(turn))
        assert torch.equal(scale(torch.ones(3)), module.state)
    assert scale.stats().compiles == 2


class TwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = self.b = torch.zeros(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.a = self.b + x
        return self.b * 2


def test_two_attributes_with_one_tensor_that_part() -> None:
    module = TwoNames()
    compiled = graphc.compile(module)
    for _ in range(3):
        assert torch.equal(compiled(torch.ones(2)), torch.zeros(2))
        assert torch.equal(module.a, torch.ones(2)) and torch.equal(module.b, torch.zeros(2))


class Remembers(nn.Module):
    def __init__(self, detaches: bool) -> None:
        super().__init__()
        self.layer, self.detaches = nn.Linear(3, 3), detaches
        self.last = torch.zeros(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.layer(x) + self.last.detach())
        self.last = h.detach() if self.detaches else h
        return h


@pytest.mark.parametrize("detaches", [True, False])
def test_state_kept_from_a_differentiable_call(detaches: bool) -> None:
    """What is kept belongs to the graph of its call where it does in eager, and can be differentiated as there."""
    torch.manual_seed(0)
    ours = Remembers(detaches)
    eager = Remembers(detaches)
    eager.load_state_dict(ours.state_dict())
    compiled, x = graphc.compile(ours), torch.randn(2, 3)
    for _ in range(4):
        for called, module in ((compiled, ours), (eager, eager)):
            loss = called(x).sum()
            if not detaches:
                loss = loss + module.last.square().sum()
            loss.backward()
        torch.testing.assert_close(ours.last, eager.last)
        assert ours.last.requires_grad is eager.last.requires_grad is not detaches
        torch.testing.assert_close(ours.layer.weight.grad, eager.layer.weight.grad)
    assert compiled.stats().eager_calls == 0 and compiled.stats().compiles == (1 if detaches else 2)


def test_the_mode_is_set_inside_the_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.train()

    @graphc.compile
    def step(x: torch.Tensor) -> torch.Tensor:
        model.eval()
        y = model(x)
        model.train()
        z = model(x)
        model[1].eval()
        return y + z

    x = torch.randn(8, 3)
    for calls in (1, 2, 3):
        step(x)
        assert model.training and model[0].training and not model[1].training
        assert model[1].num_batches_tracked == calls
    assert step.stats().compiles == 2 and step.stats().eager_calls == 0
    model.train()
    step(x)
    assert not model[1].training and step.stats().compiles == 2


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9),
}


def _trained(make: Callable[..., Any], compiled: bool) -> tuple[torch.Tensor, Any]:
    torch.manual_seed(0)
    net = nn.Linear(8, 4)
    optimizer = make(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12)

    def step(x: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    run = graphc.compile(step) if compiled else step
    for _ in range(10):
        run(torch.randn(4, 8))
        schedule.step()
    return net.weight.detach(), run


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_cycled_momentum_compiles_once(name: str) -> None:
    wanted, _ = _trained(OPTIMIZERS[name], False)
    found, step = _trained(OPTIMIZERS[name], True)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert step.stats().compiles == (2 if name == "sgd" else 1)  # SGD has no buffers before its first step


def test_momentum_that_becomes_zero_is_another_program() -> None:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12)

    @graphc.compile
    def step() -> None:
        net.weight.grad = torch.ones(2, 2)
        net.bias.grad = torch.ones(2)
        optimizer.step()

    for _ in range(3):
        step()
    optimizer.param_groups[0]["momentum"] = 0.0
    before, rate = net.bias.detach().clone(), optimizer.param_groups[0]["lr"]
    step()
    torch.testing.assert_close(net.bias.detach(), before - rate)
    assert "momentum" in step.stats().recompiles[0] or "!=" in step.stats().recompiles[0]


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}, {"proj_size": 3}], ids=str)
def test_lstm_in_float32_trains(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ours = nn.LSTM(4, 6, batch_first=True, **options)
    eager = nn.LSTM(4, 6, batch_first=True, **options)
    eager.load_state_dict(ours.state_dict())

    @graphc.compile
    def step(x: torch.Tensor) -> torch.Tensor:
        loss = ours(x)[0].square().sum()
        loss.backward()
        return loss.detach()

    x = torch.randn(3, 5, 4)
    wanted = eager(x)[0].square().sum()
    wanted.backward()
    torch.testing.assert_close(step(x), wanted.detach())
    for found, expected in zip(ours.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-5)
