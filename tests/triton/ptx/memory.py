"""Loads, stores, atomics and asynchronous copies.

Source: PTX ISA 8.7, 9.7.9.8 ld, 9.7.9.11 st, 9.7.13.6 atom, 9.7.13.7 red, 9.7.9.25 Data Movement and Conversion
Instructions: Asynchronous copy, 9.7.13.1 bar.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tests.triton.ptx.floats import canonical, flush
from tests.triton.ptx.integers import Function
from tests.triton.ptx.parse import Address, Instruction, Name, Number, Operand, Vector
from tests.triton.ptx.registers import (
    KINDS,
    LOCAL_WINDOW,
    SHARED_WINDOW,
    UNSIGNED,
    Array,
    Builder,
    Frame,
    Read,
    Step,
    reader,
    width_of,
    writer,
)

_SPACES = ("global", "shared", "local", "param", "const")
_HINTS = {
    "volatile", "weak", "relaxed", "acquire", "release", "acq_rel", "gpu", "sys", "cta", "nc", "ca", "cg", "cs", "lu",
    "cv", "wb", "wt", "noftz",
}  # fmt: skip
"""What does not change the result where one thread is looked at, or threads do not meet."""


@dataclass(frozen=True)
class Access:
    """What the modifiers of a load, a store or an atomic say.

    Args:
        space: of `_SPACES`, empty for a generic address.
        kind: the type.
        count: elements of a vector.
        rest: what else they say.
    """

    space: str
    kind: str
    count: int
    rest: tuple[str, ...]


def access_of(instruction: Instruction) -> Access:
    *flags, kind = instruction.modifiers
    if kind not in KINDS:
        raise instruction.unknown()
    spaces = [flag for flag in flags if flag in _SPACES]
    vectors = [int(flag[1:]) for flag in flags if flag in ("v2", "v4")]
    hints = [flag for flag in flags if flag in _HINTS or flag.startswith(("L1::", "L2::"))]
    rest = tuple(flag for flag in flags if flag not in spaces and flag not in hints and flag not in ("v2", "v4"))
    return Access(spaces[0] if spaces else "", kind, vectors[0] if vectors else 1, rest)


def address_reader(operand: Operand, instruction: Instruction) -> Read:
    """Addresses in 64 bits."""
    if not isinstance(operand, Address):
        raise instruction.unknown()
    base, offset = operand.base, np.uint64(operand.offset % (1 << 64))
    width = getattr(base, "width", 64)
    read = reader(base, f"u{width}", instruction)
    if not offset:
        return lambda frame: np.broadcast_to(read(frame).astype(np.uint64, copy=False), frame.active.shape)
    cut = np.uint64((1 << width) - 1)
    return lambda frame: np.broadcast_to((read(frame).astype(np.uint64, copy=False) + offset) & cut, frame.active.shape)


def _elements(operand: Operand) -> tuple[Operand, ...]:
    return operand.parts if isinstance(operand, Vector) else (operand,)


def space_of(addresses: Array, instruction: Instruction) -> tuple[str, Array]:
    """Where generic addresses lead, and the addresses there."""
    if (addresses >= np.uint64(LOCAL_WINDOW)).all():
        return "local", addresses - np.uint64(LOCAL_WINDOW)
    if (addresses < np.uint64(SHARED_WINDOW)).all():
        return "global", addresses
    raise instruction.unknown("generic addresses of shared memory, or of several spaces")


def _plain_access(instruction: Instruction) -> Access:
    """What a load or a store says of itself.

    Raises:
        PtxError: more than is known.
    """
    what = access_of(instruction)
    if what.rest or what.kind in ("pred", "f16x2", "bf16x2"):
        raise instruction.unknown()
    return what


def load(instruction: Instruction) -> Step:
    what = _plain_access(instruction)
    if what.space == "param":
        return _load_parameter(instruction, what)
    read = address_reader(instruction.operands[1], instruction)
    targets = _elements(instruction.operands[0])
    if len(targets) != what.count:
        raise instruction.unknown()
    writes = [writer(item, what.kind, instruction) for item in targets]
    width = width_of(what.kind) // 8

    def step(frame: Frame) -> None:
        threads = np.flatnonzero(frame.active)
        found = _loaded(frame, what.space, threads, read(frame)[threads], width, what.count, instruction)
        whole = len(threads) == len(frame.active)
        for number, write in enumerate(writes):
            values = found[:, number]
            if not whole:
                spread = np.zeros(len(frame.active), values.dtype)
                spread[threads] = values
                values = spread
            write(frame, np.ascontiguousarray(values).view(KINDS[what.kind]))

    return step


def _loaded(
    frame: Frame, space: str, threads: Array, addresses: Array, width: int, count: int, instruction: Instruction
) -> Array:
    batch = frame.batch
    if not space:
        space, addresses = space_of(addresses, instruction)
    if space == "shared":
        places = batch.shared.places(batch.program[threads], addresses, width * count, instruction)
        return batch.shared.load(places, width, count, batch.warp[threads], instruction)
    if space == "local":
        return batch.local.load(threads, addresses, width, count, instruction)
    batch.note("loads", threads, addresses, width, count)
    return batch.memory.load(addresses, width, count, instruction)


def store(instruction: Instruction) -> Step:
    what = _plain_access(instruction)
    if what.space == "param":
        return _store_parameter(instruction, what)
    read, sources = address_reader(instruction.operands[0], instruction), _elements(instruction.operands[1])
    if len(sources) != what.count or what.space == "const":
        raise instruction.unknown()
    held = UNSIGNED[width_of(what.kind)]
    reads = [reader(item, f"b{width_of(what.kind)}", instruction) for item in sources]

    def step(frame: Frame) -> None:
        threads, batch = np.flatnonzero(frame.active), frame.batch
        values = np.stack([np.broadcast_to(one(frame), frame.active.shape)[threads] for one in reads], 1).astype(held)
        addresses, space = read(frame)[threads], what.space
        if not space:
            space, addresses = space_of(addresses, instruction)
        if space == "shared":
            size = values.dtype.itemsize * what.count
            places = batch.shared.places(batch.program[threads], addresses, size, instruction)
            batch.shared.store(places, values, batch.warp[threads], instruction)
        elif space == "local":
            batch.local.store(threads, addresses, values, instruction)
        else:
            batch.note("stores", threads, addresses, values.dtype.itemsize, what.count)
            batch.memory.store(addresses, values, instruction)

    return step


def _parameter(operand: Operand, instruction: Instruction) -> str:
    if isinstance(operand, Address) and isinstance(operand.base, Name) and not operand.offset:
        return operand.base.text
    raise instruction.unknown("a parameter that is more than a number")


def _load_parameter(instruction: Instruction, what: Access) -> Step:
    name = _parameter(instruction.operands[1], instruction)
    write = writer(instruction.operands[0], what.kind, instruction)

    def step(frame: Frame) -> None:
        if name not in frame.parameters:
            raise instruction.unknown("a parameter that has no value")
        given, kind = frame.parameters[name], np.dtype(KINDS[what.kind])
        write(frame, given.view(kind)[:: given.dtype.itemsize // kind.itemsize])  # the low bytes of what is wider

    return step


def _store_parameter(instruction: Instruction, what: Access) -> Step:
    name = _parameter(instruction.operands[0], instruction)
    read = reader(instruction.operands[1], what.kind, instruction)
    held = UNSIGNED[width_of(what.kind)]

    def step(frame: Frame) -> None:
        value = np.broadcast_to(read(frame).view(held), frame.active.shape)
        old = frame.parameters.get(name)
        frame.parameters[name] = value if old is None else np.where(frame.active, value, old)

    return step


# ----------------------------------------------------------------------------------------------------------- atomics


def _add(kind: str, space: str) -> Function:
    if kind == "f32":
        flushes = space == "global"  # as the ISA says of current implementations
        return lambda old, new: canonical(flush(flush(old) + flush(new)) if flushes else old + new)
    return np.add


def _operation(name: str, what: Access) -> Function | None:
    integer = what.kind[0] in "usb"
    if name == "add" and what.kind in ("u32", "s32", "u64", "f32", "f64"):
        return _add(what.kind, what.space)
    table: dict[str, Callable[[Array, Array], Array]] = {
        "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
        "exch": lambda old, new: new,
    }  # fmt: skip
    return table.get(name) if integer else None


def atomic(instruction: Instruction) -> Step:
    """Threads that meet at an address take turns, in the order of their numbers, for each element of a vector."""
    what = access_of(instruction)
    has_result = instruction.opcode == "atom"
    operands = instruction.operands if has_result else (None, *instruction.operands)
    swaps = what.rest == ("cas",)
    combine = _operation(what.rest[0], what) if len(what.rest) == 1 else None
    if what.space != "global" or (combine is None and not swaps) or len(operands) != 3 + swaps:
        raise instruction.unknown()
    assert operands[1] is not None
    read = address_reader(operands[1], instruction)
    if what.count > 1 and swaps:
        raise instruction.unknown()
    sources = [_elements(item) for item in operands[2:] if item is not None]
    targets = _elements(operands[0]) if operands[0] is not None else ()
    if any(len(item) != what.count for item in (*sources, targets or sources[0])):
        raise instruction.unknown()
    elements = [[reader(item[at], what.kind, instruction) for item in sources] for at in range(what.count)]
    writes = [writer(item, what.kind, instruction) for item in targets]
    dtype, width = KINDS[what.kind], width_of(what.kind) // 8

    def step(frame: Frame) -> None:
        threads, memory = np.flatnonzero(frame.active), frame.batch.memory
        first = read(frame)[threads]
        results = []
        for number, values in enumerate(elements):
            addresses = first + np.uint64(width * number)
            frame.batch.note("atomics", threads, addresses, width, 1)
            news = [np.broadcast_to(one(frame), frame.active.shape)[threads] for one in values]
            result = np.zeros(len(frame.active), dtype)
            for turn in _turns(addresses):
                old = memory.load(addresses[turn], width, 1, instruction)[:, 0].view(dtype)
                chosen = [new[turn] for new in news]
                new = np.where(old == chosen[0], chosen[1], old) if combine is None else combine(old, chosen[0])
                memory.store(addresses[turn], new.astype(dtype).view(UNSIGNED[8 * width])[:, None], instruction)
                result[threads[turn]] = old
            results.append(result)
        for write, result in zip(writes, results):
            write(frame, result)

    return step


def _turns(addresses: Array) -> list[Array]:
    """Numbers of accesses, such that no two in a list meet and each address keeps its order."""
    order = np.argsort(addresses, kind="stable")
    ordered = addresses[order]
    first = np.searchsorted(ordered, ordered, "left")
    rank = np.arange(len(addresses)) - first
    return [np.sort(order[rank == turn]) for turn in range(int(rank.max()) + 1)]


# ----------------------------------------------------------------------------------------------- asynchronous copies


@dataclass
class Copy:
    """A copy on its way: of which threads, where to, and what."""

    threads: Array
    places: Array
    raw: Array


@dataclass
class Group:
    """Copies that one commit has made a group of, for some threads."""

    threads: Array
    copies: list[Copy] = field(default_factory=list)


def copy_asynchronously(instruction: Instruction) -> Step:
    if "commit_group" in instruction.modifiers:
        return _commit
    if instruction.modifiers[-1] in ("wait_group", "wait_all"):
        return _wait(instruction)
    known = {"async", "ca", "cg", "shared", "shared::cta", "global"}
    flags = [flag for flag in instruction.modifiers if not flag.startswith("L2::")]
    to, source, size, *taken = instruction.operands
    if set(flags) - known or not isinstance(size, Number) or size.value not in (4, 8, 16) or len(taken) > 1:
        raise instruction.unknown()
    targets, sources = address_reader(to, instruction), address_reader(source, instruction)
    used = reader(taken[0], "u32", instruction) if taken else None
    count = size.value

    def step(frame: Frame) -> None:
        batch, threads = frame.batch, np.flatnonzero(frame.active)
        places = batch.shared.places(batch.program[threads], targets(frame)[threads], count, instruction)
        wanted = (
            np.full(len(threads), count) if used is None else np.broadcast_to(used(frame), frame.active.shape)[threads]
        )
        if ((wanted != 0) & (wanted != count)).any():
            raise instruction.unknown("a copy of some of the bytes")
        raw = np.zeros((len(threads), count), np.uint8)
        some = wanted != 0
        if some.any():
            width = min(count, 8)
            batch.note("loads", threads[some], sources(frame)[threads[some]], width, count // width)
            found = batch.memory.load(sources(frame)[threads[some]], width, count // width, instruction)
            raw[some] = np.ascontiguousarray(found).view(np.uint8).reshape(-1, count)
        batch.shared.begin(places, count, batch.warp[threads], instruction)
        batch.open_copies.append(Copy(threads, places, raw))

    return step


def _commit(frame: Frame) -> None:
    """The copies that the active threads have begun since their last commit become a group of theirs."""
    batch, mine = frame.batch, frame.active
    group = Group(mine, [part for copy in batch.open_copies if (part := _of(copy, mine)) is not None])
    batch.open_copies = [part for copy in batch.open_copies if (part := _of(copy, ~mine)) is not None]
    batch.groups.append(group)


def _of(copy: Copy, threads: Array) -> Copy | None:
    """The part of a copy that some threads have made."""
    chosen = threads[copy.threads]
    if chosen.all():
        return copy
    return Copy(copy.threads[chosen], copy.places[chosen], copy.raw[chosen]) if chosen.any() else None


def _wait(instruction: Instruction) -> Step:
    everything = instruction.modifiers[-1] == "wait_all"
    left = 0 if everything else getattr(instruction.operands[0], "value", None)
    if left is None:
        raise instruction.unknown()

    def step(frame: Frame) -> None:
        batch = frame.batch
        if everything:
            _commit(frame)
        newer = np.zeros(len(frame.active), np.int64)
        for group in reversed(batch.groups):
            mine = group.threads & frame.active
            over = mine & (newer >= left)
            newer += mine
            for copy in group.copies:
                part = _of(copy, over)
                if part is not None:
                    batch.shared.end(part.places, part.raw, batch.warp[part.threads])
            group.copies = [part for copy in group.copies if (part := _of(copy, ~over)) is not None]
            group.threads = group.threads & ~over
        batch.groups = [group for group in batch.groups if group.threads.any()]

    return step


def nothing(instruction: Instruction) -> Step:
    """Instructions that order or prefetch what here is in order."""
    return lambda frame: None


def _copy(instruction: Instruction) -> Step:
    if instruction.modifiers[0] != "async":
        raise instruction.unknown()
    return copy_asynchronously(instruction)


BUILDERS: dict[str, Builder] = {
    "ld": load,
    "st": store,
    "atom": atomic,
    "red": atomic,
    "cp": _copy,
    "membar": nothing,
    "prefetch": nothing,
}
