"""Plots of bench results and training curves; they need matplotlib (the `viz` extra) and are left out without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphc.report.bench import BenchTable


def plot_speedups(table: BenchTable, path: Path) -> Path | None:
    """Bars of speed relative to eager, one group per workload; None when matplotlib is not installed."""
    pyplot = _pyplot()
    if pyplot is None:
        return None
    workloads = list(dict.fromkeys(row.workload for row in table.rows))
    contenders = list(dict.fromkeys(row.contender for row in table.rows))
    many = len(workloads) > 12
    figure, axes = pyplot.subplots(figsize=(2.5 + (0.5 if many else 1.8) * len(workloads), 4), layout="constrained")
    width = 0.8 / len(contenders)
    for number, contender in enumerate(contenders):
        speedups = {row.workload: row.speedup for row in table.rows if row.contender == contender}
        places = [i + (number - (len(contenders) - 1) / 2) * width for i in range(len(workloads))]
        bars = axes.bar(places, [speedups.get(w, 0.0) for w in workloads], width, label=contender)
        if not many:
            axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(workloads)), workloads, rotation=90 if many else 0)
    axes.set_ylabel("speed relative to eager (higher is better)")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def plot_curves(curves: Mapping[str, Sequence[float]], path: Path, title: str, x: str, y: str) -> Path | None:
    """Curves over 1, 2, 3, ... on one logarithmic plot; None when matplotlib is not installed.

    Curves may coincide: earlier ones are wider, later ones dashed, so that each is seen.
    """
    pyplot = _pyplot()
    if pyplot is None:
        return None
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for number, (label, values) in enumerate(curves.items()):
        width = 4 if number < len(curves) - 1 else 2
        axes.plot(range(1, len(values) + 1), values, "--" if number else "-", linewidth=width, label=label)
    axes.set_yscale("log")
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _pyplot() -> Any:
    """matplotlib's pyplot, writing files; None when it is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
