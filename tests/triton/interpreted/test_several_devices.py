"""Programs on two devices that are made up: recorded on each, with copies in between that are launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from graphc.codegen.triton.program import generate
from graphc.driver import plan_for
from graphc.ir.parser import parse
from graphc.options import Options
from graphc.program.record import Program
from graphc.runtime import replay
from graphc.runtime.triton_program import TritonProgram
from tests.triton.made_up_device import MadeUpDevice, rubbish_in_fresh_memory

torch.set_num_threads(1)
T = torch.Tensor


class Pair(MadeUpDevice):
    """Two of them.

    Attributes:
        recorded: on which something has been recorded, in order.
        waited: for which a stream has waited.
        streams: the current one of each.
        broken_on: where recording ends with an error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[int] = []
        self.waited: list[int] = []
        self.streams = {0: 7, 1: 8}
        self.broken_on: set[int] = set()
        self.pools: list[tuple[int, Any]] = []

    def stream(self, index: int) -> int:
        return self.streams[index]

    def wait(self, index: int, mark: Any) -> None:
        self.waited.append(index)

    def record(self, index: int, pool: Any, run: Callable[[], None]) -> Any:
        self.recorded.append(index)
        self.pools.append((index, pool))
        self.broken = RuntimeError("capture failed") if index in self.broken_on else None
        return super().record(index, pool, run)


@pytest.fixture(autouse=True)
def device() -> Iterator[Pair]:
    with rubbish_in_fresh_memory():
        yield Pair()


TEXT = """
graph f(%x: f32[64, 32]@madeup:0 arg "x", %w: f32[32, 32]@madeup:0 arg "w", %v: f32[32, 32]@madeup:1 arg "v",
        %n: f64[]@host scalar "n") {
  %0: f32[64, 32]@madeup:0 = matmul(%x, %w)
  %1: f32[64, 32]@madeup:0 = tanh(%0)
  %2: f32[64, 32]@madeup:0 = matmul(%1, %w)
  %3: f32[64, 32]@madeup:0 = mul(%2, %n)
  %4: f32[64, 32]@madeup:1 = extern(%3) {op="aten.OP.default", args=[$0], kwargs={}}
  %5: f32[64, 32]@madeup:1 = matmul(%4, %v)
  %6: f32[64, 32]@madeup:1 = mul(%5, %n)
  %7: f32[64, 32]@madeup:1 = matmul(%6, %v)
  %8: f32[64, 32]@madeup:1 = sin(%7)
  %9: f32[64, 32]@madeup:0 = extern(%8) {op="aten.OP.default", args=[$0], kwargs={}}
  %10: f32[64, 32]@madeup:0 = matmul(%9, %w)
  %11: f32[64, 32]@madeup:0 = cos(%10)
  %12: f32[64, 32]@madeup:0 = matmul(%11, %w)
  return %12, %8
}
"""


def wanted(x: T, w: T, v: T, n: float) -> tuple[T, T]:
    there = ((torch.tanh(x @ w) @ w * n) @ v * n @ v).sin()
    return (there @ w).cos() @ w, there


def program(op: str = "_to_copy") -> TritonProgram:
    plan = plan_for(parse(TEXT.replace("OP", op)), Options("f", backend="triton"), "triton")
    return TritonProgram(Program.from_json(generate(plan).to_json()))


def given() -> list[T]:
    return [torch.randn(64, 32), torch.randn(32, 32) / 5, torch.randn(32, 32) / 5]


def assert_right(made: TritonProgram, inputs: list[T], number: float) -> list[T]:
    found = made([*inputs, number])
    for mine, theirs in zip(found, wanted(*inputs, number), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    return found


def said(made: TritonProgram) -> str:
    return made.report()["replay"]


@pytest.mark.parametrize("op", ["_to_copy", "clone"])
def test_each_device_has_stages_pools_and_numbers_of_its_own(
    op: str, device: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that changes reaches both; results that are held stay."""
    monkeypatch.setattr(replay, "SMALL_RESULT", 64)
    made, inputs, held = program(op), given(), []
    for number in (1.0, 1.0, 0.5, 2.0, 2.0, -1.0):
        inputs[0].copy_(torch.randn(64, 32))
        held.append((assert_right(made, inputs, number), wanted(*(t.clone() for t in inputs), number)))
        held = held[-2:]
    for found, right in held:
        torch.testing.assert_close(tuple(found), right, rtol=1e-4, atol=1e-4)
    assert device.recorded[:3] == [0, 1, 0] and len(device.recorded) % 3 == 0
    pools = device.pools[:3]
    assert pools[0][1] is pools[2][1] and pools[0][1] is not pools[1][1]
    assert "in 3 parts (7 on madeup:0, 4 on madeup:1)" in said(made)
    assert f"2 launched in every call: aten.{op}.default works on madeup:0 and madeup:1" in said(made)


def test_each_device_waits_for_its_own_stream_of_before(device: Pair) -> None:
    made, inputs = program(), given()
    for streams, waits in (((7, 8), []), ((7, 8), []), ((7, 9), [1]), ((6, 9), [0]), ((5, 4), [0, 1]), ((5, 4), [])):
        device.streams = dict(enumerate(streams))
        device.waited.clear()
        assert_right(made, inputs, 1.5)
        assert device.waited == waits


@pytest.mark.parametrize("index", [0, 1])
def test_a_device_on_which_nothing_can_be_recorded(index: int, device: Pair) -> None:
    made, inputs = program(), given()
    device.broken_on = {index}
    for number in (1.0, 1.0, 0.5, 2.0, 2.0):
        assert_right(made, inputs, number)
    assert f"madeup:{index}: it could not be recorded: RuntimeError: capture failed" in said(made)
    counts = "(7 on madeup:0, 0 on madeup:1)" if index else "(0 on madeup:0, 4 on madeup:1)"
    assert counts in said(made)
    device.broken_on = {0, 1}
    other = program()
    for number in (1.0, 1.0, 0.5, 2.0):
        assert_right(other, inputs, number)
    assert said(other).startswith("none: madeup:0: it could not be recorded")
