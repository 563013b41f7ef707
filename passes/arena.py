"""The arena of a plan: offsets for all working memory, and what lies in the place of what.

Outputs of kernels lie where inputs end, stacks of loops over sequences, values in results that are stored later. Big
blocks come and go where library calls hold more memory than the arena.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import NamedTuple

from graphc.ir.sizes import Size, never_more, plain
from graphc.loopir.kernel import Kernel
from graphc.ops.attention import LIBRARIES
from graphc.passes.again import run_again
from graphc.passes.memory import Block, place_blocks
from graphc.passes.overlay import Overlays, best_overlays
from graphc.passes.rooms import Mover, Room, fill_rooms
from graphc.passes.sharing import Sharing
from graphc.passes.transient import coming_and_going, insert_allocations
from graphc.program.lifetimes import step_buffers
from graphc.program.plan import (
    ARENA,
    EXTERNAL,
    OUTPUT,
    ArenaBlock,
    AtenStep,
    BufferSpec,
    ForeachStep,
    KernelStep,
    Step,
)

FRESH = frozenset(
    f"aten.{name}.default" for name in ("convolution", "convolution_backward", "embedding_dense_backward")
) | {name for library in LIBRARIES.values() for name in (library.forward, library.backward)}
"""Calls whose results share memory with nothing."""


class ArenaSize(NamedTuple):
    """Bytes of an arena, what they would be if no two buffers shared any, and what is in it where sizes may differ."""

    total: int
    plain: int
    blocks: tuple[ArenaBlock, ...]


def place_arena(
    steps: list[Step],
    buffers: list[BufferSpec],
    kernels: Mapping[str, Kernel],
    sharing: Sharing,
    handed: Set[int],
) -> ArenaSize:
    """Place all arena buffers of a plan.

    Args:
        steps, buffers: of the plan; both are changed.
        kernels: that the steps call, by name.
        sharing: what is known of kernels that may store over what they read.
        handed: buffers that the user gets.
    """
    return _Placer(steps, buffers, kernels, sharing, handed).run()


class _Placer:
    def __init__(
        self,
        steps: list[Step],
        buffers: list[BufferSpec],
        kernels: Mapping[str, Kernel],
        sharing: Sharing,
        handed: Set[int],
    ) -> None:
        self.steps, self.buffers, self.kernels, self.sharing, self.handed = steps, buffers, kernels, sharing, handed
        self.open: set[int] = set()

    def run(self) -> ArenaSize:
        """Offsets for all arena buffers, with outputs of kernels in the place of inputs that end there, and stacks of
        loops in the place of sequences."""
        self.steps[:] = run_again(self.steps, self.buffers, self.kernels)
        tied = self._tied()
        free = {s.index for s in self.buffers if s.kind == ARENA and not s.host and s.index not in tied}
        overlays = best_overlays(self.steps, self.buffers, self.kernels, free, self.sharing)
        self.steps[:] = [step for at, step in enumerate(self.steps) if at not in overlays.spared]
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for at, step in enumerate(self.steps):
            for index in step_buffers(step):
                first.setdefault(index, at)
                last[index] = at
        arena = [spec for spec in self.buffers if spec.kind == ARENA and spec.index in first]
        merged = self._reuse(first, last, overlays)
        starts = self._stack_up(merged, overlays)
        owners = [spec for spec in arena if merged.get(spec.index, spec.index) == spec.index]
        ends = dict(last)
        sizes = {spec.index: spec.nbytes for spec in self.buffers}
        sizes |= {index: start + sizes[index] for index, start in starts.items()}
        begins = dict(first)
        for index, owner in merged.items():
            begins[owner] = min(begins[owner], first[index])
            ends[owner] = max(ends[owner], last[index])
            sizes[owner] = max(sizes[owner], sizes[index])
        blocks = {spec.index: Block(begins[spec.index], ends[spec.index], sizes[spec.index]) for spec in owners}
        plain_bytes = sum(-(-spec.nbytes // 64) * 64 for spec in arena)
        stuck = {merged.get(spec.index, spec.index) for spec in arena if spec.index not in free}
        housed = self._house(arena, merged, stuck, blocks, first)
        wanted = self._free_at_times(stuck, blocks, merged, housed, first, last)
        housed = {index: (place, byte + starts.get(index, 0)) for index, (place, byte) in housed.items()}
        self._move(housed)
        self.steps[:] = insert_allocations(self.steps, wanted)
        owners = [spec for spec in owners if spec.index not in housed]
        contents = self._contents(arena, owners, blocks, housed, merged, starts)
        where, arena_bytes = place_contents(contents)
        for spec in arena:
            if spec.index in housed:  # no step names it any more
                self.buffers[spec.index] = replace(spec, shape=(0,), strides=(1,), nbytes=0, arena_offset=0)
            else:
                self.buffers[spec.index] = at_offset(spec, where[spec.index])
        self.buffers[:] = [at_offset(s, 0) if s.kind == ARENA and s.arena_offset < 0 else s for s in self.buffers]
        differs = any(type(block.size) is Size for block in contents)
        return ArenaSize(arena_bytes, plain_bytes, contents if differs else ())

    def _contents(
        self,
        arena: list[BufferSpec],
        owners: list[BufferSpec],
        blocks: Mapping[int, Block],
        housed: Mapping[int, tuple[int, int]],
        merged: Mapping[int, int],
        starts: Mapping[int, int],
    ) -> tuple[ArenaBlock, ...]:
        """What lies in the arena."""
        members: dict[int, list[tuple[int, int]]] = {}
        for spec in arena:
            if spec.index not in housed:
                owner = merged.get(spec.index, spec.index)
                members.setdefault(owner, []).append((spec.index, starts.get(spec.index, 0)))
        return tuple(ArenaBlock(*blocks[spec.index], spec.device, tuple(members[spec.index])) for spec in owners)

    def _house(
        self,
        arena: list[BufferSpec],
        merged: dict[int, int],
        stuck: set[int],
        blocks: dict[int, Block],
        first: dict[int, int],
    ) -> dict[int, tuple[int, int]]:
        """Arena buffers that lie elsewhere: in a call's result, or in a result that is stored later."""
        widths = {spec.index: spec.dtype.itemsize for spec in arena}
        by_kind: dict[tuple[str, int], list[Room]] = {}
        for spec in self.buffers:
            if spec.kind == OUTPUT and not spec.host and spec.index in first:
                room = Room(spec.index, first[spec.index], spec.nbytes)
                by_kind.setdefault((spec.device, spec.dtype.itemsize), []).append(room)
        places: dict[int, tuple[int, int]] = {}
        for (device, width), rooms in by_kind.items():
            fitting = {
                index: block
                for index, block in blocks.items()
                if index not in stuck and widths[index] == width and self.buffers[index].device == device
            }
            places |= fill_rooms(fitting, rooms)
        places |= {owner: (owner, 0) for owner in merged.values() if self.buffers[owner].kind == EXTERNAL}
        owners = {spec.index: merged.get(spec.index, spec.index) for spec in arena}
        return {index: places[owner] for index, owner in owners.items() if owner in places}

    def _tied(self) -> set[int]:
        """Buffers that steps cannot name as a part of another one."""
        tied = {index for step in self.steps if isinstance(step, AtenStep) for index in step.outs}
        for step in self.steps:
            if isinstance(step, ForeachStep):
                tied |= {step.scratch, *step.shared}
        return tied

    def _stack_up(self, merged: dict[int, int], overlays: Overlays) -> dict[int, int]:
        """Adds stacks that lie over sequences to `merged`; the bytes at which these and what is below them start."""
        offsets: dict[int, dict[int, int]] = {}
        for made in overlays.place:
            below, elements = overlays.root(made)
            owner = merged.get(below, below)
            members = offsets.setdefault(owner, dict.fromkeys((owner, below), 0))
            members |= {index: 0 for index, other in merged.items() if other == owner and index not in members}
            members[made] = elements * self.buffers[made].dtype.itemsize
            merged[made] = owner
        found: dict[int, int] = {}
        for members in offsets.values():
            lowest = min(members.values())
            found |= {index: at - lowest for index, at in members.items()}
        return found

    def _free_at_times(
        self,
        stuck: set[int],
        blocks: dict[int, Block],
        merged: dict[int, int],
        housed: dict[int, tuple[int, int]],
        first: dict[int, int],
        last: dict[int, int],
    ) -> dict[int, list[BufferSpec]]:
        """Blocks that come and go: gives them buffers, notes in `housed` what lies there, tells what is made before
        which step."""
        held = [
            Block(first[spec.index], last[spec.index], spec.nbytes)
            for spec in self.buffers
            if spec.kind == EXTERNAL and spec.index in first
        ]
        staying = {
            index: block
            for index, block in blocks.items()
            if index not in housed and index not in stuck and self.buffers[index].device == "cpu"
        }
        wanted: dict[int, list[BufferSpec]] = {}
        for owner in coming_and_going(staying, held):
            dtype, index = self.buffers[owner].dtype, len(self.buffers)
            count = -(-blocks[owner].size // dtype.itemsize)
            self.buffers.append(BufferSpec(index, EXTERNAL, dtype, (count,), (1,), count * dtype.itemsize))
            wanted.setdefault(blocks[owner].first, []).append(self.buffers[-1])
            housed |= dict.fromkeys((owner, *(m for m, other in merged.items() if other == owner)), (index, 0))
        return wanted

    def _move(self, housed: dict[int, tuple[int, int]]) -> None:
        if housed:
            mover = Mover(self.buffers, housed)
            self.steps[:] = [mover.step(step) for step in self.steps]

    def _reuse(self, first: dict[int, int], last: dict[int, int], overlays: Overlays) -> dict[int, int]:
        """Arena buffer -> the earlier one, in the arena or of a call, in whose place it lies from its first step on."""
        owner: dict[int, int] = {}
        below = {index for index, _ in overlays.place.values()}  # there is more in their place than what ends with them
        self.open = {spec.index for spec in self.buffers if spec.kind == ARENA} | self._own_results()
        self.open -= below | overlays.place.keys()
        for at, step in enumerate(self.steps):
            if not isinstance(step, KernelStep):
                continue
            kernel = self.kernels[step.kernel]
            taken: set[int] = set()
            for position, argument in enumerate(kernel.buffers):
                made = step.buffers[position]
                if argument.access != "out" or self.buffers[made].kind != ARENA or first[made] != at or made in owner:
                    continue
                for other in dict.fromkeys(step.buffers):
                    if (
                        other in taken
                        or other == made
                        or (made in below and self.buffers[owner.get(other, other)].kind != ARENA)
                        or not self._can_take(step, kernel, at, made, other, first, last)
                    ):
                        continue
                    owner[made] = owner.get(other, other)
                    taken.add(other)
                    break
        return owner

    def _own_results(self) -> set[int]:
        """Results of calls that are known to make memory of their own, and which nobody is handed."""
        made = [step.outs for step in self.steps if isinstance(step, AtenStep) and step.op in FRESH]
        found = {index for outs in made for index in outs if index >= 0 and index not in self.handed}
        return {index for index in found if self.buffers[index].kind == EXTERNAL}

    def _can_take(
        self,
        step: KernelStep,
        kernel: Kernel,
        at: int,
        made: int,
        other: int,
        first: dict[int, int],
        last: dict[int, int],
    ) -> bool:
        dying, fresh = self.buffers[other], self.buffers[made]
        if other not in self.open or last[other] != at or first[other] == at:
            return False
        if not never_more(fresh.nbytes, dying.nbytes):
            return False
        if dying.dtype.itemsize != fresh.dtype.itemsize or fresh.nbytes == 0 or fresh.host != dying.host:
            return False
        if dying.device != fresh.device:
            return False
        places = [p for p, index in enumerate(step.buffers) if index == other]
        stored = step.buffers.index(made)
        if any(kernel.buffers[p].access != "in" or step.offsets[p] != step.offsets[stored] for p in places):
            return False
        return self.sharing.allows(kernel, [kernel.buffers[p].name for p in places], kernel.buffers[stored].name)


def place_contents(blocks: Sequence[ArenaBlock]) -> tuple[dict[int, int], int]:
    """Where buffers lie, in bytes, in one arena per device, with the sizes of now; and the bytes of all arenas."""
    where: dict[int, int] = {}
    total = 0
    for device in sorted({block.device for block in blocks}):
        here = [block for block in blocks if block.device == device]
        offsets, size = place_blocks([Block(block.first, block.last, plain(block.size)) for block in here])
        for block, offset in zip(here, offsets, strict=True):
            where |= {index: offset + plain(start) for index, start in block.members}
        total += size
    return where, total


def at_offset(spec: BufferSpec, offset: int) -> BufferSpec:
    """A buffer that lies elsewhere in its arena."""
    s = spec  # a call of the constructor takes a tenth of the time of `replace`
    return BufferSpec(s.index, s.kind, s.dtype, s.shape, s.strides, s.nbytes, s.device, s.source, offset, s.host)
