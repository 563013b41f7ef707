"""Loops that are cut where a mask of places changes: sums, scans and rows kept for later go on through all pieces."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
import torch

import graphc

Tensor = torch.Tensor
SHAPES = ((5, 37), (3, 64), (2, 1000), (37,), (4096,), (3, 5, 17), (70, 40), (2, 9000))
"""Rows in one piece, in blocks, beside others, and longer than is kept."""
POINTWISE: tuple[Callable[[Tensor], Tensor], ...] = (torch.exp, torch.sin, torch.sigmoid, lambda x: x.abs() + 0.1)
OVER_A_DIM: tuple[Callable[[Tensor, int], Tensor], ...] = (
    lambda x, d: x.sum(d, keepdim=True),
    lambda x, d: x.amax(d, keepdim=True),
    lambda x, d: x.mean(d, keepdim=True),
    lambda x, d: x.amin(d, keepdim=True),
    lambda x, d: x.var(d, keepdim=True),
    lambda x, d: x.argmax(d, keepdim=True).to(x.dtype),
    lambda x, d: x.cumsum(d),
    lambda x, d: x.cummax(d)[0],
    lambda x, d: x.flip(d).cumsum(d).flip(d),
    lambda x, d: x.softmax(d),
)
COMPARE = (torch.lt, torch.ge, torch.eq, torch.ne)


def _program(random: Random) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Some values, each of one or two before it."""
    first = random.choice(POINTWISE)
    steps = [
        (
            random.randrange(count + 2), random.randrange(count + 2), random.choice([-1, -1, -1, 0]),
            random.choice([0.0, 0.1, 0.5, 1.0]), random.choice(COMPARE), random.randrange(5),
            random.choice([0.0, -5.0]),
            random.choice(OVER_A_DIM), random.choice(POINTWISE),
        )
        for count in range(random.randint(3, 7))
    ]  # fmt: skip

    def program(x: Tensor) -> tuple[Tensor, Tensor]:
        values = [x, first(x)]
        for one, other, dim, share, compare, kind, number, over, pointwise in steps:
            a, b = values[one], values[other]
            places = torch.arange(x.shape[dim]).reshape([-1 if d == dim % x.dim() else 1 for d in range(x.dim())])
            mask = compare(places, int(share * (x.shape[dim] - 1)))
            values.append(
                (
                    lambda: torch.where(mask, a, b),
                    lambda: over(torch.where(mask, a, number).expand_as(x), dim),
                    lambda: over(a.expand_as(x), dim),
                    lambda: a / (1 + b.abs()),
                    lambda: pointwise(a.clamp(-3, 3)),
                )[kind]()
            )
        return values[-1], values[-2]

    return program


@pytest.mark.parametrize("seed", range(60))
def test_masks_by_place(seed: int) -> None:
    random = Random(seed)
    x = torch.randn(random.choice(SHAPES), generator=torch.Generator().manual_seed(seed))
    program = _program(random)
    compiled = graphc.compile(program, backend="c")
    for ours, eager, exact in zip(compiled(x), program(x), program(x.double()), strict=True):
        size = float(exact.abs().max().clamp(1, 1e30))
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4 * size, equal_nan=True)
    assert compiled.stats().eager_calls == 0
