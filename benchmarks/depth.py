"""How compile time grows with depth: GPT forward passes of 4 and 48 layers, each compiled cold in this process.

    python benchmarks/depth.py

prints seconds and distinct kernels of both, and the ratio. Imports are paid by a first small compilation, so that they
do not flatter the ratio.
"""

from __future__ import annotations

import tempfile
import time

import torch
from kernels import TOKENS, VOCABULARY
from zoo.text import GPT

import graphc
from graphc.settings import override


def compile_cold(layers: int) -> tuple[float, int]:
    """Seconds of the first call less those of a later one, and distinct kernels, of a GPT with that many layers."""
    model = GPT(layers).eval()
    ids = torch.randint(0, VOCABULARY, (2, TOKENS))
    compiled = graphc.compile(model)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder, override(cache_dir=folder):
        start = time.perf_counter()
        compiled(ids)
        first = time.perf_counter() - start
        later = []  # the least of several: one slow call would make the compilation look quick
        for _ in range(3):
            start = time.perf_counter()
            compiled(ids)
            later.append(time.perf_counter() - start)
        kernels = compiled.explain(ids).stats["kernels"]
    return first - min(later), kernels


def main() -> None:
    compile_cold(1)
    shallow = min((compile_cold(4) for _ in range(3)), key=lambda result: result[0])
    deep = min((compile_cold(48) for _ in range(3)), key=lambda result: result[0])
    print(f"{'layers':>8} {'cold compile':>14} {'distinct kernels':>18}")
    for layers, (seconds, kernels) in ((4, shallow), (48, deep)):
        print(f"{layers:>8} {seconds:>12.2f} s {kernels:>18}")
    print(f"48 layers take {deep[0] / shallow[0]:.2f} times as long as 4")


if __name__ == "__main__":
    main()
