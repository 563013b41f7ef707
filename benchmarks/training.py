"""Whole training steps, optimizer included: eager, graphc and torch.compile in one run.

    python benchmarks/training.py [--against inductor] [WORKLOAD ...]

Each contender trains its own copy of a model from the same seed; rounds are interleaved. `compile` is the first call
less a later one, with an empty cache, in this process; `peak` is what there is at most during one step beside
parameters, optimizer state and batch: gradients, old and new, and a compiled program's arena included; `max error` is
the largest difference of a parameter to eager's after the steps taken.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from kernels import BATCH, GPT, TOKENS, VOCABULARY
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

import graphc
from graphc.report.measure import interleaved, peak_bytes
from graphc.settings import override

Step = Callable[..., Any]
WORKLOADS: dict[str, Callable[[], tuple[list[nn.Parameter], Step, tuple[torch.Tensor, ...]]]] = {}
GOALS = {"gpt": 1.2, "cnn": 1.1, "mlp": 1.9, "lstm": 3.0, "lstm_500": 3.0, "adam_200": 5.0, "adam_1000": 5.0}
"""Times faster than eager."""


def workload(build: Callable[[], Any]) -> Callable[[], Any]:
    WORKLOADS[build.__name__] = build
    return build


def _classifier(net: nn.Module, x: torch.Tensor, classes: int) -> Any:
    """A step of cross-entropy and Adam, with its parameters and batch."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    labels = torch.randint(0, classes, (x.shape[0],))

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return list(net.parameters()), step, (x, labels)


@workload
def gpt() -> Any:
    """4 layers of width 256, 8 heads; batch 2, 256 tokens."""
    net = GPT()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    ids = torch.randint(0, VOCABULARY, (BATCH, TOKENS))

    def step(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(ids).flatten(0, 1), labels.flatten())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return list(net.parameters()), step, (ids, ids.roll(-1, 1))


@workload
def cnn() -> Any:
    """The tutorials' CNN on 28x28 images, batch 64."""
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    return _classifier(net, torch.randn(64, 1, 28, 28), 10)


@workload
def mlp() -> Any:
    """784-128-10, batch 64."""
    return _classifier(nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)), torch.randn(64, 784), 10)


class LstmCell(nn.Module):
    """A hand-written LSTM in a Python loop: (B, T, 64) -> (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.out = nn.Linear(64, 512), nn.Linear(128, 512), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = c = x.new_zeros(x.shape[0], 128)
        for t in range(x.shape[1]):
            i, f, g, o = (self.x(x[:, t]) + self.h(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h)


@workload
def lstm() -> Any:
    """A hand-written cell, 64 -> 128, 50 steps, batch 16."""
    return _classifier(LstmCell(), torch.randn(16, 50, 64), 10)


@workload
def lstm_500() -> Any:
    """The same cell over 500 steps: what matters is that it compiles no longer."""
    return _classifier(LstmCell(), torch.randn(16, 500, 64), 10)


@workload
def adam_200() -> Any:
    """Adam's update alone, of 200 tensors of 32x32."""
    parameters = [nn.Parameter(torch.randn(32, 32)) for _ in range(200)]
    for parameter in parameters:
        parameter.grad = torch.randn(32, 32)
    optimizer = torch.optim.Adam(parameters, lr=1e-3, foreach=False)

    def step() -> None:
        optimizer.step()

    return parameters, step, ()


@workload
def adam_1000() -> Any:
    """Adam's update alone, of 1,000 tensors of 851 shapes: how compile time grows with their number."""
    parameters = [nn.Parameter(torch.randn(3 + i % 37, 5 + i % 23)) for i in range(1000)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.Adam(parameters, lr=1e-3, foreach=False)

    def step() -> None:
        optimizer.step()

    return parameters, step, ()


def compiled(contender: str, step: Step) -> Step:
    if contender == "eager":
        return step
    return graphc.compile(step) if contender == "graphc" else torch.compile(step)


def measure(name: str, contenders: list[str], rounds: int, table: Table) -> None:
    """Add one row per contender to the table."""
    calls: dict[str, Callable[[], Any]] = {}
    parameters: dict[str, list[nn.Parameter]] = {}
    first: dict[str, float] = {}
    arenas: dict[str, int] = {}
    for contender in contenders:
        torch.manual_seed(0)
        parameters[contender], step, batch = WORKLOADS[name]()
        call = compiled(contender, step)
        calls[contender] = lambda call=call, batch=batch: call(*batch)
        start = time.perf_counter()
        calls[contender]()
        first[contender] = time.perf_counter() - start
        for _ in range(3):
            calls[contender]()
        if contender == "graphc":
            arenas[contender] = call.explain(*batch).stats["arena_bytes"]
    errors = {
        c: max(float((p - q).detach().abs().max()) for p, q in zip(parameters[c], parameters["eager"], strict=True))
        for c in contenders
    }
    timings = interleaved(calls, rounds)
    for contender in contenders:
        timing, eager = timings[contender], timings["eager"]
        peak = peak_bytes(calls[contender], parameters[contender]) + arenas.get(contender, 0)
        goal = f"{GOALS[name]:.1f}x" if contender == "graphc" else ""
        table.add_row(
            name, contender, f"{timing.median * 1e3:.2f} ms", f"{timing.low * 1e3:.2f} - {timing.high * 1e3:.2f} ms",
            f"{eager.median / timing.median:.2f}x", goal,
            "" if contender == "eager" else f"{first[contender] - timing.median:.2f} s",
            f"{peak / 2**20:.1f} MiB", f"{errors[contender]:.1e}",
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("--against", default="inductor", help="contenders beside eager and graphc, by commas")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    contenders = ["eager", "graphc", *(c for c in options.against.split(",") if c)]
    columns = ("workload", "contender", "median", "quartiles", "vs eager", "goal", "compile", "peak", "max error")
    table = Table(*columns)
    with tempfile.TemporaryDirectory() as folder, override(cache_dir=folder):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(folder, "inductor")
        for name in options.workloads:
            measure(name, contenders, options.rounds, table)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
