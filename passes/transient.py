"""Working memory that comes and goes, for programs in which library calls hold more memory than the arena.

    step         pool      product     ... conv_backward ...
    arena        ######################                        stays for the whole of every call
    calls                               ####################   comes and goes

An arena stays, so where calls have their peak its idle parts add to it. Then big blocks that are not in use at that
moment are had from torch's allocator instead, right before their first step, and go after their last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphc.ir.sizes import typical
from graphc.passes.memory import Block, most_alive
from graphc.program.plan import AtenStep, BufferSpec, Step

EMPTY = "aten.empty.memory_format"
SMALLEST = 1 << 12
"""Bytes from which memory is worth asking for in every call."""
MOST = 16
"""Blocks that are had this way."""


def coming_and_going(blocks: Mapping[int, Block], held: Sequence[Block]) -> list[int]:
    """Blocks, by their numbers, that are better not in the arena; the biggest first.

    Args:
        blocks: that the arena is to hold.
        held: what calls return.
    """
    peak, most = most_alive(held)
    _, own = most_alive(blocks.values())
    if most <= own:
        return []
    sizes = {n: typical(block.size) for n, block in blocks.items() if not block.first <= peak <= block.last}
    idle = [n for n, size in sizes.items() if size >= SMALLEST]
    return sorted(idle, key=lambda n: (-sizes[n], blocks[n].first))[:MOST]


def insert_allocations(steps: Sequence[Step], wanted: Mapping[int, Sequence[BufferSpec]]) -> list[Step]:
    """The steps with, before some of them, calls that make memory.

    Args:
        wanted: per number of a step what it needs.
    """
    found: list[Step] = []
    for number, step in enumerate(steps):
        found += [AtenStep(EMPTY, (s.shape,), (("dtype", s.dtype),), (s.index,)) for s in wanted.get(number, ())]
        found.append(step)
    return found
