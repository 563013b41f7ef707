"""Attention in the forms people write it, as one kernel each: against eager, float64 and the plan's oracle."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import graphc
from graphc.settings import override
from tests.plan_interpreter import run_plan
from tests.support import assert_contract
from tests.triton.attentions import FORMS, causal, dropped, inputs, plain, safe, window
from tests.triton.products import Case, kernel_calls, plan_of, products_left

torch.set_num_threads(1)


def _exact(args: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x.double() if x.is_floating_point() else x for x in args]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", FORMS)
def test_forms_are_one_kernel_and_keep_the_contract(name: str, dtype: torch.dtype) -> None:
    form, _ = FORMS[name]
    args = inputs(name, dtype)
    with override(templates="always", cache=False):
        compiled = graphc.compile(form, backend="triton")
        found = compiled(*args)
        stats = compiled.explain(*args).stats
    # angles and slopes may be tables of their own, and a mask's edges are found ahead; what is added may be such a mask
    most = {"rotary": 3, "alibi": 3, "causal with a buffer": 2, "bias": 6}.get(name, 1)
    assert stats["gemm_calls"] == 0 and stats["kernel_calls"] <= most and not stats["extern"], stats
    assert_contract(found, form(*args), form(*_exact(args)))


@pytest.mark.parametrize("name", FORMS)
def test_the_oracle_runs_the_same_plan(name: str) -> None:
    form, _ = FORMS[name]
    args = inputs(name)
    case = Case(form, tuple(tuple(x.shape) for x in args))
    plan = plan_of(case, torch.float32)
    assert products_left(plan) == 0 and kernel_calls(plan) <= 3
    given = case.inputs(torch.float32)
    (found,) = run_plan(plan, given)
    torch.testing.assert_close(found.double(), form(*_exact(given)), rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("sizes", [(1, 37), (130, 5), (70, 140)])
def test_blocks_in_any_number(sizes: tuple[int, int]) -> None:
    for form in (plain, causal, window):
        args = inputs("plain", torch.bfloat16, queries=sizes[0], keys=sizes[1])
        with override(templates="always", cache=False):
            found = graphc.compile(form, backend="triton")(*args)
        assert_contract(found, form(*args), form(*_exact(args)))


def _masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return F.softmax((q @ k.mT).masked_fill(mask, float("-inf")), -1) @ v


def _guarded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, zeros: bool = True) -> torch.Tensor:
    """A softmax by hand, whose shift is 0 for rows without a score."""
    scores = (q @ k.mT * 0.4).masked_fill(mask, float("-inf"))
    peak = scores.amax(-1, keepdim=True)
    exponential = (scores - torch.where(peak == float("-inf"), 0.0, peak)).exp()
    weights = exponential / exponential.sum(-1, keepdim=True)
    return (torch.where(peak == float("-inf"), 0.0, weights) if zeros else weights) @ v


def _unmasked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return _guarded(q, k, v, torch.zeros((), dtype=torch.bool), zeros=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_shift_that_is_0_for_rows_without_a_score(dtype: torch.dtype) -> None:
    q, k, v = inputs("plain", dtype)
    mask = torch.rand(21, 37) < 0.3
    mask[4] = True
    for form, others in ((_guarded, (mask,)), (_guarded, (mask, False)), (_unmasked, ())):
        args = [q, k, v, *others]
        with override(templates="always", cache=False):
            compiled = graphc.compile(form, backend="triton")
            found = compiled(*args)
            assert compiled.explain(*args).stats["gemm_calls"] == 0
        assert_contract(
            found, form(*args), form(*(x.double() if x.is_floating_point() else x for x in args[:3]), *others)
        )


def test_rows_that_are_masked_whole_are_as_in_eager() -> None:
    q, k, v = inputs("plain")
    mask = torch.rand(21, 37) < 0.3
    mask[4] = True
    for form, args in ((_masked, (q, k, v, mask)), (safe, (q, k, v, ~mask))):
        with override(templates="always", cache=False):
            compiled = graphc.compile(form, backend="triton")
            found = compiled(*args)
            assert compiled.explain(*args).stats["gemm_calls"] == 0
        wanted = form(*args)
        assert torch.equal(found.isnan(), wanted.isnan())
        torch.testing.assert_close(found, wanted, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert not wanted.isnan().any() and bool((wanted[:, :, 4] == 0).all())


def test_infinities_and_nan_are_as_in_eager() -> None:
    q, k, v = inputs("plain")
    q[0, 0, 3, 2], q[0, 1, 5, 0], v[1, 2, 7, 1] = float("nan"), float("inf"), float("inf")
    with override(templates="always", cache=False):
        found = graphc.compile(plain, backend="triton")(q, k, v)
    wanted = plain(q, k, v)
    assert torch.equal(found.isnan(), wanted.isnan()) and torch.equal(found.isinf(), wanted.isinf())
    torch.testing.assert_close(found, wanted, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_dropout_draws_the_numbers_of_all_backends() -> None:
    args = inputs("plain")
    found = []
    for backend in ("triton", "interpret"):
        torch.manual_seed(0)
        with override(templates="always", cache=False):
            compiled = graphc.compile(dropped, backend=backend)
            found.append(compiled(*args))
            if backend == "triton":
                stats = compiled.explain(*args).stats
                assert (stats["gemm_calls"], stats["kernel_calls"]) == (0, 1)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_causal_loops_end_at_the_last_key_a_block_sees() -> None:
    for form, first in ((causal, False), (window, True)):
        args = inputs("plain", queries=37)
        with override(templates="always", cache=False):
            compiled = graphc.compile(form, backend="triton")
            compiled(*args)
            (source,) = compiled.source(*args).values()
        assert "last = tl.minimum(37, (m_tile * MBLOCK + MBLOCK - 1)" in source
        assert ("first = tl.maximum(0, " in source) == first
        masked, whole = ([part for part in source.split("for j_start in ")[1:] if ("tl.where(v" in part) == kind]
                         for kind in (True, False))  # fmt: skip
        assert len(masked) == 1 + first and [part[: part.index(", whole_last")] for part in whole] == [
            "range(whole_first" if first else "range(0"
        ]


def test_scores_that_are_wanted_themselves_are_stored() -> None:
    def with_weights(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights = F.softmax(q @ k.mT, -1)
        return weights @ v, weights

    args = inputs("plain")
    with override(templates="always", cache=False):
        found = graphc.compile(with_weights, backend="triton")(*args)
    for mine, theirs, true in zip(found, with_weights(*args), with_weights(*_exact(args)), strict=True):
        assert_contract(mine, theirs, true)


def test_queries_that_are_nan_give_nan_where_hidden_rows_give_zeros() -> None:
    """Torch's own attention gives zeros where a query sees nothing; one whose scores are all NaN is another case."""
    q, k, v = (torch.randn(1, 2, 20, 16) for _ in range(3))
    q[0, 0, 3], q[0, 1, 19] = float("nan"), float("nan")
    with override(templates="always", cache=False):
        found = graphc.compile(F.scaled_dot_product_attention, backend="triton")(q, k, v)
    wanted = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(found.isnan(), wanted.isnan()) and int(wanted.isnan().any(-1).sum()) == 2
    torch.testing.assert_close(found, wanted, equal_nan=True)
