"""What a child process of `gpu.py` does: programs under their contenders, compared and timed, one JSON object per line.

Of each program the contenders take turns round by round; a time is the median over rounds between CUDA events.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from gpu_cases import CASES, SIDE, Case, Made, gradients, sdpa

CALLS = 4
"""Calls whose last result is compared: a recorded program is replayed by then."""
ROUNDS, ROUND_SECONDS = 15, 0.05
EXPECTED = {"eager": 1.0, "sdpa": 1.0, "graphc": 3.0, "default": 10.0, "reduce-overhead": 12.0}
"""Seconds that starting a contender may take; others are autotuned."""
AUTOTUNED_SECONDS = 30.0
PHASES = 3
"""Eager and graphc; with what compiles quickly; with what is autotuned."""

Row = dict[str, Any]


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
    device = torch.device("cuda" if torch.cuda.is_available() or not small else "cpu")
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
