"""Products whose programs stay on their processor and go from tile to tile, with blocks that the chip copies by itself.

    left_blocks = tl.make_tensor_descriptor(x_ptr, [M, K], [K, 1], [MBLOCK, KBLOCK])
    right_blocks = ...
    for tile in tl.range(tl.program_id(0), TILES, PROGRAMS, flatten=True):
        for k_start in range(0, K, KBLOCK):
            left = left_blocks.load([m_tile * MBLOCK, k_start])
            ...
        epilogue

Where a chip copies blocks of matrices told by a descriptor (TMA), no thread
computes addresses or masks, and what lies outside of a matrix is zero. The two loops are one to the pipeline, so the
blocks of the next tile are on their way while the epilogue of the last one runs; that counts tiles for itself, so as
not to tie them.

An operand is described when it lies in memory as the product takes it: rows or columns side by side, the others a
multiple of 16 bytes apart. Addresses that are no such multiple are seen when a call is made: a second function of the
module, whose threads copy blocks, is launched for them. A batch, groups and bounds by data are left to programs of one
tile.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc.codegen.triton.joined_axes import int_extent
from graphc.codegen.triton.matmul import STARTS, Product
from graphc.codegen.triton.tiles import Choice
from graphc.codegen.triton.tiling import TileDim
from graphc.codegen.triton.tiling import stride as axis_stride
from graphc.ir.dims import Dim, substitute, symbols
from graphc.loopir.kernel import Kernel, Load, is_value
from graphc.program.triton_kernel import ALIGNMENT, TritonKernel

MOST_LANES = 256
"""Elements of a block along either dim that one copy takes."""


def emit_product(
    kernel: Kernel, pointers: dict[str, str], name: str, target: str, choice: Choice | None
) -> TritonKernel:
    """The Triton module for a kernel that holds one `contract`.

    Args:
        kernel: with known extents.
        pointers: parameter name per buffer.
        name: of the function.
        target: as in `graphc.codegen.triton.tiles.MACHINES`.
        choice: the tile, by default the best of `product_tiles`.

    Raises:
        CodegenError: dtypes that `tl.dot` does not take.
    """
    product = Product(kernel, pointers, name, target, choice)
    operands = _described(product) if product.choice.programs else None
    return product.module() if operands is None else _Persistent(product, *operands).module()


@dataclass(frozen=True)
class _Matrix:
    """An operand as it lies in memory.

    Args:
        pointer: parameter.
        offset: elements from there to its first one.
        outer, inner: dimensions of the product; steps along the inner one are 1.
        stride: elements from one index of the outer dimension to the next.
    """

    pointer: str
    offset: int
    outer: TileDim
    inner: TileDim
    stride: int

    def description(self) -> str:
        pointer = f"{self.pointer} + {self.offset}" if self.offset else self.pointer
        shape = f"[{self.outer.extent}, {self.inner.extent}], [{self.stride}, 1]"
        return f"tl.make_tensor_descriptor({pointer}, {shape}, [{self.outer.constexpr}, {self.inner.constexpr}])"

    def block(self, name: str, starts: dict[str, str], first: TileDim) -> str:
        """The block at given starts of dimensions, `first` of them being rows of the result."""
        turned = "" if self.outer is first else ".T"
        return f"{name}.load([{starts[self.outer.constexpr]}, {starts[self.inner.constexpr]}]){turned}"


def _described(product: Product) -> tuple[_Matrix, _Matrix] | None:
    """Both operands, when blocks of both can be copied by the chip."""
    is_plain = product.batch.extent == 1 and product.choice.parts == 1 and product.k.extent > 0
    if not is_plain or product.group is not None or any(product.limits):
        return None
    left = _matrix(product, product.left, product.m)
    right = _matrix(product, product.right, product.n)
    return None if left is None or right is None else (left, right)


def _matrix(product: Product, name: str, own: TileDim) -> _Matrix | None:
    s, k = product.by_id[name], product.k
    if not isinstance(s, Load) or s.mask is not None or any(map(is_value, symbols(s.index))):
        return None
    buffer = next(b for b in product.kernel.buffers if b.name == s.buffer)
    along, across = _step(s.index, own), _step(s.index, k)
    rest = substitute(s.index, {axis.name: 0 for dim in (own, k) for axis in dim.axes})
    blocks = max(own.block, k.block) <= MOST_LANES and min(own.block, k.block) * s.dtype.itemsize >= ALIGNMENT
    if s.dtype != buffer.dtype or not isinstance(rest, int) or not blocks:
        return None
    for outer, inner, stride, unit in ((own, k, along, across), (k, own, across, along)):
        if unit != 1 or not stride or stride < inner.extent:
            continue
        if any(elements * s.dtype.itemsize % ALIGNMENT for elements in (rest, stride)):
            return None
        if inner is own and s.dtype.itemsize != 2:
            return None  # matrix units take operands of other widths along the sum only
        return _Matrix(product.pointers[s.buffer], rest, outer, inner, stride)
    return None


def _step(index: Dim, dim: TileDim) -> int | None:
    """How far apart in memory neighbours along a dimension are; None when that differs."""
    below, step = 1, axis_stride(index, dim.axes[-1].name) if dim.axes else None
    for axis in reversed(dim.axes):
        if step is None or axis_stride(index, axis.name) != below * step:
            return None
        below *= int_extent(axis)
    return step


class _Persistent:
    def __init__(self, product: Product, left: _Matrix, right: _Matrix) -> None:
        self.product, self.left, self.right = product, left, right
        self.tiles = product.m.programs * product.n.programs
        self.programs = min(product.choice.programs, self.tiles)

    def module(self) -> TritonKernel:
        """The function with descriptors, and that for other addresses."""
        product = self.product
        unaligned = f"{product.name}_unaligned"
        for name, is_described in ((product.name, True), (unaligned, False)):
            product.function(name, self._function(is_described), product.constexprs)
        product.launch(product.name, product.constexprs, (self.programs, 1), unaligned)
        return product.assembled(descriptors=2)

    def _function(self, is_described: bool) -> list[str]:
        product = self.product
        lines: list[str] = []
        body = product.body(lines, product.m, product.n)
        if is_described:
            body.line(f"left_blocks = {self.left.description()}")
            body.line(f"right_blocks = {self.right.description()}")
        body.line(f"later = tl.program_id(0) - {self.programs}")
        flatten = ", flatten=True" if is_described else ""
        body.line(f"for tile in tl.range(tl.program_id(0), {self.tiles}, {self.programs}{flatten}):")
        body.depth += 1
        product.place_tile(body, product.m, product.n)
        if is_described:
            self._sum(lines, body.depth)
        else:
            product.place_lanes(body, product.m, product.n)
            product.sum(lines, body)
        body.line(f"later += {self.programs}")
        product.place_tile(body, product.m, product.n, "later")
        product.place_lanes(body, product.m, *([product.n] if product.choice.pieces == 1 else []))
        product.epilogue(lines, body)
        return lines

    def _sum(self, lines: list[str], depth: int) -> None:
        product, indent = self.product, "    " * depth
        starts = STARTS | {"KBLOCK": "k_start"}
        lines += [
            f"{indent}{product.zeros()}",
            f"{indent}for k_start in range(0, {product.k.extent}, KBLOCK):",
            f"{indent}    left = {self.left.block('left_blocks', starts, product.m)}",
            f"{indent}    right = {self.right.block('right_blocks', starts, product.k)}",
            f"{indent}    {product.dot()}",
        ]
