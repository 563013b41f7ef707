"""Machine code of kernels of every kind against the loop-IR oracle: rows, reductions, scans, scatters, random bits."""

from __future__ import annotations

import pytest

from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiling import Limits, choose_tiling
from graphc.ir.types import DType, bf16, f32
from graphc.loopir.kernel import Kernel
from tests.triton.cases import CASES, log_sum_exp, softmax
from tests.triton.data import as_array, as_tensor, assert_same, expected, make_arrays

pytest.importorskip("triton")
from tests.triton.ptx.kernels import TARGET, PtxKernel

FORMS = {
    "looped": Limits(pointwise=32, persistent=8, row=16, loop=16, strided=16, transpose=8, fill=1, split=1),
    "split": Limits(pointwise=32, persistent=8, row=16, loop=16, strided=16, transpose=8, fill=8, split=3),
    "settled": Limits(pointwise=32, persistent=8, row=16, loop=16, strided=16, transpose=8, fill=8, split=3, settle=1),
}


def _check(kernel: Kernel, limits: Limits, special: bool = False) -> None:
    made = emit_kernel(kernel, tiling=choose_tiling(kernel, limits), target=TARGET)
    arrays = make_arrays(kernel, special=special)
    tensors = {b.name: as_tensor(arrays[b.name], b.dtype) for b in kernel.buffers}
    PtxKernel(made)(list(tensors.values()))
    assert_same(kernel, {n: as_array(t) for n, t in tensors.items()}, expected(kernel, arrays))


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("cast_")])
def test_kernels(name: str) -> None:
    _check(CASES[name](), Limits(), special=name in ("softmax", "max_all", "argmin_rows", "cummax", "log_sum_exp"))


@pytest.mark.parametrize("name", ["softmax_odd", "layer_norm", "argmax_all", "sum_all", "variance_odd", "log_sum_exp"])
@pytest.mark.parametrize("form", FORMS)
def test_long_rows(name: str, form: str) -> None:
    _check(CASES[name](), FORMS[form], special=True)


@pytest.mark.parametrize("dtype", [bf16, f32])
@pytest.mark.parametrize("split", [1, 2])
def test_rows_whose_lanes_take_neighbours(dtype: DType, split: int) -> None:
    for made in (softmax, log_sum_exp):
        for length in (6144, 5128):  # the last step is whole, or has parts outside
            kernel = made(3, length, dtype)
            limits = Limits(persistent=8, loop=1024, fill=1 if split == 1 else 8, split=split)
            tiling = choose_tiling(kernel, limits)
            assert "tl.reshape" in emit_kernel(kernel, tiling=tiling).text
            _check(kernel, limits, special=True)


def test_addresses_that_are_no_multiple_of_16() -> None:
    kernel = CASES["chain_bf16"]()
    arrays = make_arrays(kernel)
    tensors = {}
    for buffer in kernel.buffers:
        whole = as_tensor(arrays[buffer.name], buffer.dtype)
        shifted = whole.new_empty(len(whole) + 3)[3:]
        tensors[buffer.name] = shifted.copy_(whole)
    PtxKernel(emit_kernel(kernel))(list(tensors.values()))
    assert_same(kernel, {n: as_array(t) for n, t in tensors.items()}, expected(kernel, arrays))
