"""What compiling costs before a GPU has anything to do: cold, each time in a fresh process with empty caches.

    python benchmarks/gpu_compile.py [--rounds N] [--small] [PROGRAM ...]
    python -m tests.triton.simulated python benchmarks/gpu_compile.py     without a GPU, see docs/architecture.md

Programs are those of `gpu.py`. In a process a contender is started by a small program first: imports, workers and the
stub of the driver are `start`. Then `compile` is what four calls of the program take longer than later ones: compiling,
again for a state that the first call has made, and recording. Contenders take turns; graphc builds kernels on threads,
torch.compile in processes, each in as many as it takes by itself. On a simulated GPU the device takes all work and does
none of it, memory that nobody touches is none, and the assembler is the real one: a compiler's work at full size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu import Watch, fresh_environment
from gpu_cases import CASES, Made
from gpu_measure import Row, contender

CALLS, LATER = 4, 5
CONTENDERS = ("graphc", "default", "reduce-overhead")
MOST_SECONDS = 900.0
"""For one process."""


def contenders_of(program: str) -> tuple[str, ...]:
    """Who compiles it; `reduce-overhead` where the goals name that."""
    return tuple(name for name in CONTENDERS if name != "reduce-overhead" or name in CASES[program].contenders)


def compile_seconds(make: Callable[[], Callable[[], Any]]) -> float:
    """What the first calls of what is made take longer than later ones, the making included."""

    def timed(work: Callable[[], Any]) -> float:
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    calls = []

    def first() -> None:
        calls.append(make())
        for _ in range(CALLS):
            calls[0]()
            torch.cuda.synchronize()

    seconds = timed(first)
    return seconds - CALLS * statistics.median(timed(calls[0]) for _ in range(LATER))


def measure(name: str, program: str, small: bool) -> Row:
    """In a process that has compiled nothing."""
    device = torch.device("cuda")
    tiny = Made(lambda x: torch.sin(x) + 1, (torch.zeros(1000, device=device),))
    start = compile_seconds(lambda: contender(name, tiny))
    made = CASES[program].make(device, False, small)
    torch.cuda.synchronize()
    return {"start": start, "compile": compile_seconds(lambda: contender(name, made))}


def measured(name: str, program: str, small: bool) -> Row:
    """By a process of its own, with empty caches; `failed` says what it said last when it did not end well."""
    with tempfile.TemporaryDirectory(prefix="graphc-compile-") as folder, open(f"{folder}/stderr", "w+") as errors:
        env = fresh_environment(folder) | {
            "GRAPHC_SIMULATED_IDLE": "1",
            "GRAPHC_SIMULATED_GIB": os.environ.get("GRAPHC_SIMULATED_GIB", "141"),
            "PYTHONDONTWRITEBYTECODE": "",
        }
        command = [sys.executable, __file__, "--child", name, *(["--small"] if small else []), program]
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        watch = Watch(process, MOST_SECONDS)
        try:
            assert process.stdout is not None
            told = next((line for line in process.stdout if line.startswith("@")), "")
        finally:
            watch.stop()  # its workers, too
            process.wait()
        errors.seek(0)
        if not told:
            said = [line.strip() for line in errors if line.strip()]
            return {"failed": (said[-1] if said else "out of time")[:300]}
    found: Row = json.loads(told[1:])
    return found


def _medians(rows: list[Row]) -> list[float]:
    return [statistics.median(row[part] for row in rows) for part in ("start", "compile")]


def _line(program: str, name: str, rows: dict[str, list[Row]]) -> str:
    """A row of the table, with the medians of the others against those of graphc."""
    failed = [row["failed"] for row in rows[name] if "failed" in row]
    if failed:
        return f"| {program} | {name} | failed: {failed[0].replace('|', '/')} |  |  |  |  |  |"
    of = {other: _medians(found) for other, found in rows.items() if not any("failed" in row for row in found)}
    start, compiling = of[name]
    found = [row["compile"] for row in rows[name]]
    cells = [
        f"{compiling:.2f} s",
        f"{min(found):.2f} - {max(found):.2f}",
        f"{start:.2f} s",
        f"{start + compiling:.2f} s",
    ]
    if name != "graphc" and "graphc" in of:
        ours = of["graphc"]
        cells += [f"{compiling / ours[1]:.1f}x", f"{(start + compiling) / sum(ours):.1f}x"]
    return f"| {program} | {name} | {' | '.join(cells + [''] * (6 - len(cells)))} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="the sizes of a dry run")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = sorted(set(options.programs) - set(CASES))
    if unknown:
        parser.error(f"no program {', '.join(unknown)}; there are {', '.join(CASES)}")
    if not torch.cuda.is_available():
        parser.exit(2, "this torch finds no GPU\n")
    if options.child:
        print("@" + json.dumps(measure(options.child, options.programs[0], options.small)), flush=True)
        return 0
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {os.cpu_count()} CPUs; {options.rounds} rounds\n"
    )
    print("| program | contender | compile | least - most | start | together | vs graphc | together |")
    print("|---|---|---|---|---|---|---|---|")
    failed = False
    measured("graphc", "softmax", True)  # has Python keep graphc's bytecode, as it keeps that of what is installed
    for program in options.programs or CASES:
        names = contenders_of(program)
        rows: dict[str, list[Row]] = {name: [] for name in names}
        for _ in range(options.rounds):
            for name in names:
                rows[name].append(measured(name, program, options.small))
        for name in names:
            print(_line(program, name, rows), flush=True)
        failed |= any("failed" in row for found in rows.values() for row in found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
