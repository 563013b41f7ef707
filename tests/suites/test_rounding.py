"""Random rounding moves results about as far as rounding can, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from graphc.report.rounding import DRAWS, RandomRounding, draws


def _drawn(fn: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    found = []
    for rounding in draws():
        given = x.clone()
        with rounding:
            found.append(fn(given))
    return torch.stack(found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_results_lie_around_the_exact_one(dtype: torch.dtype) -> None:
    x = torch.linspace(0.1, 3.0, 50, dtype=torch.float64).to(dtype)
    wide = x.to(torch.complex128 if dtype.is_complex else torch.float64)
    drawn, exact = _drawn(torch.sin, x), torch.sin(wide)
    error = (drawn.to(exact.dtype) - exact).abs()
    unit = torch.finfo(dtype).eps * exact.abs()
    assert bool((error <= 1.5 * unit).all()) and bool((error.amax(0) > 0.2 * unit).float().mean() > 0.5)
    assert drawn.dtype == dtype and len({tuple(map(complex, row)) for row in drawn.tolist()}) == DRAWS


def test_doubles_lie_around_themselves() -> None:
    """As far as float32's error says: half a unit for one call, more for a long sum."""
    x = torch.linspace(0.1, 3.0, 1000, dtype=torch.float64)
    unit = torch.finfo(torch.float64).eps
    error = (_drawn(torch.sin, x) - x.sin()).abs() / x.sin()
    assert bool((error <= 1.5 * unit).all()) and bool((error.amax(0) > 0.2 * unit).float().mean() > 0.5)
    for fn in (torch.cumsum, torch.cumprod):
        exact, drawn = fn(x, 0), _drawn(lambda x, fn=fn: fn(x, 0), x)
        assert float((drawn[:, -1] / exact[-1] - 1).abs().max()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_what_is_exact_stays_so(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, -2.5, 0.0, torch.inf, torch.nan], dtype=dtype)

    def fn(x: torch.Tensor) -> torch.Tensor:
        y = x.reshape(5, 1).expand(5, 2) * 2
        y.add_(1)
        y[0] = 3
        return torch.cat([y, y.flip(0)]).t().contiguous()

    drawn = _drawn(fn, x)
    assert torch.equal(drawn.nan_to_num(7), fn(x).expand_as(drawn).nan_to_num(7))


def test_writes_views_and_gradients() -> None:
    """A write in place is drawn where it lies, and autograd goes by what was drawn."""
    x = torch.linspace(0.1, 1.0, 8)

    def fn(x: torch.Tensor) -> torch.Tensor:
        leaf = x.requires_grad_()
        y = leaf.exp()
        gradient = torch.autograd.grad(y.sum(), leaf)[0]
        memory = torch.zeros(4, 2)
        memory.view(-1).copy_(y.detach())
        memory.select(1, 0).mul_(1 / 3)
        return torch.stack([gradient, y.detach(), memory.reshape(-1)])

    drawn = _drawn(fn, x)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[:, 0], drawn[:, 1])  # the gradient of exp is its saved result
    assert torch.equal(drawn[:, 1, 1::2], drawn[:, 2, 1::2]) and not torch.equal(drawn[0, 2, ::2], drawn[1, 2, ::2])


def test_the_same_draws_every_time() -> None:
    x = torch.rand(16)
    with RandomRounding(3):
        first = x.sin()
    with RandomRounding(3):
        second = x.sin()
    assert torch.equal(first, second)


def test_zeros_without_memory() -> None:
    for rounding in draws():
        with rounding:
            zero = torch._efficientzerotensor(3) * torch.ones(3) / 3
        assert torch.equal(zero, torch.zeros(3))
