"""Workloads of `graphc bench benchmarks/scatter.py`: sums at places that are data, and a batch norm's gradient.

Each is a part of a training step: the gradient of an embedding, `index_add`, `scatter_add` row by row and element by
element, an accumulating `index_put`, and the gradients of a batch norm whose image has its channels side by side.
"""

from __future__ import annotations

import torch
from kernels import workload
from torch.nn import functional as F

ROWS, WIDTH, TOKENS = 50_000, 128, 8192
"""Rows of a table, their length, and how many of them are looked up."""
GROUPS, ITEMS = 1000, 32_768
IMAGE = (16, 64, 56, 56)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _places(count: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, count, shape, generator=torch.Generator().manual_seed(1))


@workload(lambda: (_random(ROWS, WIDTH), _places(ROWS, TOKENS), _random(TOKENS, WIDTH)))
def embedding_gradient(table: torch.Tensor, ids: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor:
    """Of a table of 50,000 rows, of which most are not looked up."""
    table = table.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(F.embedding(ids, table), table, cotangent)[0]


@workload(lambda: (_random(GROUPS, WIDTH), _places(GROUPS, ITEMS), _random(ITEMS, WIDTH)))
def index_add(base: torch.Tensor, index: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Rows added to few rows, as nodes of a graph sum what comes over its edges."""
    return base.index_add(0, index, source * 0.5)


@workload(lambda: (_random(GROUPS, WIDTH), _places(GROUPS, ITEMS), _random(ITEMS, WIDTH)))
def scatter_add_rows(base: torch.Tensor, index: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """The same as people write it with an expanded index."""
    return base.scatter_add(0, index[:, None].expand(-1, WIDTH), source)


@workload(lambda: (_random(ITEMS, WIDTH), _places(WIDTH, ITEMS, WIDTH), _random(ITEMS, WIDTH)))
def scatter_add_elements(base: torch.Tensor, index: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Every element at a place of its own in its row."""
    return base.scatter_add(1, index, source)


@workload(lambda: (_random(WIDTH, GROUPS), _places(WIDTH, ITEMS), _places(GROUPS, ITEMS), _random(ITEMS)))
def index_put(base: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Single elements, accumulated, as the gradient of `x[rows, columns]`."""
    return base.index_put((rows, columns), values.sigmoid(), accumulate=True)


def _image() -> torch.Tensor:
    return _random(*IMAGE).contiguous(memory_format=torch.channels_last)


@workload(lambda: (_image(), torch.ones(IMAGE[1]), torch.zeros(IMAGE[1]), _image()))
def batch_norm_gradient(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, cotangent: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Forward and backward pass in training, channels_last."""
    x, weight, bias = (item.detach().requires_grad_() for item in (x, weight, bias))
    with torch.enable_grad():
        y = F.batch_norm(x, None, None, weight, bias, training=True)
        return torch.autograd.grad(y, (x, weight, bias), cotangent)
