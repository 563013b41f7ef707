"""A net for sizes that reach what takes the value of an int without asking for it: functions that are written in C."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from graphc.ir.sizes import Size
from tests.sizes.watched import LeakError

TAKERS = [
    (builtins, "range"),
    *((np, name) for name in ("arange", "zeros", "empty", "full", "ones", "array", "asarray")),
    *((torch, name) for name in ("arange", "zeros", "empty", "full", "ones", "tensor", "empty_strided", "linspace")),
    *((math, name) for name in ("gcd", "isqrt", "log2", "sqrt", "ceil", "floor", "comb")),
]


@contextmanager
def no_leaks() -> Iterator[None]:
    """Fail where a `Size` is given to one of `TAKERS`."""
    patches = [patch.object(place, name, _checked(getattr(place, name))) for place, name in TAKERS]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in reversed(patches):
            one.stop()


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    def check(*args: Any, **kwargs: Any) -> Any:
        if any(map(_has_size, (args, tuple(kwargs.values())))):
            raise LeakError(f"{function.__name__}({args}, {kwargs})")
        return function(*args, **kwargs)

    return check


def _has_size(item: Any) -> bool:
    return type(item) is Size or (isinstance(item, (tuple, list)) and any(map(_has_size, item)))
