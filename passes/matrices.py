"""The matrices of a value as a view of another one: which dims of that are heads, rows and columns.

    %0: bf16[2, 3, 4, 8] = permute(%q) {dims=[0, 2, 1, 3]}     %q: bf16[2, 4, 3, 8]
    %1: bf16[6, 4, 8] = reshape(%0)                       ->   matrices of %q: heads (0, 2), rows (1,), columns (3,)

So heads that lie among other dims in memory are seen there, and equal matrices are known to be equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from graphc.ir.graph import Op, Value
from graphc.passes.layout import int_shape


@dataclass(frozen=True)
class Matrices:
    """A matrix per head as a view: dims of the source that are heads, rows and columns; all others are of size 1."""

    source: Value
    lead: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def turned(self) -> Matrices:
        """Transposed."""
        return replace(self, rows=self.columns, columns=self.rows)

    @property
    def is_plain(self) -> bool:
        """Whether dims lie in order: heads, rows, columns."""
        dims = (*self.lead, *self.rows, *self.columns)
        return dims == tuple(sorted(dims))

    def size(self, dims: Iterable[int]) -> int:
        return math.prod(int_shape(self.source)[dim] for dim in dims)


def matrices(value: Value, through: Sequence[str] = (), until: Value | None = None) -> Matrices:
    """The last two dims of a value as matrices, followed back through views.

    Args:
        through: other ops of one element by one that are gone through.
        until: where to stop.
    """
    rank = value.type.rank
    dims = [dim for dim, size in enumerate(int_shape(value)) if size != 1]
    found = Matrices(
        value,
        tuple(dim for dim in dims if dim < rank - 2),
        tuple(dim for dim in dims if dim == rank - 2),
        tuple(dim for dim in dims if dim == rank - 1),
    )
    while found.source is not until and found.source.op is not None:
        earlier = before(found, found.source.op, through)
        if earlier is None:
            break
        found = earlier
    return found


def before(item: Matrices, op: Op, through: Sequence[str]) -> Matrices | None:
    """The same matrices in what an op is a view of."""
    if op.name == "permute":
        source, dims = next(iter(op.inputs)), op.attrs["dims"]
        slots = [tuple(dims[dim] for dim in slot) for slot in (item.lead, item.rows, item.columns)]
        return Matrices(source, *slots)
    if op.name == "reshape":
        return _before_reshape(item, next(iter(op.inputs)))
    if op.name in through:
        # the operand that has all elements: masks and factors have fewer, or come first
        wide = [value for value in op.inputs if value.shape == item.source.shape and value.dtype.is_float]
        return replace(item, source=wide[0]) if len(wide) == 1 else None
    return None


def _before_reshape(item: Matrices, source: Value) -> Matrices | None:
    pieces = _pieces(int_shape(source), int_shape(item.source))
    slots = [None if pieces is None else _followed(slot, pieces) for slot in (item.lead, item.rows, item.columns)]
    lead, rows, columns = slots
    if lead is None or rows is None or columns is None or len(lead) > 2 or len(rows) > 1 or len(columns) > 1:
        return None
    return Matrices(source, lead, rows, columns)


def _pieces(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]] | None:
    """Runs of dims of two shapes of the same elements that are as many, dims of size 1 left out."""
    found: list[tuple[list[int], list[int]]] = []
    olds = [dim for dim, size in enumerate(before) if size != 1]
    news = [dim for dim, size in enumerate(after) if size != 1]
    while olds and news:
        old, new = [olds.pop(0)], [news.pop(0)]
        while (left := math.prod(before[d] for d in old)) != (right := math.prod(after[d] for d in new)):
            more = olds if left < right else news
            if not more:
                return None
            (old if left < right else new).append(more.pop(0))
        found.append((old, new))
    return found if not olds and not news else None


def _followed(slot: Sequence[int], pieces: Sequence[tuple[list[int], list[int]]]) -> tuple[int, ...] | None:
    """The dims before a reshape that these are, None where they are a part of one."""
    found: list[int] = []
    left = list(slot)
    while left:
        old, new = next(piece for piece in pieces if left[0] in piece[1])
        if left[: len(new)] != new or (len(new) > 1 and len(old) > 1):
            return None
        found += old
        del left[: len(new)]
    return tuple(found)
