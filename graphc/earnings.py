"""When a function that has been compiled often enough is compiled once more: when that has been earned.

A growing cache of keys and values, or sentences of any length, make every call another program. A program costs
seconds, and may never be called again. So from some number of programs on, a call that none of them fits runs eager,
until calls like it have taken as long as a compilation takes: then there is one more. This costs at most twice what
knowing the future would.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

from graphc.frontend.captured import flatten_call

_KINDS = 1 << 14
"""Kinds of calls that are remembered."""
_RECENT = 8
"""Compilations that the next one is expected to be like."""


class Earnings:
    """Seconds that calls ran eager, by their kind, and seconds that compilations took."""

    def __init__(self) -> None:
        self._eager: dict[Any, float] = {}
        self._building: deque[float] = deque(maxlen=_RECENT)
        self._sharing: deque[float] = deque(maxlen=_RECENT)

    def compiled(self, seconds: float, shared: bool) -> None:
        """A compilation has taken so long; `shared`: what was built for other sizes was what it needed."""
        (self._sharing if shared else self._building).append(seconds)

    def ran(self, kind: Any, seconds: float) -> None:
        """A call of this kind has run eager."""
        if len(self._eager) >= _KINDS:
            self._eager.clear()
        self._eager[kind] = self._eager.get(kind, 0.0) + seconds

    def suffice(self, kind: Any) -> bool:
        """Whether calls of this kind have taken as long as a compilation."""
        costs = self._sharing or self._building  # what is built once more is for many kinds
        return self._eager.get(kind, 0.0) * max(len(costs), 1) >= sum(costs)


def kind_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What calls have in common that one program may fit: shapes and dtypes of tensors, and plain Python values."""
    leaves, node = flatten_call(args, kwargs)
    return repr(node), tuple(map(_kind_of_leaf, leaves))  # keys in a node need not be hashable


def _kind_of_leaf(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.dtype, tuple(leaf.shape)
    return (type(leaf), leaf) if isinstance(leaf, (bool, int, str, bytes, type(None))) else type(leaf)
