"""All suites in one table: `python -m tests.suites [--markdown docs/coverage.md]`.

Each suite is cut into parts that run in processes of their own, as many at once as there are cores, so a crash costs
one part and is reported as wrong.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

from tests.suites.modules import MODES
from tests.suites.tables import fused, load, markdown, merged
from tests.suites.verdicts import WRONG, Tally, Verdict, report

SECONDS = 1200
"""Longest run of one part."""
WORKER = "tests.suites.worker"
EXPLAINED = "operators, forward, float32"


@dataclass(frozen=True)
class Job:
    """Some part of a suite: the arguments of the command of a module in tests.suites."""

    module: str
    args: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.module, *self.args))


def jobs(scale: int = 1) -> Iterator[Job]:
    """Everything, what takes longest first.

    Args:
        scale: 1 runs all; n runs every n-th part.
    """
    plan: list[tuple[str, tuple[str, ...], int]] = [
        ("operators", ("--form", "forward", "--explain"), 8),
        ("operators", ("--form", "backward"), 8),
        ("operators", ("--form", "outside", "--samples", "2"), 4),
        ("operators", ("--form", "in-place"), 2),
        ("operators", ("--form", "method"), 4),
        ("operators", ("--form", "strided"), 6),
        ("operators", ("--form", "erroneous"), 2),
    ]
    for dtype in ("float64", "bfloat16", "float16", "complex64", "int64", "bool"):
        plan.append(("operators", ("--form", "forward", "--samples", "16", "--dtype", dtype), 2))
        if dtype not in ("int64", "bool"):
            plan.append(("operators", ("--form", "backward", "--samples", "4", "--dtype", dtype), 2))
    plan += [("modules", ("--mode", mode), 2) for mode in MODES]  # one class has half of all samples
    plan.append(("optimizers", (), 4))
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("tests.suites.hf"):
        plan.append(("hf", (), 8))
    for module, args, parts in plan:
        for part in range(0, parts, scale):
            yield Job(module, (*args, *(("--part", f"{part}/{parts}") if parts > 1 else ())))


def run(job: Job, folder: Path, number: int) -> list[Tally]:
    """Run a part in a process of its own; one that dies is a tally with what it died at."""
    out = folder / f"{number}.json"
    command = [sys.executable, "-W", "ignore", "-m", WORKER, str(out), f"tests.suites.{job.module}"]
    environment = {**os.environ, "GRAPHC_CACHE": "0", "OMP_NUM_THREADS": "1"}
    start, how = time.perf_counter(), ""
    try:
        done = subprocess.run([*command, *job.args], env=environment, capture_output=True, text=True, timeout=SECONDS)
        how = f"exit status {done.returncode}; {' '.join(done.stderr.split()[-40:])}"
    except subprocess.TimeoutExpired:
        how = f"not done after {SECONDS} s"
    if out.exists():
        return load(out)
    log = Path(f"{out}.log")
    at = [line for line in log.read_text().splitlines() if line.startswith("sample ")] if log.exists() else []
    died = Verdict(at[-1].removeprefix("sample ") if at else str(job), WRONG, f"the process died: {how}")
    return [Tally(f"{job}", [died], time.perf_counter() - start)]


@click.command()
@click.option(
    "--markdown", "target", type=click.Path(path_type=Path), help="Write the table and what was refused here."
)
@click.option("--only", default="", help="Jobs whose command starts so: operators, 'modules --part 0/16', ...")
@click.option("--scale", default=1, show_default=True, help="Run every n-th part alone.")
@click.option("--processes", default=len(os.sched_getaffinity(0)), show_default=True, help="Children at once.")
def main(target: Path | None, only: str, scale: int, processes: int) -> None:
    """Compare operators, modules, optimizers and models with eager; exits with 1 when an answer is wrong."""
    start = time.perf_counter()
    wanted = [job for job in jobs(scale) if str(job).startswith(only)]
    with tempfile.TemporaryDirectory(prefix="graphc-suites-") as folder, ThreadPoolExecutor(processes) as pool:
        running = [pool.submit(run, job, Path(folder), number) for number, job in enumerate(wanted)]
        found: list[Tally] = []
        for job, future in zip(wanted, running):
            part = future.result()
            found += part
            wrong = [f"  {verdict.name}: {verdict.reason}" for tally in part for verdict in tally.verdicts
                     if verdict.kind == WRONG]  # fmt: skip
            print(f"{time.perf_counter() - start:5.0f} s  {job}", *wrong, sep="\n", file=sys.stderr, flush=True)
    tallies = merged(found)
    notes = [f"{len(wanted)} parts, {processes} processes, {(time.perf_counter() - start) / 60:.0f} minutes in all."]
    for tally in tallies:
        if tally.suite.startswith(EXPLAINED):
            whole, total = fused(tally)
            notes.append(
                f"{whole} of {total} operators have no ATen call left in any program of their float32 samples."
            )
    status = report(tallies)
    Console(width=160).print(*notes, sep="\n", markup=False)
    if target is not None:
        target.write_text(markdown(tallies, notes))
    raise SystemExit(status)


if __name__ == "__main__":
    main()
