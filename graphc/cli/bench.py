"""`graphc bench`: runs the benchmark with a progress line and keeps its results."""

from __future__ import annotations

from pathlib import Path

from graphc.report.bench import BenchTable, bench_target, describe_machine
from graphc.report.contenders import CONTENDERS
from graphc.report.targets import TargetError, load_targets
from graphc.report.zoo import bench_zoo


def run_bench(
    spec: str, against: list[str], rounds: int, cold: bool, backend: str, out: Path
) -> tuple[BenchTable, list[Path]]:
    """Benchmark a function, all of a file's, or models of the zoo, and write JSON, Markdown and a plot to `out`.

    Raises:
        TargetError: no such function or contender.
    """
    from rich.console import Console

    unknown = [name for name in against if name not in CONTENDERS]
    if unknown:
        raise TargetError(f"no contender {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    table = BenchTable(machine=describe_machine())
    console = Console(stderr=True)
    with console.status("loading") as status:
        if spec.partition(":")[0] == "zoo":
            table.rows = bench_zoo(spec, against, rounds, status.update, backend=backend)
            return table, table.save(out)
        for target in load_targets(spec):
            table.rows += bench_target(target, against, rounds, cold, status.update, backend=backend)
    return table, table.save(out)
