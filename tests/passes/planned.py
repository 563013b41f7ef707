"""Helpers of the plan tests: a text graph is planned, run with the oracles, and compared with the graph interpreter."""

from __future__ import annotations

from typing import Any

import torch

from graphc.ir import Graph, parse, run
from graphc.passes.plan import make_plan
from graphc.program.plan import AtenStep, GemmStep, KernelStep, Plan
from tests.plan_interpreter import run_plan
from tests.strategies import random_inputs


def graph_of(text: str) -> Graph:
    """A graph from its lines; the header and braces may be left out of indentation rules."""
    return parse(text.strip() + "\n")


def check_plan(
    source: str | Graph, inputs: list[Any] | None = None, numerics: str = "default", exact: bool = False
) -> Plan:
    """Plan a graph and assert that it computes what the interpreter does: outputs, strides, aliases, written inputs.

    Args:
        source: a graph or its text.
        inputs: random ones when left out.
        exact: bit for bit.
    """
    graph = graph_of(source) if isinstance(source, str) else source
    given = random_inputs(graph, seed=3) if inputs is None else inputs
    ours, theirs = ([_copy(item) for item in given] for _ in range(2))
    expected = run(graph, theirs)
    plan = make_plan(graph, numerics=numerics)
    found = run_plan(plan, ours)
    for mine, reference in zip([*found, *ours], [*expected, *theirs], strict=True):
        _same(mine, reference, exact)
    for i, one in enumerate(found):
        for j, other in enumerate(found[:i]):
            if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.numel() and other.numel():
                assert _shared(one, other) == _shared(expected[i], expected[j]), f"outputs {j} and {i} share memory"
    return plan


def _copy(item: Any) -> Any:
    if not isinstance(item, torch.Tensor):
        return item
    return torch.empty_strided(item.shape, item.stride(), dtype=item.dtype).copy_(item)


def _same(mine: Any, reference: Any, exact: bool) -> None:
    if not isinstance(reference, torch.Tensor):
        assert mine == reference or (mine != mine and reference != reference)
        return
    assert mine.shape == reference.shape and mine.dtype == reference.dtype
    if reference.numel():
        sizes = zip(reference.shape, mine.stride(), reference.stride(), strict=True)
        assert all(n == 1 or a == b for n, a, b in sizes), f"strides {mine.stride()}, eager {reference.stride()}"
    tolerance = (
        0.0 if exact or not reference.is_floating_point() else 1e-5 if reference.dtype != torch.float64 else 1e-12
    )
    if reference.dtype in (torch.bfloat16, torch.float16):
        tolerance = 0.0 if exact else 0.02
    torch.testing.assert_close(mine, reference, rtol=tolerance, atol=tolerance, equal_nan=True)


def _shared(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def kernel_calls(plan: Plan) -> list[str]:
    return [step.kernel for step in plan.steps if isinstance(step, KernelStep)]


def gemms(plan: Plan) -> list[GemmStep]:
    return [step for step in plan.steps if isinstance(step, GemmStep)]


def aten_calls(plan: Plan) -> list[str]:
    return [step.op for step in plan.steps if isinstance(step, AtenStep)]
