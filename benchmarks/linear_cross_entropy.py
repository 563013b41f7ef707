"""A language model's head and loss: linear and cross-entropy over a large vocabulary, forward and backward.

    python benchmarks/linear_cross_entropy.py [--tokens N] [--width K] [--vocabulary V] [--rounds N]
        [--against inductor]

Rounds of the contenders are interleaved. `peak` is what one call allocates at most, a compiled program's arena and the
gradients included; the gradients alone are `(V K + N K) * 4` bytes, the logits `N V * 4`. `max error` is the largest
difference of a gradient to eager's, as a part of the largest gradient.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

import graphc
from graphc.report.measure import interleaved, peak_bytes
from graphc.settings import override

Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]


def loss_and_gradients(x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(N, K), (V, K), (N,) -> loss and its gradients with respect to the first two."""
    loss = F.cross_entropy(F.linear(x, weight), labels)
    return loss.detach(), *torch.autograd.grad(loss, (x, weight))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--against", default="", help="inductor")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    x = torch.randn(options.tokens, options.width, requires_grad=True)
    weight = (torch.randn(options.vocabulary, options.width) * options.width**-0.5).requires_grad_()
    labels = torch.randint(0, options.vocabulary, (options.tokens,))
    with tempfile.TemporaryDirectory(prefix="graphc-bench-") as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(folder, "inductor")
        with override(cache_dir=os.path.join(folder, "graphc")):
            calls: dict[str, Call] = {"eager": loss_and_gradients, "graphc": graphc.compile(loss_and_gradients)}
            if options.against == "inductor":
                calls["inductor"] = torch.compile(loss_and_gradients)
            print(table(calls, (x, weight, labels), options.rounds))


def table(calls: dict[str, Call], inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], rounds: int) -> str:
    """Time, peak memory and error of each contender, as Markdown."""
    first: dict[str, float] = {}
    errors: dict[str, float] = {}
    expected = loss_and_gradients(*inputs)
    for name, call in calls.items():
        start = time.perf_counter()
        found = call(*inputs)
        first[name] = time.perf_counter() - start
        pairs = zip(found[1:], expected[1:], strict=True)
        errors[name] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    del found, expected
    arena = calls["graphc"].explain(*inputs).stats["arena_bytes"]  # type: ignore[attr-defined]
    peaks = {name: peak_bytes(lambda call=call: call(*inputs)) for name, call in calls.items()}  # type: ignore[misc]
    peaks["graphc"] += arena  # allocated once, and kept
    times = interleaved({n: lambda call=call: call(*inputs) for n, call in calls.items()}, rounds)  # type: ignore[misc]
    header = "contender | median | quartiles | vs eager | compile | peak | of eager's | max error"
    lines = [f"| {header} |", "|" + "---|" * 8]
    for name, timing in times.items():
        compile_time = "" if name == "eager" else f"{max(first[name] - timing.median, 0):.2f} s"
        lines.append(
            f"| {name} | {timing.median * 1e3:.0f} ms | {timing.low * 1e3:.0f} - {timing.high * 1e3:.0f} ms "
            f"| {times['eager'].median / timing.median:.2f}x | {compile_time} | {peaks[name] / 2**20:.1f} MiB "
            f"| {peaks[name] / peaks['eager']:.0%} | {errors[name]:.1e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
