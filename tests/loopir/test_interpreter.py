"""The oracle against numpy and torch written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graphc.ir.types import BY_TORCH_NAME, DTYPES, f32, i32, i64
from graphc.loopir import parse_kernel, run
from graphc.loopir.interpreter import KernelBoundsError
from graphc.loopir.numpy_ops import NUMPY_DTYPES, apply, bf16_to_float, cast, float_to_bf16
from graphc.loopir.scalar import SCALAR_OPS
from graphc.loopir.verifier import verify

SPECIAL = [
    float("nan"),
    float("inf"),
    -float("inf"),
    0.0,
    -0.0,
    1.5,
    -1.5,
    2.5,
    -2.5,
    0.25,
    -0.75,
    3e38,
    1e-42,
    7.0,
    -3.0,
]
INTEGERS = [0, 1, -1, 2, -2, 5, -7, 100, -128, 127]
TORCH_NAMES = {
    "truncdiv": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "floordiv": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "shl": torch.bitwise_left_shift, "shr": torch.bitwise_right_shift, "bitcast": None, "cast": None, "where": None,
}  # fmt: skip


def softmax_text(rows: int, columns: int) -> str:
    n = rows * columns
    return f"""kernel softmax(x: in f32[{n}], y: out f32[{n}]) axes(i: {rows} parallel, j: {columns} row) {{
  v0: f32 = load x[i*{columns} + j]
  v1: f32 = reduce max v0
  v2: f32 = sub v0 v1
  v3: f32 = exp v2
  v4: f32 = reduce sum v3
  v5: f32 = div v3 v4
  store y[i*{columns} + j] = v5
}}"""


def test_softmax() -> None:
    x = torch.randn(7, 13)
    y = np.zeros(91, np.float32)
    run(parse_kernel(softmax_text(7, 13)), {"x": x.flatten().numpy(), "y": y})
    assert np.allclose(y, torch.softmax(x.double(), 1).flatten().numpy(), rtol=3e-7)


@pytest.mark.parametrize("name", sorted(set(SCALAR_OPS) - {"cast", "bitcast", "where", "bounded", "philox"}))
def test_scalar_ops_mean_what_torch_means(name: str) -> None:
    op = SCALAR_OPS[name]
    function = TORCH_NAMES.get(name) or getattr(torch, name, None) or getattr(torch.special, name)
    for dtype, values in ((f32, SPECIAL), (i32, INTEGERS), (DTYPES["bool"], [False, True])):
        if dtype.kind not in op.kinds:
            continue
        a = torch.tensor(values, dtype=getattr(torch, dtype.torch_name))
        args = [a] if op.arity == 1 else [x.flatten() for x in torch.meshgrid(a, a, indexing="ij")]
        if dtype == i32 and name in ("floordiv", "truncdiv", "remainder", "fmod"):
            args = [x[args[1] != 0] for x in args]
        if dtype == f32 and name in (
            "floordiv",
            "remainder",
            "fmod",
        ):  # eager's vector fmod gives NaN for huge quotients
            args = [x[~((args[0] / args[1]).abs() > 1e30) | (args[1] == 0)] for x in args]
        if dtype == i32 and name == "pow":
            args = [x[args[1] >= 0] for x in args]
        if name in ("maximum", "minimum") and dtype.kind == "bool":
            expected = args[0] | args[1] if name == "maximum" else args[0] & args[1]
        else:
            expected = function(*args)
        with np.errstate(all="ignore"):
            actual = apply(name, [x.numpy() for x in args], dtype, DTYPES["bool"] if op.result == "bool" else dtype)
        found = torch.from_numpy(actual)
        if dtype == f32 and op.cost >= 6:
            assert torch.allclose(found, expected, rtol=3e-6, atol=1e-44, equal_nan=True), name
        else:
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_bounded_values_are_zero_first_and_hide_outside() -> None:
    position = np.arange(6, dtype=np.int32)
    edges = [np.full(6, edge, np.int32) for edge in (1, 5, 3)]
    mask, scores = np.array([False, True, True, False, True, False]), np.full(6, 7, np.float32)
    found = apply("bounded", [position, *edges, mask], DTYPES["bool"], DTYPES["bool"])
    assert found.tolist() == [True, False, False, False, True, True]
    found = apply("bounded", [position, *edges, scores], f32, f32)
    assert found.tolist() == [-np.inf, 0, 0, 7, 7, -np.inf]


@pytest.mark.parametrize("target", ["i8", "i16", "i32", "i64", "u8", "bool", "f64", "f16", "bf16"])
@pytest.mark.parametrize("source", ["f32", "f64", "i64", "i8", "u8", "bool", "bf16", "f16"])
def test_casts_mean_what_torch_means(source: str, target: str) -> None:
    numbers = [
        0.0,
        -0.0,
        0.4,
        -0.6,
        1.5,
        -1.5,
        2.5,
        65519.0,
        65520.0,
        3.0e-8,
        1e-6,
        float("nan"),
        float("inf"),
        3e9,
        -129.0,
    ]
    a = torch.tensor(numbers, dtype=torch.float64)
    if DTYPES[source].is_integral:
        a = torch.tensor([0, 1, 2, 3, 100, 127])
    a = a.to(getattr(torch, DTYPES[source].torch_name))
    expected = a.to(getattr(torch, DTYPES[target].torch_name))
    held = a.view(torch.uint16).numpy() if source == "bf16" else a.numpy()
    with np.errstate(all="ignore"):
        actual = cast(held, DTYPES[source], DTYPES[target])
    if target == "bf16":
        actual, expected = bf16_to_float(actual), expected.float()
    wanted = expected.numpy()
    assert np.array_equal(actual, wanted, equal_nan=wanted.dtype.kind == "f")


def test_bf16_bits_round_half_to_even() -> None:
    x = torch.randn(10_000) * torch.logspace(-38, 38, 10_000)
    x[:4] = torch.tensor([1.00390625, 1.01171875, float("inf"), 3.3999999e38])
    assert np.array_equal(float_to_bf16(x.numpy()), x.bfloat16().view(torch.uint16).numpy())
    assert np.array_equal(bf16_to_float(x.bfloat16().view(torch.uint16).numpy()), x.bfloat16().float().numpy())


@pytest.mark.parametrize(
    ("op", "expected"), [("sum", 0), ("prod", 1), ("max", -np.inf), ("min", np.inf), ("argmax", 0)]
)
def test_reductions_over_nothing(op: str, expected: float) -> None:
    dtype = "i64" if op == "argmax" else "f32"
    text = f"""kernel k(x: in f32[0], y: out {dtype}[3]) axes(i: 3 parallel, j: 0 row) {{
  v0: f32 = load x[i*0 + j]
  v1: {dtype} = reduce {op} v0
  store y[i] = v1
}}"""
    y = np.full(3, 5, NUMPY_DTYPES[dtype])
    run(parse_kernel(text), {"x": np.zeros(0, np.float32), "y": y})
    assert (y == expected).all()


def test_masked_loads_touch_nothing_outside() -> None:
    text = """kernel pad(x: in f32[4], y: out f32[8]) axes(i: 8 parallel) {
  v0: i64 = index i
  v1: i64 = const 2
  v2: bool = ge v0 v1
  v3: i64 = const 6
  v4: bool = lt v0 v3
  v5: bool = logical_and v2 v4
  v6: f32 = load x[i - 2] mask v5 other -1.0
  store y[i] = v6
}"""
    y = np.zeros(8, np.float32)
    run(parse_kernel(text), {"x": np.arange(4, dtype=np.float32), "y": y})
    assert y.tolist() == [-1, -1, 0, 1, 2, 3, -1, -1]


GATHER = """kernel gather(x: in f32[12], t: in i64[5], y: out f32[15]) axes(i: 5 parallel, j: 3 parallel) {
  v0: i64 = load t[i]
  v1: f32 = load x[v0*3 + j]
  store y[i*3 + j] = v1
}"""


def test_gather_and_its_bounds() -> None:
    x, y = np.arange(12, dtype=np.float32), np.zeros(15, np.float32)
    run(parse_kernel(GATHER), {"x": x, "t": np.array([3, 0, 0, 2, 1]), "y": y})
    assert np.array_equal(y.reshape(5, 3), x.reshape(4, 3)[[3, 0, 0, 2, 1]])
    with pytest.raises(KernelBoundsError, match=r"kernel gather: index .* of x reaches .* 14, size 12"):
        run(parse_kernel(GATHER), {"x": x, "t": np.array([4, 0, 0, 2, 1]), "y": y})


def test_scatter_add_counts_every_element() -> None:
    text = """kernel scatter(x: in f32[6], t: in i64[6], y: inout f32[3]) axes(i: 6 parallel) {
  v0: i64 = load t[i]
  v1: f32 = load x[i]
  store y[v0] = v1 mode add
}"""
    y = np.ones(3, np.float32)
    run(parse_kernel(text), {"x": np.arange(6, dtype=np.float32), "t": np.array([0, 1, 0, 1, 0, 0]), "y": y})
    assert y.tolist() == [1 + 0 + 2 + 4 + 5, 1 + 1 + 3, 1]


def test_the_last_value_put_somewhere_stays() -> None:
    text = """kernel scatter(x: in f32[6], t: in i64[6], y: out f32[3]) axes(i: 6 parallel) {
  v0: i64 = load t[i]
  v1: f32 = load x[i]
  store y[v0] = v1 mode put
}"""
    y = np.ones(3, np.float32)
    run(parse_kernel(text), {"x": np.arange(6, dtype=np.float32), "t": np.array([0, 1, 0, 1, 0, 0]), "y": y})
    assert y.tolist() == [5, 3, 1]


def test_cells_keep_the_largest_value_stored() -> None:
    kernel = parse_kernel(
        "kernel k(x: in i64[6], failed: inout i64[2]) axes(i: 6 parallel) {\n"
        "  v0: i64 = load x[i]\n  v1: i64 = const 3\n  v2: bool = gt v0 v1\n  v3: bool = lt v0 v1\n"
        "  store failed[0] = v0 mask v2 mode max\n  store failed[1] = v0 mask v3 mode max\n}"
    )
    verify(kernel)
    failed = np.array([-100, -100])
    run(kernel, {"x": np.array([3, 7, 9, 4, 3, 5]), "failed": failed})
    assert failed.tolist() == [9, -100]


def test_scan_runs_along_the_row() -> None:
    text = """kernel cumsum(x: in i32[6], y: out i32[6], z: out i32[6]) axes(i: 2 parallel, j: 3 row) {
  v0: i32 = load x[i*3 + j]
  v1: i32 = scan sum v0
  v2: i32 = scan max v0
  store y[i*3 + j] = v1
  store z[i*3 + j] = v2
}"""
    y, z = np.zeros(6, np.int32), np.zeros(6, np.int32)
    run(parse_kernel(text), {"x": np.array([3, 1, 2, -1, -5, 0], np.int32), "y": y, "z": z})
    assert y.tolist() == [3, 4, 6, -1, -6, -6] and z.tolist() == [3, 3, 3, -1, -1, 0]


def test_arg_reductions_prefer_the_first_and_nan() -> None:
    text = """kernel arg(x: in f32[8], y: out i64[2], z: out i64[2]) axes(i: 2 parallel, j: 4 row) {
  v0: f32 = load x[i*4 + j]
  v1: i64 = reduce argmax v0
  v2: i64 = reduce argmin v0
  store y[i] = v1
  store z[i] = v2
}"""
    y, z = np.zeros(2, np.int64), np.zeros(2, np.int64)
    run(parse_kernel(text), {"x": np.array([1, 3, 3, 1, 5, np.nan, 9, np.nan], np.float32), "y": y, "z": z})
    assert y.tolist() == [1, 1] and z.tolist() == [0, 1]


def test_symbolic_sizes_come_at_run_time() -> None:
    text = """kernel double(x: in f32[n*3], y: out f32[n*3]) axes(i: n parallel, j: 3 parallel) {
  v0: f32 = load x[i*3 + j]
  v1: f32 = add v0 v0
  store y[i*3 + j] = v1
}"""
    y = np.zeros(6, np.float32)
    run(parse_kernel(text), {"x": np.arange(6, dtype=np.float32), "y": y}, {"n": 2})
    assert y.tolist() == [0, 2, 4, 6, 8, 10]


def test_wrong_arrays_are_refused() -> None:
    kernel = parse_kernel(GATHER)
    with pytest.raises(TypeError, match="buffer x: float64 array"):
        run(kernel, {"x": np.zeros(12), "t": np.zeros(5, np.int64), "y": np.zeros(15, np.float32)})
    with pytest.raises(KernelBoundsError, match="buffer x has 5 elements, the kernel says 12"):
        run(kernel, {"x": np.zeros(5, np.float32), "t": np.zeros(5, np.int64), "y": np.zeros(15, np.float32)})


def test_tables_cover_every_dtype_and_op() -> None:
    assert set(NUMPY_DTYPES) <= set(DTYPES)
    assert BY_TORCH_NAME["int64"] == i64
    for name, op in SCALAR_OPS.items():
        if name in ("cast", "bitcast", "where", "bounded", "philox"):
            continue
        ones = [
            np.ones(1, np.float32 if "float" in op.kinds else np.bool_ if "bool" in op.kinds else np.int32)
        ] * op.arity
        source = f32 if "float" in op.kinds else DTYPES["bool"] if "bool" in op.kinds else i32
        with np.errstate(all="ignore"):
            assert apply(name, ones, source, DTYPES["bool"] if op.result == "bool" else source).shape == (1,)
