"""Optimizers that users write: state made in the first step, and steps counted in Python, wherever they are kept."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import graphc

STEPS = 5


class Momentum(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "momentum": 0.9})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "buffer" not in state:
                    state["buffer"] = torch.zeros_like(p)
                state["buffer"].mul_(group["momentum"]).add_(p.grad)
                p.add_(state["buffer"], alpha=-group["lr"])


class Adam(torch.optim.Optimizer):
    """As in tutorials: the step is an int in the state."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if len(state) == 0:
                    state["step"], state["m"], state["v"] = 0, torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                state["m"].mul_(first).add_(p.grad, alpha=1 - first)
                state["v"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
                rate = group["lr"] * math.sqrt(1 - second ** state["step"]) / (1 - first ** state["step"])
                p.addcdiv_(state["m"], state["v"].sqrt().add_(1e-8), value=-rate)


class Decaying(torch.optim.Optimizer):
    """Counts in itself and in its groups, where nothing in the byte code of the step's caller shows it."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.steps += 1
        for group in self.param_groups:
            group["turn"] = group.get("turn", 0) + 1
            for p in group["params"]:
                p.add_(p.grad, alpha=-group["lr"] / math.sqrt(self.steps + group["turn"]))


class EveryOther(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["step"] = state.get("step", 0) + 1
            if state["step"] % 2 == 0:
                p.add_(p.grad, alpha=-self.param_groups[0]["lr"])


def trained(kind: Any, compiled: bool) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = nn.Linear(4, 3, dtype=torch.float64)
    optimizer = kind(model.parameters())

    def step(x: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    fn: Any = graphc.compile(step, backend="interpret") if compiled else step
    losses = [fn(torch.randn(5, 4, dtype=torch.float64)) for _ in range(STEPS)]
    state = [dict(optimizer.state[p]) for p in model.parameters()]
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    return (losses, state, group, getattr(optimizer, "steps", 0), list(model.parameters())), fn


@pytest.mark.parametrize("kind", [Momentum, Adam, Decaying, EveryOther])
def test_trains_as_in_eager(kind: Any) -> None:
    wanted, _ = trained(kind, False)
    found, fn = trained(kind, True)
    torch.testing.assert_close(found, wanted)
    stats = fn.stats()
    assert not stats.eager_calls and len(stats.recompiles) <= 2


def test_a_number_that_is_set_between_steps() -> None:
    """Those that are looked at are facts, the others inputs."""
    model = nn.Linear(2, 2)
    optimizer = EveryOther(model.parameters())

    @graphc.compile(backend="interpret")
    def step(x: torch.Tensor) -> None:
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()

    for _ in range(3):
        step(torch.ones(1, 2))
    before = model.weight.clone()
    for p in model.parameters():
        optimizer.state[p]["step"] = 0
    step(torch.ones(1, 2))
    assert torch.equal(model.weight, before) and optimizer.state[model.weight]["step"] == 1
    step(torch.ones(1, 2))
    assert not torch.equal(model.weight, before)
