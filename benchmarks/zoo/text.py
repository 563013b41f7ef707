"""Transformers on token ids."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from .entry import Batch, Size, Workload, entry, labels, pick

PAD = 0


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
    """A decoder-only transformer: token ids (B, T) int64 -> logits (B, T, vocabulary)."""

    def __init__(
        self, layers: int = 4, width: int = 256, heads: int = 8, vocabulary: int = 4096, tokens: int = 256
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _next_token(net: nn.Module, ids: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(net(ids).flatten(0, 1), following.flatten())


@entry
def gpt(size: Size) -> Workload:
    """4 layers of width 256, 8 heads, vocabulary of 4,096; batch 2, 256 tokens."""
    layers, width, heads, vocabulary, tokens, batch = pick(size, (2, 8, 2, 13, 7, 3), (4, 256, 8, 4096, 256, 2))

    def data(seed: int) -> Batch:
        ids = labels(seed, vocabulary, batch, tokens)
        return ids, ids.roll(-1, 1)

    return Workload(GPT(layers, width, heads, vocabulary, tokens), data, _next_token)


class Bert(nn.Module):
    """An encoder whose head predicts masked tokens, tied to the embedding.

    Ids (B, T), segments (B, T), padding (B, T) bool -> logits (B, T, vocabulary).
    """

    def __init__(self, layers: int, width: int, heads: int, vocabulary: int, tokens: int, dropout: float) -> None:
        super().__init__()
        self.token, self.segment = nn.Embedding(vocabulary, width, padding_idx=PAD), nn.Embedding(2, width)
        self.position = nn.Embedding(tokens, width)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.head = nn.Linear(width, vocabulary)
        self.head.weight = self.token.weight
        for embedding in (self.token, self.segment, self.position):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, ids: torch.Tensor, segments: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.dropout(self.norm(self.token(ids) + self.segment(segments) + self.position(places)))
        return self.head(self.transform(self.encoder(x, src_key_padding_mask=padding)))


def _masked(net: nn.Module, ids: torch.Tensor, segments: torch.Tensor, padding: torch.Tensor, wanted: torch.Tensor):
    return F.cross_entropy(net(ids, segments, padding).flatten(0, 1), wanted.flatten(), ignore_index=-100)


@entry
def bert(size: Size) -> Workload:
    """4 layers of width 256, vocabulary of 8,192, dropout; batch 4, 128 tokens of which one in seven is masked."""
    layers, width, heads, vocabulary, tokens, batch = pick(size, (2, 8, 2, 17, 8, 3), (4, 256, 4, 8192, 128, 4))

    def data(seed: int) -> Batch:
        ids = 2 + labels(seed, vocabulary - 2, batch, tokens)
        lengths = tokens - labels(seed + 1, tokens // 4, batch, 1)
        padding = torch.arange(tokens) >= lengths
        hidden = ((ids + torch.arange(tokens)) % 7 == 0) & ~padding
        hidden[:, 0] = True
        wanted = torch.where(hidden, ids, -100)
        segments = (torch.arange(tokens) >= tokens // 2).long().expand(batch, -1)
        return ids.masked_fill(hidden, 1).masked_fill(padding, PAD), segments.contiguous(), padding, wanted

    net = Bert(layers, width, heads, vocabulary, tokens, 0.1)
    return Workload(net, data, _masked, takes=3, draws=True)


class PositionalEncoding(nn.Module):
    """Adds sines and cosines of the position: (B, T, width) -> (B, T, width)."""

    pe: torch.Tensor

    def __init__(self, width: int, longest: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        position = torch.arange(longest).unsqueeze(1)
        frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        pe = torch.zeros(longest, width)
        pe[:, 0::2] = torch.sin(position * frequency)
        pe[:, 1::2] = torch.cos(position * frequency)
        self.register_buffer("pe", pe)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(x + self.pe[: x.size(1)])


class Translator(nn.Module):
    """Source ids (B, S), target ids so far (B, T) -> logits of the next words (B, T, targets)."""

    def __init__(self, sources: int, targets: int, width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.source = nn.Embedding(sources, width, padding_idx=PAD)
        self.target = nn.Embedding(targets, width, padding_idx=PAD)
        self.position = PositionalEncoding(width, 64, dropout)
        self.transformer = nn.Transformer(width, heads, layers, layers, 2 * width, dropout, batch_first=True)
        self.out = nn.Linear(width, targets)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        padding = source == PAD
        causal = torch.triu(torch.ones(target.size(1), target.size(1), dtype=torch.bool), diagonal=1)
        decoded = self.transformer(
            self.position(self.source(source) * math.sqrt(self.width)),
            self.position(self.target(target) * math.sqrt(self.width)),
            tgt_mask=causal, src_key_padding_mask=padding, tgt_key_padding_mask=target == PAD,
            memory_key_padding_mask=padding,
        )  # fmt: skip
        return self.out(decoded)


def _translated(net: nn.Module, source: torch.Tensor, target: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    logits = net(source, target)
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD, label_smoothing=0.1)


@entry
def translation(size: Size) -> Workload:
    """Transformer of 3 + 3 layers of width 512 with sinusoidal positions, dropout; batch 8, 24 words each."""
    layers, width, heads, words, length, batch = pick(size, (1, 8, 2, 11, 6, 3), (3, 512, 8, 8192, 24, 8))

    def sentences(seed: int, length: int) -> torch.Tensor:
        ids = 1 + labels(seed, words - 1, batch, length)
        return ids.masked_fill(torch.arange(length) >= length - labels(seed, length // 3, batch, 1), PAD)

    def data(seed: int) -> Batch:
        target = sentences(seed + 99, length + 1)
        return sentences(seed, length), target[:, :-1].contiguous(), target[:, 1:].contiguous()

    net = Translator(words, words, width, heads, layers, 0.1)
    return Workload(net, data, _translated, takes=2, draws=True)
