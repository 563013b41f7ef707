"""Import rules of reading and writing at places that are data, and of the functional `*_scatter` operators."""

from __future__ import annotations

import math
from collections.abc import Sequence

from graphc.frontend.aten import layout
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.operands import fitting, supported, wrap_dim
from graphc.frontend.aten.registry import CONTIGUOUS, Decline, rule
from graphc.frontend.aten.views import view_strides
from graphc.ir.dims import slice_bounds
from graphc.ir.graph import Attr, Operand, Value
from graphc.ir.types import bool_, i32, i64
from graphc.ops.rules import broadcast

Shape = tuple[int, ...]


def _shape(value: Value) -> Shape:
    return value.shape  # type: ignore[return-value]  # static


def _index_of(base: Value, index: Value, ranks: Sequence[int] | None = None) -> Value:
    """Check a tensor of indices.

    Raises:
        Decline: a mask, another device, a wrong number of dims, or nothing to index.
    """
    if index.dtype not in (i64, i32) or (index.device != base.device and index.shape):
        raise Decline("a mask, or on another device")
    if ranks is not None and index.type.rank not in ranks:
        raise Decline("eager raises")
    return index


def _something(size: int, index: Value) -> None:
    if size == 0 and 0 not in index.shape:
        raise Decline("eager raises: nothing to index")


# reading


@rule("aten.embedding.default", layout=CONTIGUOUS)
def embedding(
    imp: Importer, weight: Value, indices: Value, padding_idx: int = -1, scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Value:  # fmt: skip
    supported(weight)
    if weight.type.rank != 2:
        raise Decline("eager raises")
    _index_of(weight, indices)
    _something(weight.type.numel, indices)  # type: ignore[arg-type]  # static
    return imp.b.op("take", weight, indices, dim=0, check="embedding")


@rule("aten.embedding_dense_backward.default", layout=CONTIGUOUS)
def embedding_dense_backward(
    imp: Importer, grad: Value, indices: Value, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Value:
    supported(grad)
    rank = indices.type.rank
    if scale_grad_by_freq or grad.type.rank == rank or not grad.dtype.is_float or num_weights == 0:
        raise Decline("gradients scaled by how often rows are looked up")
    width = _shape(grad)[rank:]
    # eager leaves out the padding, and what it looks up nowhere
    counts = imp.b.op("logical_and", imp.b.op("ge", indices, 0), imp.b.op("lt", indices, num_weights))
    if padding_idx >= 0:
        counts = imp.b.op("logical_and", counts, imp.b.op("ne", indices, padding_idx))
    source = imp.b.op("where", imp.reshape(counts, (*_shape(indices), *(1 for _ in width))), grad, 0.0)
    base = imp.full((num_weights, *width), 0.0, grad.dtype, grad.device)
    return imp.b.op("put", base, indices, source, dim=0, mode="add", check="none")


@rule("aten.index_select.default", layout=CONTIGUOUS)
def index_select(imp: Importer, self: Value, dim: int, index: Value) -> Value:
    supported(self)
    _index_of(self, index, ranks=(0, 1))
    axis = wrap_dim(dim, self.type.rank)
    if not self.shape and index.type.numel != 1:
        raise Decline("eager raises")
    places = imp.reshape(index, (index.type.numel,))  # type: ignore[arg-type]  # static
    if not self.shape:
        return imp.reshape(imp.b.op("take", imp.reshape(self, (1,)), places, dim=0, check="embedding"), ())
    _something(self.type.numel, index)  # type: ignore[arg-type]  # static
    return imp.b.op("take", self, places, dim=axis, check="index_select" if axis == 1 else "embedding")


@rule("aten.take.default", layout=CONTIGUOUS)
def take(imp: Importer, self: Value, index: Value) -> Value:
    supported(self)
    if _index_of(self, index).dtype != i64:
        raise Decline("eager raises")
    flat = imp.reshape(self, (self.type.numel,))  # type: ignore[arg-type]  # static
    _something(_shape(flat)[0], index)
    return imp.b.op("take", flat, index, dim=0, check="take")


@rule("aten.gather.default", layout=CONTIGUOUS)
def gather(imp: Importer, self: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    axis, base, places = _along(imp, self, dim, index)
    found = imp.b.op("gather", base, places, dim=axis)
    return imp.reshape(found, _shape(index))


def _along(imp: Importer, self: Value, dim: int, index: Value) -> tuple[int, Value, Value]:
    """Base and indices of `gather` and `scatter`, 0-d ones as one dim of size 1."""
    supported(self)
    _index_of(self, index)
    axis = wrap_dim(dim, self.type.rank)
    base = self if self.shape else imp.reshape(self, (1,))
    places = index if index.shape else imp.reshape(index, (1,))
    if base.type.rank != places.type.rank:
        raise Decline("eager raises, or no indices at all")
    sizes = zip(_shape(base), _shape(places), strict=True)
    if any(d != axis and count > size for d, (size, count) in enumerate(sizes)):
        raise Decline("eager raises")
    _something(_shape(base)[axis], places)
    return axis, base, places


@rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(imp: Importer, self: Value, indices: Sequence[Value | None]) -> Value:
    supported(self)
    dims, tensors, at = _advanced(self, indices)
    common = _common_shape(tensors)
    if len(dims) == 1:
        result = imp.b.op("take", self, tensors[0], dim=dims[0])
        return imp.with_strides(result, _index_strides(imp, self, dims, tensors, at, common))
    result = imp.b.op("index", self, *tensors, dims=dims, at=at)
    return imp.with_strides(result, _index_strides(imp, self, dims, tensors, at, common))


def _advanced(self: Value, indices: Sequence[Value | None]) -> tuple[tuple[int, ...], list[Value], int]:
    """The indexed dims, their indices, and the place of the indices' common dims among the dims left over.

    Raises:
        Decline: masks (their result's shape depends on data), or eager raises.
    """
    dims = tuple(d for d, item in enumerate(indices) if item is not None)
    tensors = [item for item in indices if item is not None]
    if not dims or len(indices) > self.type.rank:
        raise Decline("nothing is indexed, or too many dims")
    common = _common_shape([_index_of(self, tensor) for tensor in tensors])
    if 0 not in common and any(self.shape[d] == 0 for d in dims):
        raise Decline("eager raises")
    adjacent = dims[-1] - dims[0] + 1 == len(dims)
    return dims, tensors, dims[0] if adjacent else 0


def _common_shape(tensors: Sequence[Value]) -> Shape:
    return broadcast("index", [tensor.shape for tensor in tensors])  # type: ignore[return-value]  # static


def _index_strides(
    imp: Importer, self: Value, dims: Sequence[int], tensors: Sequence[Value], at: int, common: Shape
) -> Shape:
    """Strides eager gives: it iterates over the base, at stride 0 where it is indexed, and the indices, elsewhere."""
    own = imp.strides(self)
    kept = [d for d in range(self.type.rank) if d not in dims]
    before, after = kept[:at], kept[at:]
    result = tuple(_shape(self)[d] for d in before) + common + tuple(_shape(self)[d] for d in after)
    base = tuple(own[d] for d in before) + (0,) * len(common) + tuple(own[d] for d in after)
    operands = [(result, base)]
    for tensor in tensors:
        lead = len(common) - tensor.type.rank
        sizes, strides = (1,) * lead + _shape(tensor), (0,) * lead + imp.strides(tensor)
        spread = tuple(0 if size != wide else step for size, step, wide in zip(sizes, strides, common, strict=True))
        shape = (1,) * len(before) + common + (1,) * len(after)
        operands.append((shape, view_strides(common, spread, shape) or layout.contiguous(shape)))
    return layout.tensor_iterator_strides(result, operands)


# writing at indices


@rule("aten.index_put.default", "aten._unsafe_index_put.default")
def index_put(
    imp: Importer, self: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False
) -> Value:
    supported(self, values)
    if self.dtype != values.dtype or (self.device != values.device and values.shape):
        raise Decline("eager raises")
    masks = [item for item in indices if item is not None]
    if len(masks) == 1 and masks[0].dtype == bool_:
        result = _put_under_mask(imp, self, list(indices), masks[0], values, accumulate)
    else:
        result = _put_at(imp, self, indices, values, accumulate)
    return imp.with_strides(result, imp.preserved_strides(self))


def _put_under_mask(
    imp: Importer, self: Value, indices: list[Value | None], mask: Value, values: Value, accumulate: bool
) -> Value:
    """One number into all places where the mask holds; other values depend on how many there are."""
    first = indices.index(mask)
    covered = _shape(self)[first : first + mask.type.rank]
    if any(size != 1 for size in values.shape) or covered != _shape(mask) or not mask.shape:
        raise Decline("values whose places depend on data")
    trailing = self.type.rank - first - mask.type.rank
    spread = imp.reshape(mask, _shape(mask) + (1,) * trailing)
    value = imp.reshape(values, ())
    if accumulate:
        if self.dtype == bool_:
            raise Decline("sums of bools")
        value = imp.b.op("add", self, value)
    return imp.b.op("where", spread, value, self)


def _put_at(imp: Importer, self: Value, indices: Sequence[Value | None], values: Value, accumulate: bool) -> Value:
    if accumulate and self.dtype == bool_:
        raise Decline("sums of bools")
    dims, tensors, at = _advanced(self, indices)
    common = _common_shape(tensors)
    kept = [d for d in range(self.type.rank) if d not in dims]
    target = (*(_shape(self)[d] for d in kept[:at]), *common, *(_shape(self)[d] for d in kept[at:]))
    mode = "add" if accumulate else "set"
    source = imp.expand(_without_leading_ones(imp, values, len(target)), target)
    if len(dims) == 1:
        return imp.b.op("put", self, tensors[0], source, dim=dims[0], mode=mode)
    # the indexed dims first, as one
    order = (*dims, *kept)
    moved = imp.permute(self, order)
    sizes = tuple(_shape(self)[d] for d in dims)
    flat = imp.reshape(moved, (math.prod(sizes), *(_shape(self)[d] for d in kept)))
    places = imp.expand(_flat_indices(imp, tensors, sizes), common)
    rank = len(common)
    source = imp.permute(source, (*range(at, at + rank), *range(at), *range(at + rank, len(target))))
    written = imp.b.op("put", flat, places, source, dim=0, mode=mode)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return imp.permute(imp.reshape(written, _shape(moved)), inverse)


def _without_leading_ones(imp: Importer, values: Value, rank: int) -> Value:
    extra = values.type.rank - rank
    if extra <= 0:
        return values
    if any(size != 1 for size in _shape(values)[:extra]):
        raise Decline("eager raises")
    return imp.reshape(values, _shape(values)[extra:])


def _flat_indices(imp: Importer, tensors: Sequence[Value], sizes: Shape) -> Value:
    """Row-major positions in dims of `sizes`, negative indices counted from the end."""
    total: Value | None = None
    for tensor, size, stride in zip(tensors, sizes, layout.contiguous(sizes), strict=True):
        place = imp.cast(tensor, i64)
        wrapped = imp.b.op("where", imp.b.op("lt", place, 0), imp.b.op("add", place, size), place)
        step = wrapped if stride == 1 else imp.b.op("mul", wrapped, stride)
        total = step if total is None else imp.b.op("add", total, step)
    assert total is not None
    return total


@rule("aten.index_add.default", layout=CONTIGUOUS)
def index_add(imp: Importer, self: Value, dim: int, index: Value, source: Value, alpha: Operand = 1) -> Value:
    if self.dtype == bool_:
        raise Decline("sums of bools")
    if alpha != 1 or isinstance(alpha, Value):
        factor = alpha if isinstance(alpha, Value) else fitting(alpha, source.dtype)  # type: ignore[arg-type]  # real
        source = imp.b.op("mul", source, factor)
    return _put_rows(imp, self, dim, index, source, "add", call="index_add")


@rule("aten.index_copy.default", layout=CONTIGUOUS)
def index_copy(imp: Importer, self: Value, dim: int, index: Value, source: Value) -> Value:
    if index.dtype != i64:
        raise Decline("eager raises")
    return _put_rows(imp, self, dim, index, source, "set", call="index_copy")


@rule("aten.index_fill.int_Scalar", "aten.index_fill.int_Tensor")
def index_fill(imp: Importer, self: Value, dim: int, index: Value, value: Operand) -> Value:
    if (isinstance(value, Value) and value.shape) or index.dtype != i64:
        raise Decline("eager raises")
    if self.dtype.is_integral and (value.dtype.is_float if isinstance(value, Value) else isinstance(value, float)):
        raise Decline("a float into integers")
    axis = wrap_dim(dim, self.type.rank)
    shape = list(_shape(self))
    if shape:
        shape[axis] = index.type.numel  # type: ignore[assignment]  # static
    number = value if isinstance(value, Value) else fitting(value, self.dtype)  # type: ignore[arg-type]  # real
    source = imp.expand(imp.tensor(number, self.dtype, self.device), shape)
    return imp.with_strides(_put_rows(imp, self, dim, index, source, "set"), imp.preserved_strides(self))


def _put_rows(imp: Importer, self: Value, dim: int, index: Value, source: Value, mode: str, **attrs: Attr) -> Value:
    supported(self, source)
    _index_of(self, index, ranks=(0, 1))
    if self.dtype != source.dtype or (self.dtype == bool_ and mode == "add") or not self.shape:
        raise Decline("dtypes, or a 0-d tensor")
    axis = wrap_dim(dim, self.type.rank)
    _something(_shape(self)[axis], index)
    rows = imp.reshape(index, (index.type.numel,))  # type: ignore[arg-type]  # static
    expected = (*_shape(self)[:axis], *_shape(rows), *_shape(self)[axis + 1 :])
    if _shape(source) != expected:
        if source.type.numel != 1 or math.prod(expected) != 1:
            raise Decline("eager raises")
        source = imp.reshape(source, expected)
    return imp.b.op("put", self, rows, source, dim=axis, mode=mode, **attrs)


@rule("aten.scatter.src", layout=CONTIGUOUS)
def scatter(imp: Importer, self: Value, dim: int, index: Value, src: Value) -> Value:
    return _scatter(imp, self, dim, index, src, "set")


@rule("aten.scatter.value", layout=CONTIGUOUS)
def scatter_value(imp: Importer, self: Value, dim: int, index: Value, value: Operand) -> Value:
    return _scatter(imp, self, dim, index, value, "set")


@rule("aten.scatter_add.default", layout=CONTIGUOUS)
def scatter_add(imp: Importer, self: Value, dim: int, index: Value, src: Value) -> Value:
    return _scatter(imp, self, dim, index, src, "add")


@rule("aten.scatter.reduce", layout=CONTIGUOUS)
def scatter_src_reduce(imp: Importer, self: Value, dim: int, index: Value, src: Value, reduce: str) -> Value:
    return _scatter(imp, self, dim, index, src, {"add": "add", "multiply": "prod"}[reduce])


@rule("aten.scatter.value_reduce", layout=CONTIGUOUS)
def scatter_value_reduce(imp: Importer, self: Value, dim: int, index: Value, value: Operand, reduce: str) -> Value:
    return _scatter(imp, self, dim, index, value, {"add": "add", "multiply": "prod"}[reduce])


@rule("aten.scatter_reduce.two", layout=CONTIGUOUS)
def scatter_reduce(
    imp: Importer, self: Value, dim: int, index: Value, src: Value, reduce: str, include_self: bool = True
) -> Value:
    modes = {"sum": "add", "prod": "prod", "amax": "amax", "amin": "amin"}
    if not include_self or reduce not in modes:
        raise Decline("means, or without the base")
    return _scatter(imp, self, dim, index, src, modes[reduce])


def _scatter(imp: Importer, self: Value, dim: int, index: Value, src: Operand, mode: str) -> Value:
    if index.dtype != i64 or (self.dtype == bool_ and mode != "set"):
        raise Decline("eager raises, or sums of bools")
    if 0 in index.shape:
        supported(self)
        return self
    axis, base, places = _along(imp, self, dim, index)
    if isinstance(src, Value) and not src.type.is_host:
        supported(src)
        source = src if src.shape else imp.reshape(src, (1,))
        if src.dtype != self.dtype or source.type.rank != places.type.rank:
            raise Decline("eager raises")
        for axis_, (count, size) in enumerate(zip(_shape(places), _shape(source), strict=True)):
            if count > size:
                raise Decline("eager raises")
            source = imp.slice(source, axis_, 0, count)
    else:
        number = src if isinstance(src, Value) else fitting(src, self.dtype)  # type: ignore[arg-type]  # real
        source = imp.full(_shape(places), number, self.dtype, self.device)
    return imp.reshape(imp.b.op("scatter", base, places, source, dim=axis, mode=mode), _shape(self))


# writing in windows


def _update(imp: Importer, self: Value, src: Value, starts: Sequence[int], steps: Sequence[int]) -> Value:
    _check_window(imp, self, src)
    result = imp.b.op("update_slice", self, src, starts=tuple(starts), steps=tuple(steps))
    return imp.with_strides(result, imp.strides(self))


def _check_window(imp: Importer, self: Value, src: Value) -> None:
    supported(self, src)
    if src.dtype != self.dtype or not layout.is_dense(_shape(self), imp.strides(self)):
        raise Decline("dtypes differ, or eager keeps the gaps of the strides")


@rule("aten.slice_scatter.default")
def slice_scatter(
    imp: Importer,
    self: Value,
    src: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    axis, rank = wrap_dim(dim, self.type.rank), self.type.rank
    if not rank:
        raise Decline("eager raises")
    size = _shape(self)[axis]
    first, last = slice_bounds(start, end, size)
    count = -((first - max(last, first)) // step)
    expected = (*_shape(self)[:axis], count, *_shape(self)[axis + 1 :])
    if _shape(src) != expected or step < 1:
        raise Decline("eager broadcasts or raises")
    starts, steps = [0] * rank, [1] * rank
    starts[axis], steps[axis] = first, step
    return _update(imp, self, src, starts, steps)


@rule("aten.select_scatter.default")
def select_scatter(imp: Importer, self: Value, src: Value, dim: int, index: int) -> Value:
    axis, rank = wrap_dim(dim, self.type.rank), self.type.rank
    shape = _shape(self)
    if not rank or not -shape[axis] <= index < shape[axis] or _shape(src) != shape[:axis] + shape[axis + 1 :]:
        raise Decline("eager raises")
    starts = [0] * rank
    starts[axis] = index % shape[axis]
    return _update(imp, self, imp.reshape(src, (*shape[:axis], 1, *shape[axis + 1 :])), starts, [1] * rank)


@rule("aten.diagonal_scatter.default")
def diagonal_scatter(imp: Importer, self: Value, src: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    _check_window(imp, self, src)
    rank, shape = self.type.rank, _shape(self)
    first, second = wrap_dim(dim1, rank), wrap_dim(dim2, rank)
    if rank < 2 or first == second:
        raise Decline("eager raises")
    strides = layout.contiguous(shape)
    length = max(
        min(shape[first], shape[second] - offset) if offset >= 0 else min(shape[first] + offset, shape[second]), 0
    )
    kept = [d for d in range(rank) if d not in (first, second)]
    window = (*(shape[d] for d in kept), length)
    if _shape(src) != window:
        raise Decline("eager raises")
    start = offset * strides[second] if offset >= 0 else -offset * strides[first]
    result = imp.b.op(
        "update_strided", self, src, shape=window,
        strides=(*(strides[d] for d in kept), strides[first] + strides[second]), offset=start if length else 0,
    )  # fmt: skip
    return imp.with_strides(result, imp.strides(self))
