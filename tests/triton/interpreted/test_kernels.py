"""Generated Triton kernels in Triton's interpreter against the loop-IR oracle, in every form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.moments import part_length
from graphc.codegen.triton.tiling import Limits, choose_tiling
from graphc.loopir.kernel import Kernel
from graphc.loopir.verifier import verify
from graphc.runtime.triton_launcher import InterpretedKernel
from tests.triton.cases import CASES, log_sum_exp, reduce_rows, row_moments, scalar_op_cases, softmax
from tests.triton.data import as_array, as_tensor, assert_same, expected, make_arrays

torch.set_num_threads(1)

FORMS = {
    "whole": Limits(),
    "looped": Limits(pointwise=32, persistent=8, row=16, loop=16, strided=16, transpose=8, fill=1, split=1),
    "split": Limits(pointwise=32, persistent=8, row=16, loop=16, strided=16, transpose=8, fill=8, split=3),
    "settled": Limits(pointwise=32, persistent=8, row=16, loop=16, strided=16, transpose=8, fill=8, split=3, settle=1),
}
MANY_PARTS = Limits(pointwise=32, persistent=8, row=16, loop=16, strided=16, transpose=8, fill=64, split=8)
ROW_CASES = [name for name, make in CASES.items() if make().row_axes]


def check(kernel: Kernel, limits: Limits, special: bool = False, slack: float = 1) -> None:
    verify(kernel)
    made = emit_kernel(kernel, tiling=choose_tiling(kernel, limits))
    arrays = make_arrays(kernel, special=special)
    tensors = {b.name: as_tensor(arrays[b.name], b.dtype) for b in kernel.buffers}
    InterpretedKernel(made)(list(tensors.values()))
    assert_same(kernel, {n: as_array(t) for n, t in tensors.items()}, expected(kernel, arrays), slack)


@pytest.mark.parametrize("name", CASES)
def test_kernel_agrees_with_the_oracle(name: str) -> None:
    check(CASES[name](), FORMS["whole"])


@pytest.mark.parametrize("form", ["looped", "split", "settled"])
@pytest.mark.parametrize("name", ROW_CASES)
def test_longer_rows_agree_with_the_oracle(name: str, form: str) -> None:
    kernel = CASES[name]()
    if form != "looped" and choose_tiling(kernel, FORMS[form]).split == 1:
        return  # the same as looped: a scan, or too short a row
    check(kernel, FORMS[form])


@pytest.mark.parametrize("name", ["chain_odd", "transpose_batch", "concat", "softmax", "middle_sum", "cummax"])
def test_small_tiles_agree_with_the_oracle(name: str) -> None:
    check(CASES[name](), Limits(pointwise=32, row=512, fill=1, strided=16, transpose=8))


@pytest.mark.parametrize("name", ["chain", "softmax", "layer_norm", "max_all", "min_rows", "argmax_all", "argmin_rows",
                                  "argmax_strided", "cummax", "sum_all", "masked_store", "transpose",
                                  "variance_odd", "log_sum_exp"])  # fmt: skip
@pytest.mark.parametrize("form", FORMS)
def test_nan_and_inf_pass_through(name: str, form: str) -> None:
    check(CASES[name](), FORMS[form], special=True)


@pytest.mark.parametrize("name", scalar_op_cases())
def test_scalar_operators(name: str) -> None:
    check(scalar_op_cases()[name](), Limits(), special=True, slack=4)


@pytest.mark.parametrize("form", ["looped", "split"])
@pytest.mark.parametrize("length", [512, 500])
def test_variance_of_numbers_far_from_zero(form: str, length: int) -> None:
    kernel = row_moments(3, length)
    tiling = choose_tiling(kernel, FORMS[form])
    made = emit_kernel(kernel, tiling=tiling)
    assert len(made.launches) == (2 if form == "split" else 1) and made.text.count("for row_start in") == 1
    x, v = 1e4 + torch.randn(3, length), torch.empty(3)
    InterpretedKernel(made)([x.flatten(), v])
    # parts of a row hand on their sums, rounded, as their means; x itself is rounded to a thousandth
    tolerance = 2e-4 if form == "split" else 2e-5
    torch.testing.assert_close(v.double(), x.double().var(1, correction=0), rtol=tolerance, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", ["argmax", "argmin"])
def test_the_first_of_equals_and_of_nan_wins_wherever_it_is(op: str, form: str) -> None:
    kernel, worst = reduce_rows(6, 45, op), -torch.inf if op == "argmax" else torch.inf
    x = torch.randn(6, 45)
    x[0], x[1, 3:], x[2, 20], x[2, 40], x[3] = worst, x[1, 2], torch.nan, torch.nan, torch.nan
    x[4], x[4, 44], x[5], x[5, :3] = 7.0, -worst, -worst, worst
    y = torch.empty(6, dtype=torch.int64)
    InterpretedKernel(emit_kernel(kernel, tiling=choose_tiling(kernel, FORMS[form])))([x.flatten(), y])
    assert torch.equal(y, getattr(torch, op)(x, 1))


@pytest.mark.parametrize("make", [softmax, log_sum_exp, row_moments])
def test_parts_that_lie_behind_the_end_of_a_row(make: Callable[[int, int], Kernel]) -> None:
    """33 steps by eight programs are five each: seven programs, and one with nothing to do."""
    kernel = make(3, 525)
    row = choose_tiling(kernel, MANY_PARTS).row
    assert row is not None and row.parts == 8 and part_length(row) * 7 >= 525
    check(kernel, MANY_PARTS)


@pytest.mark.parametrize("form", ["looped", "split"])
@pytest.mark.parametrize("make", [softmax, log_sum_exp])
def test_rows_of_extremes_take_one_pass_for_maximum_and_sum(make: Callable[[int, int], Kernel], form: str) -> None:
    kernel = make(6, 120)
    made = emit_kernel(kernel, tiling=choose_tiling(kernel, FORMS[form]))
    assert made.text.count("for row_start in") == (2 if make is softmax else 1)
    lowest, inf = torch.finfo(torch.float32).min, float("inf")
    x = torch.randn(6, 120) * 50
    x[0], x[1], x[2, :100], x[3, 7], x[4, :60] = lowest, -inf, -inf, inf, lowest
    y = torch.empty(720 if make is softmax else 6)
    InterpretedKernel(made)([x.flatten(), y])
    wanted = torch.softmax(x.double(), 1).flatten() if make is softmax else torch.logsumexp(x.double(), 1)
    torch.testing.assert_close(y, wanted.float(), rtol=3e-6, atol=1e-12, equal_nan=True)
