"""Import rules of operators that make tensors, and of copies and conversions of whole tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from graphc.frontend.aten import layout, promotion
from graphc.frontend.aten.elsewhere import made_on, moved
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.operands import SUPPORTED, fitting, supported
from graphc.frontend.aten.registry import CONTIGUOUS, Decline, rule
from graphc.ir.graph import Operand, Value
from graphc.ir.sizes import depends_on_sizes
from graphc.ir.types import DType, bool_, i64


def _options(imp: Importer, options: dict[str, Any], like: Value | None = None) -> tuple[DType, str]:
    """The dtype and device a factory call asks for with `dtype=`, `layout=`, `device=`, `pin_memory=`.

    Raises:
        Decline: pinned memory, a layout other than strided, the meta device, a dtype kernels do not compute with.
    """
    if options.get("pin_memory") or options.get("layout") not in (None, torch.strided):
        raise Decline("pinned or not strided")
    dtype = imp.dtype(options.get("dtype"), like.dtype if like is not None else None)
    device = imp.device(options.get("device"), like)
    if device == "meta" or dtype.name not in SUPPORTED:
        raise Decline("the meta device, or a dtype kernels do not compute with")
    return dtype, device


def _filled(imp: Importer, shape: Sequence[int], value: Operand, dtype: DType, device: str) -> Value:
    if not isinstance(value, Value):
        if isinstance(value, float) and dtype.is_integral:
            if not math.isfinite(value):
                raise Decline("eager raises")
            value = bool(value) if dtype == bool_ else int(value)
        value = fitting(value, dtype)  # type: ignore[arg-type]  # complex is declined there
    return imp.full(tuple(shape), value, dtype, device)


def _formatted(imp: Importer, value: Value, memory_format: torch.memory_format | None) -> Value:
    """State the strides of a fresh tensor made with `memory_format=` from sizes alone."""
    if memory_format in (torch.channels_last, torch.channels_last_3d):
        return imp.with_strides(value, layout.channels_last(value.shape))  # type: ignore[arg-type]  # static
    return value


# from sizes


@rule("aten.zeros.default", "aten._efficientzerotensor.default", layout=CONTIGUOUS)
def zeros(imp: Importer, size: Sequence[int], **options: Any) -> Value:
    return _filled(imp, size, 0, *_options(imp, options))


@rule("aten.ones.default", layout=CONTIGUOUS)
def ones(imp: Importer, size: Sequence[int], **options: Any) -> Value:
    return _filled(imp, size, 1, *_options(imp, options))


@rule("aten.full.default", layout=CONTIGUOUS)
def full(imp: Importer, size: Sequence[int], fill_value: Operand, **options: Any) -> Value:
    if options.get("dtype") is None:
        options = {**options, "dtype": promotion.to_torch(promotion.common_dtype([fill_value]))}
    return _filled(imp, size, fill_value, *_options(imp, options))


@rule("aten.empty.memory_format", layout=CONTIGUOUS)
def empty(
    imp: Importer, size: Sequence[int], memory_format: torch.memory_format | None = None, **options: Any
) -> Value:
    return _formatted(imp, _filled(imp, size, 0, *_options(imp, options)), memory_format)


@rule("aten.empty_strided.default")
def empty_strided(imp: Importer, size: Sequence[int], stride: Sequence[int], **options: Any) -> Value:
    if not layout.is_dense(tuple(size), tuple(stride)):
        raise Decline("memory with gaps or overlaps")
    return imp.with_strides(_filled(imp, size, 0, *_options(imp, options)), stride)


@rule("aten.empty_permuted.default")
def empty_permuted(imp: Importer, size: Sequence[int], physical_layout: Sequence[int], **options: Any) -> Value:
    if sorted(physical_layout) != list(range(len(size))):
        raise Decline("eager raises")
    strides, step = [0] * len(size), 1
    for dim in reversed(physical_layout):
        strides[dim] = step
        step *= max(size[dim], 1)
    return imp.with_strides(_filled(imp, size, 0, *_options(imp, options)), strides)


@rule("aten.scalar_tensor.default", layout=CONTIGUOUS)
def scalar_tensor(imp: Importer, s: Operand, **options: Any) -> Value:
    return _filled(imp, (), s, *_options(imp, options))


@rule("aten.eye.default", layout=CONTIGUOUS)
def eye(imp: Importer, n: int, **options: Any) -> Value:
    return eye_m(imp, n, n, **options)


@rule("aten.eye.m", layout=CONTIGUOUS)
def eye_m(imp: Importer, n: int, m: int, **options: Any) -> Value:
    dtype, device = _options(imp, options)
    one = imp.b.op("eq", *_row_and_column(imp, (n, m), device))
    return one if dtype == bool_ else imp.b.op("cast", one, dtype=dtype)


def _count(imp: Importer, size: int, device: str) -> Value:
    return imp.b.op("iota", size=size, start=0, step=1, dtype=i64, device=device)


def _row_and_column(imp: Importer, shape: Sequence[int], device: str) -> tuple[Value, Value]:
    """Numbers of the row, (n, 1), and of the column, (m), of a matrix (..., n, m)."""
    rows = imp.reshape(_count(imp, shape[-2], device), (shape[-2], 1))
    return rows, _count(imp, shape[-1], device)


# counting


@rule("aten.arange.default", layout=CONTIGUOUS)
def arange(imp: Importer, end: Operand, **options: Any) -> Value:
    return arange_step(imp, 0, end, 1, **options)


@rule("aten.arange.start", layout=CONTIGUOUS)
def arange_start(imp: Importer, start: Operand, end: Operand, **options: Any) -> Value:
    return arange_step(imp, start, end, 1, **options)


@rule("aten.arange.start_step", layout=CONTIGUOUS)
def arange_step(imp: Importer, start: Operand, end: Operand, step: Operand = 1, **options: Any) -> Value:
    numbers = [n for n in (start, end, step) if isinstance(n, int) or (isinstance(n, float) and math.isfinite(n))]
    if len(numbers) != 3:
        raise Decline("a traced number, or one that is not finite")
    if options.get("dtype") is None and not any(isinstance(number, float) for number in numbers):
        options = {**options, "dtype": torch.int64}
    dtype, device = _options(imp, options)
    if dtype == bool_:
        raise Decline("counting in bools")
    # eager counts steps in f64, but for i64
    whole = dtype == i64 or any(map(depends_on_sizes, numbers))
    first, last, width = map(_truncated, numbers) if whole else numbers
    if width == 0 or (last - first) * width < 0:
        raise Decline("eager raises")
    size = -((first - last) // width) if whole else math.ceil((last - first) / width)
    if dtype.is_integral:
        first, width = _truncated(first), _truncated(width)
    return imp.b.op("iota", size=size, start=first, step=width, dtype=dtype, device=device)


def _truncated(number: int | float) -> int:
    return number if depends_on_sizes(number) else int(number)  # type: ignore[return-value]  # of ints


@rule("aten.linspace.default", layout=CONTIGUOUS)
def linspace(imp: Importer, start: Operand, end: Operand, steps: int, **options: Any) -> Value:
    dtype, device = _options(imp, options)
    numbers = isinstance(start, (int, float)) and isinstance(end, (int, float))
    if not numbers or not dtype.is_float or steps < 0:
        raise Decline("a traced number, integers, or eager raises")
    if steps <= 1:
        return _filled(imp, (steps,), start, dtype, device)
    compute = dtype.compute
    position = imp.b.op("iota", size=steps, start=0, step=1, dtype=compute, device=device)
    width = (float(end) - float(start)) / (steps - 1)  # type: ignore[arg-type]  # numbers, as tested above
    # as eager, from the nearer end
    low = imp.b.op("add", imp.b.op("mul", position, width), float(start))  # type: ignore[arg-type]  # as above
    left = imp.b.op("sub", float(steps - 1), position)
    high = imp.b.op("sub", float(end), imp.b.op("mul", left, width))  # type: ignore[arg-type]  # as above
    found = imp.b.op("where", imp.b.op("lt", position, float(steps // 2)), low, high)
    return found if dtype == compute else imp.b.op("cast", found, dtype=dtype)


# like another tensor


def _like(imp: Importer, self: Value, value: Operand, options: dict[str, Any]) -> Value:
    memory_format = options.pop("memory_format", None)
    dtype, device = _options(imp, options, self)
    result = _filled(imp, self.shape, value, dtype, device)  # type: ignore[arg-type]  # static
    return imp.with_strides(result, imp.memory_format_strides(self, memory_format))


@rule("aten.zeros_like.default", "aten.empty_like.default")
def zeros_like(imp: Importer, self: Value, **options: Any) -> Value:
    return _like(imp, self, 0, options)


@rule("aten.ones_like.default")
def ones_like(imp: Importer, self: Value, **options: Any) -> Value:
    return _like(imp, self, 1, options)


@rule("aten.full_like.default")
def full_like(imp: Importer, self: Value, fill_value: Operand, **options: Any) -> Value:
    return _like(imp, self, fill_value, options)


@rule("aten.new_zeros.default", "aten.new_empty.default", layout=CONTIGUOUS)
def new_zeros(imp: Importer, self: Value, size: Sequence[int], **options: Any) -> Value:
    return _filled(imp, size, 0, *_options(imp, options, self))


@rule("aten.new_ones.default", layout=CONTIGUOUS)
def new_ones(imp: Importer, self: Value, size: Sequence[int], **options: Any) -> Value:
    return _filled(imp, size, 1, *_options(imp, options, self))


@rule("aten.new_full.default", layout=CONTIGUOUS)
def new_full(imp: Importer, self: Value, size: Sequence[int], fill_value: Operand, **options: Any) -> Value:
    return _filled(imp, size, fill_value, *_options(imp, options, self))


@rule("aten.new_empty_strided.default")
def new_empty_strided(imp: Importer, self: Value, size: Sequence[int], stride: Sequence[int], **options: Any) -> Value:
    dtype, device = _options(imp, options, self)
    if not layout.is_dense(tuple(size), tuple(stride)):
        raise Decline("memory with gaps or overlaps")
    return imp.with_strides(_filled(imp, size, 0, dtype, device), stride)


@rule("aten.fill.Scalar", "aten.fill.Tensor")
def fill(imp: Importer, self: Value, value: Operand) -> Value:
    supported(self)
    if isinstance(value, Value) and not value.type.is_host:
        if value.shape:
            raise Decline("eager raises")
        value = moved(imp, value, self.device)
        filled = imp.expand(imp.tensor(value, self.dtype, self.device), self.shape)  # type: ignore[arg-type]  # static
    else:
        filled = _filled(imp, self.shape, value, self.dtype, self.device)  # type: ignore[arg-type]  # static
    return imp.with_strides(filled, imp.preserved_strides(self))


@rule("aten.zero.default")
def zero(imp: Importer, self: Value) -> Value:
    return fill(imp, self, 0)


# copies and conversions


@rule("aten.clone.default", "aten.lift_fresh_copy.default")
def clone(imp: Importer, self: Value, memory_format: torch.memory_format | None = None) -> Value:
    return imp.with_strides(self, imp.memory_format_strides(self, memory_format))


@rule("aten.contiguous.default")
def contiguous(imp: Importer, self: Value, memory_format: torch.memory_format = torch.contiguous_format) -> Value:
    return imp.with_strides(self, imp.memory_format_strides(self, memory_format))


@rule("aten._to_copy.default")
def to_copy(
    imp: Importer, self: Value, memory_format: torch.memory_format | None = None, non_blocking: bool = False,
    **options: Any,
) -> Value:  # fmt: skip
    dtype, device = _options(imp, options, self)
    supported(self)
    there = self if device == self.device else made_on(imp, self, device)
    if there is None:
        raise Decline("a copy between devices")
    converted = imp.cast(there, dtype)
    assert isinstance(converted, Value)
    return imp.with_strides(converted, imp.memory_format_strides(self, memory_format))


@rule("aten.copy.default")
def copy(imp: Importer, self: Value, src: Value, non_blocking: bool = False) -> Value:
    supported(self, src)
    converted = imp.cast(moved(imp, src, self.device), self.dtype)
    assert isinstance(converted, Value)
    return imp.with_strides(imp.expand(converted, self.shape), imp.preserved_strides(self))  # type: ignore[arg-type]


# triangles


def _triangle(imp: Importer, self: Value, test: str, diagonal: int) -> Value:
    supported(self)
    if self.type.rank < 2:
        raise Decline("eager raises")
    rows, columns = _row_and_column(imp, self.shape, self.device)  # type: ignore[arg-type]  # static
    if diagonal:
        rows = imp.b.op("add", rows, diagonal)
    zero = False if self.dtype == bool_ else 0.0 if self.dtype.is_float else 0
    return imp.b.op("where", imp.b.op(test, columns, rows), self, zero)


@rule("aten.tril.default", layout=CONTIGUOUS)
def tril(imp: Importer, self: Value, diagonal: int = 0) -> Value:
    return _triangle(imp, self, "le", diagonal)


@rule("aten.triu.default", layout=CONTIGUOUS)
def triu(imp: Importer, self: Value, diagonal: int = 0) -> Value:
    return _triangle(imp, self, "ge", diagonal)
