"""What a training step costs the host: time until its call returns, with the device not waited for.

    python benchmarks/gpu_host.py [MODEL ...]
    python -m tests.triton.simulated python benchmarks/gpu_host.py    without a GPU, see docs/architecture.md

Small models are bound by that, whatever the GPU. Each call gets another batch, as from a loader; eager and graphc take
turns. On a simulated GPU launches, copies and torch's operators are noted and carried out later, outside of what is
timed: its host times have the noting in the place of the driver's own share.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from zoo import build

import graphc

MODELS = ("mlp", "mnist_cnn", "hand_written_lstm")
_ROUNDS, _CALLS, _WARM, _BATCHES = 7, 20, 6, 4


def steps(name: str) -> dict[str, Callable[..., Any]]:
    """A call per contender, each with a model of its own."""
    found: dict[str, Callable[..., Any]] = {}
    for contender in ("eager", "graphc"):
        torch.manual_seed(0)
        work = build(name)
        work.net = work.net.to("cuda")
        step = work.training().step
        batches = [tuple(item.to("cuda") for item in work.batch(seed)) for seed in range(_BATCHES)]
        found[contender] = _in_turn(step if contender == "eager" else graphc.compile(step), batches)
    return found


def _in_turn(step: Callable[..., Any], batches: list[tuple[torch.Tensor, ...]]) -> Callable[[], Any]:
    count = iter(range(1 << 62))
    return lambda: step(*batches[next(count) % len(batches)])


def host_seconds(call: Callable[[], Any]) -> list[float]:
    """Of some calls in a row, on a device that has nothing to do when they begin."""
    torch.cuda.synchronize()
    found = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    if not torch.cuda.is_available():
        parser.exit(2, "this torch finds no GPU\n")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; microseconds of the host per step")
    print(f"{'model':<20} {'eager':>8} {'quartiles':>15} {'graphc':>8} {'quartiles':>15}")
    for name in parser.parse_args().models:
        calls = steps(name)
        times: dict[str, list[float]] = {contender: [] for contender in calls}
        for call in calls.values():
            for _ in range(_WARM):
                call()
        for _ in range(_ROUNDS):
            for contender, call in calls.items():
                times[contender] += host_seconds(call)
        cells = []
        for contender in calls:
            low, median, high = (1e6 * part for part in statistics.quantiles(times[contender], n=4))
            cells.append(f"{median:>8.0f} {f'{low:.0f} - {high:.0f}':>15}")
        print(f"{name:<20} {' '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
