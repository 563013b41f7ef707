"""The operator for associative scans, which takes a function: written out in others while a function is captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._higher_order_ops.associative_scan import associative_scan_op, generic_associative_scan

from graphc.frontend.recorder import Recorder


@contextmanager
def written_out_scans(current: Callable[[], Recorder | None]) -> Iterator[None]:
    """For the block: scans over dimension 0 take as many steps as its size has binary digits, and have gradients.

    torch itself computes scans whose `combine_mode` is "generic" so; the other ones exist under torch.compile only.

    Args:
        current: the capture of this thread.
    """
    kind = type(associative_scan_op)
    original = kind.__call__

    def call(
        self: Any, combine_fn: Callable[..., Any], xs: Sequence[torch.Tensor], additional_inputs: Sequence[Any]
    ) -> Any:
        if current() is None:
            return original(self, combine_fn, xs, additional_inputs)
        return tuple(generic_associative_scan(combine_fn, list(xs), 0, tuple(additional_inputs)))

    kind.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        kind.__call__ = original  # type: ignore[method-assign]
