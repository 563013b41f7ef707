"""Import rules of the splits that torch's recurrent cells use: pieces that promise not to be written through."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.operands import wrap_dim
from graphc.frontend.aten.registry import Decline, rule
from graphc.ir.graph import Value
from graphc.ops.composite import static


@rule("aten.unsafe_split.Tensor")
def unsafe_split(imp: Importer, self: Value, split_size: int, dim: int = 0) -> list[Value]:
    axis = _axis(self, dim)
    (size,) = static((self.shape[axis],), "unsafe_split")
    if split_size <= 0:
        raise Decline("eager raises, or nothing to split")
    return _pieces(imp, self, [min(split_size, size - start) for start in range(0, max(size, 1), split_size)], axis)


@rule("aten.unsafe_split_with_sizes.default")
def unsafe_split_with_sizes(imp: Importer, self: Value, split_sizes: Sequence[int], dim: int = 0) -> list[Value]:
    axis = _axis(self, dim)
    if sum(split_sizes) != self.shape[axis] or min(split_sizes, default=0) < 0:
        raise Decline("eager raises")
    return _pieces(imp, self, split_sizes, axis)


def _axis(self: Value, dim: int) -> int:
    if not self.shape:
        raise Decline("eager raises")
    return wrap_dim(dim, self.type.rank)


def _pieces(imp: Importer, self: Value, sizes: Sequence[int], axis: int) -> list[Value]:
    """Slices of the given sizes along a dim; eager's are views, so they have the strides of the whole."""
    found, start = [], 0
    for size in sizes:
        piece = imp.slice(self, axis, start, start + size)
        if piece is self:
            piece = imp.b.op("cast", self, dtype=self.dtype)  # a value of its own, for the strides
        found.append(imp.with_strides(piece, imp.strides(self)))
        start += size
    return found
