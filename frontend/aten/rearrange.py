"""Import rules of operators that join, repeat and move elements without being views: cat, repeat, roll, flip, ..."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from graphc.frontend.aten import layout
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.memory_format import suggests_channels_last
from graphc.frontend.aten.operands import fitting, supported, wrap_dim, wrap_dims
from graphc.frontend.aten.promotion import common_dtype
from graphc.frontend.aten.registry import CONTIGUOUS, Decline, rule
from graphc.ir.dims import slice_bounds
from graphc.ir.graph import Operand, Value

Shape = tuple[int, ...]


def _shape(value: Value) -> Shape:
    return value.shape  # type: ignore[return-value]  # static


def _as_one_dtype(imp: Importer, tensors: Sequence[Value]) -> list[Value]:
    supported(*tensors)
    dtypes = {value.dtype for value in tensors}
    # every tensor counts alike here, with dims or without
    common = tensors[0].dtype if len(dtypes) == 1 else common_dtype([_ranked(value) for value in tensors])
    return [imp.cast(value, common) for value in tensors]  # type: ignore[misc]  # tensors stay tensors


def _ranked(value: Value) -> Value:
    return Value(value.name, value.type.with_shape((1,)))


@rule("aten.cat.default")
def cat(imp: Importer, tensors: Sequence[Value], dim: int = 0) -> Value:
    joined = _as_one_dtype(imp, tensors)
    # an empty vector joins anything, by old custom
    pieces = [(new, old) for new, old in zip(joined, tensors, strict=True) if _shape(new) != (0,)]
    if not pieces:
        return imp.with_strides(joined[0], (1,))
    axis = wrap_dim(dim, pieces[0][0].type.rank)
    if any(not new.shape for new, _ in pieces):
        raise Decline("eager raises")
    values = [new for new, _ in pieces]
    result = values[0] if len(values) == 1 else imp.b.op("concat", *values, dim=axis)
    channels_last = all(suggests_channels_last(_shape(old), imp.strides(old)) for _, old in pieces)
    make = layout.channels_last if channels_last else layout.contiguous
    return imp.with_strides(result, make(_shape(result)))


@rule("aten.stack.default", layout=CONTIGUOUS)
def stack(imp: Importer, tensors: Sequence[Value], dim: int = 0) -> Value:
    axis = wrap_dim(dim, tensors[0].type.rank + 1)
    if any(value.shape != tensors[0].shape for value in tensors):
        raise Decline("eager raises")
    shape = _shape(tensors[0])
    pieces = [imp.reshape(value, (*shape[:axis], 1, *shape[axis:])) for value in _as_one_dtype(imp, tensors)]
    return pieces[0] if len(pieces) == 1 else imp.b.op("concat", *pieces, dim=axis)


@rule("aten.repeat.default", layout=CONTIGUOUS)
def repeat(imp: Importer, self: Value, repeats: Sequence[int]) -> Value:
    lead = len(repeats) - self.type.rank
    if lead < 0 or any(count < 0 for count in repeats):
        raise Decline("eager raises")
    sizes = (1,) * lead + _shape(self)
    spread: list[int] = []
    counted: list[int] = []
    for size, count in zip(sizes, repeats, strict=True):
        spread += (1, size)
        counted += (count, size)
    result = imp.expand(imp.reshape(self, spread), counted)
    return imp.reshape(result, [size * count for size, count in zip(sizes, repeats, strict=True)])


@rule("aten.flip.default")
def flip(imp: Importer, self: Value, dims: Sequence[int]) -> Value:
    wrapped = wrap_dims(list(dims), self.type.rank) if dims else ()
    result = imp.b.op("flip", self, dims=wrapped) if wrapped else self
    return imp.with_strides(result, layout.dense_strides(_shape(self), imp.strides(self)))


@rule("aten.roll.default")
def roll(imp: Importer, self: Value, shifts: int | Sequence[int], dims: int | Sequence[int] = ()) -> Value:
    amounts = [shifts] if isinstance(shifts, int) else list(shifts)
    axes = [dims] if isinstance(dims, int) else list(dims)
    if not axes and len(amounts) == 1:
        flat = imp.reshape(self, (math.prod(_shape(self)),))
        return imp.with_strides(imp.reshape(_rolled(imp, flat, amounts[0], 0), _shape(self)), _dense(self))
    if len(axes) != len(amounts) or not axes or not self.shape:
        raise Decline("eager raises")
    result = self
    for amount, dim in zip(amounts, axes, strict=True):
        result = _rolled(imp, result, amount, wrap_dim(dim, self.type.rank))
    return imp.with_strides(result, _dense(self))


def _dense(value: Value) -> Shape:
    return layout.contiguous(_shape(value))


def _rolled(imp: Importer, value: Value, amount: int, dim: int) -> Value:
    size = _shape(value)[dim] if value.shape else 1
    cut = -amount % size if size else 0
    if cut == 0:
        return value
    return imp.b.op("concat", imp.slice(value, dim, cut, size), imp.slice(value, dim, 0, cut), dim=dim)


def among_zeros(imp: Importer, part: Value, dim: int, start: int, size: int) -> Value:
    """A tensor of zeros but for `part` at `start` of a dim that is `size` long."""
    low, high = [0] * part.type.rank, [0] * part.type.rank
    low[dim], high[dim] = start, size - start - _shape(part)[dim]
    if not low[dim] and not high[dim]:
        return part
    zero = fitting(0, part.dtype)
    return imp.b.op("pad", part, low=tuple(low), high=tuple(high), value=zero)


@rule("aten.slice_backward.default", layout=CONTIGUOUS)
def slice_backward(
    imp: Importer, grad_output: Value, input_sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Value:
    supported(grad_output)
    axis = wrap_dim(dim, len(input_sizes))
    size = input_sizes[axis]
    first, last = slice_bounds(start, end, size)
    count = (last - first + step - 1) // step if step > 0 and last > first else 0
    shape = (*input_sizes[:axis], count, *input_sizes[axis + 1 :])
    if step < 1 or _shape(grad_output) != shape:
        raise Decline("eager raises")
    return _spread(imp, grad_output, axis, first, step, size)


def _spread(imp: Importer, part: Value, dim: int, first: int, step: int, size: int) -> Value:
    """A tensor of zeros but for `part` at every `step`-th place of a dim that is `size` long, from `first` on."""
    shape = _shape(part)
    count = shape[dim]
    if step == 1 or not count:
        return among_zeros(imp, part, dim, first if count else 0, size)
    # each element with its gap behind it, as rows of a new dim, of which the last may not end in the result
    rows = imp.reshape(part, (*shape[: dim + 1], 1, *shape[dim + 1 :]))
    long = imp.reshape(among_zeros(imp, rows, dim + 1, 0, step), (*shape[:dim], count * step, *shape[dim + 1 :]))
    return among_zeros(imp, imp.slice(long, dim, 0, min(count * step, size - first)), dim, first, size)


_WINDOW = 64
"""Elements of a window up to which sums over windows are written out."""


def _windows(
    kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int], size: Sequence[int]
) -> tuple[int, int]:
    """How many windows fit along the two dims of an image.

    Raises:
        Decline: eager raises.
    """
    if any(len(item) != 2 for item in (kernel, dilation, padding, stride)) or min(*kernel, *dilation, *stride) < 1:
        raise Decline("eager raises")
    fit = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, d, p, s in zip(size, kernel, dilation, padding, stride, strict=True)
    ]
    if min(fit) < 1 or min(padding) < 0:
        raise Decline("eager raises")
    return fit[0], fit[1]


@rule("aten.im2col.default", layout=CONTIGUOUS)
def im2col(
    imp: Importer, self: Value, kernel_size: Sequence[int], dilation: Sequence[int], padding: Sequence[int],
    stride: Sequence[int],
) -> Value:  # fmt: skip
    supported(self)
    if self.type.rank not in (3, 4) or 0 in self.shape:
        raise Decline("eager raises, or an empty batch")
    *lead, height, width = _shape(self)
    counts = _windows(kernel_size, dilation, padding, stride, (height, width))
    edge = (*(0 for _ in lead), *padding)
    image = imp.b.op("pad", self, low=edge, high=edge, value=fitting(0, self.dtype)) if any(padding) else self
    inner = layout.contiguous(_shape(image))
    down, right = inner[-2], inner[-1]
    steps = (down * dilation[0], right * dilation[1], down * stride[0], right * stride[1])
    shape = (*lead, *kernel_size, *counts)
    windows = imp.b.op("as_strided", image, shape=shape, strides=(*inner[:-2], *steps), offset=0)
    rows = lead[-1] * kernel_size[0] * kernel_size[1]
    return imp.reshape(windows, (*lead[:-1], rows, counts[0] * counts[1]))


@rule("aten.col2im.default", layout=CONTIGUOUS)
def col2im(
    imp: Importer, self: Value, output_size: Sequence[int], kernel_size: Sequence[int], dilation: Sequence[int],
    padding: Sequence[int], stride: Sequence[int],
) -> Value:  # fmt: skip
    supported(self)
    area = math.prod(kernel_size)
    if self.type.rank not in (2, 3) or len(output_size) != 2 or 0 in self.shape or area > _WINDOW:
        raise Decline("eager raises, or large windows")
    counts = _windows(kernel_size, dilation, padding, stride, output_size)
    *batch, rows, columns = _shape(self)
    if self.dtype.kind not in ("float",) or rows % area or columns != math.prod(counts):
        raise Decline("eager raises, or other dtypes")
    lead = (*batch, rows // area)
    at = len(lead)
    windows = imp.reshape(self, (*lead, *kernel_size, *counts))
    sizes = [size + 2 * edge for size, edge in zip(output_size, padding, strict=True)]
    total: Value | None = None
    for i, j in itertools.product(*map(range, kernel_size)):
        part = imp.slice(imp.slice(windows, at, i, i + 1), at + 1, j, j + 1)
        part = imp.reshape(part, (*lead, *counts))
        part = _spread(imp, part, at, i * dilation[0], stride[0], sizes[0])
        part = _spread(imp, part, at + 1, j * dilation[1], stride[1], sizes[1])
        total = part if total is None else imp.b.op("add", total, part)
    assert total is not None
    for d in range(2):
        total = imp.slice(total, at + d, padding[d], padding[d] + output_size[d])
    return total


@rule("aten.select_backward.default", layout=CONTIGUOUS)
def select_backward(imp: Importer, grad_output: Value, input_sizes: Sequence[int], dim: int, index: int) -> Value:
    supported(grad_output)
    axis = wrap_dim(dim, len(input_sizes))
    size = input_sizes[axis]
    if not -size <= index < size or _shape(grad_output) != (*input_sizes[:axis], *input_sizes[axis + 1 :]):
        raise Decline("eager raises")
    part = imp.reshape(grad_output, (*input_sizes[:axis], 1, *input_sizes[axis + 1 :]))
    return among_zeros(imp, part, axis, index % size, size)


@rule("aten.constant_pad_nd.default")
def constant_pad_nd(imp: Importer, self: Value, pad: Sequence[int], value: Operand = 0) -> Value:
    supported(self)
    rank = self.type.rank
    if len(pad) % 2 or len(pad) > 2 * rank or isinstance(value, Value):
        raise Decline("eager raises, or a traced number")
    result = self
    low, high = [0] * rank, [0] * rank
    for number in range(len(pad) // 2):
        dim = rank - 1 - number
        before, after = pad[2 * number], pad[2 * number + 1]
        size = _shape(self)[dim]
        start, stop = max(-before, 0), size - max(-after, 0)
        if size + before + after < 0 or start > stop:
            raise Decline("eager raises")
        result = imp.slice(result, dim, start, stop)
        low[dim], high[dim] = max(before, 0), max(after, 0)
    if any(low) or any(high):
        fill = int(value) if self.dtype.is_integral and isinstance(value, float) else value
        number_ = fitting(fill, self.dtype)  # type: ignore[arg-type]  # complex is declined there
        result = imp.b.op("pad", result, low=tuple(low), high=tuple(high), value=number_)
        channels_last = suggests_channels_last(_shape(self), imp.strides(self))
        make = layout.channels_last if channels_last else layout.contiguous
        return imp.with_strides(result, make(_shape(result)))
    return imp.with_strides(result, layout.dense_strides(_shape(result), imp.strides(self)))


@rule("aten.diag_embed.default", layout=CONTIGUOUS)
def diag_embed(imp: Importer, self: Value, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Value:
    supported(self)
    rank = self.type.rank + 1
    if not self.shape:
        raise Decline("eager raises")
    first, second = wrap_dim(dim1, rank), wrap_dim(dim2, rank)
    if first == second:
        raise Decline("eager raises")
    length = _shape(self)[-1]
    side = length + abs(offset)
    batch = iter(_shape(self)[:-1])
    shape = tuple(side if d in (first, second) else next(batch) for d in range(rank))
    strides = layout.contiguous(shape)
    kept = tuple(strides[d] for d in range(rank) if d not in (first, second))
    start = offset * strides[second] if offset >= 0 else -offset * strides[first]
    zeros = imp.full(shape, 0, self.dtype, self.device)
    inner = (*kept, strides[first] + strides[second])
    return imp.b.op("update_strided", zeros, self, shape=_shape(self), strides=inner, offset=start)


# channels and pixels


@rule("aten.pixel_shuffle.default")
def pixel_shuffle(imp: Importer, self: Value, upscale_factor: int) -> Value:
    r = upscale_factor
    if self.type.rank < 3 or r <= 0 or _shape(self)[-3] % (r * r):
        raise Decline("eager raises")
    *batch, channels, height, width = _shape(self)
    n = len(batch)
    split = imp.reshape(self, (*batch, channels // (r * r), r, r, height, width))
    moved = imp.permute(split, (*range(n), n, n + 3, n + 1, n + 4, n + 2))
    result = imp.reshape(moved, (*batch, channels // (r * r), height * r, width * r))
    return _image_format(imp, result, self)


@rule("aten.pixel_unshuffle.default")
def pixel_unshuffle(imp: Importer, self: Value, downscale_factor: int) -> Value:
    r = downscale_factor
    if self.type.rank < 3 or r <= 0 or _shape(self)[-1] % r or _shape(self)[-2] % r:
        raise Decline("eager raises")
    if 0 in _shape(self):
        return imp.full(_shape(self), 0, self.dtype, self.device)  # eager leaves the shape as it is
    *batch, channels, height, width = _shape(self)
    n = len(batch)
    split = imp.reshape(self, (*batch, channels, height // r, r, width // r, r))
    moved = imp.permute(split, (*range(n), n, n + 2, n + 4, n + 1, n + 3))
    result = imp.reshape(moved, (*batch, channels * r * r, height // r, width // r))
    return _image_format(imp, result, self)


@rule("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def channel_shuffle(imp: Importer, self: Value, groups: int) -> Value:
    if self.type.rank < 3 or groups <= 0 or _shape(self)[1] % groups:
        raise Decline("eager raises")
    batch, channels, *rest = _shape(self)
    split = imp.reshape(self, (batch, groups, channels // groups, math.prod(rest)))
    return _image_format(imp, imp.reshape(imp.permute(split, (0, 2, 1, 3)), _shape(self)), self)


def _image_format(imp: Importer, result: Value, source: Value) -> Value:
    channels_last = suggests_channels_last(_shape(source), imp.strides(source))
    make = layout.channels_last if channels_last else layout.contiguous
    return imp.with_strides(result, make(_shape(result)))
