"""graphc: an ahead-of-time graph compiler for eager PyTorch programs.

    import graphc

    @graphc.compile
    def f(x, y):
        return torch.softmax(x @ y, -1)

`compile` captures the function at its first call, compiles what it captured, and runs that from then on; `trace` gives
the captured graph; `eager()` switches back to plain PyTorch. Everything is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from graphc.api import compile, eager, explain, run, trace
    from graphc.report.bench import bench
    from graphc.report.verify import verify

_LAZY = {
    "compile": "graphc.api",
    "trace": "graphc.api",
    "run": "graphc.api",
    "explain": "graphc.api",
    "eager": "graphc.api",
    "bench": "graphc.report.bench",
    "verify": "graphc.report.verify",
}

__all__ = ["__version__", "bench", "compile", "eager", "explain", "run", "trace", "verify"]


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'graphc' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
