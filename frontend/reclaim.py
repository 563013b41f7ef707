"""Memory of gradients that a function drops before it makes new ones: the new ones are written where the old ones lay.

    optimizer.zero_grad()     # the old gradients go
    loss.backward()           # the new ones come, of the same shapes

Eager frees the old ones before it makes the new ones. A program makes all its results before it starts, so it would
hold both. So a call lets go of an old gradient as the function does, and hands its memory to the program, which may use
it for anything until the new one is stored there.

Only memory that nobody else can see is taken: one reference to the tensor, one to its storage. When the call fails, the
gradients that it has not written to yet are put back; the others are gone, as in eager after `zero_grad`.

A program that lends its own memory to those who hold its results finds out by itself whether anybody still does. For
that one, old gradients are dropped and no more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeAlias

import torch

from graphc.frontend.captured import Effect, OutputLeaf
from graphc.frontend.gradients import GradientEffect

Spare: TypeAlias = "dict[int, torch.Tensor]"
"""Per output of a program the memory it may be stored in."""

_use_count = torch.Tensor._use_count  # type: ignore[attr-defined]
_storage_use_count = torch._C._storage_Use_Count


class Reclaimer:
    """Lets go of old gradients, and keeps the memory of those that nobody else holds.

    Args:
        effects: of a capture.
        leaves: the outputs they take.
        lent: whether the program lends the memory of these gradients.
    """

    def __init__(self, effects: Sequence[Effect], leaves: Sequence[OutputLeaf], lent: bool = False) -> None:
        dropped = [effect for effect in effects if isinstance(effect, GradientEffect) and effect.dropped]
        self._tensors = [(leaves[e.number].number, e.tensor) for e in dropped if e.number >= 0]
        self._lent = lent

    def __bool__(self) -> bool:
        return bool(self._tensors)

    def numbers(self) -> list[int]:
        """The outputs that take the place of gradients which are dropped."""
        return [number for number, _ in self._tensors]

    def take(self, spare: Spare) -> None:
        """Add the memory of gradients that end here. Those parameters have none until the program has run."""
        if self._lent:
            for _, tensor in self._tensors:
                tensor.grad = None
            return
        for number, tensor in self._tensors:
            grad = tensor.grad
            if grad is not None and sys.getrefcount(grad) == _ALONE and _is_unshared(grad):
                spare[number] = grad
                tensor.grad = None

    def put_back(self, spare: Spare) -> None:
        """The program has failed, and these gradients are as they were."""
        for number, tensor in self._tensors:
            if number in spare and tensor.grad is None:
                tensor.grad = spare[number]


def _is_unshared(tensor: torch.Tensor) -> bool:
    """Whether a plain tensor's memory is its own: no view, no saved tensor, no numpy array looks at it."""
    if type(tensor) is not torch.Tensor or tensor.requires_grad or tensor.layout is not torch.strided:
        return False
    storage = tensor.untyped_storage()
    if _use_count(tensor) != 2 or _storage_use_count(storage._cdata) != 2:  # `.grad` and Python; the tensor and Python
        return False
    if sys.getrefcount(storage) != _STORAGE_ALONE:
        return False
    whole = storage.nbytes() == tensor.numel() * tensor.element_size() and storage.resizable()
    return whole and not storage.is_shared() and not vars(tensor)


def _references() -> int:
    """What `sys.getrefcount` says of a gradient that only its tensor and one variable hold."""
    tensor = torch.zeros(1, requires_grad=True)
    tensor.grad = torch.zeros(1)
    grad = tensor.grad
    return sys.getrefcount(grad)


def _storage_references() -> int:
    """What `sys.getrefcount` says of a storage that only one variable and its tensor hold."""
    tensor = torch.zeros(1)
    storage = tensor.untyped_storage()
    return sys.getrefcount(storage)


_ALONE, _STORAGE_ALONE = _references(), _storage_references()
