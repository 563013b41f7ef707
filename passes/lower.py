"""Fusion groups to kernels: every root's element is written out by the lowering rules of its ops.

Groups of the same structure (48 layers of one model) are lowered once: a key is made of everything that the kernel
depends on, and only what it is called with differs. Views of stored values become strides of loads, and constant
offsets go into the call, so slices at different places share one kernel too.

Numerics: bf16 and f16 are loaded, widened to f32 and rounded where stored and where the program casts to them; with
numerics="eager" after every op.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from graphc.ir.graph import Op, Value
from graphc.loopir.kernel import Kernel
from graphc.passes.group import Group
from graphc.passes.kernel_writer import WHOLE, Check, KernelWriter
from graphc.passes.layout import Layouts
from graphc.passes.outline import Argument, Outline


@dataclass(frozen=True)
class Failure:
    """What a kernel finds wrong with data: the op that eager would raise in, the error's class and its message."""

    op: Op
    error: str
    message: str


@dataclass(frozen=True)
class Lowered:
    """A kernel and what it is called with, in the order of its buffers.

    A kernel that checks data has one more buffer, the last: a cell per failure.
    """

    kernel: Kernel
    arguments: tuple[Argument, ...]
    failures: tuple[Failure, ...] = ()


class Lowering:
    """Lowers the groups of one program.

    Args:
        layouts: strides of stored values.
        stored: values that have memory.
        numerics: `default` or `eager`.
        names: how often names of kernels are taken already, by kernels of the same program.
        tf32: products in f32 may round their operands to 10 bits of mantissa.
        rounded: values that are rounded though they are not stored.
    """

    def __init__(
        self,
        layouts: Layouts,
        stored: set[Value],
        numerics: str,
        names: dict[str, int] | None = None,
        tf32: bool = False,
        rounded: Set[Value] = frozenset(),
    ) -> None:
        self.layouts, self.stored, self.numerics, self.tf32 = layouts, stored, numerics, tf32
        self.rounded = rounded
        self._kernels: dict[object, tuple[Kernel, tuple[int, ...], tuple[Check, ...]]] = {}
        self._distinct: dict[object, Kernel] = {}
        self._names = {} if names is None else names

    @property
    def kernels(self) -> list[Kernel]:
        """All distinct kernels so far."""
        return list(self._distinct.values())

    def lower(self, group: Group, kept: set[Value], part: str = WHOLE) -> Lowered:
        """Write a group as a kernel.

        Args:
            group: a fusion group.
            kept: those of its roots that have to be stored.
            part: WHOLE, or one of its two halves: CHECKS_ONLY, which stores nothing else, and UNCHECKED.
        """
        outline = Outline(self.layouts, self.stored, group, kept, self.rounded)
        key = (part, outline.key())
        found = self._kernels.get(key)
        if found is None:
            kernel, order, checks = KernelWriter(outline, self.numerics, self.tf32).write(part)
            found = (self._distinct_kernel(kernel), order, checks)
            self._kernels[key] = found
        kernel, order, checks = found
        return Lowered(
            kernel,
            tuple(outline.arguments[number] for number in order),
            tuple(Failure(outline.ops[number], error, message) for number, error, message in checks),
        )

    def _distinct_kernel(self, kernel: Kernel) -> Kernel:
        key = kernel.key()
        found = self._distinct.get(key)
        if found is None:
            count = self._names.get(kernel.name, 0)
            self._names[kernel.name] = count + 1
            name = kernel.name if not count else f"{kernel.name}_{count + 1}"
            found = Kernel(name, kernel.axes, kernel.buffers, kernel.body, kernel.notes)
            self._distinct[key] = found
        return found
