"""Loops over time as one kernel, in Triton's interpreter, against eager and float64.

The interpreter runs one program after the other: a block of rows has gone through all turns before the next begins.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import graphc
from graphc.settings import override
from tests.support import assert_contract
from tests.triton.loops import LanguageModel, language_data, language_step, lstm_by_hand, mixing, operands, training

torch.set_num_threads(1)


def _loops(compiled: object, *args: torch.Tensor) -> int:
    """Kernels that are whole loops."""
    return sum(name.startswith("loop") for name in compiled.source(*args))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("batch", "hidden"), [(16, 64), (5, 20), (40, 24), (1, 16), (33, 80)])
def test_a_loop_by_hand(batch: int, hidden: int) -> None:
    args = operands(9, batch, 7, hidden)
    with override(cache=False):
        compiled = graphc.compile(lstm_by_hand, backend="triton")
        found = compiled(*args)
        assert _loops(compiled, *args) == 1
    assert_contract(found, lstm_by_hand(*args), lstm_by_hand(*(x.double() for x in args)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_half_precision(dtype: torch.dtype) -> None:
    args = operands(10, 20, 16, 32, dtype)
    with override(cache=False):
        compiled = graphc.compile(lstm_by_hand, backend="triton")
        found = compiled(*args)
        assert _loops(compiled, *args) == 1
    assert_contract(found, lstm_by_hand(*args), lstm_by_hand(*(x.double() for x in args)))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("kind", [torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM], ids=["RNN", "GRU", "LSTM"])
def test_training(kind: type[torch.nn.Module], batch_first: bool, layers: int) -> None:
    """Forward and backward pass of torch's own layers: a kernel per layer and direction."""
    torch.manual_seed(0)
    net = kind(6, 24, layers, batch_first=batch_first)
    exact = copy.deepcopy(net).double()
    x = torch.randn(18, 14, 6) if batch_first else torch.randn(14, 18, 6)
    with override(cache=False):
        compiled = graphc.compile(training(net), backend="triton")
        found = compiled(x)
        assert _loops(compiled, x) == 2 * layers
    for mine, eager, true in zip(found, training(net)(x), training(exact)(x.double()), strict=True):
        assert_contract(mine, eager, true)


class Packing(torch.nn.Module):
    """A layer on sequences of 8 lengths."""

    def __init__(self, net: torch.nn.RNN) -> None:
        super().__init__()
        self.net, self.lengths = net, torch.tensor([3, 14, 1, 7, 2, 14, 5, 4])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, last = self.net(pack_padded_sequence(x, self.lengths, enforce_sorted=False))
        return pad_packed_sequence(out)[0], last


def test_packed_sequences() -> None:
    """Rows of the batch that have ended keep their states; either pass is one kernel all the same."""
    torch.manual_seed(0)
    net = Packing(torch.nn.RNN(6, 16))
    exact = copy.deepcopy(net).double()
    x = torch.randn(14, 8, 6)
    with override(cache=False):
        compiled = graphc.compile(training(net), backend="triton")
        found = compiled(x)
        assert _loops(compiled, x) == 2
    for mine, eager, true in zip(found, training(net)(x), training(exact)(x.double()), strict=True):
        assert_contract(mine, eager, true)


@pytest.mark.suite
@pytest.mark.parametrize(("rows", "hidden"), [(20, 64), (6, 16)])
def test_a_language_model(rows: int, hidden: int) -> None:
    """Its state comes from the call before, and what the loops carry lies where results are stored later."""
    torch.manual_seed(0)
    net = LanguageModel(50, 16, hidden)
    plain, exact = copy.deepcopy(net), copy.deepcopy(net).double()
    x, y, h, c = language_data(12, rows, 50, hidden)
    with override(cache=False):
        compiled = graphc.compile(language_step(net), backend="triton")
        found = compiled(x, y, h, c)
        assert _loops(compiled, x, y, h, c) == 2
    wanted, truth = language_step(plain)(x, y, h, c), language_step(exact)(x, y, h.double(), c.double())
    for made, results in ((net, found), (plain, wanted), (exact, truth)):
        results += [tensor.detach() for p in made.parameters() for tensor in (p, p.grad) if tensor is not None]
    for mine, eager, true in zip(found, wanted, truth, strict=True):
        assert_contract(mine, eager, true)


def test_rows_of_odd_sizes_may_be_laid_over_each_other() -> None:
    """A stack that lies over a sequence, shifted by whole cache lines, leaves rows no place of their own."""
    torch.manual_seed(0)
    net = torch.nn.RNN(6, 20)
    exact = copy.deepcopy(net).double()
    x = torch.randn(14, 18, 6)
    with override(cache=False):
        compiled = graphc.compile(training(net), backend="triton")
        found = compiled(x)
        assert _loops(compiled, x) == 1  # the other one is launched turn by turn
    for mine, eager, true in zip(found, training(net)(x), training(exact)(x.double()), strict=True):
        assert_contract(mine, eager, true)


def test_rows_that_need_each_other_stay_apart() -> None:
    args = operands(9, 16, 7, 16)
    with override(cache=False):
        compiled = graphc.compile(mixing, backend="triton")
        found = compiled(*args)
        assert _loops(compiled, *args) == 0
    assert_contract(found, mixing(*args), mixing(*(x.double() for x in args)))
