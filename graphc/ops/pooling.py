"""Pooling: composite ops written with slices.

Windows are unrolled: the window element at offset o is one strided slice of the padded input, so pooling is a pointwise
op over a handful of slices. The importer sends windows that are too large for that to the library.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from graphc.errors import InvalidGraphError
from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Builder, Op, Operand, Value
from graphc.ir.sizes import bound, depends_on_sizes
from graphc.ir.types import DType, TensorType, i8, i16, i32, i64
from graphc.ops import composite
from graphc.ops.registry import Kind, OpDef, register

UNROLLED_WINDOW = 16
"""Window elements above which pooling is not written as one slice per element."""


_STEP_LIMITS = ((i8, 1 << 7), (i16, 1 << 15), (i32, 1 << 31), (i64, 1 << 63))


def window_count(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Number of windows along a dim. A last window that would start in the right padding is left out."""
    count = (size + 2 * padding - dilation * (kernel - 1) - 1 + (stride - 1 if ceil_mode else 0)) // stride + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= size + padding else count


def pooled_shape(x: Value, attrs: Mapping[str, Attr]) -> tuple[Dim, ...]:
    """One element per window."""
    spatial = len(attrs["kernel"])
    if x.type.rank not in (spatial + 1, spatial + 2):
        raise InvalidGraphError(f"pooling over {spatial} dims of {x.type}")
    dilation = attrs.get("dilation", (1,) * spatial)
    settings = zip(attrs["kernel"], attrs["stride"], attrs["padding"], dilation, strict=True)
    sizes = [
        window_count(size, k, s, p, d, attrs["ceil_mode"])
        for size, (k, s, p, d) in zip(composite.static(x.shape[-spatial:], "pooling"), settings, strict=True)
    ]
    if any(size < 1 for size in sizes):
        raise InvalidGraphError(f"pooling {x.type} with windows {attrs['kernel']}: the output would be empty")
    return (*x.shape[:-spatial], *sizes)


def _window_slices(b: Builder, x: Value, op: Op, fill: float) -> list[tuple[tuple[int, ...], Value]]:
    """(offset, slice of the padded input) for every element of the window, in row-major order of the offsets."""
    kernel, stride, padding = op.attrs["kernel"], op.attrs["stride"], op.attrs["padding"]
    spatial = len(kernel)
    dilation, lead = op.attrs.get("dilation", (1,) * spatial), x.type.rank - spatial
    spans = [(n - 1) * s + 1 for n, s in zip(op.results[0].shape[lead:], stride, strict=True)]
    high = [
        max(0, d * (k - 1) + span - size - p)
        for d, k, span, size, p in zip(dilation, kernel, spans, x.shape[lead:], padding, strict=True)
    ]
    if any(padding) or any(high):
        x = b.op("pad", x, low=(0,) * lead + tuple(padding), high=(0,) * lead + tuple(high), value=fill)
    found: list[tuple[tuple[int, ...], Value]] = [((), x)]
    for position in range(spatial):
        start_step = [(offset * dilation[position], stride[position]) for offset in range(bound(kernel[position]))]
        found = [
            ((*offsets, start), _slice(b, value, lead + position, start, start + spans[position], step))
            for offsets, value in found
            for start, step in start_step
        ]
    return found


def _slice(b: Builder, x: Value, dim: int, start: int, stop: int, step: int) -> Value:
    if start == 0 and step == 1 and stop == x.shape[dim]:
        return x
    return b.op("slice", x, dim=dim, start=start, stop=stop, step=step)


def _max_pool_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    x = composite.tensor(operands[0], "max_pool")
    if x.dtype.kind in ("bool", "complex"):
        raise InvalidGraphError(f"max_pool takes floats or integers, got {x.type}")
    shape = pooled_shape(x, attrs)
    return [x.type.with_shape(shape), TensorType(i64, shape, x.device)]


def _lowest(dtype: DType) -> float:
    if dtype.is_float:
        return -math.inf
    return 0 if dtype.kind == "uint" else -(1 << (8 * dtype.itemsize - 1))


def _window_starts(b: Builder, op: Op, x: Value) -> tuple[Value, Value]:
    """Flat input position of each window's corner, and of its first element inside the input."""
    kernel, stride, padding, dilation = (op.attrs[name] for name in ("kernel", "stride", "padding", "dilation"))
    spatial, lead = len(kernel), x.type.rank - len(kernel)
    corner: Value | None = None
    first: Value | None = None
    for position in range(spatial):
        count, size = composite.static((op.results[0].shape[lead + position], x.shape[lead + position]), op.name)
        start = b.op("iota", size=count, start=-padding[position], step=stride[position], dtype=i64, device=x.device)
        inside = start
        if padding[position]:
            inside = b.op("where", b.op("lt", start, 0), b.op("remainder", start, dilation[position]), start)
        shape = (count, *(1 for _ in range(spatial - 1 - position)))
        start, inside = composite.reshape(b, start, shape), composite.reshape(b, inside, shape)
        corner = start if corner is None else b.op("add", b.op("mul", corner, size), start)
        first = inside if first is None else b.op("add", b.op("mul", first, size), inside)
    assert corner is not None and first is not None
    return corner, first


def _expand_max_pool(b: Builder, op: Op) -> Sequence[Value]:
    source, values = composite.tensor(op.operands[0], op.name), op.results[0]
    # reduced floats need no cast: a maximum is one of its operands
    slices = _window_slices(b, source, op, _lowest(source.dtype))
    corner, first = _window_starts(b, op, source)
    sizes = composite.static(source.shape[source.type.rank - len(op.attrs["kernel"]) :], op.name)
    steps = [_flat_step(offsets, sizes) for offsets, _ in slices]
    # positions are kept as steps from the corner, in few bits: that is all a backward pass needs to store
    narrow = next(dtype for dtype, limit in _STEP_LIMITS if steps[-1] < limit)
    start = b.op("cast", b.op("sub", first, corner), dtype=narrow) if any(op.attrs["padding"]) else None
    if start is None:
        start = b.op("full", shape=(), dtype=narrow, value=0, device=source.device)
    best, reached = slices[0][1], composite.expand_to(b, start, values.shape)
    for number, (_, value) in enumerate(slices):
        better = b.op("gt", value, best if number else _lowest(source.dtype))
        if source.dtype.is_float:
            better = b.op("logical_or", better, b.op("isnan", value))
        reached = b.op("where", better, steps[number], reached)
        best = b.op("maximum", best, value) if number else best
    return [best, b.op("add", b.op("cast", reached, dtype=i64), corner)]


def _flat_step(offsets: Sequence[int], sizes: Sequence[int]) -> int:
    """How far an element of a window lies behind its corner, in elements of the input."""
    step = 0
    for offset, size in zip(offsets, sizes, strict=True):
        step = step * size + offset
    return step


def _reference_max_pool(x: torch.Tensor, **attrs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    function = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(attrs["kernel"])]
    values, indices = function(
        x,
        attrs["kernel"],
        attrs["stride"],
        attrs["padding"],
        attrs["dilation"],
        attrs["ceil_mode"],
        return_indices=True,
    )
    return values, indices


register(
    OpDef(
        "max_pool",
        Kind.COMPOSITE,
        "Maximum over windows of the last len(kernel) dims; NaN wins. kernel, stride, padding, dilation: one number "
        "per dim; ceil_mode: a last partial window counts. Results: values, flat position of each.",
        _max_pool_type,
        _reference_max_pool,
        expand=_expand_max_pool,
    )
)


def _avg_pool_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    x = composite.floating(operands[0], "avg_pool")
    return [x.type.with_shape(pooled_shape(x, attrs))]


def tiles(x: Value, attrs: Mapping[str, Attr]) -> bool:
    """True for large windows that tile the input: no padding, no overlap, nothing left over."""
    spatial = x.shape[x.type.rank - len(attrs["kernel"]) :]
    return (
        math.prod(attrs["kernel"]) > UNROLLED_WINDOW
        and attrs["stride"] == attrs["kernel"]
        and not any(attrs["padding"])
        and all(size % kernel == 0 for size, kernel in zip(spatial, attrs["kernel"], strict=True))
    )


def _tiled_sum(b: Builder, x: Value, op: Op) -> Value:
    kernel, lead = op.attrs["kernel"], x.type.rank - len(op.attrs["kernel"])
    tiles = itertools.chain(*((size // k, k) for size, k in zip(x.shape[lead:], kernel, strict=True)))
    tiled = b.op("reshape", x, shape=(*x.shape[:lead], *tiles))
    return b.op("sum", tiled, dims=tuple(range(lead + 1, tiled.type.rank, 2)), keepdim=False)


def window_sizes(b: Builder, x: Value, attrs: Mapping[str, Attr], pooled: Sequence[Dim]) -> Value | float:
    """Number of elements each window averages over: a literal where it is the same for all."""
    if attrs["divisor"] is not None:
        return float(attrs["divisor"])
    lead = x.type.rank - len(attrs["kernel"])
    total: Value | int = 1
    for position, (kernel, stride, padding) in enumerate(
        zip(attrs["kernel"], attrs["stride"], attrs["padding"], strict=True)
    ):
        size, count = composite.static((x.shape[lead + position], pooled[lead + position]), "avg_pool")
        low, high = (-padding, size + padding) if attrs["count_include_pad"] else (0, size)
        if -padding >= low and (count - 1) * stride - padding + kernel <= high:
            total = b.op("mul", total, _number(kernel)) if isinstance(total, Value) else total * kernel
            continue
        start = b.op("iota", size=count, start=-padding, step=stride, dtype=i64, device=x.device)
        stop = b.op("minimum", b.op("add", start, kernel), high)
        extent = b.op("cast", b.op("sub", stop, b.op("maximum", start, low)), dtype=x.dtype.compute)
        extent = composite.reshape(b, extent, (count, *(1 for _ in range(len(attrs["kernel"]) - 1 - position))))
        if isinstance(total, Value):
            total = b.op("mul", extent, total)
        else:
            total = extent if total == 1 else b.op("mul", extent, _number(total))
    return total if isinstance(total, Value) else _number(total)


def _number(count: int) -> float:
    """A count as a float, or as the int that it is where it is made of sizes."""
    return count if depends_on_sizes(count) else float(count)


def _expand_avg_pool(b: Builder, op: Op) -> Sequence[Value]:
    source = composite.tensor(op.operands[0], op.name)
    x = composite.wide(b, source)
    if tiles(x, op.attrs):
        total = _tiled_sum(b, x, op)
    else:
        total, *rest = (value for _, value in _window_slices(b, x, op, 0.0))
        for value in rest:
            total = b.op("add", total, value)
    return [composite.cast(b, b.op("div", total, window_sizes(b, x, op.attrs, op.result.shape)), source.dtype)]


def _reference_avg_pool(x: torch.Tensor, **attrs: Any) -> torch.Tensor:
    spatial = len(attrs["kernel"])
    lead = x.shape[:-spatial]
    # one dim as two, which takes a divisor; reduced floats are not taken in every rank
    missing = max(2 - spatial, 0)
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    volume = wide.reshape(1, -1, *(1,) * missing, *x.shape[-spatial:])
    kernel, stride = ((1,) * missing + tuple(attrs[name]) for name in ("kernel", "stride"))
    padding = (0,) * missing + tuple(attrs["padding"])
    pool = F.avg_pool3d if spatial == 3 else F.avg_pool2d
    y = pool(volume, kernel, stride, padding, attrs["ceil_mode"], attrs["count_include_pad"], attrs["divisor"])
    return y.reshape(*lead, *y.shape[-spatial:]).to(x.dtype)


register(
    OpDef(
        "avg_pool",
        Kind.COMPOSITE,
        "Mean over windows of the last len(kernel) dims. kernel, stride, padding: one number per dim; ceil_mode: a "
        "last partial window counts; count_include_pad: padding counts as zeros; divisor: divide by it, or None.",
        _avg_pool_type,
        _reference_avg_pool,
        expand=_expand_avg_pool,
    )
)
