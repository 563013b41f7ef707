"""Which groups the rows of a tile belong to, as a list that two small launches make before a product of groups.

    groups of rows, in tiles of 4:   0 0 0 0 | 0 0 1 1 | 1 2 2 5        rows may be in any order
      -> counts:                     1         2         3              one program for each tile
      -> items:    6, -, (0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (2, 5)

Each item is a sum of its own. So programs that stay and take every so many of them have the same work to do, wherever
groups end; and what a program does for an item is a loop over the sum and nothing else.
"""

from __future__ import annotations

from graphc.codegen.triton.body import Body
from graphc.codegen.triton.matmul import Product
from graphc.codegen.triton.tiling import INT32_LIMIT
from graphc.program.triton_kernel import Launch, Scratch

COUNTS, ITEMS = "group_counts", "group_items"
"""Scratch memory."""
_WARPS = 4
_STEP = 1024
"""Counts that are added up at once."""


class GroupItems:
    """The writer of the list for a product of groups, and of what reads it.

    Args:
        product: whose rows have a group.
    """

    def __init__(self, product: Product) -> None:
        self.product = product
        tiles, rows = product.m.programs, product.m.block
        product.scratch |= {COUNTS: Scratch("*i32", tiles), ITEMS: Scratch("*i32", 2 + 2 * tiles * rows)}

    def launch(self) -> None:
        """Add the launches that make the list."""
        product = self.product
        sizes = (("MBLOCK", product.m.block),)
        for name, lines in ((f"{product.name}_counts", self._counts()), (f"{product.name}_items", self._items())):
            product.function(name, lines, sizes)
            product.launches.append(Launch(name, (product.m.programs, 1, 1), sizes, _WARPS, 1))

    def number(self, body: Body) -> str:
        """How many tiles all items have."""
        body.line(f"items = tl.load({ITEMS})")
        return f"items * {self.product.n.programs}"

    def place(self, body: Body, tile: str) -> None:
        """Which item a tile is of, and its columns; then rows and group of that."""
        columns = self.product.n.programs
        self.product.place_bands(body, "items", columns, tile, "item")
        body.line(f"m_tile = tl.load({ITEMS} + (2 * item + 2))")
        body.line(f"group = tl.load({ITEMS} + (2 * item + 3))")

    # -------------------------------------------------------------------------------------------------------- launches

    def _walk(self, body: Body, *step: str) -> None:
        """Lines for each group that rows of the tile belong to, from the first one on."""
        self.product.place_lanes(body, self.product.m)
        groups, inside = self.product.groups_of_rows(body)
        body.line(f"numbers = {f'tl.where({inside}, {groups}, {INT32_LIMIT})' if inside else groups}")
        body.line("group = tl.min(numbers)")
        body.line(f"while group < {INT32_LIMIT}:")
        for line in (*step, f"group = tl.min(tl.where(numbers > group, numbers, {INT32_LIMIT}))"):
            body.line(f"    {line}")

    def _begun(self) -> tuple[list[str], Body]:
        lines: list[str] = []
        body = self.product.body(lines, self.product.m)
        body.line("m_tile = tl.program_id(0)")
        return lines, body

    def _counts(self) -> list[str]:
        lines, body = self._begun()
        body.line("count = 0")
        self._walk(body, "count += 1")
        body.line(f"tl.store({COUNTS} + m_tile, count)")
        return lines

    def _items(self) -> list[str]:
        lines, body = self._begun()
        body.line("first = 0")
        body.line(f"for step in range(0, m_tile, {_STEP}):")
        body.line(f"    at = step + tl.arange(0, {_STEP})")
        body.line(f"    first += tl.sum(tl.load({COUNTS} + at, mask=at < m_tile, other=0))")
        place = f"{ITEMS} + (2 * first + "
        self._walk(body, f"tl.store({place}2), m_tile)", f"tl.store({place}3), group.to(tl.int32))", "first += 1")
        body.line(f"tl.store({ITEMS}, first, mask=m_tile == {self.product.m.programs - 1})")
        return lines
