"""Makes Triton's interpreter (TRITON_INTERPRET=1) exact and quick enough to be tested against an oracle.

The interpreter of triton 3.6 and 3.7 runs kernels block by block with numpy on CPU tensors, but it

- rounds float32 to bfloat16 by truncation: here to nearest even, as hardware does;
- gives the results of comparisons the dtype of their operands, which shows when a scalar one is spread: here int1;
- multiplies matrices of bfloat16 by their bits, and knows no tf32: here by their values, rounded as the chip does;
- has no libdevice: here the functions that generated code uses are torch's own on the block;
- lets `tl.maximum` with `PropagateNan.NONE` propagate NaN: here the number wins;
- reduces and scans element by element, in Python, for combine functions it does not know: here the combine functions
  that generated code defines (by name: _maximum, _minimum, _product, _argmax, _argmin) become numpy reductions;
- checks every integer addition for overflow, which generated code may do as torch does.

`install()` changes the interpreter's objects once per process, and does nothing to compiled execution.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

_lock = threading.Lock()
_libdevice: SimpleNamespace | None = None

_TORCH_NAMES: dict[str, str] = {"rint": "round", "pow": "pow", "fmod": "fmod", "fast_dividef": "div"}
_FUNCTIONS = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
    "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "erfinv", "lgamma", "atan2", "hypot", "nextafter",
    "copysign", "fmod", "pow", "trunc", "rint", "sqrt", "rsqrt", "fast_dividef",
)  # fmt: skip


def install() -> SimpleNamespace:
    """Amend the interpreter, and give the `libdevice` that kernels see under it."""
    global _libdevice
    with _lock:
        if _libdevice is None:
            from triton.runtime import interpreter

            _amend_builder(interpreter)
            _amend_reductions(interpreter)
            _libdevice = SimpleNamespace(**{name: _elementwise(interpreter, name) for name in _FUNCTIONS})
        return _libdevice


def _elementwise(interpreter: Any, name: str) -> Callable[..., Any]:
    function: Callable[..., torch.Tensor] = getattr(torch, _TORCH_NAMES.get(name, name))

    def call(*args: Any) -> Any:
        tensors = [interpreter.interpreter_semantic.to_tensor(arg) for arg in args]
        blocks = [torch.from_numpy(part.copy()) for part in np.broadcast_arrays(*(t.handle.data for t in tensors))]
        widest = max(tensors, key=lambda t: len(t.shape))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = function(*blocks).numpy()
        return interpreter.tl.tensor(interpreter.TensorHandle(data, widest.dtype.scalar), _block_type(widest, data))

    return call


def _block_type(tensor: Any, data: np.ndarray[Any, Any]) -> Any:
    import triton.language as tl

    return tl.block_type(tensor.dtype.scalar, list(data.shape)) if tensor.type.is_block() else tensor.type


def _amend_builder(interpreter: Any) -> None:
    builder, tl = interpreter.interpreter_builder, interpreter.tl
    builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    plain_cast = builder.cast_impl

    def cast(source: Any, target: Any) -> Any:
        source_type, target_type = source.dtype.scalar, target.scalar
        if source_type == tl.float32 and target_type == tl.bfloat16:
            return interpreter.TensorHandle(_round_to_bfloat16(source.data), tl.bfloat16)
        if source_type == tl.bfloat16 and target_type == tl.float32:
            bits = source.data.astype(np.uint32) << np.uint32(16)
            return interpreter.TensorHandle(bits.view(np.float32), tl.float32)
        with np.errstate(all="ignore"):
            return plain_cast(source, target)

    builder.cast_impl = cast
    for name in dir(builder):
        if name.startswith(("create_icmp", "create_fcmp")):
            setattr(builder, name, _comparison(interpreter, getattr(builder, name)))
    builder.create_dot = _dot(interpreter)
    builder.create_maxnumf = lambda left, right: builder.binary_op(left, right, np.fmax)
    builder.create_minnumf = lambda left, right: builder.binary_op(left, right, np.fmin)


def _dot(interpreter: Any) -> Callable[..., Any]:
    tl = interpreter.tl
    float8 = {tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}

    def operand(handle: Any, rounds: bool) -> np.ndarray[Any, Any]:
        if handle.dtype.scalar == tl.bfloat16:
            return (handle.data.astype(np.uint32) << np.uint32(16)).view(np.float32)
        if handle.dtype.scalar in float8:
            bits = torch.from_numpy(np.ascontiguousarray(handle.data))
            return bits.view(float8[handle.dtype.scalar]).float().numpy()
        return _round_to_tf32(handle.data) if rounds and handle.data.dtype == np.float32 else handle.data

    def dot(left: Any, right: Any, acc: Any, precision: Any, _: Any) -> Any:
        rounds = precision == interpreter._ir.INPUT_PRECISION.TF32
        a, b = (operand(handle, rounds) for handle in (left, right))
        product = np.matmul(a, b, dtype=acc.data.dtype)
        return interpreter.TensorHandle(product + acc.data, acc.dtype.scalar)

    return dot


def _round_to_tf32(data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    bits = np.ascontiguousarray(data).view(np.uint32)
    rounded = (bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(data), rounded.view(np.float32), data)


def _comparison(interpreter: Any, compare: Callable[..., Any]) -> Callable[..., Any]:
    return lambda left, right: interpreter.TensorHandle(compare(left, right).data, interpreter.tl.int1)


def _round_to_bfloat16(data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    # to nearest even on the upper 16 bits; NaN stays NaN
    bits = np.ascontiguousarray(data).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(data), np.uint32(0x7FC0), rounded).astype(np.uint16)


def _amend_reductions(interpreter: Any) -> None:
    reduce_slowly, scan_slowly = interpreter.ReduceOps.apply_impl, interpreter.ScanOps.apply_impl

    def reduce(self: Any, input: Any) -> Any:
        name = getattr(getattr(self.combine_fn, "fn", None), "__name__", "")
        if self.axis is None or name not in _REDUCTIONS:
            return reduce_slowly(self, input)
        with np.errstate(all="ignore"):
            results = _REDUCTIONS[name]([part.handle.data for part in input], self.axis)
        if not self.keep_dims:
            results = [np.squeeze(result, self.axis) for result in results]
        return [self.to_tensor(_unwrap(result), part.dtype) for result, part in zip(results, input)]

    def scan(self: Any, input: Any) -> Any:
        name = getattr(getattr(self.combine_fn, "fn", None), "__name__", "")
        if name not in _SCANS or self.reverse:
            return scan_slowly(self, input)
        with np.errstate(all="ignore"):
            data = _SCANS[name].accumulate(input[0].handle.data, axis=self.axis, dtype=input[0].handle.data.dtype)
        return [self.to_tensor(data, input[0].dtype)]

    interpreter.ReduceOps.apply_impl = reduce
    interpreter.ScanOps.apply_impl = scan


def _unwrap(result: np.ndarray[Any, Any]) -> Any:
    return result if result.shape else result[()]


Arrays = list[np.ndarray[Any, Any]]


def _by(ufunc: np.ufunc) -> Callable[[Arrays, int], Arrays]:
    return lambda parts, axis: [ufunc.reduce(parts[0], axis=axis, keepdims=True, dtype=parts[0].dtype)]


def _best(ufunc: np.ufunc) -> Callable[[Arrays, int], Arrays]:
    def reduce(parts: Arrays, axis: int) -> Arrays:
        values, indices = parts
        best = ufunc.reduce(values, axis=axis, keepdims=True)
        wins = (values == best) | ((values != values) & (best != best))
        last = np.iinfo(indices.dtype).max
        return [best, np.where(wins, indices, last).min(axis=axis, keepdims=True)]

    return reduce


_REDUCTIONS: dict[str, Callable[[Arrays, int], Arrays]] = {
    "_maximum": _by(np.maximum),
    "_minimum": _by(np.minimum),
    "_product": _by(np.multiply),
    "_argmax": _best(np.maximum),
    "_argmin": _best(np.minimum),
}
_SCANS: dict[str, np.ufunc] = {"_maximum": np.maximum, "_minimum": np.minimum, "_product": np.multiply}
