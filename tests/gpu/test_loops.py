"""Loops over time as one kernel, and `mode="max"`, on a GPU: against eager and float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import graphc
from graphc.runtime.timing import timed_by
from graphc.settings import override
from tests.support import assert_contract
from tests.triton.loops import lstm_by_hand, operands, training

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _nothing_measured_yet(tmp_path: Path) -> Iterator[None]:
    with override(cache_dir=tmp_path):
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(("batch", "hidden"), [(64, 64), (33, 80), (1, 16), (500, 32)])
def test_a_loop_by_hand(batch: int, hidden: int, dtype: torch.dtype) -> None:
    args = [x.cuda() for x in operands(40, batch, 24, hidden, dtype)]
    compiled = graphc.compile(lstm_by_hand)
    eager, exact = lstm_by_hand(*args), lstm_by_hand(*(x.double() for x in args))
    for _ in range(3):  # launched, recorded, replayed
        assert_contract(compiled(*args), eager, exact)
    assert any(name.startswith("loop") for name in compiled.source(*args))


@pytest.mark.parametrize("kind", [torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM], ids=["RNN", "GRU", "LSTM"])
def test_training(kind: type[torch.nn.Module]) -> None:
    torch.manual_seed(0)
    net = kind(24, 64, 2).cuda()
    exact = copy.deepcopy(net).double()
    x = torch.randn(30, 40, 24, device="cuda")
    compiled = graphc.compile(training(net))
    with torch.backends.cudnn.flags(enabled=False):
        found = [compiled(x) for _ in range(3)][-1]
        eager, true = training(net)(x), training(exact)(x.double())
    for mine, theirs, wanted in zip(found, eager, true, strict=True):
        assert_contract(mine, theirs, wanted)
    assert sum(name.startswith("loop") for name in compiled.source(x)) >= 2


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_packed_sequences(where: str) -> None:
    """Lengths are checked on the CPU, before anything is changed, and may have been computed on the GPU."""
    torch.manual_seed(0)
    net = torch.nn.GRU(6, 16).cuda()
    exact = copy.deepcopy(net).double()

    def step(net: torch.nn.Module, x: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
        packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
        out, last = net(packed)
        loss = pad_packed_sequence(out)[0].square().mean() + last.sin().sum()
        return [loss.detach(), last.detach(), *torch.autograd.grad(loss, list(net.parameters()))]

    compiled, x = graphc.compile(step), torch.randn(14, 3, 6, device="cuda")
    for lengths in ([3, 14, 1], [14, 14, 2], [5, 4, 14], [14, 1, 1]):
        count = torch.tensor(lengths, device=where)
        with torch.backends.cudnn.flags(enabled=False):
            eager, true = step(net, x, count), step(exact, x.double(), count)
        for mine, theirs, wanted in zip(compiled(net, x, count), eager, true, strict=True):
            assert_contract(mine, theirs, wanted)
    with pytest.raises(RuntimeError, match="greater than 0"):
        compiled(net, x, torch.tensor([14, 0, 3], device=where))
    assert (compiled.stats().compiles, compiled.stats().eager_calls) == (1, 1)


def test_measured_once() -> None:
    def layer(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x @ w + b)

    def none(label: str, runs: Any, clock: Any) -> dict[str, float]:
        raise AssertionError(f"{label} is measured again")

    args = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in ((512, 256), (256, 384), (384,))]
    compiled = graphc.compile(layer, mode="max")
    assert_contract(compiled(*args), layer(*args), layer(*(x.double() for x in args)))
    found = compiled.explain(*args).stats["measured"]
    times = [value for item in found.values() for value in item.values() if isinstance(value, float)]
    assert len(times) >= 2 and all(0 < value < 1e-2 for value in times)  # seconds
    with timed_by(none):
        again = graphc.compile(layer, mode="max")
        assert torch.equal(again(*args), compiled(*args))
