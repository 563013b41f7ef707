"""`torch.arange` between numbers that data decide: a path per count, not per number."""

from __future__ import annotations

import pytest
import torch

import graphc

T = torch.tensor
CASES = {
    "one": (lambda t: torch.arange(t, t + 1), (T(1), T(2), T(7)), 1),
    "columns": (lambda t: torch.arange(t, t + 3, dtype=torch.int32) * 2, (T(1), T(-5)), 1),
    "down": (lambda t: torch.arange(10, t, -3), (T(1), T(2), T(5), T(10)), 4),
    "end": (lambda t: torch.arange(t.item(), dtype=torch.float32), (T(3), T(0), T(3)), 2),
    "floats": (lambda t: torch.arange(t, 3.5, 0.5), (T(1.0), T(2.0)), 2),
    "step": (lambda t: torch.arange(0, 10, t), (T(3), T(5)), 2),
}


@pytest.mark.parametrize("name", CASES)
def test_counts_as_in_eager(name: str) -> None:
    fn, numbers, paths = CASES[name]
    compiled = graphc.compile(fn, backend="c")
    for number in numbers:
        mine, other = compiled(number), fn(number)
        assert mine.dtype == other.dtype and torch.equal(mine, other)
    assert compiled.stats().paths == paths and not compiled.stats().eager_calls


@pytest.mark.parametrize("bounds", [lambda t: (10, t, -3), lambda t: (t, 3), lambda t: (0, 3, t * 0)])
def test_what_eager_refuses(bounds) -> None:
    fn = lambda t: torch.arange(*bounds(t))
    for compiled in (fn, graphc.compile(fn, backend="c")):
        with pytest.raises(RuntimeError):
            compiled(T(12))
