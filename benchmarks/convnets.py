"""Training steps of small convolutional networks: eager, a whole compiled step, and a compiled module in an eager loop.

    python benchmarks/convnets.py

Cross-entropy and SGD with momentum, each contender on its own copy from the same seed; rounds are interleaved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import zoo
from rich.console import Console
from rich.table import Table
from torch import nn
from zoo.entry import images, momentum
from zoo.vision import BasicBlock

import graphc
from graphc.report.measure import interleaved


def resnet() -> zoo.Workload:
    """Three blocks on 32x32 images, the first of 32 channels, batch 32."""
    blocks = (BasicBlock(32, 32), BasicBlock(32, 64, 2), BasicBlock(64, 128, 2))
    stem = (nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return zoo.Workload(nn.Sequential(*stem, *blocks, *head), images(10, 32, 3, 32, 32))


def batch_norm_net() -> zoo.Workload:
    """Convolution, batch norm, ReLU, pool, twice; batch 64."""
    layers: list[nn.Module] = []
    for channels, out in ((3, 32), (32, 64)):
        layers += [nn.Conv2d(channels, out, 3, 1, 1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
    return zoo.Workload(nn.Sequential(*layers, nn.Flatten(), nn.Linear(4096, 10)), images(10, 64, 3, 32, 32))


NETS: dict[str, Callable[[], zoo.Workload]] = {
    "resnet": resnet,
    "cifar_net": lambda: zoo.build("cifar_net", "full"),
    "batch_norm_net": batch_norm_net,
    "unet": lambda: zoo.build("unet", "full"),
}


def training(name: str, contender: str) -> Callable[[], Any]:
    """A step of one contender."""
    torch.manual_seed(0)
    work = NETS[name]()
    work.optimizer = momentum
    step = work.training(graphc.compile(work.net) if contender == "module" else None).step
    batch, call = work.batch(0), graphc.compile(step) if contender == "step" else step
    return lambda: call(*batch)


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
