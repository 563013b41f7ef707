"""Where the elements of values lie: strides of buffers, and views that library calls can take without a copy."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from math import prod

from graphc.ir.dims import Dim
from graphc.ir.graph import Input, Op, Value
from graphc.ir.types import contiguous_strides
from graphc.loopir.kernel import Gap

Strides = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """A value as a strided look into the buffer of another one (or its own), in elements."""

    base: Value
    shape: tuple[int, ...]
    strides: Strides
    offset: int = 0


def int_shape(value: Value) -> tuple[int, ...]:
    return value.shape  # type: ignore[return-value]  # plans are made for graphs of static shapes


def wanted_strides(value: Value) -> Strides:
    """The strides eager gave the value."""
    strides = contiguous_strides(value.shape) if value.strides is None else value.strides
    return tuple(strides)  # type: ignore[arg-type]  # static


def span(shape: tuple[int, ...], strides: Strides) -> int:
    """Elements from the first to the last one, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def flat_index(index: Sequence[Dim], strides: Sequence[int]) -> Dim:
    """Elements from the first one to the one at `index`."""
    flat: Dim = 0
    for part, stride in zip(index, strides, strict=True):
        flat = flat + part * stride
    return flat


def same_strides(shape: tuple[int, ...], a: Strides, b: Strides) -> bool:
    """Equal where it matters: along dims of more than one element."""
    return 0 in shape or all(size == 1 or x == y for size, x, y in zip(shape, a, b, strict=True))


def is_dense(shape: tuple[int, ...], strides: Strides) -> bool:
    """Every element between the first and the last one belongs to the value, once."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def has_apart_rows(shape: tuple[int, ...], strides: Strides) -> bool:
    """The plain order, but that there may be a gap behind each row."""
    if len(shape) < 2 or strides[-1] != 1 or strides[-2] < shape[-1]:
        return False
    rows = contiguous_strides(shape[:-1])
    return all(stride == step * strides[-2] for stride, step in zip(strides[:-1], rows, strict=True))


def dense_like(shape: tuple[int, ...], strides: Strides) -> Strides:
    """Strides without gaps, dims in the order that they have in memory."""
    found, expected = [1] * len(shape), 1
    for dim in sorted(range(len(shape)), key=lambda dim: (strides[dim], -dim)):
        found[dim] = expected
        expected *= max(shape[dim], 1)
    return tuple(found)


class Layouts:
    """Strides of materialised values: inputs as they come, others as eager has them when dense, or but for gaps behind
    rows, else contiguous.

    `chosen` overrides them for values whose layout a later step decides.

    Args:
        gaps: values whose rows have gaps behind them that are their own.
    """

    def __init__(self, gaps: Set[Value] = frozenset()) -> None:
        self.chosen: dict[Value, Strides] = {}
        self.gaps = gaps

    def gap(self, value: Value) -> Gap | None:
        """What lies behind the rows of a value, where that is nobody's."""
        shape, strides = int_shape(value), self.strides(value)
        if value not in self.gaps or not has_apart_rows(shape, strides):
            return None
        return Gap(shape[-1], strides[-2])

    def room(self, value: Value) -> int:
        """Elements that its memory has."""
        shape, gap = int_shape(value), self.gap(value)
        return span(shape, self.strides(value)) if gap is None else prod(shape[:-1]) * gap.pitch

    def strides(self, value: Value) -> Strides:
        found = self.chosen.get(value)
        if found is not None:
            return found
        wanted = wanted_strides(value)
        shape = int_shape(value)
        is_kept = isinstance(value, Input) or is_dense(shape, wanted) or has_apart_rows(shape, wanted)
        if value.strides is not None and not is_kept:
            wanted = tuple(contiguous_strides(value.shape))  # type: ignore[arg-type]  # static
        self.chosen[value] = wanted
        return wanted

    def place(self, value: Value, *own: Set[Value]) -> Place:
        """The value as a view of the nearest buffer that can hold it, going back through view ops.

        Args:
            value: any value.
            own: sets of values that have a buffer of their own in any case.
        """
        chain: list[Op] = []
        base = value
        while base.op is not None and is_view(base.op) and not any(base in values for values in own):
            chain.append(base.op)
            operand = base.op.operands[0]
            assert isinstance(operand, Value)
            base = operand
        at = Place(base, int_shape(base), self.strides(base))
        for op in reversed(chain):
            moved = view_of(at, op)
            if moved is None:  # the op needs a copy, which is a buffer of its own
                result = op.results[0]
                moved = Place(result, int_shape(result), self.strides(result))
            at = moved
        return at


def _reshape(at: Place, op: Op) -> Place | None:
    shape = op.attrs["shape"]
    strides = view_strides(at.shape, at.strides, shape)
    return None if strides is None else replace(at, shape=shape, strides=strides)


def view_strides(shape: tuple[int, ...], strides: Strides, new: tuple[int, ...]) -> Strides | None:
    """Strides with which memory laid out as (shape, strides) is read as `new` in row-major order, or None.

    Source: the rule of `torch.Tensor.view`: runs of dims that are evenly spaced in memory may be cut anew.
    """
    if 0 in shape:
        return tuple(contiguous_strides(new))  # type: ignore[arg-type]  # static
    runs: list[tuple[int, int]] = []  # (elements, stride of the innermost) per evenly spaced run, outermost first
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if runs and runs[-1][1] == size * stride:
            runs[-1] = (runs[-1][0] * size, stride)
        else:
            runs.append((size, stride))
    found: list[int] = []
    left, step = runs.pop() if runs else (1, 1)
    for size in reversed(new):
        if size == 1:
            found.append(step)
            continue
        if left == 1 and runs:
            left, step = runs.pop()
        if left % size != 0:
            return None
        found.append(step)
        left, step = left // size, step * size
    return tuple(reversed(found))


def _permute(at: Place, op: Op) -> Place:
    dims = op.attrs["dims"]
    return replace(at, shape=tuple(at.shape[d] for d in dims), strides=tuple(at.strides[d] for d in dims))


def _expand(at: Place, op: Op) -> Place:
    shape = op.attrs["shape"]
    lead = len(shape) - len(at.shape)
    strides = tuple(
        0 if d < lead or (at.shape[d - lead] == 1 and size != 1) else at.strides[d - lead]
        for d, size in enumerate(shape)
    )
    return replace(at, shape=shape, strides=strides)


def _slice(at: Place, op: Op) -> Place:
    dim, start, stop, step = (op.attrs[name] for name in ("dim", "start", "stop", "step"))
    shape, strides = list(at.shape), list(at.strides)
    shape[dim] = -(-(stop - start) // step)
    offset = at.offset + start * strides[dim]
    strides[dim] *= step
    # an empty slice may start at the very end: any offset will do
    return Place(at.base, tuple(shape), tuple(strides), 0 if 0 in shape else offset)


def _as_strided(at: Place, op: Op) -> Place | None:
    if not same_strides(at.shape, at.strides, tuple(contiguous_strides(at.shape))):  # type: ignore[arg-type]
        return None
    return Place(at.base, op.attrs["shape"], op.attrs["strides"], at.offset + op.attrs["offset"])


_VIEWS = {"reshape": _reshape, "permute": _permute, "expand": _expand, "slice": _slice, "as_strided": _as_strided}


def is_view(op: Op | None) -> bool:
    return op is not None and op.name in _VIEWS


def view_of(at: Place, op: Op) -> Place | None:
    """What a view op gives of a place; None where it needs a copy."""
    return _VIEWS[op.name](at, op)


def before_merge(value: Value) -> Value | None:
    """What a reshape merged the leading dims of into one batch dim; None when it is not such a reshape."""
    if value.op is None or value.op.name != "reshape" or value.type.rank != 3:
        return None
    source = value.op.operands[0]
    assert isinstance(source, Value)
    return source if source.type.rank > 3 and source.shape[-2:] == value.shape[-2:] else None
