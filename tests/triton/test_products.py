"""Products of matrices as kernels: compiled for GPUs that are not there, and when the model makes them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import graphc
from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiles import MACHINES, candidate_tiles, family_of, machine_of
from graphc.ir.types import DTYPES, bf16
from graphc.passes.base import PassContext
from graphc.passes.pipeline import optimize
from graphc.passes.plan import make_plan
from graphc.passes.templates import ALWAYS, NEVER, Templates
from graphc.program.loops import LoopStep
from graphc.runtime.triton_cross import TARGETS, compile_for
from tests.plan_interpreter import run_plan
from tests.triton.products import CASES, Case, kernel_calls, plan_of, products_left, sums_left

pytest.importorskip("triton")
compiles = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter cannot compile")

UNITS = {"cuda:80": "mma.sync", "cuda:90": "wgmma.mma_async", "cuda:100": "tcgen05.mma", "hip:gfx942": "v_mfma"}
LARGE = Case(CASES["two outputs"].function, ((1024, 512), (512, 2048), (2048,)))
RAGGED = Case(CASES["prologue"].function, ((1000, 513), (513, 2001), (1000, 1)))
SMALL = Case(CASES["linear"].function, ((256, 1024), (256, 1024), (256,)))
WIDE = Case(CASES["linear"].function, ((4096, 1024), (4096, 1024), (4096,)))


def assembly(compiled: object) -> str:
    asm = compiled.asm  # type: ignore[attr-defined]
    return str(asm["ptx"] if "ptx" in asm else asm["amdgcn"])


@compiles
@pytest.mark.parametrize("target", TARGETS)
def test_products_run_on_matrix_units_and_do_not_spill(target: str) -> None:
    (kernel,) = plan_of(LARGE, torch.bfloat16).kernels.values()
    (compiled,) = compile_for(emit_kernel(kernel, target=target), target)
    assert UNITS[target] in assembly(compiled)
    assert compiled.spills == 0, compiled
    assert min(compiled.stores) >= 8, compiled


@compiles
@pytest.mark.parametrize("target", ["cuda:90", "hip:gfx942"])
def test_ragged_products_with_prologues_compile(target: str) -> None:
    (kernel,) = plan_of(RAGGED, torch.float16).kernels.values()
    (compiled,) = compile_for(emit_kernel(kernel, target=target), target)
    assert UNITS[target] in assembly(compiled)


@compiles
def test_large_products_copy_operands_ahead() -> None:
    (kernel,) = plan_of(WIDE, torch.bfloat16).kernels.values()
    (compiled,) = compile_for(emit_kernel(kernel, target="cuda:80"), "cuda:80")
    # through registers go the bias and the result, no operand
    assert "cp.async" in assembly(compiled) and compiled.widths == {0: (4,), 1: (16,), 2: (16,), 3: (16,)}


@compiles
def test_f32_uses_matrix_units_when_tf32_is_allowed() -> None:
    for tf32 in (False, True):
        (kernel,) = plan_of(LARGE, torch.float32, Templates(tf32=tf32, policy="always")).kernels.values()
        (compiled,) = compile_for(emit_kernel(kernel, target="cuda:80"), "cuda:80")
        assert bool(re.search(r"mma\.sync.*tf32", assembly(compiled))) == tf32


def _quantized(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (torch._int_mm(x, w.t()).float() * scale).bfloat16()


@compiles
@pytest.mark.parametrize("target", TARGETS)
def test_bytes_run_on_matrix_units(target: str) -> None:
    graph = graphc.trace(
        _quantized, *(torch.empty(shape, dtype=torch.int8) for shape in ((1024, 512), (2048, 512))), torch.ones(2048)
    )
    optimize(graph, PassContext(target="gpu"))
    (kernel,) = make_plan(graph, backend="triton", templates=Templates()).kernels.values()
    (compiled,) = compile_for(emit_kernel(kernel, target=target), target)
    assert compiled.tensor_core and compiled.spills == 0, compiled


@compiles
def test_parts_of_a_long_sum_compile() -> None:
    (kernel,) = plan_of(
        Case(CASES["linear"].function, ((64, 16384), (64, 16384), (64,))), torch.bfloat16
    ).kernels.values()
    made = emit_kernel(kernel, target="cuda:90")
    assert [launch.function for launch in made.launches] == [made.name, f"{made.name}_finish"]
    assert all(compiled.spills == 0 for compiled in compile_for(made, "cuda:90"))


# the choice


def _chosen(case: Case, dtype: torch.dtype, templates: Templates) -> tuple[int, int]:
    plan = plan_of(case, dtype, templates)
    return products_left(plan), kernel_calls(plan)


def test_the_library_keeps_plain_products() -> None:
    plain = Case(CASES["plain"].function, ((1024, 512), (512, 2048)))
    assert _chosen(plain, torch.bfloat16, Templates()) == (1, 0)


def test_an_epilogue_makes_a_large_product_a_template() -> None:
    assert _chosen(WIDE, torch.bfloat16, Templates()) == (0, 1)
    assert _chosen(WIDE, torch.bfloat16, Templates(policy=NEVER)) == (1, 1)
    assert _chosen(CASES["linear"], torch.bfloat16, Templates()) == (1, 1)


def test_functions_that_matrix_units_would_wait_for_are_left_to_a_kernel_of_their_own() -> None:
    for function, chosen in ((torch.relu, (0, 1)), (F.gelu, (1, 1))):
        case = Case(lambda x, w, f=function: f(x @ w), ((8192, 4096), (4096, 8192)))
        assert _chosen(case, torch.bfloat16, Templates()) == chosen


def test_f32_is_left_to_the_library_unless_tf32_is_allowed() -> None:
    assert _chosen(WIDE, torch.float32, Templates()) == (1, 1)
    assert _chosen(WIDE, torch.float32, Templates(tf32=True)) == (0, 1)


def test_what_was_measured_overrides_the_model() -> None:
    site = "matmul bf16 [4096, 1024] [1024, 4096]"
    assert _chosen(WIDE, torch.bfloat16, Templates(choices={site: False})) == (1, 1)


def test_operands_are_computed_in_small_products_only() -> None:
    for rows, kernels in ((64, 1), (16384, 2)):
        case = Case(lambda x, w: torch.relu(x @ w.abs().mul(2).neg()), ((rows, 1024), (1024, 2048)))
        assert _chosen(case, torch.bfloat16, Templates()) == (0, kernels)


# what the library adds to a product before it rounds


def _sums(function: Callable[..., Any], *shapes: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> list[str]:
    """The calls that add, and `kernel` per kernel, of a plan in which the model has its say."""
    plan = plan_of(Case(function, shapes), dtype, Templates())
    assert products_left(plan) == len(sums_left(plan)) or not sums_left(plan)
    return sums_left(plan) + ["kernel"] * kernel_calls(plan)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_bias_is_added_by_the_call_that_multiplies(dtype: torch.dtype) -> None:
    linear = (64, 40), (50, 40), (50,)
    assert _sums(F.linear, *linear, dtype=dtype) == ["aten.addmm.out"]
    assert _sums(F.linear, (4, 16, 40), (50, 40), (50,), dtype=dtype) == ["aten.addmm.out"]
    batch = (3, 64, 40), (3, 40, 50)
    assert _sums(lambda x, w, b: torch.baddbmm(b, x, w), *batch, (3, 1, 50), dtype=dtype) == ["aten.baddbmm.out"]
    assert _sums(lambda x, w, b: F.linear(x, w, b).relu(), *linear, dtype=dtype) == ["aten.addmm.out", "kernel"]
    assert _sums(lambda x, w, c: torch.addmm(c, x, w), (64, 40), (40, 50), (64, 50), dtype=dtype) == ["aten.addmm.out"]


def test_kernels_add_where_that_takes_as_many_and_the_call_would_copy() -> None:
    shapes = (64, 40), (40, 50), (64, 50)
    assert _sums(lambda x, w, c: torch.addmm(c, x, w).relu(), *shapes) == ["kernel"]
    assert _sums(lambda x, w, c: F.linear(x, w.t(), c[0] * 2).relu(), *shapes) == ["kernel"]
    assert _sums(lambda x, w, c: x @ w + (c * 2).tanh(), *shapes) == ["kernel"]


def test_sums_of_f32_are_kernels_and_so_are_templates() -> None:
    assert _sums(F.linear, (64, 40), (50, 40), (50,), dtype=torch.float32) == ["kernel"]
    assert _sums(F.linear, (4096, 768), (3072, 768), (3072,)) == ["kernel"]


def test_a_product_that_something_else_reads_is_rounded() -> None:
    def both(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        product = x @ w
        return product, product + b

    assert _sums(both, (64, 40), (40, 50), (50,)) == ["kernel"]


def test_a_sum_is_rounded_once() -> None:
    """257 + 1/2 lies between two numbers of 8 bits that are 2 apart; less 256 it is a number."""
    x, w, b = torch.ones(2, 2), torch.tensor([[256.0, 3.0], [1.5, 4.0]]), torch.tensor([-256.0, 1.0])
    args = [value.bfloat16() for value in (x, w, b)]
    graph = graphc.trace(lambda x, w, b: torch.addmm(b, x, w), *args)
    optimize(graph, PassContext(target="gpu"))
    once, twice = (
        run_plan(make_plan(graph, numerics=numerics, backend="triton", templates=Templates()), list(args))[0]
        for numerics in ("default", "eager")
    )
    assert torch.equal(once, torch.addmm(args[2], args[0], args[1]))
    assert (once[0].tolist(), twice[0].tolist()) == ([1.5, 8.0], [2.0, 8.0])


def test_loops_keep_products_that_a_kernel_can_take_in() -> None:
    def recurrent(x: torch.Tensor, u: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        h, outs = x.new_zeros(x.shape[1:]), []
        for t in range(x.shape[0]):
            h = torch.tanh(torch.addmm(b, h, u) + x[t])
            outs.append(h)
        return torch.stack(outs)

    plan = plan_of(Case(recurrent, ((16, 9, 32), (32, 32), (32,))), torch.bfloat16, Templates())
    loops = [step for step in plan.steps if isinstance(step, LoopStep)]
    assert loops and all(loop.rows for loop in loops)


def test_what_follows_a_large_product_goes_by_pieces() -> None:
    (kernel,) = plan_of(WIDE, torch.bfloat16).kernels.values()
    text = emit_kernel(kernel, target="cuda:90").text
    cut = "halves = tl.split(tl.permute(tl.reshape(acc, [MBLOCK, 2, NHALF]), (0, 2, 1)))"
    loop = (
        cut
        + """
        for half in tl.static_range(2):
            i1 = n_tile * NBLOCK + half * NHALF + tl.arange(0, NHALF)[None, :]  # 4096
"""
    )
    assert text.count(loop) == 2  # with descriptors and without
    (kernel,) = plan_of(SMALL, torch.bfloat16).kernels.values()
    assert "split" not in emit_kernel(kernel, target="cuda:90").text


def _after(outs: int, x: torch.Tensor, w: torch.Tensor, *more: torch.Tensor) -> Any:
    """A product with several operands behind it, as gradients of activations and norms have them."""
    found = x @ w
    for value in more:
        found = torch.where(value > 0, found, value * 2) + value
    return found if outs == 1 else (found, torch.tanh(found))


@compiles
@pytest.mark.parametrize("operands, outs", [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("target", [*TARGETS, "cuda:86", "cuda:120"])
def test_products_with_much_behind_them_fit_the_chip(target: str, operands: int, outs: int) -> None:
    shapes = ((4096, 1024), (1024, 4096), *([(4096, 4096)] * operands))
    for dtype in (torch.bfloat16, torch.float32):
        graph = graphc.trace(
            lambda x, w, *more: _after(outs, x, w, *more),
            *(torch.empty(shape, dtype=torch.bfloat16 if at < 2 else dtype) for at, shape in enumerate(shapes)),
        )
        optimize(graph, PassContext(target="gpu"))
        (kernel,) = make_plan(graph, backend="triton", templates=Templates(policy=ALWAYS)).kernels.values()
        (compiled,) = compile_for(emit_kernel(kernel, target=target), target)
        assert compiled.shared <= machine_of(target).shared and compiled.tensor_core, compiled
        assert compiled.spills == 0, compiled


def test_chips_that_are_not_in_the_table_are_like_others() -> None:
    families = [family_of(target) for target in ("cuda:89", "cuda:103", "cuda:120", "hip:gfx950", "", "elsewhere:1")]
    assert families == ["cuda:80", "cuda:100", "cuda:80", "hip:gfx942", "cuda:90", "cuda:90"]
    assert machine_of("cuda:87") == MACHINES["cuda:80"] and machine_of("") == MACHINES["cuda:90"]
    assert machine_of("cuda:89").shared < MACHINES["cuda:80"].shared
    assert machine_of("cuda:103") == replace(MACHINES["cuda:100"], describes=False)


@pytest.mark.parametrize("target", [*MACHINES, "cuda:89"])
def test_tiles_fit_the_chip(target: str) -> None:
    machine = machine_of(target)
    for rows, columns, inner in ((8192, 8192, 8192), (64, 64, 65536), (1, 4096, 4096), (4096, 16, 64), (7, 7, 7)):
        for name in ("bf16", "f32", "i8"):
            dtype = DTYPES[name]
            choice = candidate_tiles(target, 1, rows, columns, inner, dtype, loaded=dtype.itemsize, scalar=False)[0]
            tile = choice.tile
            block = (tile.rows + tile.columns) * tile.depth * dtype.itemsize
            assert block * max(1, tile.stages - 1) <= machine.shared
            assert choice.parts == 1 or choice.parts * -(-rows // tile.rows) <= machine.processors
    large = candidate_tiles(target, 1, 8192, 8192, 8192, bf16, loaded=2, scalar=False)[0]
    assert large.tile.rows * large.tile.columns >= 128 * 128 and large.parts == 1
