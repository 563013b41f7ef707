"""Recordings of a program's launches, with the memory that they read and write."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from graphc.runtime.frame import Frame

if TYPE_CHECKING:
    from graphc.runtime.device import Device, Recording
    from graphc.runtime.sent_numbers import Sent
    from graphc.runtime.triton_program import Part

_storage_use_count = torch._C._storage_Use_Count
_use_count = torch.Tensor._use_count  # type: ignore[attr-defined]


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
        device: number of the device that it works on; None: on several, or on none.
    """

    before: list[Callable[[Frame], None]]
    parts: dict[int, Part]
    is_recorded: bool
    tables: list[int]
    handed_on: list[int]
    launches: int
    device: int | None


@dataclass
class Recorded:
    """Recordings of one program with what they read and write.

    Attributes:
        recordings: to be replayed, per stage; None for a stage that is launched.
        given: memory of outputs that stages which are launched work with, by buffer.
        made: per stage what it leaves for stages that are launched, by buffer.
        fixed: what calls between recordings return, as recordings find it, by buffer.
        results: buffers that are returned, as tensors of their own, by buffer.
        copied: those of which the user gets copies, by buffer.
        lent: the others.
        numbers: what the CPU knows and kernels read, by device.
        words: per step over a table of rows the words with the addresses.
        tables: the tables on the device.
        sent: what is in them.
    """

    recordings: list[Recording | None] = field(default_factory=list)
    given: dict[int, torch.Tensor] = field(default_factory=dict)
    made: list[dict[int, torch.Tensor]] = field(default_factory=list)
    fixed: dict[int, torch.Tensor] = field(default_factory=dict)
    results: dict[int, torch.Tensor] = field(default_factory=dict)
    copied: dict[int, torch.Tensor] = field(default_factory=dict)
    lent: list[Lent] = field(default_factory=list)
    numbers: dict[int, Sent] = field(default_factory=dict)
    words: dict[int, Any] = field(default_factory=dict)
    tables: dict[int, torch.Tensor] = field(default_factory=dict)
    sent: dict[int, bytes] = field(default_factory=dict)

    def is_free(self) -> bool:
        """Whether nobody holds results of an earlier replay."""
        return all(item.is_free() for item in self.lent)

    def keeps_what_is_dropped(self) -> bool:
        """Whether somebody holds results that users are said to drop."""
        return any(item.is_dropped and not item.is_free() for item in self.lent)

    def is_intact(self) -> bool:
        """Whether the memory of the results is where it was: users may resize storages."""
        return all(item.is_intact() for item in self.lent)

    def tensors(self) -> list[torch.Tensor]:
        """All memory of its own."""
        blocks = [sent.block for sent in self.numbers.values()]
        made = [tensor for found in (self.given, *self.made) for tensor in found.values()]
        return [*self.results.values(), *self.fixed.values(), *made, *blocks, *self.tables.values()]


class Lent:
    """A result that the user may hold: the tensor, a view of it, or its storage.

    Args:
        index: its buffer.
        own: the recording's own tensor.
        is_dropped: the user drops it before each call, as old gradients: while it is as it was made, the very tensor is
            handed out again and again.
    """

    def __init__(self, index: int, own: torch.Tensor, is_dropped: bool = False) -> None:
        self.index, self._own, self.is_dropped = index, own, is_dropped
        self._storage = own.untyped_storage()
        self._address, self._start = self._storage.data_ptr(), own.data_ptr()
        self._layout = own.storage_offset(), own.shape, own.stride()
        self._given: torch.Tensor | None = None
        self._alone = self._references()

    def tensor(self) -> torch.Tensor:
        """What the user gets, once it is free."""
        if self._given is not None:
            return self._given
        made = torch.empty(0, dtype=self._own.dtype, device=self._own.device)
        made.set_(self._storage, *self._layout)
        if self.is_dropped:
            self._given = made
        return made

    def is_free(self) -> bool:
        """Whether nobody holds it."""
        given = self._given
        if given is not None:
            if sys.getrefcount(given) != _KEPT or _use_count(given) != 1:
                return False
            if not self._is_as_made(given):
                self._given = given = None
        storages, objects = self._alone
        return self._references() == (storages + (given is not None), objects)

    def is_intact(self) -> bool:
        """Whether its memory is where it was."""
        return self._storage.data_ptr() == self._address

    def _is_as_made(self, given: torch.Tensor) -> bool:
        """Whether users have left nothing at a tensor that nobody holds, nor can tell that it comes again."""
        return (
            given.data_ptr() == self._start
            and given.stride() == self._layout[2]
            and given.shape == self._layout[1]
            and not given.requires_grad
            and given.grad is None
            and not vars(given)
            and not weakref.getweakrefcount(given)
        )

    def _references(self) -> tuple[int, int]:
        return _storage_use_count(self._storage._cdata), sys.getrefcount(self._storage)


def _references_kept() -> int:
    """What `sys.getrefcount` says of a tensor that one attribute and one variable hold."""
    item = Lent(0, torch.empty(1), is_dropped=True)
    item.tensor()
    given = item._given
    return sys.getrefcount(given)


_KEPT = _references_kept()


@dataclass
class Recorder:
    """What recordings of one call are made with.

    Args:
        device: where recordings are made.
        frame: the call as recordings know it: its memory is theirs.
        pools: memory for what library calls return, by number of a device.
        part: number of the part that is being recorded, -1 between parts.
        index: number of the device that is recorded on.
        failure: why a stage could not be recorded; it and what follows is launched instead.
        has_room: that was too little memory, of which there is more now.
    """

    device: Device
    frame: Frame
    pools: dict[int, Any] = field(default_factory=dict)
    part: int = -1
    index: int = 0
    failure: Exception | None = None
    has_room: bool = False

    def record(self, index: int, parts: Mapping[int, Part], run: Callable[[Part], None]) -> Recording:
        """Record parts of a program on a device; nothing of them is carried out."""
        self.index = index
        if index not in self.pools:
            self.pools[index] = self.device.pool()

        def run_all() -> None:
            for self.part, part in parts.items():
                run(part)
            self.part = -1

        return self.device.record(index, self.pools[index], run_all)
