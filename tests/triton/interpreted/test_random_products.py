"""Random programs with products of matrices, all of which become kernels, in Triton's interpreter and by the oracle."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphc.ir import Graph, parse
from graphc.ir.types import bool_, f32, f64
from graphc.passes.base import PassContext
from graphc.passes.pipeline import optimize
from graphc.passes.plan import make_plan
from graphc.passes.templates import ALWAYS, Templates
from graphc.settings import override
from tests.e2e.agreement import by_backend, check_agreement
from tests.plan_interpreter import run_plan
from tests.strategies import graphs

torch.set_num_threads(1)
PROGRAMS = graphs(products=True, dtypes=(f32, f32, f32, f64, bool_), max_ops=8)
QUIET = list(HealthCheck)


def _by_oracle(graph: Graph, inputs: list[Any]) -> list[Any]:
    optimized = parse(str(graph))
    optimize(optimized, PassContext(target="gpu"))
    return run_plan(make_plan(optimized, backend="triton", templates=Templates(policy=ALWAYS)), inputs)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(PROGRAMS, st.integers(0, 9))
def test_plans_with_templates_mean_the_same(graph: Graph, seed: int) -> None:
    check_agreement(graph, seed, _by_oracle)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(PROGRAMS, st.integers(0, 9))
def test_kernels_of_templates_mean_the_same(graph: Graph, seed: int) -> None:
    with override(templates="always", cache=False):
        check_agreement(graph, seed, by_backend("triton"))
