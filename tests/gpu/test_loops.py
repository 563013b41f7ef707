"""Loops over time as one kernel, and `mode="max"`, on a GPU: against eager and float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

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
