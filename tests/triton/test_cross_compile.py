"""Generated kernels compiled to machine code for GPUs that are not there."""

from __future__ import annotations

import functools
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiling import Limits, choose_tiling
from graphc.errors import BackendUnavailableError, FallbackWarning
from graphc.ir.types import DType, bf16, f32, f64, i32
from graphc.runtime import triton_launcher, triton_libdevice, triton_module
from graphc.runtime.triton_cross import TARGETS, compile_for
from graphc.settings import override
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


CUT = {
    name: (lambda name=name: scalar_op(name, 64, f32))
    for name in (
        "exp", "exp2", "expm1", "log", "log1p", "log2", "tanh", "erf", "rsqrt", "floor", "ceil", "trunc", "round",
        "copysign",
    )
} | {"softmax": lambda: softmax(64, 1024), "random": CASES["dropout_kernel"]}  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_kernels_are_the_same_with_what_they_need_of_the_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = emit_kernel(CUT[name]())
    library = triton_libdevice.libdevice_for(made, "cuda")
    assert library is not None and library.stat().st_size < 100_000
    (cut,) = compile_for(made, "cuda:80")
    monkeypatch.setattr(triton_launcher, "libdevice_for", lambda kernel, backend: None)
    (whole,) = compile_for(made, "cuda:80")
    texts = [found.asm["ptx"].partition("\n\t.file")[0] for found in (cut, whole)]  # without places of files
    assert texts[0] == texts[1] and ".extern .func" not in texts[0]


@pytest.mark.parametrize("op, dtype", [("erf", f64), ("sqrt", f64), ("sin", f32), ("remainder", f32), ("lgamma", f32)])
def test_what_is_cut_from_the_library_is_not_taken_from_kernels(op: str, dtype: DType) -> None:
    made = emit_kernel(scalar_op(op, 64, dtype))
    assert triton_libdevice.libdevice_for(made, "cuda") is None
    assert compile_for(made, "cuda:80")


def test_the_cut_library_is_made_once_and_again_when_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_libdevice, "_made", [])
    with override(cache_dir=tmp_path, cache=True):
        first = triton_libdevice.cut_library()
        assert first is not None and first.is_relative_to(tmp_path)
        text = first.read_text()
        assert "define float @__nv_expf(" in text and "@__nv_exp(" not in text and "@keep" not in text
        assert triton_libdevice.cut_library() == first
        monkeypatch.setattr(triton_libdevice, "_cut", None)  # another process takes it from the disk cache
        monkeypatch.setattr(triton_libdevice, "_made", [])
        assert triton_libdevice.cut_library() == first
        monkeypatch.undo()
        monkeypatch.setattr(triton_libdevice, "_made", [first])
        shutil.rmtree(first.parent)
        again = triton_libdevice.cut_library()
        assert again == first and again.read_text() == text


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


def test_a_library_that_cannot_be_cut_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AttributeError("no such part")

    monkeypatch.setattr(triton_libdevice, "_made", [])
    monkeypatch.setattr(triton_libdevice, "_failures", [])
    monkeypatch.setattr(triton_libdevice, "_find", fail)
    with pytest.warns(FallbackWarning, match="AttributeError: no such part") as caught:
        assert triton_libdevice.cut_library() is None
        assert triton_libdevice.cut_library() is None
    assert len(caught) == 1
