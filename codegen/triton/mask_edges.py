"""Edges of masks in memory, as bounds of the loop of a product of products.

first, last = the least position where a row of the block begins to see, and the largest where one ends to
whole_first, whole_last = the largest where one begins, and the least where one ends to see all

    for each block from first to whole_first, and from whole_last to last:     with the mask
    for each block from whole_first to whole_last:                             without

The edges are loaded once per program, so the loops have bounds in registers. Both parts with the mask are one loop.
"""

from __future__ import annotations

from graphc.codegen.triton.body import Body
from graphc.codegen.triton.index_bounds import Conditions
from graphc.codegen.triton.tiling import TileDim
from graphc.loopir.bounded import bounded_values, unbounded, within_runs
from graphc.loopir.kernel import Axis, Compute, Kernel
from graphc.loopir.transform import assume

_FIRST, _LAST, _END = 1, 2, 3
"""Operands of `bounded`."""


class MaskEdges:
    """The masks of a kernel that its loop keeps to the edges of.

    Args:
        kernel: with several products.
        chained: operands of outer products that are computed in the loop.
        steps: axes of the loop's positions.

    Attributes:
        kernel: without bounds that the loop has no use for.
    """

    def __init__(self, kernel: Kernel, chained: list[str], steps: tuple[Axis, ...]) -> None:
        found = Conditions(kernel).edges(chained, steps)
        self.names = frozenset(s.id for s in found)
        self.kernel = unbounded(kernel, {s.id for s in bounded_values(kernel)} - self.names)
        self.edges = list(dict.fromkeys(s.args[_FIRST : _END + 1] for s in found))

    def __bool__(self) -> bool:
        return bool(self.names)

    @property
    def with_masks(self) -> Kernel:
        """What is computed in blocks where something is hidden."""
        return assume(unbounded(self.kernel, self.names), {})  # what bounds alone had hidden is False now

    @property
    def without_masks(self) -> Kernel:
        """What is computed in blocks where nothing is."""
        return within_runs(self.kernel, self.names)

    def define(self, out: Body, values: Body, rows: TileDim, extent: int, block: int) -> None:
        """Write `first`, `last`, `whole_first` and `whole_last`.

        Args:
            out: where to.
            values: that know the loaded edges.
            rows: of the program.
            extent: of the loop, in positions.
            block: positions per step, no more than there are.
        """

        def edge(number: int, of_rows: str) -> str:
            return self._edge(values, rows, number, of_rows, extent)

        out.line(f"first = {edge(_FIRST, 'min')} // JBLOCK * JBLOCK")
        out.line(f"last = {edge(_LAST, 'max')}")
        out.line(f"whole_first = ({edge(_FIRST, 'max')} + JBLOCK - 1) // JBLOCK * JBLOCK")
        end = edge(_END, "min")
        whole = end if extent % block == 0 else f"tl.minimum({end}, {extent // block * block})"
        out.line(f"whole_last = tl.maximum({whole}, whole_first) // JBLOCK * JBLOCK")

    def _edge(self, values: Body, rows: TileDim, number: int, of_rows: str, extent: int) -> str:
        """The minimum or maximum of an edge over the rows of the program, each of which keeps to all masks."""
        names = list(dict.fromkeys(edge[number - 1] for edge in self.edges))
        text = values.operand(names[0]).typed
        shape = frozenset[str]().union(*(values.shapes[name] for name in names))
        of_masks = "maximum" if number == _FIRST else "minimum"
        for name in names[1:]:
            text = f"tl.{of_masks}({text}, {values.operand(name).typed})"
        if not shape:
            return text
        if not rows.is_exact:
            neutral = extent if of_rows == "min" else 0
            text = f"tl.where(in_{rows.name}, {text}, {neutral})"
        return f"tl.{of_rows}({text})"


def rows_are_queries(kernel: Kernel, steps: frozenset[str]) -> bool:
    """Whether a softmax runs along the loop, rather than along the program's rows."""
    by_id = {s.id: s for s in kernel.defines}
    shifts = [by_id[s.args[0]] for s in by_id.values() if isinstance(s, Compute) and s.op == "exp"]
    return all(steps.isdisjoint(kernel.domains[s.args[1]]) for s in shifts if isinstance(s, Compute) and s.op == "sub")
