"""Copies of blocks of matrices that the chip makes by itself, told by descriptors, and fences between what sees memory.

The 128 bytes of a descriptor are opaque: here they are a structure of our own, which `tensormap.replace` fills in and
copies of the bytes carry. What lies outside of a matrix is zero when it is loaded, and not stored.

A load is over when its mbarrier has been waited for. A store reads shared memory as late as `wait_group.read` allows,
and is in global memory as late as `wait_group` does, or at the program's end.

Source: PTX ISA 8.7, 5.5.8 Tensor-Map, 5.5.7 Swizzling Modes, 9.7.9.25.5 cp.async.bulk.tensor, commit_group, wait_group,
9.7.9.26 tensormap.replace, 9.7.13.16 tensormap.cp_fenceproxy, 9.7.13.4 fence.proxy; values of fields by table 33.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.triton.ptx.mbarriers import Block, barrier_at
from tests.triton.ptx.memory import address_reader
from tests.triton.ptx.parse import Address, Instruction, Number, PtxError
from tests.triton.ptx.registers import Array, Builder, Frame, Read, Step, reader
from tests.triton.ptx.shared import CHUNK, SharedMemory

SIZE = 128
_WORDS = SIZE // 8
_FIELDS: dict[str, tuple[int, int, int]] = {
    "global_address": (0, 8, 1), "global_stride": (8, 8, 4), "global_dim": (40, 4, 5), "box_dim": (60, 4, 5),
    "element_stride": (80, 4, 5), "rank": (100, 4, 1), "elemtype": (104, 4, 1), "interleave_layout": (108, 4, 1),
    "swizzle_mode": (112, 4, 1), "swizzle_atomicity": (116, 4, 1), "fill_mode": (120, 4, 1),
}  # fmt: skip
"""Where a field begins, bytes of a value, values."""
_LAYOUT = np.dtype({
    "names": list(_FIELDS),
    "formats": [(f"u{size}", (count,)) for _, size, count in _FIELDS.values()],
    "offsets": [first for first, _, _ in _FIELDS.values()],
    "itemsize": SIZE,
})  # fmt: skip
_ELEMENTS = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 9: 8, 10: 2}
"""Bytes of elements that are copied as they are, by number of the type."""
SPANS = (CHUNK, 32, 64, 128)
"""Bytes of shared memory within which chunks change places, by number of the mode."""
_MOST_ROWS = 256


def swizzled(chunks: Array, span: int) -> Array:
    """Where chunks of 16 bytes lie: the lowest bits of their numbers change with those of the line of 128 bytes."""
    return chunks ^ (chunks >> 3 & (span // CHUNK - 1))


@functools.lru_cache(64)
def _order(first: int, count: int, span: int) -> Array:
    """Where behind the first one the chunks of a block lie, which begins at a chunk."""
    return swizzled(first + np.arange(count), span) - first


@dataclass(frozen=True)
class Matrix:
    """What a descriptor says.

    Args:
        address: of the first element.
        sizes, strides: elements of each dim, the innermost first, and bytes between neighbours along each.
        box: elements of a block.
        width: bytes of an element.
        span: see `SPANS`.
    """

    address: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    width: int
    span: int

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.box)) * self.width

    def part(self, frame: Frame, start: tuple[int, ...], instruction: Instruction) -> tuple[Array, tuple[slice, ...]]:
        """What of a block is inside of the matrix, as a view of memory, and where in the block that is."""
        low = [max(at, 0) for at in start]
        high = [min(at + box, size) for at, box, size in zip(start, self.box, self.sizes)]
        if any(last <= first for first, last in zip(low, high)):
            return np.zeros([0] * len(start), f"u{self.width}"), (slice(0, 0),) * len(start)
        address = self.address + sum(first * stride for first, stride in zip(low, self.strides))
        shape = tuple(last - first for first, last in zip(low, high))[::-1]
        view = frame.batch.memory.block(address, shape, self.strides[:0:-1], self.width, instruction)
        inside = (slice(first - at, last - at) for first, last, at in zip(low, high, start))
        return view, tuple(inside)[::-1]

    def empty(self) -> Array:
        return np.zeros(self.box[::-1], f"u{self.width}")


def _matrix(raw: bytes, instruction: Instruction) -> Matrix:
    """What the bytes of a descriptor say.

    Raises:
        PtxError: what is not allowed, or not known.
    """
    fields = np.frombuffer(raw, _LAYOUT)[0]
    rank = int(fields["rank"][0]) + 1
    width = _ELEMENTS.get(int(fields["elemtype"][0]), 0)
    if not 1 <= rank <= 5 or not width or int(fields["swizzle_mode"][0]) >= len(SPANS):
        raise instruction.unknown("a descriptor that says nothing known")
    if any(fields[name][0] for name in ("interleave_layout", "swizzle_atomicity", "fill_mode")):
        raise instruction.unknown("a layout or filling of blocks that is not known")
    named = {name: tuple(fields[name].tolist()) for name in _FIELDS}
    sizes, box = named["global_dim"][:rank], named["box_dim"][:rank]
    strides, span = named["global_stride"][: rank - 1], SPANS[int(fields["swizzle_mode"][0])]
    wrong = {
        "an address that is not aligned": named["global_address"][0] % CHUNK,
        "strides that are not aligned": any(stride % CHUNK or stride >= 1 << 40 for stride in strides),
        "elements that are left out": any(step != 1 for step in named["element_stride"][:rank]),
        "a block of no such size": not all(1 <= size <= _MOST_ROWS for size in box),
        "rows of a block that are not aligned": box[0] * width % CHUNK,
        "rows of a block that are longer than the swizzle": span > CHUNK and box[0] * width > span,
    }
    if any(wrong.values()):
        raise instruction.unknown(next(what for what, found in wrong.items() if found))
    return Matrix(named["global_address"][0], sizes, (width, *strides), box, width, span)


# -------------------------------------------------------------------------------------------------------- descriptors


def replace(instruction: Instruction) -> Step:
    """`tensormap.replace`: a store to the field's place."""
    if len(instruction.modifiers) != 6 or instruction.modifiers[:2] != ("replace", "tile"):
        raise instruction.unknown()
    _, _, name, space, size, kind = instruction.modifiers
    if name not in _FIELDS or size != "b1024" or space not in ("shared::cta", "global"):
        raise instruction.unknown()
    first, width, count = _FIELDS[name]
    place, *ordinal, value = instruction.operands
    if len(ordinal) != (name in ("global_stride", "global_dim", "box_dim", "element_stride")):
        raise instruction.unknown()
    number = getattr(ordinal[0], "value", count) if ordinal else 0
    if number >= count or int(kind[1:]) > 8 * width or (name == "global_stride") != (kind == "b64" and first == 8):
        raise instruction.unknown()
    address, read = address_reader(place, instruction), reader(value, kind, instruction)
    offset = np.uint64(first + width * number)

    def step(frame: Frame) -> None:
        batch, threads = frame.batch, np.flatnonzero(frame.active)
        values = np.broadcast_to(read(frame), frame.active.shape)[threads].astype(f"u{width}")[:, None]
        to = address(frame)[threads] + offset
        if space == "global":
            batch.note("stores", threads, to, width, 1)
            batch.memory.store(to, values, instruction)
            return
        places = batch.shared.places(batch.program[threads], to, width, instruction)
        batch.shared.store(places, values, batch.warp[threads], instruction)

    return step


def _leaders(frame: Frame, instruction: Instruction) -> Array:
    """The first thread of each active warp, all of whose threads must be."""
    by_warp = frame.active.reshape(-1, 32)
    some = by_warp.any(1)
    if not by_warp[some].all():
        raise instruction.unknown("threads of a warp are elsewhere")
    return np.flatnonzero(some) * 32


def _copy_and_fence(instruction: Instruction) -> Step:
    """`tensormap.cp_fenceproxy`: a descriptor goes to global memory."""
    flags = (
        "cp_fenceproxy", "global", "shared::cta", "tensormap::generic", "release", "gpu", "sync", "aligned",
    )  # fmt: skip
    to, source, size = instruction.operands
    if instruction.modifiers != flags or size != Number(SIZE):
        raise instruction.unknown()
    targets, sources = address_reader(to, instruction), address_reader(source, instruction)

    def step(frame: Frame) -> None:
        batch, threads = frame.batch, _leaders(frame, instruction)
        places = batch.shared.places(batch.program[threads], sources(frame)[threads], SIZE, instruction)
        raw = batch.shared.load(places, 8, _WORDS, batch.warp[threads], instruction)
        addresses = targets(frame)[threads]
        batch.note("stores", threads, addresses, 8, _WORDS)
        batch.memory.store(addresses, raw, instruction)
        batch.maps.update(addresses.tolist())

    return step


def tensormap(instruction: Instruction) -> Step:
    return replace(instruction) if instruction.modifiers[0] == "replace" else _copy_and_fence(instruction)


def fence(instruction: Instruction) -> Step:
    """Between proxies; others order what here is in order."""
    flags = instruction.modifiers
    if flags[0] != "proxy":
        return lambda frame: None
    if flags[1:] in (("async",), ("async", "shared::cta")):
        return _fence_shared
    if flags[1:3] != ("tensormap::generic", "acquire") or instruction.operands[1:] != (Number(SIZE),):
        raise instruction.unknown()
    address = address_reader(instruction.operands[0], instruction)
    return lambda frame: frame.batch.maps.difference_update(address(frame)[frame.active].tolist())


def _fence_shared(frame: Frame) -> None:
    batch, threads = frame.batch, np.flatnonzero(frame.active)
    batch.shared.fence(batch.program[threads], batch.warp[threads])


def _described(frame: Frame, thread: int, address: int, instruction: Instruction) -> Matrix:
    batch = frame.batch
    if address in batch.maps:
        raise instruction.unknown("a descriptor that no fence.proxy.tensormap has acquired since it was written")
    halves = np.array([address, address + SIZE // 2], np.uint64)
    batch.note("loads", np.array([thread, thread]), halves, 8, _WORDS // 2)
    return _matrix(batch.memory.load(halves, 8, _WORDS // 2, instruction).tobytes(), instruction)


# -------------------------------------------------------------------------------------------------------------- copies


@dataclass(frozen=True)
class _Operands:
    """Who copies which block from or to where."""

    thread: int
    program: int
    warp: int
    matrix: Matrix
    start: tuple[int, ...]
    place: int

    def note(self, frame: Frame, view: Array, stores: bool = False) -> None:
        """Note the accesses to global memory, a row of the block each."""
        if not view.size:
            return
        rows = np.zeros(view.shape[:-1], np.uint64) + np.uint64(view.ctypes.data)
        for at, stride in enumerate(view.strides[:-1]):
            steps = (stride * np.arange(view.shape[at])).astype(np.uint64)
            rows += steps.reshape([-1 if at == other else 1 for other in range(rows.ndim)])
        kind, threads = "stores" if stores else "loads", np.full(rows.size, self.thread)
        frame.batch.note(kind, threads, rows.reshape(-1), self.matrix.width, view.shape[-1])


def _operands(place: Address, shared: Address, instruction: Instruction) -> Any:
    """How the operands of a copy are read, by active thread."""
    address, to = address_reader(Address(place.base, place.offset), instruction), address_reader(shared, instruction)
    coordinates: list[Read] = [reader(item, "s32", instruction) for item in place.index]

    def read(frame: Frame) -> list[_Operands]:
        batch, found = frame.batch, []
        descriptors, places = address(frame), to(frame)
        starts = [np.broadcast_to(one(frame), frame.active.shape) for one in coordinates]
        for thread in np.flatnonzero(frame.active).tolist():
            matrix = _described(frame, thread, int(descriptors[thread]), instruction)
            at, program = int(places[thread]), int(batch.program[thread])
            if len(matrix.box) != len(starts):
                raise instruction.unknown("a descriptor of other dims")
            if at % 128 or at + matrix.nbytes > batch.shared.size:
                raise instruction.unknown(f"a block that is not aligned to 128 bytes, or outside, at {at:#x}")
            start = tuple(int(one[thread]) for one in starts)
            place_of = program * batch.shared.size + at
            found.append(_Operands(thread, program, int(batch.warp[thread]), matrix, start, place_of))
        return found

    return read


def _load(instruction: Instruction) -> Step:
    to, place, barrier = instruction.operands
    if not isinstance(place, Address) or not isinstance(to, Address):
        raise instruction.unknown()
    read, where = _operands(place, to, instruction), address_reader(barrier, instruction)

    def step(frame: Frame) -> None:
        batch, barriers = frame.batch, where(frame)
        for one in read(frame):
            view, inside = one.matrix.part(frame, one.start, instruction)
            one.note(frame, view)
            block = one.matrix.empty()
            block[inside] = view
            chunks = block.reshape(-1).view(np.uint8).reshape(-1, CHUNK)
            raw = np.empty_like(chunks)
            first = one.place % batch.shared.size // CHUNK
            raw[_order(first, len(chunks), one.matrix.span)] = chunks
            batch.shared.begin_block(one.place, raw.size, one.warp, instruction)
            held = barrier_at(frame, one.thread, int(barriers[one.thread]), instruction)
            held.copies.append(Block(one.place, raw.reshape(-1)))

    return step


@dataclass
class Store:
    """A store of a block.

    Attributes:
        group: its number among the groups of the thread, -1 before it is in one.
        raw: what it has read; None before.
    """

    operands: _Operands
    view: Array
    inside: tuple[slice, ...]
    group: int = -1
    raw: Array | None = None

    def chunks(self) -> Array:
        return self.operands.place // CHUNK + np.arange(self.operands.matrix.nbytes // CHUNK)

    def read(self, shared: SharedMemory) -> None:
        if self.raw is None:
            chunks = self.chunks()
            first = self.operands.place % shared.size // CHUNK
            self.raw = shared.read(chunks)[_order(first, len(chunks), self.operands.matrix.span)]
            shared.end_read(chunks)

    def write(self) -> None:
        matrix = self.operands.matrix
        assert self.raw is not None
        block = np.ascontiguousarray(self.raw).reshape(-1).view(f"u{matrix.width}").reshape(matrix.box[::-1])
        self.view[...] = block[self.inside]


def _store(instruction: Instruction) -> Step:
    place, source = instruction.operands
    if not isinstance(place, Address) or not isinstance(source, Address):
        raise instruction.unknown()
    read = _operands(place, source, instruction)

    def step(frame: Frame) -> None:
        batch = frame.batch
        for one in read(frame):
            view, inside = one.matrix.part(frame, one.start, instruction)
            one.note(frame, view, stores=True)
            made = Store(one, view, inside)
            if batch.shared.begin_read(made.chunks()[None], np.array([1 << one.warp], np.uint32), instruction):
                batch.doubt("no fence.proxy.async behind cp.async", instruction)
            batch.stores.append(made)

    return step


def _commit(frame: Frame) -> None:
    batch = frame.batch
    for store in batch.stores:
        if store.group < 0 and frame.active[store.operands.thread]:
            store.group = int(batch.committed[store.operands.thread])
    batch.committed += frame.active


def _wait(instruction: Instruction, reads: bool) -> Step:
    (left,) = instruction.operands
    if not isinstance(left, Number):
        raise instruction.unknown()

    def step(frame: Frame) -> None:
        batch, kept = frame.batch, []
        for store in batch.stores:
            thread = store.operands.thread
            is_over = 0 <= store.group < batch.committed[thread] - left.value and frame.active[thread]
            if is_over:
                store.read(batch.shared)
            if is_over and not reads:
                store.write()
            else:
                kept.append(store)
        batch.stores = kept

    return step


def copy_in_bulk(instruction: Instruction) -> Step:
    """`cp.async.bulk` in its forms."""
    flags = instruction.modifiers[2:]
    if flags == ("commit_group",):
        return _commit
    if flags in (("wait_group",), ("wait_group", "read")):
        return _wait(instruction, len(flags) == 2)
    block = instruction.operands[flags[2:3] != ("global",)] if instruction.operands else None
    if flags[:1] != ("tensor",) or not isinstance(block, Address) or flags[1] != f"{len(block.index)}d":
        raise instruction.unknown()
    rest = tuple(flag for flag in flags[2:] if flag != "tile")
    if rest == ("global", "shared::cta", "bulk_group") and len(instruction.operands) == 2:
        return _store(instruction)
    loads = [(space, "global", "mbarrier::complete_tx::bytes") for space in ("shared::cta", "shared::cluster")]
    if rest in loads and len(instruction.operands) == 3:
        return _load(instruction)
    raise instruction.unknown()


def finish(batch: Any, name: str) -> None:
    """Stores that nobody has waited for are over when a program ends.

    Raises:
        PtxError: shared memory is gone before it has been read.
    """
    if any(store.raw is None for store in batch.stores):
        raise PtxError(f"{name} ends before stores of blocks have read shared memory")
    for store in batch.stores:
        store.write()


BUILDERS: dict[str, Builder] = {"tensormap": tensormap, "fence": fence}
