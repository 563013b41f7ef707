"""Recordings of a program's launches, with the memory that they read and write."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from graphc.runtime.frame import Frame

if TYPE_CHECKING:
    from graphc.runtime.device import Recording
    from graphc.runtime.triton_program import Part

_storage_use_count = torch._C._storage_Use_Count


@dataclass(frozen=True)
class ReadyStage:
    """A stage of the program, ready.

    Args:
        before: what the CPU does first.
        parts: what is recorded, or launched in every call, by number.
        is_recorded: which of these.
        tables: steps over tables of rows in it.
        handed_on: buffers that its calls return, and that later recordings read.
        launches: launches and library calls in it.
    """

    before: list[Callable[[Frame], None]]
    parts: dict[int, Part]
    is_recorded: bool
    tables: list[int]
    handed_on: list[int]
    launches: int


@dataclass
class Recorded:
    """Recordings of one program with what they read and write.

    Attributes:
        recordings: to be replayed, per stage; None for a stage that is launched.
        given: memory of outputs that stages which are launched work with, by buffer.
        made: per stage what it leaves for stages that are launched, by buffer.
        fixed: what calls between recordings return, as recordings find it, by buffer.
        results: buffers that are returned, as tensors of their own, by buffer.
        lent: the large ones among them.
        kept: numbers that the CPU knows and kernels read, by buffer: views of `block`.
        block: all of them, as bytes.
        numbers: what is in it.
        words: per step over a table of rows the words with the addresses.
        tables: the tables on the device.
        sent: what is in them.
    """

    recordings: list[Recording | None] = field(default_factory=list)
    given: dict[int, torch.Tensor] = field(default_factory=dict)
    made: list[dict[int, torch.Tensor]] = field(default_factory=list)
    fixed: dict[int, torch.Tensor] = field(default_factory=dict)
    results: dict[int, torch.Tensor] = field(default_factory=dict)
    lent: list[Lent] = field(default_factory=list)
    kept: dict[int, torch.Tensor] = field(default_factory=dict)
    block: torch.Tensor | None = None
    numbers: bytes = b""
    words: dict[int, Any] = field(default_factory=dict)
    tables: dict[int, torch.Tensor] = field(default_factory=dict)
    sent: dict[int, bytes] = field(default_factory=dict)

    def is_free(self) -> bool:
        """Whether nobody holds results of an earlier replay."""
        return all(item.is_free() for item in self.lent)

    def is_intact(self) -> bool:
        """Whether the memory of the results is where it was: users may resize storages."""
        return all(item.storage.data_ptr() == item.address for item in self.lent)

    def tensors(self) -> list[torch.Tensor]:
        """All memory of its own."""
        block = [] if self.block is None else [self.block]
        made = [tensor for found in (self.given, *self.made) for tensor in found.values()]
        return [*self.results.values(), *self.fixed.values(), *made, *block, *self.tables.values()]


class Lent:
    """A result that the user may hold: the tensor, a view of it, or its storage."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.storage = tensor.untyped_storage()
        self.address = self.storage.data_ptr()
        self._alone = self._references()

    def is_free(self) -> bool:
        """Whether nobody holds it."""
        return self._references() == self._alone

    def _references(self) -> tuple[int, int]:
        return _storage_use_count(self.storage._cdata), sys.getrefcount(self.storage)


@dataclass
class Recorder:
    """What recordings of one call are made with.

    Args:
        pool: memory for what library calls return.
        frame: the call as recordings know it: its memory is theirs.
        part: number of the part that is being recorded, -1 between parts.
        failure: why a stage could not be recorded; it and what follows is launched instead.
        has_room: that was too little memory, of which there is more now.
    """

    pool: Any
    frame: Frame
    part: int = -1
    failure: Exception | None = None
    has_room: bool = False
