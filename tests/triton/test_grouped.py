"""Products of matrices group by group as kernels: compiled for GPUs that are not there, and when they are made."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiles import MACHINES, candidate_tiles
from graphc.ir.types import bf16
from graphc.passes.templates import NEVER, Templates
from graphc.program.plan import AtenStep
from graphc.runtime.triton_cross import TARGETS, compile_for
from tests.triton.grouped import CASES, Case, plan_of, products
from tests.triton.test_products import UNITS, assembly

pytest.importorskip("triton")
compiles = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter cannot compile")

ENDS = tuple(range(128, 1025, 128))
SLOTS = Case(CASES["slots"].function, ((1024, 512), (8, 512, 1024), (1024, 1)), ENDS)
SUMS = Case(CASES["sums"].function, ((1024, 512), (1024, 1024)), ENDS)


@compiles
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", [SLOTS, SUMS], ids=["rows", "sums"])
def test_groups_are_multiplied_on_matrix_units(case: Case, target: str) -> None:
    (kernel,) = (kernel for kernel in plan_of(case, torch.bfloat16).kernels.values() if kernel.contractions)
    (compiled,) = compile_for(emit_kernel(kernel, target=target), target)
    assert UNITS[target] in assembly(compiled)
    assert compiled.spills == 0, compiled
    assert min(compiled.stores) >= 8, compiled


def test_rows_of_few_groups_get_small_blocks() -> None:
    for groups, rows in ((1, 128), (128, 16)):
        choice = candidate_tiles("cuda:90", 1, 1024, 2048, 1024, bf16, loaded=2, scalar=False, groups=groups)[0]
        assert choice.tile.rows == rows and choice.tile in _candidates(choice.tile.depth, choice.tile.stages)


def _candidates(depth: int, stages: int) -> list[object]:
    from dataclasses import replace

    return [replace(tile, depth=depth, stages=stages) for tile in MACHINES["cuda:90"].tiles]


def _chosen(case: Case, dtype: torch.dtype, templates: Templates) -> tuple[int, int]:
    plan = plan_of(case, dtype, templates)
    return sum(isinstance(step, AtenStep) for step in plan.steps), products(plan)


def test_the_library_keeps_what_it_does_as_well() -> None:
    plain = Case(CASES["plain"].function, ((1024, 512), (8, 512, 1024)), ENDS)
    assert _chosen(plain, torch.bfloat16, Templates()) == (1, 0)
    assert _chosen(plain, torch.float16, Templates()) == (0, 1)  # it would wait for the ends of groups
    assert _chosen(plain, torch.float32, Templates()) == (1, 0)
    assert _chosen(plain, torch.float32, Templates(tf32=True)) == (0, 1)


def test_what_surrounds_a_large_one_makes_it_a_kernel() -> None:
    def scaled(product: Callable[..., torch.Tensor], *args: torch.Tensor) -> torch.Tensor:
        a, b, scale, ends = args
        return torch.relu(product(a, b, ends)) * scale

    large = Case(scaled, ((16384, 1024), (8, 1024, 2048), (16384, 1)), tuple(16 * end for end in ENDS))
    assert _chosen(large, torch.bfloat16, Templates()) == (0, 1)
    assert _chosen(large, torch.bfloat16, Templates(policy=NEVER)) == (1, 0)
