"""The simulation refuses what the documentation of CUDA refuses, and does the rest as late as it may."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

if os.environ.get("GRAPHC_SIMULATED_OPERATORS") is None:
    pytest.skip("runs in a process of the simulation", allow_module_level=True)

T = torch.Tensor


def captured(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def test_work_waits_until_it_is_waited_for() -> None:
    pinned = torch.ones(4).pin_memory()
    x = torch.empty(4, device="cuda")
    x.copy_(pinned, non_blocking=True)
    pinned.fill_(2)  # too early: the copy has not been made
    assert x.tolist() == [2, 2, 2, 2]


def test_streams_are_ordered_by_events_alone() -> None:
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    host = torch.zeros(1).pin_memory()
    with torch.cuda.stream(first):
        x = torch.ones(1).pin_memory().to("cuda", non_blocking=True)
        event = first.record_event()
    second.wait_event(event)
    with torch.cuda.stream(second):
        host.copy_(x, non_blocking=True)
    assert host.item() == 0
    second.synchronize()
    assert host.item() == 1


def test_a_recording_runs_nothing_and_a_replay_all_of_it() -> None:
    x, y = torch.ones(4, device="cuda"), torch.zeros(4, device="cuda")
    graph = captured(lambda: y.add_(x))
    assert y.sum().item() == 0
    graph.replay()
    graph.replay()
    assert y.tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    "look", [lambda x: x.item(), lambda x: x.cpu(), lambda x: torch.cuda.synchronize(), lambda x: x.nonzero()]
)
def test_recordings_refuse_to_wait(look: Callable[[T], object]) -> None:
    x = torch.ones((), device="cuda")
    with pytest.raises(RuntimeError, match="captur"):
        captured(lambda: look(x))
    assert x.item() == 1
    captured(lambda: x.add_(1)).replay()  # and what comes later works
    assert x.item() == 2


def test_other_streams_take_part_and_must_come_back() -> None:
    x, side = torch.zeros(2, device="cuda"), torch.cuda.Stream()

    def fork(joins: bool) -> None:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x.add_(1)
        if joins:
            torch.cuda.current_stream().wait_stream(side)

    captured(lambda: fork(True)).replay()
    assert x.tolist() == [1, 1]
    with pytest.raises(RuntimeError, match="unjoined"):
        captured(lambda: fork(False))


def test_random_numbers_of_a_recording_are_new_in_each_replay() -> None:
    made: list[T] = []
    graph = captured(lambda: made.append(torch.rand(8, device="cuda")))
    found = []
    for _ in range(3):
        graph.replay()
        found.append(made[0].clone())
    assert len({tuple(x.tolist()) for x in found}) == 3


def test_memory_ends() -> None:
    free, total = torch.cuda.mem_get_info()
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(total, dtype=torch.uint8, device="cuda")
    assert torch.cuda.mem_get_info()[0] <= free


def test_a_kernel_of_torch_is_an_error_that_names_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="not supported"):
        torch.ops.aten._fused_dropout(torch.ones(4, device="cuda"), 0.5)
    assert "is not simulated" in capfd.readouterr().err


def test_several_threads() -> None:
    x = torch.ones(64, device="cuda")
    torch.cuda.synchronize()

    def work(_: int) -> float:
        with torch.cuda.stream(torch.cuda.Stream()):
            return (x + 1).sum().item()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, range(80))) == {128}
