"""Kernels bear the names of the user's own ops, whatever those are expanded into."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import graphc
from graphc.ir.parser import parse
from tests.ops.expansion import ordinary

X = ordinary(8, 16)


def names(fn) -> list[str]:
    """Names of the kernels of a function without arguments."""
    with torch.no_grad():
        return list(graphc.compile(fn, backend="c").graph(stage="scheduled").kernels)


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda: F.relu(X), ["relu"]),
        (lambda: F.relu(X @ X.t() + 1), ["add_relu"]),
        (lambda: F.layer_norm(X + F.gelu(X), (16,)), ["gelu_add_layer_norm"]),
        (lambda: F.softmax(X * 2, -1), ["mul_softmax"]),
        (lambda: F.silu(X) * X, ["silu_mul"]),
        (lambda: F.mse_loss(X, X * 2), ["mul_mse_loss"]),
        (lambda: torch.exp(X - X.amax(1, True)) / torch.exp(X - X.amax(1, True)).sum(1, True), ["softmax"]),
        (lambda: torch.where(X > 0, X, -X), ["gt_neg"]),
        (lambda: torch.zeros(3), ["fill"]),
    ],
)
def test_names(fn, expected) -> None:
    assert names(fn) == expected


def test_equal_kernels_share_one_name() -> None:
    """The same code from two composites is one kernel."""
    assert names(lambda: (F.relu(X) @ X.t(), F.relu(X @ X.t() @ X))) == ["relu"]


def test_origins_are_no_part_of_the_text() -> None:
    with torch.no_grad():
        optimized = graphc.compile(lambda: F.gelu(X), backend="c").graph(stage="optimized")
    assert {op.origin for op in optimized.ops} == {"gelu"}
    again = parse(str(optimized))
    assert again == optimized
    assert {op.origin for op in again.ops} == {""}
    assert {op.origin for op in optimized.copy().ops} == {"gelu"}
