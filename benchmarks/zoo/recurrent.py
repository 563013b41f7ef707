"""Networks that read or write step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .entry import Batch, Size, Workload, entry, floats, labels, pick


class Tagger(nn.Module):
    """A class per word: ids (B, T) -> logits (B, tags, T)."""

    def __init__(self, kind: type[nn.RNNBase], words: int, width: int, hidden: int, tags: int, **options: Any) -> None:
        super().__init__()
        self.embed, self.core = nn.Embedding(words, width), kind(width, hidden, batch_first=True, **options)
        self.out = nn.Linear(hidden * (2 if self.core.bidirectional else 1), tags)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.core(self.embed(x))[0]).transpose(1, 2)


def _tagger(size: Size, kind: type[nn.RNNBase], **options: Any) -> Workload:
    words, width, hidden, tags, batch, length = pick(size, (11, 6, 8, 5, 3, 7), (5000, 64, 128, 20, 16, 50))
    net = Tagger(kind, words, width, hidden, tags, **options)
    return Workload(net, lambda seed: (labels(seed, words, batch, length), labels(seed + 99, tags, batch, length)))


@entry
def rnn(size: Size) -> Workload:
    """Elman's network tags 50 words, embeddings of 64, state of 128, batch 16."""
    return _tagger(size, nn.RNN)


@entry
def lstm(size: Size) -> Workload:
    """The same with an LSTM of two layers."""
    return _tagger(size, nn.LSTM, num_layers=2)


@entry
def gru(size: Size) -> Workload:
    """The same with a GRU in both directions."""
    return _tagger(size, nn.GRU, bidirectional=True)


class LstmCell(nn.Module):
    """An LSTM written by hand in a Python loop: (B, T, F) -> (B, 10)."""

    def __init__(self, width: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.hidden = hidden
        self.x, self.h, self.out = nn.Linear(width, 4 * hidden), nn.Linear(hidden, 4 * hidden), nn.Linear(hidden, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = c = x.new_zeros(x.shape[0], self.hidden)
        for t in range(x.shape[1]):
            i, f, g, o = (self.x(x[:, t]) + self.h(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h)


@entry
def hand_written_lstm(size: Size) -> Workload:
    """A cell in a Python loop, 64 -> 128, 50 steps, batch 16."""
    width, hidden, length, batch = pick(size, (6, 8, 6, 3), (64, 128, 50, 16))
    return Workload(LstmCell(width, hidden), lambda seed: (floats(seed, batch, length, width), labels(seed, 10, batch)))


class Attention(nn.Module):
    """Additive attention of a state (B, H) on memory (B, T, H) -> what it looks at (B, H)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query, self.key, self.score = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)

    def forward(self, state: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        scores = self.score(torch.tanh(self.query(state).unsqueeze(1) + self.key(memory))).squeeze(-1)
        return torch.bmm(F.softmax(scores, dim=-1).unsqueeze(1), memory).squeeze(1)


class Seq2Seq(nn.Module):
    """Source (B, S) and target with its start mark (B, T), which is fed back -> logits (B, T, words)."""

    def __init__(self, words: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(words, hidden), nn.Embedding(words, hidden)
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.GRU(hidden, hidden, batch_first=True)
        self.attention = Attention(hidden)
        self.cell = nn.GRUCell(2 * hidden, hidden)
        self.out = nn.Linear(hidden, words)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory, last = self.encoder(self.dropout(self.source(source)))
        state, outputs = last[0], []
        for t in range(target.shape[1]):
            looked_at = self.attention(state, memory)
            state = self.cell(torch.cat([self.dropout(self.target(target[:, t])), looked_at], dim=-1), state)
            outputs.append(self.out(state))
        return torch.stack(outputs, dim=1)


def _sequence_loss(net: nn.Module, source: torch.Tensor, target: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return F.nll_loss(F.log_softmax(net(source, target), -1).flatten(0, 1), wanted.flatten())


@entry
def seq2seq(size: Size) -> Workload:
    """GRU encoder, GRU cell with additive attention, 10 words each, vocabulary of 3,000, state of 128, batch 32."""
    words, hidden, length, batch = pick(size, (9, 6, 5, 3), (3000, 128, 10, 32))

    def data(seed: int) -> Batch:
        target = labels(seed + 99, words, batch, length + 1)
        return labels(seed, words, batch, length), target[:, :-1].contiguous(), target[:, 1:].contiguous()

    return Workload(Seq2Seq(words, hidden, 0.1), data, _sequence_loss, takes=2, draws=True)
