"""C loops of kernels without row axes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from graphc.codegen.c.nest import Loop, Nest, write_nest
from graphc.codegen.c.writer import Writer
from graphc.ir.dims import static, substitute, symbol
from graphc.ir.sizes import typical
from graphc.loopir.analysis import KernelFacts, breakpoints
from graphc.loopir.kernel import Kernel, Load, Store

if TYPE_CHECKING:
    from graphc.codegen.c.emit import COptions

TILE_BYTES, TILE_STEPS = 32, 64
"""A tile where buffers disagree on the contiguous axis: so many bytes of the vector axis, so many steps of the other.

Narrow tiles keep strided loads within the ways of the L1 cache when strides are powers of two: measured on 2048x2048
f32, 8x64 takes 4.0 ms where 32x32 takes 11 ms.
"""

MIN_TILED = 16
"""Extent of both axes from which tiles are worth their loops."""

BLOCK = 4096
"""Elements of the contiguous axis per parallel step when the outer axes alone are too few."""

MIN_BLOCK = 64
ENOUGH_STEPS = 512
"""Steps of shared loops from which on no more loops are shared: work of many threads is even."""
MIN_PARALLEL_STEPS = 16
MAX_BOXES = 8


BEFORE = "gc_before"
"""The argument that a buffer is copied from."""


def is_plain_copy(kernel: Kernel) -> bool:
    """Whether a kernel copies one buffer to another, element by element and as a whole."""
    if len(kernel.buffers) != 2 or len(kernel.axes) != 1 or len(kernel.body) != 2:
        return False
    load, store = kernel.body
    (axis,) = kernel.axes
    return (
        isinstance(load, Load)
        and isinstance(store, Store)
        and (load.mask, store.mask, store.mode) == (None, None, "set")
        and load.index == store.index == symbol(axis.name)
        and all(buffer.size == axis.extent and buffer.dtype == load.dtype for buffer in kernel.buffers)
    )


def takes_rows(facts: KernelFacts, buffer: str) -> bool:
    """Whether a kernel is a loop over rows around one over columns, and works on one row of a buffer at a time."""
    kernel = facts.kernel
    if len(kernel.axes) != 2 or kernel.row_axes:
        return False
    row, column = kernel.axes
    if (
        facts.vector_axis(facts.axes) != column.name
        or facts.is_disjoint(column.name)
        or not facts.is_disjoint(row.name)
    ):
        return False
    places = [s.index for s in kernel.body if isinstance(s, Load | Store) and s.buffer == buffer]
    size = facts.buffers[buffer].size
    if not isinstance(size, int) or not isinstance(row.extent, int) or row.extent < 2:
        return False
    rows = [substitute(index, {row.name: 1}) - substitute(index, {row.name: 0}) for index in places]
    return _boxes(facts, column.name) == [{}] and all(step * row.extent == size for step in rows)


def write_pointwise(writer: Writer, options: COptions) -> None:
    """Write the loops, once per box where masks of outer axes cut the iteration space."""
    facts = writer.facts
    vector = facts.vector_axis(facts.axes)
    whole = writer.ranges
    for box in _boxes(facts, vector):
        writer.ranges = {**whole, **box}
        _write_box(writer, options, vector)
    writer.ranges = whole


def _boxes(facts: KernelFacts, vector: str | None) -> list[dict[str, tuple[int, int | None]]]:
    """Ranges of outer axes in which no mask changes because of them; one empty box when nothing needs cutting."""
    found: list[dict[str, tuple[int, int | None]]] = [{}]
    masks = [name for name, dtype in facts.dtypes.items() if dtype.kind == "bool"]
    if not masks:
        return found
    for axis in facts.axes.values():
        cuts = breakpoints(facts, axis.name, masks) if axis.name != vector else []
        if not cuts or (len(cuts) + 1) * len(found) > MAX_BOXES or not isinstance(axis.extent, int):
            continue
        edges = [0, *cuts, axis.extent]
        pieces = list(itertools.pairwise(edges))
        found = [{**box, axis.name: (a, b - 1)} for box in found for a, b in pieces]
    return found


def _write_box(writer: Writer, options: COptions, vector: str | None) -> None:
    facts = writer.facts
    stores = [s for s in facts.kernel.body if isinstance(s, Store)]
    safe = [name for name in facts.axes if facts.is_disjoint(name)]
    simd = "simd" if vector in safe else ""
    if vector is None:
        write_nest(writer, Nest((), stores))
        return
    tiled = _tile_axis(facts, vector, safe)
    outer = [name for name in safe if name not in (vector, tiled)]
    inner = [name for name in facts.axes if name not in safe and name != vector]
    loops = [_loop(writer, name) for name in outer]
    steps = typical(facts.points(outer))
    blocked: dict[str, int] = {}
    if tiled is not None:
        narrowest = min(facts.buffers[s.buffer].dtype.itemsize for s in facts.accesses())
        blocked = {tiled: TILE_STEPS, vector: max(8, TILE_BYTES // narrowest)}
    elif vector in safe and options.parallel and (outer or inner) and steps < MIN_PARALLEL_STEPS:
        extent = typical(facts.extent(vector))
        blocked = {vector: min(BLOCK, max(MIN_BLOCK, extent // MIN_PARALLEL_STEPS // 16 * 16))}
    loops += [_block_loop(writer, name, size) for name, size in blocked.items()]
    collapse = _collapsed(
        [facts.extent(name) for name in outer] + [-(-facts.extent(n) // s) for n, s in blocked.items()]
    )
    loops += [_loop(writer, name) for name in inner]
    loops += [_loop(writer, name, blocked) for name in (tiled, vector) if name is not None]
    directive = ""
    if options.parallel and (collapse or (vector in safe and len(loops) == 1)):
        directive = "parallel for" + (f" collapse({collapse})" if collapse > 1 else "")
        if len(loops) == 1:
            directive, simd = "parallel for simd", ""
        directive += f" schedule(static){options.threads_if}"
        loops[0] = replace(loops[0], pragma=directive)
    before: list[str] = []
    if options.begins:
        name, buffer = writer.buffer_names[options.begins], facts.buffers[options.begins]
        length = static(buffer.size) // facts.extent(loops[0].variable) * buffer.dtype.itemsize
        place = f"{loops[0].variable} * {length}"
        before = [f"memcpy((char *){name} + {place}, (const char *){BEFORE} + {place}, {length});"]
    cut = not blocked
    collapse = collapse if directive else 0
    write_nest(writer, Nest(loops, stores, collapse=collapse, simd=simd, cut=cut, before=before))


def _collapsed(steps: Sequence[int]) -> int:
    """How many outer loops threads share: as few as give each enough, since finding the indices of more costs more."""
    total = 1
    for count, extent in enumerate(steps, 1):
        total *= typical(extent)
        if total >= ENOUGH_STEPS:
            return count
    return len(steps)


def _loop(writer: Writer, axis: str, blocked: Mapping[str, int] | None = None) -> Loop:
    low, high = _bounds(writer, axis)
    if blocked and axis in blocked:
        end = f"{writer.use('gc_min_index')}({axis}_block + {blocked[axis]}, {high})"
        return Loop(axis, f"{axis}_block", end, axis)
    return Loop(axis, low, high, axis)


def _block_loop(writer: Writer, axis: str, size: int) -> Loop:
    low, high = _bounds(writer, axis)
    return Loop(None, low, high, f"{axis}_block", size)


def _bounds(writer: Writer, axis: str) -> tuple[str, str]:
    low, high = writer.ranges[axis]
    extent = writer.facts.axes[axis].extent
    return str(low), str(high + 1) if high is not None else writer.index(extent)


def _tile_axis(facts: KernelFacts, vector: str, safe: list[str]) -> str | None:
    """The axis that is contiguous in a buffer in which the vector axis is not, or None."""
    if vector not in safe or typical(facts.extent(vector)) < MIN_TILED:
        return None
    found: dict[str, int] = {}
    for s in facts.accesses():
        if abs(facts.step(s.index, vector) or 0) <= 1:
            continue
        for name in safe:
            if name != vector and facts.step(s.index, name) == 1 and typical(facts.extent(name)) >= MIN_TILED:
                found[name] = found.get(name, 0) + typical(facts.points(facts.domain(s)))
    return max(found, key=lambda name: found[name]) if found else None
