"""Horizontal fusion: small kernels that do the same to tensors of their own are one launch over a table of rows.

    before    cast(w0: 4096) conv cast(w1: 2048000) conv ... copy(m0: 64) ... copy(m1: 256)
    after     cast of rows w0, w1, ...; conv conv ... copy of rows m0, m1, ...

The casts of all weights under autocast, the running statistics of all batch norms, the gradients that are widened for
the optimizer: each of these kernels moves few bytes, and starting it takes longer than running it. What differs between
rows is where they lie and how many elements they have, so they are one kernel that is compiled once.

Two tasks may run together when neither waits for the other. Tasks that wait for equally long chains never do, nor do
those that equally long chains wait for, and when each such set becomes one task there still is an order. So what can
start early, as casts of weights, is gathered by what it waits for, and then what may end late, as copies into running
statistics, by what waits for it.

Source of the term: Li, Zheng, Pekhimenko and Long, Automatic Horizontal Fusion for GPU Kernels, arXiv 2007.01277.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from graphc.ir.dims import symbol
from graphc.loopir.kernel import PARALLEL, Axis, Kernel, Load, Store
from graphc.passes.devices import most_alive_by_device
from graphc.passes.foreach_tables import ELEMENTS, is_map
from graphc.passes.group import device_of
from graphc.passes.outline import Argument, memory_dtype
from graphc.passes.schedule import Task, in_order
from graphc.program.plan import RowArgument
from graphc.program.triton_kernel import ALIGNMENT

FEWEST = 4
"""Rows from which a table pays: outside of recorded graphs it is filled in and sent."""
LARGEST = (16 << 20, 1 << 20, 1 << 16)
"""Bytes up to which a kernel's own time is less than what starting it takes, by far; fewer where all rows together
would take too much memory at once."""
GROWTH, FREE_GROWTH = 16, 1 << 20
"""Gathering may take one in so many of the bytes that a device needs without it, and so many bytes in any case."""

Batch: TypeAlias = tuple[int, ...]
"""Numbers of tasks that run together, in the order that they had."""


@dataclass(frozen=True)
class RowKernel:
    """A kernel of rows of any size.

    Args:
        kernel: its axis has the symbolic extent of a row.
        arguments: per buffer, each of them a buffer of the row.
        size: elements of the row that it was made from.
        moved: bytes that this row's buffers hold.
    """

    kernel: Kernel
    arguments: tuple[RowArgument, ...]
    size: int
    moved: int

    @cached_property
    def key(self) -> Hashable:
        """Equal for kernels that differ in their size only."""
        return self.kernel.key(), self.arguments


def row_kernel(kernel: Kernel) -> RowKernel | None:
    """The kernel for a row; None when it is not one step per element, from elements at the same place."""
    if len(kernel.axes) > 1 or kernel.row_axes:
        return None
    name = kernel.axes[0].name if kernel.axes else "i0"
    size = kernel.axes[0].extent if kernel.axes else 1
    if not isinstance(size, int):
        return None
    element = symbol(name)
    body = kernel.body
    if not kernel.axes:  # a single number is a row of one element
        body = tuple(replace(s, index=element) if isinstance(s, (Load, Store)) and s.index == 0 else s for s in body)
    wide = {s.buffer for s in body if isinstance(s, (Load, Store)) and s.index == element}
    extent = symbol(ELEMENTS)
    buffers = tuple(replace(b, size=extent) if b.name in wide else b for b in kernel.buffers)
    arguments = tuple(RowArgument("row", at, b.dtype, b.name in wide) for at, b in enumerate(buffers))
    rows = replace(kernel, axes=(Axis(name, extent, PARALLEL),), buffers=buffers, body=body)
    if not is_map(rows, arguments):
        return None
    moved = size * sum(b.dtype.itemsize for b in buffers if b.name in wide)
    return RowKernel(rows, arguments, size, moved)


def kind_of(kernel: RowKernel, called_with: Sequence[Argument]) -> Hashable:
    """What kernels that are one over a table of rows have in common.

    Args:
        called_with: places of the row's buffers; one row at an odd address would have all of them take narrow accesses.
    """
    devices = {device_of(item.value) for item in called_with}
    is_aligned = all(item.offset * memory_dtype(item.value).itemsize % ALIGNMENT == 0 for item in called_with)
    return kernel.key, frozenset(devices), is_aligned


def gather(
    tasks: Sequence[Task],
    order: Sequence[int],
    early: int,
    kinds: Mapping[int, Hashable],
    moved: Mapping[int, int],
    sizes: Mapping[int, int],
    places: Sequence[str],
    kept: frozenset[int],
) -> list[Batch]:
    """A valid order in which tasks of a kind run together, where that takes no device much more memory.

    Args:
        order: a valid one of the tasks, which is kept as far as can be.
        early: so many of the first ones stay in front of the others.
        kinds: of the tasks that may run together with their like.
        moved: bytes that these read and write.
        sizes: bytes of each storage; 0 for those outside the arena.
        places: the device of each storage.
        kept: storages that stay alive to the end.
    """
    alone: list[Batch] = [(number,) for number in order]
    if len(kinds) < FEWEST:
        return alone
    needed = most_alive_by_device(tasks, order, sizes, places, kept)
    for largest in LARGEST:
        small = {number: kind for number, kind in kinds.items() if moved[number] <= largest}
        batches = _gathered(tasks, order, early, small)
        if len(batches) == len(order):
            return alone
        merged = [_together(tasks, batch) for batch in batches]
        found = most_alive_by_device(merged, range(len(merged)), sizes, places, kept)
        if all(found[name] <= peak + max(peak // GROWTH, FREE_GROWTH) for name, peak in needed.items()):
            return batches
    return alone


def _together(tasks: Sequence[Task], batch: Batch) -> Task:
    """Several tasks as one, for what it makes and uses."""
    makes = tuple(storage for number in batch for storage in tasks[number].makes)
    uses = tuple(storage for number in batch for storage in tasks[number].uses)
    return Task(frozenset(), makes, uses)


def _gathered(tasks: Sequence[Task], order: Sequence[int], early: int, kinds: Mapping[int, Hashable]) -> list[Batch]:
    place = {number: at for at, number in enumerate(order)}
    labels = {number: (kind, place[number] < early) for number, kind in kinds.items()}
    batches: list[Batch] = [(number,) for number in order]
    for from_the_end in (False, True):
        after = _dependencies(tasks, batches)
        chains = _chains(after, from_the_end)
        sets: dict[Hashable, list[int]] = {}
        for at, batch in enumerate(batches):
            if batch[0] in labels:
                sets.setdefault((labels[batch[0]], chains[at]), []).append(at)
        whole = {members[0]: members for members in sets.values() if sum(len(batches[m]) for m in members) >= FEWEST}
        gone = {member for members in whole.values() for member in members[1:]}
        joined = [
            tuple(sorted((n for member in whole.get(at, [at]) for n in batches[member]), key=place.__getitem__))
            for at in range(len(batches)) if at not in gone
        ]  # fmt: skip
        # what is gathered by what waits for it runs where its last task did
        as_before = set(batches)
        when = [place[b[-1]] if from_the_end and b not in as_before else place[b[0]] for b in joined]
        order_of_joined = in_order(_dependencies(tasks, joined), [(at >= early, at) for at in when])
        batches = [joined[at] for at in order_of_joined]
    return batches


def _dependencies(tasks: Sequence[Task], batches: Sequence[Batch]) -> list[set[int]]:
    """Per batch the numbers of those that it waits for."""
    batch_of = {number: at for at, batch in enumerate(batches) for number in batch}
    return [
        {batch_of[earlier] for number in batch for earlier in tasks[number].after} - {at}
        for at, batch in enumerate(batches)
    ]


def _chains(after: Sequence[set[int]], from_the_end: bool) -> list[int]:
    """Per batch how many others wait for each other before it, or behind it; they are in a valid order."""
    found = [0] * len(after)
    if from_the_end:
        for at in range(len(after) - 1, -1, -1):
            for earlier in after[at]:
                found[earlier] = max(found[earlier], found[at] + 1)
    else:
        for at, earlier_ones in enumerate(after):
            found[at] = max((found[earlier] + 1 for earlier in earlier_ones), default=0)
    return found
