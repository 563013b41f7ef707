"""What a generated Triton kernel moves, what it would have to move, and how wide its accesses can be.

    softmax of (16384, 4096) in one pass:   moves 268 MB, least 268 MB, accesses of 16 bytes
    in two passes over each row:            moves 403 MB, least 268 MB

Counted from loop IR and tile. Elements that several programs read (a row vector) count once, passes over a row as often
as they are made, though caches may serve the later ones; a 32-byte sector counts whole where a tile uses a part of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from graphc.codegen.triton.joined_axes import int_extent
from graphc.codegen.triton.row_passes import Passes
from graphc.codegen.triton.tiling import Tiling, has_ragged_edge, stride
from graphc.codegen.triton.widths import WIDEST, Access, run, widest
from graphc.ir.dims import Dim, Expr, symbols
from graphc.loopir.analysis import statement_cost
from graphc.loopir.kernel import Buffer, Kernel, Load, Store, is_value
from graphc.program.plan import ForeachStep, RowArgument
from graphc.program.triton_kernel import ITEMSIZE, TABLE_BLOCK, TritonKernel
from graphc.report.product_work import work_of

SECTOR = 32
"""Bytes that memory moves at once."""
TABLE = -1
"""In the place of a position: pointers that a kernel loads from a table."""
SMALL = 1 << 20
"""Bytes of a buffer below which it does not matter how wide accesses to it are."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of one call of a kernel.

    Args:
        moved: bytes that its accesses ask of memory.
        least: every element that is read once, and every one that is stored once.
        work: arithmetic outside of matrix units, in additions.
        widths: per position of a buffer that is not small, the widest access in bytes that its addresses allow in the
            worst place.
        ragged: the last program has narrow accesses of its own.
        matrix: arithmetic in matrix units, in operations on bf16.
    """

    moved: int
    least: int
    work: int
    widths: dict[int, int]
    ragged: bool = False
    matrix: int = 0


def kernel_traffic(kernel: Kernel, tiling: Tiling, made: TritonKernel) -> Traffic:
    """The traffic of one call.

    Args:
        kernel: in loop IR, of known sizes.
        tiling: that `made` was written for.
    """
    cut = tiling.kernel
    buffers = {buffer.name: buffer for buffer in cut.buffers}
    repeats = _repeats(tiling)
    moved = 0
    elements: dict[tuple[str, type], int] = {}
    widths: dict[str, int] = {}
    seen: set[tuple[object, ...]] = set()
    accesses = [s for s in cut.body if isinstance(s, (Load, Store))]
    neighbours = Counter(_family(s) for s in {(type(s), s.buffer, s.index): s for s in accesses}.values())
    for s in accesses:
        buffer = buffers[s.buffer]
        points = min(_points(cut, s.index), _size(buffer))
        key = (type(s), s.buffer, s.index)
        if key not in seen:
            seen.add(key)
            times = repeats.get(s.id, 1) if isinstance(s, Load) else 2 if s.mode in ("add", "max") else 1
            waste = max(1.0, _waste(tiling, s.index, buffer) / neighbours[_family(s)])
            moved += int(points * buffer.dtype.itemsize * times * waste)
            place = (s.buffer, type(s))
            elements[place] = min(elements.get(place, 0) + points, _size(buffer))
        width = widest(tiling, s, buffer)
        widths[s.buffer] = min(widths.get(s.buffer, WIDEST), width)
    moved += 2 * sum(item.size * ITEMSIZE[item.dtype] for item in made.scratch)
    large = {name for (name, _), count in elements.items() if count * buffers[name].dtype.itemsize >= SMALL}
    least = sum(count * buffers[name].dtype.itemsize for (name, _), count in elements.items())
    positions = {at: widths[buffer.name] for at, buffer in enumerate(cut.buffers) if buffer.name in large}
    work = work_of(kernel)
    return Traffic(moved, least, work.plain, positions, has_ragged_edge(tiling), work.matrix)


def table_traffic(kernel: Kernel, step: ForeachStep, arguments: Sequence[RowArgument]) -> Traffic:
    """The traffic of a kernel over the rows of a step; what it moves through the table may be 16 bytes wide."""
    sizes = {b.name: b.dtype.itemsize for b, item in zip(kernel.buffers, arguments, strict=True) if item.elementwise}
    touched = {(type(s), s.buffer) for s in kernel.body if isinstance(s, (Load, Store)) and s.buffer in sizes}
    elements = sum(step.sizes)
    least = elements * sum(sizes[name] for _, name in touched)
    table = 8 * (len(step.rows) * (1 + len(step.rows[0])) + elements // TABLE_BLOCK)
    work = sum(statement_cost(s) for s in kernel.body) * elements
    return Traffic(least + table, least, work, {TABLE: min(WIDEST, 8 * min(sizes.values()))})


def _size(buffer: Buffer) -> int:
    return buffer.size if isinstance(buffer.size, int) else 1 << 62


def _points(kernel: Kernel, index: Dim) -> int:
    """How many different addresses an index goes through, at most."""
    extents = {axis.name: int_extent(axis) for axis in kernel.axes}
    found: set[str] = set()
    for name in symbols(index):
        found |= kernel.domains[name] if is_value(name) else {name}
    return prod(extents[name] for name in found)


def _family(s: Access) -> tuple[object, ...]:
    """What accesses have in common that are a constant apart, as those of a pooling window: they share sectors."""
    terms = s.index.terms if isinstance(s.index, Expr) else ()
    return type(s), s.buffer, tuple(term for term in terms if term[0])


def _repeats(tiling: Tiling) -> dict[str, int]:
    """Per load that a looped kernel makes in more than one pass, in how many."""
    if not tiling.looped:
        return {}
    kernel = tiling.kernel
    rows = {axis.name for axis in kernel.row_axes}
    passes = Passes(kernel, {name for name, domain in kernel.domains.items() if domain & rows})
    found: dict[str, int] = {}
    for number in range(passes.count):
        stores = passes.element_stores if number == passes.count - 1 else []
        for s in passes.elements(passes.reductions(number), stores):
            if isinstance(s, Load):
                found[s.id] = found.get(s.id, 0) + 1
    return found


def _waste(tiling: Tiling, index: Dim, buffer: Buffer) -> float:
    """Bytes of sectors per byte used."""
    size = buffer.dtype.itemsize
    if not isinstance(index, Expr) or size >= SECTOR:
        return 1.0
    longest = max((min(dim.block, run(index, dim)) for dim in tiling.blocked), default=0)
    if not longest:
        # the same for a whole tile, or places that are data: whose neighbours are wanted is not known
        fixed = not any(stride(index, axis.name) for dim in tiling.blocked for axis in dim.axes)
        return 1.0 if fixed or any(is_value(name) for name in symbols(index)) else SECTOR / size
    return max(1.0, SECTOR / (longest * size))
