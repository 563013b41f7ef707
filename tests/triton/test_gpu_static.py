"""The static proof: benchmark programs have no faults, and what is a fault is found."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiles import Choice, Tile
from graphc.codegen.triton.tiling import DEFAULT_LIMITS, Limits, Tiling, choose_tiling
from graphc.ir.types import DType, bf16, f32, f64
from graphc.loopir.kernel import Kernel
from graphc.passes.chips import CHIPS
from graphc.passes.templates import Templates
from graphc.program.triton_kernel import TritonKernel
from graphc.report.kernel_traffic import kernel_traffic
from graphc.report.product_work import Work, work_of
from graphc.report.static_kernels import Candidate, inspect
from graphc.runtime.machine_code import read_amd, read_ptx
from graphc.runtime.triton_cross import compile_for
from graphc.settings import override
from tests.triton.attentions import causal, plain, window
from tests.triton.cases import chain, column_sum, layer_norm, scalar_op, softmax, transpose
from tests.triton.norms import group_norm, group_norm_gradient, weight_gradient
from tests.triton.persistent import LAYOUTS, product_kernel
from tests.triton.products import CASES, Case, plan_of

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter cannot compile")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SOME_TARGETS = ("cuda:90", "hip:gfx942")


@pytest.fixture
def gpu_static(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_static

    yield gpu_static
    for name in ("gpu_static", "gpu_cases", "gpu_programs", "kernels", "training"):
        sys.modules.pop(name, None)


def test_benchmark_programs_have_no_faults(gpu_static: Any, tmp_path: Path) -> None:
    from gpu_programs import SMALL

    with override(cache_dir=tmp_path):
        found, counts = gpu_static.plan_all(SMALL)
        lines = inspect(found, SOME_TARGETS, workers=1)
    assert {line.target for line in lines} == set(SOME_TARGETS) and len(lines) >= 2 * len(SMALL)
    assert not [line for line in lines if line.faults]
    assert gpu_static.growth(counts, json.loads(gpu_static.COUNTS.read_text())) == []
    assert {line.program for line in lines if 16 in line.loads and 16 in line.stores} == set(SMALL)
    report = gpu_static.markdown(lines, counts)
    assert all(f"| {name} |" in report for name in SMALL)


def test_more_launches_than_before_are_told(gpu_static: Any) -> None:
    allowed = {"a": {"launches": 2, "library": 1}}
    assert gpu_static.growth({"a": {"launches": 2, "library": 1}}, allowed) == []
    more = gpu_static.growth({"a": {"launches": 3, "library": 0}, "b": {"launches": 1, "library": 0}}, allowed)
    assert more == ["a: 3 launches where 2 are allowed", "b: 1 launches where 0 are allowed"]


def test_every_program_has_a_count(gpu_static: Any) -> None:
    assert gpu_static.ALL.keys() == json.loads(gpu_static.COUNTS.read_text()).keys()


def faults_of(kernel: Kernel, tiling: Tiling, target: str = "cuda:90") -> list[str]:
    made = emit_kernel(kernel, tiling=tiling)
    return faults_of_made(Candidate("p", 1, made, kernel_traffic(kernel, tiling, made)), target)


def faults_of_made(candidate: Candidate, target: str) -> list[str]:
    return [fault for line in inspect([candidate], [target], workers=1) for fault in line.faults]


@pytest.mark.parametrize("target", SOME_TARGETS)
def test_scalar_accesses_are_faults(target: str, tmp_path: Path) -> None:
    kernel = chain(4096, 1024)
    tiling = choose_tiling(kernel)
    good = emit_kernel(kernel, tiling=tiling)
    plain = "tl.load(x_ptr + (x))"
    assert plain in good.text
    text = good.text.replace(plain, "tl.load(x_ptr + (x), mask=x < 4194303, other=0.0)")  # no multiple of a vector
    bad = TritonKernel(good.name, text, good.signature, good.launches)
    with override(cache_dir=tmp_path):
        assert faults_of(kernel, tiling, target) == []
        found = faults_of_made(Candidate("p", 1, bad, kernel_traffic(kernel, tiling, bad)), target)
    assert found == ["scalar accesses to x, which could be of 16 bytes"]


def test_strided_accesses_are_faults(tmp_path: Path) -> None:
    kernel = transpose(4096, 4096)
    flat = choose_tiling(kernel, Limits(transpose=1 << 20))  # too large a tile for any axis: no tile at all
    with override(cache_dir=tmp_path):
        assert faults_of(kernel, choose_tiling(kernel)) == []
        assert any("times the least possible" in fault for fault in faults_of(kernel, flat))


def test_what_does_not_fit_the_registers_is_a_fault(tmp_path: Path) -> None:
    rows = softmax(64, 65536)  # 128 numbers a thread, and what is made of them
    with override(cache_dir=tmp_path):
        assert any(fault.startswith("spills") for fault in faults_of(rows, _held_whole(rows)))
        assert faults_of(rows, choose_tiling(rows)) == []


def test_more_shared_memory_than_a_chip_has_is_a_fault(tmp_path: Path) -> None:
    kernel = product_kernel(4096, 4096, 1024, bf16, LAYOUTS["rows"])
    five = Choice(Tile(128, 256, 64, 8, 5, 1.0), pieces=2)
    made = emit_kernel(kernel, target="cuda:90", choice=five)
    with override(cache_dir=tmp_path):
        for target, room in (("cuda:90", 232448), ("cuda:80", 166912)):
            (fault,) = faults_of_made(Candidate("p", 1, made, None), target)
            assert re.fullmatch(rf"takes \d+ bytes of shared memory where {room} are", fault)


def test_a_grid_that_no_device_starts_is_a_fault(tmp_path: Path) -> None:
    made = emit_kernel(chain(4096, 1024))
    (launch,) = made.launches
    wide = replace(made, launches=(replace(launch, grid=(1, 65536, 1)),))
    with override(cache_dir=tmp_path):
        assert faults_of_made(Candidate("p", 1, made, None), "cuda:90") == []
        (fault,) = faults_of_made(Candidate("p", 1, wide, None), "cuda:90")
    assert fault.startswith("a grid of (1, 65536, 1)")


def _held_whole(kernel: Kernel) -> Tiling:
    tiling = choose_tiling(kernel)
    row = replace(tiling.dims[-1], block=tiling.dims[-1].extent, parts=1)
    return replace(tiling, dims=(*tiling.dims[:-1], row), looped=False, num_warps=16)


def test_a_stack_is_no_spill() -> None:
    for op, dtype in (("sin", f32), ("tan", f64)):  # reductions of large angles keep arrays
        (compiled,) = compile_for(emit_kernel(scalar_op(op, 4096, dtype)), "cuda:90")
        assert compiled.stack and not compiled.spills


MATMUL = """\
import triton
import triton.language as tl


@triton.jit
def product(a_ptr, b_ptr, c_ptr, B: tl.constexpr):
    i = tl.arange(0, B)[:, None]
    j = tl.arange(0, B)[None, :]
    a = tl.load(a_ptr + (i * B + j))
    b = tl.load(b_ptr + (i * B + j))
    # tl.dot( or something else
    tl.store(c_ptr + (i * B + j), PRODUCT)
"""


@pytest.mark.parametrize("target", SOME_TARGETS)
def test_products_without_tensor_cores_are_faults(target: str, tmp_path: Path) -> None:
    from graphc.program.triton_kernel import Launch

    found = {}
    for name, text in (
        ("with", "tl.dot(a, b)"),
        ("without", "tl.sum(a[:, :, None].to(tl.float32) * b[None, :, :], 1)"),
    ):
        signature = (("a_ptr", "*bf16"), ("b_ptr", "*bf16"), ("c_ptr", "*fp32"))
        launches = (Launch("product", (1, 1, 1), (("B", 16),), 1),)
        made = TritonKernel("product", MATMUL.replace("PRODUCT", text), signature, launches)
        with override(cache_dir=tmp_path):
            found[name] = faults_of_made(Candidate("p", 1, made, None), target)
    assert found == {"with": [], "without": ["a matrix product without tensor cores"]}


def test_bytes_of_forms() -> None:
    size = 16384 * 4096 * 2

    def traffic(kernel: Kernel, limits: Limits = DEFAULT_LIMITS) -> tuple[int, int]:
        tiling = choose_tiling(kernel, limits)
        found = kernel_traffic(kernel, tiling, emit_kernel(kernel, tiling=tiling))
        return found.moved, found.least

    assert traffic(softmax(16384, 4096, bf16)) == (2 * size, 2 * size)
    # two passes over rows that are too long: read twice, written once
    assert traffic(softmax(16384, 4096, bf16), Limits(persistent=512)) == (3 * size, 2 * size)
    moved, least = traffic(layer_norm(16384, 4096, bf16))
    assert moved == least == 2 * size + 2 * 4096 * 2 + 16384 * 4  # vectors, and the mean
    moved, least = traffic(column_sum(65536, 1024))
    assert least == 65536 * 1024 * 4 + 1024 * 4 and least < moved < 1.01 * least  # scratch memory of the split sum


@pytest.mark.parametrize("target", SOME_TARGETS)
@pytest.mark.parametrize(
    ("pixels", "dtype", "reads"), [(1024, bf16, 1), (4096, bf16, 1), (4096, f32, 1), (3136, bf16, 1), (65536, bf16, 2)]
)
def test_group_norm_reads_a_group_once_where_it_fits(
    pixels: int, dtype: DType, reads: int, target: str, tmp_path: Path
) -> None:
    kernel = group_norm(32, 32, 8, pixels, dtype)
    tiling = choose_tiling(kernel)
    made = emit_kernel(kernel, tiling=tiling)
    traffic = kernel_traffic(kernel, tiling, made)
    size = 32 * 256 * pixels * dtype.itemsize
    assert (reads + 1) * size <= traffic.moved < (reads + 1) * size * 1.001
    with override(cache_dir=tmp_path):
        (line,) = inspect([Candidate("p", 1, made, traffic)], [target], workers=1)
    assert not line.faults and max(line.loads) == 16 and line.stores == (4, 16)  # the mean is a number per row
    (compiled,) = compile_for(made, target)
    # parameters are loaded by channel, not by element
    assert sum(compiled.loads.values()) - compiled.loads[16] <= 2 * 8


def test_gradients_of_group_norm_have_wide_accesses_and_two_reads(tmp_path: Path) -> None:
    for kernel, reads, stores in (
        (group_norm_gradient(32, 32, 8, 1024, bf16), 2, 2),
        (weight_gradient(32, 256, 4096), 2, 0),
    ):
        tiling = choose_tiling(kernel)
        made = emit_kernel(kernel, tiling=tiling)
        traffic = kernel_traffic(kernel, tiling, made)
        large = max(buffer.size * buffer.dtype.itemsize for buffer in kernel.buffers)
        assert traffic.moved < (reads + stores) * large * 1.001 and len(made.launches) <= 2
        with override(cache_dir=tmp_path):
            assert faults_of(kernel, tiling) == []


def test_widths_are_told_by_pointer() -> None:
    ptx = """
.visible .entry f(
  .param .u64 .ptr .global .align 1 f_param_0,
  .param .u64 .ptr .global .align 1 f_param_1
)
{
  ld.param.b64 %rd1, [f_param_0];
  ld.param.b64 %rd2, [f_param_1];
  add.s64 %rd3, %rd1, %rd9;
  ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd3 + 0 ];
  ld.global.b64 { %rd7 }, [ %rd1 + 64 ];
  @%p1 st.global.b16 [ %rd2 + 0 ], { %rs1 };
  ld.global.v2.b32 { %r5, %r6 }, [ %rd7 + 0 ];
  cp.async.ca.shared.global [ %r9 + 0 ], [ %rd2 + 512 ], 0x8, %r10;
  ld.shared.b32 %r11, [ %r9 ];
  mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %f1 }, { %r1 }, { %r2 }, { %f2 };
}
"""
    code = read_ptx(ptx)
    assert code.widths == {-1: (8,), 0: (8, 16), 1: (2, 8)}
    assert (code.loads, code.stores, code.tensor_core) == ({16: 1, 8: 3}, {2: 1}, 1)
    llvm = """
define amdgpu_kernel void @f(ptr addrspace(1) inreg readonly captures(none) %0, ptr addrspace(1) inreg %1) {
  %.pre = getelementptr i8, ptr addrspace(1) %0, i64 %2
  %.lcssa = phi ptr addrspace(1) [ %.pre, %.entry ]
  %4 = load <4 x float>, ptr addrspace(1) %.lcssa, align 16
  store <1 x bfloat> %9, ptr addrspace(1) %1, align 2
}
"""
    code = read_amd("global_load_dwordx4 v[0:3]\nglobal_store_short v0\nv_mfma_f32_32x32x8_f16 a\n", llvm)
    assert code.widths == {0: (16,), 1: (2,)}
    assert (code.loads, code.stores, code.tensor_core) == ({16: 1}, {2: 1}, 1)
    # loads of single elements that have become one
    code = read_amd("global_load_dwordx4 v[0:3]\nglobal_store_short v0\n", llvm.replace("<4 x float>", "float"))
    assert code.widths == {0: (16,), 1: (2,)}


def test_work_of_products_is_counted_by_unit() -> None:
    def work(case: Case, dtype: torch.dtype, templates: Templates | None = None) -> list[Work]:
        return [work_of(kernel) for kernel in plan_of(case, dtype, templates).kernels.values() if kernel.contractions]

    product = Case(CASES["residual"].function, ((256, 512), (512, 128), (256, 128)))
    multiplied = 256 * 512 * 128
    (found,) = work(product, torch.bfloat16)
    assert found.matrix == 2 * multiplied and 256 * 128 < found.plain < multiplied
    (found,) = work(product, torch.float32, Templates(policy="always", tf32=True))
    assert found.matrix == 4 * multiplied
    (found,) = work(product, torch.float32)
    assert found.matrix == 0 and found.plain > multiplied


@pytest.mark.parametrize(
    ("form", "kept"),
    [(plain, 256 * 256), (causal, 257 * 128), (window, sum(min(9, row + 1) for row in range(256)))],
)
def test_scores_that_a_mask_hides_are_not_counted(form: Callable[..., torch.Tensor], kept: int) -> None:
    (kernel,) = plan_of(Case(form, ((2, 4, 256, 64),) * 3), torch.bfloat16).kernels.values()
    assert work_of(kernel) == Work(0, 2 * 2 * 2 * 4 * 64 * kept)


def test_least_times_are_those_of_data_sheets() -> None:
    h200 = next(chip for chip in CHIPS if chip.name == "H200")
    assert h200.seconds(4_800_000_000, 0) == pytest.approx(1e-3)
    assert h200.seconds(0, 33_500_000_000) == pytest.approx(1e-3)
    assert h200.seconds(0, 0, 989_000_000_000) == pytest.approx(1e-3)
    assert {chip.target for chip in CHIPS} == {"cuda:80", "cuda:90", "cuda:100", "hip:gfx942"}
