"""Kernels of a `foreach` op for a device that is not the CPU: one launch over a table of rows.

Of the stages of a body (`graphc.passes.foreach`) a device runs those on elements. What works on single numbers that lie
with the CPU, such as step counters and the learning rate, is done there for all rows at once, before:

    stages                              as a table of 200 rows
    add(row 4, scratch 0)               add(row 4, scratch 0)                       axes(row: 200 parallel), on the CPU
    update(row 0[], ..., shared 0,      update_numbers(shared 0, scratch 0,         axes(row: 200 parallel), on the CPU
           scratch 0)                                  scratch 8, scratch 16)
                                        update(row 0[], ..., scratch 8, scratch 16) axes(i0: elements), on the device

So powers of betas in float64, and what else is the same for a whole row, are computed once per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from graphc.ir.dims import symbol
from graphc.ir.types import HOST
from graphc.loopir.kernel import (
    PARALLEL,
    Axis,
    Buffer,
    Compute,
    Const,
    Index,
    Kernel,
    Load,
    Reduce,
    Scan,
    Statement,
    Store,
    operands,
)
from graphc.loopir.transform import drop_dead
from graphc.program.plan import RowArgument

if TYPE_CHECKING:
    from graphc.passes.foreach import Stages

ROW_AXIS = "row"
ELEMENTS = "elements"
"""The size of a row, in kernels."""
WORD = 8
"""Bytes of a number in scratch memory."""


def as_table(stages: Stages, lists: tuple[str, ...], shared: tuple[str, ...], count: int) -> Stages | None:
    """The stages with everything on single numbers apart, and for all rows at once.

    Args:
        stages: of the body for a row.
        lists: per list of the op the device of its tensors; results of the op's own are where the elements are.
        shared: per shared operand its device.
        count: number of rows.

    Returns:
        Kernels on numbers first, with an axis over rows; then kernels on elements. None where a kernel on numbers needs
        what a device holds, or one on elements is not a plain map.
    """
    split = _Splitter(lists, shared, stages.scratch)
    for kernel, arguments in zip(stages.kernels, stages.arguments, strict=True):
        if any(item.elementwise for item in arguments):
            if not (is_map(kernel, arguments) or _is_reduction(kernel, arguments, len(lists))):
                return None
            split.on_elements(kernel, arguments)
        elif split.found_elements or kernel.row_axes or not all(split.is_near(item) for item in arguments):
            return None
        else:
            split.numbers.append((kernel, arguments))
    if not split.elements:
        return None
    parts = [(_over_rows(kernel, arguments, count), arguments) for kernel, arguments in split.numbers]
    parts += split.elements
    kernels, found = zip(*parts, strict=True)
    return replace(stages, kernels=kernels, arguments=found, whole=(), scratch=split.scratch)


def is_map(kernel: Kernel, arguments: tuple[RowArgument, ...]) -> bool:
    """Element i of all results from elements i."""
    wide = _plain_buffers(kernel, arguments)
    if wide is None or kernel.row_axes:
        return False
    return all(s.buffer in wide for s in kernel.stores)


def _is_reduction(kernel: Kernel, arguments: tuple[RowArgument, ...], lists: int) -> bool:
    """Numbers of the op's own per row, from elements that no reduction before has to do with."""
    wide = _plain_buffers(kernel, arguments)
    if wide is None or not kernel.row_axes:
        return False
    kinds = dict(zip((b.name for b in kernel.buffers), arguments, strict=True))
    own = all(kinds[s.buffer].kind == "row" and kinds[s.buffer].number >= lists for s in kernel.stores)
    reductions = [s for s in kernel.defines if isinstance(s, Reduce)]
    at_once = all(not s.op.startswith("arg") and kernel.stages[s.arg] == 0 for s in reductions)
    return own and at_once and all(not kernel.domains[s.value] for s in kernel.stores)


def _plain_buffers(kernel: Kernel, arguments: tuple[RowArgument, ...]) -> set[str] | None:
    """The buffers with an element per element of the row; None where a kernel on elements checks data, needs an index
    as a number, or has other accesses than at the element."""
    if len(kernel.axes) != 1 or any(item.kind == "checks" for item in arguments):
        return None
    axis = symbol(kernel.axes[0].name)
    wide = {b.name for b, item in zip(kernel.buffers, arguments, strict=True) if item.elementwise}
    for s in kernel.body:
        if isinstance(s, (Index, Scan)):
            return None
        if isinstance(s, (Load, Store)) and s.index != (axis if s.buffer in wide else 0):
            return None
        if isinstance(s, Store) and (s.mode != "set" or s.mask is not None):
            return None
    return wide


class _Splitter:
    """Collects the kernels of a table.

    Args:
        lists, shared: devices.
        scratch: bytes per row that are taken.
    """

    def __init__(self, lists: tuple[str, ...], shared: tuple[str, ...], scratch: int) -> None:
        self.lists, self.shared, self.scratch = lists, shared, scratch
        self.numbers: list[tuple[Kernel, tuple[RowArgument, ...]]] = []
        self.elements: list[tuple[Kernel, tuple[RowArgument, ...]]] = []

    @property
    def found_elements(self) -> bool:
        return bool(self.elements)

    def is_near(self, item: RowArgument) -> bool:
        """Whether the CPU holds what an argument is."""
        if item.kind == "shared":
            return self.shared[item.number] in ("cpu", HOST)
        if item.kind == "row":
            return not item.elementwise and item.number < len(self.lists) and self.lists[item.number] == "cpu"
        return True

    def on_elements(self, kernel: Kernel, arguments: tuple[RowArgument, ...]) -> None:
        """A kernel on elements, and one before it for the numbers that it needs, where there are any."""
        buffers = dict(zip((b.name for b in kernel.buffers), arguments, strict=True))
        near = self._near_values(kernel, buffers)
        by_id = {s.id: s for s in kernel.defines}
        read = {name for s in kernel.body if _id(s) not in near for name in operands(s)}
        # numbers that the rest reads; constants it has itself
        handed = [name for name in by_id if name in near & read and not isinstance(by_id[name], Const)]
        if not handed:
            self.elements.append((kernel, arguments))
            return
        fresh = {name: f"number_{name}" for name in handed}
        places = {name: self.scratch + WORD * at for at, name in enumerate(handed)}
        self.scratch += WORD * len(handed)
        slots = [RowArgument("scratch", places[name], by_id[name].dtype, False) for name in handed]
        stores = tuple(Store(fresh[name], 0, name) for name in handed)
        before = tuple(s for s in kernel.body if _id(s) in near) + stores
        loads = tuple(Load(name, by_id[name].dtype, fresh[name], 0) for name in handed)
        after = loads + tuple(s for s in kernel.body if _id(s) not in handed)
        made = [Buffer(fresh[name], by_id[name].dtype, 1, "out") for name in handed]
        given = [replace(buffer, access="in") for buffer in made]
        self.numbers.append(self._part(f"{kernel.name}_numbers", kernel, buffers, (), before, made, slots))
        self.elements.append(self._part(kernel.name, kernel, buffers, kernel.axes, after, given, slots))

    def _near_values(self, kernel: Kernel, buffers: Mapping[str, RowArgument]) -> set[str]:
        """Values that come from what the CPU holds alone."""
        near: set[str] = set()
        for s in kernel.defines:
            if isinstance(s, Load):
                is_near = self.is_near(buffers[s.buffer])
            else:
                is_near = isinstance(s, (Const, Compute)) and all(name in near for name in operands(s))
            if is_near:
                near.add(s.id)
        return near

    @staticmethod
    def _part(
        name: str,
        kernel: Kernel,
        arguments: Mapping[str, RowArgument],
        axes: tuple[Axis, ...],
        body: tuple[Statement, ...],
        extra: list[Buffer],
        slots: list[RowArgument],
    ) -> tuple[Kernel, tuple[RowArgument, ...]]:
        """A kernel with some of the statements of another one, and with the buffers that it still needs."""
        part = drop_dead(replace(kernel, name=name, axes=axes, buffers=(*kernel.buffers, *extra), body=body))
        used = {s.buffer for s in part.body if isinstance(s, (Load, Store))}
        all_arguments = {**arguments, **dict(zip((buffer.name for buffer in extra), slots, strict=True))}
        buffers = tuple(buffer for buffer in part.buffers if buffer.name in used)
        return replace(part, buffers=buffers), tuple(all_arguments[buffer.name] for buffer in buffers)


def _id(s: Statement) -> str:
    return "" if isinstance(s, Store) else s.id


def _over_rows(kernel: Kernel, arguments: tuple[RowArgument, ...], count: int) -> Kernel:
    """A kernel on single numbers for all rows: its numbers of rows lie side by side."""
    per_row = {b.name for b, item in zip(kernel.buffers, arguments, strict=True) if item.kind in ("row", "scratch")}
    body = tuple(
        replace(s, index=symbol(ROW_AXIS)) if isinstance(s, (Load, Store)) and s.buffer in per_row else s
        for s in kernel.body
    )
    buffers = tuple(replace(b, size=count) if b.name in per_row else b for b in kernel.buffers)
    return replace(kernel, axes=(Axis(ROW_AXIS, count, PARALLEL),), buffers=buffers, body=body)
