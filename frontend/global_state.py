"""Torch's global flags around a capture: a function that fails leaves them as they were, and none may change them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _autocast_depth() -> int:
    """How many autocast blocks are open. Casts of weights are kept until the outermost one ends."""
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return depth - 1


def _set_autocast_depth(depth: int) -> None:
    while _autocast_depth() > depth:
        torch.autocast_decrement_nesting()
    while _autocast_depth() < depth:
        torch.autocast_increment_nesting()
    torch.clear_autocast_cache()


_FLAGS: list[tuple[str, Callable[[], Any], Callable[[Any], Any]]] = [
    ("grad mode", torch.is_grad_enabled, torch._C._set_grad_enabled),
    ("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    ("how deep autocast is nested", _autocast_depth, _set_autocast_depth),
    ("the autocast cache", torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    *(
        flag
        for device in ("cpu", "cuda")
        for flag in (
            (
                f"autocast on {device}",
                lambda device=device: torch.is_autocast_enabled(device),
                lambda value, device=device: torch.set_autocast_enabled(device, value),
            ),
            (
                f"autocast's dtype on {device}",
                lambda device=device: torch.get_autocast_dtype(device),
                lambda value, device=device: torch.set_autocast_dtype(device, value),
            ),
        )
    ),
    (
        "deterministic algorithms",
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
]


class GlobalState:
    """The flags as they are when it is made."""

    def __init__(self) -> None:
        self._values = [get() for _, get, _ in _FLAGS]

    def changed(self) -> list[str]:
        """Flags that have another value now."""
        return [name for (name, get, _), value in zip(_FLAGS, self._values, strict=True) if get() != value]

    def restore(self) -> None:
        """Set them as they were."""
        for (_, get, put), value in zip(_FLAGS, self._values, strict=True):
            if get() != value:
                put(value)
