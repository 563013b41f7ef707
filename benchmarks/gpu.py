"""Speed on the GPU of this machine: eager, graphc and torch.compile in one run, against float64, within minutes.

    python benchmarks/gpu.py [--tests] [--seconds N] [--out FOLDER] [PROGRAM ...]
    python benchmarks/gpu.py --dry [PROGRAM ...]      a rehearsal: small sizes, eager and graphc only; needs no GPU

Programs run in child processes, so that one that dies takes no other with it: it is tried again without the contender
that it died of. Of each program the contenders take turns round by round; a time is the median over rounds between CUDA
events. Eager and graphc come first, for all programs, then also what compiles quickly, then also what is autotuned;
what there is no time for is left out and said. Results are written after each row to FOLDER/<gpu>.json and .md. Exit 1
when a test or a result is wrong, or a program failed; 2 without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from gpu_cases import CASES, SIDE
from gpu_measure import CALLS, PHASES, Row, contenders_in, run_child

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TEST_SECONDS, BENCH_SECONDS = 165, 275
"""For the tests and for the benchmarks: with starting and writing less than eight minutes."""
TESTS = ("launch", "streams", "several_gpus", "programs", "attention", "templates", "loops", "cuda", "sizes")
"""Files of tests, the most telling first; each in a process of its own, side by side."""
GRACE = 45.0
"""Seconds beyond its own after which a program is taken to hang."""


class Progress:
    """Where a child process is.

    Attributes:
        job: what it measures, "" between two.
        contender: what it has started last there.
        tail: what it said last when it did not end well.
    """

    def __init__(self) -> None:
        self.job = self.contender = self.tail = ""

    def take(self, item: Row) -> None:
        if "begin" in item or "end" in item:
            self.job, self.contender = item.get("begin", ""), ""
        self.contender = item.get("start", self.contender)
        self.tail = item.get("tail", self.tail)


def jobs_of(names: Sequence[str], small: bool) -> list[str]:
    """`PHASE:PROGRAM` in the order in which they are measured."""
    phases = range(1, 2 if small else PHASES + 1)
    return [f"{phase}:{name}" for phase in phases for name in names if contenders_in(CASES[name], phase)]


def run_all(names: Sequence[str], small: bool, seconds: float, on_row: Callable[[Row], None]) -> Row:
    """Measure programs in child processes; `on_row` gets every row. Gives what was said of the machine."""
    deadline, pending, machine = time.monotonic() + seconds, jobs_of(names, small), {}
    without: set[str] = set()
    measured: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="graphc-gpu-") as folder:
        while pending:
            left = deadline - time.monotonic()
            if left < 20 and not small:
                unmeasured = dict.fromkeys(job.partition(":")[2] for job in pending)
                for name in (name for name in unmeasured if name not in measured):
                    on_row({"program": name, "contender": "", "skipped": f"no time: {max(left, 0):.0f} s left"})
                break
            at = Progress()
            for item in _child(pending, small, left, folder, sorted(without)):
                at.take(item)
                machine |= item.get("machine", {})
                if "end" in item:
                    pending.remove(item["end"])
                elif "program" in item:
                    measured.add(item["program"])
                    on_row(item)
            if not at.job and not (pending and at.tail):
                continue
            job = at.job or pending[0]  # it died there
            name = job.partition(":")[2]
            on_row({"program": name, "contender": at.contender, "failed": at.tail or "the process ended"})
            again = f"{name}:{at.contender}"
            if at.contender in ("", "eager") or again in without:
                pending.remove(job)
            without.add(again)  # what is left of it in another process
    return machine


def fresh_environment(folder: str) -> dict[str, str]:
    """Variables of a process whose compilers have empty caches, in a folder."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "GRAPHC_CACHE_DIR": f"{folder}/graphc",
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        "TRITON_CACHE_DIR": f"{folder}/triton",
    }


def _child(jobs: Sequence[str], small: bool, seconds: float, folder: str, without: Sequence[str]) -> Iterator[Row]:
    """Lines of one child process, then what it said last when it did not end well."""
    env = fresh_environment(folder) | {"PYTHONUNBUFFERED": "1"}
    options = ["--child", str(seconds), "--without", ",".join(without), *(["--dry"] if small else [])]
    with open(f"{folder}/stderr", "w+") as errors:
        process = subprocess.Popen(
            [sys.executable, __file__, *options, *jobs],
            env=env,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        watch = Watch(process, seconds + (600 if small else 0))
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("@"):
                    item = json.loads(line[1:])
                    if "begin" in item and not small:
                        watch.set(CASES[item["begin"].partition(":")[2]].seconds + GRACE)
                    yield item
            status = process.wait()
        finally:
            watch.stop()
            process.wait()
        errors.seek(0)
        lines = [line.strip() for line in errors if line.strip()]
    if status:
        why = "out of time" if status == -9 else f"exit {status}"
        yield {"tail": f"{why}: {lines[-1] if lines else ''}"[:300]}


class Watch:
    """Ends a process, and what that has started, at the latest after some time.

    Args:
        process: leader of a group of its own: workers of a compiler would keep its pipe open.
        seconds: for all it does.
    """

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        self._process, self._deadline = process, time.monotonic() + seconds
        self._timer: threading.Timer | None = None
        self.set(seconds)

    def set(self, seconds: float) -> None:
        """So long for what comes now."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(max(min(seconds, self._deadline - time.monotonic()), 0.0), self._kill)
        self._timer.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def run_tests(seconds: float) -> Row:
    """The tests marked gpu, with what the failed ones said."""
    start = time.monotonic()
    side_by_side = max(1, min(len(TESTS), (os.cpu_count() or 1) // 2))
    with tempfile.TemporaryDirectory(prefix="graphc-gpu-tests-") as folder, ThreadPoolExecutor(side_by_side) as pool:
        parts = list(pool.map(lambda name: _test_file(name, start + seconds, Path(folder)), TESTS))
    failed = [item for part in parts for item in part["failed"]]
    last = "; ".join(f"{name}: {part['last']}" for name, part in zip(TESTS, parts, strict=True))
    passed = all(part["passed"] for part in parts)
    return {"passed": passed, "seconds": time.monotonic() - start, "last": last, "failed": failed}


def _test_file(name: str, deadline: float, folder: Path) -> Row:
    """One file of tests. Where one ends its process, or leaves the device unusable, another one goes on behind it."""
    notes, failed, last, status, before = folder / f"{name}.jsonl", [], "not started: no time", 1, -1
    while time.monotonic() < deadline - 5 and status not in (0, 5):
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short"]
        command += ["-o", "faulthandler_timeout=60", f"tests/gpu/test_{name}.py"]
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "GRAPHC_CACHE_DIR": f"{folder}/{name}",
            "GRAPHC_GPU_TESTS": str(notes),
            "GRAPHC_GPU_TESTS_UNTIL": str(time.time() + deadline - time.monotonic() - 10),
        }
        with open(folder / f"{name}.txt", "w+") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )
            watch = Watch(process, deadline - time.monotonic())
            status = process.wait()
            watch.stop()
            output.seek(0)
            text = output.read()
        print(f"== test_{name}\n{text[-6000:]}", flush=True)
        found = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
        failed = [item for item in found if item.get("why")]
        last = (text.strip().splitlines() or ["nothing said"])[-1]
        begun = [item["test"] for item in found if "why" not in item]
        if len(begun) == before:
            break  # it does not come to its tests
        before = len(begun)
        died = status not in (0, 1, 2, 5)  # pytest's own: passed, failed, interrupted, nothing to run
        if died and begun and not any(item["test"] == begun[-1] for item in failed):
            failed.append({"test": begun[-1], "why": f"its process ended with {status}: {text[-1500:]}"})
            notes.write_text("".join(json.dumps(item) + "\n" for item in [*found, failed[-1]]))
        if status == 1 and "cannot be used after" not in text:
            break  # all have been run
    return {"passed": status in (0, 5) and not failed, "last": last, "failed": failed}


def versions() -> Row:
    import triton

    import graphc

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else f"no GPU, {platform.machine()}"
    return {
        "gpu": gpu, "python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__,
        "cuda": str(torch.version.cuda or torch.version.hip), "graphc": graphc.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def markdown(found: Row) -> str:
    """The results as tables."""
    told, machine = found["versions"], found["machine"]
    lines = [f"# Measured on {told['gpu']}\n"]
    lines.append(
        "Printed by `make gpu`: " + ", ".join(f"{name} {text}" for name, text in told.items() if name != "gpu") + "."
    )
    lines.append(
        "Medians over interleaved rounds between CUDA events; `error` is the largest relative error of a result of\n"
        f"the {CALLS}th call against float64. `compile` is the first call less a later one, all caches empty.\n"
    )
    if machine:
        lines.append(
            f"A copy moves {machine['copy_bytes_per_s'] / 1e12:.2f} TB/s (read and written), a bf16 product of side "
            f"{SIDE} makes {machine['product_flops_per_s'] / 1e12:.0f} TFLOP/s.\n"
        )
    if found.get("tests"):
        lines.append(f"Tests marked gpu: {found['tests']['last']}\n")
        lines += [f"- failed: {item['test']}" for item in found["tests"]["failed"]]
    columns = (
        "program",
        "contender",
        "median",
        "quartiles",
        "vs eager",
        "of the limit",
        "compile",
        "peak",
        "error",
        "",
    )
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    eager = {row["program"]: row.get("median", 0.0) for row in found["rows"] if row["contender"] == "eager"}
    lines += [_line(row, eager.get(row["program"], 0.0), machine) for row in found["rows"]]
    lines += ["\n| program | goal | how graphc launches it |", "|---|---|---|"]
    for row in found["rows"]:
        if row["contender"] == "graphc":
            said = {"warned": " / ".join(row["warned"]).replace("|", "/").replace("\n", " ")} if "warned" in row else {}
            how = "; ".join(f"{name}: {text}" for name, text in (row.get("launch", {}) | said).items())
            lines.append(f"| {row['program']} | {CASES[row['program']].goal} | {how} |")
    return "\n".join(lines) + "\n"


def _line(row: Row, eager: float, machine: Row) -> str:
    note = row.get("skipped") or (f"failed: {row['failed']}" if "failed" in row else "not timed")
    if "median" not in row:
        return f"| {row['program']} | {row['contender']} |  |  |  |  |  |  |  | {note.replace('|', '/')} |"
    item, median = CASES[row["program"]], row["median"]
    limit = ""
    if machine and item.moved:
        limit = f"{item.moved / median / machine['copy_bytes_per_s']:.0%} of the copy"
    elif machine and item.flops:
        limit = f"{item.flops / median / machine['product_flops_per_s']:.0%} of the product"
    peak = f"{row['peak'] / 2**20:.0f} MiB" if "peak" in row else ""
    return (
        f"| {row['program']} | {row['contender']} | {median * 1e3:.3f} ms | {row['low'] * 1e3:.3f} - "
        f"{row['high'] * 1e3:.3f} | {eager / median:.2f}x | {limit} | {row['compile']:.2f} s | {peak} | "
        f"{row['error']:.1e} | {'' if row['right'] else 'WRONG'} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=", ".join(CASES))
    parser.add_argument("--tests", action="store_true", help="the tests marked gpu first")
    parser.add_argument("--seconds", type=float, default=BENCH_SECONDS, help="for all programs together")
    parser.add_argument("--dry", action="store_true", help="a rehearsal at small sizes, on a CPU where there is no GPU")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--without", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        without = [entry for entry in options.without.split(",") if entry]
        run_child(options.programs, options.dry, time.monotonic() + options.child, without)
        return 0
    names = options.programs or list(CASES)
    unknown = sorted(set(names) - set(CASES))
    if unknown:
        parser.error(f"no program {', '.join(unknown)}; there are {', '.join(CASES)}")
    if not options.dry and not torch.cuda.is_available():
        print(f"no GPU: torch {torch.__version__} sees no CUDA device here, so nothing was tested or measured")
        return 2
    return report(options, names)


def merged(rows: Sequence[Row], row: Row) -> list[Row]:
    """Rows with one more, which takes the place of what is known of that contender; a failure does so only where
    nothing has been measured. The time of the first start is kept, for all caches were empty then."""
    same = [old for old in rows if (old["program"], old["contender"]) == (row["program"], row["contender"])]
    if any("median" in old for old in same) and "median" not in row:
        return (
            [*rows] if "failed" not in row else [old | {"then": row["failed"]} if old in same else old for old in rows]
        )
    row = row | {name: old[name] for old in same for name in ("compile", "then") if name in old}
    kept = [old for old in rows if old not in same]
    place = next((number for number, old in enumerate(rows) if old in same), len(kept))
    return [*kept[:place], row, *kept[place:]]


def report(options: argparse.Namespace, names: Sequence[str]) -> int:
    """Run what was asked for and write it down; 0 when all was right."""
    found: Row = {"versions": versions(), "machine": {}, "rows": [], "tests": None}
    label = "dry" if options.dry else re.sub(r"[^a-z0-9]+", "_", found["versions"]["gpu"].lower()).strip("_")

    def write() -> None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{label}.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.out / f"{label}.md").write_text(markdown(found))

    def on_row(row: Row) -> None:
        print(json.dumps(row), flush=True)
        found["rows"] = merged(found["rows"], row)
        write()

    seconds = options.seconds
    if options.tests:
        found["tests"] = run_tests(TEST_SECONDS)
        seconds += max(0.0, TEST_SECONDS - found["tests"]["seconds"])
        write()
    found["machine"] = run_all(names, options.dry, seconds, on_row)
    write()
    print(markdown(found))
    wrong = [row for row in found["rows"] if "failed" in row or "then" in row or row.get("right") is False]
    return 1 if wrong or (found["tests"] and not found["tests"]["passed"]) else 0


if __name__ == "__main__":
    sys.exit(main())
