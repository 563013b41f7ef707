"""Loops as tutorials write them on a device that is made up: what eager gives on a CPU, recorded as they should be."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphc
from graphc.runtime.device import Device
from tests.e2e import features
from tests.triton.backend.register import IS_CUDA, KIND, OwnMemoryDevice, here

torch.set_num_threads(1)
STEPS = 8 if IS_CUDA else 5  # of a GPU torch keeps memory for later, so batches lie in two places in turn
Batch = tuple[torch.Tensor, ...]


@dataclass
class Loop:
    """What a tutorial trains.

    Args:
        state: what a step changes: modules, optimizers and the like.
        step: takes a batch as the data loader gives it.
        batch: one for a number.
    """

    state: list[Any]
    step: Callable[..., Any]
    batch: Callable[[int], Batch]


LOOPS: dict[str, tuple[Callable[[str], Loop], str]] = {}
"""What makes a loop on a device, and what `explain` says of how its step is launched."""
WHOLE = r"[12] recordings of \d+ launches, [1-7] replays" if IS_CUDA else r"1 recordings of \d+ launches, [1-4] replays"


def loop(said: str = WHOLE) -> Callable[[Callable[[str], Loop]], Callable[[str], Loop]]:
    def register(make: Callable[[str], Loop]) -> Callable[[str], Loop]:
        LOOPS[make.__name__] = make, said
        return make

    return register


def classifier() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))


def images(number: int) -> Batch:
    made = torch.Generator().manual_seed(number)
    return torch.randn(8, 6, generator=made, device="cpu"), torch.arange(8, device="cpu") % 4


@loop(WHOLE + r".*; 3 launched in every call: aten._to_copy.*aten._local_scalar_dense")
def quickstart(device: str) -> Loop:
    """Batches are sent to the device in the step, and the loss is read."""
    net = classifier()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)

    def step(x: torch.Tensor, y: torch.Tensor) -> float:
        x, y = x.to(device), y.to(device)
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return Loop([net, optimizer], step, images)


@loop()
def clipped_and_scheduled(device: str) -> Loop:
    net = classifier()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y, label_smoothing=0.1)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        scheduler.step()
        return loss.detach()

    return Loop([net, optimizer], step, lambda n: tuple(x.to(device) for x in images(n)))


@loop()
def averaged(device: str) -> Loop:
    """An exponential moving average of the parameters beside them."""
    net = classifier()
    mean = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=True)

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(mean.parameters(), net.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
        return loss.detach()

    return Loop([net, mean, optimizer], step, lambda n: tuple(x.to(device) for x in images(n)))


@loop(WHOLE + r".*; 2 launched in every call: aten._local_scalar_dense")
def adversarial(device: str) -> Loop:
    maker, judge = nn.Linear(3, 6), nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    of_maker, of_judge = (torch.optim.Adam(m.parameters(), lr=1e-2, betas=(0.5, 0.999)) for m in (maker, judge))

    def step(real: torch.Tensor, noise: torch.Tensor) -> tuple[float, float]:
        loss = F.binary_cross_entropy_with_logits
        fake = maker(noise)
        yes, no = torch.ones(8, 1, device=device), torch.zeros(8, 1, device=device)
        of_judge.zero_grad()
        judged = loss(judge(real), yes) + loss(judge(fake.detach()), no)
        judged.backward()
        of_judge.step()
        of_maker.zero_grad()
        made = loss(judge(fake), yes)
        made.backward()
        of_maker.step()
        return judged.item(), made.item()

    def batch(n: int) -> Batch:
        return images(n)[0].to(device), images(n + 100)[0][:, :3].to(device)

    return Loop([maker, judge, of_maker, of_judge], step, batch)


@loop()
def words(device: str) -> Loop:
    """A state that goes from batch to batch."""
    embed, net, out = nn.Embedding(10, 8), nn.LSTM(8, 12), nn.Linear(12, 10)
    parameters = [p for m in (embed, net, out) for p in m.parameters()]
    state = [torch.zeros(1, 4, 12, device=device), torch.zeros(1, 4, 12, device=device)]

    def step(x: torch.Tensor, y: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made, (h, c) = net(embed(x), (h.detach(), c.detach()))
        loss = F.nll_loss(F.log_softmax(out(made).flatten(0, 1), 1), y)
        for p in parameters:
            p.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 0.25)
        with torch.no_grad():
            for p in parameters:
                p.add_(p.grad, alpha=-1.0)
        return loss.detach(), h.detach(), c.detach()

    def run(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss, *state[:] = run.step(x, y, *state)  # type: ignore[attr-defined]
        return loss

    run.step = step  # type: ignore[attr-defined]  # what is compiled

    def batch(n: int) -> Batch:
        ids = torch.arange(25, device="cpu") * 7 + n
        return (ids[:20] % 10).view(5, 4).to(device), (ids[1:21] % 10).to(device)

    return Loop([embed, net, out, state], run, batch)


@loop()
def masked_attention(device: str) -> Loop:
    """The mask is made on the CPU, and sent."""
    net = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(8, dtype=x.dtype).to(device)
        out = net(x[None], mask)[0]
        out[:, 0] = 0
        loss = (out - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Loop([net, optimizer], step, lambda n: tuple(x.to(device) for x in images(n)))


def trained(made: Loop, compiled: Callable[[Any], Any]) -> list[Any]:
    if hasattr(made.step, "step"):
        made.step.step = compiled(made.step.step)
        step = made.step
    else:
        step = compiled(made.step)
    torch.manual_seed(1)
    return [features.snapshot(step(*made.batch(n))) for n in range(STEPS)] + [features.snapshot(s) for s in made.state]


@pytest.mark.parametrize("name", LOOPS)
def test_as_on_a_cpu(name: str, device: Device) -> None:
    make, said = LOOPS[name]
    compiled: list[Any] = []

    def compile_it(step: Any) -> Any:
        compiled.append(graphc.compile(step))
        return compiled[-1]

    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        kind = KIND if IS_CUDA else "cpu"  # a GPU has random numbers of its own
        with torch.device(kind):
            model = make(kind)
        wanted = here(trained(model, lambda step: step))
        torch.manual_seed(0)
        with torch.device(KIND):
            there = make(KIND)
        found = trained(there, compile_it)
        (made,) = compiled
        arguments = there.batch(0) if name != "words" else (*there.batch(0), *there.state[-1])
        replay = made.explain(*arguments).stats["launch"]["replay"]
    finally:
        torch.set_default_dtype(torch.float32)
    features.compare(here(found), wanted, 1e-6)
    assert made.stats().eager_calls == 0 and made.stats().compiles <= 2, made.stats()  # some make state first
    assert re.search(said, replay), replay


@pytest.mark.parametrize("bad", [-1, 2], ids=["finite", "inf in the third step"])
def test_half_precision_with_a_scaler(bad: int, device: Device) -> None:
    """Whether a step is made is read from the device: two recordings, and none of an update that is left out."""
    torch.manual_seed(0)
    net = classifier()
    other = copy.deepcopy(net).to(KIND)

    def training(net: nn.Module, kind: str, compiled: Callable[[Any], Any]) -> list[Any]:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        scaler = torch.amp.GradScaler(kind, init_scale=2.0**10, growth_interval=2)

        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad()
            with torch.autocast(kind, torch.bfloat16):
                loss = F.cross_entropy(net(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            return loss.detach()

        run, seen = compiled(step), []
        for n in range(10):
            x, y = images(n)
            x = x * float("inf") if n == bad else x
            seen += [run(x.to(kind), y.to(kind)).float(), scaler.get_scale()]
        return seen

    wanted = training(net, "cpu", lambda step: step)
    found = training(other, KIND, graphc.compile)
    assert found[1::2] == wanted[1::2]  # scales
    for ours, theirs in zip(here(found[::2]), wanted[::2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2, equal_nan=True)
    for ours, theirs in zip(other.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(here(ours.detach()), theirs.detach(), rtol=2e-2, atol=2e-2)
    if isinstance(device, OwnMemoryDevice):
        assert device.log.count("replay") >= 4
