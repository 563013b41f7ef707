"""Working memory of programs that run on the CPU: an arena for as long as a call takes, then for any other program.

An arena that has just been used is in the caches of the CPU, whichever program has used it: a hundred programs for a
hundred sizes of an input work where one would. Two threads may call programs at once; each then has an arena.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch

ALIGNMENT = 64
"""Byte alignment of arenas and of every offset in them."""

_KEPT_FRAMES = 4
_KEPT_ARENAS = 16

T = TypeVar("T")


class Arena:
    """Uninitialised memory that one call at a time uses.

    Args:
        nbytes: how much.

    Attributes:
        tensor: the memory, of uint8, aligned to `ALIGNMENT`.
        address: where it is.
        views: tensors over parts of it, by whose they are; they go with the arena.
    """

    def __init__(self, nbytes: int) -> None:
        with torch.inference_mode(False):
            block = torch.empty(nbytes + ALIGNMENT, dtype=torch.uint8, device="cpu")
            shift = -block.data_ptr() % ALIGNMENT
            self.tensor = block[shift : shift + nbytes]
        self.nbytes, self.address = nbytes, self.tensor.data_ptr()
        self.views: weakref.WeakKeyDictionary[Any, dict[int, torch.Tensor]] = weakref.WeakKeyDictionary()


class Arenas:
    """The arenas of a process. Taking and giving back are single list operations, hence atomic."""

    def __init__(self) -> None:
        self._free: list[Arena] = []
        self._needs: dict[int, int] = {}  # by id of a user

    def expect(self, user: object, nbytes: int) -> None:
        """Something is going to take arenas of so many bytes, for as long as it lives."""
        self._needs[id(user)] = nbytes
        weakref.finalize(user, self._leave, id(user)).atexit = False

    def take(self, nbytes: int) -> Arena:
        """An arena of so many bytes at least, the one used last if that will do."""
        try:
            arena = self._free.pop()
        except IndexError:
            return Arena(nbytes)
        return arena if arena.nbytes >= nbytes else Arena(nbytes)

    def give_back(self, arena: Arena) -> None:
        if len(self._free) < _KEPT_ARENAS:
            self._free.append(arena)

    def _leave(self, user: int) -> None:
        del self._needs[user]
        most = max(list(self._needs.values()), default=0)
        kept: list[Arena] = []
        with contextlib.suppress(IndexError):  # there are no more: what another thread takes meanwhile is its own
            while True:
                kept.append(self._free.pop())
        for arena in reversed(kept):
            if arena.nbytes <= most:
                self.give_back(arena)


ARENAS = Arenas()


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
