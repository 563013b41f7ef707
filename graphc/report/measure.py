"""Timing and memory of callables: interleaved rounds, medians, and peak bytes from the allocator's own events."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from graphc.errors import GraphcError
from graphc.runtime.timing import cpu_clock, in_turns


@dataclass(frozen=True)
class Timing:
    """Time of one call.

    Args:
        median, low, high: seconds; low and high are the quartiles.
        rounds: measurements taken.
    """

    median: float
    low: float
    high: float
    rounds: int


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _timed(call: Callable[[], Any], repeats: int) -> float:
    def all_of_them() -> None:
        for _ in range(repeats):
            call()
        _synchronize()

    _synchronize()
    return cpu_clock(all_of_them, 1) / repeats


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int = 25, budget_s: float = 0.02) -> dict[str, Timing]:
    """Time several callables against each other, round by round, so that the machine's drift hits all alike.

    Args:
        calls: by name; each has been warmed up by its caller.
        rounds: measurements per callable.
        budget_s: least seconds per measurement; short calls are repeated within one.
    """
    found = {}
    for name, values in in_turns(calls, rounds, budget_s, _timed).items():
        low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
        found[name] = Timing(median, low, high, len(values))
    return found


def peak_bytes(call: Callable[[], Any], trained: Iterable[torch.Tensor] = ()) -> int:
    """Most bytes that one call had allocated from torch's CPU allocator at any moment, its results included.

    Args:
        trained: tensors whose gradients count from the start, since a training step frees, adds to, or replaces them.
            They are replaced by copies, for the profiler knows no sizes of what was there before it.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself on stderr otherwise
    from torch.profiler import ProfilerActivity, profile

    before = [(tensor, tensor.grad) for tensor in trained if tensor.grad is not None]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        for tensor, grad in before:
            tensor.grad = grad.clone()
        result = call()
    del result, before
    current = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


@dataclass(frozen=True)
class ColdStart:
    """First call in a fresh process.

    Args:
        first_call: seconds of the first call alone: capture and compile (or cache look-up) and one run.
        after_torch: seconds from the end of `import torch` to the end of the first call, the file's imports included.
        later_call: seconds of the second call, which compiles nothing.
    """

    first_call: float
    after_torch: float
    later_call: float

    @property
    def compile(self) -> float:
        """Seconds that the first call took longer than a later one."""
        return max(self.first_call - self.later_call, 0.0)


def cold_and_warm(spec: str, contender: str) -> tuple[ColdStart, ColdStart]:
    """First calls of two processes one after the other: with an empty cache, then with the cache the first one left.

    Args:
        spec: `FILE.py:NAME`.
        contender: `graphc` or `inductor`.

    Raises:
        GraphcError: the process failed; carries its last lines.
    """
    with tempfile.TemporaryDirectory(prefix="graphc-bench-") as folder:
        return _probe(spec, contender, folder), _probe(spec, contender, folder)


def _probe(spec: str, contender: str, folder: str) -> ColdStart:
    package_root = str(Path(__file__).resolve().parents[2])
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (package_root, env.get("PYTHONPATH"))))
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # users import from byte code
    env["GRAPHC_CACHE_DIR"] = os.path.join(folder, "graphc")
    env["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(folder, "inductor")
    command = [sys.executable, "-m", "graphc.report.probe", spec, contender]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise GraphcError(f"{contender} failed on {spec} in a fresh process:\n{tail}")
    return ColdStart(**json.loads(done.stdout.strip().splitlines()[-1]))
