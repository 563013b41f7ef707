"""Which values of a graph consist of rows that are computed one by one, and which part of them a chunk of rows is.

The rows are those of one matrix product, `(B, L)` of them: B batches of L positions each, B = 1 where the product has
no batches. A value made from the product row by row keeps its rows in one dim (`B * size` long, all batches one after
the other) or in two. Of each batch it may hold fewer positions than the product: `logits[:, :-1]` drops the last one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from graphc.ir.graph import Op, Value
from graphc.ops.registry import Kind, get
from graphc.passes.layout import int_shape


class Rows(NamedTuple):
    """Where the rows of a value are.

    Args:
        dims: the dim of all rows, or the dim of batches and that of positions.
        size: positions of each batch.
        offset: position p of the value belongs to position p + offset of the product.
    """

    dims: tuple[int, ...]
    size: int
    offset: int = 0


class Chunk(NamedTuple):
    """Rows of the product: positions `start:stop` of the batches `first:last`, all positions if those are several."""

    first: int
    last: int
    start: int
    stop: int


class Span(NamedTuple):
    """Elements `start:stop` of a dim."""

    dim: int
    start: int
    stop: int


class Refine(Exception):
    """The rows fall into batches after all.

    Args:
        batches: how many.
    """

    def __init__(self, batches: int) -> None:
        super().__init__(batches)
        self.batches = batches


def positions(rows: Rows, chunk: Chunk) -> tuple[int, int]:
    """Which positions of a value belong to a chunk; none when start and stop are equal."""
    start, stop = (min(max(bound - rows.offset, 0), rows.size) for bound in (chunk.start, chunk.stop))
    return start, stop


def spans(rows: Rows, chunk: Chunk) -> list[Span]:
    """The part of a value that belongs to a chunk."""
    start, stop = positions(rows, chunk)
    if len(rows.dims) == 2:
        return [Span(rows.dims[0], chunk.first, chunk.last), Span(rows.dims[1], start, stop)]
    if chunk.last - chunk.first > 1:
        return [Span(rows.dims[0], chunk.first * rows.size, chunk.last * rows.size)]
    return [Span(rows.dims[0], chunk.first * rows.size + start, chunk.first * rows.size + stop)]


def part_shape(shape: Sequence[int], rows: Rows, chunk: Chunk) -> tuple[int, ...]:
    """Shape of the part of a value that belongs to a chunk."""
    sizes = list(shape)
    for span in spans(rows, chunk):
        sizes[span.dim] = span.stop - span.start
    return tuple(sizes)


def rows_of_result(op: Op, known: Mapping[Value, Rows], batches: int) -> Rows | None:
    """Where the rows of an op's result are; None when it does not work row by row.

    Args:
        known: values that consist of rows; at least one operand is among them.
        batches: B.

    Raises:
        Refine: the op splits the rows into batches.
    """
    if len(op.results) != 1:
        return None
    definition = get(op.name)
    if definition.kind is Kind.POINTWISE and not op.result.type.is_host:
        return _of_pointwise(op, known)
    rule = _RULES.get(op.name)
    if rule is not None:
        return rule(op, known, batches)
    return _of_reduction(op, known) if definition.kind is Kind.REDUCTION else None


def _of_pointwise(op: Op, known: Mapping[Value, Rows]) -> Rows | None:
    rank = op.result.type.rank
    found = {shifted(known[item], rank - item.type.rank) for item in op.inputs if item in known}
    return found.pop() if len(found) == 1 else None


def shifted(rows: Rows, by: int) -> Rows:
    """The same rows after `by` more dims in front."""
    return rows._replace(dims=tuple(dim + by for dim in rows.dims))


def _only(op: Op) -> Value:
    (operand,) = op.inputs
    return operand


def _of_permute(op: Op, known: Mapping[Value, Rows], batches: int) -> Rows | None:
    rows, order = known[_only(op)], tuple(op.attrs["dims"])
    return rows._replace(dims=tuple(order.index(dim) for dim in rows.dims))


def _of_expand(op: Op, known: Mapping[Value, Rows], batches: int) -> Rows | None:
    return shifted(known[_only(op)], op.result.type.rank - _only(op).type.rank)


def _of_reshape(op: Op, known: Mapping[Value, Rows], batches: int) -> Rows | None:
    return through_reshape(int_shape(_only(op)), int_shape(op.result), known[_only(op)], batches)


def _of_slice(op: Op, known: Mapping[Value, Rows], batches: int) -> Rows | None:
    rows, dim = known[_only(op)], op.attrs["dim"]
    if dim not in rows.dims:
        return rows
    if dim != rows.dims[-1] or op.attrs["step"] != 1 or (len(rows.dims) == 1 and batches > 1):
        return None
    start, stop = op.attrs["start"], op.attrs["stop"]
    if stop - start < 2:
        return None
    return rows._replace(size=stop - start, offset=rows.offset + start)


def _of_pad(op: Op, known: Mapping[Value, Rows], batches: int) -> Rows | None:
    rows, low, high = known[_only(op)], op.attrs["low"], op.attrs["high"]
    if any(low[dim] or high[dim] for dim in rows.dims[:-1]):
        return None
    dim = rows.dims[-1]
    if not low[dim] and not high[dim]:
        return rows
    if len(rows.dims) == 1 and batches > 1:
        return None
    return rows._replace(size=low[dim] + rows.size + high[dim], offset=rows.offset - low[dim])


def _of_gather(op: Op, known: Mapping[Value, Rows], batches: int) -> Rows | None:
    table, index = op.operands
    rows = known.get(table)  # type: ignore[arg-type]
    if rows is None or not isinstance(index, Value) or op.attrs["dim"] in rows.dims or known.get(index, rows) != rows:
        return None
    return rows if all(index.shape[dim] == table.shape[dim] for dim in rows.dims) else None  # type: ignore[union-attr]


def _of_matmul(op: Op, known: Mapping[Value, Rows], batches: int) -> Rows | None:
    a, b = op.operands
    assert isinstance(a, Value) and isinstance(b, Value)
    if a not in known or b in known or b.type.rank != 2 or a.type.rank - 1 in known[a].dims:
        return None
    return known[a]


def _of_reduction(op: Op, known: Mapping[Value, Rows]) -> Rows | None:
    rows, dims = known[_only(op)], reduced_dims(op)
    if dims.intersection(rows.dims):
        return None
    if op.attrs["keepdim"]:
        return rows
    return rows._replace(dims=tuple(dim - sum(other < dim for other in dims) for dim in rows.dims))


def reduced_dims(op: Op) -> frozenset[int]:
    """The dims that a reduction is over."""
    if "dims" in op.attrs:
        return frozenset(op.attrs["dims"])
    dim = op.attrs["dim"]
    return frozenset(range(_only(op).type.rank)) if dim is None else frozenset((dim,))


_RULES = {
    "permute": _of_permute,
    "expand": _of_expand,
    "reshape": _of_reshape,
    "slice": _of_slice,
    "pad": _of_pad,
    "gather": _of_gather,
    "matmul": _of_matmul,
}


def adds_up_rows(op: Op, known: Mapping[Value, Rows]) -> bool:
    """Whether the result is a sum over all rows: of the rows themselves, or of products of two matrices of rows."""
    if op.name == "sum":
        return set(known[_only(op)].dims) <= set(op.attrs["dims"])
    if op.name != "matmul" or not op.result.dtype.is_float:
        return False
    factors = [(item, known.get(item), dim) for item, dim in zip(op.inputs, (1, 0), strict=True)]
    found = {rows._replace(dims=()) for _, rows, _ in factors if rows is not None}
    return len(found) == 1 and all(
        item.type.rank == 2 and (rows is None or rows.dims == (dim,)) for item, rows, dim in factors
    )


def through_reshape(before: Sequence[int], after: Sequence[int], rows: Rows, batches: int) -> Rows | None:
    """Where rows are after a reshape; None when it mixes them with something else.

    Raises:
        Refine: it splits them into batches.
    """
    places: list[int] = []
    for old, new in _matched(before, after):
        if not set(old) & set(rows.dims):
            continue
        if not set(old) <= set(rows.dims):
            return None
        if len(old) == len(rows.dims) == 1 and len(new) == 2:
            sizes = [after[dim] for dim in new]
            if batches == 1 and sizes == [sizes[0], rows.size // sizes[0]] and rows.offset == 0:
                raise Refine(sizes[0])
            return rows._replace(dims=tuple(new)) if sizes == [batches, rows.size] else None
        if len(new) != 1:
            return None
        places += new
    return rows._replace(dims=tuple(places)) if places else None


def _matched(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Groups of dims of two shapes that hold the same elements, smallest first; dims of size 1 left out."""
    old = [dim for dim, size in enumerate(before) if size != 1]
    new = [dim for dim, size in enumerate(after) if size != 1]
    groups: list[tuple[list[int], list[int]]] = []
    while old and new:
        left, right = [old.pop(0)], [new.pop(0)]
        while (have := math.prod(before[dim] for dim in left)) != (want := math.prod(after[dim] for dim in right)):
            shorter, rest = (left, old) if have < want else (right, new)
            if not rest:
                return groups
            shorter.append(rest.pop(0))
        groups.append((left, right))
    return groups


def rows_of_operand(op: Op, operand: Value, rows: Rows, batches: int) -> Rows | None:
    """Where an operand has the rows of an op's result; without dims when it has none, None when that is not known.

    Args:
        rows: of the result.
    """
    if op.name == "permute":
        return rows._replace(dims=tuple(op.attrs["dims"][dim] for dim in rows.dims))
    if op.name == "slice" and op.attrs["dim"] in rows.dims:
        start, dim = op.attrs["start"], op.attrs["dim"]
        if dim != rows.dims[-1] or op.attrs["step"] != 1 or (len(rows.dims) == 1 and batches > 1):
            return None
        return rows._replace(size=int_shape(operand)[dim], offset=rows.offset - start)
    if op.name == "reshape":
        try:
            return through_reshape(int_shape(op.result), int_shape(operand), rows, batches)
        except Refine:
            return None
    if get(op.name).kind is Kind.REDUCTION:
        dims = [dim for dim in range(operand.type.rank) if op.attrs["keepdim"] or dim not in reduced_dims(op)]
        return rows._replace(dims=tuple(dims[dim] for dim in rows.dims))
    own = shifted(rows, operand.type.rank - op.result.type.rank)
    return own if any(dim >= 0 and operand.shape[dim] != 1 for dim in own.dims) else own._replace(dims=())
