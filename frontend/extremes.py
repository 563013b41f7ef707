"""Python's `max` and `min` where torch.optim takes them of numbers from data: Adafactor of norms, ASGD of steps.

The builtins compare, which is a decision on data with two answers per parameter. Here they stay traced numbers.
"""

from __future__ import annotations

import builtins
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch.optim import _adafactor

from graphc.frontend import host


@contextlib.contextmanager
def traced_extremes() -> Iterator[None]:
    """For the block, `max` and `min` in torch's Adafactor and ASGD take traced numbers without a decision."""
    thread = threading.get_ident()  # others may run in eager meanwhile
    modules = [_adafactor, sys.modules["torch.optim.asgd"]]  # the class of that name hides the module
    for module in modules:
        for name, better in (("max", "gt"), ("min", "lt")):
            setattr(module, name, _traced(getattr(builtins, name), better, thread))  # shadows the builtin there
    try:
        yield
    finally:
        for module in modules:
            for name in ("max", "min"):
                delattr(module, name)


def _traced(builtin: Callable[..., Any], better: str, thread: int) -> Callable[..., Any]:
    def extreme(*items: Any, **options: Any) -> Any:
        nodes = [host.node_of(item) for item in items]
        if len(items) != 2 or options or not any(nodes) or threading.get_ident() != thread:
            return builtin(*items, **options)
        first, second = (item if node is None else node for item, node in zip(items, nodes, strict=True))
        if isinstance(second, host.HostNode):
            is_better = second.binary(better, first)
        else:
            is_better = first.binary(better, second, swap=True)
        return host.wrap(is_better.choose(second, first))  # so the first where one of them is NaN

    return extreme
