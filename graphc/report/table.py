"""Bench results as a terminal table and as Markdown."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphc.report.bench import BenchTable, Row

_HEADERS = (
    "workload", "contender", "median", "quartiles", "vs eager", "compile", "compile cold", "compile warm",
    "ready after torch", "kernels", "launches", "ATen calls", "peak", "max error",
)  # fmt: skip


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def _bytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.1f} MiB"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"


def _cells(row: Row) -> tuple[str, ...]:
    counts = ("" if n is None else str(n) for n in (row.kernels, row.kernel_calls, row.externs))
    return (
        row.workload,
        row.contender,
        milliseconds(row.timing.median),
        f"{milliseconds(row.timing.low)} - {milliseconds(row.timing.high)}",
        f"{row.speedup:.2f}x",
        _seconds(row.compile),
        _seconds(row.cold.compile if row.cold else None),
        _seconds(row.warm.compile if row.warm else None),
        _seconds(row.warm.after_torch if row.warm else None),
        *counts,
        _bytes(row.peak),
        "" if row.max_error is None else f"{row.max_error:.1e}",
    )


def _machine_line(table: BenchTable) -> str:
    return ", ".join(f"{key} {value}" for key, value in table.machine.items() if value is not None)


def _columns(table: BenchTable) -> tuple[list[str], list[list[str]]]:
    """Headers and rows without the columns that are empty throughout."""
    rows = [_cells(row) for row in table.rows]
    used = [i for i in range(len(_HEADERS)) if any(row[i] for row in rows)]
    return [_HEADERS[i] for i in used], [[row[i] for i in used] for row in rows]


def render(table: BenchTable) -> str:
    """A terminal table; a line between workloads; the fastest of each in bold."""
    from rich.console import Console
    from rich.table import Table

    headers, rows = _columns(table)
    grid = Table(title=_machine_line(table) or None, title_justify="left")
    for number, header in enumerate(headers):
        grid.add_column(header, justify="left" if number < 2 else "right")
    fastest = {
        workload: min((r for r in table.rows if r.workload == workload), key=lambda r: r.timing.median)
        for workload in {row.workload for row in table.rows}
    }
    for number, (row, cells) in enumerate(zip(table.rows, rows, strict=True)):
        last = number + 1 == len(rows) or table.rows[number + 1].workload != row.workload
        grid.add_row(*cells, style="bold" if fastest[row.workload] is row else None, end_section=last)
    buffer = io.StringIO()
    Console(file=buffer, width=200).print(grid)
    return buffer.getvalue()


def markdown(table: BenchTable) -> str:
    """The same table in Markdown, with the machine below it."""
    headers, rows = _columns(table)
    lines = ["| " + " | ".join(headers) + " |", "|" + "---|" * len(headers)]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join(lines) + f"\n\nMeasured in one run: {_machine_line(table)}.\n"
