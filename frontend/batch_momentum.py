"""Batch norm with a momentum that the program computes, as `momentum=None` asks for: 1 / (number of batches seen).

torch reads the number of batches as a Python float, a decision with another answer in every step. Here it
stays a traced number, and the running statistics are updated by tensor arithmetic.
"""

from __future__ import annotations

import builtins
import contextlib
import inspect
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional
from torch.nn.modules import batchnorm

from graphc.frontend import host
from graphc.frontend.dispatch import item
from graphc.frontend.recorder import Recorder

_SIGNATURE = inspect.signature(functional.batch_norm)


@contextlib.contextmanager
def traced_batch_counts(recorder: Recorder) -> Iterator[None]:
    """For the block, `float(self.num_batches_tracked)` in torch's batch norm is a traced number."""

    thread = threading.get_ident()  # others may run in eager meanwhile

    def read(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and threading.get_ident() == thread:
            recorder.builder.location = recorder.locator.here()
            return host.wrap(item(recorder, value).node.convert(float))
        return builtins.float(value)

    batchnorm.float = read  # type: ignore[attr-defined]  # shadows the builtin in that module
    try:
        yield
    finally:
        del batchnorm.float  # type: ignore[attr-defined]


def batch_norm(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`torch.nn.functional.batch_norm`, where the momentum may be a traced number."""
    given = _SIGNATURE.bind(*args, **kwargs)
    given.apply_defaults()
    call = given.arguments
    momentum = call["momentum"]
    if host.node_of(momentum) is None:
        return func(*args, **kwargs)
    mean, var = call["running_mean"], call["running_var"]
    if not call["training"] or mean is None:
        return func(**{**call, "momentum": 0.0})
    result = func(**{**call, "running_mean": None, "running_var": None, "momentum": 0.0})
    with torch.no_grad():
        x = call["input"].to(mean.dtype)
        dims = [dim for dim in range(x.dim()) if dim != 1]
        batch_var, batch_mean = torch.var_mean(x, dims, correction=1)
        for running, now in ((mean, batch_mean), (var, batch_var)):
            running.copy_(now * momentum + running * (1 - momentum))
    return result
