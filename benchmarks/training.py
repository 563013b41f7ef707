"""Whole training steps, optimizer included: eager, graphc and torch.compile in one run.

    python benchmarks/training.py [--against inductor] [WORKLOAD ...]

Each contender trains its own copy of a model from the same seed; rounds are interleaved. `compile` is the first call
less a later one, with an empty cache, in this process; `peak` is what there is at most during one step beside
parameters, optimizer state and batch: gradients, old and new, and a compiled program's arena included; `max error` is
the largest difference of a parameter to eager's after the steps taken.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from zoo import Workload, build
from zoo.entry import images
from zoo.recurrent import LstmCell

from graphc.report.bench import BenchTable, describe_machine
from graphc.report.own_models import Made, bench_own, empty_caches

Step = Callable[..., Any]
WORKLOADS: dict[str, Callable[[], tuple[list[nn.Parameter], Step, tuple[torch.Tensor, ...]]]] = {}
GOALS = {"gpt": 1.2, "cnn": 1.1, "mlp": 1.9, "lstm": 3.0, "lstm_500": 3.0, "adam_200": 5.0, "adam_1000": 5.0}
"""Times faster than eager."""


def workload(build: Callable[[], Any]) -> Callable[[], Any]:
    WORKLOADS[build.__name__] = build
    return build


def of_zoo(work: Workload) -> Any:
    """Parameters, step and first batch of a model of the zoo."""
    return list(work.net.parameters()), work.training().step, work.batch(0)


@workload
def gpt() -> Any:
    """4 layers of width 256, 8 heads; batch 2, 256 tokens."""
    return of_zoo(build("gpt", "full"))


@workload
def cnn() -> Any:
    """The tutorials' CNN on 28x28 images, batch 64."""
    return of_zoo(build("mnist_cnn", "full"))


@workload
def mlp() -> Any:
    """784-128-10, batch 64."""
    return of_zoo(build("mlp", "full"))


@workload
def lstm() -> Any:
    """A hand-written cell, 64 -> 128, 50 steps, batch 16."""
    return of_zoo(build("hand_written_lstm", "full"))


@workload
def lstm_500() -> Any:
    """The same cell over 500 steps: what matters is that it compiles no longer."""
    return of_zoo(Workload(LstmCell(), images(10, 16, 500, 64)))


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


def make(name: str) -> Made:
    """A workload for one contender."""
    parameters, step, batch = WORKLOADS[name]()
    return Made(step, batch, tuple(parameters))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("--against", default="inductor", help="contenders beside eager and graphc, by commas")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    against = [name for name in options.against.split(",") if name]
    table = BenchTable(machine=describe_machine())
    with empty_caches():
        for name in options.workloads:
            table.rows += bench_own(name, partial(make, name), against, options.rounds)
    print(table)
    for row in table.rows:
        if row.contender == "graphc":
            print(f"{row.workload}: {row.speedup:.2f}x of a goal of {GOALS[row.workload]:.1f}x")


if __name__ == "__main__":
    main()
