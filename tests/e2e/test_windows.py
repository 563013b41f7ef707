"""Pooling, resampling and paddings, forward and backward: generated kernels against eager and float64."""

from __future__ import annotations

import pytest
import torch

import graphc
from tests.e2e.window_programs import IN_CALLS, SLOWER, programs
from tests.support import assert_contract


@pytest.mark.parametrize("name", programs())
@pytest.mark.parametrize("backend", ["c", "interpret"])
def test_as_in_eager(name, backend) -> None:
    fn, x = programs()[name]
    compiled = graphc.compile(fn, backend=backend)
    for mine, other, precise in zip(compiled(x), fn(x), fn(x.double()), strict=True):
        assert mine.stride() == other.stride()
        assert_contract(mine, other, precise)
    if backend == "c":
        calls = compiled.explain(x).stats["extern_bytes"]
        assert bool(calls) == (name in (*IN_CALLS, *SLOWER))
        assert any("backward" in call for call in calls) == (name in SLOWER)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["max overlapping", "mean steps", "bilinear uneven", "reflect", "replicate"])
def test_other_dtypes(name, dtype) -> None:
    fn, x = programs()[name]
    x = x.to(dtype)
    for mine, other, precise in zip(graphc.compile(fn, backend="c")(x), fn(x), fn(x.double()), strict=True):
        assert_contract(mine, other, precise)


def test_equal_maxima_and_nan() -> None:
    """The gradient goes where the position says, and a NaN is a maximum; sums come in eager's order."""
    fn, x = programs()["max overlapping"]
    x = (x * 2).round()
    x[0, 0, 3, 3] = float("nan")
    for mine, other in zip(graphc.compile(fn, backend="c")(x), fn(x), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)
