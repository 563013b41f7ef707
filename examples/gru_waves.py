"""Which wave is it? A two-layer GRU on noisy signals, one whole step compiled; RMSprop, learning rate by plateau.

python examples/gru_waves.py [--eager] [--resume]
"""

from __future__ import annotations

import math

import torch
from fit import Options, Result, accuracy, example, finish, fit, loaders
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import graphc

STEPS, KINDS = 30, 4


def waves(samples: int, seed: int) -> TensorDataset:
    """Signals (N, T, 1) float32: sine, square, saw tooth or triangle of any pitch and phase; kinds (N,) int64."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(0, KINDS, (samples,), generator=generator)
    pitch = 0.08 + 0.06 * torch.rand(samples, 1, generator=generator)
    phase = torch.rand(samples, 1, generator=generator)
    turn = (torch.arange(STEPS) * pitch + phase) % 1  # (N, T), in turns
    shapes = torch.stack(
        [
            torch.sin(2 * math.pi * turn),
            torch.where(turn < 0.5, 1.0, -1.0),
            2 * turn - 1,
            1 - 4 * (turn - 0.5).abs(),
        ]
    )
    signals = shapes[kinds, torch.arange(samples)] + 0.15 * torch.randn(samples, STEPS, generator=generator)
    return TensorDataset(signals.unsqueeze(-1), kinds)


class WaveNet(nn.Module):
    """Signals (B, T, 1) -> logits (B, kinds), from the last state of the upper layer."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.gru = nn.GRU(1, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, KINDS)

    def forward(self, signals: torch.Tensor) -> torch.Tensor:
        _, last = self.gru(signals)
        return self.head(last[-1])


@example(epochs=12, samples=1200)
def main(options: Options) -> Result:
    data = loaders(waves(options.samples, options.seed), 25, options)
    model = WaveNet()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor=0.5, patience=1)

    @graphc.compile
    def train_step(signals: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(signals), kinds)
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 0.5)
        optimizer.step()
        return loss.detach()

    @graphc.compile
    @torch.no_grad()
    def predict(signals: torch.Tensor) -> torch.Tensor:
        return model(signals).argmax(-1)

    def validate() -> float:
        score = accuracy(predict, data.valid)
        schedule.step(score)
        return score

    result = fit(options, model, train_step, data.train, validate, keep={"optimizer": optimizer, "plateau": schedule})
    return finish(result, accuracy(predict, data.test), train_step, predict)


if __name__ == "__main__":
    main()
