"""`torch.arange` between traced numbers: data decide how many there are, and nothing else."""

from __future__ import annotations

from typing import Any

import torch

from graphc.frontend import host

_INTEGERS = (None, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_TRACED = (torch.SymInt, torch.SymFloat, torch.SymBool)


def is_traced(*numbers: Any) -> bool:
    """Whether some number is traced."""
    return any(host.node_of(number) is not None for number in numbers)


def arange(func: Any, *args: Any, **options: Any) -> Any:
    """The numbers of `aten.arange`, of which some are traced.

    Args:
        func: the overload.
        args: its numbers.

    Raises:
        Stop, DataDependentError: the number of elements is a decision; see `Recorder.specialize`.
    """
    start, end, step = (0, *args, 1) if len(args) == 1 else (*args, 1)[:3]
    whole = all(isinstance(number, (int, torch.SymInt)) for number in (start, end, step))
    if whole and type(step) is int and step and options.get("dtype") in _INTEGERS:
        distance, width = (end - start, step) if step > 0 else (start - end, -step)
        count = int(distance // width)
        if count >= 0:
            count += width > 1 and bool(distance % width != 0)
            dtype = options.pop("dtype", None) or torch.int64
            return torch.arange(count, dtype=dtype, **options) * step + start
    return func(*map(_known, args), **options)


def _known(number: Any) -> Any:
    """A number as Python has it: a decision, if it is traced."""
    for kind, plain in zip(_TRACED, (int, float, bool), strict=True):
        if isinstance(number, kind):
            return plain(number)
    return number
