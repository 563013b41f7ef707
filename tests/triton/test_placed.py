"""Programs put on a device that is not there: what the device does, and what stays with the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from graphc.codegen.triton.program import generate, host_kernels, triton_kernels
from graphc.program.plan import AtenStep, ForeachStep, KernelStep
from graphc.program.triton_kernel import HOST_TEXT, host_function, host_source, triton_source
from graphc.report import placed
from graphc.report.static_kernels import launches_of


def adam(count: int) -> Callable[[], None]:
    parameters = [nn.Parameter(torch.empty(4, number + 1)) for number in range(count)]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer = torch.optim.Adam(parameters)

    def step() -> None:
        optimizer.step()

    return step


def test_step_counters_stay_with_the_cpu() -> None:
    plan = placed.placed_plan(adam(10), ())
    (step,) = plan.steps
    assert isinstance(step, ForeachStep) and launches_of(plan) == {"launches": 1, "library": 0}
    counters = {row[4] for row in step.rows}
    assert {spec.device for spec in plan.buffers if spec.index in counters} == {"cpu"}
    tensors = [spec for spec in plan.buffers if not spec.host and spec.kind == "input" and spec.index not in counters]
    assert {spec.device for spec in tensors} == {"cuda:0"}


def test_counters_on_the_device_are_computed_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placed, "_stays", lambda item: False)
    plan = placed.placed_plan(adam(10), ())
    tables = [step for step in plan.steps if isinstance(step, ForeachStep)]
    assert all(len(step.kernels) == 1 and not step.shared for step in tables)  # what rows have alike runs together
    assert sum(isinstance(step, KernelStep) for step in plan.steps) == 20 and launches_of(plan)["launches"] > 10


def test_kernels_on_the_cpus_numbers_are_kept_in_loop_ir_and_in_c() -> None:
    plan = placed.placed_plan(adam(3), ())
    there, here = triton_kernels(plan), host_kernels(plan)
    assert there and here and not set(there) & set(here)
    record = generate(plan)
    assert set(record.sources) == {*map(triton_source, there), *map(host_source, here), HOST_TEXT}
    assert all(f"void {host_function(name)}(" in record.sources[HOST_TEXT] for name in here)
    assert all("axes()" in record.sources[host_source(name)] for name in here)


def test_devices_follow_from_those_of_inputs() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        return (x + torch.ones(4)).sort(0).values * torch.arange(4)

    plan = placed.placed_plan(run, (torch.empty(4),), "cuda:1")
    assert {spec.device for spec in plan.buffers} == {"cuda:1"}


@pytest.mark.parametrize(("channels", "pixels", "calls"), [(16, 56, 0), (512, 14, 1)])
def test_gradients_of_strided_convolutions_are_weighed(channels: int, pixels: int, calls: int) -> None:
    sizes = (32, channels, pixels, pixels)
    x = torch.empty(sizes, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    w = torch.empty(channels, channels, 3, 3, dtype=torch.bfloat16)

    def gradient(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        settings = ([2, 2], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False])
        return torch.ops.aten.convolution_backward(x[:, :, ::2, ::2], x, w, None, *settings)[0].relu()

    # with few channels bytes take the time, else operations, of which the library has a fourth
    plan = placed.placed_plan(gradient, (x, w))
    assert sum(isinstance(step, AtenStep) for step in plan.steps) == calls


def test_a_call_without_results() -> None:
    """`torch.linalg.inv` has torch look whether it could be done."""
    plan = placed.placed_plan(torch.linalg.inv, (torch.eye(3),))
    assert [step.op for step in plan.steps if isinstance(step, AtenStep)] == [
        "aten.linalg_inv_ex.default", "aten._linalg_check_errors.default"
    ]  # fmt: skip
