"""Upsampling, and paddings that read the input again: index arithmetic and one `take` per dim.

Source indices are integers or floats of the result position, computed as eager's CPU kernels do (UpSample.h), so that
the same source pixels are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch

from graphc.errors import InvalidGraphError
from graphc.ir.graph import Attr, Builder, Op, Operand, Value
from graphc.ir.sizes import bound, depends_on_sizes
from graphc.ir.types import DType, TensorType, f32, i32, i64
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
    times, most = bound(count // size), count
    if depends_on_sizes(count):
        most = 1 << count.bit_length()  # what holds for more elements holds for fewer
    import numpy as np  # 80 ms, which programs without resampling need not pay

    position = np.arange(most, dtype=np.float32) + np.float32(0.5 if exact else 0.0)
    source = np.minimum(np.floor(position * np.float32(scale)), (most - 1) // times)
    return bool((source == np.arange(most) // times).all())


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
        # 32 bits, which vectors convert to
        source = b.op("cast", b.op("floor", b.op("mul", position, float(scale))), dtype=i32)
        x = b.op("take", x, b.op("minimum", source, size - 1), dim=dim, check="inside")
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


def linear_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    """Type rule: the size, with a ratio per spatial dim."""
    x, spatial = composite.tensor(operands[0], "upsampling"), len(attrs["size"])
    if x.type.rank != spatial + 2 or len(attrs["ratio"]) != spatial or any(len(pair) != 2 for pair in attrs["ratio"]):
        raise InvalidGraphError(f"upsampling to {attrs['size']} of {x.type}")
    if any(over < 0 or under < 1 for over, under in attrs["ratio"]):
        raise InvalidGraphError(f"upsampling by {attrs['ratio']}")
    return [x.type.with_shape((*x.shape[:2], *attrs["size"]))]


@dataclass(frozen=True)
class Line:
    """How one dim is resized by linear interpolation. All places are whole numbers over one denominator, so exact.

    Args:
        size: source pixels.
        count: result pixels.
        ratio: source pixels per result pixel, as numerator and denominator.
        align_corners: the first pixels lie on each other; else their outer edges do.
    """

    size: int
    count: int
    ratio: tuple[int, int]
    align_corners: bool

    @property
    def place(self) -> tuple[int, int, int]:
        """(first, step, under): result pixel i lies at (first + i * step) / under among the source pixels."""
        over, under = self.ratio
        return (0, over, under) if self.align_corners else (over - under, 2 * over, 2 * under)

    def pixels(self, b: Builder, position: Value, dtype: DType) -> tuple[Value, Value, Value]:
        """Of result pixels the source pixels below and above, and how much of the way lies behind the one below."""
        first, step, under = self.place
        place = b.op("maximum", b.op("add", b.op("mul", position, step), first), 0)
        low = b.op("minimum", b.op("floordiv", place, under), self.size - 1)
        part = b.op("minimum", b.op("sub", place, b.op("mul", low, under)), under)
        high = b.op("minimum", b.op("add", low, 1), self.size - 1)
        return low, high, b.op("div", b.op("cast", part, dtype=dtype), float(under))

    def readers(self, b: Builder, pixel: Value) -> tuple[Value, int]:
        """Of source pixels the first result pixel that is computed from it, and how many may be from there on."""
        first, step, under = self.place
        if not step:
            return b.op("mul", pixel, 0), self.count
        start = b.op("floordiv", b.op("add", b.op("mul", pixel, under), step - 1 - first - under), step)
        return b.op("where", b.op("le", pixel, 1), 0, b.op("maximum", start, 0)), self.most_readers

    @cached_property
    def most_readers(self) -> int:
        """How many result pixels, at most, are computed from one source pixel, and from what lies between them.

        Those that lie less than a pixel from it, on either side; of the second one also those before the first.
        """
        first, step, under = self.place
        if not step or (self.count - 1) * step + first >= self.size * under:  # more lie at the end
            return self.count
        return min(self.count, (2 * under - 1 + max(0, -first)) // step + 1)


def pixel_numbers(b: Builder, line: Line, count: int, device: str) -> Value:
    """0 to `count`, in 32 bits where all places of a line fit: vectors divide such numbers."""
    first, step, under = line.place
    largest = max(line.count, line.size) * (step + under) + abs(first)
    return _positions(b, count, i32 if largest < 1 << 30 else i64, device)


def _expand_linear(b: Builder, op: Op) -> Sequence[Value]:
    source = composite.tensor(op.operands[0], op.name)
    x, rank, sizes = composite.wide(b, source), source.type.rank, composite.static(source.shape, op.name)
    for dim, (count, ratio) in enumerate(zip(op.attrs["size"], op.attrs["ratio"], strict=True), 2):
        if count == sizes[dim]:
            continue
        line = Line(sizes[dim], count, ratio, op.attrs["align_corners"])
        low, high, fraction = line.pixels(b, pixel_numbers(b, line, count, x.device), x.dtype)
        fraction = b.op("reshape", fraction, shape=(count, *(1 for _ in range(rank - 1 - dim))))
        below = b.op("mul", b.op("take", x, low, dim=dim, check="inside"), b.op("sub", 1.0, fraction))
        x = b.op("add", below, b.op("mul", b.op("take", x, high, dim=dim, check="inside"), fraction))
        composite.lay_out_like(x, op.result)
    return [composite.cast(b, x, source.dtype)]


def _reference_linear(
    x: torch.Tensor, size: Sequence[int], ratio: Sequence[tuple[int, int]], align_corners: bool
) -> torch.Tensor:
    y = x if x.dtype == torch.float64 else x.float()
    for dim, (count, (over, under)) in enumerate(zip(size, ratio, strict=True), 2):
        last = x.shape[dim] - 1
        if count == last + 1:
            continue
        position = torch.arange(count, device=x.device)
        if align_corners:
            place = position * over
        else:
            place, under = ((2 * position + 1) * over - under).clamp(min=0), 2 * under
        low = (place // under).clamp(max=last)
        high = (low + 1).clamp(max=last)
        fraction = (place - low * under).clamp(max=under).to(y.dtype) / under
        fraction = fraction.reshape(count, *(1,) * (x.dim() - 1 - dim))
        y = y.index_select(dim, low) * (1 - fraction) + y.index_select(dim, high) * fraction
    return y.to(x.dtype)


register(
    OpDef(
        "upsample_linear",
        Kind.COMPOSITE,
        "(N, C, ...) resized to `size` by linear interpolation in each spatial dim. ratio: source pixels per result "
        "pixel as (numerator, denominator), r; align_corners: coordinate i * r, else max(0, (i + 1/2) * r - 1/2).",
        linear_type,
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


_Edge: TypeAlias = Callable[[Builder, Value, int, int, bool], Value]
"""(builder, input, dim, width, before): the elements before the input along a dim, or behind it."""


def _by_index(source: Callable[[Builder, Value, int], Value], edge: _Edge) -> Callable[[Builder, Op], Sequence[Value]]:
    """Expansion that reads, along each padded dim, the element `source(position - low, size)`.

    Rows along the last dim are joined of pieces instead, if they hold any of the input: no index is computed per
    element.
    """

    def expand(b: Builder, op: Op) -> Sequence[Value]:
        x = composite.tensor(op.operands[0], op.name)
        sizes = composite.static(x.shape, op.name)
        for dim, (low, high) in enumerate(zip(op.attrs["low"], op.attrs["high"], strict=True)):
            size = sizes[dim]
            if dim == len(sizes) - 1 and max(-low, 0) + max(-high, 0) < size and (low or high):
                pieces = [edge(b, x, dim, low, True)] if low > 0 else []
                pieces.append(composite.cut(b, x, dim, max(-low, 0), size - max(-high, 0)))
                pieces += [edge(b, x, dim, high, False)] if high > 0 else []
                x = pieces[0] if len(pieces) == 1 else b.op("concat", *pieces, dim=dim)
            elif low or high:
                position = b.op("iota", size=size + low + high, start=-low, step=1, dtype=i64, device=x.device)
                x = b.op("take", x, source(b, position, size), dim=dim, check="inside")
        return [x]

    return expand


def _reflected(b: Builder, position: Value, size: int) -> Value:
    last = size - 1
    return b.op("sub", last, b.op("abs", b.op("sub", last, b.op("abs", position))))


def _clamped(b: Builder, position: Value, size: int) -> Value:
    return b.op("minimum", b.op("maximum", position, 0), size - 1)


def _mirrored_edge(b: Builder, x: Value, dim: int, width: int, before: bool) -> Value:
    (size,) = composite.static(x.shape[dim : dim + 1], "padding")
    start = 1 if before else size - 1 - width
    return b.op("flip", composite.cut(b, x, dim, start, start + width), dims=(dim,))


def _repeated_edge(b: Builder, x: Value, dim: int, width: int, before: bool) -> Value:
    (size,) = composite.static(x.shape[dim : dim + 1], "padding")
    last = composite.cut(b, x, dim, 0 if before else size - 1, 1 if before else size)
    return composite.expand_to(b, last, (*x.shape[:dim], width, *x.shape[dim + 1 :]))


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
        expand=_by_index(_reflected, _mirrored_edge),
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
        expand=_by_index(_clamped, _repeated_edge),
    )
)
