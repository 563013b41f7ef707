"""Programs around products of matrices, for the tests of templates: in the interpreter, and compiled for GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import graphc
from graphc.codegen.triton import tiles
from graphc.codegen.triton.tiles import Tile
from graphc.passes.base import PassContext
from graphc.passes.pipeline import optimize
from graphc.passes.plan import make_plan
from graphc.passes.templates import ALWAYS, Templates
from graphc.program.plan import AtenStep, GemmStep, KernelStep, Plan


@dataclass(frozen=True)
class Case:
    """A function, and the shapes of its arguments.

    Args:
        function: of tensors.
        shapes: of them.
        kernels: kernels that the plan has when every product is a template.
        strides: of arguments that are not contiguous, by position.
    """

    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    kernels: int = 1
    transposed: tuple[int, ...] = ()

    def inputs(self, dtype: torch.dtype) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        found = [torch.randn(shape, generator=generator).to(dtype) for shape in self.shapes]
        return [x.mT.contiguous().mT if at in self.transposed else x for at, x in enumerate(found)]


def _heads(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return (x @ w).view(2, 9, 3, 5).transpose(1, 2).contiguous()


def _two_outputs(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    h = x @ w + b
    return h, F.gelu(h, approximate="tanh")


def _per_head(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    heads = x.view(2, 9, 3, 5).transpose(1, 2)
    return F.silu(heads @ heads.mT).reshape(2, 3, 81) * w


CASES: dict[str, Case] = {
    "plain": Case(lambda x, w: x @ w, ((33, 40), (40, 50))),
    "linear": Case(lambda x, w, b: F.relu(F.linear(x, w, b)), ((2, 9, 40), (50, 40), (50,))),
    "transposed": Case(lambda x, w: (x.mT @ w.mT) * 2, ((40, 33), (50, 40))),
    "column major": Case(lambda x, w: x @ w + 1, ((33, 40), (40, 50)), 1, (0, 1)),
    "residual": Case(lambda x, w, r: r + torch.tanh(x @ w), ((33, 40), (40, 50), (33, 50))),
    "two outputs": Case(_two_outputs, ((33, 40), (40, 50), (50,))),
    "prologue": Case(lambda x, w, s: (F.relu(x) * s) @ (w + 1), ((33, 40), (40, 50), (33, 1))),
    "prologue that is not 0 at 0": Case(lambda x, w: torch.exp(x) @ torch.exp(w) - 1, ((5, 17), (17, 6))),
    "heads": Case(_heads, ((2, 9, 40), (40, 15))),
    "per head": Case(_per_head, ((2, 9, 15), (2, 3, 81))),
    "batched": Case(lambda x, w: F.relu(x @ w), ((3, 17, 20), (3, 20, 6))),
    "broadcast batch": Case(lambda x, w: F.relu(x @ w), ((2, 3, 17, 20), (3, 20, 6))),
    "sliced": Case(lambda x, w: x[:, 3:23] @ w[:20, ::2] + 1, ((17, 40), (30, 12))),
    "one row": Case(lambda x, w: x @ w + 1, ((1, 40), (40, 50))),
    "one column": Case(lambda x, w: x @ w + 1, ((33, 40), (40, 1))),
    "outer": Case(lambda x, w: x @ w + 1, ((33, 1), (1, 7))),
    "no sum": Case(lambda x, w: x @ w + 1, ((5, 0), (0, 7))),
    "no rows": Case(lambda x, w: x @ w + 1, ((0, 5), (5, 7)), 0),
    "chain": Case(lambda x, w, v: torch.sigmoid(F.relu(x @ w) @ v), ((9, 40), (40, 300), (300, 600)), 2),
    "product of a product": Case(lambda x, w, v: torch.sigmoid(F.relu(x @ w) @ v), ((9, 40), (40, 50), (50, 6))),
    "square": Case(lambda x: F.relu(x @ x), ((20, 20),)),
}


def plan_of(case: Case, dtype: torch.dtype, templates: Templates | None = None) -> Plan:
    """The plan with every product a template, or as the policy says."""
    graph = graphc.trace(case.function, *case.inputs(dtype))
    optimize(graph, PassContext(target="gpu"))
    return make_plan(graph, backend="triton", templates=templates or Templates(policy=ALWAYS))


def products_left(plan: Plan) -> int:
    """Library calls for products, with and without something that they are added to."""
    return sum(isinstance(step, GemmStep) for step in plan.steps) + len(sums_left(plan))


def sums_left(plan: Plan) -> list[str]:
    """Library calls that add a product to something before they round."""
    calls = [step.op for step in plan.steps if isinstance(step, AtenStep)]
    return [op for op in calls if op in ("aten.addmm.out", "aten.baddbmm.out")]


def kernel_calls(plan: Plan) -> int:
    return sum(isinstance(step, KernelStep) for step in plan.steps)


def with_pieces(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    """Have every product take one tile, and what follows it done on so many pieces of that."""
    tile = Tile(32, 64, 16, 4, 2, 1.0)
    monkeypatch.setattr(tiles, "MOST_SUMS", tile.rows * tile.columns // (32 * tile.warps) // pieces)
    monkeypatch.setattr(tiles, "MOST_BESIDE", 1 << 20)
    monkeypatch.setattr(tiles, "SCALAR_TILES", (tile,))
    with_tile(monkeypatch, tile)


def with_tile(monkeypatch: pytest.MonkeyPatch, tile: Tile, **machine: int) -> None:
    """Have every product take one tile, on a chip that is another one in some ways."""
    found = replace(tiles.MACHINES["cuda:90"], tiles=(tile,), **machine)  # type: ignore[arg-type]
    monkeypatch.setitem(tiles.MACHINES, "cuda:90", found)
