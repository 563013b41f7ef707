"""How the operands of a product lie in memory, as a descriptor says it to a chip that copies blocks by itself (TMA).

x[i0*131072 + i1*1024 + r0]          i0 of the batch, i1 a row of the result, r0 summed over
  -> sizes [16, 128, 1024], steps [131072, 1024, 1], blocks [1, MBLOCK, KBLOCK] at [i0, m_tile * MBLOCK, k_start]

w[v2*524288 + r0*1024 + i2]          v2, which is data, says by which matrix rows are multiplied
  -> sizes [8, 512, 1024], steps [524288, 1024, 1], blocks [1, KBLOCK, NBLOCK] at [group, k_start, n_tile * NBLOCK]

What lies outside of the sizes is zero, so neither rows nor the sum need masks. Heads that share a matrix are an index
like any other, `i0 // 4`; a batch that an operand does not vary with is no dim of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from graphc.codegen.triton.joined_axes import int_extent
from graphc.codegen.triton.tiling import stride as axis_stride
from graphc.ir.dims import Dim, Expr, bounds, substitute, symbol, symbols
from graphc.loopir.kernel import Axis, Kernel, Load, is_value
from graphc.program.triton_kernel import ALIGNMENT

MOST_LANES = 256
"""Elements of a block along either dim that one copy takes."""
MOST_DIMS = 5
"""Of a descriptor."""
BLOCKS = {"m": "MBLOCK", "n": "NBLOCK", "k": "KBLOCK"}
"""Constant that is the size of a block, by what its dim is to the product: rows, columns, or what is summed over."""


@dataclass(frozen=True)
class Number:
    """A dim of which a block has one index.

    Args:
        place: the index, of axes of the batch or of data.
        extent: so many there are.
        stride: elements from one to the next.
    """

    place: Expr
    extent: int
    stride: int


@dataclass(frozen=True)
class Matrix:
    """An operand as it lies in memory.

    Args:
        buffer: that holds it.
        offset: elements from there to its first one.
        numbers: which matrix of several it is.
        outer, inner: kinds of the dims of a block, as in `BLOCKS`; steps along the inner one are 1.
        sizes: extents of these two.
        stride: elements from one index of the outer one to the next.
        itemsize: bytes of an element.
    """

    buffer: str
    offset: int
    numbers: tuple[Number, ...]
    outer: str
    inner: str
    sizes: tuple[int, int]
    stride: int
    itemsize: int

    def fits(self, blocks: Mapping[str, int]) -> bool:
        """Whether one copy takes a block of such sizes, by kind."""
        outer, inner = blocks[self.outer], blocks[self.inner]
        return max(outer, inner) <= MOST_LANES and inner * self.itemsize >= ALIGNMENT

    def description(self, pointer: str) -> str:
        """The descriptor as text."""
        pointer = f"{pointer} + {self.offset}" if self.offset else pointer
        sizes = [number.extent for number in self.numbers] + [*self.sizes]
        strides = [number.stride for number in self.numbers] + [self.stride, 1]
        blocks = ["1"] * len(self.numbers) + [BLOCKS[self.outer], BLOCKS[self.inner]]
        return f"tl.make_tensor_descriptor({pointer}, {sizes}, {strides}, [{', '.join(blocks)}])"

    def block(self, name: str, places: Sequence[str], starts: Mapping[str, str], first: str) -> str:
        """A block as text.

        Args:
            name: of the descriptor.
            places: which matrix it is of: a text per number.
            starts: where it begins along other dims, by their `BLOCKS`.
            first: kind of the dim that is to be its first one.
        """
        outer, inner = BLOCKS[self.outer], BLOCKS[self.inner]
        text = f"{name}.load([{', '.join([*places, starts[outer], starts[inner]])}])"
        if self.numbers:
            text += f".reshape([{outer}, {inner}])"
        return text if self.outer == first else f"{text}.T"


def matrix(
    kernel: Kernel, operand: str, kinds: Mapping[str, tuple[Axis, ...]], own: str, group: str | None
) -> Matrix | None:
    """How an operand lies in memory; None when that is nothing for a descriptor.

    Args:
        kernel: that has the product.
        operand: name of the value.
        kinds: axes by what they are to the product.
        own: kind of those that it varies with, beside those of the sum: rows or columns.
        group: data that may say which matrix it is.
    """
    s = next(s for s in kernel.defines if s.id == operand)
    if not isinstance(s, Load) or s.mask is not None or any(is_value(name) for name in symbols(s.index) - {group}):
        return None
    buffer, itemsize = next(b for b in kernel.buffers if b.name == s.buffer), s.dtype.itemsize
    extents = {kind: prod(int_extent(axis) for axis in kinds[kind]) for kind in (own, "k")}
    steps = {kind: _step(s.index, kinds[kind]) for kind in (own, "k")}
    rest = substitute(s.index, {axis.name: 0 for kind in (own, "k") for axis in kinds[kind]})
    if s.dtype != buffer.dtype or not isinstance(buffer.size, int):
        return None
    for outer, inner in ((own, "k"), ("k", own)):
        stride, sizes = steps[outer], (extents[outer], extents[inner])
        if steps[inner] != 1 or not stride or stride < sizes[1]:
            continue
        if inner == own and itemsize != 2:
            return None  # matrix units take operands of other widths along the sum only
        offset = rest if isinstance(rest, int) else dict(rest.terms).get((), 0)
        room = buffer.size - offset - (sizes[0] - 1) * stride - sizes[1]
        numbers = _numbers(rest, kinds["b"], group, room)
        if numbers is None or len(numbers) + 2 > MOST_DIMS:
            return None
        if any(elements * itemsize % ALIGNMENT for elements in (offset, stride, *(n.stride for n in numbers))):
            return None
        return Matrix(s.buffer, offset, numbers, outer, inner, sizes, stride, itemsize)
    return None


def _numbers(rest: Dim, batch: Sequence[Axis], group: str | None, room: int) -> tuple[Number, ...] | None:
    """What an index is made of beside rows and columns, one dim for each term.

    Args:
        rest: the index at the first row and column.
        batch: the axes of the batch.
        group: data that may be among it.
        room: elements of the buffer behind the first matrix.
    """
    if isinstance(rest, int):
        return ()
    ranges = {axis.name: (0, max(0, int_extent(axis) - 1)) for axis in batch}
    found: list[Number] = []
    terms = [(Expr(((monomial, 1),)), stride) for monomial, stride in rest.terms if monomial]
    for place, stride in sorted(terms, key=lambda term: group in symbols(term[0])):
        low, high = bounds(place, ranges)
        if group is not None and place == symbol(group):
            high = room // stride if stride > 0 else None  # as many as there is memory for
        if low is None or high is None or low < 0 or high < 0 or stride <= 0:
            return None
        found.append(Number(place, high + 1, stride))
        room -= high * stride
    return tuple(found)


def _step(index: Dim, axes: Sequence[Axis]) -> int | None:
    """How far apart in memory neighbours along a dim are; None when that differs."""
    below, step = 1, axis_stride(index, axes[-1].name) if axes else None
    for axis in reversed(axes):
        if step is None or axis_stride(index, axis.name) != below * step:
            return None
        below *= int_extent(axis)
    return step
