"""The statements of one generated Triton function.

A value is a tensor over the blocked tile dimensions it depends on (size 1 along the others), or a scalar when it
depends on none. `Body` keeps that shape per value, gives literals their types, and adds the masks of dimensions whose
last block is not full.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from graphc.codegen.triton.choices import conjunctions, exclusive
from graphc.codegen.triton.gaps import gap_edges, row_with_gap
from graphc.codegen.triton.indexing import index_text
from graphc.codegen.triton.joined_axes import int_extent
from graphc.codegen.triton.narrow import Fast, fast_values
from graphc.codegen.triton.ops import Context, Operand, cast, constant, literal, render, tl_dtype
from graphc.codegen.triton.tiling import TileDim, Tiling
from graphc.codegen.triton.tiling import stride as axis_stride
from graphc.errors import CodegenError
from graphc.ir.dims import Dim, substitute, symbol, symbols
from graphc.ir.types import DType, bool_, i32, i64
from graphc.loopir.kernel import Compute, Const, Define, Index, Load, Reduce, Scan, Store, is_value, operands

Shape = frozenset[str]
"""Names of the blocked tile dimensions along which a tensor has its full block; along the others it has size 1."""

_SCALAR: Shape = frozenset()
_INT_MIN = {"i8": -(2**7), "i16": -(2**15), "i32": -(2**31), "i64": -(2**63)}
_INT_MAX = {name: -low - 1 for name, low in _INT_MIN.items()} | {
    "u8": 2**8 - 1, "u16": 2**16 - 1, "u32": 2**32 - 1, "u64": 2**64 - 1,
}  # fmt: skip


def neutral(op: str, dtype: DType) -> bool | int | float:
    """The value that changes no reduction or scan by `op`."""
    if op in ("sum", "any"):
        return False if dtype == bool_ else 0.0 if dtype.is_float else 0
    if op in ("prod", "all"):
        return True if dtype == bool_ else 1.0 if dtype.is_float else 1
    if dtype == bool_:
        return op not in ("max", "argmax")
    if dtype.is_float:
        return float("-inf") if op in ("max", "argmax") else float("inf")
    return _INT_MIN.get(dtype.name, 0) if op in ("max", "argmax") else _INT_MAX[dtype.name]


@dataclass
class Body:
    """Lines of a function under construction.

    Args:
        tiling: of the kernel.
        context: collects helpers for the whole module.
        pointers: parameter name per buffer.
        together: neighbours along a row that one lane of a reduction in a loop takes, by its id; one, where not told.

    Attributes:
        vectors: per outer row dimension its variables as vectors.
        gaps: see `graphc.codegen.triton.gaps`.
    """

    tiling: Tiling
    context: Context
    pointers: dict[str, str]
    lines: list[str] = field(default_factory=list)
    depth: int = 1
    shapes: dict[str, Shape] = field(default_factory=dict)
    values: dict[str, Operand] = field(default_factory=dict)
    vectors: dict[str, dict[str, Dim]] = field(default_factory=dict)
    together: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kernel = self.tiling.kernel
        self.buffers = {buffer.name: buffer for buffer in kernel.buffers}
        self.ranges: dict[str, tuple[int, int | None]] = {
            axis.name: (0, max(0, axis.extent - 1)) if isinstance(axis.extent, int) else (0, None)
            for axis in kernel.axes
        }
        blocked = {dim.name: dim for dim in self.tiling.blocked}
        self.blocked = blocked
        self.dim_of = {axis.name: dim.name for dim in blocked.values() for axis in dim.axes[dim.fixed :]}
        self.dim_of |= {name: name for name in blocked}
        self.ranges |= {dim.name: (0, max(0, dim.extent - 1)) for dim in blocked.values()}
        self.row, self.rows = self.tiling.row, self.tiling.rows
        self.gaps = gap_edges(self.tiling)

    @functools.cached_property
    def fast(self) -> Fast:
        """See `graphc.codegen.triton.narrow`."""
        return fast_values(self.tiling.kernel)

    @functools.cached_property
    def exclusive(self) -> frozenset[str]:
        """See `graphc.codegen.triton.choices`."""
        return exclusive(self.tiling.kernel)

    @functools.cached_property
    def conjunctions(self) -> dict[str, tuple[str, ...]]:
        """See `graphc.codegen.triton.choices`."""
        return conjunctions(self.tiling.kernel)

    # -------------------------------------------------------------------------------------------------- plain lines

    def line(self, text: str, comment: str = "") -> None:
        indent = "    " * self.depth
        self.lines.append(f"{indent}{text}  # {comment}" if comment else f"{indent}{text}")

    def index_type(self, text: str) -> str:
        return f"{text}.to(tl.int64)" if self.tiling.wide else text

    def axis_variables(self, dim: TileDim, first: str = "") -> None:
        """Define the variables of the axes that `dim` flattens, once the variable `dim.name` is defined.

        Args:
            dim: the dimension.
            first: where the step of a loop begins, for axes that stand still in it.
        """
        if len(dim.axes) < 2:
            return
        below = dim.extent
        for position, axis in enumerate(dim.axes):
            below //= max(1, int_extent(axis))
            place = first if position < dim.fixed else dim.name
            text = place if below == 1 else f"{place} // {below}"
            if position:
                text = f"{place} % {axis.extent}" if below == 1 else f"({text}) % {axis.extent}"
            # where a step begins is no 64-bit number yet
            self.line(f"{axis.name} = {self.index_type(f'({text})') if position < dim.fixed else text}")

    def lanes(self, dim: TileDim) -> str:
        """`tl.arange` of a dimension, placed among the tile's dimensions."""
        return self._placed(self.index_type(f"tl.arange(0, {dim.constexpr})"), dim)

    def _placed(self, text: str, dim: TileDim) -> str:
        """A vector along a dimension, placed among the tile's dimensions."""
        if len(self.blocked) == 1:
            return text
        places = [":" if name == dim.name else "None" for name in self.blocked]
        return f"{text}[{', '.join(places)}]"

    def row_variables(self, dim: TileDim) -> None:
        """Define the variables of a row dimension that is held whole.

        Those of an outer one are defined as vectors, too: a load along it alone is one of a vector, which no thread
        makes once per element.
        """
        if dim == self.row:
            self.line(f"{dim.name} = {self.lanes(dim)}")
            self.mask_variable(dim)
            self.axis_variables(dim)
            return
        vector = f"{dim.name}_lanes"
        self.line(f"{vector} = {self.index_type(f'tl.arange(0, {dim.constexpr})')}")
        self.line(f"{dim.name} = {self._placed(vector, dim)}")
        self.mask_variable(dim)
        self.axis_variables(dim)
        self.axis_variables(replace(dim, name=vector, axes=tuple(replace(a, name=f"{a.name}_lanes") for a in dim.axes)))
        names = [dim.name, *(axis.name for axis in dim.axes)]
        self.ranges |= {f"{name}_lanes": self.ranges[name] for name in names}
        self.vectors[dim.name] = {name: symbol(f"{name}_lanes") for name in names}

    def mask_variable(self, dim: TileDim) -> None:
        """Define `in_x`, true on lanes inside the extent, when some lane is not; `by_x` on those behind it, too, that a
        wide access may reach.
        """
        if not dim.is_exact:
            self.line(f"in_{dim.name} = {dim.name} < {dim.extent}")
            if dim.name in self.gaps:
                self.line(f"by_{dim.name} = {dim.name} < {self.gaps[dim.name]}")

    @contextlib.contextmanager
    def whole_row(self) -> Iterator[None]:
        """Within, what is written lies inside of the row: no masks along it."""
        assert self.row is not None
        kept = self.row, self.rows, self.blocked
        whole = replace(self.row, extent=self.row.programs * self.row.block)
        self.row, self.rows, self.blocked = whole, (whole,), {**self.blocked, whole.name: whole}
        yield
        self.row, self.rows, self.blocked = kept

    # ------------------------------------------------------------------------------------------------------- shapes

    def shape_text(self, shape: Shape) -> str:
        return "[" + ", ".join(d.constexpr if n in shape else "1" for n, d in self.blocked.items()) + "]"

    def lane_shape(self, name: str) -> str:
        """The shape of what the lanes of a reduction in a loop keep."""
        return f"[{', '.join(self._lane_extents(name))}]"

    def in_lanes(self, name: str, text: str) -> str:
        """A tensor over the full tile with a dimension more, behind the row, of the neighbours that a lane takes."""
        extents = self._lane_extents(name)
        extents.insert(self.row_axis + 1, str(self.together[name]))
        return f"tl.reshape({text}, [{', '.join(extents)}])"

    def _lane_extents(self, name: str) -> list[str]:
        extents = [dim.constexpr for dim in self.blocked.values()]
        if self.together.get(name, 1) > 1:
            extents[self.row_axis] += f" // {self.together[name]}"
        return extents

    def index_shape(self, index: Dim) -> Shape:
        found: set[str] = set()
        for name in symbols(index):
            if name in self.dim_of:
                found.add(self.dim_of[name])
            else:
                found |= self.shapes.get(name, _SCALAR)
        return frozenset(found)

    def operand(self, name: str) -> Operand:
        return self.values[name]

    def expanded(self, name: str, shape: Shape) -> str:
        """The value `name` as a tensor of exactly `shape`."""
        operand = self.operand(name)
        if self.shapes[name] == shape and not operand.is_literal:
            return operand.text
        return f"tl.broadcast_to({operand.typed}, {self.shape_text(shape)})"

    def edge_masks(self, shape: Shape, access: Load | Store | None = None) -> list[str]:
        """Of lanes outside; of an access, those that reach where nothing may be read or written."""
        ragged = [name for name, dim in self.blocked.items() if name in shape and not dim.is_exact]
        along = None if access is None else row_with_gap(self.buffers[access.buffer], access)
        wide = along[0] if along is not None and along[0] in self.gaps else None
        return [f"{'by' if name == wide else 'in'}_{name}" for name in ragged]

    # --------------------------------------------------------------------------------------------------- statements

    def define(self, s: Define) -> None:
        """Write one pure statement. Reductions and scans have their own methods."""
        if isinstance(s, Const):
            self.values[s.id] = constant(s.value, s.dtype)
            self.shapes[s.id] = _SCALAR
            return
        if isinstance(s, Load):
            text, shape = self._load(s)
        elif isinstance(s, Index):
            shape = self.index_shape(s.expr)
            text = self._index_value(s.expr)
        elif isinstance(s, Compute):
            if s.id in self.fast.unread:
                return
            names = self.fast.operands(s)
            shape = frozenset().union(*(self.shapes[name] for name in names))
            args = [self.operand(name) for name in names]
            args = self._choice_of_row(s, args)
            op = "logical_xor" if s.id in self.exclusive else s.op
            text = self.fast.render(self.context, s, args) or render(self.context, op, s.dtype, args)
        else:
            raise CodegenError(f"{type(s).__name__} is no plain statement")
        self.bind(s, text, shape)

    def _choice_of_row(self, s: Compute, args: list[Operand]) -> list[Operand]:
        """Operands of a choice, which by one of two conditions is made before, where that is one of a row."""
        parts = self.conjunctions.get(s.id, ())
        if not all(name in self.values for name in parts):
            return args
        for inner, outer in (parts, parts[::-1]) if parts else ():
            shape = self.shapes[inner].union(*(self.shapes[name] for name in s.args[1:]))
            if shape < self.shapes[outer]:
                chosen = render(self.context, "where", s.dtype, [self.operand(inner), *args[1:]])
                self.line(f"{s.id}_row = {chosen}", s.dtype.name)
                return [self.operand(outer), Operand(f"{s.id}_row", s.dtype), args[2]]
        return args

    def bind(self, s: Define, text: str, shape: Shape) -> None:
        self.line(f"{s.id} = {text}", s.dtype.name)
        self.values[s.id] = Operand(s.id, s.dtype)
        self.shapes[s.id] = shape

    def _index_value(self, index: Dim) -> str:
        if isinstance(index, int):
            return f"tl.full([], {index}, tl.int64)"
        return f"({index_text(self.context, index, self.ranges)}).to(tl.int64)"

    def _joined(self, index: Dim) -> Dim:
        """An index that walks all axes of a flattened dimension as one: `i * 1024 + j` is `x`."""
        for dim in self.blocked.values():
            if len(dim.axes) < 2 or isinstance(index, int):
                continue
            step = axis_stride(index, dim.axes[-1].name)
            below = 1
            steps = []
            for axis in reversed(dim.axes):
                steps.append(axis_stride(index, axis.name) == below * (step or 0))
                below *= int_extent(axis)
            if step and all(steps):
                index = substitute(index, {axis.name: 0 for axis in dim.axes}) + symbol(dim.name) * step
        return index

    def _address(self, buffer: str, index: Dim, shape: Shape) -> str:
        index = self._joined(index)
        pointer = self.pointers[buffer]
        text = pointer if index == 0 else f"{pointer} + ({index_text(self.context, index, self.ranges)})"
        if self.index_shape(index) != shape:
            text = f"tl.broadcast_to({text}, {self.shape_text(shape)})"
        return text

    def _load(self, s: Load) -> tuple[str, Shape]:
        buffer = self.buffers[s.buffer]
        shape = self.index_shape(s.index)
        masks = self.edge_masks(shape, s)
        if s.mask is None and len(shape) == 1 and shape <= self.vectors.keys() and not _holds_data(s.index):
            return self._vector_load(s, self.blocked[next(iter(shape))]), shape
        if s.mask is not None:
            shape |= self.shapes[s.mask]
            masks = [self.operand(s.mask).typed, *self.edge_masks(shape)]
        text = f"tl.load({self._address(s.buffer, s.index, shape)}"
        if masks:
            other = s.other if s.mask is not None else neutral("sum", buffer.dtype)
            text += f", mask={' & '.join(masks)}, other={constant(other, buffer.dtype).filling}"
        return cast(text + ")", buffer.dtype, s.dtype), shape

    def _vector_load(self, s: Load, dim: TileDim) -> str:
        """A load along an outer row dimension alone."""
        buffer, names = self.buffers[s.buffer], self.vectors[dim.name]
        index = substitute(self._joined(s.index), names)
        text = f"tl.load({self.pointers[s.buffer]} + ({index_text(self.context, index, self.ranges)})"
        if not dim.is_exact:
            zero = literal(neutral("sum", buffer.dtype), buffer.dtype)
            text += f", mask={names[dim.name]} < {dim.extent}, other={zero}"
        return cast(self._placed(text + ")", dim), buffer.dtype, s.dtype)

    def store(self, s: Store) -> None:
        """Write a store; `add` is an atomic addition by every point of the iteration space, `max` an atomic maximum."""
        buffer = self.buffers[s.buffer]
        shape = self.index_shape(s.index) | self.shapes[s.value]
        if s.mask is not None:
            shape |= self.shapes[s.mask]
        if s.mode == "add":
            shape |= {dim.name for dim in self.tiling.parallel if dim.is_blocked}
        value = self.operand(s.value)
        masks = [*([self.operand(s.mask).typed] if s.mask is not None else []), *self.edge_masks(shape, s)]
        converted = cast(value.typed, value.dtype, buffer.dtype)
        function = {"set": "tl.store", "put": "tl.store", "add": "tl.atomic_add", "max": "tl.atomic_max"}[s.mode]
        if s.mode == "add" and (buffer.dtype.itemsize < 4 and buffer.dtype.name != "f16"):
            raise CodegenError(f"no atomic addition on {buffer.dtype.name} in Triton; accumulate in f32 or i32")
        mask = f", mask={' & '.join(masks)}" if masks else ""
        relaxed = ', sem="relaxed"' if s.mode in ("add", "max") else ""
        self.line(f"{function}({self._address(s.buffer, s.index, shape)}, {converted}{mask}{relaxed})")

    # ------------------------------------------------------------------------------------------ reductions and scans

    @property
    def row_axis(self) -> int:
        """Position of the row dimension in tensors, of the first one of two."""
        return len(self.blocked) - max(1, len(self.rows))

    @property
    def full(self) -> Shape:
        return frozenset(self.blocked)

    @property
    def reduced(self) -> Shape:
        return frozenset(name for name, dim in self.blocked.items() if not dim.is_row)

    def inside(self, name: str, op: str) -> str:
        """The value `name` over the full tile, with the neutral element of `op` outside the row."""
        ragged = [dim.name for dim in self.rows if not dim.is_exact]
        if not ragged:
            return self.expanded(name, self.full)
        operand = self.operand(name)
        fill = constant(neutral(op, operand.dtype), operand.dtype)
        mask = " & ".join(f"in_{dim}" for dim in ragged)
        text = f"tl.where({mask}, {operand.argument}, {fill.argument})"
        covers = self.shapes[name] | set(ragged) == self.full
        return text if covers else f"tl.broadcast_to({text}, {self.shape_text(self.full)})"

    def neighbours_reduced(self, name: str, op: str, text: str, dtype: DType) -> str:
        """A tensor over the full tile, reduced along the neighbours that a lane takes."""
        return self._reduced(op, self.in_lanes(name, text), dtype, f"{self.row_axis + 1}")

    def reduced_text(self, op: str, text: str, dtype: DType) -> str:
        """`text`, a tensor over the full tile, reduced along the row; not for argmax and argmin."""
        return self._reduced(op, text, dtype, f"{self.row_axis}, keep_dims=True" if self.row_axis else "0")

    def _reduced(self, op: str, text: str, dtype: DType, axis: str) -> str:
        if op in ("any", "all") or (dtype == bool_ and op in ("max", "min")):
            function = "tl.max" if op in ("any", "max") else "tl.min"
            return f"{function}({text}.to(tl.int32), {axis}) != 0"
        narrow = f".to({tl_dtype(dtype)})" if dtype.is_integral and dtype.itemsize < 4 else ""
        if op == "sum":
            return f"tl.sum({text}, {axis}){narrow}"
        if op == "prod" or dtype.is_float:
            combine = {"prod": "_product", "max": "_maximum", "min": "_minimum"}[op]
            self.context.helpers.add(combine)
            return f"tl.reduce({text}, {axis.split(',')[0]}, {combine}{axis[1:]})"
        return f"tl.{op}({text}, {axis}){narrow}"

    def index_dtype(self) -> DType:
        return i64 if self.tiling.wide else i32

    def row_index(self) -> str:
        """The row index over the full tile, outside the row too large to win a tie."""
        assert self.row is not None
        if self.full == {self.row.name}:
            return self.row.name
        return f"tl.broadcast_to({self.row.name}, {self.shape_text(self.full)})"

    def reduce_tile(self, s: Reduce) -> None:
        """Reduce a value whose whole row is in the tile."""
        if s.op in ("argmax", "argmin"):
            self.arg_reduction(s, self.inside(s.arg, s.op), self.row_index())
        else:
            text = self.reduced_text(s.op, self._one_row(self.inside(s.arg, s.op)), s.dtype)
            if len(self.rows) > 1 and self.reduced:
                text = f"tl.reshape({text}, {self.shape_text(self.reduced)})"
            self.bind(s, text, self.reduced)

    def _one_row(self, text: str) -> str:
        """A tensor over the full tile with two row dimensions as one: no data move."""
        if len(self.rows) < 2:
            return text
        parallel = [dim.constexpr for dim in self.tiling.parallel if dim.is_blocked]
        return f"tl.reshape({text}, [{', '.join([*parallel, ' * '.join(dim.constexpr for dim in self.rows)])}])"

    def arg_reduction(self, s: Reduce, values: str, indices: str) -> None:
        self.context.helpers.add(f"_{s.op}")
        keep = ", keep_dims=True" if len(self.blocked) > 1 else ""
        self.line(f"_, {s.id}_index = tl.reduce(({values}, {indices}), {self.row_axis}, _{s.op}{keep})")
        self.bind(s, f"{s.id}_index.to(tl.int64)", self.reduced)

    def scan_tile(self, s: Scan, carry: str = "") -> None:
        """Scan along the row of the tile; with `carry`, the name of what earlier steps of the loop left."""
        text = self.inside(s.arg, s.op)
        narrow = f".to({tl_dtype(s.dtype)})" if s.dtype.is_integral and s.dtype.itemsize < 4 else ""
        if carry:
            self.line(f"{s.id}_step = {text}")
            text = f"{s.id}_step"
        if s.op == "sum":
            scanned = f"tl.cumsum({text}, {self.row_axis}){narrow}"
        else:
            scanned = f"tl.associative_scan({text}, {self.row_axis}, {self.combine_helper(s.op)})"
        if not carry:
            self.bind(s, scanned, self.full)
            return
        self.bind(s, self.combined(s.op, scanned, carry, s.dtype), self.full)
        self.line(f"{carry} = {self.combined(s.op, carry, self.reduced_text(s.op, text, s.dtype), s.dtype)}")

    def combine_helper(self, op: str) -> str:
        name = {"prod": "_product", "max": "_maximum", "min": "_minimum"}[op]
        self.context.helpers.add(name)
        return name

    def combined(self, op: str, left: str, right: str, dtype: DType) -> str:
        """Two partial results of reduction `op` made one, element by element."""
        if op == "sum":
            return f"{left} + {right}"
        if op == "prod":
            return f"{left} * {right}"
        if dtype == bool_:
            return f"{left} {'|' if op in ('any', 'max') else '&'} {right}"
        arguments: list[Operand] = [Operand(left, dtype), Operand(right, dtype)]
        return render(self.context, {"max": "maximum", "min": "minimum"}[op], dtype, arguments)


def _holds_data(index: Dim) -> bool:
    return any(is_value(name) for name in symbols(index))


def needed(statements: Iterable[Define], wanted: set[str]) -> list[Define]:
    """The statements out of `statements` that the values `wanted` come from, in order."""
    kept: list[Define] = []
    wanted = set(wanted)
    for s in reversed(list(statements)):
        if s.id in wanted:
            kept.append(s)
            wanted.update(operands(s))
    return kept[::-1]
