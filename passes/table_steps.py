"""Steps over tables of rows: those of `foreach` ops, and of kernels that run together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from graphc.ir.graph import Op, Value
from graphc.ir.types import Location
from graphc.ops.foreach import NUMBER, rows_of
from graphc.passes.foreach import Stages
from graphc.passes.fused import Library
from graphc.passes.horizontal import RowKernel
from graphc.program.plan import ForeachStep


def foreach_step(
    node: Library,
    stages: Stages,
    names: tuple[str, ...],
    buffer_of: Mapping[Value, int],
    scratch: int,
    cells: tuple[int, int, int],
) -> ForeachStep:
    """The step of a `foreach` op.

    Args:
        stages, names: its kernels.
        buffer_of: of values that have memory.
        scratch, cells: as in `ForeachStep`: `scratch`, and `checks`, `first_cell` and `cells`.
    """
    op, count = node.op, node.op.attrs["count"]
    places = [place for place in node.operands if place is not None]
    lists = (len(places) - len(op.attrs["body"].inputs)) // (count - 1)
    own = len(op.attrs["like"])
    made = _made_rows(op, buffer_of)
    rows, offsets = [], []
    for row in range(count):
        found = [places[at * count + row] for at in range(lists)]
        rows.append((*(buffer_of[place.base] for place in found), *(column[row][0] for column in made)))
        offsets.append((*(place.offset for place in found), *(column[row][1] for column in made)))
    wide = next((at for at, is_wide in enumerate(rows_of(op).elementwise) if is_wide), 0)
    sizes = tuple(math.prod(places[wide * count + row].shape) for row in range(count))
    return ForeachStep(
        names, stages.arguments, tuple(rows), tuple(offsets), sizes,
        (*op.attrs["mutates"], *range(lists, lists + own)),
        tuple(buffer_of[place.base] for place in places[lists * count :]),
        scratch,
        stages.scratch,
        *cells,
        stages.whole,
        op.location,
    )  # fmt: skip


def _made_rows(op: Op, buffer_of: Mapping[Value, int]) -> list[list[tuple[int, int]]]:
    """For each new result of a `foreach` op and each row the buffer, and where in it the row starts."""
    results, count = iter(op.results), op.attrs["count"]
    made: list[list[tuple[int, int]]] = []
    for place in op.attrs["like"]:
        if place == NUMBER:
            buffer = buffer_of[next(results)]
            made.append([(buffer, row) for row in range(count)])
        else:
            made.append([(buffer_of[next(results)], 0) for _ in range(count)])
    return made


def row_width(op: Op) -> int:
    """Buffers per row of a `foreach` op."""
    return len(rows_of(op).lists) + len(op.attrs["like"])


def batch_step(
    name: str,
    kernels: Sequence[RowKernel],
    buffers: Sequence[tuple[int, ...]],
    offsets: Sequence[tuple[int, ...]],
    location: Location,
) -> ForeachStep:
    """The step of kernels that run together.

    Args:
        name: of the kernel for their rows.
        kernels: one per row, all alike but for their size.
        buffers, offsets: per row, what its kernel is called with.
    """
    first = kernels[0]
    return ForeachStep(
        (name,),
        (first.arguments,),
        tuple(buffers),
        tuple(offsets),
        tuple(kernel.size for kernel in kernels),
        tuple(at for at, buffer in enumerate(first.kernel.buffers) if buffer.access != "in"),
        location=location,
    )
