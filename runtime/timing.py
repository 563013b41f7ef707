"""Timing of code against other code that does the same: in turns, so that the machine's drift hits all alike.

Whoever measures asks the timer in force; a test puts one of its own in its place by `timed_by`.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from graphc.runtime.device import Device

Clock: TypeAlias = Callable[[Callable[[], Any], int], float]
"""Seconds per run of a callable that is run so many times."""
Timer: TypeAlias = Callable[[str, Mapping[str, Callable[[], Any]], Clock], dict[str, float]]
"""Of runs by name, all for the same purpose, which is named too: seconds of each, by a clock."""

ROUNDS, LEAST_ROUNDS = 11, 3
ROUND_SECONDS = 0.01
"""Least seconds of a measurement: short runs are repeated within one."""
TOTAL_SECONDS = 0.5
"""Seconds for one run's measurements, short of `LEAST_ROUNDS` of them."""
HOPELESS = 3.0
"""Times as slow as the fastest in a first look: not looked at again."""


def cpu_clock(run: Callable[[], Any], repeats: int) -> float:
    """Wall time of what the CPU does."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def device_clock(device: Device, index: int) -> Clock:
    """The time that a device takes for what runs put on its current stream."""
    return lambda run, repeats: device.seconds(index, run, repeats)


def in_turns(
    runs: Mapping[str, Callable[[], Any]], rounds: int, round_seconds: float, clock: Clock
) -> dict[str, list[float]]:
    """Measurements of runs by name, one of each per round.

    Args:
        runs: each has been warmed up.
        round_seconds: least seconds per measurement.
    """
    repeats = {name: max(1, int(round_seconds / max(clock(run, 1), 1e-7))) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            samples[name].append(clock(run, repeats[name]))
    return samples


def fastest_times(purpose: str, runs: Mapping[str, Callable[[], Any]], clock: Clock) -> dict[str, float]:
    """The shortest time that was measured of each run: what it takes when nothing else is in its way."""
    for run in runs.values():
        clock(run, 1)  # warms up
    first = {name: clock(run, 1) for name, run in runs.items()}
    limit = HOPELESS * min(first.values())
    close = {name: run for name, run in runs.items() if first[name] <= limit}
    if len(close) == 1 and len(runs) > 1:
        return first
    slowest = max(first[name] for name in close)
    rounds = max(LEAST_ROUNDS, min(ROUNDS, int(TOTAL_SECONDS / max(slowest, ROUND_SECONDS))))
    samples = in_turns(close, rounds, ROUND_SECONDS, clock)
    return {**first, **{name: min(values) for name, values in samples.items()}}


_timer: contextvars.ContextVar[Timer] = contextvars.ContextVar("graphc_timer", default=fastest_times)


def timer() -> Timer:
    """The timer in force."""
    return _timer.get()


@contextlib.contextmanager
def timed_by(other: Timer) -> Iterator[None]:
    """Inside this context another timer is in force, in this thread."""
    token = _timer.set(other)
    try:
        yield
    finally:
        _timer.reset(token)
