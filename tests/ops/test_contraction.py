"""Matrix products."""

from __future__ import annotations

import pytest
import torch

from graphc import ops
from tests.ops.core import FLOATS, check, graph_of, random, refuses

SHAPES = [
    ((2, 3), (3, 4)), ((1, 3), (3, 1)), ((5, 2, 3), (5, 3, 4)), ((5, 1, 2, 3), (6, 3, 4)), ((2, 3), (5, 3, 4)),
    ((0, 3), (3, 4)), ((2, 0), (0, 4)), ((0, 2, 3), (0, 3, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), SHAPES, ids=str)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    check("matmul", random(a), random(b, seed=1))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.int32], ids=str)
def test_matmul_of_every_dtype(dtype: torch.dtype) -> None:
    check("matmul", random((4, 3), dtype), random((3, 5), dtype, seed=1))
    check("matmul", random((3, 4), dtype).t(), random((5, 3), dtype, seed=1).t())


def test_products_of_bytes() -> None:
    for a, b in (((4, 3), (3, 5)), ((2, 0), (0, 4)), ((1, 70), (70, 1))):
        check("int_matmul", random(a, torch.int8), random(b, torch.int8, seed=1))
    refuses("int_matmul: multiplies two matrices of i8", "int_matmul", random((2, 3)), random((3, 5)))
    refuses(
        "int_matmul: multiplies two matrices of i8", "int_matmul",
        random((2, 4, 3), torch.int8), random((3, 5), torch.int8),
    )  # fmt: skip


def test_flops() -> None:
    graph, _ = graph_of("matmul", [random((7, 2, 3)), random((3, 4))], {})
    flops = ops.get("matmul").flops
    assert flops is not None and flops(graph.ops[0]) == 2 * 7 * 2 * 3 * 4


def test_type_rule_refuses() -> None:
    refuses("matmul: .* has rows of 3, .* columns of 4", "matmul", random((2, 3)), random((4, 5)))
    refuses("matmul: .* must have two dims or more", "matmul", random((3,)), random((3, 5)))
    refuses("matmul: .* differ in dtype", "matmul", random((2, 3)), random((3, 5)).double())
    refuses("matmul: operand 0 is bool", "matmul", random((2, 3), torch.bool), random((3, 5), torch.bool))
    refuses(r"matmul: shapes \[2\] and \[3\] do not broadcast", "matmul", random((2, 4, 3)), random((3, 3, 5)))
