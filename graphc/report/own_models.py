"""Contenders that each have a model of their own, so that training does not mix them: one row each, as in `bench`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from graphc.report import contenders
from graphc.report.bench import Row, max_difference
from graphc.report.measure import interleaved, peak_bytes
from graphc.settings import override

WARM_UP = 3
"""Calls after the first: optimizers have their state then, and programs that wait for it are compiled."""


@dataclass(frozen=True)
class Made:
    """What one contender runs.

    Args:
        call: the function to compile.
        args: its arguments, the same in every call.
        trained: tensors that it updates; empty for inference.
        comparable: whether results agree between contenders; not where each draws random numbers of its own.
    """

    call: Callable[..., Any]
    args: tuple[Any, ...]
    trained: tuple[torch.Tensor, ...] = ()
    comparable: bool = True


@contextmanager
def empty_caches() -> Iterator[None]:
    """Compilers find nothing that an earlier process has compiled."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with TemporaryDirectory(prefix="graphc-bench-") as folder, override(cache_dir=Path(folder) / "graphc"):
        os.environ[name] = str(Path(folder) / "inductor")
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def bench_own(
    workload: str,
    make: Callable[[], Made],
    against: Sequence[str],
    rounds: int,
    progress: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> list[Row]:
    """All contenders on one workload, interleaved in one run.

    Args:
        make: builds a model; called once per contender, with the same seed set before.
        against: contenders besides eager and graphc.
        rounds: measurements per contender.
        progress: told what is being done, before it is.
        options: for `graphc.compile`.

    Returns:
        A row per contender. `compile` is the first call less a later one, in this process: put `empty_caches` around.
        `max_error` compares what was trained after the warm-up, else results; `peak` has a program's arena in it.
    """
    names = list(dict.fromkeys(["eager", "graphc", *against]))
    made: dict[str, Made] = {}
    calls: dict[str, Callable[[], Any]] = {}
    first: dict[str, float] = {}
    ours: dict[str, Any] = {}
    results: dict[str, Any] = {}
    for name in names:
        progress(f"{workload}: {name}: warm up")
        torch.manual_seed(0)
        one = made[name] = make()
        call: Any = contenders.make(name, one.call, **(options if name == "graphc" else {}))
        calls[name] = partial(call, *one.args)
        start = time.perf_counter()
        calls[name]()
        first[name] = time.perf_counter() - start
        for _ in range(WARM_UP):
            results[name] = calls[name]()
        if one.trained:
            results[name] = [tensor.detach().clone() for tensor in one.trained]
        if name == "graphc":
            ours = dict(call.explain(*one.args).stats)
    progress(f"{workload}: timing")
    timings = interleaved(calls, rounds)
    progress(f"{workload}: memory")
    rows = []
    for name in names:
        stats = ours if name == "graphc" else {}
        rows.append(
            Row(
                workload=workload,
                contender=name,
                timing=timings[name],
                speedup=timings["eager"].median / timings[name].median,
                compile=None if name == "eager" else max(first[name] - timings[name].median, 0.0),
                kernels=stats.get("kernels"),
                kernel_calls=stats.get("kernel_calls"),
                externs=sum(stats["extern"].values()) if stats else None,
                peak=peak_bytes(calls[name], made[name].trained) + stats.get("arena_bytes", 0),
                max_error=max_difference(results[name], results["eager"]) if made[name].comparable else None,
            )
        )
    return rows
