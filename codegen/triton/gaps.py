"""Accesses that may reach behind the end of a row: into memory that a plan has left there, and nobody looks at.

    rows of 50257 elements, 50304 apart:
        in_j = j < 50257        what counts
        by_j = j < 50264        a multiple of what one access takes: loads and stores stay wide up to the end

What is loaded there is any number; sums and the like leave it out as they leave out what lies outside of a tile.
"""

from __future__ import annotations

from graphc.codegen.triton.tiling import Tiling
from graphc.codegen.triton.widths import WIDEST
from graphc.ir.dims import Expr, Sym
from graphc.loopir.kernel import Buffer, Load, Scan, Store


def gap_edges(tiling: Tiling) -> dict[str, int]:
    """By dimension along which accesses reach into gaps, where these end.

    A product of matrices relies on zeros behind the end of its sum, and scans begin there when they go backwards.
    """
    kernel = tiling.kernel
    buffers = {buffer.name: buffer for buffer in kernel.buffers if buffer.gap is not None}
    if not buffers or len(kernel.contractions) > 1 or any(isinstance(s, Scan) for s in kernel.defines):
        return {}
    summed = {axis.name for axis in kernel.row_axes} if kernel.contractions else set()
    accesses = [s for s in kernel.body if isinstance(s, (Load, Store)) and s.buffer in buffers]
    found: dict[str, int] = {}
    for dim in tiling.blocked:
        reached = [buffers[s.buffer] for s in accesses if row_with_gap(buffers[s.buffer], s) == (dim.name, dim.extent)]
        if dim.is_exact or not reached or dim.name in summed:
            continue
        unit = max(WIDEST // buffer.dtype.itemsize for buffer in reached)
        edge = -(-dim.extent // unit) * unit
        if all(buffer.gap is not None and edge <= buffer.gap.pitch for buffer in reached):
            found[dim.name] = edge
    return found


def row_with_gap(buffer: Buffer, s: Load | Store) -> tuple[str, int] | None:
    """The axis along which an access walks rows with a gap behind them, and their length.

    Everything else in its index steps from row to row.
    """
    gap, index = buffer.gap, s.index
    if gap is None or s.mask is not None or not isinstance(index, Expr):
        return None
    if isinstance(s, Store) and s.mode != "set":
        return None
    along: str | None = None
    for monomial, coefficient in index.terms:
        if coefficient % gap.pitch == 0:
            continue
        atom = monomial[0] if len(monomial) == 1 else None
        if coefficient != 1 or along is not None or not isinstance(atom, Sym):
            return None
        along = atom.name
    return None if along is None else (along, gap.row)
