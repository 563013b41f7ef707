"""Speed on the GPU of this machine: eager, graphc and torch.compile in one run, against float64, within minutes.

    python benchmarks/gpu.py [--tests] [--seconds N] [--out FOLDER] [PROGRAM ...]
    python benchmarks/gpu.py --dry [PROGRAM ...]      a rehearsal on the CPU: small sizes, eager and graphc only

Programs run in child processes, so that one that dies takes no other with it. Of each program the contenders take turns
round by round; a time is the median over rounds between CUDA events. What there is no time for is left out and said.
Results are written after each program to FOLDER/<gpu>.json and .md. Exit 1 when a test or a result is wrong, or a
program failed; 2 without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_cases import CASES, SIDE, Case, Made, gradients, sdpa

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TEST_SECONDS, BENCH_SECONDS = 165, 275
"""For the tests and for the benchmarks: with starting and writing less than eight minutes."""
CALLS = 4
"""Calls whose last result is compared: a recorded program is replayed by then."""
ROUNDS, ROUND_SECONDS = 15, 0.05
EXPECTED = {"eager": 2.0, "sdpa": 2.0, "graphc": 10.0, "default": 20.0, "reduce-overhead": 25.0}
"""Seconds that starting a contender may take; others are autotuned."""
AUTOTUNED_SECONDS = 40.0

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
        torch._dynamo.reset()
        whole = made.inner is None  # torch.compile takes the forward pass; its backward pass is compiled with that
        fn = torch.compile(fn, mode=name) if whole else gradients(torch.compile(made.inner, mode=name))

    def call() -> Any:
        if name not in ("eager", "graphc", "sdpa"):
            torch.compiler.cudagraph_mark_step_begin()
        return fn(*made.args)

    call.fn = fn  # type: ignore[attr-defined]
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


def measure_case(item: Case, device: torch.device, small: bool, deadline: float) -> Iterator[Row]:
    """One row per contender of a program, and one `skipped` for each that there was no time for."""
    start, clock = time.monotonic(), Clock(device)
    torch.manual_seed(0)
    made = item.make(device, True, small)
    exact = results_of(contender("eager", made), made)
    del made
    calls: dict[str, Callable[[], Any]] = {}
    rows: dict[str, Row] = {}
    for name in ("eager", "graphc") if small else ("eager", "graphc", *item.contenders):
        left = min(start + item.seconds, deadline) - time.monotonic()
        if name != "eager" and left < EXPECTED.get(name, AUTOTUNED_SECONDS) and not small:
            yield {"program": item.name, "contender": name, "skipped": f"no time: {left:.0f} s left"}
            continue
        try:
            calls[name], rows[name] = _started(name, item, device, small, exact, clock)
        except Exception as failure:  # of any compiler: the others can still be measured
            text = f"{type(failure).__name__}: {str(failure).strip().splitlines()[0] if str(failure) else ''}"
            yield {"program": item.name, "contender": name, "failed": text[:300]}
    for name, samples in _timed(calls, clock, 3 if small else ROUNDS, start + item.seconds).items():
        low, median, high = statistics.quantiles(samples, n=4)
        rows[name] |= {"median": median, "low": low, "high": high, "rounds": len(samples)}
        rows[name]["compile"] = max(rows[name].pop("first") - median, 0.0)
    for name, row in rows.items():
        if name == "graphc":
            row["launch"] = _launch_report(calls[name], item, device, small)
        row["right"] = name == "eager" or is_right(row["error"], rows["eager"]["error"])
        yield row


def _started(
    name: str, item: Case, device: torch.device, small: bool, exact: Sequence[torch.Tensor], clock: Clock
) -> tuple[Callable[[], Any], Row]:
    """A contender, compiled and compared."""
    torch.manual_seed(0)
    made = item.make(device, False, small)
    call = contender(name, made)
    clock.wait()
    base = torch.cuda.memory_allocated() if clock.on_gpu else 0
    start = time.perf_counter()
    first = call()
    clock.wait()
    seconds = time.perf_counter() - start
    del first
    row: Row = {"program": item.name, "contender": name, "first": seconds}
    row["error"] = error(results_of(call, made, CALLS - 1), exact)
    if clock.on_gpu:
        torch.cuda.reset_peak_memory_stats()
        call()
        clock.wait()
        row["peak"] = torch.cuda.max_memory_allocated() - base
    return call, row


def _timed(calls: dict[str, Callable[[], Any]], clock: Clock, rounds: int, deadline: float) -> dict[str, list[float]]:
    """Seconds per round and contender, the contenders taking turns."""
    repeats = {}
    for name, call in calls.items():
        clock.measure(call, 2)
        often = int(ROUND_SECONDS / max(clock.measure(call, 1), 1e-7))
        repeats[name] = max(1, min(200, often)) if clock.on_gpu else 1
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        if number >= 3 and time.monotonic() > deadline:
            break
        for name, call in calls.items():
            found[name].append(clock.measure(call, repeats[name]))
    return found


def _launch_report(call: Callable[[], Any], item: Case, device: torch.device, small: bool) -> dict[str, str]:
    torch.manual_seed(0)
    report = call.fn.explain(*item.make(device, False, small).args)  # type: ignore[attr-defined]
    found: dict[str, str] = report.stats.get("launch", {})
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


def run_child(names: Sequence[str], small: bool, deadline: float) -> None:
    """Measure programs and print one JSON object per line."""
    device = torch.device("cpu" if small else "cuda")
    if not small:
        _say({"machine": measure_machine()})
    for name in names:
        _say({"begin": name})
        for row in measure_case(CASES[name], device, small, deadline):
            _say(row)
        _say({"end": name})
        if not small:
            torch._dynamo.reset()
            torch.cuda.empty_cache()


def _say(item: Row) -> None:
    print("@" + json.dumps(item), flush=True)


# --------------------------------------------------------------------------------------------------------- the parent


def run_all(names: Sequence[str], small: bool, seconds: float, on_row: Callable[[Row], None]) -> Row:
    """Measure programs in child processes; `on_row` gets every row. Gives what was said of the machine."""
    deadline, pending, machine = time.monotonic() + seconds, list(names), {}
    with tempfile.TemporaryDirectory(prefix="graphc-gpu-") as folder:
        while pending:
            left = deadline - time.monotonic()
            if left < 20 and not small:
                for name in pending:
                    on_row({"program": name, "contender": "", "skipped": f"no time: {max(left, 0):.0f} s left"})
                break
            running, tail = "", ""
            for item in _child(pending, small, left, folder):
                machine |= item.get("machine", {})
                running = item.get("begin", "" if "end" in item else running)
                tail = item.get("tail", tail)
                if "end" in item:
                    pending.remove(item["end"])
                elif "program" in item:
                    on_row(item)
            if running or (pending and tail):  # it died: on with the others in another process
                failed = running or pending[0]
                on_row({"program": failed, "contender": "", "failed": tail or "the process ended"})
                pending.remove(failed)
    return machine


def _child(names: Sequence[str], small: bool, seconds: float, folder: str) -> Iterator[Row]:
    """Lines of one child process, then what it said last when it did not end well."""
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "GRAPHC_CACHE_DIR": f"{folder}/graphc",
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        "TRITON_CACHE_DIR": f"{folder}/triton",
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, __file__, "--child", str(seconds), *(["--dry"] if small else []), *names]
    with open(f"{folder}/stderr", "w+") as errors:
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )

        def kill() -> None:
            """The process and what it has started: workers of a compiler would keep the pipe open."""
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        killer = threading.Timer(seconds + (600 if small else 0), kill)
        killer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("@"):
                    yield json.loads(line[1:])
            status = process.wait()
        finally:
            killer.cancel()
            kill()
            process.wait()
        errors.seek(0)
        lines = [line.strip() for line in errors if line.strip()]
    if status:
        why = "out of time" if status == -9 else f"exit {status}"
        yield {"tail": f"{why}: {lines[-1] if lines else ''}"[:300]}


def run_tests(seconds: float) -> Row:
    """The tests marked gpu."""
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--maxfail=50", "-p", "no:cacheprovider", "tests/gpu"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip
        output, passed = done.stdout, done.returncode == 0
    except subprocess.TimeoutExpired as late:
        text = late.stdout or b""
        output, passed = (text.decode(errors="replace") if isinstance(text, bytes) else text) + "\nout of time", False
    print(output[-6000:], flush=True)
    return {"passed": passed, "seconds": time.monotonic() - start, "last": output.strip().splitlines()[-1]}


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
            how = "; ".join(f"{name}: {text}" for name, text in row.get("launch", {}).items())
            lines.append(f"| {row['program']} | {CASES[row['program']].goal} | {how} |")
    return "\n".join(lines) + "\n"


def _line(row: Row, eager: float, machine: Row) -> str:
    note = row.get("skipped") or (f"failed: {row['failed']}" if "failed" in row else "")
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
    options = parser.parse_args()
    names = options.programs or list(CASES)
    unknown = sorted(set(names) - set(CASES))
    if unknown:
        parser.error(f"no program {', '.join(unknown)}; there are {', '.join(CASES)}")
    if options.child is not None:
        run_child(names, options.dry, time.monotonic() + options.child)
        return 0
    if not options.dry and not torch.cuda.is_available():
        print(f"no GPU: torch {torch.__version__} sees no CUDA device here, so nothing was tested or measured")
        return 2
    return report(options, names)


def report(options: argparse.Namespace, names: Sequence[str]) -> int:
    """Run what was asked for and write it down; 0 when all was right."""
    found: Row = {"versions": versions(), "machine": {}, "rows": []}
    found["tests"] = run_tests(TEST_SECONDS) if options.tests else None
    label = "dry" if options.dry else re.sub(r"[^a-z0-9]+", "_", found["versions"]["gpu"].lower()).strip("_")

    def write() -> None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{label}.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.out / f"{label}.md").write_text(markdown(found))

    def on_row(row: Row) -> None:
        print(json.dumps(row), flush=True)
        found["rows"].append(row)
        write()

    found["machine"] = run_all(names, options.dry, options.seconds, on_row)
    write()
    print(markdown(found))
    wrong = [row for row in found["rows"] if "failed" in row or row.get("right") is False]
    return 1 if wrong or (found["tests"] and not found["tests"]["passed"]) else 0


if __name__ == "__main__":
    sys.exit(main())
