"""The kernel (loop) IR: records, scalar operators, builder, text form, verifier and the numpy oracle.

Everything is loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Axis": "kernel",
    "Buffer": "kernel",
    "Compute": "kernel",
    "Const": "kernel",
    "Contract": "kernel",
    "Index": "kernel",
    "Kernel": "kernel",
    "KernelBuilder": "builder",
    "Load": "kernel",
    "Reduce": "kernel",
    "Scan": "kernel",
    "Store": "kernel",
    "parse_kernel": "parser",
    "print_kernel": "printer",
    "run": "interpreter",
    "verify": "verifier",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return list(__all__)
