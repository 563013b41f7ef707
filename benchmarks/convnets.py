"""Training steps of small convolutional networks: eager, a whole compiled step, and a compiled module in an eager loop.

    python benchmarks/convnets.py

Cross-entropy and SGD with momentum, each contender on its own copy from the same seed; rounds are interleaved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

import graphc
from graphc.report.measure import interleaved


class Block(nn.Module):
    """Two convolutions and a shortcut: (B, C, H, W) -> (B, O, H / stride, W / stride)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        self.short: nn.Module = nn.Identity()
        if channels != out:
            self.short = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(self.first(x)) + self.short(x))


class UNet(nn.Module):
    """One level down and up again, with a skip: (B, 1, H, W) -> (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = nn.Conv2d(1, 16, 3, 1, 1), nn.Conv2d(16, 32, 3, 1, 1)
        self.up, self.head = nn.Conv2d(48, 16, 3, 1, 1), nn.Conv2d(16, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = F.relu(self.down(x))
        inner = F.relu(self.inner(F.max_pool2d(skip, 2)))
        joined = torch.cat([skip, F.interpolate(inner, scale_factor=2)], 1)
        return self.head(F.relu(self.up(joined))).mean((2, 3))


def resnet() -> nn.Module:
    blocks = (Block(32, 32, 1), Block(32, 64, 2), Block(64, 128, 2))
    stem = (nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def cifar_net() -> nn.Module:
    images = (nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*images, nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.Linear(84, 10))


def batch_norm_net() -> nn.Module:
    layers: list[nn.Module] = []
    for channels, out in ((3, 32), (32, 64)):
        layers += [nn.Conv2d(channels, out, 3, 1, 1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4096, 10))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (resnet, (32, 3, 32, 32)),
    "cifar_net": (cifar_net, (32, 3, 32, 32)),
    "batch_norm_net": (batch_norm_net, (64, 3, 32, 32)),
    "unet": (UNet, (16, 1, 32, 32)),
}


def training(name: str, contender: str) -> Callable[[], Any]:
    """A step of one contender."""
    torch.manual_seed(0)
    make, shape = NETS[name]
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9)
    x, y = torch.randn(shape), torch.randint(0, 10, shape[:1])
    called = graphc.compile(net) if contender == "module" else net

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(called(x), y).backward()
        optimizer.step()

    return graphc.compile(step) if contender == "step" else step


def main() -> None:
    table = Table("net", "eager", "whole step", "vs eager", "module", "vs eager")
    for name in NETS:
        steps = {contender: training(name, contender) for contender in ("eager", "step", "module")}
        for step in steps.values():
            for _ in range(3):
                step()
        medians = {contender: timing.median for contender, timing in interleaved(steps, 15).items()}
        row = [name, f"{medians['eager'] * 1e3:.2f} ms"]
        for contender in ("step", "module"):
            row += [f"{medians[contender] * 1e3:.2f} ms", f"{medians['eager'] / medians[contender]:.2f}x"]
        table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
