"""Networks on sound."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .entry import Batch, Size, Workload, entry, floats, labels, pick

LETTERS = 29


class DeepSpeech(nn.Module):
    """Affine layers, a recurrent one in both directions, letters: (B, T, bins) -> log-probabilities (T, B, letters)."""

    def __init__(self, bins: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(bins, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.rnn = nn.RNN(hidden, hidden, nonlinearity="relu", bidirectional=True)
        self.fc4, self.out = nn.Linear(hidden, hidden), nn.Linear(hidden, LETTERS)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.fc1, self.fc2, self.fc3):
            x = self.dropout(F.hardtanh(layer(x), 0, 20))
        x, _ = self.rnn(x.transpose(0, 1))
        forth, back = x.chunk(2, -1)
        x = self.dropout(F.hardtanh(self.fc4(forth + back), 0, 20))
        return F.log_softmax(self.out(x), -1)


def _ctc(net: nn.Module, x: torch.Tensor, text: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    scores = net(x)
    heard = torch.full((x.shape[0],), x.shape[1], dtype=torch.int64)
    return F.ctc_loss(scores, text, heard, sizes)


@entry
def deep_speech(size: Size) -> Workload:
    """100 frames of 161 bins, state of 256, 20 letters, CTC loss, batch 4."""
    bins, hidden, frames, length, batch = pick(size, (6, 8, 9, 3, 3), (161, 256, 100, 20, 4))

    def data(seed: int) -> Batch:
        text = 1 + labels(seed, LETTERS - 1, batch, length)
        return floats(seed, batch, frames, bins), text, length - labels(seed, 2, batch)

    return Workload(DeepSpeech(bins, hidden), data, _ctc, draws=True)


class Gated(nn.Module):
    """A dilated causal convolution with a gate: (B, C, T) -> what goes on (B, C, T) and what skips ahead (B, S, T)."""

    def __init__(self, channels: int, skip: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.filter = nn.Conv1d(channels, channels, 2, dilation=dilation)
        self.gate = nn.Conv1d(channels, channels, 2, dilation=dilation)
        self.on, self.skip = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, skip, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        padded = F.pad(x, (self.dilation, 0))
        z = torch.tanh(self.filter(padded)) * torch.sigmoid(self.gate(padded))
        return x + self.on(z), self.skip(z)


class WaveNet(nn.Module):
    """What comes next in quantised sound: ids (B, T) of `levels` values -> logits (B, levels, T)."""

    def __init__(self, levels: int, channels: int, skip: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(levels, channels)
        self.layers = nn.ModuleList(Gated(channels, skip, 2**number) for number in range(layers))
        self.out1, self.out2 = nn.Conv1d(skip, skip, 1), nn.Conv1d(skip, levels, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids).transpose(1, 2)
        total = None
        for layer in self.layers:
            x, skip = layer(x)
            total = skip if total is None else total + skip
        return self.out2(F.relu(self.out1(F.relu(total))))


@entry
def wave_net(size: Size) -> Workload:
    """8 dilated layers of 32 channels, 256 levels of sound, 1,024 samples, batch 2."""
    levels, channels, skip, layers, length, batch = pick(size, (16, 4, 6, 3, 20, 2), (256, 32, 64, 8, 1024, 2))

    def data(seed: int) -> Batch:
        sound = labels(seed, levels, batch, length + 1)
        return sound[:, :-1].contiguous(), sound[:, 1:].contiguous()

    return Workload(WaveNet(levels, channels, skip, layers), data)
