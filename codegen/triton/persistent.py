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
not to tie them. Tiles of a batch are counted through, one matrix after the other.

Where data say by which matrix rows are multiplied, there is a tile for each group that a block of rows has some of, as
a list says (`graphc.codegen.triton.group_items`); blocks of the left operand hold rows of other groups as well, which
are not stored. Such programs stay where threads copy blocks, too: a loop over groups inside of them takes registers.

An operand is described when it lies in memory as the product takes it (`graphc.codegen.triton.described`): rows or
columns side by side, the others, and matrices of a batch, a multiple of 16 bytes apart. Addresses that are no such
multiple are seen when a call is made: a second function of the module, whose threads copy blocks, is launched for them.
Sums whose bounds are data are left to programs of one tile.
"""

from __future__ import annotations

from graphc.codegen.triton.body import Body
from graphc.codegen.triton.described import BLOCKS, Matrix
from graphc.codegen.triton.group_items import GroupItems
from graphc.codegen.triton.indexing import index_text
from graphc.codegen.triton.matmul import STARTS, Product
from graphc.codegen.triton.tiles import Choice
from graphc.ir.dims import symbol
from graphc.loopir.kernel import Kernel
from graphc.program.triton_kernel import TritonKernel


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
    choice, matrices = product.choice, product.matrices
    blocks = {"m": choice.tile.rows, "n": choice.tile.columns, "k": choice.tile.depth}
    if matrices is not None and not all(item.fits(blocks) for item in matrices):
        matrices = None
    if not choice.programs or choice.parts > 1 or (matrices is None and not product.has_items):
        return product.module()
    return _Persistent(product, matrices).module()


class _Persistent:
    def __init__(self, product: Product, matrices: tuple[Matrix, Matrix] | None) -> None:
        self.product, self.matrices = product, matrices
        self.items = GroupItems(product) if product.group is not None else None
        self.tiles = product.batch.extent * product.m.programs * product.n.programs
        self.programs = min(product.choice.programs, self.tiles)

    def module(self) -> TritonKernel:
        """The function with descriptors, if there are any, and that for other addresses."""
        product, grid = self.product, (self.programs, 1)
        if self.items is not None:
            self.items.launch()
        product.function(product.name, self._function(self.matrices), product.constexprs)
        if self.matrices is None:
            product.launch(product.name, product.constexprs, grid)
            return product.assembled()
        unaligned = f"{product.name}_unaligned"
        product.function(unaligned, self._function(None), product.constexprs)
        product.launch(product.name, product.constexprs, grid, unaligned)
        return product.assembled(descriptors=len(self.matrices))

    def _function(self, matrices: tuple[Matrix, Matrix] | None) -> list[str]:
        product, tiles = self.product, str(self.tiles)
        lines: list[str] = []
        body = product.body(lines, product.m, product.n)
        for name, matrix in zip(("left", "right"), matrices or ()):
            body.line(f"{name}_blocks = {matrix.description(product.pointers[matrix.buffer])}")
        if self.items is not None:
            tiles = self.items.number(body)
        body.line(f"later = tl.program_id(0) - {self.programs}")
        flatten = ", flatten=True" if matrices is not None else ""
        body.line(f"for tile in tl.range(tl.program_id(0), {tiles}, {self.programs}{flatten}):")
        body.depth += 1
        self._place(body, "tile")
        if matrices is not None:
            self._sum(lines, body, *matrices)
        else:
            if self.items is not None:
                body.line("group = group.to(tl.int64)", "it is a part of addresses")
            product.place_lanes(body, product.m, product.n)
            product.sum(lines, body)
        body.line(f"later += {self.programs}")
        self._place(body, "later")
        product.place_lanes(body, product.m, *([product.n] if product.choice.pieces == 1 else []))
        product.epilogue(lines, body, product.member(body) if self.items is not None else "")
        return lines

    def _place(self, body: Body, tile: str) -> None:
        """Where a tile is."""
        if self.items is None:
            self.product.place(body, self.product.m, self.product.n, tile)
        else:
            self.items.place(body, tile)

    def _sum(self, lines: list[str], main: Body, left: Matrix, right: Matrix) -> None:
        """`acc`, as `Product.sum` has it, of blocks that are copied."""
        product, indent = self.product, "    " * main.depth
        starts = STARTS | {BLOCKS["k"]: "k_start"}
        rows = left.block("left_blocks", self._places(main, left), starts, "m")
        columns = right.block("right_blocks", self._places(main, right), starts, "k")
        lines += [
            f"{indent}{product.zeros()}",
            f"{indent}for k_start in range(0, {product.k.extent}, KBLOCK):",
            f"{indent}    left = {rows}",
            f"{indent}    right = {columns}",
            f"{indent}    {product.dot()}",
        ]

    def _places(self, body: Body, matrix: Matrix) -> list[str]:
        """Which matrix of several it is, as numbers of 32 bits."""
        product, found = self.product, list[str]()
        for number in matrix.numbers:
            is_group = product.group is not None and number.place == symbol(product.group)
            text = "group" if is_group else index_text(product.context, number.place, body.ranges)
            found.append(f"tl.full([], {text}, tl.int32)" if product.wide and not is_group else text)
        return found
