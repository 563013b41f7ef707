"""Workloads of `graphc bench benchmarks/kernels.py`: fused kernels, rows, and a GPT's forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

ROWS, COLUMNS = 4096, 1024
BATCH, TOKENS, WIDTH, HEADS, VOCABULARY = 2, 256, 256, 8, 4096


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


class Block(nn.Module):
    """A pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class GPT(nn.Module):
    """A decoder-only transformer: token ids (B, T) int64 -> logits (B, T, vocabulary) float32."""

    def __init__(self, layers: int = 4, width: int = WIDTH, heads: int = HEADS, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(TOKENS, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _ids() -> tuple[torch.Tensor, ...]:
    return (torch.randint(0, VOCABULARY, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0)),)


torch.manual_seed(0)
gpt_forward = workload(_ids)(GPT().eval())
