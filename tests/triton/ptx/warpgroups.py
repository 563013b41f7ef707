"""Products of matrices by four warps at a time, which go on while the chip multiplies.

A product reads shared memory as late as the wait for its group; until then nobody may store over what it reads. Its
sums, and a left operand in registers, may not be touched so long: who uses the first has the assembler add a wait, who
writes to the other one gets another register. Both are told by `Code.doubts`. Between a wait and the next product lies
a `wgmma.fence`; what registers are written behind it is not looked at, as LLVM places copies there, which the assembler
orders. As with `matrices`, products are exact, and each instruction rounds its sums once; with 8-bit floats a chip
keeps fewer bits.

Matrices in shared memory are made of chunks of 16 bytes, eight of them one below the other. Descriptors say how far
apart such columns lie (`leading`, `stride`) and within how many bytes chunks change places:

    span   operand by its sum                            operand by rows or columns
    16     eight rows 16 apart, `leading` to the right    eight of the sum 16 apart, `leading` to the next eight
    more   eight rows `span` apart, 16 to the right       `span` bytes side by side, `leading` to the next ones
           `stride` to the next eight rows                `stride` to the next eight of the sum (16: to the right)

Source: PTX ISA 8.7, 9.7.15 Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions: matrix descriptor
format, strides, register fragments, wgmma.mma_async, fence, commit_group, wait_group; canonical layouts of
CUTLASS, include/cute/arch/mma_sm90_desc.hpp (NVIDIA, BSD 3-Clause), in words.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.triton.ptx.floats import canonical
from tests.triton.ptx.matrices import left, numbers, values_of
from tests.triton.ptx.parse import Instruction, Number, PtxError, Register, Vector
from tests.triton.ptx.parse import Operand as Written
from tests.triton.ptx.registers import Array, Builder, Frame, InFlight, Read, Step, reader
from tests.triton.ptx.shared import CHUNK
from tests.triton.ptx.tensormaps import swizzled
from tests.triton.ptx.warps import WARP

GROUP = 4 * WARP
ROWS, BYTES = 64, 32
"""Rows of a product, and bytes of its operands along the sum."""
_SHAPE = re.compile(r"m64n(\d+)k(\d+)")
_WIDTHS = {"f16": 2, "bf16": 2, "tf32": 4, "s8": 1, "u8": 1, "e4m3": 1, "e5m2": 1}
_SUMS = {"f16": {"f16", "f32"}, "e4m3": {"f16", "f32"}, "e5m2": {"f16", "f32"}, "s8": {"s32"}, "u8": {"s32"}}
_SPANS = {0: 16, 1: 128, 2: 64, 3: 32}


@functools.cache
def _places(columns: int) -> tuple[Array, Array]:
    """Rows and columns of what each thread of a warpgroup holds of the sums, (elements, threads)."""
    thread = np.arange(GROUP)
    element = np.arange(columns // 2)[:, None]
    rows = 16 * (thread // WARP) + thread % WARP // 4 + 8 * (element // 2 % 2)
    return rows, 8 * (element // 4) + thread % 4 * 2 + element % 2


@functools.cache
def _offsets(count: int, depth: int, by_sum: bool, leading: int, stride: int, span: int) -> Array:
    """Where chunks of an operand begin, in bytes behind its start: (rows, 2) by the sum, else (depth, rows / 8)."""
    if by_sum:
        row, chunk = np.arange(count)[:, None], np.arange(BYTES // CHUNK)
        apart = leading if span == CHUNK else CHUNK
        found: Array = row // 8 * stride + row % 8 * span + chunk * apart
        return found
    at, chunk = np.arange(depth)[:, None], np.arange(count // 8)
    if span == CHUNK:
        found = at % 8 * CHUNK + at // 8 * leading + chunk * stride
        return found
    side = span // CHUNK
    found = at % 8 * span + at // 8 * stride + chunk % side * CHUNK + chunk // side * leading
    return found


@dataclass(frozen=True)
class Operand:
    """How a product reads one of its operands.

    Args:
        kind: of its elements.
        count, depth: rows of it, and elements along the sum.
        by_sum: elements along the sum lie side by side.
        descriptor: where it says how it lies in shared memory; None with registers.
        registers: of a left operand that lies in them.
    """

    kind: str
    count: int
    depth: int
    by_sum: bool
    descriptor: Read | None
    registers: tuple[Read, ...] = ()

    def chunks(self, frame: Frame, rows: Array, instruction: Instruction) -> Array | None:
        """Numbers of the chunks of shared memory for each warpgroup."""
        if self.descriptor is None:
            return None
        batch = frame.batch
        said = np.broadcast_to(self.descriptor(frame), frame.active.shape)[rows]
        if (said != said[:, :1]).any():
            raise instruction.unknown("threads of a warpgroup have different descriptors")
        first = said[:, 0].astype(np.int64)
        form = first & ~0x3FFF
        found = [self._laid(int(one), instruction) for one in (form[:1] if (form == form[0]).all() else form)]
        bytes_at = ((first & 0x3FFF) << 4)[:, None, None] + np.stack([offsets for offsets, _ in found])
        if (bytes_at + CHUNK > batch.shared.size).any():
            raise instruction.unknown(f"an operand outside of the {batch.shared.size} bytes of shared memory")
        chunks = np.concatenate(
            [swizzled(part, found[at % len(found)][1]) for at, part in enumerate(bytes_at[:, None] // CHUNK)]
        )
        return chunks + (batch.program[rows[:, 0]] * (batch.shared.size // CHUNK))[:, None, None]

    def _laid(self, form: int, instruction: Instruction) -> tuple[Array, int]:
        leading, stride = ((form >> at & 0x3FFF) << 4 for at in (16, 32))
        span, rest = _SPANS[form >> 62 & 3], form >> 46 & 0xFFFF
        if rest:
            raise instruction.unknown("a matrix that does not begin where its pattern does")
        return _offsets(self.count, self.depth, self.by_sum, leading, stride, span), span

    def held(self, frame: Frame, rows: Array) -> Array:
        """What registers hold now, (registers, warpgroups, threads)."""
        if not self.registers:
            return np.zeros((0, *rows.shape), np.uint32)
        return np.stack([np.broadcast_to(read(frame), frame.active.shape)[rows] for read in self.registers])

    def values(self, frame: Frame, rows: Array, chunks: Array | None, held: Array) -> Array:
        """The matrices (warpgroups, rows, depth), in registers as these held them, in shared memory as they are now."""
        if chunks is None:
            fragment = left(16, self.depth, 4 // _WIDTHS[self.kind])
            by_warp = values_of(self.kind, held.reshape(len(held), -1, WARP))
            return fragment.gather(by_warp).reshape(len(rows), ROWS, self.depth)
        raw = np.ascontiguousarray(frame.batch.shared.read(chunks)).view(f"u{_WIDTHS[self.kind]}")
        whole = numbers(self.kind, raw.reshape(len(rows), chunks.shape[1], -1))
        return whole if self.by_sum else whole.swapaxes(1, 2)


@dataclass
class Sums:
    """What products add up in some registers of a frame, for all warpgroups of the batch.

    Attributes:
        values: (warpgroups, rows, columns), of those that products are on their way for.
        open: how many are.
        held: the registers.
    """

    registers: tuple[Register, ...]
    kind: str
    values: Array
    open: Array
    held: tuple[InFlight, ...] = ()


@dataclass
class Product:
    """One instruction on its way.

    Attributes:
        groups: numbers of the warpgroups.
        held: a left operand in registers.
        open: for which of them it is still to be done.
        number: of the group of products that it is in, per warpgroup; -1 before it is in one.
    """

    step: _Multiply
    sums: Sums
    groups: Array
    chunks: tuple[Array | None, Array | None]
    adds: Array
    held: Array
    open: Array
    number: Array


@dataclass
class State:
    """Products of a frame.

    Attributes:
        committed: groups of products per warpgroup.
        fenced: warpgroups that have passed a fence since they waited last.
    """

    committed: Array
    fenced: Array
    products: list[Product] = field(default_factory=list)
    sums: dict[tuple[str, tuple[Register, ...]], Sums] = field(default_factory=dict)


def _state(frame: Frame) -> State:
    if frame.products is None:
        count = len(frame.active) // GROUP
        frame.products = State(np.zeros(count, np.int64), np.zeros(count, bool))
    assert isinstance(frame.products, State)
    return frame.products


def _groups(frame: Frame, instruction: Instruction) -> Array:
    """Numbers of the active warpgroups, all of whose threads must be."""
    if len(frame.active) % GROUP or frame.batch.threads % GROUP:
        raise instruction.unknown("warps that are no warpgroup")
    by_group = frame.active.reshape(-1, GROUP)
    some = by_group.any(1)
    if not by_group[some].all():
        raise instruction.unknown("threads of a warpgroup are elsewhere")
    return np.flatnonzero(some)


def _rows(groups: Array) -> Array:
    return groups[:, None] * GROUP + np.arange(GROUP)


class _Multiply:
    """`wgmma.mma_async`."""

    def __init__(self, instruction: Instruction) -> None:
        self.instruction = instruction
        self.saturates = "satfinite" in instruction.modifiers
        flags = [flag for flag in instruction.modifiers if flag != "satfinite"]
        shape = (
            _SHAPE.fullmatch(flags[3]) if len(flags) == 7 and flags[:3] == ["mma_async", "sync", "aligned"] else None
        )
        if shape is None:
            raise instruction.unknown()
        self.kind, *kinds = flags[4:]
        self.columns, depth = map(int, shape.groups())
        if not all(self._fits(kind, depth) for kind in kinds) or (kinds[0] != kinds[1] and _WIDTHS[kinds[0]] > 1):
            raise instruction.unknown()
        target, a, b, adds, *scales = instruction.operands
        if not isinstance(target, Vector) or not all(isinstance(part, Register) for part in target.parts):
            raise instruction.unknown()
        self.target = tuple(part for part in target.parts if isinstance(part, Register))
        count = self.columns // (4 if self.kind == "f16" else 2)
        if len(self.target) != count or self.columns % 8 or not 8 <= self.columns <= 256:
            raise instruction.unknown()
        self.adds = reader(adds, "pred", instruction)
        self._place(kinds, depth, a, b, self._numbers(scales))

    def _fits(self, kind: str, depth: int) -> bool:
        return depth * _WIDTHS.get(kind, 0) == BYTES and self.kind in _SUMS.get(kind, {"f32"})

    def _numbers(self, scales: Sequence[Written]) -> list[int]:
        if not all(isinstance(item, Number) for item in scales):
            raise self.instruction.unknown()
        return [item.value for item in scales if isinstance(item, Number)]

    def _place(self, kinds: list[str], depth: int, a: Written, b: Written, said: list[int]) -> None:
        """Signs of the operands, and which of them lie by rows or columns."""
        instruction = self.instruction
        turns = 0 if _WIDTHS[kinds[0]] != 2 else 1 if isinstance(a, Vector) else 2
        signs = 0 if self.kind == "s32" else 2
        if len(said) != signs + turns or not all(sign in (1, -1) for sign in said[:signs]):
            raise instruction.unknown()
        self.sign = int(np.prod(said[:signs], initial=1))
        turned = [0, 0, *said[signs:]][-2:] if turns != 1 else [0, said[-1]]
        self.written = a.parts if isinstance(a, Vector) else ()
        if isinstance(a, Vector):
            parts = tuple(reader(item, "b32", instruction) for item in a.parts)
            self.left = Operand(kinds[0], ROWS, depth, True, None, parts)
            if len(parts) != 4:
                raise instruction.unknown()
        else:
            self.left = Operand(kinds[0], ROWS, depth, not turned[0], reader(a, "b64", instruction))
        self.right = Operand(kinds[1], self.columns, depth, not turned[1], reader(b, "b64", instruction))

    def __call__(self, frame: Frame) -> None:
        """Begin."""
        groups, state, instruction = _groups(frame, self.instruction), _state(frame), self.instruction
        rows, batch = _rows(groups), frame.batch
        held = self.left.held(frame, rows)  # of which the sums may be one, as both are 0
        sums = self._sums(frame, state)
        fresh = groups[sums.open[groups] == 0]
        if not state.fenced[groups].all():
            raise instruction.unknown("no wgmma.fence since the last wait")
        if len(fresh):
            self._take(frame, sums, fresh)
        chunks = tuple(part.chunks(frame, rows, instruction) for part in (self.left, self.right))
        warp = batch.warp[rows[:, ::WARP]].astype(np.uint32)
        names = (np.uint32(1) << warp).sum(1, dtype=np.uint32)
        for part in chunks:
            if part is not None and batch.shared.begin_read(part.reshape(len(groups), -1), names, instruction):
                batch.doubt("no fence.proxy.async behind cp.async", instruction)
        adds = np.broadcast_to(self.adds(frame), frame.active.shape)[rows]
        if (adds != adds[:, :1]).any():
            raise instruction.unknown("threads of a warpgroup do not agree whether to add")
        sums.open[groups] += 1
        every, none = np.ones(len(groups), bool), np.full(len(groups), -1)
        state.products.append(Product(self, sums, groups, (chunks[0], chunks[1]), adds[:, 0], held, every, none))

    def _sums(self, frame: Frame, state: State) -> Sums:
        found = state.sums.get((self.kind, self.target))
        if found is None:
            kind = {"s32": np.int32}.get(self.kind, np.float32)
            shape = len(frame.active) // GROUP, ROWS, self.columns
            found = Sums(self.target, self.kind, np.zeros(shape, kind), np.zeros(shape[0], np.int64))
            state.sums[self.kind, self.target] = found
        return found

    def _take(self, frame: Frame, sums: Sums, fresh: Array) -> None:
        """The sums of some warpgroups leave their registers."""
        rows, own = _rows(fresh), np.zeros(len(frame.active), bool)
        own[rows] = True
        held = np.stack([np.broadcast_to(frame.held(item).view(np.uint32), own.shape)[rows] for item in self.target])
        if sums.kind == "f16":
            values: Array = values_of("f16", held)
        else:
            values = held.view(sums.values.dtype)
        sums.values[fresh[:, None, None], *_places(self.columns)] = values.swapaxes(0, 1)
        if sums.held and frame.in_flight.get(self.target[0].name) is sums.held[0]:
            for item in sums.held:
                item.threads = item.threads | own
            return
        if any(item.name in frame.in_flight for item in self.target):
            raise self.instruction.unknown("registers of sums of another shape")
        wait = functools.partial(_wait_early, sums=sums, instruction=self.instruction)
        sums.held = tuple(InFlight(frame, item.name, frame.held(item), own, wait) for item in self.target)
        for item, one in zip(self.target, sums.held):
            frame.in_flight[item.name] = frame.registers[item.name] = one  # type: ignore[assignment]

    def finish(self, frame: Frame, product: Product, chosen: Array) -> None:
        """Multiply, for some of a product's warpgroups."""
        groups, batch = product.groups[chosen], frame.batch
        rows, chunks = _rows(groups), [part if part is None else part[chosen] for part in product.chunks]
        held, product.open[chosen] = product.held[:, chosen], False
        if self._written(frame, rows, held):
            batch.doubt("a left operand in registers is written before it has been waited for", self.instruction)
        x, y = (part.values(frame, rows, at, held) for part, at in zip((self.left, self.right), chunks))
        for part in chunks:
            if part is not None:
                batch.shared.end_read(part.reshape(len(groups), -1))
        total = np.matmul(x.astype(np.float64), y.swapaxes(1, 2).astype(np.float64)).astype(x.dtype)
        old = product.sums.values[groups].astype(total.dtype)
        total = np.where(product.adds[chosen][:, None, None], self.sign * total + old, self.sign * total)
        product.sums.values[groups] = self._rounded(total)
        product.sums.open[groups] -= 1

    def _written(self, frame: Frame, rows: Array, held: Array) -> bool:
        """Whether a left operand in registers is another one than it was."""
        others = [
            read(frame)[rows] != then
            for read, item, then in zip(self.left.registers, self.written, held)
            if item not in self.target
        ]
        return bool(np.any(others))

    def _rounded(self, total: Array) -> Array:
        if self.kind == "s32":
            info = np.iinfo(np.int32)
            return (np.clip(total, info.min, info.max) if self.saturates else total).astype(np.int32)
        made = canonical(total.astype(np.float32))
        return made if self.kind == "f32" else made.astype(np.float16).astype(np.float32)


def _give_back(frame: Frame, sums: Sums, groups: Array) -> None:
    """Sums that nothing is on its way for any more return to their registers."""
    rows, own = _rows(groups), np.zeros(len(frame.active), bool)
    own[rows] = True
    made = sums.values[groups[:, None, None], *_places(sums.values.shape[2])].swapaxes(0, 1)
    if sums.kind == "f16":
        halves = made.astype(np.float16).view(np.uint16).astype(np.uint32)
        bits = halves[::2] | halves[1::2] << np.uint32(16)
    else:
        bits = np.ascontiguousarray(made).view(np.uint32)
    for item, one, mine in zip(sums.registers, sums.held, bits, strict=True):
        whole = one.bits.copy() if one.bits.shape == own.shape else np.full(own.shape, one.bits)
        whole[rows] = mine
        one.bits, one.threads = whole, one.threads & ~own
        if not one.threads.any():
            del frame.in_flight[item.name]
            frame.registers[item.name] = whole


def _fence(instruction: Instruction) -> Step:
    def step(frame: Frame) -> None:
        _state(frame).fenced[_groups(frame, instruction)] = True

    return step


def _commit(instruction: Instruction) -> Step:
    def step(frame: Frame) -> None:
        groups, state = _groups(frame, instruction), _state(frame)
        for product in state.products:
            mine = np.isin(product.groups, groups) & (product.number < 0)
            product.number[mine] = state.committed[product.groups[mine]]
        state.committed[groups] += 1

    return step


def _wait(instruction: Instruction) -> Step:
    (left_open,) = instruction.operands
    if not isinstance(left_open, Number):
        raise instruction.unknown()

    def step(frame: Frame) -> None:
        groups, state = _groups(frame, instruction), _state(frame)
        state.fenced[groups] = False
        _finish(frame, groups, [
            (product, (product.number >= 0) & (product.number < state.committed[product.groups] - left_open.value))
            for product in state.products
        ])  # fmt: skip

    return step


def _wait_early(frame: Frame, sums: Sums, instruction: Instruction) -> None:
    """Active threads need sums that have not been waited for: the assembler adds a wait for them."""
    frame.batch.doubt("sums are used before they have been waited for", instruction)
    groups, products = np.unique(np.flatnonzero(frame.active) // GROUP), _state(frame).products
    last = max(number for number, product in enumerate(products) if product.sums is sums)
    _finish(frame, groups, [(product, np.ones(len(product.groups), bool)) for product in products[: last + 1]])


def _finish(frame: Frame, groups: Array, products: list[tuple[Product, Array]]) -> None:
    """Some warpgroups have waited for products, each for some of its own warpgroups."""
    touched: list[Sums] = []
    for product, awaited in products:
        over = awaited & product.open & np.isin(product.groups, groups)
        if over.any():
            product.step.finish(frame, product, over)
            touched += [product.sums] if all(product.sums is not one for one in touched) else []
    state = _state(frame)
    state.products = [product for product in state.products if product.open.any()]
    for sums in touched:
        waiting = groups[[bool(sums.held[0].threads[group * GROUP]) for group in groups]]
        done = waiting[sums.open[waiting] == 0]
        if len(done):
            _give_back(frame, sums, done)


def finish(frame: Frame) -> None:
    """A function returns.

    Raises:
        PtxError: products are on their way.
    """
    if frame.products is not None and frame.products.products:
        raise PtxError(f"{frame.function.name} ends before products have been waited for")


def build(instruction: Instruction) -> Step:
    table = {("fence", "sync", "aligned"): _fence, ("commit_group", "sync", "aligned"): _commit}
    table[("wait_group", "sync", "aligned")] = _wait
    return table.get(instruction.modifiers, _Multiply)(instruction)


BUILDERS: dict[str, Builder] = {"wgmma": build}
