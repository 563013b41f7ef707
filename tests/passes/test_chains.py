"""What becomes one kernel among products of products, and what must not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import graphc
from graphc.passes.base import PassContext
from graphc.passes.pipeline import optimize
from graphc.passes.plan import make_plan
from graphc.passes.templates import ALWAYS, Templates
from graphc.program.plan import Plan
from tests.plan_interpreter import run_plan


def _plan(function: Any, *args: torch.Tensor, context: PassContext | None = None) -> Plan:
    graph = graphc.trace(function, *args)
    optimize(graph, context or PassContext(target="gpu"))
    return make_plan(graph, backend="triton", templates=Templates(policy=ALWAYS))


def _holders(plan: Plan) -> list[int]:
    """Products per kernel that holds any."""
    return sorted(len(kernel.contractions) for kernel in plan.kernels.values() if kernel.contractions)


def _check(function: Any, *args: torch.Tensor) -> Plan:
    plan = _plan(function, *args)
    (found,) = run_plan(plan, list(args))
    torch.testing.assert_close(found, function(*args), rtol=1e-5, atol=1e-5)
    return plan


Q, K, V = (torch.randn(2, size, 6) for size in (9, 11, 11))


def test_attention_is_one_kernel() -> None:
    plan = _check(lambda q, k, v: F.softmax(q @ k.mT, -1) @ v, Q, K, V)
    (kernel,) = plan.kernels.values()
    assert "over r1" in str(kernel) and "reduce max" in str(kernel)


def test_a_softmax_along_the_other_dim_is_none() -> None:
    plan = _check(lambda q, k, v: F.softmax(q @ k.mT, -2) @ v, Q, K, V)
    assert _holders(plan) == [1, 1]


def test_weights_that_are_not_multiples_of_a_softmax_are_none() -> None:
    plan = _check(lambda q, k, v: (F.softmax(q @ k.mT, -1) + 0.1) @ v, Q, K, V)
    assert _holders(plan) == [1, 1]


def test_a_chain_of_three_products_is_not_one_kernel() -> None:
    plan = _check(lambda a, b, c: ((a @ b.mT).relu() @ c).tanh() @ b.mT, Q, K, V)
    assert _holders(plan) == [1, 2]


def test_sums_of_one_element_are_none() -> None:
    q, k, v = Q[..., :1], K[..., :1], V
    assert _holders(_check(lambda q, k, v: F.softmax(q @ k.mT, -1) @ v, q, k, v)) == [1, 1]


def test_wide_rows_are_none() -> None:
    q, k, v = (torch.randn(3, 300) for _ in range(3))
    assert _holders(_check(lambda q, k, v: F.softmax(q @ k.mT, -1) @ v, q, k, v)) == [1, 1]


def test_scores_that_others_need_are_stored() -> None:
    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        weights = F.softmax(q @ k.mT, -1)
        return weights @ v + weights.sum((1, 2), keepdim=True)

    assert _holders(_check(function, Q, K, V)) == [1, 1]


def test_two_attentions_that_share_scores_are_two_kernels() -> None:
    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        weights = F.softmax(q @ k.mT, -1)
        return torch.cat([weights @ v, weights @ (v * 2).sin()], -1)

    assert _holders(_check(function, Q, K, V)) == [2, 2]


def _gradients(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    out = F.softmax(q @ k.mT, -1) @ v
    return (out.detach(), *torch.autograd.grad(out.sin().sum(), (q, k, v)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_over_scores_become_sums_over_results_where_products_are_rounded(dtype: torch.dtype) -> None:
    args = [x.to(dtype) for x in (Q, K, V)]
    counts = {torch.float32: [1, 1, 1, 1, 1], torch.bfloat16: [2, 3, 4]}
    plan = _plan(_gradients, *args)
    assert _holders(plan) == counts[dtype]
    exact = _gradients(*(x.double() for x in args))
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for mine, true in zip(run_plan(plan, args), exact, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=tolerance, atol=tolerance)


def test_gradients_of_scores_are_rounded_once_and_nothing_where_a_query_sees_one_key() -> None:
    plan = _plan(_gradients, *(x.to(torch.bfloat16) for x in (Q, K, V)))
    (kernel,) = (kernel for kernel in plan.kernels.values() if len(kernel.contractions) == 3)
    text = str(kernel)
    assert text.count(": bf16 = cast ") == 2  # what is multiplied with keys, and the result
    assert text.count(": bool = ge ") == 1 and "const 1.00006103515625" in text


def test_weights_of_no_softmax_count_always() -> None:
    """Sums of other exponentials say nothing of how many keys a query sees."""

    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        scores = q @ k.mT
        exponentials = (scores - scores.amin(-1, keepdim=True).detach()).exp()
        out = (exponentials / exponentials.sum(-1, keepdim=True)) @ v
        return (out.detach(), *torch.autograd.grad(out.sin().sum(), (q, k, v)))

    plan = _plan(function, *(x.to(torch.bfloat16) for x in (Q, K, V)))
    assert all("1.00006103515625" not in str(kernel) for kernel in plan.kernels.values())


def test_tf32_counts_as_rounded_and_eager_numerics_never() -> None:
    fused, apart = (
        PassContext(target="gpu", templates=Templates(tf32=True), numerics=kind) for kind in ("default", "eager")
    )
    assert _holders(_plan(_gradients, Q, K, V, context=fused)) == [2, 3, 4]
    assert 4 not in _holders(_plan(_gradients, Q, K, V, context=apart))
