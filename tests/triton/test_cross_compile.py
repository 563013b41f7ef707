"""Generated kernels compiled to machine code for GPUs that are not there."""

from __future__ import annotations

import functools
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiling import Limits, choose_tiling
from graphc.errors import BackendUnavailableError
from graphc.ir.types import bf16, f32, f64, i32
from graphc.runtime import triton_module
from graphc.runtime.triton_cross import TARGETS, compile_for
from tests.triton.cases import CASES, chain, column_sum, layer_norm, scalar_op, softmax

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter cannot compile")

SPLIT = Limits(persistent=512, fill=64, split=8)
SAMPLE = (
    "chain_odd",
    "chain_bf16",
    "transpose",
    "softmax_odd",
    "argmax_all",
    "cumsum",
    "scatter_add",
    "checked_gather",
    "logic",
    "brownian",
    "dropout_kernel",
    "words_strided",
)


@pytest.mark.parametrize("target", TARGETS)
def test_contiguous_kernels_use_wide_accesses_and_do_not_spill(target: str) -> None:
    kernels = [chain(512, 1024), softmax(64, 1024), layer_norm(64, 4096, bf16), column_sum(4096, 1024)]
    for kernel in kernels:
        for compiled in compile_for(emit_kernel(kernel), target):
            assert compiled.spills == 0, compiled
            assert 0 < compiled.registers <= 128, compiled
            assert max(compiled.loads) == 16, compiled


@pytest.mark.parametrize("name", SAMPLE)
def test_sample_compiles(name: str) -> None:
    for target in ("cuda:90", "hip:gfx942"):
        assert all(compiled.asm for compiled in compile_for(emit_kernel(CASES[name]()), target))


def test_split_reduction_compiles() -> None:
    made = emit_kernel(softmax(3, 40000), tiling=choose_tiling(softmax(3, 40000), SPLIT))
    assert [launch.function for launch in made.launches] == ["softmax_pass1", "softmax_pass2"]
    assert len(compile_for(made, "cuda:90")) == 2


@pytest.mark.parametrize("op", ["pow", "digamma", "erfinv", "remainder", "nextafter"])
def test_rare_operators_compile(op: str) -> None:
    dtypes = (f32, i32) if op in ("pow", "remainder") else (f32, f64) if op == "digamma" else (f64,)
    for dtype in dtypes:
        for target in ("cuda:80", "hip:gfx942"):
            compile_for(emit_kernel(scalar_op(op, 64, dtype)), target)


def test_float32_arithmetic_is_exact() -> None:
    (compiled,) = compile_for(emit_kernel(softmax(64, 1024)), "cuda:90")
    assert "div.rn.f32" in compiled.asm["ptx"]
    assert "max.NaN.f32" in compiled.asm["ptx"]
    (root,) = compile_for(emit_kernel(scalar_op("sqrt", 64, f32)), "cuda:90")
    assert "sqrt.rn.f32" in root.asm["ptx"]


def test_unknown_target_is_refused() -> None:
    with pytest.raises(BackendUnavailableError, match="no such target: 'cuda:new'"):
        compile_for(emit_kernel(chain(2, 2)), "cuda:new")


def test_kernels_compiled_at_a_time_hash_triton_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import cache

    known, asked = cache.triton_key(), []

    @functools.lru_cache
    def slow() -> str:
        asked.append(1)
        time.sleep(0.05)
        return known

    monkeypatch.setattr(cache, "triton_key", slow)
    monkeypatch.setattr(triton_module, "_fingerprints", [])
    kernels = [emit_kernel(softmax(rows, 64)) for rows in (3, 4, 5, 6)]
    with ThreadPoolExecutor(4) as pool:
        compiled = list(pool.map(lambda kernel: compile_for(kernel, "cuda:80"), kernels))
    assert all(found[0].asm["ptx"] for found in compiled)
    assert len(asked) == 1
