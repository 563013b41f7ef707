"""Barriers in shared memory, by which threads wait for others and for copies that the chip makes.

A copy that a barrier tracks is as late as can be: over when a thread waits for the phase, all arrivals of which have
been made, and whose expected bytes are those of the copies on their way. So an arrival before the last phase has been
waited for is one too many.

Source: PTX ISA 8.7, 9.7.13.15 mbarrier: phases, pending count, expect-tx and complete-tx operations, init, inval,
arrive, arrive.expect_tx, test_wait and try_wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tests.triton.ptx.memory import address_reader
from tests.triton.ptx.parse import Instruction, Name
from tests.triton.ptx.registers import Array, Frame, Read, Step, reader, writer

SIZE = 8
_HINTS = {"shared", "shared::cta", "b64", "release", "relaxed", "acquire", "cta"}


@dataclass
class Block:
    """Bytes that the chip is to bring to a place."""

    place: int
    raw: Array


@dataclass
class Barrier:
    """One barrier.

    Args:
        expected: arrivals of each phase.
        warp, epoch: which warp made it, and behind how many barriers of the program.

    Attributes:
        left: arrivals that the phase lacks.
        bytes: that it expects.
        parity: of the phase.
        copies: on their way.
        last: those of the last phase.
    """

    expected: int
    warp: int
    epoch: int
    left: int = 0
    bytes: int = 0
    parity: int = 0
    copies: list[Block] = field(default_factory=list)
    last: list[Block] = field(default_factory=list)

    def arrive(self, count: int, instruction: Instruction) -> None:
        if count > self.left:
            raise instruction.unknown("an arrival beyond those of the phase, which has not been waited for")
        self.left -= count

    @property
    def may_end(self) -> bool:
        return self.left == 0 and self.bytes == sum(len(copy.raw) for copy in self.copies)

    def end(self) -> None:
        self.last, self.copies = self.copies, []
        self.left, self.bytes, self.parity = self.expected, 0, self.parity ^ 1


def barrier_at(frame: Frame, thread: int, address: int, instruction: Instruction) -> Barrier:
    """The barrier that a thread names.

    Raises:
        PtxError: there is none, or the thread cannot know of it yet.
    """
    batch = frame.batch
    program, warp = int(batch.program[thread]), int(batch.warp[thread])
    found = batch.barriers.get((program, address))
    if found is None:
        raise instruction.unknown(f"no mbarrier at {address:#x}")
    if found.warp != warp and found.epoch == batch.epoch_of(program):
        raise instruction.unknown("a race: another warp has made this mbarrier since the last barrier")
    assert isinstance(found, Barrier)
    return found


def _flags(instruction: Instruction) -> list[str]:
    return [flag for flag in instruction.modifiers if flag not in _HINTS]


def _threads(frame: Frame, read: Read) -> list[tuple[int, int]]:
    """Active threads with what they name."""
    threads = np.flatnonzero(frame.active)
    return list(zip(threads.tolist(), np.broadcast_to(read(frame), frame.active.shape)[threads].tolist()))


def _on_barriers(
    instruction: Instruction, position: int, act: Callable[[Barrier, int], None], amount: int | None = None
) -> Step:
    """Something that each thread does to the barrier at an operand, with the number behind that."""
    address = address_reader(instruction.operands[position], instruction)
    given = instruction.operands[position + 1 :]
    if len(given) > 1 or (not given and amount is None):
        raise instruction.unknown()
    number = reader(given[0], "u32", instruction) if given else (lambda frame: np.uint32(amount))

    def step(frame: Frame) -> None:
        numbers = np.broadcast_to(number(frame), frame.active.shape)
        for thread, at in _threads(frame, address):
            act(barrier_at(frame, thread, at, instruction), int(numbers[thread]))

    return step


def _init(instruction: Instruction) -> Step:
    address = address_reader(instruction.operands[0], instruction)
    count = reader(instruction.operands[1], "u32", instruction)

    def step(frame: Frame) -> None:
        batch, counts = frame.batch, np.broadcast_to(count(frame), frame.active.shape)
        for thread, at in _threads(frame, address):
            program, warp = int(batch.program[thread]), int(batch.warp[thread])
            place = batch.shared.places(np.array([program]), np.array([at], np.uint64), SIZE, instruction)
            batch.shared.reserve(int(place[0]), SIZE, warp, instruction)
            expected = int(counts[thread])
            batch.barriers[program, at] = Barrier(expected, warp, batch.epoch_of(program), expected)

    return step


def _invalidate(instruction: Instruction) -> Step:
    address = address_reader(instruction.operands[0], instruction)

    def step(frame: Frame) -> None:
        batch = frame.batch
        for thread, at in _threads(frame, address):
            program, warp = int(batch.program[thread]), int(batch.warp[thread])
            if barrier_at(frame, thread, at, instruction).copies:
                raise instruction.unknown("copies to this mbarrier are on their way")
            del batch.barriers[program, at]
            batch.shared.give_back(program * batch.shared.size + at, SIZE, warp)

    return step


def _arrive(instruction: Instruction, flags: list[str]) -> Step:
    if instruction.operands[0] != Name("_"):
        raise instruction.unknown("a state of an mbarrier that is kept")
    if flags == ["arrive"]:
        return _on_barriers(instruction, 1, lambda barrier, count: barrier.arrive(count, instruction), 1)

    def arrive(barrier: Barrier, size: int) -> None:
        barrier.bytes += size
        barrier.arrive(1, instruction)

    return _on_barriers(instruction, 1, arrive)


def _expect(barrier: Barrier, size: int) -> None:
    barrier.bytes += size


def operation(instruction: Instruction) -> Step:
    """All but those that wait."""
    flags = _flags(instruction)
    if flags == ["init"]:
        return _init(instruction)
    if flags == ["inval"]:
        return _invalidate(instruction)
    if flags in (["arrive"], ["arrive", "expect_tx"]):
        return _arrive(instruction, flags)
    if flags == ["expect_tx"]:
        return _on_barriers(instruction, 0, _expect)
    raise instruction.unknown()


@dataclass(frozen=True)
class Poll:
    """An instruction that threads repeat until it succeeds: gives those for which it does."""

    succeeds: Callable[[Frame], Array]
    step: Step


def poll(instruction: Instruction) -> Poll:
    """`test_wait` and `try_wait` for the phase of a parity."""
    if _flags(instruction) not in (["try_wait", "parity"], ["test_wait", "parity"]):
        raise instruction.unknown()
    target, place, phase = instruction.operands[:3]
    address, parity = address_reader(place, instruction), reader(phase, "u32", instruction)
    write = writer(target, "pred", instruction)

    def succeeds(frame: Frame) -> Array:
        batch, active = frame.batch, np.flatnonzero(frame.active)
        named, parities = (np.broadcast_to(read(frame), frame.active.shape)[active] for read in (address, parity))
        names = np.stack([batch.program[active], batch.warp[active], named.astype(np.int64), parities])
        unique, first, numbers = np.unique(names, axis=1, return_index=True, return_inverse=True)
        done = np.zeros(unique.shape[1], bool)
        for number, (program, warp, at, wanted) in enumerate(unique.T.tolist()):
            barrier = barrier_at(frame, int(active[first[number]]), at, instruction)
            if wanted not in (0, 1):
                raise instruction.unknown("a parity that is neither 0 nor 1")
            if barrier.parity == wanted and barrier.may_end:
                barrier.end()
                for copy in barrier.last:
                    batch.shared.end_block(copy.place, copy.raw, 0)
            done[number] = barrier.parity != wanted
            for copy in barrier.last if done[number] else ():
                batch.shared.seen(copy.place, len(copy.raw), 1 << warp)
        found = np.zeros(len(frame.active), bool)
        found[active] = done[numbers.reshape(-1)]
        return found

    return Poll(succeeds, lambda frame: write(frame, np.ones(len(frame.active), bool)))


BUILDERS = {"mbarrier": operation}
