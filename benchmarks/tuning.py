"""What measuring gains: `mode="default"` and `mode="max"` side by side, per product, attention and network.

    python benchmarks/tuning.py

`chosen` is what was measured to be fastest, where there was a choice; `measured in` the seconds of the first
compilation that went into it. What default computes is the fixed choice of `graphc.codegen.tile_text`.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import graphc
from graphc.report.measure import interleaved
from graphc.settings import override

PRODUCTS = ((512, 1024, 256), (64, 128, 9216), (8, 2048, 2048), (1024, 1024, 1024), (2048, 64, 64))
ATTENTIONS = ((8, 8, 128, 64), (1, 8, 1024, 64))


def cases() -> Iterator[tuple[str, Callable[..., Any], tuple[torch.Tensor, ...]]]:
    """Name, function and arguments of each."""
    for m, n, k in PRODUCTS:
        yield f"product {m}x{n}x{k}", torch.mm, (torch.randn(m, k), torch.randn(n, k).t())
    for shape in ATTENTIONS:
        qkv = tuple(torch.randn(shape) for _ in range(3))
        yield f"attention {list(shape)}", torch.nn.functional.scaled_dot_product_attention, qkv
    mlp = torch.nn.Sequential(torch.nn.Linear(784, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
    yield "MLP 784-512-10, batch 64", mlp, (torch.randn(64, 784),)


def main() -> None:
    table = Table("what", "default", "max", "speed", "chosen", "measured in")
    for name, function, args in cases():
        default, tuned = graphc.compile(function), graphc.compile(function, mode="max")
        default(*args), tuned(*args)
        times = interleaved({"default": lambda f=default, a=args: f(*a), "max": lambda f=tuned, a=args: f(*a)}, 15)
        report = tuned.explain(*args)
        chosen = Counter(found["chosen"] for found in report.stats["measured"].values() if "chosen" in found)
        table.add_row(
            name,
            *(f"{times[mode].median * 1e6:.0f} us" for mode in ("default", "max")),
            f"{times['default'].median / times['max'].median:.2f}x",
            ", ".join(form if count == 1 else f"{count} {form}" for form, count in chosen.items()) or "-",
            f"{report.seconds.get('measure', 0.0):.2f} s",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory(prefix="graphc-tuning-") as folder, override(cache_dir=Path(folder)):
        main()
