"""Every kernel of the benchmark programs, compiled for GPUs that are not there, with what that shows.

The programs are those of `gpu_programs.py`, and those that `gpu.py` measures on a GPU, at full size.

    python benchmarks/gpu_static.py [--targets cuda:90,hip:gfx942] [--out FOLDER] [--write-counts] [PROGRAM ...]

Exit 1 when a kernel spills registers, takes more shared memory than the chip gives a program, accesses contiguous data
one element at a time, or multiplies matrices without tensor cores, or when a program launches more kernels or calls
libraries more often than `gpu_launches.json` says.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from gpu_cases import CASES
from gpu_programs import AS_TEMPLATES, PROGRAMS, Program

from graphc.report.placed import placed_plan
from graphc.report.static_kernels import Candidate, Line, candidates, inspect, launches_of
from graphc.runtime.triton_cross import TARGETS
from graphc.settings import override

RESULTS = Path(__file__).parent / "results"
COUNTS = RESULTS / "gpu_launches.json"
Counts = dict[str, dict[str, int]]


def _measured(name: str) -> Callable[[], Program]:
    def make() -> Program:
        made = CASES[name].make(torch.device("cpu"), False, False)
        return made.fn, made.args

    return make


ALL = {**PROGRAMS, **{name: _measured(name) for name in CASES if name not in PROGRAMS}}


def plan_all(names: Iterable[str]) -> tuple[list[Candidate], Counts]:
    """Kernels of programs, each kernel once per program, and launches of each program."""
    found: list[Candidate] = []
    counts: Counts = {}
    for name in names:
        with override(templates="always") if name in AS_TEMPLATES else nullcontext():
            plan = placed_plan(*ALL[name]())
        found += candidates(name, plan)
        counts[name] = launches_of(plan)
    return found, counts


def growth(counts: Counts, allowed: Counts) -> list[str]:
    """Programs that start more than they may."""
    return [
        f"{name}: {count} {kind} where {limit} are allowed"
        for name, found in counts.items()
        for kind, count in found.items()
        if count > (limit := allowed.get(name, {}).get(kind, 0))
    ]


def markdown(lines: Sequence[Line], counts: Counts) -> str:
    """The tables of all lines, by program and target."""
    parts = ["# Generated kernels, compiled and not run\n"]
    parts.append(
        "Printed by `python benchmarks/gpu_static.py` on a machine without a GPU: every figure is read from machine\n"
        "code or counted. `moved / least` are bytes of one call; `best` is the least time of one call by data sheets,\n"
        "nothing is measured. Widths are those of global loads and stores, in bytes; spills are bytes of a thread on\n"
        "NVIDIA, registers on AMD. `busy` is the time of the busiest unit over that of memory, `in flight` are bytes\n"
        "per processor that are on their way while it waits, both on the chip with the most bandwidth; of kernels\n"
        "that access large buffers and multiply no matrices. See `graphc/report/bound.py`.\n"
    )
    for target in dict.fromkeys(line.target for line in lines):
        parts += [f"## {target}\n", _table([line for line in lines if line.target == target])]
    parts += ["## Launches per run of each program\n", "| program | launches | library calls |", "|---|---|---|"]
    parts += [f"| {name} | {found['launches']} | {found['library']} |" for name, found in counts.items()]
    return "\n".join(parts) + "\n"


def _table(lines: Sequence[Line]) -> str:
    columns = (
        "program", "function", "calls", "registers", "spills", "shared", "loads", "stores", "matrix", "moved / least",
        "best", "busy", "in flight", "faults",
    )  # fmt: skip
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for line in lines:
        ratio = f"{_megabytes(line.moved)} / {_megabytes(line.least)}"
        best = ", ".join(f"{chip} {time:.1f} us" for chip, time in line.best.items())
        widths = [" ".join(map(str, found)) for found in (line.loads, line.stores)]
        rows.append(
            f"| {line.program} | {line.function} | {line.calls} | {line.registers} | {line.spills} | {line.shared} | "
            f"{widths[0]} | {widths[1]} | {line.tensor_core or ''} | {ratio} | {best} | {_busy(line)} | "
            f"{f'{line.flight / 1024:.0f} KiB' if line.unit else ''} | {'; '.join(line.faults)} |"
        )
    return "\n".join(rows) + "\n"


def _busy(line: Line) -> str:
    return f"{line.busy:.0%} {line.unit}" if line.unit else ""


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.4g} MB"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help="all of them by default")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--out", type=Path, default=Path("out"), help="where gpu_static.json and gpu_static.md go")
    parser.add_argument("--write-counts", action="store_true", help=f"make today's launches those of {COUNTS.name}")
    options = parser.parse_args(argv)
    start = time.perf_counter()
    found, counts = plan_all(options.programs or ALL)
    lines = inspect(found, options.targets.split(","))
    report = markdown(lines, counts)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu_static.md").write_text(report)
    body = {"launches": counts, "kernels": [asdict(line) for line in lines]}
    (options.out / "gpu_static.json").write_text(json.dumps(body, indent=0) + "\n")
    print(report)
    if options.write_counts:
        known = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
        COUNTS.write_text(json.dumps({**known, **counts}, indent=1) + "\n")
    wrong = [f"{x.program}: {x.function} for {x.target}: {fault}" for x in lines for fault in x.faults]
    wrong += growth(counts, json.loads(COUNTS.read_text()))
    print(*wrong, sep="\n")
    print(f"{len(lines)} launches looked at in {time.perf_counter() - start:.0f} s, {len(wrong)} faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
