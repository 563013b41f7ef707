"""The graph IR: types, dims, graph, builder, text form, verifier and interpreter. Names are loaded at first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphc.ir.graph import (
        Builder,
        Graph,
        Input,
        Named,
        Op,
        Output,
        Ref,
        Role,
        StridedView,
        Value,
        Write,
    )
    from graphc.ir.interpreter import run
    from graphc.ir.parser import parse
    from graphc.ir.printer import print_graph
    from graphc.ir.types import DType, Location, TensorType
    from graphc.ir.verifier import verify

_MODULES = {
    "Builder": "graph",
    "Graph": "graph",
    "Input": "graph",
    "Named": "graph",
    "Op": "graph",
    "Output": "graph",
    "Ref": "graph",
    "Role": "graph",
    "StridedView": "graph",
    "Value": "graph",
    "Write": "graph",
    "DType": "types",
    "Location": "types",
    "TensorType": "types",
    "parse": "parser",
    "print_graph": "printer",
    "run": "interpreter",
    "verify": "verifier",
}

__all__ = [
    "Builder",
    "DType",
    "Graph",
    "Input",
    "Location",
    "Named",
    "Op",
    "Output",
    "Ref",
    "Role",
    "StridedView",
    "TensorType",
    "Value",
    "Write",
    "parse",
    "print_graph",
    "run",
    "verify",
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
