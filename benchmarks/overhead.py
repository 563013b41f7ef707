"""What a call costs besides its kernels: guards, binding and the foreign call, for 0 to 400 parameters.

    python benchmarks/overhead.py

prints microseconds per call of a module that adds all its parameters, each 8 elements, so that kernel time is next to
nothing: median and quartiles of many rounds, eager's in between. Rounds are short, so that other processes leave most
of them alone; each begins with caches full of the other's data.
"""

from __future__ import annotations

import torch
from torch import nn

import graphc
from graphc.report.measure import interleaved


class Sum(nn.Module):
    """x (8,) plus each of `count` parameters (8,)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.terms = nn.ParameterList(nn.Parameter(torch.randn(8)) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for term in self.terms:
            x = x + term
        return x


def main() -> None:
    x = torch.randn(8)
    print(f"{'parameters':>10} {'graphc':>12} {'quartiles':>18} {'eager':>12}")
    with torch.no_grad():
        for count in (0, 10, 100, 400):
            model = Sum(count)
            compiled = graphc.compile(model)
            for call in (compiled, model):
                for _ in range(20):
                    call(x)
            calls = {"graphc": lambda c=compiled: c(x), "eager": lambda m=model: m(x)}
            times = interleaved(calls, rounds=200, budget_s=0.002)
            ours = times["graphc"]
            spread = f"{ours.low * 1e6:.1f} - {ours.high * 1e6:.1f} us"
            print(f"{count:>10} {ours.median * 1e6:>9.1f} us {spread:>18} {times['eager'].median * 1e6:>9.1f} us")


if __name__ == "__main__":
    main()
