"""Attention as kernels, forward and backward: compiled for GPUs that are not there, and when the model makes them."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import graphc
from graphc.codegen.triton.chains import emit_chain
from graphc.codegen.triton.emit import emit_kernel, parameter_names
from graphc.codegen.triton.index_bounds import Bound, Conditions
from graphc.codegen.triton.tiles import ChainTile, machine_of
from graphc.ir.dims import symbol
from graphc.ir.types import bf16, bool_, f32, i64
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.kernel import ROW, Axis, Kernel
from graphc.passes.base import PassContext
from graphc.passes.pipeline import optimize
from graphc.passes.plan import make_plan
from graphc.passes.templates import ALWAYS, Templates
from graphc.program.plan import KernelStep
from graphc.runtime.triton_cross import TARGETS, CompiledKernel, compile_for
from graphc.runtime.triton_module import import_triton
from tests.triton.attentions import FORMS, causal, causal_with_buffer, dropped, inputs, plain, shared, softcap, window
from tests.triton.products import Case, kernel_calls, plan_of, products_left
from tests.triton.test_products import UNITS, assembly

pytest.importorskip("triton")
compiles = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter cannot compile")

SHAPES = ((4, 8, 1024, 128),) * 3


def _step_of(form: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
    def step(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = (x.detach().requires_grad_() for x in args[:3])
        out = form(q, k, v, *args[3:])
        return (out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v)))

    return step


def _kernels(width: int, form: Callable[..., torch.Tensor] = causal) -> list[Kernel]:
    """Attention, the gradients of keys and values, and those of queries."""
    plan = plan_of(Case(_step_of(form), ((4, 8, 1024, width),) * 3), torch.bfloat16, Templates())
    return [kernel for kernel in plan.kernels.values() if kernel.contractions]


@compiles
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("target", TARGETS)
def test_attention_and_its_gradients_run_on_matrix_units_and_do_not_spill(target: str, width: int) -> None:
    for kernel in _kernels(width):
        (compiled,) = compile_for(emit_kernel(kernel, target=target), target)
        assert UNITS[target] in assembly(compiled)
        assert compiled.spills == 0, compiled


def _instructions(compiled: CompiledKernel) -> list[str]:
    """Names of the machine's instructions, in order."""
    tool = Path(import_triton().__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", text)
    assert len(found) > 100, text
    return found


@compiles
@pytest.mark.parametrize("form", [causal, shared], ids=["causal", "shared"])
def test_scores_take_few_instructions_and_products_are_not_waited_for_one_by_one(
    form: Callable[..., torch.Tensor],
) -> None:
    for kernel in _kernels(128, form):
        (compiled,) = compile_for(emit_kernel(kernel, target="cuda:90"), "cuda:90")
        names = _instructions(compiled)
        found = [name.partition(".")[0] for name in names]
        assert 4 * names.count("WARPGROUP.DEPBAR.LE") < found.count("HGMMA")
        assert "F2F" not in found and "CALL" not in found  # roundings one by one, and exact divisions


@compiles
def test_blocks_fit_the_memory_of_small_chips() -> None:
    for target in ("cuda:86", "cuda:90"):
        for kernel in _kernels(128, window if target == "cuda:90" else causal)[1:]:
            (compiled,) = compile_for(emit_kernel(kernel, target=target), target)
            assert compiled.shared <= machine_of(target).shared


@compiles
@pytest.mark.parametrize(
    ("form", "width", "target"),
    [
        (dropped, 128, "cuda:90"),
        (dropped, 256, "cuda:90"),
        (softcap, 128, "cuda:90"),
        (window, 256, "hip:gfx942"),
        (plain, 64, "cuda:100"),
    ],
)
def test_gradients_of_other_forms_do_not_spill(form: Callable[..., torch.Tensor], width: int, target: str) -> None:
    for kernel in _kernels(width, form)[1:]:
        (compiled,) = compile_for(emit_kernel(kernel, target=target), target)
        assert compiled.spills == 0, compiled


def _with_buffer(width: int) -> list[Kernel]:
    mask = torch.ones(1024, 1024, dtype=torch.uint8)
    args = [torch.zeros(4, 8, 1024, width, dtype=torch.bfloat16) for _ in range(3)]
    graph = graphc.trace(_step_of(causal_with_buffer), *args, mask)
    templates = Templates(policy=ALWAYS)
    optimize(graph, PassContext(target="gpu", templates=templates))
    plan = make_plan(graph, backend="triton", templates=templates)
    return [kernel for kernel in plan.kernels.values() if kernel.contractions]


@compiles
@pytest.mark.parametrize(("target", "width"), [*((target, 128) for target in TARGETS), ("cuda:90", 64)])
def test_masks_in_memory_do_not_make_attention_spill_or_wait_for_each_product(target: str, width: int) -> None:
    for kernel in _with_buffer(width):
        made = emit_kernel(kernel, target=target)
        assert "range(whole_first, whole_last, JBLOCK)" in made.text
        (compiled,) = compile_for(made, target)
        assert compiled.spills == 0, compiled
        if target == "cuda:90":
            names = _instructions(compiled)
            assert 4 * names.count("WARPGROUP.DEPBAR.LE") < sum(name.startswith("HGMMA") for name in names)


@compiles
def test_spills_are_told() -> None:
    kernel = _kernels(64)[1]
    tile = ChainTile(128, 64, 4, 1)  # both accumulators take half of the registers of its threads, scores the rest
    made = emit_chain(kernel, parameter_names(kernel), kernel.name, "cuda:80", tile)
    (compiled,) = compile_for(made, "cuda:80")
    assert compiled.spills > 100, compiled


@pytest.mark.parametrize("name", [*FORMS, "dropped"])
def test_the_backward_pass_is_two_kernels_and_one_for_numbers_per_query(name: str) -> None:
    form = FORMS[name][0] if name in FORMS else dropped
    args = inputs(name if name in FORMS else "plain")
    plan = plan_of(Case(_step_of(form), tuple(tuple(x.shape) for x in args)), torch.bfloat16)
    steps = [step.kernel for step in plan.steps if isinstance(step, KernelStep)]
    products = [len(plan.kernels[step].contractions) for step in steps]
    assert [count for count in products if count] == [2, 4, 3]  # with both products inside, and both results
    between = steps[products.index(2) + 1 : products.index(4)]
    assert between == ["mul_softmax_gradient"]
    assert products_left(plan) == 0


def test_blocks_are_loaded_once_where_matrix_units_take_them_either_way() -> None:
    queries = _kernels(128)[1]
    for target, loads, turned in (("cuda:90", 5, 2), ("cuda:80", 7, 0), ("hip:gfx942", 7, 0)):
        *_, loop = emit_kernel(queries, target=target).text.split("for j_start in ")
        body = loop.partition("\n    v")[0]  # what is computed from the accumulators follows
        assert (body.count("tl.load("), body.count("tl.trans(")) == (loads, turned), body


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


def test_edges_of_masks_are_found_where_half_of_the_attention_takes_longer() -> None:
    templates, size = Templates(), 1024 * 1024
    assert templates.takes_mask_edges(192 * size, 64, bf16, size, 0)
    assert not templates.takes_mask_edges(192 * size, 64, bf16, 192 * size, 0)
    assert not templates.takes_mask_edges(4 * 128 * 128, 64, bf16, 128 * 128, 0)
    assert not templates.takes_mask_edges(192 * size, 64, f32, size, 0)  # no kernel at all
    few = 16 * size, 64, bf16, size
    assert templates.takes_mask_edges(*few, 0) and not templates.takes_mask_edges(*few, 16 << 20)


def test_scores_are_never_stored() -> None:
    plan = plan_of(Case(_step_of(causal), SHAPES), torch.bfloat16, Templates())
    assert products_left(plan) == 0
    scores = 4 * 8 * 1024 * 1024
    assert all(spec.nbytes < scores for spec in plan.buffers)


# bounds of loops


def _value(condition: str, shift: int) -> tuple[Kernel, str]:
    """A value that is 0 unless `step + shift` compares to `row` so."""
    b = KernelBuilder((Axis("i", 100), Axis("j", 100, ROW)))
    holds = b.compute(condition, b.index_value(symbol("j") + shift), b.index_value(symbol("i")))
    value = b.compute("where", holds, b.load("x", f32, symbol("j")), b.constant(0.0, f32))
    return b.finish("kernel", ()), value


ROWS, STEPS = (Axis("i", 100),), (Axis("j", 100, ROW),)


def _bounds(condition: str, shift: int) -> list[Bound]:
    kernel, value = _value(condition, shift)
    return Conditions(kernel).bounds([value], ROWS, STEPS)


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


@pytest.mark.parametrize("along", ["i", "j"])
@pytest.mark.parametrize(("shift", "is_bound"), [(0, True), (-1, True), (1, False), (30, False)])
def test_weights_of_nothing_are_not_passed_by(along: str, shift: int, is_bound: bool) -> None:
    """exp(where(j + shift <= i, s, -inf) - sums): with sums of nothing, NaN counts wherever they are used."""
    b = KernelBuilder((Axis("i", 100), Axis("j", 100, ROW)))
    holds = b.compute("le", b.index_value(symbol("j") + shift), b.index_value(symbol("i")))
    score = b.compute("where", holds, b.load("x", f32, symbol("j")), b.constant(float("-inf"), f32))
    value = b.compute("exp", b.compute("sub", score, b.load("sums", f32, symbol(along))))
    # row 0 keeps position 0 up to a shift of 0, and so does position 99 with row 99
    assert bool(Conditions(b.finish("kernel", ())).bounds([value], ROWS, STEPS)) == is_bound


@pytest.mark.parametrize("is_data", [False, True])
def test_what_memory_hides_besides_may_leave_nothing_of_a_sum(is_data: bool) -> None:
    b = KernelBuilder((Axis("i", 100), Axis("j", 100, ROW)))
    none = b.constant(float("-inf"), f32)
    ahead = b.compute("gt", b.index_value(symbol("j")), b.index_value(symbol("i")))
    score = b.compute("where", ahead, none, b.load("x", f32, symbol("j")))
    other = b.load("m", bool_, symbol("j")) if is_data else ahead
    score = b.compute("where", other, none, score)
    value = b.compute("exp", b.compute("sub", score, b.load("sums", f32, symbol("i"))))
    assert bool(Conditions(b.finish("kernel", ())).bounds([value], ROWS, STEPS)) != is_data


def test_edges_in_memory_are_found_in_the_place_of_positions() -> None:
    b = KernelBuilder((Axis("i", 100), Axis("j", 100, ROW)))
    edges = [b.load(name, i64, symbol("i")) for name in ("first", "last", "end")]
    position = b.index_value(symbol("j"))
    ahead = b.compute("gt", position, b.index_value(symbol("i")))
    mask = b.compute("bounded", position, *edges, ahead)
    score = b.compute("where", mask, b.constant(float("-inf"), f32), b.load("x", f32, symbol("j")))
    added = b.compute("mul", b.compute("add", score, b.load("y", f32, symbol("j"))), b.constant(2.0, f32))
    for scores in (score, added):
        value = b.compute("exp", b.compute("sub", scores, b.load("sums", f32, symbol("i"))))
        conditions = Conditions(b.finish("kernel", ()))
        assert [s.id for s in conditions.edges([value], STEPS)] == [mask]
        assert conditions.bounds([value], ROWS, STEPS) == []


def test_other_conditions_are_no_bounds() -> None:
    assert _bounds("eq", 0) == []


@pytest.mark.parametrize(("condition", "truth"), [("le", True), ("lt", True), ("gt", False), ("ge", False)])
def test_what_holds_within_bounds_is_known(condition: str, truth: bool) -> None:
    kernel, _ = _value(condition, 0)
    known = Conditions(kernel).known_within([Bound(True, 1, -1)], ROWS, STEPS)  # step < row
    assert list(known.values()) == [truth]
    assert not Conditions(kernel).known_within([Bound(True, 1, 1)], ROWS, STEPS)  # step <= row + 1


@pytest.mark.parametrize("bound", [Bound(True, 1, 3), Bound(False, 1, -4), Bound(True, -1, 90), Bound(True, 0, 50)])
def test_strict_edges_are_those_of_all_rows(bound: Bound) -> None:
    for first in (0, 32):
        rows = range(first, first + 16)
        kept = [
            {j for j in range(-50, 150) if (j <= edge if bound.is_upper else j >= edge)}
            for edge in (bound.slope * row + bound.offset for row in rows)
        ]
        for generous, wanted in ((True, set.union(*kept)), (False, set.intersection(*kept))):
            edge = eval(bound.text("first", "16", generous), {"first": first})
            assert edge == (max(wanted) if bound.is_upper else min(wanted))
