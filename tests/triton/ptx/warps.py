"""What the 32 threads of a warp do together: exchanges, votes, reductions, and loads of matrices.

All threads that such an instruction names must execute it together, or it is an error.

Source: PTX ISA 8.7, 9.7.9.6 shfl.sync, 9.7.13.10 vote.sync, 9.7.13.13 redux.sync, 9.7.13.17 elect.sync,
9.7.14.5.15 ldmatrix, 9.7.14.5.16 stmatrix.
"""

from __future__ import annotations

import numpy as np

from tests.triton.ptx.integers import Function
from tests.triton.ptx.memory import address_reader
from tests.triton.ptx.parse import Instruction, Number, Vector
from tests.triton.ptx.registers import KINDS, Array, Builder, Frame, Step, reader, writer

WARP = 32
_LANES = np.arange(WARP)


def whole_warps(frame: Frame, instruction: Instruction) -> Array:
    """The active warps, as rows of thread numbers.

    Raises:
        PtxError: some have threads that are not active.
    """
    by_warp = frame.active.reshape(-1, WARP)
    some = by_warp.any(1)
    if not by_warp[some].all():
        raise instruction.unknown("threads of a warp are elsewhere")
    return np.flatnonzero(some)[:, None] * WARP + _LANES


def members(instruction: Instruction, position: int) -> None:
    """Check that a mask of members names all threads."""
    mask = instruction.operands[position]
    if not isinstance(mask, Number) or mask.value % (1 << 32) != 0xFFFFFFFF:
        raise instruction.unknown("a mask that does not name all threads")


def shuffle(instruction: Instruction) -> Step:
    if len(instruction.modifiers) != 3 or instruction.modifiers[::2] != ("sync", "b32"):
        raise instruction.unknown()
    mode = instruction.modifiers[1]
    *results, _, _, _, _ = instruction.operands
    if mode not in ("up", "down", "bfly", "idx") or len(results) not in (1, 2):
        raise instruction.unknown()
    members(instruction, -1)
    value, lane, clamp = (reader(item, "u32", instruction) for item in instruction.operands[-4:-1])
    write = writer(results[0], "u32", instruction)
    write_inside = writer(results[1], "pred", instruction) if len(results) == 2 else None

    def step(frame: Frame) -> None:
        rows = whole_warps(frame, instruction)
        shape = frame.active.shape
        mine, b, c = (np.broadcast_to(read(frame), shape)[rows].astype(np.int64) for read in (value, lane, clamp))
        limit, segment = c & 31, c >> 8 & 31
        b, own = b & 31, np.broadcast_to(_LANES, rows.shape)
        lowest = own & segment
        highest = lowest | (limit & ~segment)
        source = {"up": own - b, "down": own + b, "bfly": own ^ b, "idx": lowest | (b & ~segment)}[mode]
        inside = source >= highest if mode == "up" else source <= highest
        source = np.where(inside, source, own)
        found, was_inside = np.zeros(shape, np.uint32), np.zeros(shape, bool)
        found[rows], was_inside[rows] = np.take_along_axis(mine, source, 1), inside
        write(frame, found)
        if write_inside is not None:
            write_inside(frame, was_inside)

    return step


def vote(instruction: Instruction) -> Step:
    if instruction.modifiers not in (("sync", "ballot", "b32"), ("sync", "any", "pred"), ("sync", "all", "pred")):
        raise instruction.unknown()
    members(instruction, -1)
    read = reader(instruction.operands[1], "pred", instruction)
    _, mode, kind = instruction.modifiers
    write = writer(instruction.operands[0], kind, instruction)

    def step(frame: Frame) -> None:
        rows = whole_warps(frame, instruction)
        votes = np.broadcast_to(read(frame), frame.active.shape)[rows]
        found = np.zeros(frame.active.shape, KINDS[kind])
        if mode == "ballot":
            found[rows] = (votes.astype(np.uint32) << _LANES.astype(np.uint32)).sum(1, dtype=np.uint32)[:, None]
        else:
            found[rows] = (votes.any(1) if mode == "any" else votes.all(1))[:, None]
        write(frame, found)

    return step


_REDUCTIONS: dict[str, Function] = {
    "add": lambda a: a.sum(1, dtype=a.dtype), "min": lambda a: a.min(1), "max": lambda a: a.max(1),
    "and": lambda a: np.bitwise_and.reduce(a, 1), "or": lambda a: np.bitwise_or.reduce(a, 1),
    "xor": lambda a: np.bitwise_xor.reduce(a, 1),
}  # fmt: skip


def reduce(instruction: Instruction) -> Step:
    if len(instruction.modifiers) != 3 or instruction.modifiers[1] not in _REDUCTIONS:
        raise instruction.unknown()
    _, name, kind = instruction.modifiers
    if kind not in ("u32", "s32", "b32"):
        raise instruction.unknown()
    value, mask = (
        reader(instruction.operands[1], kind, instruction),
        reader(instruction.operands[2], "u32", instruction),
    )
    write = writer(instruction.operands[0], kind, instruction)

    def step(frame: Frame) -> None:
        rows = whole_warps(frame, instruction)
        if (np.broadcast_to(mask(frame), frame.active.shape)[rows] != 0xFFFFFFFF).any():
            raise instruction.unknown("a mask that does not name all threads")
        found = np.zeros(frame.active.shape, KINDS[kind])
        found[rows] = _REDUCTIONS[name](np.broadcast_to(value(frame), frame.active.shape)[rows])[:, None]
        write(frame, found)

    return step


def load_matrices(instruction: Instruction) -> Step:
    """Eight by eight elements of 16 bits per matrix, whose rows lie where eight threads say."""
    flags = [flag for flag in instruction.modifiers if flag != "trans"]
    sizes = {"x1": 1, "x2": 2, "x4": 4}
    if len(flags) != 6 or flags[:3] != ["sync", "aligned", "m8n8"] or flags[4] != "shared" or flags[5] != "b16":
        raise instruction.unknown()
    count, transposed = sizes.get(flags[3], 0), "trans" in instruction.modifiers
    target = instruction.operands[0]
    if not isinstance(target, Vector) or len(target.parts) != count:
        raise instruction.unknown()
    writes = [writer(item, "b32", instruction) for item in target.parts]
    read = address_reader(instruction.operands[1], instruction)
    row, first = _LANES // 4, _LANES % 4 * 2

    def step(frame: Frame) -> None:
        rows, batch = whole_warps(frame, instruction), frame.batch
        named = rows[:, : 8 * count]
        threads = named.reshape(-1)
        places = batch.shared.places(batch.program[threads], read(frame)[threads], 16, instruction)
        found = batch.shared.load(places, 2, 8, batch.warp[threads], instruction)
        matrices = found.reshape(len(rows), count, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        for number, write in enumerate(writes):
            pairs = [matrices[:, number, row, first + half].astype(np.uint32) for half in (0, 1)]
            whole = np.zeros(frame.active.shape, np.uint32)
            whole[rows] = pairs[0] | pairs[1] << np.uint32(16)
            write(frame, whole)

    return step


def store_matrices(instruction: Instruction) -> Step:
    """The other way round."""
    flags = [flag for flag in instruction.modifiers if flag != "trans"]
    count = {"x1": 1, "x2": 2, "x4": 4}.get(flags[3], 0) if len(flags) == 6 else 0
    source = instruction.operands[1]
    if flags[:3] + flags[4:] != ["sync", "aligned", "m8n8", "shared", "b16"] or not isinstance(source, Vector):
        raise instruction.unknown()
    if len(source.parts) != count:
        raise instruction.unknown()
    transposed = "trans" in instruction.modifiers
    reads = [reader(item, "b32", instruction) for item in source.parts]
    read = address_reader(instruction.operands[0], instruction)
    row, first = _LANES // 4, _LANES % 4 * 2

    def step(frame: Frame) -> None:
        rows, batch = whole_warps(frame, instruction), frame.batch
        matrices = np.empty((len(rows), count, 8, 8), np.uint16)
        for number, one in enumerate(reads):
            pairs = np.broadcast_to(one(frame), frame.active.shape)[rows]
            matrices[:, number, row, first] = pairs.astype(np.uint16)
            matrices[:, number, row, first + 1] = (pairs >> np.uint32(16)).astype(np.uint16)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        threads = rows[:, : 8 * count].reshape(-1)
        places = batch.shared.places(batch.program[threads], read(frame)[threads], 16, instruction)
        batch.shared.store(places, matrices.reshape(-1, 8), batch.warp[threads], instruction)

    return step


def active_mask(instruction: Instruction) -> Step:
    if instruction.modifiers != ("b32",):
        raise instruction.unknown()
    write = writer(instruction.operands[0], "b32", instruction)

    def step(frame: Frame) -> None:
        bits = frame.active.reshape(-1, WARP).astype(np.uint32) << _LANES.astype(np.uint32)
        write(frame, np.repeat(bits.sum(1, dtype=np.uint32), WARP))

    return step


def elect(instruction: Instruction) -> Step:
    """One thread of each warp: the last one, as any may be it."""
    if instruction.modifiers != ("sync",) or len(instruction.operands) != 3:
        raise instruction.unknown()
    members(instruction, -1)
    write, write_chosen = (writer(item, kind, instruction) for item, kind in zip(instruction.operands, ("u32", "pred")))

    def step(frame: Frame) -> None:
        whole_warps(frame, instruction)
        write(frame, np.full(frame.active.shape, WARP - 1, np.uint32))
        write_chosen(frame, np.arange(len(frame.active)) % WARP == WARP - 1)

    return step


BUILDERS: dict[str, Builder] = {
    "elect": elect,
    "shfl": shuffle,
    "vote": vote,
    "redux": reduce,
    "ldmatrix": load_matrices,
    "stmatrix": store_matrices,
    "activemask": active_mask,
}
