"""The compilers that `graphc bench` can set against each other, each as `callable -> callable`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

CONTENDERS = ("eager", "graphc", "inductor")


def make(contender: str, fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`fn` under a contender; `options` go to `graphc.compile`.

    Raises:
        ValueError: no such contender.
    """
    if contender == "eager":
        return fn
    if contender == "graphc":
        import graphc

        return graphc.compile(fn, **options)
    if contender == "inductor":
        return torch.compile(fn)
    raise ValueError(f"no contender {contender!r}; there are {', '.join(CONTENDERS)}")
