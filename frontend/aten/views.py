"""ATen's view operators: the geometry eager gives the view, and the link by which it is read and written.

A view rule takes the state of the tensor viewed and the call's other arguments, and returns the state of the view (or a
list). Errors need no wording here: whatever a rule raises, the capture asks eager for the error it would raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from graphc.errors import UnsupportedError
from graphc.frontend.aten import layout, promotion
from graphc.frontend.aten.registry import Decline
from graphc.frontend.functionalize import (
    SAME,
    Bitcast,
    Expand,
    Permute,
    Reshape,
    Shape,
    Slice,
    Strided,
    TensorState,
    dynamic_links,
)  # fmt: skip
from graphc.ir.dims import slice_bounds
from graphc.ir.sizes import bound

ViewFn: TypeAlias = Callable[..., Any]
VIEW_RULES: dict[str, ViewFn] = {}


class StorageModeNeeded(Exception):
    """A view reaches memory of an input's storage which the input itself does not cover."""

    def __init__(self, state: TensorState) -> None:
        self.state = state


def view_rule(*overloads: str) -> Callable[[ViewFn], ViewFn]:
    """Register `fn(state, *args, **kwargs)` as the meaning of view overloads; parameters bear the schema's names."""

    def add(fn: ViewFn) -> ViewFn:
        for overload in overloads:
            VIEW_RULES[overload] = fn
        return fn

    return add


def _wrap(dim: int, rank: int) -> int:
    limit = max(rank, 1)
    if not -limit <= dim < limit:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-limit}, {limit - 1}], but got {dim})")
    return dim % limit


@view_rule("aten.alias.default", "aten.detach.default", "aten.lift_fresh.default", "aten.lift.default")
def same(self: TensorState) -> TensorState:
    return self.view(SAME, self.shape, self.strides)


@view_rule("aten.detach_.default")
def detach_(self: TensorState) -> TensorState:
    return self


# order of dims


@view_rule("aten.permute.default")
def permute(self: TensorState, dims: Sequence[int]) -> TensorState:
    rank = len(self.shape)
    order = tuple(_wrap(dim, rank) for dim in dims)
    if sorted(order) != list(range(rank)):
        raise RuntimeError(f"permute(dims): {list(dims)} is no permutation of {rank} dims")
    if order == tuple(range(rank)):
        return same(self)
    return self.view(Permute(order), tuple(self.shape[d] for d in order), tuple(self.strides[d] for d in order))


@view_rule("aten.transpose.int")
def transpose(self: TensorState, dim0: int, dim1: int) -> TensorState:
    rank = len(self.shape)
    first, second = _wrap(dim0, rank), _wrap(dim1, rank)
    order = list(range(rank))
    if rank:
        order[first], order[second] = order[second], order[first]
    return permute(self, order)


@view_rule("aten.t.default")
def t(self: TensorState) -> TensorState:
    if len(self.shape) > 2:
        raise RuntimeError(f"t() expects a tensor with <= 2 dimensions, but self is {len(self.shape)}D")
    return permute(self, tuple(reversed(range(len(self.shape)))))


# shape


def _reshaped(self: TensorState, shape: Shape, strides: Shape) -> TensorState:
    return self.view(SAME if shape == self.shape else Reshape(self.shape, shape), shape, strides)


@view_rule("aten.view.default", "aten._unsafe_view.default")
def view(self: TensorState, size: Sequence[int]) -> TensorState:
    shape = infer_size(self.shape, size)
    strides = view_strides(self.shape, self.strides, shape)
    if strides is None:
        raise RuntimeError("view size is not compatible with input tensor's size and stride")
    return _reshaped(self, shape, strides)


@view_rule("aten._reshape_alias.default")
def reshape_alias(self: TensorState, size: Sequence[int], stride: Sequence[int]) -> TensorState:
    return _reshaped(self, tuple(size), tuple(stride))


def infer_size(old: Shape, size: Sequence[int]) -> Shape:
    """`size` with its -1 filled in.

    Raises:
        RuntimeError: it does not have as many elements as `old`.
    """
    numel, known = 1, 1
    for extent in old:
        numel *= extent
    for extent in size:
        known *= extent if extent != -1 else 1
    free = [i for i, extent in enumerate(size) if extent == -1]
    if len(free) > 1 or any(extent < -1 for extent in size) or (free and (known == 0 or numel % known)):
        raise RuntimeError(f"shape {list(size)} is invalid for input of size {numel}")
    shape = tuple(numel // known if extent == -1 else extent for extent in size)
    if not free and known != numel:
        raise RuntimeError(f"shape {list(size)} is invalid for input of size {numel}")
    return shape


def view_strides(old: Shape, strides: Shape, new: Shape) -> Shape | None:
    """Strides with which memory of shape `old` is seen in shape `new`, or None when a copy is needed.

    Source of the algorithm: `at::detail::computeStride`.
    """
    if not old:
        return (1,) * len(new)
    if 0 in old:
        return strides if old == new else layout.contiguous(new)
    result = [0] * len(new)
    view_dim = len(new) - 1
    chunk_stride = strides[-1]
    tensor_numel = view_numel = 1
    for dim in range(len(old) - 1, -1, -1):
        tensor_numel *= old[dim]
        if dim and (old[dim - 1] == 1 or strides[dim - 1] == tensor_numel * chunk_stride):
            continue
        while view_dim >= 0 and (view_numel < tensor_numel or new[view_dim] == 1):
            result[view_dim] = view_numel * chunk_stride
            view_numel *= new[view_dim]
            view_dim -= 1
        if view_numel != tensor_numel:
            return None
        if dim:
            chunk_stride = strides[dim - 1]
            tensor_numel = view_numel = 1
    return tuple(result) if view_dim == -1 else None


@view_rule("aten.unsqueeze.default")
def unsqueeze(self: TensorState, dim: int) -> TensorState:
    at = _wrap(dim, len(self.shape) + 1)
    stride = self.shape[at] * self.strides[at] if at < len(self.shape) else 1
    shape = (*self.shape[:at], 1, *self.shape[at:])
    return _reshaped(self, shape, (*self.strides[:at], stride, *self.strides[at:]))


@view_rule("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(self: TensorState, dim: int | Sequence[int] | None = None) -> TensorState:
    rank = len(self.shape)
    chosen = range(rank) if dim is None else (dim,) if isinstance(dim, int) else dim
    gone = {_wrap(d, rank) for d in chosen}
    kept = [d for d in range(rank) if d not in gone or self.shape[d] != 1]
    return _reshaped(self, tuple(self.shape[d] for d in kept), tuple(self.strides[d] for d in kept))


@view_rule("aten.expand.default")
def expand(self: TensorState, size: Sequence[int], implicit: bool = False) -> TensorState:
    lead = len(size) - len(self.shape)
    if lead < 0 or any(extent < 0 for extent in size[:lead]):
        raise RuntimeError("the expanded size must be valid")
    shape, strides = list(size), [0] * len(size)
    for dim, (own, stride) in enumerate(zip(self.shape, self.strides, strict=True), lead):
        if shape[dim] == -1:
            shape[dim] = own
        if own != shape[dim] and own != 1:
            raise RuntimeError("the expanded size of the tensor must match the existing size")
        strides[dim] = stride if own == shape[dim] else 0
    for dim in range(lead - 1, -1, -1) if self.shape else ():
        strides[dim] = 0 if shape[dim] != 1 else (shape[dim + 1] * strides[dim + 1] if dim + 1 < len(shape) else 1)
    new = tuple(shape)
    link = SAME if new == self.shape else Expand(self.shape, new)
    return self.view(link, new, tuple(strides))


# parts


def _sliced(self: TensorState, dim: int, start: int, stop: int, step: int = 1) -> TensorState:
    """Elements `start:stop:step` of one dim, bounds valid."""
    extent = (stop - start + step - 1) // step
    shape = (*self.shape[:dim], extent, *self.shape[dim + 1 :])
    strides = (*self.strides[:dim], self.strides[dim] * step, *self.strides[dim + 1 :])
    whole = extent == self.shape[dim] and step == 1
    link = SAME if whole else Slice(dim, start, stop, step)
    return self.view(link, shape, strides, self.offset + start * self.strides[dim])


@view_rule("aten.slice.Tensor")
def slice_(
    self: TensorState, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> TensorState:
    if not self.shape or step <= 0:
        raise RuntimeError("slice() cannot be applied to a 0-dim tensor, and its step must be greater than zero")
    axis = _wrap(dim, len(self.shape))
    first, last = slice_bounds(start, end, self.shape[axis])
    return _sliced(self, axis, first, max(first, last), step)


@view_rule("aten.select.int")
def select(self: TensorState, dim: int, index: int) -> TensorState:
    if not self.shape:
        raise IndexError("select() cannot be applied to a 0-dim tensor.")
    axis = _wrap(dim, len(self.shape))
    size = self.shape[axis]
    if not -size <= index < size:
        raise IndexError(
            f"select(): index {index} out of range for tensor of size {list(self.shape)} at dimension {axis}"
        )
    place = index + size if index < 0 else index
    part = _sliced(self, axis, place, place + 1)
    return _reshaped(
        part, (*part.shape[:axis], *part.shape[axis + 1 :]), (*part.strides[:axis], *part.strides[axis + 1 :])
    )


@view_rule("aten.narrow.default")
def narrow(self: TensorState, dim: int, start: int, length: int) -> TensorState:
    axis = _wrap(dim, len(self.shape))
    size = self.shape[axis]
    first = start + size if start < 0 else start
    if not self.shape or length < 0 or not -size <= start <= size or first + length > size:
        raise RuntimeError("start and length must lie in the dimension")
    return _sliced(self, axis, first, first + length)


@view_rule("aten.split.Tensor")
def split(self: TensorState, split_size: int, dim: int = 0) -> list[TensorState]:
    axis = _wrap(dim, len(self.shape))
    size = self.shape[axis]
    if split_size < 0 or (split_size == 0 and size != 0):
        raise RuntimeError("split expects a positive split_size")
    count = max((size + split_size - 1) // split_size, 1) if split_size else 1
    return [_sliced(self, axis, i * split_size, min((i + 1) * split_size, size)) for i in range(bound(count))]


@view_rule("aten.split_with_sizes.default", "aten.split.sizes")
def split_with_sizes(self: TensorState, split_sizes: Sequence[int], dim: int = 0) -> list[TensorState]:
    axis = _wrap(dim, len(self.shape))
    if sum(split_sizes) != self.shape[axis] or min(split_sizes, default=0) < 0:
        raise RuntimeError("split_with_sizes expects split_sizes to sum exactly to the size of the dimension")
    starts = [sum(split_sizes[:i]) for i in range(len(split_sizes))]
    return [_sliced(self, axis, first, first + extent) for first, extent in zip(starts, split_sizes, strict=True)]


@view_rule("aten.chunk.default")
def chunk(self: TensorState, chunks: int, dim: int = 0) -> list[TensorState]:
    if not self.shape or chunks <= 0:
        raise RuntimeError("chunk expects at least a 1-dimensional tensor and `chunks` greater than 0")
    size = self.shape[_wrap(dim, len(self.shape))]
    extent = (size + chunks - 1) // chunks
    if extent == 0 and size == 0:
        return split_with_sizes(self, [0] * chunks, dim)
    return split(self, extent, dim)


@view_rule("aten.unbind.int")
def unbind(self: TensorState, dim: int = 0) -> list[TensorState]:
    axis = _wrap(dim, len(self.shape))
    return [select(self, axis, index) for index in range(bound(self.shape[axis]))]


# arbitrary geometry


def _strided(self: TensorState, shape: Shape, strides: Shape, inner: Shape, start: int) -> TensorState:
    """A view with `inner` steps over the row-major elements of `self` from element `start` on."""
    offset = self.offset
    rest = start
    for own, stride in zip(layout.contiguous(self.shape), self.strides, strict=True):
        offset += rest // own * stride
        rest %= own
    return self.view(Strided(shape, inner, start), shape, strides, offset)


@view_rule("aten.diagonal.default")
def diagonal(self: TensorState, offset: int = 0, dim1: int = 0, dim2: int = 1) -> TensorState:
    rank = len(self.shape)
    first, second = _wrap(dim1, rank), _wrap(dim2, rank)
    if first == second:
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    rows, columns = (self.shape[first], self.shape[second] - offset) if offset >= 0 else (
        self.shape[first] + offset, self.shape[second],
    )  # fmt: skip
    size = max(min(rows, columns), 0)
    inner = layout.contiguous(self.shape)
    kept = [d for d in range(rank) if d not in (first, second)]
    start = (offset * inner[second] if offset >= 0 else -offset * inner[first]) if size else 0
    return _strided(
        self,
        (*(self.shape[d] for d in kept), size),
        (*(self.strides[d] for d in kept), self.strides[first] + self.strides[second]),
        (*(inner[d] for d in kept), inner[first] + inner[second]),
        start,
    )


@view_rule("aten.unfold.default")
def unfold(self: TensorState, dimension: int, size: int, step: int) -> TensorState:
    rank = len(self.shape)
    axis = _wrap(dimension, rank)
    extent = self.shape[axis] if rank else 1
    if not 0 <= size <= extent or step <= 0:
        raise RuntimeError("unfold: size must be in [0, size of the dimension] and step positive")
    if not rank:
        return _strided(self, (size,), (1,), (1,), 0)
    inner = layout.contiguous(self.shape)

    def steps(own: Shape) -> Shape:
        return (*own[:axis], own[axis] * step, *own[axis + 1 :], own[axis])

    shape = (*self.shape[:axis], (extent - size) // step + 1, *self.shape[axis + 1 :], size)
    return _strided(self, shape, steps(self.strides), steps(inner), 0)


@view_rule("aten.as_strided.default")
def as_strided(
    self: TensorState, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> TensorState:
    shape, strides = tuple(size), tuple(stride)
    offset = self.offset if storage_offset is None else storage_offset
    if len(shape) != len(strides) or min((*shape, *strides, offset), default=0) < 0:
        raise RuntimeError("as_strided: sizes, strides and offset must be non-negative, as many strides as sizes")
    root = self.storage.root
    if any(dynamic_links(self)):
        raise UnsupportedError("as_strided of a tensor indexed by a tensor; clone() it before")
    if root.dtype != self.dtype or not layout.is_dense(root.shape, root.strides):
        raise StorageModeNeeded(self)
    first = offset - root.offset
    count = layout.span(root.shape, root.strides)
    if 0 not in shape and (first < 0 or first + layout.span(shape, strides) > count):
        raise StorageModeNeeded(self)
    order = sorted(range(len(root.shape)), key=lambda d: (-root.strides[d], -root.shape[d]))
    memory = permute(root, order)
    return memory.view(Strided(shape, strides, first if 0 not in shape else 0), shape, strides, offset)


@view_rule("aten.view.dtype")
def view_dtype(self: TensorState, dtype: torch.dtype) -> TensorState:
    new = promotion.from_torch(dtype)
    if new == self.dtype:
        return same(self)
    plain = ("float", "int", "uint")
    if new.itemsize != self.dtype.itemsize or new.kind not in plain or self.dtype.kind not in plain:
        raise Decline("view(dtype) between dtypes of different sizes")
    if new.is_reduced or self.dtype.is_reduced:
        raise Decline("kernels hold no bits of reduced floats, which they compute in f32")
    return self.view(Bitcast(self.dtype, new), self.shape, self.strides, dtype=new)
