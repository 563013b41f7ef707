"""What only goes wrong together: loops, foreach updates, row chunks, checkpoints, paths, failing calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import graphc
from graphc.settings import override
from tests.support import assert_contract

LONG = 12
Train = Callable[[nn.Module, Callable[..., Any]], tuple[list[torch.Tensor], Any]]


class Deep(nn.Module):
    """Ten layers: parameters enough for one update of all."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(7, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if x.is_floating_point() else self.embed(x)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class Language(nn.Module):
    """A language model: an LSTM, and a loss over its words."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = (
            nn.Embedding(words, 16),
            nn.LSTM(16, 16, batch_first=True),
            nn.Linear(16, words),
        )

    def forward(self, ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.head(self.rnn(self.embed(ids))[0]).flatten(0, 1), wanted.flatten())


def _check(net: nn.Module, train: Train) -> Any:
    """Train copies of a net compiled, eager and in float64, and compare what comes out and the parameters after it."""
    eager, exact = copy.deepcopy(net), copy.deepcopy(net).double()
    ours, run = train(net, graphc.compile)
    theirs, _ = train(eager, lambda fn: fn)
    true, _ = train(exact, lambda fn: fn)
    nets = [[parameter.detach() for parameter in item.parameters()] for item in (net, eager, exact)]
    everything = [[*ours, *nets[0]], [*theirs, *nets[1]], [*true, *nets[2]]]
    assert [(item.shape, item.dtype) for item in everything[0]] == [(item.shape, item.dtype) for item in everything[1]]
    # errors grow from step to step, in each tensor by chance: the contract is for all of a training run
    assert_contract(*(torch.cat([item.flatten() for item in items]) for items in everything))
    return run


def _ops(compiled: Any, name: str, *args: Any) -> int:
    return sum(op.name == name for op in compiled.graph(*args, stage="optimized").ops)


def _like(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x.to(next(net.parameters()).dtype)


@pytest.mark.parametrize("kind", ["adam", "momentum"])
def test_many_steps_of_an_optimizer_in_one_function(kind: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 8), torch.randn(4, 8)

    def train(net: nn.Module, compiles: Callable[..., Any]) -> tuple[list[torch.Tensor], Any]:
        parameters = net.parameters()
        optimizer = (
            torch.optim.Adam(parameters, lr=1e-3)
            if kind == "adam"
            else torch.optim.SGD(parameters, lr=1e-2, momentum=0.9)
        )

        def steps(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            for _ in range(9):
                optimizer.zero_grad()
                loss = (net(x) - y).square().mean()
                loss.backward()
                optimizer.step()
            return loss.detach()

        run = compiles(steps)
        return [run(_like(net, x), _like(net, y)) for _ in range(2)], run

    run = _check(Deep(), train)
    assert _ops(run, "foreach", x, y) == 9


@pytest.mark.parametrize("whole", [True, False], ids=["step", "module"])
def test_a_loop_and_a_large_vocabulary(whole: bool) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 500, (48, LONG))

    def train(net: nn.Module, compiles: Callable[..., Any]) -> tuple[list[torch.Tensor], Any]:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        model = net if whole else compiles(net)

        def step(ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(ids, wanted)
            loss.backward()
            optimizer.step()
            return loss.detach()

        run = compiles(step) if whole else step
        return [run(ids, ids.roll(1, 1)) for _ in range(2)], run if whole else model

    with override(chunk_bytes=1 << 18):
        run = _check(Language(500), train)
        assert _ops(run, "scan", ids, ids)
        plan = run.graph(ids, ids, stage="scheduled")
    assert max(spec.nbytes for spec in plan.buffers) < 48 * LONG * 500 * 4, "logits are never whole"


def test_a_loop_on_a_path() -> None:
    torch.manual_seed(0)
    x = torch.randn(LONG, 3, 4)

    def train(net: nn.Module, compiles: Callable[..., Any]) -> tuple[list[torch.Tensor], Any]:
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

        def step(x: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad()
            out, _ = net(x)
            if out.sum() > 1e9:
                return out.sum().detach()
            loss = net(torch.cat([out[..., :4], x[:3]]))[0].square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        run = compiles(step)
        return [run(_like(net, x)) for _ in range(2)], run

    run = _check(nn.GRU(4, 5), train)
    assert run.stats().paths == 1


@pytest.mark.parametrize("inside", [False, True], ids=["around_the_loop", "in_the_loop"])
def test_a_loop_and_checkpoints(inside: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(LONG, 3, 4)

    def loss_of(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if not inside:
            return checkpoint(lambda x: net(x)[0], x, use_reentrant=False).square().mean()
        state = x.new_zeros(3, 5), x.new_zeros(3, 5)
        for item in x:
            state = checkpoint(lambda item, *state: net(item, state), item, *state, use_reentrant=False)
        return state[0].square().mean()

    def train(net: nn.Module, compiles: Callable[..., Any]) -> tuple[list[torch.Tensor], Any]:
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

        def step(x: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(net, x)
            loss.backward()
            optimizer.step()
            return loss.detach()

        run = compiles(step)
        return [run(_like(net, x)) for _ in range(2)], run

    run = _check(nn.LSTMCell(4, 5) if inside else nn.LSTM(4, 5, 2), train)
    assert _ops(run, "scan", x)


def test_gradients_that_somebody_holds_are_not_written_over() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)

    def train(net: nn.Module, compiles: Callable[..., Any]) -> tuple[list[torch.Tensor], Any]:
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)

        def part(x: torch.Tensor, first: bool, last: bool) -> torch.Tensor:
            if first:
                optimizer.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            if last:
                optimizer.step()
            return loss.detach()

        run = compiles(part)
        found: list[torch.Tensor] = []
        for turn in range(3):
            for at in range(3):
                found.append(run(_like(net, x) + turn + at, at == 0, at == 2))
                found += [p.grad.clone() for p in net.parameters() if p.grad is not None]
        held = [p.grad for p in net.parameters() if p.grad is not None]
        copies = [grad.clone() for grad in held]
        found.append(run(_like(net, x), True, False))
        assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))
        return found, run

    _check(Deep(), train)


@pytest.mark.parametrize("again", [False, True])
def test_updates_before_a_failure_leave_what_eager_leaves_or_nothing(again: bool) -> None:
    torch.manual_seed(0)
    nets = [Deep()]
    nets.append(copy.deepcopy(nets[0]))
    before = copy.deepcopy(nets[0].state_dict())
    runs: list[Any] = []
    for net, compiles in zip(nets, (graphc.compile, lambda fn: fn), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)

        def step(x: torch.Tensor, y: torch.Tensor, net: nn.Module = net, optimizer: Any = optimizer) -> torch.Tensor:
            for ids in (x, y) if again else (x,):
                optimizer.zero_grad()
                loss = net(ids).square().mean()
                loss.backward()
                optimizer.step()
            return loss.detach() + net.embed(y).sum().detach()

        runs.append(compiles(step))
    good, bad = torch.tensor([1, 2]), torch.tensor([1, 99])
    for run in runs:
        with pytest.raises(IndexError, match="out of range"):
            run(good, bad)
    states = [before, nets[1].state_dict()]
    found = nets[0].state_dict()
    assert any(
        all(torch.allclose(found[name], value, rtol=1e-5, atol=1e-7) for name, value in state.items())
        for state in states
    ), "neither as before nor as eager leaves them"
    nets[1].load_state_dict(found)
    torch.testing.assert_close(runs[0](good, good), runs[1](good, good))
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict())


def test_bad_data_in_and_behind_a_loop_change_nothing() -> None:
    torch.manual_seed(0)
    net = Language(11)
    optimizer = torch.optim.Adam(net.parameters())

    @graphc.compile
    def step(ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = net(ids, wanted)
        loss.backward()
        optimizer.step()
        return loss.detach()

    ids = torch.randint(0, 11, (2, LONG))
    step(ids, ids.clone())
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict()["state"]))
    bad = ids.clone()
    bad[0, 3] = 50
    for given in ((bad, ids), (ids, bad)):
        with pytest.raises(IndexError):
            step(*given)
        torch.testing.assert_close((net.state_dict(), optimizer.state_dict()["state"]), before, rtol=0, atol=0)
    assert step.stats().compiles == 1
