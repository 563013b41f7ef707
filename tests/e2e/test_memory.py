"""Memory of training: what a step holds at most, what is saved for a backward pass, and whose memory is taken over.

Bytes are counted, not timed: they are the same in every run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphc
from graphc.report.measure import peak_bytes

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import training
import zoo
from zoo.entry import images
from zoo.recurrent import LstmCell
from zoo.text import GPT

SLACK = 16 << 10
"""Bytes for the small buffers of an arena, which are rounded up to 64 each."""


@pytest.fixture(autouse=True)
def _grad() -> Iterator[None]:
    with torch.enable_grad():
        yield


class GruCell(nn.Module):
    """A hand-written GRU in a Python loop, with dropout of its state: (B, T, 64) -> (B, 10)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.x, self.h, self.out = nn.Linear(64, 384), nn.Linear(128, 384), nn.Linear(128, 10)
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(x.shape[0], 128)
        for t in range(x.shape[1]):
            xr, xz, xn = self.x(x[:, t]).chunk(3, 1)
            hr, hz, hn = self.h(F.dropout(h, self.dropout)).chunk(3, 1)
            r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
            n = torch.tanh(xn + r * hn)
            h = (1 - z) * n + z * h
        return self.out(h)


class Last(nn.Module):
    """A recurrent module, and a classifier of its last output."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn, self.out = rnn, nn.Linear(128 * (1 + rnn.bidirectional), 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x)[0][:, -1])


RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "gru_cell": lambda: GruCell(0.0),
    "gru_cell_dropout": lambda: GruCell(0.2),
    "nn.RNN": lambda: Last(nn.RNN(64, 128, batch_first=True)),
    "nn.GRU": lambda: Last(nn.GRU(64, 128, batch_first=True)),
    "nn.LSTM": lambda: Last(nn.LSTM(64, 128, batch_first=True)),
    "nn.LSTM_both_ways": lambda: Last(nn.LSTM(64, 128, batch_first=True, bidirectional=True)),
    "nn.LSTM_two_layers_dropout": lambda: Last(nn.LSTM(64, 128, 2, batch_first=True, dropout=0.2)),
}


def workload(name: str) -> Any:
    torch.manual_seed(0)
    if name in training.WORKLOADS:
        return training.WORKLOADS[name]()
    return training.of_zoo(zoo.Workload(RECURRENT[name](), images(10, 16, 50, 64)))


def peak(name: str, compiled: bool) -> int:
    parameters, step, batch = workload(name)
    call = graphc.compile(step) if compiled else step
    for _ in range(2):
        call(*batch)
    found = peak_bytes(lambda: call(*batch), parameters)
    return found + (call.explain(*batch).stats["arena_bytes"] if compiled else 0)


@pytest.mark.parametrize("name", ["gpt", "cnn", "mlp", "adam_200", "lstm", *RECURRENT])
def test_a_compiled_step_holds_no_more_than_eager(name: str) -> None:
    assert peak(name, compiled=True) <= peak(name, compiled=False) + SLACK


@pytest.mark.parametrize(("name", "gates", "states", "gradients"), [("lstm", 4, 2, 0), ("gru_cell", 4, 1, 3)])
def test_a_loop_keeps_its_gates_and_states_once(name: str, gates: int, states: int, gradients: int) -> None:
    """Projected inputs, gates and their gradients are in one place, and nothing is kept that follows from others.

    Args:
        gates, states: that are kept of each turn.
        gradients: of gates that find no place where the gates are; a GRU has two sets of three.
    """
    _, step, batch = workload(name)
    call = graphc.compile(step)
    call(*batch)
    sequence = 50 * 16 * 128 * 4
    rows = 2 * 4 * sequence // 50  # each of the first two turns of the backward loop has gradients of its own
    found = call.explain(*batch).stats["arena_bytes"]
    assert (gates + states) * sequence <= found <= (gates + states + gradients) * sequence + 2 * rows + SLACK


def saved_bytes(module: Callable[..., Any], parameters: list[nn.Parameter], *inputs: torch.Tensor) -> int:
    """Bytes of memory that autograd keeps for the backward pass, parameters and inputs aside."""
    module(*inputs).sum().backward()  # which compiles it
    known = {p.untyped_storage().data_ptr() for p in (*parameters, *inputs)}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = module(*inputs)
    loss.sum().backward()
    return sum(found.values())


@pytest.mark.parametrize("name", ["gpt", "cnn", "mlp", "lstm", "gru_cell", "nn.GRU"])
def test_a_compiled_module_saves_no_more_than_eager(name: str) -> None:
    torch.manual_seed(0)
    inputs: tuple[torch.Tensor, ...]
    net: nn.Module
    if name == "gpt":
        net, inputs = GPT(2), (torch.randint(0, 4096, (2, 64)),)
    elif name == "cnn":
        net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2))
        inputs = (torch.randn(4, 1, 28, 28),)
    elif name == "lstm" or name in RECURRENT:
        net, inputs = RECURRENT.get(name, LstmCell)(), (torch.randn(16, 20, 64),)
    else:
        net = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 128), nn.SiLU())
        inputs = (torch.randn(32, 64),)
    parameters = list(net.parameters())
    eager = saved_bytes(net, parameters, *inputs)
    assert 0 < saved_bytes(graphc.compile(net), parameters, *inputs) <= eager


class Step:
    """A classifier with a compiled step, and the same one in eager."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(8, 4)
        self.opt = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.compiled = graphc.compile(self.step)
        self.x, self.y = torch.randn(16, 8), torch.randint(0, 4, (16,))

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.opt.zero_grad()
        loss = F.cross_entropy(self.net(x), y)
        loss.backward()
        self.opt.step()
        return loss.detach()

    def grad(self) -> torch.Tensor:
        assert self.net.weight.grad is not None
        return self.net.weight.grad


def test_new_gradients_lie_where_old_ones_lay() -> None:
    one, other = Step(), Step()
    one.compiled(one.x, one.y)
    other.step(other.x, other.y)
    for _ in range(3):
        before = one.grad().data_ptr()
        one.compiled(one.x, one.y)
        other.step(other.x, other.y)
        assert one.grad().data_ptr() == before
        torch.testing.assert_close(one.grad(), other.grad())
    assert not one.grad()._is_view() and one.grad().stride() == other.grad().stride()


HOLDERS: dict[str, Callable[[Step], Any]] = {
    "itself": lambda step: step.grad(),
    "a view": lambda step: step.grad()[1:],
    "detached": lambda step: step.grad().detach(),
    "its storage": lambda step: step.grad().untyped_storage(),
    "numpy": lambda step: step.grad().numpy(),
    "another parameter": lambda step: _given_away(step),
    "an attribute": lambda step: setattr(step.grad(), "note", step.grad().clone()),
}


def _given_away(step: Step) -> nn.Parameter:
    taker = nn.Parameter(torch.zeros(4, 8))
    taker.grad = step.grad()
    return taker


def _bytes(held: Any) -> Any:
    if isinstance(held, torch.UntypedStorage):
        return bytes(held)
    held = held.grad if isinstance(held, nn.Parameter) else held
    return held.clone() if isinstance(held, torch.Tensor) else held.copy()


@pytest.mark.parametrize("name", [name for name in HOLDERS if name != "an attribute"])
def test_gradients_that_somebody_holds_keep_their_values(name: str) -> None:
    step = Step()
    step.compiled(step.x, step.y)
    held = HOLDERS[name](step)
    before = _bytes(held)
    step.compiled(step.x + 1, step.y)
    after = _bytes(held)
    assert type(before) is type(after)
    assert before == after if isinstance(before, bytes) else bool((before == after).all())


def test_a_gradient_with_an_attribute_is_replaced() -> None:
    step = Step()
    step.compiled(step.x, step.y)
    HOLDERS["an attribute"](step)
    step.compiled(step.x, step.y)
    assert not hasattr(step.grad(), "note")


def test_a_call_that_refuses_its_data_puts_the_gradients_back() -> None:
    """Eager has dropped them by then; here labels are looked at before anything is stored in their memory."""
    ours, theirs = Step(), Step()
    for step, call in ((ours, ours.compiled), (theirs, theirs.step)):
        call(step.x, step.y)
    place, before = ours.grad().data_ptr(), ours.grad().clone()
    for step, call in ((ours, ours.compiled), (theirs, theirs.step)):
        with pytest.raises(IndexError):
            call(step.x, step.y + 4)
    assert theirs.net.weight.grad is None
    assert ours.grad().data_ptr() == place and torch.equal(ours.grad(), before)
    torch.testing.assert_close(ours.net.weight, theirs.net.weight)


def test_accumulated_gradients_are_added_to_where_they_are() -> None:
    net = nn.Linear(8, 4)

    @graphc.compile
    def add(x: torch.Tensor) -> None:
        net(x).square().sum().backward()

    x = torch.randn(4, 8)
    add(x)
    assert net.weight.grad is not None
    once = net.weight.grad.clone()
    add(x)
    torch.testing.assert_close(net.weight.grad, 2 * once)
