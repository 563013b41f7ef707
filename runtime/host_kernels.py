"""A kernel that the CPU runs in a program for a device, as loop IR that numpy interprets: where no C compiler is.

Such kernels are about single numbers: step counters, what becomes of a learning rate, an `.item()` and the arithmetic
on it. A device would take a launch for each, and the CPU would have to wait for it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.ir.types import DType

Array = np.ndarray[Any, np.dtype[Any]]


class HostKernel:
    """A kernel in loop IR.

    Args:
        text: as `graphc.loopir.printer` writes it.
    """

    def __init__(self, text: str) -> None:
        from graphc.loopir.parser import parse_kernel

        self.kernel = parse_kernel(text)

    def __call__(self, arrays: Sequence[Array]) -> None:
        """Run on flat arrays, one per buffer, in the dtypes of `numpy_dtype`."""
        from graphc.loopir.interpreter import run

        run(self.kernel, {buffer.name: array for buffer, array in zip(self.kernel.buffers, arrays, strict=True)})

    def at(self, addresses: Sequence[int]) -> None:
        """Run on memory: an address per buffer."""
        self([array_at(address, buffer.dtype, int(str(buffer.size)))
              for address, buffer in zip(addresses, self.kernel.buffers, strict=True)])  # fmt: skip


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The numpy dtype of elements in memory; bf16 are bits."""
    from graphc.loopir.numpy_ops import NUMPY_DTYPES

    return NUMPY_DTYPES[dtype.name]


def array_at(address: int, dtype: DType, count: int = 1) -> Array:
    """Memory as an array, which may be written to."""
    kind = numpy_dtype(dtype)
    return np.frombuffer(memoryview((ctypes.c_char * (count * kind.itemsize)).from_address(address)), kind)
