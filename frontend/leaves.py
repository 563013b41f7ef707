"""What becomes of each leaf of a structure that a captured function returns or leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias, Union


@dataclass(frozen=True)
class Key:
    """A step into a mapping."""

    key: Any


Path: TypeAlias = tuple[Union[int, str, Key], ...]
"""Steps from (args, kwargs): an item of a sequence, an attribute, or what is under a key."""


def find(call: Any, path: Path) -> Any:
    """What lies at a path in (args, kwargs)."""
    for step in path:
        if isinstance(step, Key):
            call = call[step.key]
        else:
            call = call[step] if isinstance(step, int) else getattr(call, step)
    return call


@dataclass(frozen=True)
class OutputLeaf:
    """One leaf of the returned structure.

    Args:
        number: which output of the graph it is, or -1.
        constant: the leaf itself when it is no output.
        host: Python type of a traced number, or None for a tensor.
        path: where it is among the arguments of the call, when it is a container or object from there; else None.
    """

    number: int = -1
    constant: Any = None
    host: type | None = None
    path: Path | None = None
