"""Kernels of known shape: their numbers against numpy in float64, and what their text looks like."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from graphc.codegen.c.emit import COptions, emit_kernel
from graphc.codegen.c.prelude import helper_text, prelude
from graphc.loopir import Kernel, parse_kernel, verify
from graphc.loopir.numpy_ops import Array, float_to_bf16
from tests.ccompile import CKernels
from tests.kernel_strategies import make_buffers, oracle

TEXTS = {
    "softmax": """kernel softmax(x: in f32[700], y: out f32[700]) axes(i: 7 parallel, j: 100 row) {
  # mlp.py:15 softmax
  v0: f32 = load x[i*100 + j]
  v1: f32 = reduce max v0
  v2: f32 = sub v0 v1
  v3: f32 = exp v2
  v4: f32 = reduce sum v3
  v5: f32 = div v3 v4
  store y[i*100 + j] = v5
}""",
    "softmax_columns": """kernel softmax(x: in f32[9100], y: out f32[9100])
    axes(i: 7 parallel, k: 100 parallel, j: 13 row) {
  v0: f32 = load x[i*1300 + j*100 + k]
  v1: f32 = reduce max v0
  v2: f32 = sub v0 v1
  v3: f32 = exp v2
  v4: f32 = reduce sum v3
  v5: f32 = div v3 v4
  store y[i*1300 + j*100 + k] = v5
}""",
    "layer_norm": """kernel layer_norm(x: in f32[990], g: in f32[99], b: in f32[99], y: out f32[990])
    axes(i: 10 parallel, j: 99 row) {
  v0: f32 = load x[i*99 + j]
  v1: f32 = reduce sum v0
  v2: f32 = const 99.0
  v3: f32 = div v1 v2
  v4: f32 = sub v0 v3
  v5: f32 = mul v4 v4
  v6: f32 = reduce sum v5
  v7: f32 = div v6 v2
  v8: f32 = const 1e-05
  v9: f32 = add v7 v8
  v10: f32 = rsqrt v9
  v11: f32 = mul v4 v10
  v12: f32 = load g[j]
  v13: f32 = mul v11 v12
  v14: f32 = load b[j]
  v15: f32 = add v13 v14
  store y[i*99 + j] = v15
}""",
    "column_sum": """kernel column_sum(x: in f32[262144], y: out f32[64]) axes(j: 64 parallel, i: 4096 row) {
  v0: f32 = load x[i*64 + j]
  v1: f32 = reduce sum v0
  store y[j] = v1
}""",
    "total": """kernel total(x: in f32[1000003], y: out f32[1], z: out f64[1]) axes(i: 1000003 row) {
  v0: f32 = load x[i]
  v1: f32 = reduce sum v0
  v2: f64 = cast v0
  v3: f64 = reduce sum v2
  store y[0] = v1
  store z[0] = v3
}""",
    "argmax": """kernel argmax(x: in f32[120], y: out i64[4], z: out i64[4]) axes(i: 4 parallel, j: 5 row, k: 6 row) {
  v0: f32 = load x[i*30 + j*6 + k]
  v1: i64 = reduce argmax v0
  v2: i64 = reduce argmin v0
  store y[i] = v1
  store z[i] = v2
}""",
    "concat": """kernel concat(x: in u8[50], z: in u8[35], y: out u8[85]) axes(i: 5 parallel, j: 17 parallel) {
  v0: i64 = index j
  v1: i64 = const 10
  v2: bool = lt v0 v1
  v3: u8 = load x[i*10 + j] mask v2 other 0
  v4: bool = logical_not v2
  v5: u8 = load z[i*7 + j - 10] mask v4 other 0
  v6: u8 = where v2 v3 v5
  store y[i*17 + j] = v6
}""",
    "concat_outer": """kernel concat(x: in f32[50], z: in f32[30], y: out f32[80]) axes(i: 8 parallel, j: 10 parallel) {
  v0: i64 = index i
  v1: i64 = const 5
  v2: bool = lt v0 v1
  v3: f32 = load x[i*10 + j] mask v2 other 0.0
  v4: bool = logical_not v2
  v5: f32 = load z[i*10 + j - 50] mask v4 other 0.0
  v6: f32 = where v2 v3 v5
  store y[i*10 + j] = v6
}""",
    "causal": """kernel causal(x: in f32[100], y: out f32[100]) axes(i: 10 parallel, j: 10 row) {
  v0: i64 = index j - i
  v1: i64 = const 0
  v2: bool = le v0 v1
  v3: f32 = load x[i*10 + j] mask v2 other -inf
  v4: f32 = reduce max v3
  v5: f32 = sub v3 v4
  v6: f32 = exp v5
  v7: f32 = reduce sum v6
  v8: f32 = div v6 v7
  store y[i*10 + j] = v8
}""",
    "gather": """kernel gather(x: in bf16[44], t: in i64[30], y: out f32[330]) axes(i: 30 parallel, j: 11 parallel) {
  v0: i64 = load t[i]
  v1: i64 = const 3
  v2: i64 = bitwise_and v0 v1
  v3: bf16 = load x[v2*11 + j]
  v4: f32 = cast v3
  store y[i*11 + j] = v4
}""",
    "scatter_add": """kernel scatter(x: in f32[330], t: in i64[30], y: inout f32[44])
    axes(i: 30 parallel, j: 11 parallel) {
  v0: i64 = load t[i]
  v1: i64 = const 3
  v2: i64 = bitwise_and v0 v1
  v3: f32 = load x[i*11 + j]
  store y[v2*11 + j] = v3 mode add
}""",
    "scatter": """kernel scatter(x: in f32[330], t: in i64[30], y: inout f32[44])
    axes(i: 30 parallel, j: 11 parallel) {
  v0: i64 = load t[i]
  v1: i64 = const 3
  v2: i64 = bitwise_and v0 v1
  v3: f32 = load x[i*11 + j]
  store y[v2*11 + j] = v3 mode put
}""",
    "scatter_elements": """kernel scatter_elements(x: in f32[330], t: in i64[330], y: inout f32[44])
    axes(i: 11 parallel, j: 30 parallel) {
  v0: i64 = load t[i*30 + j]
  v1: i64 = const 3
  v2: i64 = bitwise_and v0 v1
  v3: f32 = load x[i*30 + j]
  store y[i*4 + v2] = v3 mode put
}""",
    "cumsum": """kernel cumsum(x: in f32[330], y: out f32[330], z: out f32[330]) axes(i: 11 parallel, j: 30 row) {
  v0: f32 = load x[i*30 + j]
  v1: f32 = scan sum v0
  v2: f32 = reduce max v1
  v3: f32 = sub v1 v2
  store y[i*30 + j] = v1
  store z[i*30 + j] = v3
}""",
    "cumsum_columns": """kernel cumsum(x: in f32[3300], y: out f32[3300]) axes(k: 110 parallel, j: 30 row) {
  v0: f32 = load x[j*110 + k]
  v1: f32 = scan sum v0
  store y[j*110 + k] = v1
}""",
    "transpose": """kernel transpose(x: in i16[4950], y: out i16[4950]) axes(i: 90 parallel, j: 55 parallel) {
  v0: i16 = load x[j*90 + i]
  store y[i*55 + j] = v0
}""",
    "reshape": """kernel reshape(x: in f32[4800], b: in f32[12], y: out f32[4800]) axes(i: 4800 parallel) {
  v0: f32 = load x[(i % 40)*120 + (i // 40)]
  v1: f32 = load b[(i // 400)]
  v2: f32 = add v0 v1
  store y[i] = v2
}""",
    "empty_rows": """kernel empty(x: in f32[0], y: out f32[3], z: out bool[3]) axes(i: 3 parallel, j: 0 row) {
  v0: f32 = load x[i*0 + j]
  v1: f32 = reduce max v0
  v2: bool = isnan v0
  v3: bool = reduce all v2
  store y[i] = v1
  store z[i] = v3
}""",
    "empty": """kernel empty(x: in f32[0], y: out f32[0]) axes(i: 0 parallel, j: 5 parallel) {
  v0: f32 = load x[i*5 + j]
  store y[i*5 + j] = v0
}""",
    "scalar": """kernel scalar(x: in f64[1], y: out f64[1]) axes() {
  v0: f64 = load x[0]
  v1: f64 = exp v0
  store y[0] = v1
}""",
    "bool_any": """kernel bool_any(x: in bool[600], y: out bool[20], z: out bool[20]) axes(i: 20 parallel, j: 30 row) {
  v0: bool = load x[i*30 + j]
  v1: bool = reduce any v0
  v2: bool = reduce min v0
  store y[i] = v1
  store z[i] = v2
}""",
    "integers": """kernel integers(x: in i8[600], y: out i64[20], z: out i8[20], p: out i32[20])
    axes(i: 20 parallel, j: 30 row) {
  v0: i8 = load x[i*30 + j]
  v1: i64 = cast v0
  v2: i64 = reduce sum v1
  v3: i8 = reduce max v0
  v4: i32 = cast v0
  v5: i32 = reduce prod v4
  store y[i] = v2
  store z[i] = v3
  store p[i] = v5
}""",
}
KERNELS = {name: parse_kernel(text) for name, text in TEXTS.items()}
NAMES = list(TEXTS)


@pytest.fixture(scope="module", params=["default", "threads"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CKernels:
    options = COptions() if request.param == "default" else COptions(parallel_cost=0, chunk=16)
    return CKernels(list(KERNELS.values()), Path(tmp_path_factory.mktemp("c")), options)


def execute(library: CKernels, name: str, **given: Array) -> dict[str, Array]:
    buffers = {**make_buffers(KERNELS[name]), **given}
    library.run(NAMES.index(name), buffers)
    return buffers


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_interpreter(library: CKernels, name: str) -> None:
    kernel = KERNELS[name]
    verify(kernel)
    buffers = make_buffers(kernel, 3)
    expected = oracle(kernel, buffers)
    library.run(NAMES.index(name), buffers)
    for buffer in kernel.buffers:
        x, y = expected[buffer.name], buffers[buffer.name]
        if x.dtype.kind == "f":
            assert np.allclose(x, y, rtol=2e-6, atol=2e-6, equal_nan=True), buffer.name
        else:
            assert np.array_equal(x, y), buffer.name


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_softmax_of_special_values_is_eagers(library: CKernels, special: float) -> None:
    import torch

    x = make_buffers(KERNELS["softmax"])["x"]
    x[130], x[250] = special, np.nan
    y = execute(library, "softmax", x=x.copy())["y"]
    expected = torch.softmax(torch.from_numpy(x).view(7, 100), 1).flatten().numpy()
    assert np.allclose(y, expected, rtol=1e-6, equal_nan=True)


def test_argmax_prefers_the_first_and_nan(library: CKernels) -> None:
    x = np.zeros(120, np.float32)
    x[[7, 9]] = 3
    x[[40, 50]] = np.nan
    found = execute(library, "argmax", x=x)
    assert found["y"].tolist() == [7, 10, 0, 0] and found["z"].tolist() == [0, 10, 0, 0]


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_long_sums_are_exact_to_the_last_places(library: CKernels, scale: float) -> None:
    from math import fsum

    x = (np.random.default_rng(5).standard_normal(1000003) * scale + 0.1).astype(np.float32)
    found = execute(library, "total", x=x)
    exact = fsum(x.tolist())
    assert abs(found["y"][0] - exact) <= np.spacing(np.float32(abs(exact)))
    assert abs(found["z"][0] - exact) <= 4 * np.spacing(abs(exact))


def test_sums_of_f64_survive_infinity(library: CKernels) -> None:
    x = np.zeros(1000003, np.float32)
    x[5] = np.inf
    found = execute(library, "total", x=x)
    assert found["y"][0] == np.inf and found["z"][0] == np.inf
    x[9] = -np.inf
    assert np.isnan(execute(library, "total", x=x)["z"][0])


def test_column_sum_of_many_rows(library: CKernels) -> None:
    x = np.random.default_rng(6).standard_normal((4096, 64)).astype(np.float32)
    y = execute(library, "column_sum", x=x.reshape(-1).copy())["y"]
    exact = x.astype(np.float64).sum(0)
    assert np.all(np.abs(y - exact) <= np.spacing(np.abs(exact).astype(np.float32)))


def test_in_place_rows_read_before_they_write(library: CKernels) -> None:
    """Outputs may share the memory of inputs of the same size."""
    for name in ("softmax", "softmax_columns", "layer_norm"):
        buffers = make_buffers(KERNELS[name], 1)
        expected = oracle(KERNELS[name], buffers)["y"]
        buffers["y"] = buffers["x"]
        library.run(NAMES.index(name), buffers)
        assert np.allclose(buffers["y"], expected, rtol=1e-5, atol=1e-6), name


def test_sizes_given_at_launch(tmp_path: Path) -> None:
    kernel = parse_kernel("""kernel sized(x: in bf16[n*m], y: out f32[n]) axes(i: n parallel, j: m row) {
  v0: bf16 = load x[i*m + j]
  v1: f32 = cast v0
  v2: f32 = reduce sum v1
  store y[i] = v2
}""")
    library = CKernels([kernel], tmp_path)
    assert library.emitted[0].sizes == ("m", "n")
    assert library.emitted[0].parameters == ("const uint16_t *x", "float *y", "int64_t m", "int64_t n")
    x, y = np.arange(12, dtype=np.float32), np.zeros(3, np.float32)
    library.run(0, {"x": float_to_bf16(x), "y": y}, {"n": 3, "m": 4})
    assert y.tolist() == [6, 22, 38]


def text_of(name: str, options: COptions = COptions()) -> str:
    return emit_kernel(KERNELS[name], options).text


@pytest.mark.parametrize(
    ("last", "dtype", "is_compensated"), [("", "f32", False), ("", "f64", True), ("lt", "f32", True)]
)
def test_sums_of_doubles_are_compensated_where_all_their_bits_are_seen(
    last: str, dtype: str, is_compensated: bool
) -> None:
    """As such, or by what they decide: not when they are rounded to f32."""
    decided = "  v4: bool = lt v1 v1\n  store z[i] = v4\n" if last else ""
    kernel = parse_kernel(
        f"""kernel total(x: in f32[700], y: out {dtype}[7]{", z: out bool[7]" if last else ""})
    axes(i: 7 parallel, j: 100 row) {{
  v0: f32 = load x[i*100 + j]
  v2: f64 = cast v0
  v1: f64 = reduce sum v2
  v3: {dtype} = cast v1
  store y[i] = v3
{decided}}}"""
    )
    verify(kernel)
    assert ("gc_two_sum" in emit_kernel(kernel, COptions()).text) == is_compensated


def test_text_is_for_reading() -> None:
    text = text_of("softmax")
    assert text.startswith(
        "// src[mlp.py:15 softmax]\nstatic __attribute__((noinline)) void k_softmax(const float *x, float *y) {"
    )
    assert "const float v3 = expf(v2);" in text
    assert text.count("for (") == 4


def test_masks_become_segments() -> None:
    text = text_of("concat")
    assert "?" not in text and "for (int64_t j = 10; j < 17; j++)" in text
    text = text_of("concat_outer")
    assert "?" not in text and "for (int64_t i = 5; i < 8; i++)" in text


def test_divisions_become_axes() -> None:
    text = text_of("reshape")
    assert "/" not in re.sub("//.*", "", text) and "%" not in text


def test_small_kernels_start_no_threads() -> None:
    assert not any("parallel" in text_of(name) for name in NAMES if name not in ("total", "column_sum"))
    assert "parallel for" in text_of("column_sum") and "parallel for" in text_of("total")


def test_adds_at_data_dependent_places_are_not_parallel_along_them() -> None:
    text = text_of("scatter_add", COptions(parallel_cost=0))
    assert "parallel for" in text
    assert text.index("j_block") < text.index("for (int64_t i = 0")


def test_clashing_buffer_names_are_changed(tmp_path: Path) -> None:
    kernel = parse_kernel("""kernel exp(int: in f32[4], expf: out f32[4]) axes(i: 4 parallel) {
  v0: f32 = load int[i]
  v1: f32 = exp v0
  store expf[i] = v1
}""")
    library = CKernels([kernel], tmp_path)
    y = np.zeros(4, np.float32)
    library.run(0, {"int": np.zeros(4, np.float32), "expf": y})
    assert y.tolist() == [1, 1, 1, 1]


def test_prelude_holds_only_what_is_used() -> None:
    text = prelude(["gc_floordiv_f32"])
    assert "gc_floordiv_f32" in text and "fmodf" in text and "gc_bf16_to_f32" not in text
    with pytest.raises(KeyError, match="no C helper named gc_nothing"):
        helper_text("gc_nothing")


def test_results_do_not_depend_on_threads(tmp_path: Path) -> None:
    import ctypes

    kernels: list[Kernel] = [KERNELS["total"], KERNELS["column_sum"]]
    library = CKernels(kernels, tmp_path, COptions(parallel_cost=0))
    set_threads = ctypes.CDLL("libgomp.so.1").omp_set_num_threads
    found = []
    for threads in (1, 2):
        set_threads(threads)
        for number, kernel in enumerate(kernels):
            buffers = make_buffers(kernel, 9)
            library.run(number, buffers)
            found.append(buffers["y"])
    assert np.array_equal(found[0], found[2]) and np.array_equal(found[1], found[3])
