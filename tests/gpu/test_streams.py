"""One compiled function called from several streams, threads and devices at a time, its results held for a while."""

from __future__ import annotations

import gc
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import graphc

pytestmark = pytest.mark.gpu
T = torch.Tensor
ROWS, SIDE = 16, 24
CALLS = 100


def steps(x: T, w: T) -> tuple[T, ...]:
    """Several launches; results of several kinds, one of them a view."""
    y = torch.softmax(x @ w, -1)
    y = torch.softmax(y.sin() @ w, -1) @ w
    return y, y.sum(), (y * 2).reshape(-1)[:7]


@dataclass
class Held:
    """Results of a call, which its stream may not have come to yet."""

    stream: torch.cuda.Stream
    found: tuple[T, ...]
    x: T
    w: T

    def check(self) -> None:
        with torch.cuda.stream(self.stream):
            for mine, wanted in zip(self.found, steps(self.x, self.w), strict=True):
                torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)


class Caller:
    """Calls a compiled function in a random order from streams of all devices.

    Args:
        compiled: `steps`, compiled.
    """

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
        self.weights = {d: torch.randn(SIDE, SIDE, device=d) / 5 for d in self.devices}
        self.fixed = {d: [torch.randn(ROWS, SIDE, device=d) for _ in range(3)] for d in self.devices}
        self.pinned = [torch.randn(ROWS, SIDE).pin_memory() for _ in range(3)]
        self.streams = {
            d: [torch.cuda.default_stream(d), *(torch.cuda.Stream(d) for _ in range(3))] for d in self.devices
        }
        for device in self.devices:
            torch.cuda.synchronize(device)

    def given(self, chance: random.Random, device: torch.device) -> T:
        """An input: always at one place, new, sent, or not aligned."""
        kind = chance.randrange(6)
        if kind == 0:
            return torch.randn(ROWS, SIDE, device=device)
        if kind == 1:
            return chance.choice(self.pinned).to(device, non_blocking=True)
        if kind == 2:
            return torch.randn(ROWS, SIDE).to(device)
        if kind == 3:
            return torch.randn(ROWS * SIDE + 1, device=device)[1:].view(ROWS, SIDE)
        return chance.choice(self.fixed[device])

    def run(self, seed: int) -> None:
        chance, held = random.Random(seed), list[Held]()
        for _ in range(CALLS):
            device = chance.choice(self.devices)
            stream, w = chance.choice(self.streams[device]), self.weights[device]
            with torch.cuda.stream(stream):
                x = self.given(chance, device)
                held.append(Held(stream, self.compiled(x, w), x.clone(), w))
                if chance.random() < 0.2:
                    torch.cuda.empty_cache()
                if chance.random() < 0.1:
                    gc.collect()
            while len(held) > chance.randrange(1, 12):
                held.pop(chance.randrange(len(held))).check()
        for item in held:
            item.check()


@pytest.mark.parametrize("seed", range(3))
def test_from_several_streams(seed: int) -> None:
    Caller(graphc.compile(steps)).run(seed)


def test_from_several_threads() -> None:
    caller = Caller(graphc.compile(steps))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(caller.run, range(4))) == [None] * 4
