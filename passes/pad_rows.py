"""Rows of matrices inside a program begin at addresses that wide accesses take: those between them are left unused.

    %0: bf16[1024, 50257] = matmul(%h, %w)    ->    %0: bf16[1024, 50257] strides=[50304, 1] = matmul(%h, %w)

An odd number of columns, as of a vocabulary, would leave kernels one element per access, and libraries' products the
slow forms that they have for addresses of any kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from graphc.ir.graph import Graph, Input, Op, Value
from graphc.ir.types import contiguous_strides
from graphc.ops.registry import Kind, get
from graphc.passes.base import PassContext, PassResult
from graphc.passes.layout import Place, Strides, has_apart_rows, int_shape, is_view, view_of
from graphc.passes.updates import UPDATES

_ACCESS = 16
"""Bytes of the widest access of a thread; libraries ask for the same of rows."""
_LINE = 128
"""Bytes that caches hold together: where these are a small part of a row, it begins with one."""
_SMALLEST_ROW, _LONG_ROW, _SMALLEST = 256, 4096, 1 << 20
"""Bytes of a row that the gap is a small part of, for either of the two; of a matrix that it is worth it for."""
_PRODUCTS = frozenset(("matmul", "gemm"))


@dataclass(frozen=True)
class PadRows:
    """Gives values that products read or make rows apart from one another, where nobody sees it.

    All that reads such a value, through views or not, has to be a product or an op of a kernel: calls of ATen and what
    the user gets are laid out as in eager. The gaps are nobody's, so that kernels may write to them what they like.
    """

    name: ClassVar[str] = "pad-rows"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if ctx.target == "cpu":
            return PassResult(False)
        inside = _Inside(graph)
        modified = False
        for value in _of_products(graph):
            strides = _padded(value)
            if strides is not None and inside.takes(value, strides):
                value.strides = strides
                modified = True
        return PassResult(modified)


def values_with_gaps(graph: Graph) -> frozenset[Value]:
    """Values of a graph that has been laid out whose rows have gaps behind them that are theirs alone."""
    found = [
        result
        for op in graph.ops
        for result in op.results
        if result.strides is not None and has_apart_rows(int_shape(result), result.strides)  # type: ignore[arg-type]
    ]
    inside = _Inside(graph) if found else None
    return frozenset(value for value in found if inside and inside.takes(value, value.strides))  # type: ignore[arg-type]


def _of_products(graph: Graph) -> Iterator[Value]:
    """What products read or make, each value once, as it lies in memory."""
    found: dict[Value, None] = {}
    for op in graph.ops:
        if op.name in _PRODUCTS:
            found |= dict.fromkeys(_base(item) for item in (*op.operands[:2], *op.results) if isinstance(item, Value))
    yield from found


def _base(value: Value) -> Value:
    while is_view(value.op):
        value = value.op.operands[0]  # type: ignore[union-attr, assignment]  # a view of a value
    return value


def _padded(value: Value) -> Strides | None:
    """Strides with rows that begin at multiples of an access; None where they do, or where it is not worth it."""
    shape = int_shape(value)
    if isinstance(value, Input) or value.op is None or len(shape) < 2 or 1 in shape[-2:]:
        return None
    plain = contiguous_strides(shape)
    size, row = value.dtype.itemsize, shape[-1] * value.dtype.itemsize
    whole = row % _ACCESS == 0 or row < _SMALLEST_ROW or prod(shape) * size < _SMALLEST
    if whole or (value.strides is not None and tuple(value.strides) != tuple(plain)):
        return None
    unit = _LINE if row >= _LONG_ROW else _ACCESS
    pitch = -(-row // unit) * unit // size
    rows: tuple[int, ...] = contiguous_strides(shape[:-1])  # type: ignore[assignment]  # static
    return (*(step * pitch for step in rows), 1)


class _Inside:
    """Which values nobody sees but products and kernels, that take them as they lie."""

    def __init__(self, graph: Graph) -> None:
        self.readers: dict[Value, list[Op]] = {}
        for op in graph.ops:
            for value in op.inputs:
                self.readers.setdefault(value, []).append(op)
        self.seen = {output.value for output in graph.outputs} | {write.value for write in graph.writes}

    def takes(self, value: Value, strides: Strides) -> bool:
        """Whether a value may have these strides, in memory that is its own."""
        op = value.op
        is_made = op is not None and (op.name == "matmul" or get(op.name).kind is Kind.POINTWISE)
        stack = [(value, Place(value, int_shape(value), strides))] if is_made else []
        while stack:
            seen, at = stack.pop()
            if seen in self.seen:
                return False
            for reader in self.readers.get(seen, ()):
                place = view_of(at, reader) if is_view(reader) else None
                if place is not None:
                    stack.append((reader.results[0], place))
                elif not _takes_any_rows(reader, seen):
                    return False
        return is_made


def _takes_any_rows(op: Op, value: Value) -> bool:
    """Whether an op reads an operand as it lies; not what takes the operand's place, nor views that need a copy."""
    if op.name in _PRODUCTS:
        return value not in op.operands[2:]
    return not is_view(op) and op.name not in UPDATES and get(op.name).lower is not None
