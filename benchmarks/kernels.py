"""Workloads of `graphc bench benchmarks/kernels.py`: fused kernels, rows, and a GPT's forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from zoo.text import GPT

ROWS, COLUMNS = 4096, 1024
BATCH, TOKENS, VOCABULARY = 2, 256, 4096


def workload(make_inputs: Callable[[], tuple[Any, ...]]) -> Callable[[Any], Any]:
    """Attach `example_inputs` to a function or module."""

    def attach(target: Any) -> Any:
        target.example_inputs = make_inputs
        return target

    return attach


def _matrices(count: int) -> Callable[[], tuple[torch.Tensor, ...]]:
    def make() -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        return tuple(torch.randn(ROWS, COLUMNS, generator=generator) for _ in range(count))

    return make


@workload(_matrices(2))
def pointwise_chain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Eight pointwise operators over 4M elements."""
    return torch.sigmoid(x) * torch.tanh(y) + F.gelu(x) - torch.exp(-y.abs())


@workload(_matrices(1))
def norm_softmax_rows(x: torch.Tensor) -> torch.Tensor:
    """layer_norm, then softmax, over rows of 1,024."""
    return torch.softmax(F.layer_norm(x, (COLUMNS,)), -1)


def _ids() -> tuple[torch.Tensor, ...]:
    return (torch.randint(0, VOCABULARY, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0)),)


torch.manual_seed(0)
gpt_forward = workload(_ids)(GPT().eval())
