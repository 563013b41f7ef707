"""Alias tracking: how views and in-place code become pure values.

A `Storage` is one allocation of eager; it has a current `base` value. A `TensorState` is one tensor onto a storage: the
storage's root, or a view, which is a `Link` away from its parent. Reading a stale view applies the links again; writing
through a view goes back along them, so that the storage gets a new base value:

    y = x.t()          y ──permute──▶ x (root, base %0)
    y.add_(1)          %1 = permute(%0); %2 = add(%1, 1); %3 = permute(%2); base of x is now %3
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from graphc.errors import EagerOnlyError, UnsupportedError
from graphc.frontend.aten.extern import copied, kernels_hold
from graphc.ir.graph import Builder, Input, Value
from graphc.ir.types import UNKNOWN, DType, contiguous_strides, i64

Shape: TypeAlias = tuple[int, ...]
ParentValue: TypeAlias = Callable[[], Value]


@dataclass(frozen=True)
class Link:
    """One invertible step from a parent tensor to a view of it."""

    def forward(self, b: Builder, parent: Value) -> Value:
        """The view's value from the parent's."""
        raise NotImplementedError

    def backward(self, b: Builder, parent: ParentValue, new: Value) -> Value:
        """The parent's value after the view was given the value `new`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Same(Link):
    """`detach`, `alias`: the same elements in the same shape."""

    def forward(self, b: Builder, parent: Value) -> Value:
        return parent

    def backward(self, b: Builder, parent: ParentValue, new: Value) -> Value:
        return new


@dataclass(frozen=True)
class Reshape(Link):
    """The same elements in row-major order."""

    parent_shape: Shape
    shape: Shape

    def forward(self, b: Builder, parent: Value) -> Value:
        return b.op("reshape", parent, shape=self.shape)

    def backward(self, b: Builder, parent: ParentValue, new: Value) -> Value:
        return b.op("reshape", new, shape=self.parent_shape)


@dataclass(frozen=True)
class Permute(Link):
    """Dimensions in another order."""

    dims: Shape

    def forward(self, b: Builder, parent: Value) -> Value:
        return b.op("permute", parent, dims=self.dims)

    def backward(self, b: Builder, parent: ParentValue, new: Value) -> Value:
        inverse = sorted(range(len(self.dims)), key=self.dims.__getitem__)
        return b.op("permute", new, dims=tuple(inverse))


@dataclass(frozen=True)
class Slice(Link):
    """`start:stop:step` along one dim."""

    dim: int
    start: int
    stop: int
    step: int

    def forward(self, b: Builder, parent: Value) -> Value:
        return b.op("slice", parent, dim=self.dim, start=self.start, stop=self.stop, step=self.step)

    def backward(self, b: Builder, parent: ParentValue, new: Value) -> Value:
        base = parent()
        starts = tuple(self.start if dim == self.dim else 0 for dim in range(base.type.rank))
        steps = tuple(self.step if dim == self.dim else 1 for dim in range(base.type.rank))
        return b.op("update_slice", base, new, starts=starts, steps=steps)


@dataclass(frozen=True)
class Expand(Link):
    """Broadcast. What is written to it comes back here only where it repeats nothing; see `write`."""

    parent_shape: Shape
    shape: Shape

    def forward(self, b: Builder, parent: Value) -> Value:
        return b.op("expand", parent, shape=self.shape)

    def backward(self, b: Builder, parent: ParentValue, new: Value) -> Value:
        return b.op("reshape", new, shape=self.parent_shape)


def _in_order(b: Builder, value: Value) -> Value:
    """A value for a call that takes strides as steps through memory: row by row there, where no kernel is the call."""
    if value.strides is None or kernels_hold(value.dtype):
        return value
    return copied(b, value, contiguous_strides(value.shape))  # type: ignore[arg-type]  # static


@dataclass(frozen=True)
class Strided(Link):
    """`as_strided`, relative to the contiguous flattening of the parent."""

    shape: Shape
    strides: Shape
    offset: int

    def forward(self, b: Builder, parent: Value) -> Value:
        return b.op("as_strided", _in_order(b, parent), shape=self.shape, strides=self.strides, offset=self.offset)

    def backward(self, b: Builder, parent: ParentValue, new: Value) -> Value:
        base = _in_order(b, parent())
        return b.op("update_strided", base, new, shape=self.shape, strides=self.strides, offset=self.offset)


@dataclass(frozen=True)
class Bitcast(Link):
    """The same bytes read as another dtype of the same size."""

    parent_dtype: DType
    dtype: DType

    def forward(self, b: Builder, parent: Value) -> Value:
        return b.op("bitcast", parent, dtype=self.dtype)

    def backward(self, b: Builder, parent: ParentValue, new: Value) -> Value:
        return b.op("bitcast", new, dtype=self.parent_dtype)


@dataclass(frozen=True, eq=False)
class DynamicSelect(Link):
    """One place along a dim, given by a 0-d tensor of integers."""

    dim: int
    index: Value
    size: int
    stride: int

    def forward(self, b: Builder, parent: Value) -> Value:
        return b.op("take", parent, self.index, dim=self.dim)

    def backward(self, b: Builder, parent: ParentValue, new: Value) -> Value:
        return b.op("put", parent(), self.index, new, dim=self.dim, mode="set")


@dataclass(frozen=True, eq=False)
class DynamicWindow(DynamicSelect):
    """As many places next to each other, from one on behind which all of them are there; else the run is not used."""

    count: int

    def forward(self, b: Builder, parent: Value) -> Value:
        return b.op("take", parent, self._places(b), dim=self.dim, check="inside")

    def backward(self, b: Builder, parent: ParentValue, new: Value) -> Value:
        return b.op("put", parent(), self._places(b), new, dim=self.dim, mode="set", check="inside")

    def _places(self, b: Builder) -> Value:
        return window(b, self.index, self.size, self.count)


def window(b: Builder, start: Value, size: int, count: int) -> Value:
    """The places of a window along a dim, all of them inside of it."""
    inside = b.op("minimum", b.op("maximum", start, 0), size - count)
    return b.op("add", b.op("iota", size=count, start=0, step=1, dtype=i64, device=start.device), inside)


SAME = Same()


class Storage:
    """One allocation of eager.

    Attributes:
        base: current contents, in the root's shape.
        version: counts writes.
        root: the tensor onto the whole of it.
        source: the graph input it came in as, or None when the function made it.
        constant: the source is a constant of the function: writes to it are not seen by the user.
    """

    __slots__ = ("base", "constant", "root", "source", "version")

    def __init__(self, base: Value, source: Input | None = None, constant: bool = False) -> None:
        self.base, self.source, self.constant, self.version = base, source, constant, 0
        self.root: TensorState

    @property
    def visible(self) -> bool:
        """The user holds this storage before the call."""
        return self.source is not None and not self.constant


class TensorState:
    """One tensor onto a storage, with the geometry eager gives it (elements; offset from the start of the allocation).

    Attributes:
        cached: its value at `version` of the storage.
        location: where the view was made; ops that read it bear it.
    """

    __slots__ = ("cached", "dtype", "link", "location", "offset", "parent", "shape", "storage", "strides", "version")

    def __init__(
        self, storage: Storage, parent: TensorState | None, link: Link, shape: Shape, strides: Shape, offset: int,
        dtype: DType,
    ) -> None:  # fmt: skip
        self.storage, self.parent, self.link, self.dtype, self.location = storage, parent, link, dtype, UNKNOWN
        self.shape, self.strides, self.offset = shape, strides, offset
        self.cached: Value | None = None
        self.version = -1

    @property
    def device(self) -> str:
        return self.storage.base.device

    def view(
        self, link: Link, shape: Shape, strides: Shape, offset: int | None = None, dtype: DType | None = None
    ) -> TensorState:
        """A view of this tensor; it starts where this one does unless `offset` says otherwise."""
        start = self.offset if offset is None else offset
        return TensorState(self.storage, self, link, shape, strides, start, dtype or self.dtype)

    def is_current(self) -> bool:
        return self.parent is None or self.version == self.storage.version


def root_state(
    value: Value, strides: Shape, offset: int = 0, source: Input | None = None, constant: bool = False
) -> TensorState:
    """A tensor onto the whole of a new storage that holds `value`."""
    storage = Storage(value, source, constant)
    state = TensorState(storage, None, SAME, value.shape, strides, offset, value.dtype)  # type: ignore[arg-type]
    storage.root = state
    return state


def dynamic_links(state: TensorState) -> Iterator[DynamicSelect]:
    """The steps of a view whose place depends on data; its offset counts them as the first place."""
    view: TensorState | None = state
    while view is not None:
        if isinstance(view.link, DynamicSelect):
            yield view.link
        view = view.parent


def read(b: Builder, state: TensorState) -> Value:
    """The present value of a tensor; appends the view ops that are missing."""
    stale: list[TensorState] = []
    current: TensorState | None = state
    while current is not None and not current.is_current():
        stale.append(current)
        current = current.parent
    assert current is not None
    value = state.storage.base if current.parent is None else current.cached
    assert value is not None
    here = b.location
    for view in reversed(stale):
        b.location = view.location or here
        value = view.link.forward(b, value)
        view.cached, view.version = value, view.storage.version
    b.location = here
    return value


def write(b: Builder, state: TensorState, new: Value) -> None:
    """Give a tensor new contents: of its shape, dtype and device.

    Raises:
        EagerOnlyError: several of its elements are one place in memory, and which one stays is for eager to say.
        UnsupportedError: its elements overlap in a way whose result eager does not define either.
    """
    if 0 in state.shape:
        return
    if repeats(state):
        state, new = _once(b, state, new)
    if overlap(state.shape, state.strides):
        raise UnsupportedError(
            "a write through windows that overlap, whose result eager does not define; clone() the view before",
            b.location,
        )
    value, view = new, state
    repeating = next((view for view in _from_root(state) if _is_many_to_one(view.link)), None)
    if repeating is not None:
        value, view = _scattered(b, repeating, state, new), repeating.parent  # type: ignore[assignment]
    while view.parent is not None:
        parent = view.parent
        value = view.link.backward(b, lambda parent=parent: read(b, parent), value)  # type: ignore[misc]
        view = parent
    state.storage.base = value
    state.storage.version += 1
    if state.parent is not None:
        state.cached, state.version = new, state.storage.version


def repeats(state: TensorState) -> bool:
    """Whether several elements of a tensor are one place in memory because it has been expanded."""
    return any(stride == 0 and size > 1 for size, stride in zip(state.shape, state.strides, strict=True))


def _once(b: Builder, state: TensorState, new: Value) -> tuple[TensorState, Value]:
    """Each place in memory once, where the same is written to all elements, as `fill_` does."""
    op = new.op
    if op is None or not (op.name == "full" or (op.name == "expand" and next(op.inputs).type.rank == 0)):
        raise EagerOnlyError(
            "it writes to a tensor of which several elements are one place in memory; clone() the tensor before",
            b.location,
        )
    for dim, (size, stride) in enumerate(zip(state.shape, state.strides, strict=True)):
        if stride == 0 and size > 1:
            shape = (*state.shape[:dim], 1, *state.shape[dim + 1 :])
            link = Slice(dim, 0, 1, 1)
            state, new = state.view(link, shape, state.strides), link.forward(b, new)
    return state, new


def _from_root(state: TensorState) -> list[TensorState]:
    """The views that lead from a storage's root to a tensor, in this order."""
    found: list[TensorState] = []
    view: TensorState | None = state
    while view is not None and view.parent is not None:
        found.append(view)
        view = view.parent
    return found[::-1]


def _is_many_to_one(link: Link) -> bool:
    """Whether several elements of the view may be one element of the parent."""
    if isinstance(link, Expand):
        return math.prod(link.shape) != math.prod(link.parent_shape)
    return isinstance(link, Strided) and overlap(link.shape, link.strides)


def _scattered(b: Builder, first: TensorState, state: TensorState, new: Value) -> Value:
    """What the parent of a view that repeats its elements holds after a part of that view, `state`, is written.

    Each element of the part is another element of the parent: which one is told by the views themselves, applied to the
    positions in the parent.
    """
    base = read(b, first.parent)  # type: ignore[arg-type]
    count = base.type.numel
    places = b.op("iota", size=count, start=0, step=1, dtype=i64, device=base.device)
    places = b.op("reshape", places, shape=base.shape)
    for view in _from_root(state)[len(_from_root(first)) - 1 :]:
        if not isinstance(view.link, Bitcast):
            places = view.link.forward(b, places)
    if new.dtype != base.dtype:
        new = b.op("bitcast", new, dtype=base.dtype)
    flat, rows, source = (b.op("reshape", v, shape=(v.type.numel,)) for v in (base, places, new))
    flat = b.op("put", flat, rows, source, dim=0, mode="set", check="none")
    return b.op("reshape", flat, shape=base.shape)


def overlap(shape: Shape, strides: Shape) -> bool:
    """Two elements may be one place in memory, so that the value read back is not the value written."""
    reach = 0
    for stride, size in sorted((st, sz) for st, sz in zip(strides, shape, strict=True) if sz > 1):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False
