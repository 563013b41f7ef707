"""Runs a kernel's programs, many at a time, all threads of them in lockstep.

Threads that branch apart are groups, each with the number of its next instruction; the group that is furthest behind,
by the order of `order`, goes on until it meets another one, so groups come together again where their ways do. A thread
at a barrier waits until all threads of its program that have not returned are at one; one that asks in vain whether an
mbarrier has ended its phase asks again when no other can go on.

Source: PTX ISA 8.7, 9.7.12 Control Flow, 9.7.13.1 bar, 10 Special Registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.triton.ptx import (
    conversions,
    floats,
    integers,
    matrices,
    mbarriers,
    memory,
    tensormaps,
    warpgroups,
    warps,
)
from tests.triton.ptx.mbarriers import Barrier as SharedBarrier
from tests.triton.ptx.mbarriers import Poll
from tests.triton.ptx.memory import Copy, Group
from tests.triton.ptx.order import leaders_of, ranks_of
from tests.triton.ptx.parse import Function, Instruction, Module, Name, PtxError, Register, Vector
from tests.triton.ptx.registers import Array, Builder, Frame, Step
from tests.triton.ptx.shared import SharedMemory
from tests.triton.ptx.spaces import GlobalMemory, LocalMemory
from tests.triton.ptx.tensormaps import Store
from tests.triton.ptx.watching import Watch

THREADS_AT_ONCE = 8192
"""More programs run side by side up to about so many threads."""
MOST_STEPS = 2_000_000
"""Instructions of a batch of programs, beyond which a loop is taken for endless."""

_BUILDERS: dict[str, Builder] = {
    **integers.BUILDERS, **floats.BUILDERS, **conversions.BUILDERS, **memory.BUILDERS, **warps.BUILDERS,
    **matrices.BUILDERS, **mbarriers.BUILDERS, **tensormaps.BUILDERS, **warpgroups.BUILDERS,
}  # fmt: skip


def build(instruction: Instruction) -> Step:
    """What an instruction that is no jump does.

    Raises:
        PtxError: it is not known.
    """
    name, kind = instruction.opcode, instruction.modifiers[-1] if instruction.modifiers else ""
    if "cc" in instruction.modifiers and name in ("add", "sub"):
        return integers.with_carry(name == "sub")(instruction)
    if name in floats.ARITHMETIC and kind.startswith(("f", "bf")):
        return floats.ARITHMETIC[name](instruction)
    if name in integers.ARITHMETIC:
        return integers.ARITHMETIC[name](instruction)
    builder = _BUILDERS.get(name)
    if builder is None:
        raise instruction.unknown()
    return builder(instruction)


@dataclass(frozen=True)
class Jump:
    target: int


@dataclass(frozen=True)
class Barrier:
    pass


@dataclass(frozen=True)
class Return:
    pass


@dataclass(frozen=True)
class Call:
    name: str
    results: tuple[str, ...]
    arguments: tuple[str, ...]


Action = Step | Jump | Barrier | Return | Call | Poll


@dataclass(frozen=True)
class Line:
    """An instruction ready to be executed."""

    action: Action
    guard: Register | None
    negated: bool
    instruction: Instruction


def _names(operand: object, instruction: Instruction) -> tuple[str, ...]:
    parts = operand.parts if isinstance(operand, Vector) else (operand,)
    if not all(isinstance(part, Name) for part in parts):
        raise instruction.unknown()
    return tuple(part.text for part in parts if isinstance(part, Name))


def _action(instruction: Instruction, function: Function) -> Action:
    name, operands = instruction.opcode, instruction.operands
    if name == "bra" and isinstance(operands[0], Name) and operands[0].text in function.labels:
        return Jump(function.labels[operands[0].text])
    if name in ("ret", "exit") and not operands:
        return Return()
    if name == "bar" and instruction.modifiers == ("sync",) and instruction.text.split()[-1] == "0":
        return Barrier()
    if name == "cp" and instruction.modifiers[:2] == ("async", "bulk"):
        return tensormaps.copy_in_bulk(instruction)
    if name == "bar" and instruction.modifiers == ("warp", "sync"):
        warps.members(instruction, 0)
        return lambda frame: None
    if name == "mbarrier" and "wait" in instruction.modifiers[0]:
        return mbarriers.poll(instruction)
    if name == "call":
        *results, called, arguments = operands if isinstance(operands[-1], Vector) else (*operands, Vector(()))
        found = tuple(item for operand in results for item in _names(operand, instruction))
        return Call(_names(called, instruction)[0], found, _names(arguments, instruction))
    return build(instruction)


def _in_other_proxy(instruction: Instruction) -> bool:
    return instruction.opcode == "wgmma" or instruction.modifiers[:2] == ("async", "bulk")


class Code:
    """A text, ready to be executed.

    Args:
        module: what it says.

    Attributes:
        doubts: what a launch has had the assembler repair, or a chip bear, though the ISA does not allow it.

    Raises:
        PtxError: it holds an instruction that is not known.
    """

    def __init__(self, module: Module) -> None:
        self.module, self.doubts = module, set[str]()
        self.lines = {name: self._lines(function) for name, function in module.functions.items()}
        self.leaders = {name: frozenset(leaders_of(function)) for name, function in module.functions.items()}
        self.ranks = {name: ranks_of(function) for name, function in module.functions.items()}
        self.has_proxies = any(_in_other_proxy(i) for function in module.functions.values() for i in function.code)
        self.constants = {name: np.frombuffer(bytearray(raw), np.uint8) for name, raw in module.constants.items()}

    def _lines(self, function: Function) -> list[Line]:
        return [Line(_action(i, function), i.guard, i.negated, i) for i in function.code]

    def launch(
        self, grid: tuple[int, int, int], threads: int, shared: int, arguments: Sequence[int],
        places: Sequence[tuple[int, int]],
    ) -> list[str]:  # fmt: skip
        """Run all programs of a grid.

        Args:
            threads: of each program.
            shared: bytes of each program.
            arguments: 64-bit values of the parameters.
            places: address and bytes of the memory that may be accessed.

        Returns:
            What would be left to chance on a GPU, where programs run side by side.

        Raises:
            PtxError: what a GPU would refuse, or leave open.
        """
        held = [(array.ctypes.data, array.nbytes) for array in self.constants.values()]
        space = GlobalMemory([*places, *held])
        count = int(np.prod(grid))
        step = max(1, THREADS_AT_ONCE // threads)
        watch = Watch(self.module.entry)
        with np.errstate(all="ignore"):
            for first in range(0, count, step):
                programs = np.arange(first, min(first + step, count))
                Batch(self, grid, programs, threads, shared, space, watch).run(arguments)
        return watch.judge()


@dataclass
class _Groups:
    """Threads of a function that have parted, by the number of their next instruction.

    Attributes:
        waiting: at the barrier in front of it.
        polling: it is to be asked again.
        moves_at_last: what the batch had counted of barriers passed and questions answered when it was asked last.
    """

    ready: dict[int, Array]
    waiting: dict[int, Array] = field(default_factory=dict)
    polling: dict[int, Array] = field(default_factory=dict)
    moves_at_last: int = -1


class Batch:
    """Programs that run at the same time.

    Attributes:
        program: which of them each thread belongs to.
        warp: the number of each thread's warp in its program.
        open_copies, groups: asynchronous copies on their way.
        barriers: in shared memory, by program and address.
        maps: addresses of descriptors that have been written, and not been acquired since.
        stores: of blocks, on their way.
        committed: groups of stores of blocks that each thread has made.
    """

    def __init__(
        self, code: Code, grid: tuple[int, int, int], programs: Array, threads: int, shared: int, space: GlobalMemory,
        watch: Watch,
    ) -> None:  # fmt: skip
        self.code, self.memory = code, space
        self.threads, count = threads, len(programs) * threads
        self.program = np.repeat(np.arange(len(programs)), threads)
        inside = np.tile(np.arange(threads), len(programs))
        self.warp = inside // warps.WARP
        self.shared, self.local = SharedMemory(len(programs), shared, code.has_proxies), LocalMemory(count)
        self.barriers: dict[tuple[int, int], SharedBarrier] = {}
        self.maps: set[int] = set()
        self.stores: list[Store] = []
        self.committed = np.zeros(count, np.int64)
        self.open_copies: list[Copy] = []
        self.groups: list[Group] = []
        self.steps = self.moves = 0
        self._watch, self._numbers, self._epochs = watch, programs, np.zeros(len(programs), np.int64)
        numbers = np.repeat(programs, threads)
        zero = np.zeros(count, np.uint32)
        self._special = {
            "%tid.x": inside, "%tid.y": zero, "%tid.z": zero,
            "%ntid.x": zero + threads, "%ntid.y": zero + 1, "%ntid.z": zero + 1,
            "%ctaid.x": numbers % grid[0], "%ctaid.y": numbers // grid[0] % grid[1],
            "%ctaid.z": numbers // (grid[0] * grid[1]),
            "%nctaid.x": zero + grid[0], "%nctaid.y": zero + grid[1], "%nctaid.z": zero + grid[2],
            "%laneid": inside % warps.WARP,
        }  # fmt: skip
        self._special = {name: value.astype(np.uint32) for name, value in self._special.items()}

    def doubt(self, what: str, instruction: Instruction) -> None:
        """Tell what is no error only because chips, or the assembler, are known to be kind to it."""
        self.code.doubts.add(f"{what}: {instruction.text}")

    def note(self, kind: str, threads: Array, addresses: Array, width: int, count: int) -> None:
        """Note accesses of threads to `count` elements of `width` bytes in global memory."""
        programs = self.program[threads]
        who = self._numbers[programs], self.warp[threads], self._epochs[programs]
        self._watch.note(kind, addresses, width, count, *who)

    def epoch_of(self, program: int) -> int:
        """How many barriers a program has passed."""
        return int(self._epochs[program])

    def _meet(self, programs: Array) -> None:
        """All threads of some programs are at a barrier."""
        self.shared.barrier(programs)
        self._epochs[programs] += 1

    def special(self, name: str, instruction: Instruction) -> Array:
        """A special register of all threads."""
        found = self._special.get(name)
        if found is None:
            raise instruction.unknown()
        return found

    def address_of(self, name: str, frame: Frame, instruction: Instruction) -> int:
        """Where a variable begins in its own space."""
        if name in frame.function.local:
            offset = frame.depot
            for other, size in frame.function.local.items():
                if other == name:
                    return offset
                offset += -(-size // 16) * 16
        if name in self.code.module.shared and len(self.code.module.shared) == 1:
            return 0
        if name in self.code.constants:
            return int(self.code.constants[name].ctypes.data)
        raise instruction.unknown("a name that is not known")

    def run(self, arguments: Sequence[int]) -> None:
        """Run the programs to their end."""
        function = self.code.module.functions[self.code.module.entry]
        frame = Frame(self, function, np.ones(len(self.program), bool))
        if len(function.parameters) < len(arguments):
            raise PtxError(f"{function.name} takes {len(function.parameters)} parameters, not {len(arguments)}")
        for name, value in zip(function.parameters, arguments):
            frame.parameters[name] = np.full(len(self.program), value, np.uint64)
        self._execute(frame)
        if self.open_copies or any(group.copies for group in self.groups):
            raise PtxError(f"{function.name} ends before asynchronous copies have been waited for")
        if any(barrier.copies for barrier in self.barriers.values()):
            raise PtxError(f"{function.name} ends before copies of blocks have been waited for")
        tensormaps.finish(self, function.name)

    def _execute(self, frame: Frame) -> None:
        """Run a function until all its threads have returned."""
        self.local.reach(frame.depot + 16 * len(frame.function.local) + frame.local_bytes)
        lines = self.code.lines[frame.function.name]
        frame.live = frame.active.copy()
        groups = _Groups({0: frame.active.copy()})
        ranks = self.code.ranks[frame.function.name]
        while groups.ready or groups.waiting or groups.polling:
            if not groups.ready:
                self._release(frame, groups, lines)
            at = min(groups.ready, key=ranks.__getitem__)
            self._go_on(frame, lines, at, groups.ready.pop(at), groups)
        warpgroups.finish(frame)

    def _go_on(self, frame: Frame, lines: list[Line], at: int, group: Array, groups: _Groups) -> None:
        """Run a group until it jumps, parts, waits, or comes to a place where others may go first."""
        whole = bool((group == frame.live).all())
        leaders, first, ready = self.code.leaders[frame.function.name], at, groups.ready
        while not (ready and at in leaders and at != first):
            line = lines[at]
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise line.instruction.unknown("an endless loop")
            chosen = group
            if line.guard is not None:
                value = frame.held(line.guard)
                chosen = group & (~value if line.negated else value)
                if not chosen.any():
                    at += 1
                    continue
            action = line.action
            frame.active = chosen
            frame.whole = whole and (chosen is group or bool((chosen == group).all()))
            if callable(action):
                action(frame)
                at += 1
                continue
            left = group & ~chosen
            if isinstance(action, Call):
                self._call(frame, action, line.instruction)
                at += 1
            elif isinstance(action, Poll):
                group = self._poll(frame, action, at, group, groups)
                if not group.any():
                    return
                whole = bool((group == frame.live).all())
                at += 1
            elif isinstance(action, Barrier):
                if chosen is not group:
                    raise line.instruction.unknown("a barrier that not all threads come to")
                if self._all_there(frame, group):
                    at += 1
                    continue
                _join(groups.waiting, at + 1, group)
                return
            else:
                if isinstance(action, Return):
                    frame.live = frame.live & ~chosen
                else:
                    _join(ready, action.target, chosen)
                if left.any():
                    _join(ready, at + 1, left)
                return
        _join(ready, at, group)

    def _poll(self, frame: Frame, action: Poll, at: int, group: Array, groups: _Groups) -> Array:
        """Those of a group that go on from an instruction which some threads have to repeat."""
        done = action.succeeds(frame)
        failed = frame.active & ~done
        if done.any():
            self.moves += 1
            frame.active, frame.whole = frame.active & done, frame.whole and not failed.any()
            action.step(frame)
        if failed.any():
            _join(groups.polling, at, failed)
        return group & ~failed

    def _all_there(self, frame: Frame, group: Array) -> bool:
        """Whether a barrier holds nobody up."""
        by_program = group.reshape(-1, self.threads)
        some = by_program.any(1)
        if (by_program[some] != frame.live.reshape(-1, self.threads)[some]).any():
            return False
        self._meet(np.flatnonzero(some))
        return True

    def _release(self, frame: Frame, groups: _Groups, lines: list[Line]) -> None:
        """Let the programs go on whose threads all wait at a barrier; those that poll ask again."""
        met, waiting = np.zeros(len(self._numbers), np.int64), np.zeros(len(frame.live), bool)
        for group in groups.waiting.values():
            met += group.reshape(-1, self.threads).any(1)
            waiting |= group
        if (met > 1).any():
            at = min(groups.waiting) - 1
            raise lines[at].instruction.unknown("threads of a program wait at different barriers")
        there = (waiting == frame.live).reshape(-1, self.threads).all(1) & (met > 0)
        if there.any():
            self._meet(np.flatnonzero(there))
            self.moves += 1
        released = np.repeat(there, self.threads)
        for at, group in list(groups.waiting.items()):
            _split(groups.waiting, groups.ready, at, group & released)
        if groups.polling and self.moves == groups.moves_at_last:
            raise lines[min(groups.polling)].instruction.unknown("threads wait for ever")
        groups.moves_at_last = self.moves
        for at in list(groups.polling):
            _join(groups.ready, at, groups.polling.pop(at))

    def _call(self, frame: Frame, call: Call, instruction: Instruction) -> None:
        function = self.code.module.functions.get(call.name)
        if function is None or len(function.parameters) != len(call.arguments):
            raise instruction.unknown("a function that is not known")
        depot = frame.depot + 16 * len(frame.function.local) + frame.local_bytes
        inner = Frame(self, function, frame.active, -(-depot // 16) * 16)
        for name, argument in zip(function.parameters, call.arguments):
            inner.parameters[name] = frame.parameters[argument]
        self._execute(inner)
        for name, outer in zip(function.results, call.results, strict=True):
            old, new = frame.parameters.get(outer), inner.parameters[name]
            frame.parameters[outer] = new if old is None else np.where(frame.active, new, old)


def _split(groups: dict[int, Array], others: dict[int, Array], at: int, chosen: Array) -> None:
    """Move some threads of the group at a place."""
    if chosen.any():
        _join(others, at, chosen)
        rest = groups.pop(at) & ~chosen
        if rest.any():
            groups[at] = rest


def _join(groups: dict[int, Array], at: int, group: Array) -> None:
    groups[at] = groups[at] | group if at in groups else group
