"""Products of matrices group by group, in Triton's interpreter: against eager, float64 and the plan's oracle."""

from __future__ import annotations

import pytest
import torch

import graphc
from graphc.settings import override
from tests.plan_interpreter import run_plan
from tests.support import assert_contract
from tests.triton.grouped import CASES, exact, grouped, plan_of, products
from tests.triton.products import with_pieces

torch.set_num_threads(1)


def _list(found: object) -> list[torch.Tensor]:
    return list(found) if isinstance(found, (tuple, list)) else [found]  # type: ignore[list-item]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_grouped_products_keep_the_contract(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    inputs = case.inputs(dtype)
    with override(templates="always", cache=False):
        found = _list(graphc.compile(grouped(case), backend="triton")(*inputs))
    theirs = _list(case.function(exact, *inputs))
    true = _list(case.function(exact, *(x.double() if x.is_floating_point() else x for x in inputs)))
    if case.ends[-1] == case.inputs(dtype)[0].shape[0]:  # eager leaves rows of no group as it finds them in memory
        theirs = _list(grouped(case)(*inputs))
    for mine, eager, reference in zip(found, theirs, true, strict=True):
        assert_contract(mine, eager, reference)


@pytest.mark.parametrize("name", CASES)
def test_grouped_products_whose_epilogue_goes_by_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_pieces(monkeypatch, 4)
    test_grouped_products_keep_the_contract(name, torch.bfloat16)


@pytest.mark.parametrize("name", CASES)
def test_the_oracle_runs_the_same_plan(name: str) -> None:
    case = CASES[name]
    inputs = case.inputs(torch.float32)
    plan = plan_of(case, torch.float32)
    assert products(plan) == case.kernels
    true = _list(case.function(exact, *(x.double() if x.is_floating_point() else x for x in inputs)))
    for mine, reference in zip(run_plan(plan, inputs), true, strict=True):
        torch.testing.assert_close(mine.double(), reference, rtol=1e-5, atol=1e-5)


def test_what_one_expert_has_stays_with_its_rows() -> None:
    case = CASES["plain"]
    a, b, ends = case.inputs(torch.float32)
    b[1] = float("nan")
    a[0] = float("inf")
    with override(templates="always", cache=False):
        found = graphc.compile(grouped(case), backend="triton")(a, b, ends)
    assert_contract(found, exact(a, b, ends), exact(a.double(), b.double(), ends))
    assert found[13:30].isnan().all() and not found[1:13].isnan().any() and not found[30:].isnan().any()
