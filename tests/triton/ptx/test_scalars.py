"""Machine code of every scalar operator, on values where arithmetic is special, against the loop-IR oracle.

Conversions of floats to integers that cannot hold them are left out: the ISA gives the nearest integer of 32 or 64
bits, x86 and so eager on a CPU the lowest, and torch promises neither.
"""

from __future__ import annotations

import numpy as np
import pytest

from graphc.codegen.triton.emit import emit_kernel
from graphc.ir.types import DType, bf16, bool_, f16, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.kernel import Axis, Kernel
from graphc.loopir.numpy_ops import NUMPY_DTYPES, bf16_to_float, float_to_bf16
from graphc.loopir.scalar import SCALAR_OPS
from tests.triton.cases import X, given, out, scalar_ops
from tests.triton.data import Arrays, as_array, as_tensor, expected

pytest.importorskip("triton")
from tests.triton.ptx.kernels import PtxKernel

FLOATS = (
    0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, -7.25, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-40,
    2.0**-126, 3.4028235e38, -3.4028235e38, 1e10, -1e10, np.pi, 88.8, -104.5, 2.0**31, -(2.0**31), 2.0**63, 0.1, 1e-5,
    1e-20, 170.6, 20.0,
)  # fmt: skip
ROUNDED = (
    127.9, 128.5, -128.9, 255.5, 256.0, 32767.5, 65504.0, 65520.0, 65536.0, 2147483520.0, 4294967040.0, 4294967296.0,
    9.2e18, -1.5, 1.00390625, 1.001953125, 5.9e-8, 1e-6, 2.0**40 + 1.5,
)  # fmt: skip
"""Where conversions round, or end."""
INTEGERS = (
    0, 1, -1, 2, -2, 3, 5, 7, -7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 1000003, -1000003, 46341,
)  # fmt: skip
ULPS = 4
"""Of functions, from libdevice. Source: CUDA Math API, accuracy of single and double precision functions."""
SUMS = 16
"""Units of the largest term that sums of large terms may be off by."""
_SIGNLESS = ("maximum", "minimum", "fmax", "fmin")
"""Of two zeros either may be the larger one."""
_SUMS = ("lgamma", "digamma")
DTYPES = (f32, f64, i8, i16, i32, i64, u8, u16, u32, u64, bool_)
PER_KERNEL = 16


def _special(dtype: DType) -> np.ndarray:
    held = NUMPY_DTYPES[dtype.name]
    if dtype.kind == "bool":
        return np.array([False, True])
    if dtype.is_float:
        values = np.array(FLOATS + ROUNDED)
        with np.errstate(over="ignore"):
            return float_to_bf16(values.astype(np.float32)) if dtype == bf16 else values.astype(held)
    info = np.iinfo(held)
    edges = {info.min, info.max, info.min + 1, info.max - 1, info.max // 2, info.max // 3}
    return np.array(sorted({x for x in {*INTEGERS, *edges} if info.min <= x <= info.max}), dtype=held)


def _run(kernel: Kernel, arrays: Arrays) -> Arrays:
    tensors = {b.name: as_tensor(arrays[b.name], b.dtype) for b in kernel.buffers}
    PtxKernel(emit_kernel(kernel))(list(tensors.values()))
    return {name: as_array(tensor) for name, tensor in tensors.items()}


def _parts() -> dict[str, tuple[DType, tuple[str, ...]]]:
    found = {}
    for dtype in DTYPES:
        ops = [op for op, rule in SCALAR_OPS.items() if dtype.kind in rule.kinds and rule.result != "given"]
        for first in range(0, len(ops), PER_KERNEL):
            found[f"{dtype.name}_{first // PER_KERNEL}"] = dtype, tuple(ops[first : first + PER_KERNEL])
    return found


PARTS = _parts()


@pytest.mark.parametrize("name", PARTS)
def test_operators(name: str) -> None:
    dtype, ops = PARTS[name]
    values = _special(dtype)
    left, right = (part.ravel() for part in np.meshgrid(values, values))
    kernel = scalar_ops(ops, len(left), dtype)
    arrays = {b.name: np.zeros(len(left), NUMPY_DTYPES[b.dtype.name]) for b in kernel.buffers}
    arrays |= {"x0": left, "x1": right, "c": np.arange(len(left)) % 3 == 0}
    found, wanted = _run(kernel, arrays), expected(kernel, arrays)
    wrong = []
    for op in ops:
        is_wrong = _differs(op, found[f"y_{op}"], wanted[f"y_{op}"])
        wrong += [f"{op}({left[at]}, {right[at]}) = {found[f'y_{op}'][at]}, not {wanted[f'y_{op}'][at]}"
                  for at in np.flatnonzero(is_wrong)[:5]]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def _differs(op: str, found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if found.dtype.kind != "f":
        return found != wanted
    missing, equal = np.isnan(found) & np.isnan(wanted), found == wanted
    with np.errstate(all="ignore"):
        room = SUMS * np.spacing(np.maximum(np.abs(wanted), 1)) if op in _SUMS else ULPS * np.spacing(np.abs(wanted))
        near = np.abs(found - wanted) <= room
    signs = (wanted == 0) & (np.signbit(found) != np.signbit(wanted)) & (op not in _SIGNLESS)
    return ~(missing | equal | near) | signs & ~missing


def test_digamma_next_to_its_poles() -> None:
    x = (-np.arange(1, 40) + 2.0 ** -np.arange(9, 17)[:, None]).astype(np.float32).reshape(-1)
    kernel = scalar_ops(("digamma",), len(x), f32)
    arrays = {b.name: np.zeros(len(x), NUMPY_DTYPES[b.dtype.name]) for b in kernel.buffers} | {"x0": x}
    found, wanted = _run(kernel, arrays)["y_digamma"], expected(kernel, arrays)["y_digamma"]
    assert np.abs(wanted).min() > 500
    np.testing.assert_allclose(found, wanted, rtol=2e-6)


CAST = (f64, f32, f16, bf16, i8, i16, i32, i64, u8, u16, u32, u64, bool_)


@pytest.mark.parametrize("source", CAST, ids=str)
def test_conversions(source: DType) -> None:
    values = _special(source)
    b = KernelBuilder((Axis("i", len(values)),))
    x = b.load("x", source, X)
    buffers = [given("x", source, len(values))]
    for target in CAST:
        b.store(f"y_{target.name}", X, b.compute("cast", x, dtype=target))
        buffers.append(out(f"y_{target.name}", target, len(values)))
    kernel = b.finish(f"cast_{source.name}", tuple(buffers))
    arrays = {b.name: np.zeros(len(values), NUMPY_DTYPES[b.dtype.name]) for b in kernel.buffers} | {"x": values}
    found, wanted = _run(kernel, arrays), expected(kernel, arrays)
    numbers = bf16_to_float(values) if source == bf16 else values
    for target in CAST:
        chosen = _holds(numbers, source, target)
        mine, theirs = found[f"y_{target.name}"][chosen], wanted[f"y_{target.name}"][chosen]
        if target == bf16:
            mine, theirs = bf16_to_float(mine), bf16_to_float(theirs)
        np.testing.assert_array_equal(mine, theirs, err_msg=f"{source} to {target}")
        if target.is_float:
            there = ~np.isnan(theirs)
            np.testing.assert_array_equal(np.signbit(mine[there]), np.signbit(theirs[there]))


def _holds(values: np.ndarray, source: DType, target: DType) -> np.ndarray:
    """Which values fit the integer that a conversion goes through: of 32 bits for i32 and narrower ones, else of 64."""
    if not source.is_float or not target.is_integral:
        return np.ones(len(values), bool)
    wide = np.trunc(values.astype(np.float64))
    if target == u64:
        return (wide >= 0) & (wide < 2.0**64)
    bits = 31 if target.itemsize < 4 or target == i32 else 63
    return (wide >= -(2.0**bits)) & (wide < 2.0**bits)
