"""Loops through which each row of a batch goes by itself: a GPU can run such a loop as one kernel.

    loop 50 times {                                        rows = 64: row i of all that a turn stores is made of
      gemm gates[64, 512] = h[64, 128] @ w[128, 512]       row i of what this turn and the turns before it stored,
      kernel cell(gates, c, ...) -> h, c                   and of what no turn stores
    }

A program of the kernel takes some rows through all turns, so nothing waits for other programs. Told from where steps
read and store: in memory that the loop writes, a row's bytes must be the same row's in every turn, whoever looks at
them. What lives within a turn gets memory of its own in such a kernel, wherever the plan has put it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from graphc.ir.dims import Dim, Sym, bounds, substitute, symbol, symbols
from graphc.ir.sizes import bound
from graphc.ir.types import bool_, i64
from graphc.loopir.interpreter import run as interpret
from graphc.loopir.kernel import Axis, Buffer, Compute, Const, Index, Kernel, Load, Store, is_value, operands
from graphc.loopir.transform import axis_ranges, rows_outermost
from graphc.program.loops import LoopStep
from graphc.program.plan import ARENA, CHECKS, BufferSpec, GemmStep, KernelStep, Plan, View

_MOST_POINTS = 1 << 16
"""Of one row of a kernel, up to which conditions on positions are tried out."""
_DTYPES = ("f32", "bf16", "f16")
"""Of products that matrix units compute, or that a kernel can."""


@dataclass(frozen=True)
class _Access:
    """What a step does with a buffer of the loop: to which bytes, from where the buffer begins.

    Args:
        row: from one row to the next; None = it is not known which rows are read.
        low, high: first and last byte of row 0.
    """

    buffer: int
    writes: bool
    row: int | None
    low: int
    high: int


def mark_rows(plan: Plan) -> None:
    """Say in each loop of a plan, whose memory has been laid out, how many rows go through it by themselves."""
    plan.steps = [
        replace(step, rows=rows_of(step, plan)) if isinstance(step, LoopStep) else step for step in plan.steps
    ]


def rows_of(loop: LoopStep, plan: Plan) -> int:
    """How many rows go through a loop by themselves; 0 when they do not, or the loop has steps of other kinds."""
    products = [step for step in loop.steps if isinstance(step, GemmStep)]
    if not products or any(len(step.out.shape) != 2 or step.out.dtype.name not in _DTYPES for step in products):
        return 0
    rows = products[0].out.shape[0]
    specs = [*loop.specs, *(plan.buffers[index] for index in loop.buffers())]
    if any(spec.host or spec.kind == CHECKS or spec.device != specs[0].device for spec in specs):
        return 0
    found: list[_Access] = []
    for step in loop.steps:
        accesses = _of_step(step, plan, rows)
        if accesses is None:
            return 0
        found += accesses
    if rows == 1:
        return rows
    memories = _memories(loop, plan.buffers)
    by_memory: dict[int, list[_Access]] = {}
    for access in found:
        for owner in {memories[index] for index, _ in _places(loop, access.buffer)}:
            by_memory.setdefault(owner, []).append(access)
    separable = all(
        _is_apart(loop, plan.buffers, accesses, rows, memories, memory)
        for memory, accesses in by_memory.items()
        if any(access.writes for access in accesses)
    )
    return rows if separable else 0


def _of_step(step: object, plan: Plan, rows: int) -> list[_Access] | None:
    """The accesses of a step, None when it is not one of plain arithmetic on each element."""
    if isinstance(step, GemmStep):
        if step.out.shape[0] != rows or len(step.a.shape) != 2 or len(step.b.shape) != 2:
            return None
        whole = step.b
        last = sum((size - 1) * stride for size, stride in zip(whole.shape, whole.strides, strict=True))
        size = whole.dtype.itemsize
        weight = _Access(whole.buffer, False, None, whole.offset * size, (whole.offset + last + 1) * size - 1)
        return [_of_view(step.a, False), weight, _of_view(step.out, True)]
    if not isinstance(step, KernelStep):
        return None
    kernel = rows_outermost(plan.kernels[step.kernel], rows)
    if kernel is None or kernel.row_axes or any(isinstance(s, Store) and s.mode != "set" for s in kernel.body):
        return None
    return list(_of_kernel(kernel, step))


def _of_view(view: View, writes: bool) -> _Access:
    size, (row, column) = view.dtype.itemsize, view.strides
    low = view.offset * size
    return _Access(view.buffer, writes, row * size, low, low + ((view.shape[1] - 1) * column + 1) * size - 1)


def _of_kernel(kernel: Kernel, step: KernelStep) -> Iterator[_Access]:
    first, *others = kernel.axes
    ranges = axis_ranges(others)
    numbers = {buffer.name: number for number, buffer in enumerate(kernel.buffers)}
    for s in kernel.body:
        if not isinstance(s, Load | Store):
            continue
        number = numbers[s.buffer]
        size = kernel.buffers[number].dtype.itemsize
        row = _step_of(s.index, first.name)
        low, high = (None, None) if row is None else bounds(substitute(s.index, {first.name: 0}), ranges)
        if row is not None and s.mask is not None:
            low, high = _under_mask(kernel, s) or (low, high)
        if row is None or low is None or high is None:
            yield _Access(step.buffers[number], isinstance(s, Store), None, 0, 0)
            continue
        offset = step.offsets[number]
        ends = (offset + low) * size, (offset + high + 1) * size - 1
        yield _Access(step.buffers[number], isinstance(s, Store), row * size, *ends)


def _under_mask(kernel: Kernel, s: Load | Store) -> tuple[int, int] | None:
    """First and last element of row 0 where the condition of an access holds, if that is one on positions."""
    first, *others = kernel.axes
    points = bound(prod(axis.extent for axis in others if isinstance(axis.extent, int)))
    wanted, kept = {s.mask}, []
    for one in reversed(list(kernel.defines)):
        if one.id in wanted:
            kept.append(one)
            wanted.update(operands(one))
    if not all(isinstance(one, Index | Const | Compute) for one in kept) or points > _MOST_POINTS:
        return None
    if any(first.name in kernel.domains[one.id] for one in kept) or any(not isinstance(a.extent, int) for a in others):
        return None
    place: Dim = 0
    for axis in others:
        place = place * axis.extent + symbol(axis.name)
    assert s.mask is not None
    index = Index("v999999", i64, substitute(s.index, {first.name: 0}))
    body = (*kept[::-1], index, Store("at", place, index.id), Store("holds", place, s.mask))
    buffers = (Buffer("at", i64, points, "out"), Buffer("holds", bool_, points, "out"))
    at, holds = np.zeros(points, np.int64), np.zeros(points, np.bool_)
    axes = tuple(others) or (Axis("one", 1),)
    interpret(Kernel("positions", axes, buffers, body), {"at": at, "holds": holds})
    found = at[holds]
    return (int(found.min()), int(found.max())) if found.size else None


def _step_of(index: Dim, axis: str) -> int | None:
    """How far an index moves with each row, None when that differs or data decide."""
    if any(is_value(name) for name in symbols(index)):
        return None
    start = substitute(index, {axis: 0})
    step = substitute(index, {axis: 1}) - start
    if not isinstance(step, int):
        return None
    ends = substitute(index, {axis: 7}) - start, substitute(index, {axis: 2}) - start
    return step if ends == (7 * step, 2 * step) and not _divides(index, axis) else None


def _divides(index: Dim, axis: str) -> bool:
    """Whether an axis stands inside of a division or a remainder."""
    if isinstance(index, int):
        return False
    return any(
        axis in symbols(atom.numerator) | symbols(atom.denominator)
        for monomial, _ in index.terms
        for atom in monomial
        if not isinstance(atom, Sym)
    )


def _places(loop: LoopStep, buffer: int) -> Iterator[tuple[int, int]]:
    """Buffer of the program and offset, in elements, of a buffer of the loop in each turn; -1 - buffer = its own."""
    if loop.specs[buffer].kind == ARENA:
        return iter([(-1 - buffer, 0)])
    return (loop.bindings[buffer].at(turn) for turn in range(bound(loop.length)))


def _memories(loop: LoopStep, buffers: list[BufferSpec]) -> dict[int, int]:
    """Per buffer that a loop uses one that stands for all which share memory with it."""
    found: dict[int, int] = {}
    reach = -1
    owner = -1
    arena = sorted((b for b in loop.buffers() if buffers[b].kind == ARENA), key=lambda b: buffers[b].arena_offset)
    for index in arena:
        spec = buffers[index]
        if spec.arena_offset >= reach:
            owner = index
        found[index] = owner
        reach = max(reach, spec.arena_offset + spec.nbytes)
    own = {-1 - spec.index: -1 - spec.index for spec in loop.specs if spec.kind == ARENA}
    return own | {index: found.get(index, index) for index in loop.buffers()}


def _is_apart(
    loop: LoopStep,
    buffers: list[BufferSpec],
    accesses: list[_Access],
    rows: int,
    memories: dict[int, int],
    memory: int,
) -> bool:
    """Whether in a memory that a loop writes each byte is one row's, in all turns.

    Where turns look at places that do not overlap, as carries do that lie here and there, rows may begin anywhere.
    """
    if any(access.row is None or access.row <= 0 for access in accesses):
        return False
    spans: set[tuple[int, int, int]] = set()
    for access in accesses:
        size = loop.specs[access.buffer].dtype.itemsize
        assert access.row is not None
        for index, offset in _places(loop, access.buffer):
            if memories[index] == memory:
                base = offset * size + (max(buffers[index].arena_offset, 0) if index >= 0 else 0)
                spans.add((base + access.low, access.row, access.high - access.low))
    reach, overlapping = -1, list[tuple[int, int, int]]()
    for low, row, length in sorted(spans):
        if low > reach:
            if not _same_rows(overlapping, rows):
                return False
            overlapping = []
        overlapping.append((low, row, length))
        reach = max(reach, low + (rows - 1) * row + length)
    return _same_rows(overlapping, rows)


def _same_rows(spans: Sequence[tuple[int, int, int]], rows: int) -> bool:
    """Whether each byte is one row's; a span is its first byte, bytes to the next row's, and to its own last byte."""
    steps = {row for _, row, _ in spans}
    if len(steps) > 1:
        return False
    row = max(steps, default=1)
    period = row * rows
    ends = {(low % period, length) for low, _, length in spans}
    return not ends or any(all((low - start) % period + length < row for low, length in ends) for start, _ in ends)
