"""Working memory of a program: one arena per concurrent call, kept between calls.

Two threads may call one program at once, so what a call works in is a frame, taken from a pool and put back; in the
common case the pool holds one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

ALIGNMENT = 64
"""Byte alignment of arenas and of every offset in them."""

_KEPT_FRAMES = 4

T = TypeVar("T")


def allocate(nbytes: int) -> torch.Tensor:
    """`nbytes` of uninitialised memory as a uint8 tensor whose first byte is aligned to `ALIGNMENT`."""
    with torch.inference_mode(False):
        block = torch.empty(nbytes + ALIGNMENT, dtype=torch.uint8, device="cpu")
        shift = -block.data_ptr() % ALIGNMENT
        return block[shift : shift + nbytes]


class Pool(Generic[T]):
    """Objects that one call at a time may use. Taking and giving back are single list operations, hence atomic.

    Args:
        make: makes one more.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._free: list[T] = []

    def take(self) -> T:
        try:
            return self._free.pop()
        except IndexError:
            return self._make()

    def give_back(self, item: T) -> None:
        if len(self._free) < _KEPT_FRAMES:
            self._free.append(item)
