"""Random functions that branch on data, write in place and make views: what eager does, on every path met."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import graphc
from tests.e2e.test_programs import _shared

_COMPARE = (
    lambda t: t.sum() > 0, lambda t: (t > 1).any(), lambda t: bool((t < 2).all()), lambda t: t.sum().item() > 0.5,
    lambda t: int((t > 0).sum()) % 2 == 0, lambda t: len(t.reshape(-1).nonzero()) > 3,
)  # fmt: skip


def _step(choose: random.Random, pool: list[torch.Tensor]) -> None:
    """One statement of a random function: it adds to the pool of tensors, or writes to one of them."""
    kind, t, other = choose.randrange(12), choose.choice(pool), choose.choice(pool)
    if kind == 0:
        pool.append(t * 2 - 1)
    elif kind == 1:
        pool.append(t.reshape(-1)[: t.numel() // 2 + 1])
    elif kind == 2:
        pool.append(t.t() if t.dim() == 2 else t.reshape(-1, 1))
    elif kind == 3:
        t.mul_(choose.choice((-1, 0.5, 2)))
    elif kind == 4:
        t.add_(other.sum() * 0.25)
    elif kind == 5:
        pool.append(torch.rand_like(t) - 0.5)
    elif kind == 6:
        pool.append(t.reshape(-1)[t.reshape(-1) > 0] + 1)
    elif kind == 7 and t.numel():
        t.reshape(-1)[other.numel() % t.numel()] = 3
    elif kind == 8 and t.dim() and t.shape[0]:
        pool.append(t[(other > 0).sum() % t.shape[0]])
    elif kind == 9 and t.dim() and t.shape[0]:
        t[(other > 0).sum() % t.shape[0]] -= 1
    elif kind == 10:
        pool.append(t.clone())
    elif kind == 11:
        t.masked_fill_(t > 2, 1.0)
    del pool[:-6]


def _function(seed: int) -> Any:
    def run(x: torch.Tensor, y: torch.Tensor) -> Any:
        choose = random.Random(seed)
        pool, taken = [x, y], []
        for _ in range(choose.randrange(2, 5)):
            for _ in range(choose.randrange(1, 5)):
                _step(choose, pool)
            if choose.choice(_COMPARE)(choose.choice(pool)):
                taken.append(True)
                _step(choose, pool)
            else:
                taken.append(False)
        results = [choose.choice(pool) for _ in range(2)]
        return [*results, results[0].sum().item(), taken]

    return run


def check(seed: int, backend: str) -> None:
    """Several calls of one random function, compiled and eager."""
    fn, generator = _function(seed), torch.Generator().manual_seed(seed)
    compiled = graphc.compile(fn, backend=backend, numerics="eager")  # its random numbers
    for turn in range(4):
        x, y = (torch.randn(shape, generator=generator) for shape in ((3, 2), (4,)))
        seen = []
        for call in (fn, compiled):
            mine = [x.clone(), y.clone()]
            torch.manual_seed(turn)
            *tensors, number, taken = call(*mine)
            seen.append((tensors + mine + [torch.rand(1)], number, taken))
        (eager, theirs, path), (ours, number, taken) = seen
        assert path == taken
        assert number == pytest.approx(theirs, rel=1e-4, abs=1e-5, nan_ok=True)
        assert [t.stride() for t in ours] == [t.stride() for t in eager]
        for mine, other in zip(ours, eager, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5, equal_nan=True)
        assert _shared(ours) == _shared(eager)
    assert compiled.stats().eager_calls == 0, compiled.stats()


@pytest.mark.parametrize("seed", range(12))
def test_as_eager(seed: int) -> None:
    check(seed, "interpret")


@pytest.mark.parametrize("seed", range(3))
def test_as_eager_in_c(seed: int) -> None:
    check(seed, "c")
