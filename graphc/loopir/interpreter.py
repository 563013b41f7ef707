"""The oracle: runs a kernel in numpy, one statement at a time, each value an array over all axes of the kernel.

A value has size 1 along every axis it does not depend on, so nothing is computed twice. Sums and products of floats are
accumulated in float64 and rounded once. Every access is checked against the buffer's size; masked-out elements are not
touched. It is written for plainness: generated code is compared with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from graphc.errors import GraphcError
from graphc.ir.dims import Dim, Expr, FloorDiv, Sym, evaluate
from graphc.ir.types import DType, f64
from graphc.loopir.kernel import Compute, Const, Contract, Define, Index, Kernel, Load, Reduce, Scan, Store
from graphc.loopir.numpy_ops import NUMPY_DTYPES, apply, cast, constant, numpy_dtype

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class KernelBoundsError(GraphcError, IndexError):
    """A kernel accessed a buffer outside its size."""


def run(kernel: Kernel, buffers: Mapping[str, Array], sizes: Mapping[str, int] | None = None) -> None:
    """Run a kernel on flat numpy arrays; `out` and `inout` arrays are written in place.

    Args:
        kernel: a verified kernel.
        buffers: one flat array per buffer name, of the numpy dtype in `NUMPY_DTYPES` (bf16 as uint16 bits), with at
            least `size` elements.
        sizes: values of symbolic dims.

    Raises:
        KernelBoundsError: an access outside a buffer, or an array smaller than its buffer.
        KeyError: a buffer or the value of a symbol is missing.

    Numerics: f32 sums and products are accumulated in float64, in order along a scan.
    """
    with np.errstate(all="ignore"):
        _Interpreter(kernel, buffers, sizes or {}).run()


class _Interpreter:
    def __init__(self, kernel: Kernel, buffers: Mapping[str, Array], sizes: Mapping[str, int]) -> None:
        self.kernel, self.buffers, self.sizes = kernel, buffers, sizes
        self.values: dict[str, Array] = {}
        self.symbols: dict[str, Array] = {name: np.asarray(value, np.int64) for name, value in sizes.items()}
        self.dtypes = {s.id: s.dtype for s in kernel.defines}
        rank = len(kernel.axes)
        self.extents = tuple(evaluate(axis.extent, sizes) for axis in kernel.axes)
        for number, axis in enumerate(kernel.axes):
            shape = [1] * rank
            shape[number] = self.extents[number]
            self.symbols[axis.name] = np.arange(self.extents[number], dtype=np.int64).reshape(shape)
        self.first_row = len(kernel.parallel_axes)
        for buffer in kernel.buffers:
            array, size = buffers[buffer.name], evaluate(buffer.size, sizes)
            if array.ndim != 1 or array.dtype != numpy_dtype(buffer.dtype):
                raise TypeError(
                    f"buffer {buffer.name}: {array.dtype} array of rank {array.ndim}, not flat {buffer.dtype}"
                )
            if array.size < size:
                raise KernelBoundsError(f"buffer {buffer.name} has {array.size} elements, the kernel says {size}")

    def run(self) -> None:
        for s in self.kernel.body:
            if isinstance(s, Store):
                self.store(s)
                continue
            value = self.define(s)
            self.values[s.id] = value
            if s.dtype.kind in ("int", "uint"):
                self.symbols[s.id] = value.astype(np.int64)

    def define(self, s: Define) -> Array:
        if isinstance(s, Load):
            return self.load(s)
        if isinstance(s, Const):
            return self.full(constant(s.value, s.dtype))
        if isinstance(s, Index):
            return self.full(self.index(s.expr))
        if isinstance(s, Compute):
            args = [self.values[name] for name in s.args]
            return apply(s.op, args, self.dtypes[s.args[-1]], s.dtype)
        if isinstance(s, Reduce):
            return self.reduce(s)
        return self.contract(s) if isinstance(s, Contract) else self.scan(s)

    def full(self, value: Array) -> Array:
        """`value` with one dimension per axis."""
        return value.reshape(value.shape or (1,) * len(self.extents))

    def index(self, expr: Dim) -> Array:
        if isinstance(expr, int):
            return np.asarray(expr, np.int64)
        return self._polynomial(expr)

    def _polynomial(self, expr: Expr) -> Array:
        total = np.asarray(0, np.int64)
        for monomial, coefficient in expr.terms:
            product = np.asarray(coefficient, np.int64)
            for atom in monomial:
                if isinstance(atom, Sym):
                    product = product * self.symbols[atom.name]
                    continue
                numerator, denominator = self.index(atom.numerator), self.index(atom.denominator)
                divide = np.floor_divide if isinstance(atom, FloorDiv) else np.remainder
                product = product * divide(numerator, denominator)
            total = total + product
        return total

    def addresses(self, buffer: str, index: Dim, mask: Array | None) -> tuple[Array, Array | None]:
        """Index array and mask broadcast together, checked against the buffer's size."""
        found = self.full(self.index(index))
        checked: Array = found
        if mask is not None:
            found, mask = np.broadcast_arrays(found, mask)
            checked = found[mask]
        size = evaluate(next(b.size for b in self.kernel.buffers if b.name == buffer), self.sizes)
        if 0 in self.extents:
            return found, mask
        if checked.size and (int(checked.min()) < 0 or int(checked.max()) >= size):
            raise KernelBoundsError(
                f"kernel {self.kernel.name}: index {index} of {buffer} reaches "
                f"{int(checked.min())} .. {int(checked.max())}, size {size}"
            )
        return found, mask

    def load(self, s: Load) -> Array:
        array = self.buffers[s.buffer]
        index, mask = self.addresses(s.buffer, s.index, None if s.mask is None else self.values[s.mask])
        if mask is not None:
            result = np.full(index.shape, constant(s.other, s.dtype), array.dtype)
            result[mask] = array[index[mask]]
        elif 0 in self.extents and array.size == 0:
            result = np.zeros(index.shape, array.dtype)
        else:
            result = array[index] if 0 not in self.extents else array[np.clip(index, 0, array.size - 1)]
        return result != 0 if s.dtype.kind == "bool" else result

    def store(self, s: Store) -> None:
        array = self.buffers[s.buffer]
        index, mask = self.addresses(s.buffer, s.index, None if s.mask is None else self.values[s.mask])
        value = self.values[s.value]
        if s.mode != "set" and mask is None:
            mask = np.ones((1,) * len(self.extents), np.bool_)
        parts = [index, value] if mask is None else [index, value, mask]
        parts = list(np.broadcast_arrays(*parts))
        if 0 in self.extents[: self.first_row] or parts[0].size == 0:
            return
        if mask is not None:
            parts = [part[parts[2]] for part in parts[:2]]
        where, what = parts[0].reshape(-1), parts[1].reshape(-1)
        if s.mode == "add":
            np.add.at(array, where, what)
        elif s.mode == "max":
            np.maximum.at(array, where, what)
        else:
            array[where] = what

    def rows_broadcast(self, value: Array) -> Array:
        """`value` spread over all row axes."""
        return self.broadcast(value, tuple(range(self.first_row, len(self.extents))))

    def broadcast(self, value: Array, axes: tuple[int, ...]) -> Array:
        """`value` spread over some axes."""
        shape = [self.extents[axis] if axis in axes else size for axis, size in enumerate(value.shape)]
        return np.broadcast_to(value, shape)

    def summed(self, s: Reduce | Contract) -> tuple[int, ...]:
        """Numbers of the axes that a statement reduces over."""
        rows = enumerate(self.kernel.row_axes, self.first_row)
        return tuple(number for number, axis in rows if not s.over or axis.name in s.over)

    def reduce(self, s: Reduce) -> Array:
        axes = self.summed(s)
        value = self.broadcast(self.values[s.arg], axes)
        kept = [1 if axis in axes else size for axis, size in enumerate(value.shape)]
        last = np.moveaxis(value, axes, range(-len(axes), 0))
        count = int(np.prod([self.extents[axis] for axis in axes], dtype=np.int64))
        flat = last.reshape(*last.shape[: last.ndim - len(axes)], count)
        return _reduce(s.op, flat, s.dtype).reshape(kept)

    def contract(self, s: Contract) -> Array:
        """Sums of floats in float64, rounded once."""
        letters = "abcdefghijklmnopqrstuvwxyz"
        rank, wide = len(self.extents), f64 if s.dtype.is_float else s.dtype
        parts: list[Array] = []
        names: list[str] = []
        for name in (s.left, s.right):
            value = self.broadcast(cast(self.values[name], self.dtypes[name], wide), self.summed(s))
            along = [axis for axis in range(rank) if value.shape[axis] != 1]
            parts.append(value.reshape([value.shape[axis] for axis in along]))
            names.append("".join(letters[axis] for axis in along))
        gone = {letters[axis] for axis in self.summed(s)}
        kept = sorted({letter for text in names for letter in text} - gone)
        total = np.einsum(f"{names[0]},{names[1]}->{''.join(kept)}", *parts, optimize=True)
        shape = [self.extents[axis] if letters[axis] in kept else 1 for axis in range(rank)]
        return np.asarray(total).reshape(shape).astype(NUMPY_DTYPES[s.dtype.name])

    def scan(self, s: Scan) -> Array:
        value = self.rows_broadcast(self.values[s.arg])
        if s.op in ("max", "min"):
            extremum = np.maximum if s.op == "max" else np.minimum
            return np.asarray(extremum.accumulate(value, axis=-1))
        wide = value.astype(np.float64) if s.dtype.is_float else value
        total = np.cumsum if s.op == "sum" else np.cumprod
        return np.asarray(total(wide, axis=-1, dtype=wide.dtype).astype(value.dtype))


def _reduce(op: str, value: Array, dtype: DType) -> Array:
    """Reduction along the last axis."""
    if op in ("argmax", "argmin"):
        if value.shape[-1] == 0:
            return np.zeros(value.shape[:-1], np.int64)
        return np.asarray((np.argmax if op == "argmax" else np.argmin)(value, axis=-1).astype(np.int64))
    if op in ("any", "all"):
        return np.asarray((np.any if op == "any" else np.all)(value, axis=-1))
    if op in ("max", "min"):
        function = np.max if op == "max" else np.min
        return np.asarray(function(value, axis=-1, initial=reduce_identity(op, dtype)))
    wide = np.float64 if dtype.is_float else value.dtype
    total = (np.sum if op == "sum" else np.prod)(value, axis=-1, dtype=wide)
    return np.asarray(total).astype(value.dtype)


def reduce_identity(op: str, dtype: DType) -> bool | int | float:
    """What a reduction over nothing gives."""
    if op in ("sum", "prod"):
        neutral = 0 if op == "sum" else 1
        return float(neutral) if dtype.is_float else neutral
    if op in ("any", "all"):
        return op == "all"
    if op in ("argmax", "argmin"):
        return 0
    is_max = op == "max"
    if dtype.is_float:
        return float("-inf") if is_max else float("inf")
    if dtype.kind == "bool":
        return not is_max
    info = np.iinfo(NUMPY_DTYPES[dtype.name])
    return int(info.min if is_max else info.max)
