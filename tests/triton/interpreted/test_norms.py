"""Rows of several axes, with numbers that go by some of them, in Triton's interpreter against the oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import graphc
from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiling import Limits, choose_tiling
from graphc.ir.types import bf16
from graphc.loopir.kernel import Kernel
from tests.triton.interpreted.test_kernels import check
from tests.triton.norms import group_norm, group_norm_gradient, three_axes, weight_gradient

WHOLE: dict[str, Callable[[], Kernel]] = {
    "even": lambda: group_norm(2, 3, 4, 64),
    "odd": lambda: group_norm(2, 3, 7, 48),
    "bf16": lambda: group_norm(2, 2, 4, 32, bf16),
    "short": lambda: group_norm(40, 20, 4, 16),
    "gradient": lambda: group_norm_gradient(2, 3, 3, 32),
    "weight": lambda: weight_gradient(3, 5, 48),
    "three": lambda: three_axes(3, 2, 3, 48),
    "three_short": lambda: three_axes(900, 2, 3, 16),
}
ALONG_A_ROW: dict[str, Callable[[], Kernel]] = {
    "even": lambda: group_norm(2, 3, 4, 64),
    "bf16": lambda: group_norm(2, 2, 3, 32, bf16),
    "gradient": lambda: group_norm_gradient(2, 3, 3, 32),
    "weight": lambda: weight_gradient(3, 5, 48),
    "weight_alone": lambda: weight_gradient(12, 1, 16),
    "three": lambda: three_axes(3, 2, 3, 48),
}


@pytest.mark.parametrize("name", WHOLE)
def test_rows_held_whole_have_two_dimensions(name: str) -> None:
    kernel = WHOLE[name]()
    tiling = choose_tiling(kernel)
    assert len(tiling.rows) == 2 and not tiling.looped
    assert ("short" in name) == any(dim.is_blocked for dim in tiling.parallel)
    check(kernel, Limits())


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", ALONG_A_ROW)
def test_outer_axes_stand_still_in_loops(name: str, parts: int) -> None:
    kernel = ALONG_A_ROW[name]()
    limits = Limits(persistent=8, row=16, loop=16, strided=16, fill=4 * parts, split=parts)
    tiling = choose_tiling(kernel, limits)
    assert tiling.looped and tiling.dims[-1].fixed >= 1 and (tiling.split > 1) == (parts > 1)
    check(kernel, limits)


@pytest.mark.parametrize("make", [lambda: group_norm(2, 3, 4, 20), lambda: weight_gradient(3, 5, 7)])
def test_rows_without_even_steps_are_one_dimension(make: Callable[[], Kernel]) -> None:
    kernel = make()
    assert len(choose_tiling(kernel).rows) == 1
    check(kernel, Limits())
    looped = Limits(persistent=8, row=16, loop=16, strided=16, fill=1, split=1)
    assert not choose_tiling(kernel, looped).dims[-1].fixed
    check(kernel, looped)


def test_places_beyond_2_to_the_31_are_64_bit_numbers() -> None:
    kernel = weight_gradient(64, 1 << 12, 1 << 14)
    tiling = choose_tiling(kernel)
    assert tiling.wide and tiling.dims[-1].fixed
    assert "    i = ((row_start) // 16384).to(tl.int64)\n" in emit_kernel(kernel, tiling=tiling).text


def test_long_rows_are_held_where_they_are_little_per_element() -> None:
    limits = Limits(persistent=64, row=64, loop=16, fill=1)
    kernel = group_norm(2, 3, 4, 32)  # x alone is kept
    assert not choose_tiling(kernel, limits).looped
    check(kernel, limits)
    assert choose_tiling(group_norm(2, 3, 8, 32), limits).looped
    assert choose_tiling(group_norm_gradient(2, 3, 4, 32), limits).looped  # x and g


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_statistics_of_few_long_channels(layout: torch.memory_format) -> None:
    """Mean and variance in one pass over numbers far from zero, and both parameters' gradients in another."""
    torch.manual_seed(0)
    norm, exact = nn.BatchNorm2d(3), nn.BatchNorm2d(3).double()
    x = (1000.0 + torch.randn(8, 3, 56, 56)).to(memory_format=layout)
    cotangent = torch.randn_like(x)

    def step(net: nn.Module, x: torch.Tensor, cotangent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x.detach().requires_grad_()
        y = net(x)
        return y.detach(), *torch.autograd.grad(y, (x, *net.parameters()), cotangent)

    compiled = graphc.compile(lambda x, cotangent: step(norm, x, cotangent), backend="triton")
    found = compiled(x, cotangent)
    wanted = step(exact, x.double(), cotangent.double())
    for one, other in zip((*found, *norm.buffers()), (*wanted, *exact.buffers()), strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-4, atol=5e-4 * float(other.abs().max()))
    plan = compiled.graph(x, cotangent, stage="scheduled")
    assert sum("reduce" in str(kernel) for kernel in plan.kernels.values()) == 2
