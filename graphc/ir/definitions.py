"""What the IR's own tools ask of an operator definition, and how they find the registry above them.

The IR lies below `graphc.ops`, so the verifier and the interpreter take a look-up function; left out, it is the
registry, loaded at first use.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from graphc.ir.graph import Attr, Operand
from graphc.ir.types import TensorType


class Definition(Protocol):
    """The part of `graphc.ops.registry.OpDef` that verifier and interpreter use."""

    @property
    def kind(self) -> str:
        """`extern` for calls whose types are stated, not inferred."""

    @property
    def infer(self) -> Callable[[Sequence[Operand], Mapping[str, Attr]], Sequence[TensorType]]:
        """The type rule."""

    @property
    def reference(self) -> Callable[..., Any]:
        """The op in torch."""


GetDefinition: TypeAlias = Callable[[str], Definition]


def registry() -> GetDefinition:
    """Look-up in `graphc.ops`; raises `InvalidGraphError` for a name that no op has."""
    found: GetDefinition = importlib.import_module("graphc.ops").get
    return found
