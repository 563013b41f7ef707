"""Programs that look at data, or call what cannot be recorded, on a device that is made up: recorded around that."""

from __future__ import annotations

import copy
import itertools
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graphc.report import placed as placing
from graphc.runtime import replay
from tests.triton.made_up_device import MadeUpDevice, Placed, rubbish_in_fresh_memory

torch.set_num_threads(1)


@torch.library.custom_op("graphc_stages::fetch", mutates_args=())
def fetch(x: torch.Tensor) -> torch.Tensor:
    """What no recording holds, for it is not torch's own."""
    return x.clone()


@fetch.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@pytest.fixture(autouse=True)
def device() -> Iterator[MadeUpDevice]:
    with rubbish_in_fresh_memory():
        yield MadeUpDevice()


def training(
    layers: int,
) -> tuple[nn.Module, torch.optim.Optimizer, Callable[..., tuple[float, float]]]:
    """As tutorials write it: numbers are all that is returned."""
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Linear(8, 16)]
    for _ in range(layers):
        parts += [nn.ReLU(), nn.Linear(16, 16)]
    net = nn.Sequential(*parts)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, foreach=False)

    def step(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
        logits = net(x)
        loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item(), (logits.argmax(1) == y).sum().item() / len(y)

    return net, optimizer, step


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(5, 8), torch.randint(0, 16, (5,))


def weights() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(192, 96), torch.randn(96, 96) / 10


def assert_same_parameters(one: nn.Module, other: nn.Module) -> None:
    for found, wanted in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 4])
def test_a_training_step_that_returns_numbers_is_one_recording(layers: int, device: MadeUpDevice) -> None:
    net, optimizer, step = training(layers)
    other, other_optimizer, eager = training(layers)
    step(*batch()), eager(*batch())
    other.load_state_dict(net.state_dict())
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    placed = Placed(step, *batch())
    for _ in range(6):
        data = batch()
        assert placed(*data) == pytest.approx(eager(*data), rel=1e-5)
    assert_same_parameters(net, other)
    assert device.log.count("record") == 1 and device.log.count("replay") == 3
    assert re.search(
        r"1 recordings of \d+ launches, 3 replays, .*; 2 launched in every call: aten._local", placed.replay
    )


def used(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A number of the device, and what the CPU makes of it, in kernels behind."""
    y = torch.softmax(x @ w, -1) @ w
    total = y.sum().item()
    z = (torch.softmax(y * total, -1) @ w) * (total / 3 + 1)
    return z, (z @ w).amax(), total * 2


def twice(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, float, torch.Tensor]:
    """Three stages are recorded, and the last number is of the second."""
    first = torch.softmax(x @ w, -1) @ w
    one = first.sum().item()
    second = torch.softmax(first @ w, -1) * one
    second = second @ w
    two = second.mean().item()
    third = torch.softmax(second @ w * (one - two), -1) @ w
    return first, two, third @ w


def called(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A call in between, of what is recorded before, for what is recorded behind; and one that is returned."""
    y = torch.softmax(x @ w, -1) @ w
    z = fetch(y)
    u = torch.softmax(z @ w, -1) @ w
    return u, fetch(u.sum(0)), z.sum() + y.sum()


def _recorded() -> Iterator[Any]:
    """Each function with its results held, or let go; the rest takes long."""
    for fn, held in itertools.product((used, twice, called), (False, True)):
        name = f"{'held' if held else 'free'}-{fn.__name__}"
        yield pytest.param(fn, held, id=name, marks=() if (fn is twice) == held else pytest.mark.suite)


@pytest.mark.parametrize(("fn", "held"), _recorded())
def test_stages_are_recorded_one_by_one(fn: Callable[..., Any], held: bool, device: MadeUpDevice) -> None:
    x, w = weights()
    placed = Placed(fn, x, w)
    kept = []
    for number in range(7):
        x.copy_(torch.randn_like(x) + number)
        found, wanted = placed(x, w), fn(x, w)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        if held:
            kept.append((found, wanted))
        del found
    for found, wanted in kept:  # nothing has been written over
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    stages = {used: 2, twice: 3, called: 2}[fn]
    assert device.log.count("record") == stages * (replay.MOST_RECORDINGS if held else 1)
    assert f" launches in {stages} parts, {3 if held else 6} replays" in placed.replay


def test_calls_of_the_cpus_memory_come_before_what_is_recorded(
    monkeypatch: pytest.MonkeyPatch, device: MadeUpDevice
) -> None:
    monkeypatch.setattr(placing, "_stays", lambda item: item.type.shape == (192, 96))

    def step(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = fetch(x)
        return torch.softmax(y @ w, -1) @ w

    x, w = weights()
    placed = Placed(step, x, w)
    for _ in range(5):
        x = torch.randn_like(x)  # elsewhere, and read where it is
        torch.testing.assert_close(placed(x, w), step(x, w), rtol=1e-4, atol=1e-4)
    assert device.log.count("record") == 1 and device.log.count("replay") == 4
    assert "1 launched in every call: graphc_stages.fetch.default is not torch's own" in placed.replay


@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_stage_that_cannot_be_recorded_is_launched_once(good: int, device: MadeUpDevice) -> None:
    """What was recorded before it has run by then, parameters that it writes to included."""
    torch.manual_seed(0)
    x, w = weights()
    state, wanted_state = torch.zeros(96), torch.zeros(96)

    def run(x: torch.Tensor, w: torch.Tensor, state: torch.Tensor) -> tuple[Any, ...]:
        found = twice(x, w)
        state += found[0].sum(0)
        return found

    placed = Placed(run, x, w, state)
    record = device.record

    def fail(index: int, pool: Any, run: Callable[[], None]) -> Any:
        if device.log.count("record") == good:
            device.broken = RuntimeError("no more of this")
        return record(index, pool, run)

    device.record = fail  # type: ignore[method-assign]
    for _ in range(4):
        torch.testing.assert_close(placed(x, w, state), run(x, w, wanted_state), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(state, wanted_state, rtol=1e-4, atol=1e-3)
    assert device.log.count("record") == good + 1 and device.log.count("replay") == good
    assert placed.replay == "none: it could not be recorded: RuntimeError: no more of this"


def ranked(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.softmax(x @ w, -1) @ w
    values, places = y.sort(-1)
    return torch.softmax(values @ w, -1) @ w, places


def test_a_library_call_that_cannot_be_recorded_is_launched_from_then_on(device: MadeUpDevice) -> None:
    """Torch has no mark on many of these: they are found when it is tried."""
    device.refused |= {"aten::sort", "aten::mm"}
    x, w = weights()
    placed = Placed(ranked, x, w)
    for _ in range(replay.MOST_REFUSED):
        x = torch.randn_like(x)
        torch.testing.assert_close(placed(x, w), ranked(x, w), rtol=1e-4, atol=1e-4)
    assert placed.replay.startswith("none: it could not be recorded: RuntimeError")  # a product is no such call
    device.refused = {"aten::sort"}
    device.log.clear()
    placed = Placed(ranked, x, w)
    for _ in range(6):
        torch.testing.assert_close(placed(x, w), ranked(x, w), rtol=1e-4, atol=1e-4)
    assert " launches in 2 parts, 3 replays" in placed.replay
    said = "operation not permitted when stream is capturing"
    assert f"aten.sort.default: it could not be recorded: RuntimeError: {said}" in placed.replay


def test_errors_of_libraries_are_looked_for_in_every_call(device: MadeUpDevice) -> None:
    def solved(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = torch.linalg.solve(w @ w.t() * 0.1, torch.softmax(x @ w, -1).t())
        return torch.softmax(y.t() @ w, -1) @ w

    x, w = torch.rand(5, 8), torch.eye(8)
    placed = Placed(solved, x, w)
    for _ in range(4):
        torch.testing.assert_close(placed(x, w), solved(x, w), rtol=1e-4, atol=1e-4)
    assert "3 replays" in placed.replay and "aten._linalg_check_errors.default looks at data" in placed.replay
    w[3, 3] = 0
    for call in (solved, placed):
        with pytest.raises(torch.linalg.LinAlgError, match="singular"):
            call(x, w)


def test_memory_between_stages_goes_with_the_program(device: MadeUpDevice) -> None:
    x, w = weights()
    placed = Placed(called, x, w)
    for _ in range(3):
        placed(x, w)
    memory = [weakref.ref(tensor) for tensor in placed.program._replay._all_memory()]
    assert memory
    del placed
    assert [ref() for ref in memory] == [None] * len(memory)
