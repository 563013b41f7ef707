"""Products of 8-bit floats as kernels: compiled for GPUs that are not there; which chips have them."""

from __future__ import annotations

import os

import pytest
import torch

from graphc.codegen.triton.emit import emit_kernel
from graphc.passes.templates import ALWAYS, NEVER, Templates
from graphc.program.plan import AtenStep
from graphc.runtime.triton_cross import compile_for
from tests.triton.scaled import E4, E5, by_matrix, by_row, inputs, plan_of
from tests.triton.test_products import UNITS, assembly

pytest.importorskip("triton")
compiles = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter cannot compile")


@compiles
@pytest.mark.parametrize("target", ["cuda:90", "cuda:100"])
@pytest.mark.parametrize("kinds", [(E4, E4), (E5, E4)], ids=str)
def test_units_take_8_bit_floats(kinds: tuple[torch.dtype, torch.dtype], target: str) -> None:
    for function in (by_matrix, by_row):
        plan = plan_of(function, inputs(4096, 1024, 8192, *kinds), Templates(target=target))
        (kernel,) = plan.kernels.values()
        made = emit_kernel(kernel, target=target)
        (compiled,) = compile_for(made, target)
        assert UNITS[target] in assembly(compiled) and ("e4m3" in assembly(compiled) or target == "cuda:100")
        assert compiled.spills == 0 and made.descriptors == 2, compiled


@pytest.mark.parametrize(
    "templates",
    [Templates(policy=NEVER), *(Templates(target, policy=ALWAYS) for target in ("cuda:80", "cuda:86", "hip:gfx942"))],
    ids=str,
)
def test_others_leave_them_to_the_library(templates: Templates) -> None:
    plan = plan_of(by_row, inputs(64, 32, 16), templates)
    (call,) = (step for step in plan.steps if isinstance(step, AtenStep))
    assert call.op == "aten._scaled_mm.default"
