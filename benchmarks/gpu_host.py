"""What a training step costs the host: time until its call returns, with the device not waited for.

    python benchmarks/gpu_host.py [--without CONTENDER]... [MODEL ...]
    python -m tests.triton.simulated python benchmarks/gpu_host.py    without a GPU, see docs/architecture.md

Small models are bound by that, whatever the GPU. Each call gets another batch, as from a loader; contenders take turns,
each in a process of its own. graphc compiles the whole step, and so does torch.compile, which parts it at its backward
pass; `apart` are the network and the optimizer's step compiled by themselves with `reduce-overhead`, as its tutorials
have it. A simulated GPU takes launches and copies and does nothing, as one that has always done its work already, and
torch's operators on few elements run on zeros for the shapes of results: that stands for the driver's own share.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu import Watch
from zoo import build

import graphc

MODELS = ("mlp", "mnist_cnn", "hand_written_lstm")
CONTENDERS = ("eager", "graphc", "default", "reduce-overhead", "apart")
_ROUNDS, _CALLS, _WARM, _BATCHES = 7, 20, 6, 4
_MOST_SECONDS = 1800.0
"""For one process."""


def step_of(name: str, contender: str) -> Callable[[], Any]:
    """Calls of a step of a model of its own."""
    torch.manual_seed(0)
    work = build(name)
    work.net = work.net.to("cuda")
    batches = [tuple(item.to("cuda") for item in work.batch(seed)) for seed in range(_BATCHES)]
    if contender == "apart":
        training = work.training(torch.compile(work.net, mode="reduce-overhead"))
        for optimizer in training.optimizers:
            optimizer.step = torch.compile(optimizer.step, mode="reduce-overhead")  # type: ignore[method-assign]
        return _in_turn(training.step, batches, marks=True)
    step = work.training().step
    if contender == "graphc":
        return _in_turn(graphc.compile(step), batches)
    if contender == "eager":
        return _in_turn(step, batches)
    return _in_turn(torch.compile(step, mode=contender), batches, marks=True)


def _in_turn(
    step: Callable[..., Any], batches: list[tuple[torch.Tensor, ...]], marks: bool = False
) -> Callable[[], Any]:
    """Calls on the batches in turn, each one marked as a new step for recordings of torch.compile."""
    count = iter(range(1 << 62))

    def call() -> Any:
        if marks:
            torch.compiler.cudagraph_mark_step_begin()
        return step(*batches[next(count) % len(batches)])

    return call


def host_seconds(call: Callable[[], Any]) -> list[float]:
    """Of some calls in a row, on a device that has nothing to do when they begin."""
    torch.cuda.synchronize()
    found = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def serve(name: str, contender: str) -> None:
    """Compile and warm up, then time some calls whenever asked to by a line of input; answers are lines, too."""
    call = step_of(name, contender)
    for _ in range(_WARM):
        call()
    for _ in sys.stdin:
        print("@" + json.dumps(host_seconds(call)), flush=True)


class Server:
    """A process of its own that times a contender when asked to: compilers remember what others have compiled."""

    def __init__(self, name: str, contender: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--child", contender, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._watch = Watch(self._process, _MOST_SECONDS)

    def measure(self) -> list[float]:
        """Seconds of some calls.

        Raises:
            RuntimeError: the process has ended; what it said is on stderr.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("@"):
                return [float(seconds) for seconds in json.loads(line[1:])]
        raise RuntimeError(f"a contender has ended: {self._process.args}")

    def stop(self) -> None:
        self._watch.stop()
        self._process.wait()


def measure(name: str, contenders: list[str]) -> dict[str, list[float]]:
    """Seconds of a model's steps, by contender, the contenders taking turns."""
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    servers: dict[str, Server] = {}
    try:
        for contender in contenders:
            servers[contender] = Server(name, contender)
            servers[contender].measure()  # one compiles at a time
        for _ in range(_ROUNDS):
            for contender, server in servers.items():
                times[contender] += server.measure()
    finally:
        for server in servers.values():
            server.stop()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--without", action="append", default=[], choices=CONTENDERS, help="who is left out")
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "this torch finds no GPU\n")
    if options.child:
        return serve(options.models[0], options.child)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no processes of it beside what is timed
    os.environ["GRAPHC_SIMULATED_IDLE"] = "1"
    contenders = [contender for contender in CONTENDERS if contender not in options.without]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; microseconds of the host per step")
    print(f"{'model':<20} {'contender':<16} {'median':>8} {'quartiles':>15} {'vs graphc':>10}")
    for name in options.models:
        times = measure(name, contenders)
        for contender, found in times.items():
            low, median, high = (1e6 * part for part in statistics.quantiles(found, n=4))
            ratio = f"{median / statistics.median(times['graphc']) / 1e6:>9.2f}x" if "graphc" in times else ""
            print(f"{name:<20} {contender:<16} {median:>8.0f} {f'{low:.0f} - {high:.0f}':>15} {ratio}", flush=True)


if __name__ == "__main__":
    main()
