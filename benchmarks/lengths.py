"""Batches of many lengths: what a training loop waits for while programs for them come to be, and what steps take then.

    python benchmarks/lengths.py [--against inductor] [--batches 1500]

trains a Transformer on batches of 12 to 120 words, each contender in a process of its own, from the same seed, with an
empty cache, and prints per contender the seconds of the whole loop, of its slowest step, and of the last hundred
batches. graphc is there twice: as it is, and with `dynamic=False`, where each length is compiled for itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import graphc
from graphc.report.bench import describe_machine
from graphc.report.own_models import empty_caches

WORDS, WIDTH, ROWS = 1000, 128, 16
SHORTEST, LONGEST = 12, 120
LAST = 100
CONTENDERS = ("eager", "graphc", "graphc dynamic=False")


class Tagger(nn.Module):
    """A class per word."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.encoder(self.embed(words)))
        return out


def make_step(contender: str) -> Callable[[torch.Tensor, torch.Tensor], Any]:
    """A training step."""
    torch.manual_seed(0)
    net = Tagger()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)

    def loss_of(words: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(net(words).flatten(0, 1), tags.flatten())

    def whole(words: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(words, tags)
        loss.backward()
        optimizer.step()
        return loss.detach()

    if contender.startswith("graphc"):
        return graphc.compile(whole, dynamic=False if contender.endswith("False") else None)
    if contender == "eager":
        return whole
    forward, update = torch.compile(loss_of), torch.compile(optimizer.step)

    def compiled(words: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = forward(words, tags)
        loss.backward()
        update()
        return loss.detach()

    return compiled


def train(contender: str, batches: int) -> dict[str, Any]:
    """Seconds of the loop, of its slowest step and of the last batches; and how often graphc built what."""
    with empty_caches():
        step = make_step(contender)
        random = torch.Generator().manual_seed(1)
        times: list[float] = []
        loss = torch.zeros(())
        for _ in range(batches):
            length = int(torch.randint(SHORTEST, LONGEST + 1, (), generator=random))
            words = torch.randint(0, WORDS, (ROWS, length), generator=random)
            start = time.perf_counter()
            loss = step(words, words.flip(1))
            times.append(time.perf_counter() - start)
    found: dict[str, Any] = {
        "whole": sum(times),
        "slowest": max(times),
        "last": sum(times[-LAST:]),
        "loss": float(loss),
    }
    if contender.startswith("graphc"):
        stats = step.stats()  # type: ignore[attr-defined]
        found["compiles"] = f"{stats.compiles}, {stats.compiles - stats.reuses} of them built"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", default="", help="inductor, or nothing")
    parser.add_argument("--batches", type=int, default=1500)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(train(options.only, options.batches)))
        return
    print("| contender | all batches | slowest step | last 100 batches | compiles | loss |\n|---|---|---|---|---|---|")
    for contender in (*CONTENDERS, *filter(None, options.against.split(","))):
        command = [sys.executable, __file__, "--only", contender, "--batches", str(options.batches)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {contender} | {row['whole']:.1f} s | {row['slowest']:.2f} s | {row['last']:.2f} s | "
            f"{row.get('compiles', '')} | {row['loss']:.5f} |",
            flush=True,
        )
    print(f"\nMeasured one after the other: {', '.join(f'{key} {value}' for key, value in describe_machine().items())}")


if __name__ == "__main__":
    main()
