"""Special functions in Triton's kernels, along the whole real line; libdevice's are torch's own here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import graphc
from graphc.settings import override
from tests.special_functions import misses
from tests.support import assert_contract


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_as_good_as_eager_everywhere(dtype: torch.dtype) -> None:
    assert not misses("triton", dtype)


def _slope_of_gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.gelu_backward(torch.ones_like(x), x)


def _one_plus_erf(x: torch.Tensor) -> torch.Tensor:
    return torch.erf(x) + 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("function", [F.gelu, _slope_of_gelu, _one_plus_erf])
def test_every_number_of_16_bits(function: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> None:
    x = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    with override(cache=False):
        compiled = graphc.compile(function, backend="triton")
        ours = compiled(x)
        assert "_erf_odds" in "".join(compiled.source(x).values())
    eager, exact = function(x), function(x.double())
    assert_contract(ours, eager, exact)
    finite = exact.isfinite() & eager.isfinite()
    limits = torch.finfo(dtype)
    half_a_unit = limits.eps / 2 * exact.abs().clamp_min(limits.smallest_normal)
    of_float32 = 2**-22 * x.double().abs().clamp(1, 6)
    assert bool(((ours.double() - exact).abs() <= half_a_unit + of_float32)[finite].all())
    assert torch.equal(ours[x == 0].signbit(), eager[x == 0].signbit())
