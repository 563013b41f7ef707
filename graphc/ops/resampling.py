"""Upsampling, and paddings that read the input again: index arithmetic and one `take` per dim.

Source indices are integers or floats of the result position, computed as eager's CPU kernels do (UpSample.h), so that
the same source pixels are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from graphc.errors import InvalidGraphError
from graphc.ir.graph import Attr, Builder, Op, Operand, Value
from graphc.ir.types import DType, TensorType, f32, i64
from graphc.ops import composite
from graphc.ops.registry import Kind, OpDef, register


def _resized_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    x, spatial = composite.tensor(operands[0], "upsampling"), len(attrs["size"])
    if x.type.rank != spatial + 2 or len(attrs["scale"]) != spatial:
        raise InvalidGraphError(f"upsampling to {attrs['size']} of {x.type}")
    return [x.type.with_shape((*x.shape[:2], *attrs["size"]))]


def _positions(b: Builder, count: int, dtype: DType, device: str) -> Value:
    return b.op("iota", size=count, start=0, step=1, dtype=dtype, device=device)


def repeats(size: int, count: int, scale: float, exact: bool) -> bool:
    """Whether nearest upsampling of a dim reads each element `count // size` times in a row."""
    if size == 0 or count % size != 0:
        return False
    import numpy as np  # 80 ms, which programs without resampling need not pay

    position = np.arange(count, dtype=np.float32) + np.float32(0.5 if exact else 0.0)
    source = np.minimum(np.floor(position * np.float32(scale)), size - 1)
    return bool((source == np.arange(count) // (count // size)).all())


def _expand_nearest(b: Builder, op: Op) -> Sequence[Value]:
    x = composite.tensor(op.operands[0], op.name)
    sizes = composite.static(x.shape, op.name)
    for dim, (count, scale) in enumerate(zip(op.attrs["size"], op.attrs["scale"], strict=True), 2):
        size = sizes[dim]
        if repeats(size, count, scale, op.attrs["exact"]):
            x = x if count == size else _repeat(b, x, dim, count // size)
            continue
        # eager multiplies in f32
        position = b.op("cast", _positions(b, count, i64, x.device), dtype=f32)
        if op.attrs["exact"]:
            position = b.op("add", position, 0.5)
        source = b.op("cast", b.op("floor", b.op("mul", position, float(scale))), dtype=i64)
        x = b.op("take", x, b.op("minimum", source, size - 1), dim=dim, check="none")
    return [x]


def _repeat(b: Builder, x: Value, dim: int, times: int) -> Value:
    """Each element along a dim `times` times in a row."""
    lead, size, rest = x.shape[:dim], x.shape[dim], x.shape[dim + 1 :]
    single = b.op("reshape", x, shape=(*lead, size, 1, *rest))
    wide = b.op("expand", single, shape=(*lead, size, times, *rest))
    return b.op("reshape", wide, shape=(*lead, size * times, *rest))


def _reference_nearest(x: torch.Tensor, size: Sequence[int], scale: Sequence[float], exact: bool) -> torch.Tensor:
    for dim, (count, ratio) in enumerate(zip(size, scale, strict=True), 2):
        position = torch.arange(count, device=x.device).float() + (0.5 if exact else 0.0)
        source = (position * torch.tensor(ratio, dtype=torch.float32)).floor().long()
        x = x.index_select(dim, source.clamp(max=x.shape[dim] - 1))
    return x


register(
    OpDef(
        "upsample_nearest",
        Kind.COMPOSITE,
        "(N, C, ...) resized to `size`: source index floor((i + exact/2) * scale) in f32, at most the last; scale: "
        "source pixels per result pixel and dim, rounded to f32.",
        _resized_type,
        _reference_nearest,
        expand=_expand_nearest,
    )
)


def _source_coordinate(b: Builder, count: int, scale: float, align: bool, dtype: DType, device: str) -> Value:
    position = _positions(b, count, dtype, device)
    if align:
        return b.op("mul", position, scale)
    centered = b.op("sub", b.op("mul", b.op("add", position, 0.5), scale), 0.5)
    return b.op("maximum", centered, 0.0)


def _expand_linear(b: Builder, op: Op) -> Sequence[Value]:
    source = composite.tensor(op.operands[0], op.name)
    x, rank, sizes = composite.wide(b, source), source.type.rank, composite.static(source.shape, op.name)
    for dim, (count, scale) in enumerate(zip(op.attrs["size"], op.attrs["scale"], strict=True), 2):
        size = sizes[dim]
        if count == size:
            continue
        coordinate = _source_coordinate(b, count, float(scale), op.attrs["align_corners"], x.dtype, x.device)
        low = b.op("minimum", b.op("cast", coordinate, dtype=i64), size - 1)
        high = b.op("minimum", b.op("add", low, 1), size - 1)
        fraction = b.op("sub", coordinate, b.op("cast", low, dtype=x.dtype))
        fraction = b.op("minimum", b.op("maximum", fraction, 0.0), 1.0)
        fraction = b.op("reshape", fraction, shape=(count, *(1 for _ in range(rank - 1 - dim))))
        below = b.op("mul", b.op("take", x, low, dim=dim, check="none"), b.op("sub", 1.0, fraction))
        x = b.op("add", below, b.op("mul", b.op("take", x, high, dim=dim, check="none"), fraction))
    return [composite.cast(b, x, source.dtype)]


def _reference_linear(
    x: torch.Tensor, size: Sequence[int], scale: Sequence[float], align_corners: bool
) -> torch.Tensor:
    y = x if x.dtype == torch.float64 else x.float()
    for dim, (count, ratio) in enumerate(zip(size, scale, strict=True), 2):
        if count == x.shape[dim]:
            continue
        position = torch.arange(count, device=x.device, dtype=y.dtype)
        coordinate = position * ratio if align_corners else ((position + 0.5) * ratio - 0.5).clamp(min=0)
        low = coordinate.long().clamp(max=x.shape[dim] - 1)
        high = (low + 1).clamp(max=x.shape[dim] - 1)
        fraction = (coordinate - low).clamp(0, 1).reshape(count, *(1,) * (x.dim() - 1 - dim))
        y = y.index_select(dim, low) * (1 - fraction) + y.index_select(dim, high) * fraction
    return y.to(x.dtype)


register(
    OpDef(
        "upsample_linear",
        Kind.COMPOSITE,
        "(N, C, ...) resized to `size` by linear interpolation in each spatial dim. scale: source pixels per result "
        "pixel; align_corners: coordinate i * scale, else max(0, (i + 1/2) * scale - 1/2).",
        _resized_type,
        _reference_linear,
        expand=_expand_linear,
    )
)


def _padded_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    x, low, high = composite.tensor(operands[0], "a padding"), attrs["low"], attrs["high"]
    if len(low) != x.type.rank or len(high) != x.type.rank:
        raise InvalidGraphError(f"padding by {low} and {high} of {x.type}")
    shape = tuple(size + before + after for size, before, after in zip(x.shape, low, high, strict=True))
    if any(size < 1 for size, old in zip(shape, x.shape, strict=True) if old != 0):
        raise InvalidGraphError(f"padding by {low} and {high} of {x.type}: the output would be empty")
    return [x.type.with_shape(shape)]


def _reflect_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    (result,) = _padded_type(operands, attrs)
    x = composite.tensor(operands[0], "pad_reflect")
    pads = zip(x.shape, attrs["low"], attrs["high"], strict=True)
    if any((low or high) and max(low, high) >= size for size, low, high in pads):
        raise InvalidGraphError(f"pad_reflect by {attrs['low']} and {attrs['high']} of {x.type}: wider than the input")
    return [result]


def _by_index(source: Callable[[Builder, Value, int], Value]) -> Callable[[Builder, Op], Sequence[Value]]:
    """Expansion that reads, along each padded dim, the element `source(position - low, size)`."""

    def expand(b: Builder, op: Op) -> Sequence[Value]:
        x = composite.tensor(op.operands[0], op.name)
        sizes = composite.static(x.shape, op.name)
        for dim, (low, high) in enumerate(zip(op.attrs["low"], op.attrs["high"], strict=True)):
            if low or high:
                size = sizes[dim]
                position = b.op("iota", size=size + low + high, start=-low, step=1, dtype=i64, device=x.device)
                x = b.op("take", x, source(b, position, size), dim=dim, check="none")
        return [x]

    return expand


def _reflected(b: Builder, position: Value, size: int) -> Value:
    last = size - 1
    return b.op("sub", last, b.op("abs", b.op("sub", last, b.op("abs", position))))


def _clamped(b: Builder, position: Value, size: int) -> Value:
    return b.op("minimum", b.op("maximum", position, 0), size - 1)


def _reference_pad(source: Callable[[torch.Tensor, int], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def reference(x: torch.Tensor, low: Sequence[int], high: Sequence[int]) -> torch.Tensor:
        for dim, (before, after) in enumerate(zip(low, high, strict=True)):
            size = x.shape[dim]
            x = x.index_select(dim, source(torch.arange(-before, size + after, device=x.device), size))
        return x

    return reference


register(
    OpDef(
        "pad_reflect",
        Kind.COMPOSITE,
        "Padded by mirroring about the edge elements. low, high: new elements before and after, per dim, below its "
        "size; negative ones cut off.",
        _reflect_type,
        _reference_pad(lambda position, size: size - 1 - (size - 1 - position.abs()).abs()),
        expand=_by_index(_reflected),
    )
)
register(
    OpDef(
        "pad_replicate",
        Kind.COMPOSITE,
        "Padded by repeating the edge elements. low, high: new elements before and after, per dim; negative ones cut "
        "off.",
        _padded_type,
        _reference_pad(lambda position, size: position.clamp(0, size - 1)),
        expand=_by_index(_clamped),
    )
)
