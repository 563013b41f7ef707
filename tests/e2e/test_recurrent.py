"""Recurrent networks: torch's own and loops over time written by hand, forward and training, against eager."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import graphc
from graphc.ir import run as interpret
from graphc.passes.base import PassContext
from graphc.passes.pipeline import optimize
from tests.support import assert_contract

LONG = 12


def _twins(net: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    return net, copy.deepcopy(net), copy.deepcopy(net).double()


def _scans(compiled: Any, *args: Any) -> list[int]:
    graph = compiled.graph(*args, stage="optimized")
    return [op.attrs["length"] for op in graph.ops if op.name == "scan"]


def _wide(item: Any) -> Any:
    if isinstance(item, (tuple, list)):
        return type(item)(map(_wide, item))
    return item.double() if isinstance(item, torch.Tensor) and item.is_floating_point() else item


def _train(net: nn.Module, call: Callable[..., torch.Tensor], args: tuple[Any, ...], compiles: bool) -> Any:
    """Two steps of SGD; the losses, the parameters after them, and what ran."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step(*args: Any) -> torch.Tensor:
        optimizer.zero_grad()
        loss = call(net, *args)
        loss.backward()
        optimizer.step()
        return loss.detach()

    run = graphc.compile(step) if compiles else step
    losses = [run(*args) for _ in range(2)]
    return [*losses, *(parameter.detach() for parameter in net.parameters())], run


def _check_training(net: nn.Module, call: Callable[..., torch.Tensor], *args: Any) -> Any:
    mine, eager, exact = _twins(net)
    ours, run = _train(mine, call, args, True)
    theirs, _ = _train(eager, call, args, False)
    true, _ = _train(exact, call, _wide(args), False)
    for a, b, c in zip(ours, theirs, true, strict=True):
        assert_contract(a, b, c)
    return run


NETS: dict[str, Callable[[], nn.Module]] = {
    "rnn": lambda: nn.RNN(3, 4),
    "rnn_relu_two_layers": lambda: nn.RNN(3, 4, 2, nonlinearity="relu", batch_first=True),
    "gru": lambda: nn.GRU(3, 4, batch_first=True),
    "gru_both_ways": lambda: nn.GRU(3, 4, 2, bidirectional=True, bias=False),
    "lstm": lambda: nn.LSTM(3, 4),
    "lstm_both_ways_two_layers": lambda: nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True),
    "lstm_projected": lambda: nn.LSTM(3, 4, proj_size=2),
}


def _all(net: nn.Module, x: torch.Tensor, *state: Any) -> torch.Tensor:
    out, last = net(x, *state)
    parts = last if isinstance(last, tuple) else (last,)
    return out.square().mean() + sum(part.sin().sum() for part in parts)


@pytest.mark.parametrize("name", NETS)
def test_modules_train(name: str) -> None:
    torch.manual_seed(0)
    net = NETS[name]()
    x = torch.randn(2, LONG, 3) if net.batch_first else torch.randn(LONG, 2, 3)
    run = _check_training(net, _all, x)
    assert _scans(run, x), "loops have been found"


@pytest.mark.parametrize("name", ["rnn", "gru_both_ways", "lstm_both_ways_two_layers"])
def test_modules_forward(name: str) -> None:
    torch.manual_seed(0)
    net = NETS[name]().eval()
    x = torch.randn(2, LONG, 3) if net.batch_first else torch.randn(LONG, 2, 3)
    run = graphc.compile(net)
    with torch.no_grad():
        ours, theirs, true = run(x), net(x), copy.deepcopy(net).double()(x.double())
    flat = [torch.utils._pytree.tree_leaves(item) for item in (ours, theirs, true)]
    for a, b, c in zip(*flat, strict=True):
        assert_contract(a, b, c)


class Cells(nn.Module):
    """A stack of cells in a loop over time, with an output per step."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(7, 3), kind(3, 4), kind(4, 4)
        self.out = nn.Linear(4, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states: list[Any] = [None, None]
        found = []
        for t in range(ids.shape[1]):
            states[0] = self.first(self.embed(ids[:, t]), states[0])
            h = states[0][0] if isinstance(states[0], tuple) else states[0]
            states[1] = self.second(h, states[1])
            h = states[1][0] if isinstance(states[1], tuple) else states[1]
            found.append(self.out(h))
        return torch.stack(found, 1)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_cells_in_a_loop_train(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 7, (2, LONG))
    run = _check_training(Cells(kind), lambda net, ids: net(ids).square().mean(), ids)
    assert _scans(run, ids)


class Attending(nn.Module):
    """A decoder that attends over an encoder's states, and feeds its own output back."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.query, self.out = nn.GRUCell(8, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        h, y = memory.mean(1), memory.new_zeros(memory.shape[0], 4)
        found = memory.new_zeros(memory.shape[0], LONG, 4)
        for t in range(LONG):
            weights = (memory @ self.query(h).unsqueeze(2)).squeeze(2).masked_fill(mask, -1e9).softmax(1)
            context = (weights.unsqueeze(1) @ memory).squeeze(1)
            h = self.cell(torch.cat((context, y), 1), h)
            y = torch.tanh(self.out(h))
            found[:, t] = y
        return found


def test_a_decoder_with_attention_trains() -> None:
    torch.manual_seed(0)
    mask = torch.arange(6).expand(2, 6) >= torch.tensor([[6], [4]])
    _check_training(Attending(), lambda net, m, k: net(m, k).square().mean(), torch.randn(2, 6, 4), mask)


def test_lengths_of_sequences_in_a_batch() -> None:
    """A state that is kept where a sequence has ended."""
    torch.manual_seed(0)

    def call(net: nn.Module, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(x.shape[0], 4)
        for t in range(x.shape[1]):
            h = torch.where((lengths > t).unsqueeze(1), net(x[:, t], h), h)
        return h.square().sum()

    _check_training(nn.GRUCell(3, 4), call, torch.randn(3, LONG, 3), torch.tensor([12, 5, 9]))


def test_a_compiled_network_in_an_eager_loop() -> None:
    torch.manual_seed(0)
    mine, eager, exact = _twins(nn.LSTM(3, 4, 2, batch_first=True))
    x = torch.randn(2, LONG, 3)
    run = graphc.compile(mine)
    for net, module, data in ((run, mine, x), (eager, eager, x), (exact, exact, x.double())):
        out, (h, _) = net(data)
        (out.square().sum() + h.sum()).backward()
        module.kept = [parameter.grad for parameter in module.parameters()]
    for a, b, c in zip(mine.kept, eager.kept, exact.kept, strict=True):
        assert_contract(a, b, c)


def test_another_length_is_another_program() -> None:
    torch.manual_seed(0)
    net = nn.RNN(3, 4, batch_first=True)
    run = graphc.compile(net)
    for length in (LONG, 15, LONG):
        x = torch.randn(2, length, 3)
        assert_contract(run(x)[0], net(x)[0], copy.deepcopy(net).double()(x.double())[0])
    assert run.stats().compiles == 2


def test_dropout_between_layers_stays_right() -> None:
    torch.manual_seed(0)
    net = nn.LSTM(3, 4, 2, dropout=0.5)
    x = torch.randn(LONG, 2, 3)
    run = graphc.compile(net, numerics="eager")
    torch.manual_seed(1)
    ours = run(x)[0]
    torch.manual_seed(1)
    theirs = net(x)[0]
    torch.testing.assert_close(ours, theirs)


def test_dropout_in_a_loop_draws_the_same_numbers_as_unrolled() -> None:
    torch.manual_seed(0)
    cell, x = nn.GRUCell(3, 4), torch.randn(2, 16, 3)

    @graphc.compile
    def run(x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(2, 4)
        for t in range(x.shape[1]):
            h = nn.functional.dropout(cell(x[:, t], h), 0.5)
        return h

    with torch.no_grad():
        graph = run.graph(x, stage="captured")
    rolled, unrolled = graph.copy(), graph.copy()
    optimize(rolled)
    optimize(unrolled, PassContext(roll=False))
    assert any(op.name == "scan" for op in rolled.ops)
    assert not any(op.name == "scan" for op in unrolled.ops)
    by_path = {f"cell.{name}": parameter.detach() for name, parameter in cell.named_parameters()} | {"x": x}
    inputs = [by_path[item.path] for item in graph.inputs]
    found = []
    for program in (rolled, unrolled):
        torch.manual_seed(1)
        found += interpret(program, inputs)
    torch.manual_seed(1)
    found.append(run(x).detach())
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    assert not torch.equal(run(x), found[2]), "each call has masks of its own"


def test_hundreds_of_steps() -> None:
    torch.manual_seed(0)

    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x, self.h = nn.Linear(2, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = x.new_zeros(x.shape[0], 3)
            for t in range(x.shape[1]):
                h = 0.9 * h + 0.1 * torch.tanh(self.x(x[:, t]) + self.h(h))
            return h

    x = torch.randn(2, 300, 2)
    run = _check_training(Leaky(), lambda net, x: net(x).square().sum(), x)
    assert len(run.graph(x, stage="optimized").ops) < 150
    assert sum(_scans(run, x)) > 590
    assert len(run.explain(x).stats["loops"]) == 2
