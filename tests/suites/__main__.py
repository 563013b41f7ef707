"""All suites in one table: `python -m tests.suites [--markdown docs/coverage.md]`.

Each suite is cut into parts that run in processes of their own, as many at once as there are cores, so a crash costs
one part and is reported as wrong. The processes are forked from one that has imported PyTorch and its databases.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import click
from rich.console import Console

from tests.suites import worker
from tests.suites.modules import MODES
from tests.suites.tables import fused, load, markdown, merged
from tests.suites.verdicts import WRONG, Tally, Verdict, report

SECONDS = 1200
"""Longest run of one part."""
PRELOADED = tuple(
    f"torch.testing._internal.{database}" for database in ("common_methods_invocations", "common_modules")
)
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
        ("operators", ("--form", "forward", "--explain"), 4),
        ("operators", ("--form", "backward"), 4),
        ("operators", ("--form", "outside", "--samples", "4"), 2),
        ("operators", ("--form", "in-place"), 1),
        ("operators", ("--form", "method"), 1),
        ("operators", ("--form", "strided"), 4),
        ("operators", ("--form", "erroneous"), 1),
    ]
    for dtype in ("float64", "bfloat16", "float16", "complex64", "int64", "bool"):
        plan.append(("operators", ("--form", "forward", "--dtype", dtype), 2))
        if dtype not in ("int64", "bool"):
            plan.append(("operators", ("--form", "backward", "--dtype", dtype), 2))
    plan += [("modules", ("--mode", mode), 2) for mode in MODES]  # one class has half of all samples
    plan.append(("optimizers", (), 4))
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("tests.suites.hf"):
        plan.append(("hf", (), 8))
    for module, args, parts in plan:
        for part in range(0, parts, scale):
            yield Job(module, (*args, *(("--part", f"{part}/{parts}") if parts > 1 else ())))


def run(wanted: Sequence[Job], folder: Path, processes: int) -> Iterator[tuple[int, list[Tally]]]:
    """Run parts in processes forked from one that has imported everything.

    Args:
        wanted: the parts.
        folder: of what the processes write.
        processes: at the same time.

    Yields:
        (index in `wanted`, tallies) of each part when it has ended; one that died is a tally with what it died at.
    """
    context = multiprocessing.get_context("forkserver")
    cores = sorted(os.sched_getaffinity(0))
    free = [[core] for core in cores] if processes == len(cores) else [cores] * processes  # a core of its own
    context.set_forkserver_preload([*PRELOADED, *(f"tests.suites.{job.module}" for job in wanted)])
    left, running = deque(enumerate(wanted)), dict[int, _Part]()
    while left or running:
        while left and len(running) < processes:
            number, job = left.popleft()
            out = folder / f"{number}.json"
            own = free.pop()
            process = context.Process(target=worker.work, args=(out, f"tests.suites.{job.module}", job.args, own))
            process.start()
            running[number] = _Part(job, out, process, own, time.perf_counter())
        wait([part.process.sentinel for part in running.values()], timeout=1)
        for number, part in list(running.items()):
            if part.is_over():
                yield number, part.tallies()
                free.append(part.cores)
                del running[number]


@dataclass(frozen=True)
class _Part:
    """A process that runs a part."""

    job: Job
    out: Path
    process: BaseProcess
    cores: list[int]
    start: float

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def is_over(self) -> bool:
        return not self.process.is_alive() or self.seconds() > SECONDS

    def tallies(self) -> list[Tally]:
        """What it has found; it is killed if it still runs."""
        how = f"not done after {SECONDS} s"
        if self.process.is_alive():
            self.process.kill()
        else:
            how = f"exit status {self.process.exitcode}; {' '.join(worker.said(self.out).split()[-40:])}"
        self.process.join()
        if self.out.exists():
            return load(self.out)
        at = worker.last_sample(self.out) or str(self.job)
        return [Tally(f"{self.job}", [Verdict(at, WRONG, f"the process died: {how}")], self.seconds())]


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
    os.environ |= {"GRAPHC_CACHE": "0", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}  # of the processes
    wanted = [job for job in jobs(scale) if str(job).startswith(only)]
    found: dict[int, list[Tally]] = {}
    with tempfile.TemporaryDirectory(prefix="graphc-suites-") as folder:
        for number, part in run(wanted, Path(folder), processes):
            found[number] = part
            wrong = [f"  {verdict.name}: {verdict.reason}" for tally in part for verdict in tally.verdicts
                     if verdict.kind == WRONG]  # fmt: skip
            now = f"{time.perf_counter() - start:5.0f} s  {wanted[number]}"
            print(now, *wrong, sep="\n", file=sys.stderr, flush=True)
    tallies = merged([tally for _, part in sorted(found.items()) for tally in part])
    notes = [f"{len(wanted)} parts, {processes} processes, {(time.perf_counter() - start) / 60:.0f} minutes in all."]
    for tally in tallies:
        if tally.suite.startswith(EXPLAINED):
            whole, total = fused(tally)
            notes.append(
                f"{whole} of {total} operators have no ATen call left in any program of their float32 samples."
            )
    explained = [f"{v.name} ({tally.suite})" for tally in tallies for v in tally.verdicts if v.by_rounding]
    if explained:
        notes.append(f"Right by what random rounding of eager's calls explains alone: {', '.join(explained)}.")
    status = report(tallies)
    Console(width=160).print(*notes, sep="\n", markup=False)
    if target is not None:
        target.write_text(markdown(tallies, notes))
    raise SystemExit(status)


if __name__ == "__main__":
    main()
