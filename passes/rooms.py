"""Results as working memory: until a result is first stored, its memory holds other values.

    step      0 ........ 40 ........ 90
    %h        made ----- last read              lies in the memory of
    %w.grad                          stored     the gradient that is stored later

In a training step this is where much of the forward pass fits: the gradients' memory is there from the start and is
idle until the backward pass comes to it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from graphc.ir.sizes import Size, never_more, typical
from graphc.passes.memory import Block, gap_for, most_alive
from graphc.program.loops import Binding, LoopStep
from graphc.program.plan import BufferSpec, ForeachStep, GemmStep, KernelStep, Step, View

SMALLEST = 4096
"""Bytes from which memory is worth looking at."""
MOST = 256
"""Rooms, and blocks, that are looked at: the biggest ones."""


class Room(NamedTuple):
    """Memory of a result that is idle before step `until`.

    Args:
        buffer: the result.
        size: bytes.
    """

    buffer: int
    until: int
    size: int


def fill_rooms(blocks: Mapping[int, Block], rooms: Iterable[Room]) -> dict[int, tuple[int, int]]:
    """Put blocks into rooms: those alive when most memory is in use first, the biggest of them first.

    Args:
        blocks: by any number.

    Returns:
        For each block that found place, by its number, the buffer and the byte in it.
    """
    large = (room for room in rooms if typical(room.size) >= SMALLEST and room.until > 0)
    free = sorted(sorted(large, key=lambda room: -typical(room.size))[:MOST], key=lambda room: typical(room.size))
    if not free:
        return {}
    peak, _ = most_alive(blocks.values())
    placed: dict[int, list[tuple[int, int, int, int]]] = {room.buffer: [] for room in free}
    found: dict[int, tuple[int, int]] = {}
    candidates = (number for number, block in blocks.items() if typical(block.size) >= SMALLEST)
    biggest = sorted(candidates, key=lambda number: -typical(blocks[number].size))[:MOST]
    for number in sorted(biggest, key=lambda n: not blocks[n].first <= peak <= blocks[n].last):
        block = blocks[number]
        for room in free:
            if room.until <= block.last or not never_more(block.size, room.size):
                continue
            if Size in (type(block.size), type(room.size)):  # the whole room, whatever its size
                block = Block(block.first, block.last, typical(room.size))
            offset, fits = gap_for(placed[room.buffer], block, typical(room.size))
            if fits:
                insort(placed[room.buffer], (offset, offset + block.size, block.first, block.last))
                found[number] = (room.buffer, offset)
                break
    return found


class Mover:
    """Rewrites steps for buffers that lie in others.

    Args:
        buffers: of the plan.
        places: buffer -> the buffer it lies in, and the byte there, a multiple of its elements' size.
    """

    def __init__(self, buffers: Sequence[BufferSpec], places: Mapping[int, tuple[int, int]]) -> None:
        self._places = {
            number: (other, byte // buffers[number].dtype.itemsize) for number, (other, byte) in places.items()
        }

    def step(self, step: Step) -> Step:
        """The step on the memory as it is now."""
        if isinstance(step, KernelStep):
            if self._places.keys().isdisjoint(step.buffers):
                return step
            pairs = [self._place(number, offset) for number, offset in zip(step.buffers, step.offsets, strict=True)]
            return replace(step, buffers=tuple(b for b, _ in pairs), offsets=tuple(o for _, o in pairs))
        if isinstance(step, GemmStep):
            return replace(step, a=self._item(step.a), b=self._item(step.b), out=self._item(step.out))
        if isinstance(step, ForeachStep):
            return self._table(step)
        if isinstance(step, LoopStep):
            return replace(step, bindings=tuple(map(self._binding, step.bindings)))
        assert self._places.keys().isdisjoint(step.outs)
        if not any(view.buffer in self._places for view in step.views()):
            return step
        return replace(step, args=self._item(step.args), kwargs=self._item(step.kwargs))

    def _place(self, number: int, offset: int) -> tuple[int, int]:
        if number not in self._places:
            return number, offset
        other, start = self._places[number]
        return other, start + offset

    def _table(self, step: ForeachStep) -> ForeachStep:
        assert self._places.keys().isdisjoint((step.scratch, *step.shared))
        if self._places.keys().isdisjoint(step.buffers):
            return step
        rows, offsets = [], []
        for row, starts in zip(step.rows, step.offsets, strict=True):
            pairs = [self._place(number, start) for number, start in zip(row, starts, strict=True)]
            rows.append(tuple(number for number, _ in pairs))
            offsets.append(tuple(start for _, start in pairs))
        return replace(step, rows=tuple(rows), offsets=tuple(offsets))

    def _binding(self, old: Binding) -> Binding:
        turns = [self._place(number, start) for number, start in zip(old.buffers, old.offsets, strict=True)]
        first, first_offset = self._place(old.first, old.first_offset)
        buffers, offsets = (turns[0][0], turns[1][0]), (turns[0][1], turns[1][1])
        return Binding(buffers, offsets, old.stride, first, first_offset)

    def _item(self, item: Any) -> Any:
        if isinstance(item, View):
            buffer, offset = self._place(item.buffer, item.offset)
            return item if buffer == item.buffer else replace(item, buffer=buffer, offset=offset)
        return type(item)(map(self._item, item)) if type(item) in (tuple, list) else item
