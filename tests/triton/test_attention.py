"""Attention as kernels, forward and backward: compiled for GPUs that are not there, and when the model makes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.index_bounds import Bound, Conditions
from graphc.ir.dims import symbol
from graphc.ir.types import f32
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.kernel import ROW, Axis
from graphc.passes.templates import Templates
from graphc.runtime.triton_cross import TARGETS, compile_for
from tests.triton.attentions import causal, window
from tests.triton.products import Case, kernel_calls, plan_of, products_left
from tests.triton.test_products import UNITS, assembly

pytest.importorskip("triton")
compiles = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter cannot compile")

SHAPES = ((4, 8, 1024, 128),) * 3


def _step(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
    q, k, v = (x.detach().requires_grad_() for x in args)
    out = causal(q, k, v)
    return (out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v)))


@compiles
@pytest.mark.parametrize("target", TARGETS)
def test_attention_and_its_gradients_run_on_matrix_units_and_do_not_spill(target: str) -> None:
    plan = plan_of(Case(_step, SHAPES), torch.bfloat16, Templates())
    kernels = [kernel for kernel in plan.kernels.values() if kernel.contractions]
    assert [kernel.name for kernel in kernels] == ["attention", *("attention_gradient",) * 1] + [
        f"attention_gradient_{number}" for number in (2, 3)
    ]
    for kernel in kernels if target in ("cuda:80", "cuda:90") else kernels[::3]:
        (compiled,) = compile_for(emit_kernel(kernel, target=target), target)
        assert UNITS[target] in assembly(compiled)
        assert compiled.spills == 0, compiled


@compiles
@pytest.mark.parametrize("width", [40, 256])
def test_other_widths_compile(width: int) -> None:
    plan = plan_of(Case(window, ((2, 32, 300, width),) * 3), torch.float16, Templates())
    (kernel,) = plan.kernels.values()
    for target in ("cuda:80", "cuda:90"):
        (compiled,) = compile_for(emit_kernel(kernel, target=target), target)
        assert UNITS[target] in assembly(compiled)
        assert compiled.spills == 0, compiled


# the choice


def _chosen(form: Callable[..., Any], shape: tuple[int, ...], dtype: torch.dtype, **policy: Any) -> tuple[int, int]:
    plan = plan_of(Case(form, (shape,) * 3), dtype, Templates(**policy))
    return products_left(plan), kernel_calls(plan)


def test_large_attention_is_one_kernel_where_there_are_matrix_units() -> None:
    large, small = (4, 8, 512, 64), (1, 2, 32, 64)
    assert _chosen(causal, large, torch.bfloat16) == (0, 1)
    assert _chosen(causal, small, torch.bfloat16)[0] == 2
    assert _chosen(causal, large, torch.float32)[0] == 2
    assert _chosen(causal, large, torch.float32, tf32=True) == (0, 1)
    assert _chosen(causal, (4, 8, 512, 320), torch.bfloat16)[0] >= 1


def test_scores_are_never_stored() -> None:
    plan = plan_of(Case(_step, SHAPES), torch.bfloat16, Templates())
    assert products_left(plan) == 0
    scores = 4 * 8 * 1024 * 1024
    assert all(spec.nbytes < scores for spec in plan.buffers)


# bounds of loops


def _bounds(condition: str, shift: int) -> list[Bound]:
    """Of a value that is 0 unless `step + shift` compares to `row` so."""
    b = KernelBuilder((Axis("i", 100), Axis("j", 100, ROW)))
    holds = b.compute(condition, b.index_value(symbol("j") + shift), b.index_value(symbol("i")))
    value = b.compute("where", holds, b.load("x", f32, symbol("j")), b.constant(0.0, f32))
    kernel = b.finish("kernel", ())
    return Conditions(kernel).bounds([value], (Axis("i", 100),), (Axis("j", 100, ROW),))


@pytest.mark.parametrize(
    ("condition", "shift", "wanted"),
    [("le", 0, Bound(True, 1, 0)), ("lt", 3, Bound(True, 1, -4)), ("ge", 0, Bound(False, 1, 0)),
     ("gt", 5, Bound(False, 1, -4))],
)  # fmt: skip
def test_conditions_on_positions_are_bounds(condition: str, shift: int, wanted: Bound) -> None:
    assert _bounds(condition, shift) == [wanted]
    for row in (3, 40, 77):  # against the definition
        kept = [j for j in range(100) if {"le": j + shift <= row, "lt": j + shift < row, "ge": j + shift >= row,
                                          "gt": j + shift > row}[condition]]  # fmt: skip
        edge = row * wanted.slope + wanted.offset
        assert all(j <= edge if wanted.is_upper else j >= edge for j in kept)
        assert not kept or (max(kept) if wanted.is_upper else min(kept)) == max(0, edge)


def test_other_conditions_are_no_bounds() -> None:
    assert _bounds("eq", 0) == []
