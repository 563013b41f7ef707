"""Random graphs on every backend: interpreter, loop-IR oracle, C, Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import assume

import graphc
from graphc.ir import Graph, parse, run
from graphc.passes.base import PassContext
from graphc.passes.pipeline import optimize
from graphc.passes.plan import make_plan
from tests.plan_interpreter import run_plan
from tests.strategies import random_inputs

Runner = Callable[[Graph, list[Any]], list[Any]]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def by_oracle(graph: Graph, inputs: list[Any]) -> list[Any]:
    """Optimised and planned; kernels run by the numpy interpreter of loop IR."""
    optimized = parse(str(graph))
    optimize(optimized, PassContext())
    return run_plan(make_plan(optimized), inputs)


def by_backend(backend: str) -> Runner:
    return lambda graph, inputs: graphc.run(graph, *inputs, backend=backend)


def _copies(inputs: list[Any]) -> list[Any]:
    return [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).copy_(t) for t in inputs]


def check_agreement(graph: Graph, seed: int, runner: Runner) -> None:
    """Outputs and written inputs of `runner` are those of the graph interpreter.

    Graphs that are discontinuous at these inputs, so that rounding alone decides a comparison or a floor, are set
    aside: they are told by their float64 run, which must agree with the float32 one.
    """
    given = random_inputs(graph, seed)
    reference_inputs, inputs = _copies(given), _copies(given)
    reference = [*run(graph, reference_inputs), *reference_inputs]
    wide = parse(str(graph).replace("f32", "f64"))
    wide_inputs = [t.double() if t.dtype == torch.float32 else t for t in _copies(given)]
    exact = [*run(wide, wide_inputs), *wide_inputs]
    assume(all(_near(a, b) for a, b in zip(reference, exact, strict=True)))
    found = [*runner(graph, inputs), *inputs]
    assert len(found) == len(reference)
    for mine, theirs in zip(found, reference, strict=True):
        tolerance = TOLERANCE.get(theirs.dtype, 0.0)
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)


def _near(reference: torch.Tensor, exact: torch.Tensor) -> bool:
    return torch.allclose(reference.double(), exact.double(), rtol=1e-6, atol=1e-6, equal_nan=True)
