"""The softmax family: type rule, reference and expansions against eager and float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from graphc import ops
from graphc.errors import InvalidGraphError
from graphc.ir import interpreter
from graphc.ir.graph import Output
from graphc.ops import Kind
from graphc.passes.base import PassContext
from graphc.passes.expand import ExpandComposites
from tests.ops.expansion import check, expanded, graph_of, kinds, ordinary

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
INF, NAN = math.inf, math.nan
ROWS = torch.tensor([[-INF, -INF, -INF], [INF, 0.0, 1.0], [NAN, 0.0, 1.0], [-INF, 0.0, 1.0], [80.0, -80.0, 3.0]])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("name", "eager"), [("softmax", torch.softmax), ("log_softmax", torch.log_softmax)])
def test_softmax(name, eager, dtype):
    for shape, dim in (
        ((4, 7), 1),
        ((4, 7), 0),
        ((2, 3, 5), 1),
        ((3, 1), 1),
        ((1, 1), 0),
        ((), 0),
        ((0, 3), 1),
        ((3, 0), 1),
    ):
        graph = check(name, [ordinary(*shape, dtype=dtype) * 5], lambda x: eager(x, dim), dim=dim)
    graph = check(name, [ROWS.to(dtype)], lambda x: eager(x, 1), dim=1)
    assert kinds(graph) == {Kind.POINTWISE, Kind.REDUCTION}
    assert [op.attrs["dims"] for op in graph.ops if ops.get(op.name).kind is Kind.REDUCTION] == [(1,), (1,)]


def test_safe_softmax():
    eager = torch.ops.aten._safe_softmax
    for x in (ROWS, ordinary(2, 3, 4), torch.empty(0, 2)):
        check("safe_softmax", [x], lambda t: eager(t, t.dim() - 1), dim=x.dim() - 1)


def dyadic(weights, dim):
    """Weights that sum to 1 without rounding."""
    rounded = torch.floor(weights * 2**20) / 2**20
    if rounded.dim() and rounded.numel():
        rounded.select(dim, 0).add_(1 - rounded.sum(dim))
    return rounded


def softmax_gradient(grad, weights, dim):
    return torch.ops.aten._softmax_backward_data(grad, weights, dim, weights.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "dim"), [((4, 7), 1), ((4, 7), 0), ((2, 3, 5), 1), ((3, 1), 1), ((), 0), ((0, 3), 1)]
)
def test_softmax_gradient(shape, dim, dtype):
    weights = dyadic(torch.softmax(ordinary(*shape, dtype=torch.float64) * 4, dim), dim).to(dtype)
    grad = ordinary(*shape, dtype=dtype, seed=1)
    graph = check("softmax_gradient", [grad, weights], lambda g, p: softmax_gradient(g, p, dim), dim=dim)
    assert kinds(graph) <= {Kind.POINTWISE, Kind.REDUCTION, Kind.VIEW, Kind.CREATION}


def test_softmax_gradient_of_special_values():
    weights = dyadic(torch.softmax(ordinary(*ROWS.shape, dtype=torch.float64), 1), 1).float()
    weights[1] = torch.softmax(ROWS, 1)[1]
    for value in (INF, -INF, NAN, 3e38):
        grad = ordinary(*ROWS.shape)
        grad[:, 0] = value
        check("softmax_gradient", [grad, weights], lambda g, p: softmax_gradient(g, p, 1), dim=1)


def test_softmax_gradient_of_weights_that_are_none():
    """Rows that are masked whole, and what sums to something else, are treated as the definition says."""
    weights = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.25, 0.0], [2.0, 0.5, 0.5], [0.9, 0.05, 0.04]])
    check("softmax_gradient", [ordinary(4, 3), weights], lambda g, p: softmax_gradient(g, p, 1), dim=1)


def test_precise_expansions_are_for_programs_on_a_cpu_that_may_round_less_than_eager():
    attrs = {"dim": 1}
    tensors = [ordinary(4, 7), torch.softmax(ordinary(4, 7), 1)]
    plain, precise = (len(expanded("softmax_gradient", tensors, attrs, precisely=p).ops) for p in (False, True))
    assert plain < precise
    context = PassContext()
    for ctx, size in (
        (context, precise),
        (replace(context, target="gpu"), plain),
        (replace(context, numerics="eager"), plain),
    ):
        graph, _, op = graph_of("softmax_gradient", tensors, attrs)
        graph.outputs = [Output(op.result)]
        ExpandComposites().run(graph, ctx)
        assert len(graph.ops) == size


@pytest.mark.parametrize("scale", [1, 4, 10, 20])
@pytest.mark.parametrize("columns", [5, 64])
def test_gradient_of_a_peaked_row_is_as_exact_as_its_weights(columns, scale):
    """Rows by themselves: where eager cancels, it has no error in some by chance, and rounded sums are too far off."""
    generator = torch.Generator().manual_seed(columns * scale)
    rows, broken, eps = 100, 0, torch.finfo(torch.float32).eps
    graph = expanded("softmax_gradient", [torch.zeros(rows, columns)] * 2, {"dim": 1}, precisely=True)
    for _ in range(20):
        scores, grad = (torch.randn(rows, columns, generator=generator) for _ in range(2))
        weights, exact_weights = (torch.softmax(x * scale, 1) for x in (scores, scores.double()))
        (found,) = interpreter.run(graph, [grad, weights])
        exact = softmax_gradient(grad.double(), exact_weights, 1)
        own = (softmax_gradient(grad, weights, 1) - exact).abs().amax(1, keepdim=True)
        broken += int(((found - exact).abs() > 2 * own + 4 * eps * exact.abs()).any(1).sum())
    assert broken <= 2  # of 2,000; with sums rounded to float32 up to 100


def test_refused():
    for shapes, dim, message in (
        ([(2, 3)], 2, "softmax over dim 2"),
        ([(2, 3), (2, 3)], 2, "softmax_gradient over dim 2"),
        ([(2, 3), (3, 2)], 1, "softmax_gradient of weights"),
    ):
        name = "softmax" if len(shapes) == 1 else "softmax_gradient"
        with pytest.raises(InvalidGraphError, match=message):
            graph_of(name, [torch.zeros(shape) for shape in shapes], {"dim": dim})
