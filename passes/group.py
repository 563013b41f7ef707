"""Fusion groups: what becomes one kernel, as index expressions over one iteration space.

    axes    i0: 512, i1: 256          parallel axes x row axes; rows = (i1) are those its reductions run over
    roots   %y at (i0, i1)            values it may store, each with the element it gives at a point of the space
    visits  %x at (i0, i1), %m at (i0, 0), ...     every element it computes or reads at that point

The visits come from running lowering rules on symbols (`graphc.passes.access`), so a group knows exactly what it reads
without any code having been made.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from graphc.ir.dims import Dim, FloorDiv, Mod, Ranges, Sym, simplify, substitute, symbol, symbols
from graphc.ir.graph import Op, Value
from graphc.ir.types import HOST, contiguous_strides
from graphc.ops.rules import flatten_index, unflatten_index
from graphc.passes.access import Index, Read, normalise, trace
from graphc.passes.layout import Place, int_shape

MAX_VISITS = 500
MAX_ARGUMENTS = 48
"""Size at which a group takes nothing more in: beyond it kernels spill registers and compile slowly."""


@dataclass(frozen=True)
class RowLimits:
    """When a row may be walked more than once by one worker: there are many rows, or they are short.

    Args:
        many: rows that keep a machine busy.
        short: elements that one worker may walk alone.
    """

    many: int
    short: int


ALWAYS = RowLimits(0, 0)


@dataclass(slots=True)
class Visit:
    """A value at one element.

    Args:
        masked: not reached at every point.
        expanded: the element is computed here and its operands have been visited.
    """

    masked: bool
    expanded: bool = False


@dataclass(eq=False)
class Group:
    """See the module. Compared by identity.

    Attributes:
        axes: extent of each axis, in order; dims of size 1 have no axis.
        rows: the row axes, outermost first.
        overwrites: for a root that is stored into the memory of another value, that value.
        stores: for a root that is stored as a part of a buffer, that part; its root index is then over the part.
        data: loaded indices in index expressions: the axes they vary with.
        ranges: inclusive bounds of all symbols, for simplification.
        has_scan: it holds a running reduction, so it has exactly one row axis, for good.
        contracts: it holds a product of matrices: its row axis, for good, is the one summed over.
        sums: for products within that one's operands, the axes that they sum over.
        stage: what it may not be merged with, see `graphc.passes.commits`.
        size, open: elements visited; values among them that are not computed here (so far).
    """

    device: str
    position: float
    axes: dict[str, int] = field(default_factory=dict)
    rows: tuple[str, ...] = ()
    roots: dict[Value, Index] = field(default_factory=dict)
    overwrites: dict[Value, Value] = field(default_factory=dict)
    visits: dict[Value, dict[Index, Visit]] = field(default_factory=dict)
    stores: dict[Value, Place] = field(default_factory=dict)
    data: dict[str, frozenset[str]] = field(default_factory=dict)
    ranges: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    has_scan: bool = False
    contracts: bool = False
    sums: dict[Value, tuple[str, ...]] = field(default_factory=dict)
    size: int = 0
    open: int = 0
    stage: int = 0

    # building

    def add_axis(self, extent: int, prefix: str = "i") -> Dim:
        """A new axis as an index expression; 0 for extent 1."""
        if extent == 1:
            return 0
        number = len(self.axes)
        while f"{prefix}{number}" in self.axes:
            number += 1
        name = f"{prefix}{number}"
        self.axes[name] = extent
        self.ranges[name] = (0, max(extent - 1, 0))
        return symbol(name)

    def visit(self, value: Value, index: Index, masked: bool = False) -> None:
        """Note that an element is needed."""
        places = self.visits.get(value)
        if places is None:
            places = self.visits[value] = {}
            self.open += 1
        found = places.get(index)
        if found is None:
            places[index] = Visit(masked)
            self.size += 1
        elif found.masked and not masked:
            found.masked = False

    def expand(self, value: Value, index: Index) -> list[Value]:
        """Compute an element here: visit what it is made of. Row axes must be in place (`admit`).

        Returns:
            The operands visited.
        """
        op = value.op
        assert op is not None
        places = self.visits[value]
        visit = places[index]
        if not any(other.expanded for other in places.values()):
            self.open -= 1
        visit.expanded = True
        found = trace(op, index, self.ranges)
        renamed = self._adopt_data(found.data) if found.data else {}
        reached: list[Value] = []
        for read in found.reads:
            operand = op.operands[read.operand]
            assert isinstance(operand, Value)
            if read.dims is None and not renamed:
                place = read.place
            else:
                place = self._place(operand, read, renamed, self.sums.get(value, self.rows))
            self.visit(operand, place, visit.masked or read.masked)
            reached.append(operand)
        return reached

    def _adopt_data(self, data: tuple[object, ...]) -> dict[str, Dim]:
        renamed: dict[str, Dim] = {}
        for item in data:
            name = f"g{len(self.data)}"
            depends = item.depends  # type: ignore[attr-defined]
            axes = frozenset().union(*(self.data.get(_name(renamed.get(d, d)), frozenset((d,))) for d in depends))
            self.data[name] = axes
            self.ranges[name] = (0, max(item.extent - 1, 0))  # type: ignore[attr-defined]
            renamed[item.name] = symbol(name)  # type: ignore[attr-defined]
        return renamed

    def _place(self, operand: Value, read: Read, renamed: dict[str, Dim], rows: tuple[str, ...]) -> Index:
        index = tuple(substitute(part, renamed) for part in read.place) if renamed else read.place
        if read.dims is None:
            return index
        return self.row_index(operand, read.dims, index, rows)

    def row_index(
        self, operand: Value, dims: tuple[int, ...], kept: Index, rows: tuple[str, ...] | None = None
    ) -> Index:
        """The element of a reduction's operand at this point of the space: row axes along the reduced dims.

        Args:
            rows: which; None = those of the group.
        """
        shape = int_shape(operand)
        along = iter(self.row_parts(tuple(shape[dim] for dim in dims), rows))
        others = iter(kept)
        index = tuple(next(along) if dim in dims else next(others) for dim in range(len(shape)))
        return normalise(index, shape, self.ranges)

    def row_parts(self, extents: tuple[int, ...], rows: tuple[str, ...] | None = None) -> Index:
        """The row axes, flattened in order, as an index into dims of the given extents."""
        rows = self.rows if rows is None else rows
        own = tuple(self.axes[name] for name in rows)
        parts = tuple(symbol(name) for name in rows)
        if own == tuple(extent for extent in extents if extent != 1):
            named = iter(parts)
            return tuple(0 if extent == 1 else next(named) for extent in extents)
        flat = flatten_index(parts, own)
        return tuple(simplify(part, self.ranges) for part in unflatten_index(flat, extents))

    # questions

    def axes_of(self, index: Index) -> frozenset[str]:
        """Axes an element varies with, through loaded indices too."""
        found: set[str] = set()
        for part in index:
            for name in symbols(part):
                found |= self.data.get(name, frozenset((name,)))
        return frozenset(found)

    def points(self, index: Index) -> int:
        """How many different points of the space an element is needed at."""
        total = 1
        for name in self.axes_of(index):
            total *= self.axes[name]
        return total

    @property
    def parallel(self) -> tuple[str, ...]:
        return tuple(name for name in self.axes if name not in self.rows and name not in self.inner)

    @property
    def inner(self) -> tuple[str, ...]:
        """The axes that products within an operand sum over."""
        return tuple(name for names in self.sums.values() for name in names)

    def extent(self, names: tuple[str, ...] | frozenset[str]) -> int:
        """Number of points along some axes."""
        total = 1
        for name in names:
            total *= self.axes[name]
        return total

    def covers(self, index: Index, shape: tuple[int, ...]) -> frozenset[str] | None:
        """The axes over which `index` meets every element of a value exactly once, or None when it does not.

        Recognised forms: axes in any order, dims merged or split by a reshape. Everything else counts as no.
        """
        strides = contiguous_strides(shape)
        flat: Dim = 0
        for part, stride in zip(index, strides, strict=True):
            flat = flat + part * stride
        flat = simplify(flat, self.ranges)
        total = 1
        for size in shape:
            total *= size
        if isinstance(flat, int):
            return frozenset() if flat == 0 and total == 1 else None
        steps: list[tuple[int, int]] = []
        halves: dict[str, list[tuple[str, int]]] = {}
        for monomial, coefficient in flat.terms:
            if len(monomial) != 1:
                return None
            found = self._axis_part(monomial[0])
            if found is None:
                return None
            name, kind, extent = found
            halves.setdefault(name, []).append((kind, extent))
            steps.append((coefficient, extent))
        if not all(_complete(parts, self.axes[name]) for name, parts in halves.items()):
            return None
        expected = 1
        for coefficient, extent in sorted(steps):
            if coefficient != expected:
                return None
            expected *= extent
        return frozenset(halves) if expected == total else None

    def _axis_part(self, atom: Sym | FloorDiv | Mod) -> tuple[str, str, int] | None:
        """(axis, how, extent) of an atom that is an axis or one half of an axis cut in two."""
        if isinstance(atom, Sym):
            return (atom.name, "whole", self.axes[atom.name]) if atom.name in self.axes else None
        inner, cut = atom.numerator, atom.denominator
        if isinstance(inner, int) or not isinstance(cut, int) or len(inner.terms) != 1:
            return None
        ((monomial, coefficient),) = inner.terms
        if coefficient != 1 or len(monomial) != 1 or not isinstance(monomial[0], Sym):
            return None
        name = monomial[0].name
        if name not in self.axes or self.axes[name] % cut != 0:
            return None
        return (name, "high", self.axes[name] // cut) if isinstance(atom, FloorDiv) else (name, "low", cut)

    # reductions

    def admit(self, op: Op, index: Index, limits: RowLimits) -> bool:
        """Make room for a reduction or scan at `index`: set row axes if they are not set yet.

        Args:
            op: the reduction.
            index: the element of its result that is needed here.
            limits: which rows may be walked again for elements.

        Returns:
            False when this space cannot hold it; then nothing has changed.
        """
        if self.contracts:
            return False
        found = trace(op, index, self.ranges)
        for read in found.reads:
            operand = op.operands[read.operand]
            assert isinstance(operand, Value)
            if read.dims is not None and not self._admit_reduce(operand, read, limits):
                return False
            if read.scan is not None and not self._admit_scan(operand, read.place, read.scan):
                return False
        return True

    def admit_contraction(self, op: Op, index: Index) -> bool:
        """Make room for a product of matrices of which every element is needed at just one point of this space.

        Args:
            op: the product.
            index: the element of its result that is needed here.

        Returns:
            False when this space cannot hold it; then nothing has changed.
        """
        if self.rows or self.contracts or self.covers(index, int_shape(op.results[0])) != frozenset(self.axes):
            return False
        rows, columns = (self.axes_of((part,)) for part in index[-2:])
        if rows & columns or self.axes_of(index[:-2]) & (rows | columns):
            return False
        left = op.operands[0]
        assert isinstance(left, Value)
        axis = self.add_axis(int_shape(left)[-1], "r")
        self.rows, self.contracts = () if axis == 0 else (_name(axis),), True
        return True

    def admit_inner(self, op: Op, index: Index) -> bool:
        """Make room for a product within an operand of the one that this space is for.

        Returns:
            False when its rows and columns are not apart in this space; then nothing has changed.
        """
        rows, columns = (self.axes_of((part,)) for part in index[-2:])
        left = op.operands[0]
        assert isinstance(left, Value)
        if not self.contracts or rows & columns or self.axes_of(index[:-2]) & (rows | columns):
            return False
        axis = self.add_axis(int_shape(left)[-1], "e")
        self.sums[op.results[0]] = () if axis == 0 else (_name(axis),)
        return True

    def _admit_reduce(self, operand: Value, read: Read, limits: RowLimits) -> bool:
        assert read.dims is not None
        extents = tuple(size for size in (int_shape(operand)[d] for d in read.dims) if size != 1)
        used = self.axes_of(read.place)
        if not extents:
            return True
        row = 1
        for extent in extents:
            row *= extent
        if self.rows:
            once = self.extent(used) == self.extent(self.parallel)
            return once and not (used & frozenset(self.rows)) and self.extent(self.rows) == row
        rest = tuple(name for name in self.axes if name not in used)
        if not rest:
            names = tuple(_name(self.add_axis(extent, "r")) for extent in extents)
            self.rows = names
            return True
        if self.extent(rest) != row or not worth_rows(self.extent(used), row, limits):
            return False
        self.rows = rest
        return True

    def _admit_scan(self, operand: Value, index: Index, dim: int) -> bool:
        if operand.shape[dim] == 1:
            return True
        name = _bare(index[dim])
        if name is None or self.axes.get(name) != operand.shape[dim] or (self.rows and self.rows != (name,)):
            return False
        others = (*index[:dim], *index[dim + 1 :])
        if name in self.axes_of(others):
            return False
        self.rows, self.has_scan = (name,), True
        return True


def worth_rows(count: int, row: int, limits: RowLimits) -> bool:
    """Whether `count` rows of `row` elements are to be walked several times by one worker each."""
    return count >= limits.many or row <= limits.short


def _complete(parts: list[tuple[str, int]], extent: int) -> bool:
    kinds = sorted(kind for kind, _ in parts)
    if kinds == ["whole"]:
        return True
    return kinds == ["high", "low"] and parts[0][1] * parts[1][1] == extent


def _bare(part: Dim) -> str | None:
    """The axis that an index expression is, if it is nothing else."""
    if isinstance(part, int) or len(part.terms) != 1:
        return None
    ((monomial, coefficient),) = part.terms
    if coefficient != 1 or len(monomial) != 1 or not isinstance(monomial[0], Sym):
        return None
    return monomial[0].name


bare = _bare


def _name(part: Dim | str) -> str:
    if isinstance(part, str):
        return part
    found = _bare(part)
    assert found is not None
    return found


def device_of(value: Value) -> str:
    """Where kernels that make this value run: host scalars are made on the CPU."""
    return "cpu" if value.device == HOST else value.device


def group_of(value: Value, position: float) -> Group:
    """A group that computes one value, with an axis per dim; nothing is expanded yet."""
    group = Group(device_of(value), position)
    index = tuple(group.add_axis(size) for size in int_shape(value))
    group.roots[value] = index
    group.visit(value, index)
    return group


def rename(group: Group, mapping: dict[str, Dim], ranges: Ranges, index: Index) -> Index:
    """An index of `group` over other axes."""
    return tuple(simplify(substitute(part, mapping), ranges) for part in index)


def iterations(group: Group, index: Index) -> int:
    """How often an element is computed when loops run in axis order, rows innermost."""
    used = group.axes_of(index)
    total = seen = 1
    for name in (*group.parallel, *group.rows):
        total *= group.axes[name]
        if name in used:
            seen = total
    return seen
