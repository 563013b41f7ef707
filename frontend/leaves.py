"""What becomes of each leaf of a structure that a captured function returns or leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OutputLeaf:
    """One leaf of the returned structure.

    Args:
        number: which output of the graph it is, or -1.
        constant: the leaf itself when it is no output.
        host: Python type of a traced number, or None for a tensor.
    """

    number: int = -1
    constant: Any = None
    host: type | None = None
