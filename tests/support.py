"""The numerics contract as an assertion: error against float64 at most twice eager's own, plus four ulps."""

from __future__ import annotations

import torch

from graphc.report.numerics import errors

SCALES_ROWS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
ONE_SCALE = "this torch scales by one number only on a CPU"


def assert_contract(actual: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor | None = None) -> None:
    """Assert that `actual` agrees with eager as the contract asks.

    Args:
        actual: graphc's result.
        eager: eager's result; shape, dtype and device must be equal to it.
        exact: the same program run in float64, or None to take eager's own result as exact (integers, bools, copies).
    """
    miss = errors(actual, eager, exact).miss
    assert not miss, miss
