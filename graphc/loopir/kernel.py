"""The kernel (loop) IR: one kernel = buffers, axes, and a flat SSA list of scalar statements.

Every scalar value has a domain: the axes it depends on. Parallel axes are free; row axes are the ones reductions run
over. A value whose domain holds no row axis is one number per row; a reduction turns a per-element value into such a
number. Nothing in the IR is a loop: the order of statements and their domains decide the *stage* of each value (how
many reductions must be complete before it), and each code generator picks the loops:

    kernel softmax(x: in f32[4096*1024], y: out f32[4096*1024]) axes(i: 4096 parallel, j: 1024 row) {
      v0: f32 = load x[i*1024 + j]
      v1: f32 = reduce max v0
      v2: f32 = sub v0 v1
      v3: f32 = exp v2
      v4: f32 = reduce sum v3
      v5: f32 = div v3 v4
      store y[i*1024 + j] = v5
    }

v1 and v4 have domain (i); v3 has domain (i, j) and stage 1; v5 has stage 2. v3 is needed in stages 1 and 2: a
generator keeps it (registers, a row buffer) or computes it again, as it sees fit.

Three consumers: Triton text, C text, and the numpy interpreter, which is the oracle. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias, Union

from graphc.ir.dims import Dim, symbols
from graphc.ir.types import DType

PARALLEL, ROW = "parallel", "row"


@dataclass(frozen=True)
class Axis:
    """An iteration axis.

    Args:
        name: symbol in index expressions (`i0`, `r0`).
        extent: number of steps; an int, or a symbolic dim passed at launch.
        kind: `PARALLEL` or `ROW`.
    """

    name: str
    extent: Dim
    kind: str = PARALLEL


@dataclass(frozen=True)
class Gap:
    """Rows of a buffer, behind each of which lies memory that nobody reads: anything may be written there.

    Args:
        row: elements of a row.
        pitch: elements from one row to the next; the buffer is a whole number of these.
    """

    row: int
    pitch: int


@dataclass(frozen=True)
class Buffer:
    """A pointer argument. Strides are written into index expressions, so a buffer is flat.

    Args:
        name: argument name in generated code.
        dtype: element type in memory.
        size: elements reachable from the pointer, for bounds in the interpreter and the verifier.
        access: `in`, `out`, or `inout` (atomic or in-place accumulation).
        gap: of its rows.
    """

    name: str
    dtype: DType
    size: Dim
    access: str
    gap: Gap | None = None


@dataclass(frozen=True)
class Load:
    """`id: dtype = load buffer[index]`, or `other` where `mask` is false, without touching memory there."""

    id: str
    dtype: DType
    buffer: str
    index: Dim
    mask: str | None = None
    other: bool | int | float = 0


@dataclass(frozen=True)
class Const:
    """`id: dtype = const value`."""

    id: str
    dtype: DType
    value: bool | int | float


@dataclass(frozen=True)
class Index:
    """`id: i64 = index expr`: an index expression as a number."""

    id: str
    dtype: DType
    expr: Dim


@dataclass(frozen=True)
class Compute:
    """`id: dtype = op args...` with `op` from `graphc.loopir.scalar`."""

    id: str
    dtype: DType
    op: str
    args: tuple[str, ...]


@dataclass(frozen=True)
class Reduce:
    """`id: dtype = reduce op arg`: over all row axes of the kernel, or `over` those named.

    op: sum, prod, max, min (NaN wins), any, all, argmax, argmin (index along the flattened row axes, first on ties; a
    NaN wins, as in torch).
    """

    id: str
    dtype: DType
    op: str
    arg: str
    over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scan:
    """`id: dtype = scan op arg`: inclusive running sum, prod, max or min along the only row axis, in order."""

    id: str
    dtype: DType
    op: str
    arg: str


@dataclass(frozen=True)
class Contract:
    """`id: dtype = contract left right`: the sum over all row axes of left * right, what matrix units compute.

    Operands are of one dtype, bf16 and f16 as they are in memory, and each varies with a part of the parallel axes. The
    result is f32 for these, else of the operands' dtype. Products of products, such as attention, are kernels with
    several, each over row axes of its own:

        v2: f32 = contract v0 v1 over r1        q[i0, r1] * k[r0, r1]
        v3: f32 = reduce max v2 over r0
        v4: f32 = sub v2 v3
        v5: f32 = exp v4
        v6: f32 = reduce sum v5 over r0
        v7: f32 = div v5 v6
        v9: f32 = contract v7 v8 over r0        softmax * v[r0, i1]

    Args:
        over: row axes summed over; none named = all.
        tf32: operands in f32 may be rounded to 10 bits of mantissa, as a flag of torch says.
    """

    id: str
    dtype: DType
    left: str
    right: str
    tf32: bool = False
    over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Store:
    """`store buffer[index] = value`, where `mask` holds.

    mode: `set`, each place once; `put`, where indices that are data may collide: in C and in the oracle the last value
    along the axes stays, on a GPU any of them; `add` (atomic when indices may collide); or `max` on an i64 cell, which
    becomes the largest of itself and all values stored there. A kernel checks data with it: the cell starts at
    `graphc.ir.types.UNFAILED`, and where the check fails the offending value is stored.
    """

    buffer: str
    index: Dim
    value: str
    mask: str | None = None
    mode: str = "set"


Define: TypeAlias = Union[Load, Const, Index, Compute, Reduce, Scan, Contract]
Statement: TypeAlias = Union[Define, Store]


def operands(statement: Statement) -> tuple[str, ...]:
    """Ids of the values a statement reads, those inside index expressions included."""
    if isinstance(statement, Compute):
        return statement.args
    if isinstance(statement, (Reduce, Scan)):
        return (statement.arg,)
    if isinstance(statement, Contract):
        return (statement.left, statement.right)
    if isinstance(statement, Const):
        return ()
    index = statement.expr if isinstance(statement, Index) else statement.index
    found = [name for name in sorted(symbols(index)) if is_value(name)]
    if isinstance(statement, Store):
        found.append(statement.value)
    if isinstance(statement, (Load, Store)) and statement.mask is not None:
        found.append(statement.mask)
    return tuple(found)


def is_value(name: str) -> bool:
    """True for names of values (`v12`), which in index expressions mean data-dependent indices."""
    return name[0] == "v" and name[1:].isdigit()


@dataclass(frozen=True)
class Kernel:
    """One kernel. Two kernels with equal `key()` are the same code: it is built once.

    Args:
        name: named after what it computes (`layer_norm_gelu`).
        axes: parallel axes outermost first, then row axes outermost first.
        buffers: pointer arguments in calling order.
        body: statements in SSA order.
        notes: the user's source lines, for comments in generated code; not part of `key()`.
    """

    name: str
    axes: tuple[Axis, ...]
    buffers: tuple[Buffer, ...]
    body: tuple[Statement, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def parallel_axes(self) -> tuple[Axis, ...]:
        return tuple(axis for axis in self.axes if axis.kind == PARALLEL)

    @property
    def row_axes(self) -> tuple[Axis, ...]:
        return tuple(axis for axis in self.axes if axis.kind == ROW)

    @property
    def defines(self) -> Iterator[Define]:
        return (s for s in self.body if not isinstance(s, Store))

    @property
    def stores(self) -> Iterator[Store]:
        return (s for s in self.body if isinstance(s, Store))

    @cached_property
    def contractions(self) -> tuple[Contract, ...]:
        """The statements that make it a product of matrices, or one of products, in order."""
        return tuple(s for s in self.body if isinstance(s, Contract))

    @cached_property
    def domains(self) -> dict[str, frozenset[str]]:
        """Axis names each value depends on."""
        rows = frozenset(axis.name for axis in self.row_axes)
        axes = frozenset(axis.name for axis in self.axes)
        found: dict[str, frozenset[str]] = {}
        for s in self.body:
            if isinstance(s, Store):
                continue
            domain: frozenset[str] = frozenset().union(*(found[name] for name in operands(s)))
            if isinstance(s, (Load, Index)):
                domain |= symbols(s.index if isinstance(s, Load) else s.expr) & axes
            if isinstance(s, (Reduce, Contract)):
                domain -= frozenset(s.over) or rows
            if isinstance(s, Scan):
                domain |= rows
            found[s.id] = domain
        return found

    @cached_property
    def stages(self) -> dict[str, int]:
        """How many reductions, one after the other, each value waits for; a reduction of stage k is of stage k+1."""
        found: dict[str, int] = {}
        for s in self.body:
            if isinstance(s, Store):
                continue
            stage = max((found[name] for name in operands(s)), default=0)
            found[s.id] = stage + 1 if isinstance(s, (Reduce, Scan, Contract)) else stage
        return found

    def key(self) -> tuple[object, ...]:
        """What makes two kernels the same code: everything but their name, buffer names and notes."""
        position = {buffer.name: index for index, buffer in enumerate(self.buffers)}

        def rename(s: Statement) -> object:
            if isinstance(s, (Load, Store)):
                from dataclasses import replace

                return type(s), replace(s, buffer=str(position[s.buffer])), repr(getattr(s, "other", None))
            return type(s), s, repr(s.value) if isinstance(s, Const) else None

        return (
            self.axes,
            tuple((b.dtype, b.size, b.access) for b in self.buffers),
            tuple(rename(s) for s in self.body),
        )

    def __str__(self) -> str:
        from graphc.loopir.printer import print_kernel

        return print_kernel(self)
