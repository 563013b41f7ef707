"""Every scalar op and cast of generated C on special values, against the interpreter's table."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from graphc.codegen.c.emit import emit_kernel
from graphc.errors import CodegenError
from graphc.ir.dims import symbol
from graphc.ir.types import DTYPES, FLOAT8, DType, bool_
from graphc.loopir import Axis, Buffer, Compute, Kernel, Load, Store
from graphc.loopir.numpy_ops import NUMPY_DTYPES, Array, bf16_to_float, float_to_bf16
from graphc.loopir.scalar import SCALAR_OPS
from tests.ccompile import CKernels
from tests.kernel_strategies import oracle

FLOATS = [
    math.nan, math.inf, -math.inf, 0.0, -0.0, 0.25, -0.5, 0.7, 1.0, -1.0, 1.5, -1.5, 2.5, 3.0, -7.0, 10.0, 88.9, -104.5,
    3e38, -1e-3, 1e-42, 4096.5, 0.99999,
]  # fmt: skip
INTEGERS = [0, 1, -1, 2, -2, 3, 5, -7, 31, 32, 64, 100, -128, 127]
APPROXIMATE = {name for name, op in SCALAR_OPS.items() if op.cost >= 16} | {"pow"}


def special(dtype: DType) -> Array:
    """Special values of a dtype, twice with a remainder, so that vector and scalar parts of loops meet them."""
    if dtype.kind == "bool":
        return np.array([False, True] * 7)
    if dtype.is_float:
        values = np.array(FLOATS, np.float64)
        if dtype.name == "f64":
            values = np.append(values, [1e300, 1e-310, 2.0**63, -(2.0**31), 709.9, -746.0])
        with np.errstate(all="ignore"):
            return (
                float_to_bf16(values.astype(np.float32))
                if dtype.name == "bf16"
                else values.astype(NUMPY_DTYPES[dtype.name])
            )
    info = np.iinfo(NUMPY_DTYPES[dtype.name])
    values = [*(v for v in INTEGERS if info.min <= v <= info.max), info.min, info.max]
    return np.array(values, NUMPY_DTYPES[dtype.name])


def operands(op: str, dtype: DType) -> list[Array]:
    values = special(dtype)
    arity = SCALAR_OPS[op].arity
    if arity == 1:
        return [np.tile(values, 2)[: 2 * values.size - 1]]
    if op == "where":
        condition = np.arange(values.size) % 2 == 0
        return [condition, values, values[::-1].copy()]
    if op == "bounded":
        positions = np.arange(values.size, dtype=np.int32)
        edges = (1, values.size - 1, values.size // 2)
        return [positions, *(np.full(values.size, edge, np.int32) for edge in edges), values]
    a, b = (x.reshape(-1) for x in np.meshgrid(values, values))
    if op == "pow" and dtype.is_integral:
        a, b = a[np.abs(b.astype(np.float64)) < 70], b[np.abs(b.astype(np.float64)) < 70]
    return [np.ascontiguousarray(a), np.ascontiguousarray(b)]


def pointwise(op: str, source: DType, target: DType, arrays: list[Array]) -> Kernel:
    n = arrays[0].size
    i = symbol("i")
    dtypes = {"where": [bool_, source, source], "bounded": [DTYPES["i32"]] * 4 + [source]}.get(op)
    dtypes = dtypes or [source] * len(arrays)
    loads = [Load(f"v{k}", dtype, f"x{k}", i) for k, dtype in enumerate(dtypes)]
    result = Compute(f"v{len(loads)}", target, op, tuple(load.id for load in loads))
    buffers = [Buffer(f"x{k}", dtype, n, "in") for k, dtype in enumerate(dtypes)] + [Buffer("y", target, n, "out")]
    return Kernel(f"{op}_{source}", (Axis("i", n),), tuple(buffers), (*loads, result, Store("y", i, result.id)))


def cases() -> list[tuple[Kernel, list[Array]]]:
    found = []
    for name, op in SCALAR_OPS.items():
        if op.result == "given":
            continue
        for dtype in DTYPES.values():
            if dtype.name not in NUMPY_DTYPES or dtype.is_reduced or dtype.kind not in op.kinds:
                continue
            arrays = operands(name, dtype)
            found.append((pointwise(name, dtype, bool_ if op.result == "bool" else dtype, arrays), arrays))
    held = [name for name in NUMPY_DTYPES if DTYPES[name] not in FLOAT8]
    for source, target in itertools.product(held, held):
        if source == target:
            continue
        a, b = DTYPES[source], DTYPES[target]
        arrays = operands("cast", a)
        if a.is_float and b.kind == "uint":  # out of range is undefined in C, and differs between eager's own paths
            with np.errstate(all="ignore"):
                values = bf16_to_float(arrays[0]) if source == "bf16" else arrays[0]
                arrays = [arrays[0][np.isfinite(values) & (values >= 0) & (values < 255)]]
        found.append((pointwise("cast", a, b, arrays), arrays))
        if a.itemsize == b.itemsize and bool_ not in (a, b):
            found.append((pointwise("bitcast", a, b, operands("cast", a)), operands("cast", a)))
    return found


CASES = cases()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> CKernels:
    return CKernels([kernel for kernel, _ in CASES], Path(tmp_path_factory.mktemp("c")))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{k.name}_{k.buffers[-1].dtype}" for k, _ in CASES])
def test_op_on_special_values(library: CKernels, number: int) -> None:
    kernel, arrays = CASES[number]
    target = kernel.buffers[-1].dtype
    buffers = {f"x{k}": array for k, array in enumerate(arrays)}
    buffers["y"] = np.zeros(arrays[0].size, NUMPY_DTYPES[target.name])
    expected = oracle(kernel, buffers)["y"]
    library.run(number, buffers)
    actual = buffers["y"]
    op = kernel.body[-2].op  # type: ignore[union-attr]
    if target.name == "bf16":
        expected, actual = bf16_to_float(expected), bf16_to_float(actual)
    wrong = ~((actual == expected) | ((actual != actual) & (expected != expected)))
    if target.is_float and op in APPROXIMATE:
        wrong &= ~is_close(op, actual, expected)
    elif target.is_float and op not in ("maximum", "minimum", "fmax", "fmin"):  # which zero of two wins is open there
        wrong |= (np.signbit(actual) != np.signbit(expected)) & (expected == 0)
    shown = [(*(array[k] for array in arrays), actual[k], expected[k]) for k in np.flatnonzero(wrong)[:6]]
    assert not wrong.any(), f"operands, C, interpreter: {shown}"


def is_close(op: str, actual: Array, expected: Array) -> Array:
    """Within 4 units in the last place; the interpreter's own lgamma, digamma and erfinv are good to fewer digits."""
    eps = np.finfo(expected.dtype)
    places, offset = (64, 8 * eps.eps) if op in ("digamma", "erfinv", "lgamma") else (4, 2 * eps.smallest_subnormal)
    with np.errstate(all="ignore"):
        error = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
        return np.asarray(error <= places * eps.eps * np.abs(expected.astype(np.float64)) + offset)


def test_unsupported_dtype_is_said() -> None:
    f8 = DTYPES["f8e5m2"]
    kernel = Kernel("k", (Axis("i", 4),), (Buffer("x", f8, 4, "in"),), (Load("v0", f8, "x", symbol("i")),))
    with pytest.raises(CodegenError, match="C kernels cannot hold f8e5m2"):
        emit_kernel(kernel)


def test_vector_mathematics_is_called(library: CKernels, tmp_path: Path) -> None:
    """libmvec's eight-lane functions are in the binary, not the scalar ones alone."""
    import subprocess

    shown = subprocess.run(["nm", "-D", library.library._name], capture_output=True, text=True, timeout=30).stdout
    names = [name for name in ("exp", "log", "tanh", "erf", "pow", "sin") if f"v_{name}f" not in shown]
    if "_ZGV" not in shown:
        pytest.skip("this C library has no libmvec")
    assert not names
