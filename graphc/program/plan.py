"""The scheduled program: what the runtime will do, step by step, as plain records.

`graphc.passes` makes a `Plan`; `graphc.codegen` turns its kernels into text and its steps into a native program; the
runtime executes it. Free of torch and, at run time, of the compiler.

    buffers: inputs ───┐
             outputs ──┼── steps: KernelStep, ForeachStep, GemmStep, AtenStep, LoopStep in order
             arena ────┘
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from graphc.ir.types import DType, Location
from graphc.program.loops import LoopStep

if TYPE_CHECKING:
    from graphc.loopir.kernel import Kernel

INPUT, OUTPUT, ARENA, EXTERNAL, CHECKS = "input", "output", "arena", "external", "checks"


@dataclass(frozen=True)
class BufferSpec:
    """One storage of the program.

    Args:
        index: position in `Plan.buffers`, by which all records name it.
        kind: INPUT (the user's tensor; `source` = graph input number), OUTPUT (fresh memory per call, handed to the
            user), ARENA (at byte `arena_offset` of the program's arena), EXTERNAL (memory that an ATen call returned,
            alive until `last_use`), CHECKS (cells of i64 that kernels report bad data in: see `Check`).
        dtype: element type.
        shape, strides: how its defining value lies in it, in elements.
        nbytes: bytes from the first to the last element.
        host: it is a Python scalar (a scalar input or an `.item()` result), kept as an 8-byte cell (f64 or i64).
    """

    index: int
    kind: str
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    nbytes: int
    device: str = "cpu"
    source: int = -1
    arena_offset: int = -1
    host: bool = False


@dataclass(frozen=True)
class ArenaBlock:
    """A part of an arena, which is placed anew where its size is another.

    Args:
        first, last: steps between which it is in use.
        size: bytes.
        members: buffers in it, each with the byte at which it starts.
    """

    first: int
    last: int
    size: int
    device: str
    members: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Check:
    """Something that eager refuses in data and that a kernel looks for. Its cell tells the largest offending value.

    Args:
        error: name of the builtin class that eager raises; or `AssumptionError`: the call is eager's.
        message: eager's, with `{value}` for the offending value.
        order: the place of its op in the user's program: of several failures the first one is raised.
        location: the user's source line.
    """

    error: str
    message: str
    order: int
    location: Location = Location()


@dataclass(frozen=True)
class View:
    """A strided look into a buffer, in elements of `dtype`, as an operand of a library call."""

    buffer: int
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0


@dataclass(frozen=True)
class KernelStep:
    """Run a generated kernel. `buffers[i]` (with element offset `offsets[i]`) is its argument i."""

    kernel: str
    buffers: tuple[int, ...]
    offsets: tuple[int, ...]
    location: Location = Location()


@dataclass(frozen=True)
class RowArgument:
    """What a kernel of a `ForeachStep` gets for one of its buffers.

    Args:
        kind: `row` = number `number` of the row's buffers; `shared` = the same buffer for all rows; `checks` = a cell;
            `scratch` = byte `number` of the row's part of a buffer in which kernels hand numbers on.
        dtype: of its elements.
        elementwise: it has an element for each of the row; else it is a single number.
    """

    kind: str
    number: int
    dtype: DType
    elementwise: bool


@dataclass(frozen=True)
class ForeachStep:
    """Run kernels over a table of rows: each kernel for all rows, then the next one.

    Args:
        kernels: names; those on elements have a size, the number of elements.
        arguments: per kernel and buffer.
        rows: per row its buffers, all rows alike.
        offsets: per row where in them it starts, in elements.
        sizes: elements per row.
        written: which buffers of a row are written.
        shared: buffers that are the same for all rows.
        scratch: the buffer for what kernels hand on, `scratch_bytes` of it per row; -1 = there is none, or on a device
            that numbers are handed on in the table of rows itself.
        checks, first_cell, cells: the buffer of cells that kernels report bad data in, the first one and how many.
        whole: numbers of the kernels that get a row as a whole, since they reduce it.
    """

    kernels: tuple[str, ...]
    arguments: tuple[tuple[RowArgument, ...], ...]
    rows: tuple[tuple[int, ...], ...]
    offsets: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    written: tuple[int, ...]
    shared: tuple[int, ...] = ()
    scratch: int = -1
    scratch_bytes: int = 0
    checks: int = -1
    first_cell: int = 0
    cells: int = 0
    whole: tuple[int, ...] = ()
    location: Location = Location()

    @property
    def buffers(self) -> tuple[int, ...]:
        """All of them, with repeats."""
        own = tuple(index for index in (self.scratch, self.checks) if index >= 0)
        return (*(index for row in self.rows for index in row), *self.shared, *own)


@dataclass(frozen=True)
class GemmStep:
    """`out = a @ b (+ out when accumulate)`, batched over all leading dims, which are equal (stride 0 = broadcast).

    Args:
        form: how it is to be computed, of those that the code generator offers for it; "" = as that chooses.
    """

    a: View
    b: View
    out: View
    accumulate: bool = False
    location: Location = Location()
    form: str = ""


@dataclass(frozen=True)
class AtenStep:
    """Call an ATen overload (`aten.convolution.default`) with torch's own semantics.

    Args:
        op: overload name, `namespace.name.overload`.
        args, kwargs: positional and keyword arguments: plain values, tuples, `graphc.ir.graph.Named`, DType, and `View`
            for tensors. A `View` of a host buffer means the Python number.
        outs: per returned tensor the EXTERNAL or ARENA/OUTPUT buffer that receives it (copied for the latter two), or
            -1 when it is not used.
        mutates: positions in the flat list of tensor arguments which the call writes to; the plan has made private
            copies of what must survive.
        form: as of a `GemmStep`.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    outs: tuple[int, ...]
    mutates: tuple[int, ...] = ()
    location: Location = Location()
    form: str = ""

    def views(self) -> Iterator[View]:
        """All tensor arguments, in order."""
        stack: list[Any] = [*self.args, *(value for _, value in self.kwargs)]
        while stack:
            item = stack.pop(0)
            if isinstance(item, View):
                yield item
            elif isinstance(item, (tuple, list)):
                stack[:0] = item


Step: TypeAlias = Union[KernelStep, ForeachStep, GemmStep, AtenStep, LoopStep]


@dataclass(frozen=True)
class OutputSpec:
    """How output i is handed to the user.

    Args:
        buffer: the storage; for an INPUT buffer the user's own tensor.
        shape, strides, offset: the view onto it; `whole` = the tensor object as it is.
    """

    buffer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    whole: bool = True


@dataclass
class Plan:
    """A scheduled program.

    Attributes:
        name: of the user's function.
        buffers: every storage, by index.
        kernels: distinct kernels by name.
        steps: in order; contents of `Write`s are stored by them too.
        outputs: one per graph output.
        written: graph inputs whose contents the program changes (their version counters are bumped after the run).
        copied: of these, those to be copied before each call and put back when it fails, since a step that can fail
            comes after one that writes to them.
        exposed: those for which that would cost too much: after a failed call they may have changed.
        draws: it draws from torch's random generator.
        arena_bytes: size of the arena.
        arena_blocks: what the arena is made of, where the plan is for several sizes.
        checks: per buffer of kind CHECKS what its cells mean.
        forms: per kernel in which form it is to be generated, of those that the code generator offers for it.
        stats: counters for `.explain()`: graph ops, fused ops, extern calls with reasons, bytes moved.
    """

    name: str
    buffers: list[BufferSpec] = field(default_factory=list)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    outputs: list[OutputSpec] = field(default_factory=list)
    written: tuple[int, ...] = ()
    copied: tuple[int, ...] = ()
    exposed: tuple[int, ...] = ()
    draws: bool = False
    arena_bytes: int = 0
    arena_blocks: tuple[ArenaBlock, ...] = ()
    checks: dict[int, list[Check]] = field(default_factory=dict)
    forms: dict[str, str] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        from graphc.program.printer import print_plan

        return print_plan(self)
