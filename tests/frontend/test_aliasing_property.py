"""Random programs of views, in-place operators and reads: memory ends up as eager leaves it."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, given, settings

from tests.frontend.harness import check


def _dim(x: torch.Tensor, n: int) -> int:
    return n % max(x.dim(), 1)


def _slice(x: torch.Tensor, n: int) -> torch.Tensor:
    if x.dim() == 0:
        return x[None]
    dim = _dim(x, n)
    start = n % max(x.shape[dim], 1)
    return x[(slice(None),) * dim + (slice(start, None, 1 + n % 2),)]


VIEWS = [
    lambda x, n: x.transpose(_dim(x, n), _dim(x, n + 1)) if x.dim() else x.view(1),
    _slice,
    lambda x, n: x.select(_dim(x, n), n % x.shape[_dim(x, n)]) if x.dim() and x.shape[_dim(x, n)] else x[None],
    lambda x, n: x.unsqueeze(n % (x.dim() + 1)),
    lambda x, n: x.squeeze(),
    lambda x, n: x.reshape(-1),
    lambda x, n: x.diagonal(n % 2) if x.dim() == 2 else x.detach(),
    lambda x, n: x.unfold(_dim(x, n), 1, 1 + n % 2) if x.dim() and x.shape[_dim(x, n)] else x,
    lambda x, n: x.chunk(2, _dim(x, n))[0] if x.dim() else x,
    lambda x, n: x.movedim(0, -1) if x.dim() else x,
    lambda x, n: x.as_strided(x.shape, x.stride()),
]
READS = [
    lambda x, y, n: x + 1,
    lambda x, y, n: x * y if x.shape == y.shape else x * y.sum(),
    lambda x, y, n: x.clone(),
    lambda x, y, n: x.contiguous(),
    lambda x, y, n: x.sum(_dim(x, n)) if x.dim() else x * 2,
    lambda x, y, n: torch.cat([x.flatten(), y.flatten()]),
    lambda x, y, n: torch.zeros_like(x),
]
WRITES = [
    lambda x, y, n: x.add_(n),
    lambda x, y, n: x.mul_(y.amax() if y.numel() else 2.0),
    lambda x, y, n: x.copy_(y.reshape(-1)[:1].sum()),
    lambda x, y, n: x.fill_(n),
    # a copy between overlapping tensors has no defined result in eager, hence the clone
    lambda x, y, n: x.copy_(y.clone()) if x.shape == y.shape else x.neg_(),
    lambda x, y, n: x.masked_fill_(x > 1, 0.5),
    lambda x, y, n: torch.add(x, 1, out=x),
    lambda x, y, n: x.__setitem__((..., slice(0, 1)), float(n)) if x.dim() else x.zero_(),
]

STEP = st.tuples(
    st.sampled_from(["view", "view", "write", "read"]),
    st.integers(0, 20),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 5),
)


def _program(steps: list[tuple[Any, ...]], keep: int) -> Any:
    def fn(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        pool = [x, y]
        for kind, which, first, second, number in steps:
            a, b = pool[first % len(pool)], pool[second % len(pool)]
            if kind == "view":
                pool.append(VIEWS[which % len(VIEWS)](a, number))
            elif kind == "read":
                pool.append(READS[which % len(READS)](a, b, number))
            else:
                WRITES[which % len(WRITES)](a, b, number)
        return pool[-keep:]

    return fn


def _input(kind: int) -> torch.Tensor:
    torch.manual_seed(kind)
    if kind == 0:
        return torch.randn(2, 3)
    if kind == 1:
        return torch.randn(3, 4).t()
    if kind == 2:
        return torch.randn(4, 6)[1:3, ::2]
    return torch.randn(2, 1, 3)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(STEP, min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from(["apart", "same", "overlap"]),
)
def test_random_programs_of_views_and_writes(steps: Any, keep: int, kind: int, relation: str) -> None:
    x = _input(kind)
    y = {"apart": lambda: _input((kind + 1) % 4), "same": lambda: x, "overlap": lambda: x[..., 1:]}[relation]()
    check(_program(steps, keep), x, y, calls=1)
