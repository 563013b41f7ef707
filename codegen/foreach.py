"""Steps over a table of rows in the native program: one loop per kernel, whatever the number of rows.

The row of the step table holds, one after the other, the numbers of all rows: their buffers, where in them they start,
and the elements that come before. A kernel on elements runs over equal pieces of the elements of all rows together, so
threads get equal work however the rows differ; one on single numbers runs row by row, and so does one that reduces
rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphc.codegen.c.prelude import MEMORY_TYPES
from graphc.program.plan import BufferSpec, ForeachStep, RowArgument

PIECE = 16_384
"""Elements per parallel step, at least."""
MOST_PIECES = 64
SERIAL_ROWS = 256
"""Rows up to which kernels on single numbers are not worth several threads."""


def foreach_numbers(step: ForeachStep, buffers: Sequence[BufferSpec]) -> list[int]:
    """The table: per row its buffers, the bytes to skip in each, the elements that come before; then their total."""
    numbers: list[int] = []
    before = 0
    for row, offsets, size in zip(step.rows, step.offsets, step.sizes, strict=True):
        numbers += row
        numbers += [offset * buffers[index].dtype.itemsize for index, offset in zip(row, offsets, strict=True)]
        numbers.append(before)
        before += size
    return [*numbers, *[0] * (2 * len(step.rows[0])), before]


def foreach_body(step: ForeachStep, names: Mapping[str, str]) -> str:
    """C that runs the step over the table that `foreach_numbers` gives, at `b`.

    Args:
        names: of the kernels' C functions.
    """
    width = 2 * len(step.rows[0]) + 1
    lines = [
        f"  enum {{ ROWS = {len(step.rows)}, WIDTH = {width}, BUFFERS = {len(step.rows[0])} }};",
        "  const int64_t total = b[ROWS * WIDTH + WIDTH - 1];",
    ]
    for number, (kernel, arguments) in enumerate(zip(step.kernels, step.arguments, strict=True)):
        if number not in step.whole and any(item.elementwise for item in arguments):
            lines += _over_elements(step, names[kernel], arguments)
        else:
            lines += _over_rows(step, names[kernel], arguments, number in step.whole)
    lines.append(f"  return {f'failed({_cells(step)}, {step.cells})' if step.cells else '0'};")
    return "\n".join(lines)


def _over_rows(step: ForeachStep, function: str, arguments: Sequence[RowArgument], whole: bool) -> list[str]:
    parallel = ["  #pragma omp parallel for schedule(static)"] if len(step.rows) > SERIAL_ROWS else []
    texts = [_argument(step, item, "") for item in arguments]
    if whole:
        parallel = ["  #pragma omp parallel for schedule(dynamic)"] if sum(step.sizes) > 2 * PIECE else []
        texts.append("row[WIDTH + WIDTH - 1] - row[WIDTH - 1]")
    return [
        *parallel,
        "  for (int64_t r = 0; r < ROWS; r++) {",
        "    const int64_t *row = b + r * WIDTH;",
        f"    {function}({', '.join(texts)});",
        "  }",
    ]


def _over_elements(step: ForeachStep, function: str, arguments: Sequence[RowArgument]) -> list[str]:
    pieces = max(1, min(MOST_PIECES, sum(step.sizes) // PIECE))
    parallel = ["  #pragma omp parallel for schedule(static)"] if pieces > 1 else []
    text = ", ".join([*(_argument(step, item, " + from") for item in arguments), "to - from"])
    return [
        *parallel,
        f"  for (int64_t piece = 0; piece < {pieces}; piece++) {{",
        f"    const int64_t start = total * piece / {pieces}, stop = total * (piece + 1) / {pieces};",
        "    int64_t r = 0;  /* the last row that begins at or before the start */",
        "    for (int64_t high = ROWS - 1; r < high;) {",
        "      const int64_t middle = (r + high + 1) / 2;",
        "      if (b[middle * WIDTH + WIDTH - 1] <= start) r = middle;",
        "      else high = middle - 1;",
        "    }",
        "    for (; r < ROWS; r++) {",
        "      const int64_t *row = b + r * WIDTH;",
        "      const int64_t first = row[WIDTH - 1], end = row[WIDTH + WIDTH - 1];",
        "      if (first >= stop) break;",
        "      const int64_t from = first < start ? start - first : 0, to = (end < stop ? end : stop) - first;",
        f"      if (from < to) {function}({text});",
        "    }",
        "  }",
    ]


def _cells(step: ForeachStep) -> str:
    return f"(int64_t *)p[{step.checks}] + {step.first_cell}"


def _argument(step: ForeachStep, item: RowArgument, elements: str) -> str:
    """C text of one pointer."""
    type = MEMORY_TYPES[item.dtype.name]
    if item.kind == "checks":
        return _cells(step) + (f" + {item.number}" if item.number else "")
    if item.kind == "shared":
        return f"p[{step.shared[item.number]}]"
    if item.kind == "scratch":
        return f"({type} *)((char *)p[{step.scratch}] + r * {step.scratch_bytes} + {item.number})"
    place = f"({type} *)((char *)p[row[{item.number}]] + row[BUFFERS + {item.number}])"
    return place + (elements if item.elementwise else "")
