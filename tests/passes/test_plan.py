"""Random programs: what a plan computes is what the graph says, down to strides, aliases and inputs written."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from graphc.errors import LoweringError
from graphc.ir import Graph, parse
from graphc.ir.types import DType, bf16, bool_, f16, f32, f64, i32, i64
from graphc.passes.plan import make_plan
from graphc.program.plan import AtenStep
from tests.passes.planned import check_plan
from tests.strategies import graphs, random_inputs

EXACT = ("neg", "abs", "sin", "tanh", "floor", "sign")
SLOW = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


def check_random(graph: Graph, numerics: str = "default") -> None:
    torch.set_num_threads(1)
    inputs = random_inputs(graph, seed=1)
    check_plan(graph, inputs, numerics=numerics)


@given(graphs(max_ops=14, unary=EXACT))
@SLOW
def test_random_programs(graph: Graph) -> None:
    check_random(graph)


@given(graphs(max_ops=12, unary=EXACT, dtypes=(f32, bf16, f16, i32, bool_)))
@SLOW
def test_random_programs_that_round_as_eager_does(graph: Graph) -> None:
    check_random(graph, numerics="eager")


@pytest.mark.parametrize("dtypes", [(f32, f64, i64, bool_)])
def test_plans_do_not_change_graphs(dtypes: Sequence[DType]) -> None:
    @given(graphs(max_ops=10, unary=EXACT, dtypes=dtypes))
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    def check(graph: Graph) -> None:
        before = graph.signature()
        make_plan(graph)
        assert graph.signature() == before

    check()


def test_plans_are_the_same_every_time() -> None:
    @given(graphs(max_ops=10, unary=EXACT))
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    def check(graph: Graph) -> None:
        one, two = make_plan(graph), make_plan(graph)
        assert one.steps == two.steps and one.buffers == two.buffers and one.kernels == two.kernels

    check()


def test_a_plan_for_another_device_is_made_without_it() -> None:
    graph = parse("""
graph f(%x: f32[64, 32]@cuda:0 arg "x", %s: f32[] arg "s", %lr: f64[]@host scalar "lr") {
  %0: f32[64, 1]@cuda:0 = amax(%x) {dims=[1], keepdim=True}
  %1: f32[64, 32]@cuda:0 = sub(%x, %0)
  %2: f32[64, 32]@cuda:0 = mul(%1, %s)
  %3: f32[64, 32]@cuda:0 = mul(%2, %lr)
  %4: f32[]@cuda:0 = sum(%3) {dims=[0, 1], keepdim=False}
  %5: f64[]@host = item(%4)
  return %3, %5
}
""")
    plan = make_plan(graph, backend="triton")
    assert [spec.device for spec in plan.buffers] == ["cuda:0", "cpu", "cpu", "cuda:0", "cuda:0", "cpu"]
    assert [step.op for step in plan.steps if isinstance(step, AtenStep)] == ["aten._local_scalar_dense.default"]
    assert len(plan.kernels) == 2


def test_symbolic_sizes_are_refused() -> None:
    graph = parse("""
graph f(%x: f32[n] arg "x") {
  %0: f32[n] = neg(%x)
  return %0
}
""")
    with pytest.raises(LoweringError, match="symbolic size"):
        make_plan(graph)
