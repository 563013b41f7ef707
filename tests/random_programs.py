"""Functions that draw random numbers, for tests that run them on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

I8, I32, I64, F16, BF16, F64 = torch.int8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float64

BIT_EQUAL: dict[str, Callable[[torch.Tensor], Any]] = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout of channels_last": lambda x: F.dropout(x.to(memory_format=torch.channels_last)),
    "dropout of a slice": lambda x: F.dropout(x.transpose(1, 2)[:, ::2], 0.3),
    "dropout in place": lambda x: F.dropout(x.clone(), inplace=True),
    "dropout1d": lambda x: F.dropout1d(x[0]),
    "dropout2d": F.dropout2d,
    "dropout3d": lambda x: F.dropout3d(x[None]),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.4, training=True),
    "alpha_dropout": lambda x: F.alpha_dropout(x, training=True),
    "native_dropout": lambda x: torch.native_dropout(x, 0.25, True),
    "dropout of f64": lambda x: F.dropout(x.double()),
    "dropout of bf16": lambda x: F.dropout(x.to(BF16)),
    "dropout of f16": lambda x: F.dropout(x.half()),
    "two draws": lambda x: F.dropout(x, 0.3) + F.dropout(x, 0.3),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "bernoulli of f64": lambda x: torch.bernoulli(torch.full((40,), 0.3, dtype=F64)),
    "bernoulli_ of a tensor": lambda x: torch.empty(40, dtype=I32).bernoulli_(torch.linspace(0, 1, 40)),
    "bernoulli_ of bools": lambda x: torch.empty(40, dtype=torch.bool).bernoulli_(0.4),
    "rand": lambda x: (torch.rand(3, 40), torch.rand(40, dtype=F64), torch.rand(40, dtype=BF16)),
    "rand_like": lambda x: torch.rand_like(x, dtype=F16),
    "rand of nothing": lambda x: (torch.rand(0, 3), torch.rand(())),
    "randint": lambda x: (torch.randint(7, (60,)), torch.randint(-3, 4, (60,), dtype=I8)),
    "randint of 64 bits": lambda x: (torch.randint(-(2**63), 2**63 - 1, (60,)), torch.randint(2**40, (60,))),
    "randint_like": lambda x: (torch.randint_like(x, 5), torch.randint_like(x, 2, 9, dtype=I64)),
    "random_": lambda x: (torch.empty(40, dtype=I64).random_(), torch.empty(40).random_(), x.clone().random_(2, 5)),
    "uniform_": lambda x: x.clone().transpose(2, 3).uniform_(-1, 3),
    "uniform_ of a part": lambda x: (y := x.clone(), y[:, 1].uniform_()),
}
"""Exact arithmetic on what is drawn."""

NEAR: dict[str, Callable[[torch.Tensor], Any]] = {
    "randn": lambda x: (torch.randn(70), torch.randn(70, dtype=F64), torch.randn(70, dtype=BF16)),
    "randn_like": lambda x: torch.randn_like(x.transpose(1, 2)),
    "normal_": lambda x: x.clone().normal_(1.0, 2.0),
    "normal": lambda x: (torch.normal(x, x.abs()), torch.normal(x, 1.0), torch.normal(0.0, 1.0, (3,))),
    "exponential_": lambda x: x.clone().exponential_(2.0),
    "log_normal_": lambda x: x.clone().log_normal_(0.5, 0.2),
    "geometric_": lambda x: (torch.empty(40, dtype=I64).geometric_(0.3), x.clone().geometric_(0.7)),
    "gumbel_softmax": F.gumbel_softmax,
    "softmax and dropout": lambda x: F.dropout(x.softmax(-1), 0.3),
    "sum of dropout": lambda x: F.dropout(x, 0.3).sum(-1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.4),
}
"""Through functions that are a few units in the last place off."""

PROGRAMS = BIT_EQUAL | NEAR


def example() -> torch.Tensor:
    """(2, 4, 6, 5) float32."""
    return torch.linspace(-2, 2, 240).reshape(2, 4, 6, 5)


def tensors(result: Any) -> list[torch.Tensor]:
    """The tensors of a result."""
    return [result] if isinstance(result, torch.Tensor) else [part for item in result for part in tensors(item)]


def assert_same_draws(name: str, ours: Any, theirs: Any) -> None:
    """Two backends drew the same numbers, and laid them out alike."""
    for mine, other in zip(tensors(ours), tensors(theirs), strict=True):
        assert (mine.dtype, mine.shape, mine.stride()) == (other.dtype, other.shape, other.stride())
        if name in BIT_EQUAL:
            assert torch.equal(mine, other)
        else:
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
