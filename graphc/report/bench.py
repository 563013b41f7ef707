"""`graphc bench`: eager, graphc and others on the same inputs in the same run, as a table, JSON and a plot."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from graphc.report import contenders
from graphc.report.measure import ColdStart, Timing, cold_and_warm, interleaved, peak_bytes
from graphc.report.targets import Target


@dataclass(frozen=True)
class Row:
    """One contender on one workload.

    Args:
        workload, contender: names.
        timing: of one call.
        speedup: eager's median over this one's.
        cold, warm: first call in a fresh process with an empty and with a filled cache; None where not measured.
        compile: seconds that the first call took longer than a later one, in this process; None where not measured.
        kernels: distinct generated kernels; kernel_calls: launches per call; externs: ATen calls per call.
        peak: bytes allocated at most during a call.
        max_error: largest absolute difference to eager's result.
    """

    workload: str
    contender: str
    timing: Timing
    speedup: float
    cold: ColdStart | None = None
    warm: ColdStart | None = None
    compile: float | None = None
    kernels: int | None = None
    kernel_calls: int | None = None
    externs: int | None = None
    peak: int | None = None
    max_error: float | None = None


@dataclass
class BenchTable:
    """Rows of a bench run, with what they were measured on."""

    rows: list[Row] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        from graphc.report.table import render

        return render(self)

    def to_json(self) -> str:
        return json.dumps({"machine": self.machine, "rows": [asdict(row) for row in self.rows]}, indent=2) + "\n"

    def save(self, folder: Path) -> list[Path]:
        """Write bench.json, bench.md and bench.png (the last needs matplotlib) and give their paths."""
        from graphc.report.plot import plot_speedups
        from graphc.report.table import markdown

        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / "bench.json", folder / "bench.md"]
        written[0].write_text(self.to_json())
        written[1].write_text(markdown(self))
        picture = plot_speedups(self, folder / "bench.png")
        return [*written, picture] if picture is not None else written


def describe_machine() -> dict[str, Any]:
    """What figures depend on: processor, threads, versions."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass  # not Linux: the platform's own name has to do
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": model,
        "threads": torch.get_num_threads(),
        "gpu": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def bench(
    fn: Callable[..., Any],
    *args: Any,
    against: Sequence[str] = ("eager", "inductor"),
    rounds: int = 25,
    name: str | None = None,
    **kwargs: Any,
) -> BenchTable:
    """Time `fn` compiled by graphc against other contenders, interleaved in one run, under `torch.no_grad()`.

    Args:
        fn: a function or module, compiled or not; args, kwargs: its arguments.
        against: contenders besides graphc, of `eager`, `inductor`; eager is always there.
        rounds: measurements per contender.

    Returns:
        A table; `print` it, or `.save(folder)`.
    """
    label = name or getattr(fn, "__name__", type(fn).__name__)
    target = Target(f":{label}", getattr(fn, "target", fn), lambda: (args, kwargs))
    return BenchTable(bench_target(target, against, rounds, cold=False), describe_machine())


def bench_target(
    target: Target,
    against: Sequence[str],
    rounds: int = 25,
    cold: bool = True,
    progress: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> list[Row]:
    """All contenders on one target.

    Args:
        cold: also measure first calls in fresh processes (needs a target from a file).
        progress: told what is being done, before it is.
        options: for `graphc.compile`.
    """
    names = list(dict.fromkeys(["eager", "graphc", *against]))
    args, kwargs = target.make_inputs()
    with torch.no_grad():
        calls: dict[str, Callable[[], Any]] = {}
        for contender in names:
            progress(f"{target.name}: {contender}: warm up")
            calls[contender] = _bind(
                contenders.make(contender, target.fn, **_options_of(contender, options)), args, kwargs
            )
        results = {contender: _warmed(call) for contender, call in calls.items()}
        progress(f"{target.name}: timing")
        timings = interleaved(calls, rounds)
        progress(f"{target.name}: memory")
        peaks = {contender: peak_bytes(call) for contender, call in calls.items()}
        stats = contenders_stats(calls["graphc"])
    rows = []
    for contender in names:
        starts: tuple[ColdStart | None, ColdStart | None] = (None, None)
        if cold and contender != "eager":
            progress(f"{target.name}: {contender}: cold and warm start")
            starts = cold_and_warm(target.spec, contender)
        ours = stats if contender == "graphc" else {}
        rows.append(
            Row(
                workload=target.name,
                contender=contender,
                timing=timings[contender],
                speedup=timings["eager"].median / timings[contender].median,
                cold=starts[0],
                warm=starts[1],
                kernels=ours.get("kernels"),
                kernel_calls=ours.get("kernel_calls"),
                externs=sum(ours["extern"].values()) if ours else None,
                peak=peaks[contender] + ours.get("arena_bytes", 0),
                max_error=max_difference(results[contender], results["eager"]),
            )
        )
    return rows


def _options_of(contender: str, options: dict[str, Any]) -> dict[str, Any]:
    return options if contender == "graphc" else {}


class _Bound:
    """A contender with its arguments; keeps the compiled object reachable for its statistics."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.fn, self.args, self.kwargs = fn, args, kwargs

    def __call__(self) -> Any:
        return self.fn(*self.args, **self.kwargs)


def _bind(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Bound:
    return _Bound(fn, args, kwargs)


def _warmed(call: Callable[[], Any]) -> Any:
    for _ in range(2):
        call()
    return call()


def contenders_stats(bound: Any) -> dict[str, Any]:
    """The plan's counters of a bound graphc contender."""
    return dict(bound.fn.explain(*bound.args, **bound.kwargs).stats)


def max_difference(result: Any, reference: Any) -> float:
    """Largest absolute difference over all tensors of two equal pytrees, in float64; nan where only one is NaN."""
    from torch.utils._pytree import tree_leaves

    worst = 0.0
    for ours, theirs in zip(tree_leaves(result), tree_leaves(reference), strict=True):
        if not isinstance(ours, torch.Tensor) or ours.numel() == 0:
            continue
        difference = (ours.detach().double() - theirs.detach().double()).abs()
        difference[ours.isnan() & theirs.isnan()] = 0
        worst = max(worst, float(difference.max()))
    return worst
