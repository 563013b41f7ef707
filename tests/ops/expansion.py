"""Checks composite ops: type rule, reference and expansion against eager and float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from graphc import ops
from graphc.ir import interpreter
from graphc.ir.graph import Builder, Graph, Op, Output, Role, Value
from graphc.ir.types import BY_TORCH_NAME, TensorType
from graphc.ops import Kind
from tests.support import assert_contract

CORE = {
    Kind.POINTWISE, Kind.VIEW, Kind.REDUCTION, Kind.SCAN, Kind.INDEXING, Kind.SCATTER, Kind.CREATION, Kind.CONTRACTION,
}  # fmt: skip

SPECIAL = (float("-inf"), float("inf"), float("nan"), 0.0, -0.0, 1.0, -1.0, 88.8, -103.9, 1e-30, 3e38)
"""Values at which activations and reductions go wrong first."""


def tensor_type(t: torch.Tensor) -> TensorType:
    return TensorType(BY_TORCH_NAME[str(t.dtype).removeprefix("torch.")], tuple(t.shape))


def graph_of(name: str, tensors: Sequence[torch.Tensor], attrs: dict[str, Any]) -> tuple[Graph, Builder, Op]:
    """A graph of one op on inputs like `tensors`."""
    graph = Graph("one")
    builder = Builder(graph, ops.infer)
    inputs = [builder.input(f"x{i}", tensor_type(t), Role.ARG, f"x{i}") for i, t in enumerate(tensors)]
    op = builder.multi(name, inputs, attrs)
    return graph, builder, op


def expanded(name: str, tensors: Sequence[torch.Tensor], attrs: dict[str, Any], *, precisely: bool = False) -> Graph:
    """The graph that an expansion of one op makes, the more precise one if it has one; every op in it is a core op."""
    graph, builder, op = graph_of(name, tensors, attrs)
    graph.ops.clear()
    expand = (precisely and ops.get(name).expand_precisely) or ops.get(name).expand
    assert expand is not None, f"{name} has no expansion"
    results = expand(builder, op)
    assert len(results) == len(op.results)
    for result, stated in zip(results, op.results, strict=True):
        assert result.type == stated.type, f"expansion of {name} gives {result.type}, type rule {stated.type}"
    for each in graph.ops:
        assert ops.get(each.name).kind in CORE, f"{each.name} in the expansion of {name} is no core op"
    graph.outputs = [Output(result) for result in results]
    return graph


def wide(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def check(
    name: str,
    tensors: Sequence[torch.Tensor],
    eager: Callable[..., Any],
    *,
    results: int | None = None,
    **attrs: Any,
) -> Graph:
    """Check an op on real tensors.

    Args:
        name: of the op.
        tensors: its operands.
        eager: the same computation in eager, on tensors like the operands.
        results: how many results eager also gives; all by default.
        attrs: attributes of the op.

    Returns:
        The expansion, for checks of its structure.
    """
    graph, precise_graph = (expanded(name, tensors, attrs, precisely=precisely) for precisely in (False, True))
    stated = graph_of(name, tensors, attrs)[2].results
    expected, exact = (_as_list(eager(*ts)) for ts in (tensors, [wide(t) for t in tensors]))
    found = [_as_list(ops.get(name).reference(*tensors, **attrs))]
    for answers in found + [interpreter.run(each, list(tensors)) for each in (graph, precise_graph)]:
        assert len(answers) == len(stated)
        for answer, value in zip(answers, stated, strict=True):
            assert tensor_type(answer) == value.type, f"{name} states {value.type}, got {tensor_type(answer)}"
        for answer, theirs, precise in list(zip(answers, expected, exact, strict=False))[:results]:
            if isinstance(theirs, torch.Tensor) and theirs.dtype == torch.float64:
                _assert_close(answer, theirs)
            else:
                assert_contract(answer, theirs, precise)
    return graph


def _assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """float64 has no wider oracle: within 64 ulps of eager's largest value."""
    scale = theirs[torch.isfinite(theirs)].abs().max().item() if bool(torch.isfinite(theirs).any()) else 1.0
    eps = torch.finfo(torch.float64).eps
    torch.testing.assert_close(ours, theirs, rtol=64 * eps, atol=64 * eps * scale, equal_nan=True)


def op_names(graph: Graph) -> list[str]:
    return [op.name for op in graph.ops]


def kinds(graph: Graph) -> set[Kind]:
    return {ops.get(op.name).kind for op in graph.ops}


def special(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Special values and ordinary ones, shape (50,)."""
    generator = torch.Generator().manual_seed(0)
    ordinary = torch.randn(50 - len(SPECIAL), generator=generator) * 4
    return torch.cat([torch.tensor(SPECIAL), ordinary]).to(dtype)


def ordinary(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _as_list(answer: Any) -> list[Any]:
    return list(answer) if isinstance(answer, (tuple, list)) else [answer]


__all__ = ["SPECIAL", "Value", "check", "expanded", "graph_of", "kinds", "op_names", "ordinary", "special"]
