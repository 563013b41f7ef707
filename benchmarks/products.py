"""Matrix products in float32, as generated kernels and as the BLAS in libtorch computes them.

    python benchmarks/products.py

`rate` is 2 m n k over the median, in GFLOP/s. Shapes are those of the training benchmarks: forward passes (`NT`, a
weight as torch keeps it), gradients of inputs (`NN`) and of weights (`TN`). Where graphc calls BLAS, both are alike.
"""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

import graphc
from graphc.report.measure import interleaved

SHAPES = (
    (512, 1024, 256, "NT"), (512, 256, 1024, "NT"), (512, 4096, 256, "NT"), (512, 256, 4096, "NN"),
    (4096, 256, 512, "TN"), (1024, 256, 512, "TN"), (64, 128, 9216, "NT"), (64, 9216, 128, "NN"),
    (128, 9216, 64, "TN"), (16, 512, 128, "NT"), (64, 10, 128, "NT"), (1024, 1024, 1024, "NN"),
)  # fmt: skip
"""m, n, k, and whether each operand is transposed."""


def main() -> None:
    table = Table("m", "n", "k", "form", "torch.mm", "rate", "graphc", "rate", "speed")
    for m, n, k, form in SHAPES:
        a = torch.randn(m, k) if form[0] == "N" else torch.randn(k, m).t()
        b = torch.randn(k, n) if form[1] == "N" else torch.randn(n, k).t()
        product = graphc.compile(torch.mm)
        product(a, b)
        times = interleaved(
            {"eager": lambda a=a, b=b: torch.mm(a, b), "graphc": lambda f=product, a=a, b=b: f(a, b)}, 25
        )
        row = [str(m), str(n), str(k), form]
        for contender in ("eager", "graphc"):
            median = times[contender].median
            row += [f"{median * 1e3:.3f} ms", f"{2e-9 * m * n * k / median:.0f}"]
        table.add_row(*row, f"{times['eager'].median / times['graphc'].median:.2f}x")
    Console(width=120).print(table)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
