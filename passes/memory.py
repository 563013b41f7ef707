"""The arena: which bytes of one block each intermediate value takes, so that those alive together never meet."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from graphc.ir.sizes import typical

ALIGNMENT = 64
EXACT_BLOCKS = 600
"""Blocks up to which all pairs are looked at; beyond it, one sweep in order of time."""


class Block(NamedTuple):
    """Memory alive from step `first` to step `last`, both included.

    Args:
        size: bytes.
    """

    first: int
    last: int
    size: int


def most_alive(blocks: Iterable[Block]) -> tuple[int, int]:
    """The first step at which most bytes are alive, and how many."""
    change: dict[int, int] = {}
    for block in blocks:
        size = typical(block.size)
        change[block.first] = change.get(block.first, 0) + size
        change[block.last + 1] = change.get(block.last + 1, 0) - size
    alive = most = at = 0
    for step in sorted(change):
        alive += change[step]
        if alive > most:
            most, at = alive, step
    return at, most


def _round_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def place_blocks(blocks: Sequence[Block]) -> tuple[list[int], int]:
    """Offsets of blocks in one arena.

    Greedy by size: the biggest block first, each at the smallest gap that holds it between those already placed that
    are alive at the same time. Source: Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference,
    arXiv 2001.03288.

    Returns:
        The offset of each block, a multiple of 64 bytes, and the size of the arena.
    """
    order = sorted(range(len(blocks)), key=lambda number: (-blocks[number].size, blocks[number].first))
    if len(blocks) > EXACT_BLOCKS:
        order.sort(key=lambda number: blocks[number].first)
        return _sweep(blocks, order)
    offsets = [0] * len(blocks)
    placed: list[tuple[int, int, int, int]] = []  # (offset, end, first, last), by offset
    total = 0
    for number in order:
        block = blocks[number]
        size = _round_up(block.size)
        offset, _ = gap_for(placed, Block(block.first, block.last, size))
        offsets[number] = offset
        insort(placed, (offset, offset + size, block.first, block.last))
        total = max(total, offset + size)
    return offsets, total


def gap_for(placed: Sequence[tuple[int, int, int, int]], block: Block, room: int = 0) -> tuple[int, bool]:
    """The smallest gap that holds a block, between those placed that are alive at the same time; else behind them.

    Args:
        placed: (offset, end, first step, last step), by offset.
        room: bytes there are.

    Returns:
        An offset, a multiple of 64 bytes, and whether the block ends there within the room.
    """
    last, size = block.last, block.size
    best, best_gap, end = -1, -1, 0
    for offset, stop, other_first, other_last in placed:
        if other_first > last or other_last < block.first:
            continue
        gap = offset - end
        if gap >= size and (best < 0 or gap < best_gap):
            best, best_gap = end, gap
        if stop > end:
            end = _round_up(stop)
    offset = best if best >= 0 else end
    return offset, offset + size <= room


def _sweep(blocks: Sequence[Block], order: Sequence[int]) -> tuple[list[int], int]:
    """Best fit in order of time: free gaps are kept by offset and joined with their neighbours."""
    offsets = [0] * len(blocks)
    alive: list[tuple[int, int]] = []  # (last step, block), a heap
    gaps: list[tuple[int, int]] = []  # (offset, end), by offset
    total = 0
    from heapq import heappop, heappush

    for number in order:
        block, size = blocks[number], _round_up(blocks[number].size)
        while alive and alive[0][0] < block.first:
            _, dead = heappop(alive)
            _free(gaps, offsets[dead], offsets[dead] + _round_up(blocks[dead].size))
        fitting = [(end - start, start, at) for at, (start, end) in enumerate(gaps) if end - start >= size]
        if fitting:
            _, start, at = min(fitting)
            if gaps[at][1] - start == size:
                del gaps[at]
            else:
                gaps[at] = (start + size, gaps[at][1])
        elif gaps and gaps[-1][1] == total:  # grow the last gap
            start, _ = gaps.pop()
            total = start + size
        else:
            start, total = total, total + size
        offsets[number] = start
        heappush(alive, (block.last, number))
    return offsets, total


def _free(gaps: list[tuple[int, int]], start: int, end: int) -> None:
    if start == end:
        return
    at = bisect_left(gaps, (start, end))
    if at < len(gaps) and gaps[at][0] == end:
        end = gaps[at][1]
        del gaps[at]
    if at > 0 and gaps[at - 1][1] == start:
        start = gaps[at - 1][0]
        at -= 1
        del gaps[at]
    gaps.insert(at, (start, end))
