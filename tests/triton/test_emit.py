"""What generated Triton text looks like, and how kernels are cut."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable

import pytest

from graphc.codegen.triton.emit import _FEW_STATEMENTS, LAST_STEP, emit_kernel
from graphc.codegen.triton.joined_axes import join_axes
from graphc.codegen.triton.ops import RULES, tl_dtype
from graphc.codegen.triton.tiling import Limits, choose_tiling
from graphc.ir.dims import symbol
from graphc.ir.types import DType, bf16, f16, f32, f64
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.kernel import ROW, Axis, Kernel
from graphc.loopir.scalar import SCALAR_OPS
from graphc.program.triton_kernel import TritonKernel
from graphc.runtime.triton_cross import TARGETS, compile_for
from tests.triton.cases import CASES, chain, channel_mean, column_sum, given, layer_norm, out, softmax, transpose


def copy(shape: tuple[int, ...]) -> Kernel:
    """A copy of a contiguous array, one axis per dimension."""
    b = KernelBuilder(tuple(Axis(f"i{k}", n) for k, n in enumerate(shape)))
    at, size = 0, 1
    for k, n in reversed(list(enumerate(shape))):
        at, size = at + symbol(f"i{k}") * size, size * n
    b.store("y", at, b.load("x", f32, at))
    return b.finish("copy", (given("x", f32, size), out("y", f32, size)))


def test_a_row_kernel_reads_like_its_loop_ir() -> None:
    text = emit_kernel(softmax(64, 128)).text
    assert text.split("@triton.jit\n")[-1] == (
        """\
def softmax(x_ptr, y_ptr, RBLOCK: tl.constexpr):
    # src[model.py:12]
    i = tl.program_id(0)  # 64
    j = tl.arange(0, RBLOCK)
    v0 = tl.load(x_ptr + (i * 128 + j))  # f32
    v1 = tl.reduce(v0, 0, _maximum)  # f32
    v2 = v0 - v1  # f32
    v3 = libdevice.exp(v2)  # f32
    v4 = tl.sum(v3, 0)  # f32
    v5 = tl.div_rn(v3, v4)  # f32
    tl.store(y_ptr + (i * 128 + j), v5)
"""
    )


def test_contiguous_axes_are_joined_and_need_no_mask() -> None:
    made = emit_kernel(copy((8, 16, 32)))
    assert "%" not in made.text and "mask" not in made.text
    assert made.launches[0].grid == (4, 1, 1)


def test_masks_appear_where_the_last_block_is_not_full() -> None:
    made = emit_kernel(copy((1001,)))
    assert "in_i0 = i0 < 1001" in made.text
    assert made.launches[0].grid == (1, 1, 1)


def test_axes_of_one_step_vanish() -> None:
    assert [axis.name for axis in join_axes(copy((1, 6, 1))).axes] == ["i1"]


def test_transposes_use_a_tile() -> None:
    tiling = choose_tiling(transpose(64, 96, 2))
    assert [(dim.name, dim.block) for dim in tiling.dims] == [("k", 1), ("i", 32), ("j", 32)]


def test_short_rows_share_a_program_and_long_rows_are_looped() -> None:
    assert choose_tiling(softmax(100_000, 16)).dims[0].block == 64
    assert choose_tiling(softmax(1000, 1024)).dims[0].block == 1
    assert choose_tiling(softmax(1000, 60_000)).looped
    assert choose_tiling(softmax(1000, 60_000)).split == 1


def test_few_long_rows_are_split_over_programs() -> None:
    tiling = choose_tiling(softmax(2, 1_000_000))
    assert tiling.split > 50
    assert choose_tiling(column_sum(100_000, 64)).split > 50


def test_row_axes_that_do_not_join_are_walked_flat() -> None:
    text = emit_kernel(channel_mean(4, 6, 35)).text
    assert "j = r // 35" in text and "k = r % 35" in text


def test_indices_beyond_32_bits_are_wide() -> None:
    assert "tl.int64" in emit_kernel(copy((2**16, 2**16))).text
    assert "tl.int64" not in emit_kernel(copy((2**10, 2**10))).text


def test_looped_form_computes_values_again_in_each_pass() -> None:
    kernel = layer_norm(8, 128)
    text = emit_kernel(kernel, tiling=choose_tiling(kernel, Limits(persistent=8, loop=32, split=1))).text
    assert text.count("for row_start in tl.range(0, 128, RBLOCK, num_stages=4):") == 2  # mean and variance, result
    assert text.count("tl.load(x_ptr") == 2


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("length", [96, 100])
@pytest.mark.parametrize("target", ["cuda:90", "hip:gfx942", ""])
def test_the_last_step_of_a_reduction_is_apart_where_it_needs_masks(target: str, length: int, split: int) -> None:
    kernel = layer_norm(2, length)
    limits = Limits(persistent=8, loop=8, fill=8, split=split)
    text = emit_kernel(kernel, tiling=choose_tiling(kernel, limits), target=target).text
    assert ("_pass2" in text) == (split > 1)
    is_apart = length == 100 and split == 1
    assert text.count(LAST_STEP) == is_apart
    assert text.count('.pragma "nounroll"') == (is_apart and target.startswith("cuda"))
    if is_apart:
        loop, rest = text[text.index("for row_start") :].split(LAST_STEP)
        last, elements = rest.split("# pass 2")
        assert [part.count("mask=in_j") for part in (loop, last, elements)] == [0, 1, 4]  # x; x; x, w, b and y
        assert "range(0, 96, RBLOCK" in loop and "range(0, 100, RBLOCK" in elements


def test_a_loop_of_many_statements_is_not_written_twice() -> None:
    b = KernelBuilder((Axis("i", 8), Axis("j", 100, ROW)))
    value = b.load("x", f32, symbol("i") * 100 + symbol("j"))
    for number in range(_FEW_STATEMENTS):
        value = b.compute("mul", value, b.constant(1.5 + number, f32))
    b.store("y", symbol("i"), b.reduce("sum", value))
    kernel = b.finish("f", (given("x", f32, 800), out("y", f32, 8)))
    text = emit_kernel(kernel, tiling=choose_tiling(kernel, Limits(persistent=8, loop=32, split=1))).text
    assert LAST_STEP not in text and "range(0, 100, RBLOCK" in text


@pytest.mark.parametrize("length, split", [(4096, 8), (6144, 6)])
def test_what_many_programs_leave_of_a_variance_is_combined_by_products(length: int, split: int) -> None:
    kernel = layer_norm(8, length)
    made = emit_kernel(kernel, tiling=choose_tiling(kernel, Limits(persistent=8, loop=32, split=split)))
    first, rest = made.text.split("def layer_norm_pass2")
    assert "_far * " in first and "div_rn" not in first
    assert ("mask=(parts < 6)" in rest) == (split == 6) and ("mask=" in rest) == (split == 6)


@pytest.mark.parametrize("loop, stages", [(1024, 4), (4096, 3), (16384, 0)])
def test_steps_on_their_way_fit_in_shared_memory(loop: int, stages: int) -> None:
    kernel = column_sum(65536, 64)
    text = emit_kernel(kernel, tiling=choose_tiling(kernel, Limits(loop=loop, split=1))).text
    assert "for row_start in " in text and (f"num_stages={stages})" in text) == (stages > 0)


@pytest.mark.parametrize("name", CASES)
def test_text_is_python_and_travels_as_plain_data(name: str) -> None:
    made = emit_kernel(CASES[name]())
    ast.parse(made.text)
    assert TritonKernel.from_plain(made.text, made.to_plain()) == made


def _rounded(make: Callable[[KernelBuilder, str], str], dtype: DType) -> str:
    """Text of a kernel that rounds what is made of a float32 in memory."""
    b = KernelBuilder((Axis("i", 64), Axis("j", 8, ROW)))
    made = make(b, b.load("x", f32, symbol("i") * 8 + symbol("j")))
    b.store("y", symbol("i") * 8 + symbol("j"), b.compute("cast", made, dtype=dtype))
    return emit_kernel(b.finish("f", (given("x", f32, 512), out("y", dtype, 512)))).text


def _exp(b: KernelBuilder, x: str) -> str:
    return b.compute("exp", x)


ROUNDED: dict[str, tuple[Callable[[KernelBuilder, str], str], bool]] = {
    "as it is": (_exp, True),
    "quotient": (lambda b, x: b.compute("div", _exp(b, x), x), True),
    "sum of positive numbers": (lambda b, x: b.compute("add", _exp(b, x), b.constant(1.0, f32)), True),
    "chosen": (lambda b, x: b.compute("where", b.compute("lt", x, b.constant(0.0, f32)), _exp(b, x), x), True),
    "sum of a row": (lambda b, x: b.reduce("sum", _exp(b, x)), True),
    "difference": (lambda b, x: b.compute("sub", _exp(b, x), b.constant(1.0, f32)), False),
    "sum that may be small": (lambda b, x: b.compute("add", _exp(b, x), x), False),
    "logarithm": (lambda b, x: b.compute("log", _exp(b, x)), False),
    "jump": (lambda b, x: b.compute("floor", _exp(b, x)), False),
    "sum of a row of any sign": (lambda b, x: b.reduce("sum", b.compute("mul", _exp(b, x), x)), False),
}


@pytest.mark.parametrize("dtype", [bf16, f16, f32])
@pytest.mark.parametrize("name", ROUNDED)
def test_what_is_rounded_to_16_bits_may_be_fast(name: str, dtype: DType) -> None:
    make, may_be = ROUNDED[name]
    text = _rounded(make, dtype)
    is_fast = may_be and dtype != f32
    assert ("tl.exp(" in text, "libdevice.exp(" in text) == (is_fast, not is_fast)


def _error_function(b: KernelBuilder, x: str, scale: float = 0.75) -> str:
    y = b.compute("mul", x, b.constant(scale, f32))
    return b.compute("add", b.constant(1.0, f32), b.compute("erf", y))


OF_ERROR_FUNCTION: dict[str, tuple[Callable[[KernelBuilder, str], str], bool]] = {
    "as it is": (_error_function, True),
    "product": (lambda b, x: b.compute("mul", _error_function(b, x), x), True),
    "difference": (lambda b, x: b.compute("sub", _error_function(b, x), x), True),
    "sum of a row": (lambda b, x: b.reduce("sum", _error_function(b, x)), True),
    "quotient": (lambda b, x: b.compute("div", x, _error_function(b, x)), False),
    "jump": (lambda b, x: b.compute("floor", _error_function(b, x)), False),
    "plus another number": (lambda b, x: b.compute("add", b.compute("erf", x), b.constant(2.0, f32)), False),
}


@pytest.mark.parametrize("dtype", [bf16, f16, f32])
@pytest.mark.parametrize("name", OF_ERROR_FUNCTION)
def test_one_plus_erf_before_a_rounding_to_16_bits_is_a_power_of_two(name: str, dtype: DType) -> None:
    make, may_be = OF_ERROR_FUNCTION[name]
    text = _rounded(make, dtype)
    is_fast = may_be and dtype != f32
    assert ("_erf_odds(v0, 0.75)" in text, "libdevice.erf(" in text) == (is_fast, not is_fast)


def test_an_error_function_that_something_else_reads_is_computed_as_well() -> None:
    text = _rounded(lambda b, x: b.compute("mul", _error_function(b, x, 1.0), b.compute("erf", x)), bf16)
    assert text.count("libdevice.erf(v0)") == 1 and "_erf_odds(v0, 1.0)" in text


def test_reciprocals_of_a_chip_are_what_the_chip_has() -> None:
    for target in ("cuda:90", "hip:gfx942", ""):
        text = emit_kernel(chain(8, 8, bf16), target=target).text
        assert ("rcp.approx.ftz" in text) == target.startswith("cuda") and "_erf_odds" in text


@pytest.mark.parametrize("op, other, are", [("gt", "x", True), ("eq", "y", True), ("ne", "x", False)])
def test_conditions_that_are_never_both_true_differ_where_one_is_true(op: str, other: str, are: bool) -> None:
    b = KernelBuilder((Axis("i", 64),))
    x, y = (b.load(name, f32, symbol("i")) for name in "xy")
    either = b.compute("logical_or", b.compute(op, y, x), b.compute("isnan", {"x": x, "y": y}[other]))
    alone = b.compute("logical_or", b.compute("gt", y, b.constant(0.0, f32)), b.compute("isnan", x))
    b.store("z", symbol("i"), b.compute("where", b.compute("logical_and", either, alone), x, y))
    text = emit_kernel(b.finish("f", (given("x", f32, 64), given("y", f32, 64), out("z", f32, 64)))).text
    assert (text.count(" ^ "), text.count(" | ")) == ((1, 1) if are else (0, 2))


@pytest.mark.parametrize("other, is_of_row", [("row", True), ("element", False)])
def test_a_choice_by_a_condition_of_a_row_is_made_once_per_row(other: str, is_of_row: bool) -> None:
    b = KernelBuilder((Axis("i", 8), Axis("j", 64, ROW)))
    row, element = b.load("r", f32, symbol("i")), b.load("x", f32, symbol("i") * 64 + symbol("j"))
    zero = b.constant(0.0, f32)
    conditions = b.compute("gt", element, zero), b.compute("lt", row, zero)
    chosen = {"row": row, "element": element}[other]
    b.store(
        "y", symbol("i") * 64 + symbol("j"), b.compute("where", b.compute("logical_and", *conditions), chosen, zero)
    )
    kernel = b.finish("f", (given("r", f32, 8), given("x", f32, 512), out("y", f32, 512)))
    text = emit_kernel(kernel, tiling=choose_tiling(kernel, Limits(row=1))).text
    assert ("_row = tl.where(" in text) == is_of_row and text.count("tl.where(") == 1 + is_of_row


def test_softmax_of_16_bits_divides_fast() -> None:
    assert "tl.div_rn" in emit_kernel(softmax(8, 64)).text
    assert "tl.div_rn" not in emit_kernel(softmax(8, 64, bf16)).text


def test_awkward_names_become_python_names() -> None:
    kernel = chain(4, 4)
    odd = Kernel("lambda", kernel.axes, kernel.buffers, kernel.body)
    assert "def kernel(" in emit_kernel(odd).text


def test_every_scalar_operator_has_a_rule() -> None:
    assert SCALAR_OPS.keys() == RULES.keys()


@pytest.mark.parametrize("dtype, word", [(f64, "int64"), (f32, "int32"), (f16, "int16"), (bf16, "int16")], ids=str)
def test_triton_takes_a_literal_for_zero_so_its_negative_is_written_as_bits(dtype: DType, word: str) -> None:
    b = KernelBuilder((Axis("i", 8),))
    b.store("y", symbol("i"), b.constant(-0.0, dtype))
    made = emit_kernel(b.finish("zeros", (out("y", dtype, 8),)))
    assert f"tl.{word}).to({tl_dtype(dtype)}, bitcast=True)" in made.text
    if os.environ.get("TRITON_INTERPRET") != "1":
        assert all(compile_for(made, target) for target in TARGETS)


def test_loops_that_read_several_arrays_load_ahead() -> None:
    kernel = layer_norm(8, 100)
    text = emit_kernel(kernel, tiling=choose_tiling(kernel, Limits(persistent=8, loop=32, split=1))).text
    last = text[text.rindex("for row_start") :]
    assert last.count("tl.load(") == 3 and last.startswith("for row_start in tl.range(0, 100, RBLOCK, num_stages=4):")


@pytest.mark.parametrize("dtype, together", [(bf16, 8), (f32, 4), (f64, 1)])
def test_neighbours_that_a_thread_loads_are_scaled_once(dtype: DType, together: int) -> None:
    text = emit_kernel(softmax(256, 1 << 16, dtype)).text
    loop = text[text.index("for row_start") : text.index("_part = ")]
    assert loop.count(f", [RBLOCK // {together}, {together}])") == (2 if together > 1 else 0)
    assert loop.count("tl.exp2(" if together > 1 else "libdevice.exp(") == (2 if together > 1 else 1)
    odd = emit_kernel(softmax(256, (1 << 16) + 1, dtype)).text  # rows begin anywhere: one number after the other
    assert "tl.reshape" not in odd


def test_powers_of_two_of_a_chip_are_what_the_chip_has() -> None:
    kernel = softmax(256, 1 << 16, bf16)
    for target, name in (("cuda:90", "_flushed_exp2("), ("hip:gfx942", "tl.exp2("), ("", "tl.exp2(")):
        text = emit_kernel(kernel, target=target).text
        assert name in text and ("ex2.approx.ftz" in text) == target.startswith("cuda")


def test_what_many_programs_leave_of_a_row_is_summed_up_once() -> None:
    kernel = softmax(512, 1 << 15, strided=True)
    shared = Limits(loop=2048, fill=256, split=64)
    tiling = choose_tiling(kernel, shared)
    assert tiling.split * 64 >= shared.settle and tiling.settles
    made = emit_kernel(kernel, tiling=tiling)
    assert [launch.function for launch in made.launches] == ["softmax_pass1", "softmax_rows1", "softmax_pass2"]
    last = made.text[made.text.index("def softmax_pass2") :]
    assert "parts = " not in last and last.count("_row_ptr + (i))") == 2  # maximum and sum
    rows, passes = made.launches[1:]
    assert rows.grid[1] == 1 and passes.grid[1] == tiling.split
    columns = shared.settle // tiling.split  # of a launch that holds what all programs left of a column
    assert passes.grid[0] == 512 // 64 and rows.grid[0] == 512 // columns and dict(rows.constexprs)["XBLOCK"] == columns
    alone = choose_tiling(kernel, Limits(loop=2048, fill=256, split=64, settle=1 << 20))
    assert [launch.function for launch in emit_kernel(kernel, tiling=alone).launches] == [
        "softmax_pass1",
        "softmax_pass2",
    ]


def test_rows_that_are_read_again_are_walked_by_fewer_programs_where_they_fit_the_cache() -> None:
    warps = {length: choose_tiling(softmax(4096, length, bf16)).num_warps for length in (50304, 64000, 200_000)}
    assert warps == {50304: 16, 64000: 16, 200_000: 8}
    assert choose_tiling(column_sum(64000, 4096)).num_warps == 8
