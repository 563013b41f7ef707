"""Speed on the GPU of this machine: eager, graphc and torch.compile in one run, against float64, within minutes.

    python benchmarks/gpu.py [--tests] [--seconds N] [--out FOLDER] [PROGRAM ...]
    python benchmarks/gpu.py --dry [PROGRAM ...]      a rehearsal on the CPU: small sizes, eager and graphc only

Programs run in child processes, so that one that dies takes no other with it: it is tried again without the contender
that it died of. Of each program the contenders take turns round by round; a time is the median over rounds between CUDA
events. Eager and graphc come first, for all programs, then also what compiles quickly, then also what is autotuned;
what there is no time for is left out and said. Results are written after each row to FOLDER/<gpu>.json and .md. Exit 1
when a test or a result is wrong, or a program failed; 2 without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from gpu_cases import CASES, SIDE, Case, Made, gradients, sdpa

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TEST_SECONDS, BENCH_SECONDS = 165, 275
"""For the tests and for the benchmarks: with starting and writing less than eight minutes."""
TESTS = ("launch", "programs", "attention", "templates", "loops", "cuda")
"""Files of tests, the most telling first; each in a process of its own, side by side."""
CALLS = 4
"""Calls whose last result is compared: a recorded program is replayed by then."""
ROUNDS, ROUND_SECONDS = 15, 0.05
EXPECTED = {"eager": 1.0, "sdpa": 1.0, "graphc": 3.0, "default": 10.0, "reduce-overhead": 12.0}
"""Seconds that starting a contender may take; others are autotuned."""
AUTOTUNED_SECONDS = 30.0
PHASES = 3
"""Eager and graphc; with what compiles quickly; with what is autotuned."""
GRACE = 45.0
"""Seconds beyond its own after which a program is taken to hang."""

Row = dict[str, Any]


# ------------------------------------------------------------------------------------------------- in a child process


def contender(name: str, made: Made) -> Callable[[], Any]:
    """A call of the program under a compiler."""
    fn = made.fn
    if name == "graphc":
        import graphc

        fn = graphc.compile(fn)
    elif name == "sdpa":
        fn = gradients(sdpa)
    elif name != "eager":
        whole = made.inner is None  # torch.compile takes the forward pass; its backward pass is compiled with that
        fn = torch.compile(fn, mode=name) if whole else gradients(torch.compile(made.inner, mode=name))

    def call() -> Any:
        if name not in ("eager", "graphc", "sdpa"):
            torch.compiler.cudagraph_mark_step_begin()
        return fn(*made.args)

    call.fn, call.args = fn, made.args  # type: ignore[attr-defined]
    return call


def results_of(call: Callable[[], Any], made: Made, calls: int = CALLS) -> list[torch.Tensor]:
    """What the last of some calls leaves: results, then state, as copies."""
    for _ in range(calls - 1):
        call()
    found = call()
    flat = [x for x in (found if isinstance(found, tuple) else (found,)) if isinstance(x, torch.Tensor)]
    return [x.detach().double() for x in (*flat, *made.state)]


def error(found: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """The largest relative error of one of the results, by their norms."""
    sizes = [float(b.norm()) for b in exact]
    return max(float((a - b).norm()) / (size or 1.0) for a, b, size in zip(found, exact, sizes, strict=True))


def is_right(ours: float, eager: float) -> bool:
    """At most twice eager's own error; NaN is not right."""
    return ours <= 2 * eager + 1e-6


class Clock:
    """Seconds of a call on a device."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type != "cpu"

    def measure(self, call: Callable[[], Any], repeats: int) -> float:
        """Seconds per call of several calls in a row."""
        if not self.on_gpu:
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            return (time.perf_counter() - start) / repeats
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        for _ in range(repeats):
            call()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3 / repeats

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


def contenders_in(item: Case, phase: int) -> tuple[str, ...]:
    """Who takes part in a phase; nobody where it would measure nothing new."""
    later = {1: (), 2: [name for name in item.contenders if name in EXPECTED]}.get(phase)
    if later is None:
        later = [name for name in item.contenders if name not in EXPECTED]
    return ("eager", "graphc", *later) if later or phase == 1 else ()


class DeadDevice(Exception):
    """The device cannot be used any more in this process."""


def measure_case(
    item: Case, device: torch.device, small: bool, deadline: float, phase: int = 1, without: Collection[str] = ()
) -> Iterator[Row]:
    """One row per contender of a program, another when it has been timed, and one `skipped` for each that there was no
    time for; before a contender is started, its name.

    Raises:
        DeadDevice: one of them has left the device unusable.
    """
    start, clock = time.monotonic(), Clock(device)
    torch.manual_seed(0)
    made = item.make(device, True, small)
    exact = results_of(contender("eager", made), made)
    del made
    calls: dict[str, Callable[[], Any]] = {}
    rows: dict[str, Row] = {}
    for name in contenders_in(item, phase):
        if name in without:
            continue
        left = deadline - time.monotonic()
        if name != "eager" and left < EXPECTED.get(name, AUTOTUNED_SECONDS) and not small:
            yield {"program": item.name, "contender": name, "skipped": f"no time: {left:.0f} s left"}
            continue
        yield {"start": name}
        try:
            calls[name], rows[name] = _started(name, item, device, small, exact, clock)
        except Exception as failure:  # of any compiler: the others can still be measured
            yield {"program": item.name, "contender": name, "failed": _first_line(failure)}
            _check_alive(clock, name)
        else:
            yield dict(rows[name])
            continue
        gc.collect()
        if clock.on_gpu:
            torch.cuda.empty_cache()
    failed: dict[str, str] = {}
    for name, samples in _timed(calls, clock, 3 if small else ROUNDS, start + item.seconds, failed).items():
        low, median, high = statistics.quantiles(samples, n=4)
        rows[name] |= {"median": median, "low": low, "high": high, "rounds": len(samples)}
        rows[name]["compile"] = max(rows[name].pop("first") - median, 0.0)
    for name, row in rows.items():
        if name in failed:
            yield {"program": item.name, "contender": name, "failed": failed[name]}
            continue
        if name == "graphc":
            row["launch"] = _launch_report(calls[name])
        row["right"] = name == "eager" or "eager" not in rows or is_right(row["error"], rows["eager"]["error"])
        yield row


def _first_line(failure: BaseException) -> str:
    text = f"{type(failure).__name__}: {str(failure).strip().splitlines()[0] if str(failure) else ''}"
    return text[:300]


def _check_alive(clock: Clock, name: str) -> None:
    try:
        clock.wait()
    except RuntimeError as error:
        raise DeadDevice(f"{name}: {_first_line(error)}") from error


def _started(
    name: str, item: Case, device: torch.device, small: bool, exact: Sequence[torch.Tensor], clock: Clock
) -> tuple[Callable[[], Any], Row]:
    """A contender, compiled and compared."""
    torch.manual_seed(0)
    made = item.make(device, False, small)
    call = contender(name, made)
    clock.wait()
    base = torch.cuda.memory_allocated() if clock.on_gpu else 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        start = time.perf_counter()
        first = call()
        clock.wait()
        seconds = time.perf_counter() - start
        del first
        row: Row = {"program": item.name, "contender": name, "first": seconds}
        row["error"] = error(results_of(call, made, CALLS - 1), exact)
    if name == "graphc" and said:  # such as that it runs eager, and why
        row["warned"] = sorted({str(item.message)[:300] for item in said})
    if clock.on_gpu:
        torch.cuda.reset_peak_memory_stats()
        call()
        clock.wait()
        row["peak"] = torch.cuda.max_memory_allocated() - base
    return call, row


def _timed(
    calls: dict[str, Callable[[], Any]], clock: Clock, rounds: int, deadline: float, failed: dict[str, str]
) -> dict[str, list[float]]:
    """Seconds per round and contender, the contenders taking turns; why one is not among them goes to `failed`."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    repeats: dict[str, int] = {}
    for number in range(-1, rounds):
        if number >= 3 and time.monotonic() > deadline:
            break
        for name in list(found):
            try:
                if number < 0:
                    clock.measure(calls[name], 2)
                    often = int(ROUND_SECONDS / max(clock.measure(calls[name], 1), 1e-7))
                    repeats[name] = max(1, min(200, often)) if clock.on_gpu else 1
                else:
                    found[name].append(clock.measure(calls[name], repeats[name]))
            except Exception as failure:  # the others can still be measured
                failed[name] = _first_line(failure)
                del found[name]
                _check_alive(clock, name)
    return found


def _launch_report(call: Any) -> dict[str, str]:
    try:
        found: dict[str, str] = call.fn.explain(*call.args).stats.get("launch", {})
    except Exception as failure:  # no reason to lose what has been measured
        return {"report": _first_line(failure)}
    return found


def measure_machine() -> Row:
    """What plain PyTorch reaches: bytes read and written per second by a copy, operations per second by a product."""
    clock = Clock(torch.device("cuda"))
    x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    a, b = (torch.randn(SIDE, SIDE, device="cuda").to(torch.bfloat16) for _ in range(2))
    copy = statistics.median(clock.measure(lambda: y.copy_(x), 10) for _ in range(7))
    product = statistics.median(clock.measure(lambda: a @ b, 5) for _ in range(7))
    return {"copy_bytes_per_s": 2 * x.numel() / copy, "product_flops_per_s": 2 * SIDE**3 / product}


def run_child(jobs: Sequence[str], small: bool, deadline: float, without: Collection[str]) -> None:
    """Measure programs and print one JSON object per line.

    Args:
        jobs: `PHASE:PROGRAM`.
        without: `PROGRAM:CONTENDER`, left out.
    """
    device = torch.device("cpu" if small else "cuda")
    if not small:
        _say({"machine": measure_machine()})
    for job in jobs:
        _say({"begin": job})
        phase, _, name = job.partition(":")
        left_out = {entry.partition(":")[2] for entry in without if entry.partition(":")[0] == name}
        for row in measure_case(CASES[name], device, small, deadline, int(phase), left_out):
            _say(row)
        _say({"end": job})
        gc.collect()
        if not small:
            torch._dynamo.reset()
            gc.collect()
            torch.cuda.empty_cache()


def _say(item: Row) -> None:
    print("@" + json.dumps(item), flush=True)


# --------------------------------------------------------------------------------------------------------- the parent


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


def _child(jobs: Sequence[str], small: bool, seconds: float, folder: str, without: Sequence[str]) -> Iterator[Row]:
    """Lines of one child process, then what it said last when it did not end well."""
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "GRAPHC_CACHE_DIR": f"{folder}/graphc",
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        "TRITON_CACHE_DIR": f"{folder}/triton",
        "PYTHONUNBUFFERED": "1",
    }
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
    parser.add_argument("--dry", action="store_true", help="a rehearsal on the CPU, at small sizes")
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
