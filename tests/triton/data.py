"""Input data for kernels, and the comparison with the oracle."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from graphc.ir.dims import evaluate
from graphc.ir.types import DType
from graphc.loopir.interpreter import run
from graphc.loopir.kernel import Buffer, Kernel
from graphc.loopir.numpy_ops import NUMPY_DTYPES, bf16_to_float, float_to_bf16

Arrays = dict[str, np.ndarray]

# relative error allowed against the oracle, which rounds once: a few units in the last place of the compute dtype
_RTOL = {"f64": 1e-13, "f32": 3e-6, "f16": 1e-3, "bf16": 8e-3}


def make_arrays(kernel: Kernel, seed: int = 0, special: bool = False) -> Arrays:
    """Random contents for every buffer; with `special`, some NaN, inf and -0.0 among the floats."""
    rng = np.random.default_rng(seed)
    return {b.name: _array(b, rng, special) for b in kernel.buffers}


def _array(buffer: Buffer, rng: np.random.Generator, special: bool) -> np.ndarray:
    size, dtype = evaluate(buffer.size, {}), buffer.dtype
    if buffer.access == "out":
        return np.zeros(size, NUMPY_DTYPES[dtype.name])
    if dtype.kind == "bool":
        return rng.random(size) < 0.5
    if dtype.is_float:
        values = rng.standard_normal(size)
        if special and size:
            for number in (np.nan, np.inf, -np.inf, -0.0, 0.0):
                values[rng.integers(0, size, max(1, size // 40))] = number
        return (
            float_to_bf16(values.astype(np.float32))
            if dtype.name == "bf16"
            else values.astype(NUMPY_DTYPES[dtype.name])
        )
    # every table of the cases has at least five rows
    low, high = (0, 5) if buffer.name == "index" else (0, 9) if dtype.kind == "uint" else (-9, 10)
    return rng.integers(low, high, size).astype(NUMPY_DTYPES[dtype.name])


def expected(kernel: Kernel, arrays: Arrays) -> Arrays:
    """What the oracle makes of them."""
    copies = {name: array.copy() for name, array in arrays.items()}
    run(kernel, copies)
    return copies


def as_tensor(array: np.ndarray, dtype: DType, device: str = "cpu") -> torch.Tensor:
    tensor = torch.from_numpy(array.copy())
    if dtype.name == "bf16":
        tensor = tensor.view(torch.bfloat16)
    return tensor.to(device)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.cpu()
    return (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


def assert_same(
    kernel: Kernel, actual: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], slack: float = 1
) -> None:
    """Integers and bools exactly, floats to a few units in the last place of the largest value involved."""
    for buffer in kernel.buffers:
        if buffer.access != "in":
            _assert_buffer(buffer, actual[buffer.name], wanted[buffer.name], slack)


def _assert_buffer(buffer: Buffer, actual: np.ndarray, wanted: np.ndarray, slack: float) -> None:
    if buffer.gap is not None:
        actual, wanted = (x.reshape(-1, buffer.gap.pitch)[:, : buffer.gap.row] for x in (actual, wanted))
    if not buffer.dtype.is_float:
        np.testing.assert_array_equal(actual, wanted, err_msg=buffer.name)
        return
    if buffer.dtype.name == "bf16":
        actual, wanted = bf16_to_float(actual), bf16_to_float(wanted)
    a, w = actual.astype(np.float64), wanted.astype(np.float64)
    rtol = _RTOL[buffer.dtype.name] * slack
    finite = w[np.isfinite(w)]
    atol = rtol * 0.1 * float(np.abs(finite).max()) if finite.size else 0.0
    np.testing.assert_allclose(a, w, rtol=rtol, atol=atol, equal_nan=True, err_msg=buffer.name)
    zero = (w == 0) & (a == 0)
    np.testing.assert_array_equal(np.signbit(a[zero]), np.signbit(w[zero]), err_msg=f"{buffer.name}: sign of zero")
