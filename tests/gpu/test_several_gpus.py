"""Programs with tensors on two GPUs: recorded stage by stage, each on its own GPU, with copies in between."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphc
from graphc.runtime import device_cuda
from graphc.runtime.frame import Memory, Working

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
T = torch.Tensor
FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
WIDE = 160
"""Features of a result that is lent, not copied, for 128 rows."""


class Halves(nn.Module):
    """A model of which each half lies on a GPU of its own."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, width), nn.Tanh()).to(FIRST)
        self.second = nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, 4)).to(SECOND)

    def forward(self, x: T) -> tuple[T, T]:
        hidden = self.first(x)
        return hidden, self.second(hidden.to(SECOND))


def replays(compiled: Any, *args: Any) -> str:
    """What `explain` says of recordings."""
    found = re.search(r"replay: (.*)", str(compiled.explain(*args)))
    assert found is not None
    return found[1]


def same(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


Step = Callable[[T, T], tuple[T, ...]]


def training(net: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    def step(x: T, y: T) -> tuple[T, ...]:
        optimizer.zero_grad()
        hidden, logits = net(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        return loss.detach(), hidden.detach(), logits.detach()

    return step


def batch(rows: int) -> tuple[T, T]:
    return torch.randn(rows, 8, device=FIRST), torch.randint(0, 4, (rows,), device=SECOND)


def test_a_model_over_two_gpus_learns_what_eager_learns() -> None:
    """Results of earlier steps are held for a while, and the learning rate changes from step to step."""
    torch.manual_seed(0)
    net = Halves(WIDE)
    other = copy.deepcopy(net)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (net, other)]
    step, eager = graphc.compile(training(net, optimizers[0])), training(other, optimizers[1])
    chance, held = random.Random(0), list[tuple[tuple[T, ...], list[T]]]()
    for number in range(40):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + number)
        data = batch(128)
        wanted = [item.cpu() for item in eager(*data)]
        held.append((step(*data), wanted))
        while len(held) > chance.randrange(1, 5):
            found, wanted = held.pop(chance.randrange(len(held)))
            assert [item.device for item in found] == [SECOND, FIRST, SECOND]
            same([item.cpu() for item in found], wanted)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        same(mine, theirs)
    said = replays(step, *batch(128))
    counted = re.match(r"(\d+) recordings of (\d+) launches in (\d+) parts \((\d+) on cuda:0, (\d+) on cuda:1\)", said)
    assert counted is not None, said
    made, launches, parts, first, second = map(int, counted.groups())
    assert made <= 3 and parts <= 4 and first + second == launches and min(first, second) >= 10
    assert "2 launched in every call: aten._to_copy.default works on cuda:0 and cuda:1" in said
    assert torch.cuda.current_device() == 0


def test_replicas_that_are_averaged_by_hand() -> None:
    """Operations of two GPUs in turns, and a copy each way for every parameter: few recordings all the same."""

    def replicas() -> list[nn.Sequential]:
        torch.manual_seed(0)
        layers = [layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.Tanh())]
        net = nn.Sequential(*layers, nn.Linear(8, 8))
        return [copy.deepcopy(net).to(device) for device in (FIRST, SECOND)]

    def stepping(nets: list[nn.Sequential]) -> Callable[[T, T], tuple[T, T]]:
        def step(x: T, y: T) -> tuple[T, T]:
            for net in nets:
                net.zero_grad()
            one, other = x, y
            for first, second in zip(*nets, strict=True):
                one, other = first(one), second(other)
            losses = one.square().mean(), other.square().mean()
            for loss in losses:
                loss.backward()
            with torch.no_grad():
                for mine, theirs in zip(*(net.parameters() for net in nets), strict=True):
                    assert mine.grad is not None and theirs.grad is not None
                    mean = (mine.grad + theirs.grad.to(FIRST)) / 2
                    mine -= 0.1 * mean
                    theirs -= 0.1 * mean.to(SECOND)
            return losses

        return step

    mine, theirs = replicas(), replicas()
    step, eager = graphc.compile(stepping(mine)), stepping(theirs)
    for _ in range(6):
        data = [torch.randn(6, 8, device=device) for device in (FIRST, SECOND)]
        same(step(*data), eager(*data))
    for one, other in zip(*(net.parameters() for net in mine), strict=True):
        same(one.cpu(), other.cpu())
    said = replays(step, *data)
    counted = re.search(r"1 recordings of \d+ launches in (\d+) parts .* (\d+) launched in every call", said)
    assert counted is not None and int(counted[1]) <= 6, said
    assert int(counted[2]) == 18, said  # copies, and on each GPU one update of all parameters, which waits for them


def test_a_second_half_that_looks_at_data() -> None:
    def run(x: T, w: T, v: T) -> tuple[T, T, float]:
        y = torch.softmax(x @ w, -1) @ w
        z = torch.softmax(y.to(SECOND) @ v, -1) @ v
        total = z.sum().item()
        z = torch.softmax(z * total, -1) @ v / (1 + abs(total))
        return y, (z @ v).tanh() + z, (z.to(FIRST) @ w).amax().item()

    x, w, v = torch.randn(6, 8, device=FIRST), torch.randn(8, 8, device=FIRST), torch.randn(8, 8, device=SECOND)
    compiled = graphc.compile(run)
    for _ in range(6):
        x.copy_(torch.randn(6, 8))
        same(compiled(x, w, v), run(x, w, v))
    said = replays(compiled, x, w, v)
    assert re.match(r"1 recordings of \d+ launches in 3 parts \(\d+ on cuda:0, \d+ on cuda:1\)", said), said
    assert "aten._local_scalar_dense.default looks at data" in said


def exchange(x: T, w: T, v: T) -> tuple[T, T, T]:
    """Work on both GPUs, before and behind a copy each way; results on both."""
    y = torch.softmax(x @ w, -1)
    y = torch.softmax(y.sin() @ w, -1) @ w
    z = torch.softmax(y.to(SECOND) @ v, -1)
    z = torch.softmax(z.cos() @ v, -1) @ v
    back = torch.softmax(z.to(FIRST) @ w, -1)
    return (back.sin() @ w).tanh() @ w, (torch.softmax(z @ v, -1) @ v).tanh() @ v, y


@dataclass
class Held:
    """Results of a call, which its streams may not have come to yet."""

    streams: tuple[torch.cuda.Stream, torch.cuda.Stream]
    found: tuple[T, ...]
    given: tuple[T, T, T]

    def check(self) -> None:
        with torch.cuda.stream(self.streams[0]), torch.cuda.stream(self.streams[1]):
            for mine, wanted in zip(self.found, exchange(*self.given), strict=True):
                same(mine, wanted)


@pytest.mark.parametrize("seed", range(3))
def test_from_several_streams_of_both(seed: int) -> None:
    torch.manual_seed(seed)
    chance, held = random.Random(seed), list[Held]()
    compiled = graphc.compile(exchange)
    w, v = (torch.randn(24, 24, device=device) / 5 for device in (FIRST, SECOND))
    fixed = [torch.randn(16, 24, device=FIRST) for _ in range(3)]
    streams = [
        [torch.cuda.default_stream(device), *(torch.cuda.Stream(device) for _ in range(2))]
        for device in (FIRST, SECOND)
    ]
    for device in (FIRST, SECOND):
        torch.cuda.synchronize(device)
    chosen = [0, 0]
    for _ in range(80):
        for side in (0, 1):  # often one of them stays
            if chance.random() < 0.4:
                chosen[side] = chance.randrange(3)
        first, second = (streams[side][chosen[side]] for side in (0, 1))
        with torch.cuda.stream(second), torch.cuda.stream(first):
            x = chance.choice(fixed) if chance.random() < 0.6 else torch.randn(16, 24, device=FIRST)
            held.append(Held((first, second), compiled(x, w, v), (x.clone(), w, v)))
        while len(held) > chance.randrange(1, 10):
            held.pop(chance.randrange(len(held))).check()
    for item in held:
        item.check()
    assert not replays(compiled, x, w, v).startswith("none")


@contextmanager
def fails_on(index: int) -> Iterator[None]:
    """Captures on a device end with an error of CUDA, which refuses to wait within them."""
    record = device_cuda.CudaDevice.record

    def broken(self: Any, number: int, pool: Any, run: Callable[[], None]) -> Any:
        def run_and_wait() -> None:
            run()
            torch.cuda.synchronize(number)

        return record(self, number, pool, run_and_wait if number == index else run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_cuda.CudaDevice, "record", broken)
        yield


@pytest.mark.parametrize("index", [0, 1])
def test_a_capture_that_fails_on_one_gpu_leaves_those_of_the_other(index: int) -> None:
    compiled = graphc.compile(exchange)
    w, v = (torch.randn(24, 24, device=device) / 5 for device in (FIRST, SECOND))
    with fails_on(index):
        for _ in range(7):
            x = torch.randn(16, 24, device=FIRST)
            same(compiled(x, w, v), exchange(x, w, v))
    said = replays(compiled, x, w, v)
    assert re.match(r"1 recordings of \d+ launches", said), said
    assert f"(0 on cuda:{index}, " in said or f", 0 on cuda:{index})" in said, said
    assert f"cuda:{index}: it could not be recorded: " in said and "captur" in said, said


def test_failures_on_both_are_launched_step_by_step() -> None:
    compiled = graphc.compile(exchange)
    w, v = (torch.randn(24, 24, device=device) / 5 for device in (FIRST, SECOND))
    with fails_on(0), fails_on(1):
        for _ in range(6):
            x = torch.randn(16, 24, device=FIRST)
            same(compiled(x, w, v), exchange(x, w, v))
    said = replays(compiled, x, w, v)
    assert said.startswith("none: cuda:0: it could not be recorded: "), said


def test_each_gpu_draws_from_its_own_generator() -> None:
    def run(x: T, y: T) -> tuple[T, T, T]:
        one = torch.softmax(F.dropout(x.sin(), 0.5), -1) * torch.rand_like(x)
        other = torch.softmax(F.dropout(y.cos(), 0.5), -1) * torch.rand_like(y)
        return one, other, one.to(SECOND).cumsum(0) + other

    compiled = graphc.compile(run, numerics="eager")
    x, y = torch.randn(16, 16, device=FIRST), torch.randn(16, 16, device=SECOND)
    for seed in range(6):
        torch.manual_seed(seed)
        found = compiled(x, y), compiled(x, y)
        torch.manual_seed(seed)
        same(found, (run(x, y), run(x, y)))
    assert not replays(compiled, x, y).startswith("none")


def test_each_gpu_has_scratch_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of many elements need it."""
    made: list[Working] = []
    working = Memory.working
    monkeypatch.setattr(Memory, "working", lambda self: made.append(working(self)) or made[-1])

    def run(x: T, y: T) -> tuple[T, T]:
        return (x * x).sum().sqrt(), (y.cos().sum(0) + (x * 2).sum(0).to(SECOND)).exp()

    compiled = graphc.compile(run)
    x, y = torch.randn(300, 300, device=FIRST) / 99, torch.randn(300, 300, device=SECOND) / 99
    for _ in range(3):
        torch.testing.assert_close(compiled(x, y), run(x, y), rtol=1e-4, atol=0.0)
    assert made
    for memory in made:
        assert {device: scratch.device for device, scratch in memory.scratch.items()} == {FIRST: FIRST, SECOND: SECOND}
