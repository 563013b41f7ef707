"""Which elements of its operands an op reads, found by running the op's own lowering rule on symbols.

Fusion needs the places that kernels read, not the code: so the rule that writes the code is run against a context that
only takes notes. There is no second description of any op.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from graphc.errors import LoweringError
from graphc.ir.dims import Dim, Ranges, simplify, symbol, symbols
from graphc.ir.graph import Op, Operand, Value
from graphc.ir.types import DType
from graphc.ops.registry import KeptIndex, Kind, get
from graphc.ops.rules import broadcast_index

Index: TypeAlias = tuple[Dim, ...]
"""One index expression per dim of a value; 0 for dims of size 1."""


class Read(NamedTuple):
    """One access of an op to an operand.

    Args:
        operand: its position.
        place: the element; for a reduction its position along the dims that are kept.
        masked: the element is not read everywhere.
        dims: the dims reduced over, or None.
        scan: the dim of a running reduction, or None.
    """

    operand: int
    place: Index
    masked: bool = False
    dims: tuple[int, ...] | None = None
    scan: int | None = None


class DataIndex(NamedTuple):
    """A symbol of an index expression whose value is loaded.

    Args:
        name: the symbol.
        depends: axes that the loaded value varies with, and other such symbols.
        extent: it lies in [0, extent).
    """

    name: str
    depends: frozenset[str]
    extent: int


class Trace(NamedTuple):
    """All accesses of one op for one element of its result, and the data-dependent indices in them (`d0`, `d1`)."""

    reads: tuple[Read, ...]
    data: tuple[DataIndex, ...] = ()


def normalise(index: Index, shape: tuple[Dim, ...], ranges: Ranges) -> Index:
    """`index` simplified, with 0 along dims of size 1: equal places get equal tuples."""
    return tuple(
        0 if size == 1 else part if isinstance(part, int) else simplify(part, ranges)
        for part, size in zip(index, shape, strict=True)
    )


class _Notes:
    """An `ElementContext` that writes down reads. Its values are `t0`, `t1`, ... with the axes they vary with."""

    def __init__(self, op: Op, ranges: Ranges) -> None:
        self.op = op
        self.ranges = dict(ranges)
        self.reads: list[Read] = []
        self.data: list[DataIndex] = []
        self.depends: list[frozenset[str]] = []

    def value(self, depends: frozenset[str]) -> str:
        self.depends.append(depends)
        return f"t{len(self.depends) - 1}"

    def note(self, operand: Operand, index: Index, masked: bool) -> str:
        if not isinstance(operand, Value):
            return self.value(frozenset())
        place = normalise(index, operand.shape, self.ranges)
        self.reads.append(Read(self.position(operand), place, masked))
        return self.value(_union(place))

    def position(self, operand: Value) -> int:
        for number, item in enumerate(self.op.operands):
            if item is operand:
                return number
        raise LoweringError(f"the lowering of {self.op.name} reads a value that is not its operand", self.op.location)

    def element(self, operand: Operand, index: Index) -> str:
        return self.note(operand, index, False)

    def masked_element(self, operand: Operand, index: Index, mask: str, other: float) -> str:
        return self.note(operand, index, True)

    def compute(self, op: str, *args: str, dtype: DType) -> str:
        return self.value(frozenset().union(*(self.depends[int(arg[1:])] for arg in args)))

    def constant(self, value: bool | int | float, dtype: DType) -> str:
        return self.value(frozenset())

    def index_value(self, expr: Dim) -> str:
        return self.value(symbols(expr))

    def data_index(self, value: str, extent: Dim) -> Dim:
        if not isinstance(extent, int):
            raise LoweringError(f"{self.op.name} indexes a dim of symbolic size {extent}", self.op.location)
        name = f"d{len(self.data)}"
        self.data.append(DataIndex(name, self.depends[int(value[1:])], extent))
        self.ranges[name] = (0, max(extent - 1, 0))
        return symbol(name)

    def check(self, failed: str, value: str, error: str, message: str) -> None:
        """Reads nothing."""

    def reduce(self, op: str, operand: Operand, dims: tuple[int, ...], index: Index, dtype: DType) -> str:
        assert isinstance(operand, Value)
        kept = tuple(size for dim, size in enumerate(operand.shape) if dim not in dims)
        place = normalise(index, kept, self.ranges)
        self.reads.append(Read(self.position(operand), place, dims=tuple(dims)))
        return self.value(_union(place))

    def contract(
        self, left: Operand, left_index: KeptIndex, right: Operand, right_index: KeptIndex,
        within: tuple[str, str] | None = None, dtype: DType | None = None,
    ) -> str:  # fmt: skip
        places: Index = ()
        for number, (dim, kept) in enumerate((left_index, right_index)):
            operand = self.op.operands[number]
            assert isinstance(operand, Value)
            sizes = tuple(size for at, size in enumerate(operand.shape) if at != dim)
            place = normalise(kept, sizes, self.ranges)
            self.reads.append(Read(number, place, within is not None, dims=(dim,)))
            places += place
        return self.value(_union(places))

    def scan(self, op: str, operand: Operand, dim: int, index: Index, dtype: DType) -> str:
        assert isinstance(operand, Value)
        place = normalise(index, operand.shape, self.ranges)
        self.reads.append(Read(self.position(operand), place, scan=dim))
        return self.value(_union(place))


def _union(index: Index) -> frozenset[str]:
    return frozenset().union(*(symbols(part) for part in index))


_cache: dict[object, Trace] = {}
_CACHE_LIMIT = 20_000


def trace(op: Op, index: Index, ranges: Mapping[str, tuple[int, int | None]]) -> Trace:
    """What `op` reads to give element `index` of its result.

    Args:
        op: an op with a lowering rule, or a rule for where its source goes.
        index: normalised, over axes and data-dependent indices.
        ranges: inclusive bounds of every symbol in it.

    Raises:
        LoweringError: the op has no lowering rule.
    """
    definition = get(op.name)
    if definition.kind is Kind.POINTWISE:
        return _pointwise(op, index)
    key = _key(op, index, ranges)
    found = _cache.get(key)
    if found is None:
        lower = definition.lower or definition.contract or definition.place
        if lower is None:
            raise LoweringError(f"{op.name} has no lowering", op.location)
        notes = _Notes(op, ranges)
        lower(notes, op, index)
        found = Trace(tuple(dict.fromkeys(notes.reads)), tuple(notes.data))
        if len(_cache) >= _CACHE_LIMIT:
            _cache.clear()
        _cache[key] = found
    return found


def _pointwise(op: Op, index: Index) -> Trace:
    shape = op.results[0].type.shape
    reads = []
    for number, operand in enumerate(op.operands):
        if isinstance(operand, Value):
            place = index if operand.type.shape == shape else broadcast_index(operand, index)
            reads.append(Read(number, place))
    return Trace(tuple(reads))


def _key(op: Op, index: Index, ranges: Mapping[str, tuple[int, int | None]]) -> object:
    names = _union(index)
    operands = op.operands
    return (
        op.name,
        attrs_key(op),
        tuple(
            [(operands.index(item), item.type.shape) if isinstance(item, Value) else repr(item) for item in operands]
        ),
        op.results[0].type.shape,
        index,
        tuple([ranges[name] for name in sorted(names)]),
    )


def attrs_key(op: Op) -> str:
    """Attributes as text; what `==` would confuse (1, 1.0, True) stays apart."""
    attrs = op.attrs
    if len(attrs) > 1:
        return repr(sorted(attrs.items()))
    return repr(attrs) if attrs else ""
