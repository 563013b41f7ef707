"""Products of 8-bit floats in Triton's interpreter, against eager and float64."""

from __future__ import annotations

import pytest
import torch

import graphc
from graphc.passes.templates import ALWAYS, Templates
from graphc.settings import override
from tests.plan_interpreter import run_plan
from tests.support import ONE_SCALE, SCALES_ROWS, assert_contract
from tests.triton.scaled import E4, E5, by_matrix, by_row, exact, inputs, plan_of

torch.set_num_threads(1)


@pytest.mark.parametrize("kinds", [(E4, E4), (E4, E5)], ids=str)
@pytest.mark.parametrize(
    "function", [by_matrix, pytest.param(by_row, marks=pytest.mark.skipif(not SCALES_ROWS, reason=ONE_SCALE))]
)
def test_scaled_products_keep_the_contract(function: object, kinds: tuple[torch.dtype, torch.dtype]) -> None:
    given = inputs(40, 96, 48, *kinds)
    given[0][3, 5] = float("nan")
    with override(templates="always", cache=False):
        compiled = graphc.compile(function, backend="triton")  # type: ignore[call-overload]
        found = compiled(*given)
        assert compiled.explain(*given).stats["kernel_calls"] == 1
    assert_contract(found, function(*given), exact(function, *given))  # type: ignore[operator]
    plan = plan_of(function, given, Templates(policy=ALWAYS))
    assert sum(bool(kernel.contractions) for kernel in plan.kernels.values()) == len(plan.steps) == 1
    (oracle,) = run_plan(plan, given)
    assert_contract(oracle, function(*given), exact(function, *given))  # type: ignore[operator]
