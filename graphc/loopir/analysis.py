"""Facts about kernels that code generators decide by: strides of accesses, costs, the axis to vectorise, safe axes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from graphc.ir.dims import Dim, Sym, bounds, symbols
from graphc.ir.sizes import typical
from graphc.ir.types import DType
from graphc.loopir.kernel import (
    Axis,
    Buffer,
    Compute,
    Const,
    Define,
    Index,
    Kernel,
    Load,
    Reduce,
    Scan,
    Statement,
    Store,
    is_value,
    operands,
)
from graphc.loopir.scalar import SCALAR_OPS
from graphc.loopir.transform import axis_ranges

ASSUMED_EXTENT = 1024
"""What a symbolic extent counts for in cost estimates."""

Access = Load | Store


class KernelFacts:
    """Facts about one kernel, computed once.

    Attributes:
        by_id: the defining statement of each value.
        dtypes: dtype of each value.
        rows: names of row axes.
        stage: per value, how many reductions must be complete before it can be computed; unlike `Kernel.stages` a scan
            belongs to the stage of its operand, since it needs no loop of its own.
        ranges: bounds of axes.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.by_id: dict[str, Define] = {s.id: s for s in kernel.defines}
        self.dtypes: dict[str, DType] = {s.id: s.dtype for s in kernel.defines}
        self.buffers: dict[str, Buffer] = {b.name: b for b in kernel.buffers}
        self.axes: dict[str, Axis] = {a.name: a for a in kernel.axes}
        self.rows = frozenset(a.name for a in kernel.row_axes)
        self.domains = kernel.domains
        self.ranges = axis_ranges(kernel.axes)
        self.stage: dict[str, int] = {}
        for s in kernel.defines:
            stage = max((self.stage[name] for name in operands(s)), default=0)
            self.stage[s.id] = stage + 1 if isinstance(s, Reduce) else stage
        self._cost: dict[str, int] = {}

    def extent(self, axis: str) -> int:
        """Steps of an axis, an assumed number when it is symbolic."""
        found = self.axes[axis].extent
        return found if isinstance(found, int) else ASSUMED_EXTENT

    def points(self, domain: Iterable[str]) -> int:
        """Number of points of a set of axes."""
        total = 1
        for axis in domain:
            total *= self.extent(axis)
        return total

    def domain(self, s: Statement) -> frozenset[str]:
        """Axes a statement is executed along."""
        if isinstance(s, Store):
            found = self.index_domain(s.index) | self.domains[s.value]
            return found | self.domains[s.mask] if s.mask is not None else found
        return self.domains[s.id]

    def index_domain(self, index: Dim) -> frozenset[str]:
        found: frozenset[str] = frozenset()
        for name in symbols(index):
            if name in self.axes:
                found |= {name}
            elif is_value(name):
                found |= self.domains[name]
        return found

    def is_element(self, name: str) -> bool:
        """True for values that change along a row."""
        return bool(self.domains[name] & self.rows)

    @cached_property
    def total_cost(self) -> int:
        """Estimated work of the whole kernel, in additions."""
        total = 0
        for s in self.kernel.body:
            if isinstance(s, (Reduce, Scan)):
                total += self.points(self.reduced(s))
            else:
                total += statement_cost(s) * self.points(self.domain(s))
        return total

    def reduced(self, s: Reduce | Scan) -> frozenset[str]:
        """Axes along which a reduction or a scan takes up values."""
        over = frozenset(s.over) if isinstance(s, Reduce) else frozenset()
        return self.domains[s.arg] | (over or self.rows)

    def recompute_cost(self, name: str) -> int:
        """Cost of computing an element value again from memory and from values that do not change along the row."""
        found = self._cost.get(name)
        if found is None:
            s = self.by_id[name]
            found = statement_cost(s)
            for operand in operands(s):
                if self.is_element(operand):
                    found += self.recompute_cost(operand)
            self._cost[name] = found
        return found

    def accesses(self) -> Iterator[Access]:
        return (s for s in self.kernel.body if isinstance(s, (Load, Store)))

    def vector_axis(self, allowed: Iterable[str]) -> str | None:
        """The axis along which most memory traffic is contiguous; row axes win ties, then inner axes.

        Args:
            allowed: names to choose from.
        """
        candidates = [a.name for a in self.kernel.axes if a.name in set(allowed)]
        if not candidates:
            return None
        return max(reversed(candidates), key=lambda name: (self._contiguity(name), name in self.rows))

    def _contiguity(self, axis: str) -> float:
        score = 0.0
        total = typical(self.points(self.axes)) or 1
        for s in self.accesses():
            step = self.step(s.index, axis)
            is_store = isinstance(s, Store)
            if step == 0:
                continue
            worth = {1: 3.0 if is_store else 2.0, -1: 1.0}.get(step or 0, -2.0 if is_store else -1.0)
            score += worth * typical(self.points(self.domain(s))) / total
        return score * min(typical(self.extent(axis)), 8) / 8 if score > 0 else score

    def step(self, index: Dim, axis: str) -> int | None:
        """How far an index moves per step of an axis; None when that is not one number."""
        if axis not in self.index_domain(index):
            return 0
        assert not isinstance(index, int)
        found = 0
        for monomial, coefficient in index.terms:
            if len(monomial) == 1 and isinstance(monomial[0], Sym) and monomial[0].name == axis:
                found = coefficient
            elif any(_depends(atom, axis, self) for atom in monomial):
                return None
        return found

    def is_disjoint(self, axis: str, stores: Iterable[Store] | None = None) -> bool:
        """True when two steps of an axis never write one place with an order that matters.

        Stores at affine indices in mode set are taken to be injective. In modes add and put, and for data-dependent
        indices, each step must write its own range: `v3*64 + j` is disjoint along `j` of extent 64. A data-dependent
        part with a smaller stride is taken to stay inside its own dimension, as lowering promises.
        """
        for s in self.kernel.stores if stores is None else stores:
            is_data = any(is_value(name) for name in symbols(s.index))
            if (s.mode in ("add", "put") or is_data) and not self._owns_range(s.index, axis):
                return False
        return True

    def _owns_range(self, index: Dim, axis: str) -> bool:
        extent = self.axes[axis].extent
        if not isinstance(extent, int) or isinstance(index, int):
            return False
        # a part that is data may vary with the axis too
        step = next((factor for monomial, factor in index.terms if monomial == (Sym(axis),)), 0)
        if not step:
            return False
        stride = abs(step)
        small: Dim = 0
        for monomial, coefficient in index.terms:
            if not monomial or coefficient % (stride * extent) == 0:
                continue
            if len(monomial) != 1 or not isinstance(monomial[0], Sym):
                return False
            name = monomial[0].name
            if name == axis:
                continue
            if is_value(name):
                if stride % coefficient:
                    return False
                continue
            small = small + _term(monomial, coefficient)
        low, high = bounds(small, self.ranges)
        return low is not None and high is not None and low >= 0 and high < stride


def _term(monomial: tuple[Sym, ...] | tuple[object, ...], coefficient: int) -> Dim:
    from graphc.ir.dims import Expr

    return Expr(((monomial, coefficient),))  # type: ignore[arg-type]


def _depends(atom: object, axis: str, facts: KernelFacts) -> bool:
    if isinstance(atom, Sym):
        return atom.name == axis or (is_value(atom.name) and axis in facts.domains[atom.name])
    numerator: Dim = atom.numerator  # type: ignore[attr-defined]
    return axis in facts.index_domain(numerator)


def statement_cost(s: Statement) -> int:
    """Rough cost of one execution, in additions."""
    if isinstance(s, Const):
        return 0
    if isinstance(s, Compute):
        return SCALAR_OPS[s.op].cost
    return 1


def closure(
    targets: Iterable[str], by_id: Mapping[str, Define], stop: frozenset[str] | set[str] = frozenset()
) -> set[str]:
    """Values needed to compute `targets`, those in `stop` and what only they need left out."""
    found: set[str] = set()
    stack = [name for name in targets if name not in stop]
    while stack:
        name = stack.pop()
        if name in found:
            continue
        found.add(name)
        stack.extend(operand for operand in operands(by_id[name]) if operand not in stop)
    return found


def breakpoints(facts: KernelFacts, axis: str, names: Iterable[str]) -> list[int]:
    """Positions along an axis where a comparison of indices among the values `names` changes its truth.

    Only comparisons that are linear in the axis and depend on nothing else count.
    """
    found: set[int] = set()
    extent = facts.axes[axis].extent
    if not isinstance(extent, int):
        return []
    for name in names:
        s = facts.by_id[name]
        difference = index_difference(facts, s)
        if difference is None or symbols(difference) != {axis}:
            continue
        step = facts.step(difference, axis)
        if not step:
            continue
        assert not isinstance(difference, int)
        offset = next((c for monomial, c in difference.terms if not monomial), 0)
        zero = -offset // step  # where the difference is zero, or the last before
        for cut in (zero, zero + 1):
            if 0 < cut < extent:
                found.add(cut)
    return sorted(cut for cut in found if _changes(facts, axis, names, cut))


def _changes(facts: KernelFacts, axis: str, names: Iterable[str], cut: int) -> bool:
    before, after = known_truths(facts, {axis: (cut - 1, cut - 1)}), known_truths(facts, {axis: (cut, cut)})
    return any(before.get(name) != after.get(name) for name in names)


def index_difference(facts: KernelFacts, s: Define) -> Dim | None:
    """`a - b` for a comparison of two index expressions or integer constants, else None."""
    if not isinstance(s, Compute) or s.op not in ("lt", "le", "gt", "ge", "eq", "ne"):
        return None
    sides: list[Dim] = []
    for name in s.args:
        source = facts.by_id[name]
        if isinstance(source, Index):
            sides.append(source.expr)
        elif isinstance(source, Const) and source.dtype.kind == "int":
            sides.append(int(source.value))
        else:
            return None
    return sides[0] - sides[1]


def known_truths(facts: KernelFacts, narrowed: Mapping[str, tuple[int, int | None]]) -> dict[str, bool]:
    """Truth of bool values that follows from bounds of axes.

    Args:
        narrowed: bounds of some axes; the others run over their whole extent.
    """
    ranges = {**facts.ranges, **narrowed}
    known: dict[str, bool] = {}
    for s in facts.kernel.defines:
        if s.dtype.kind != "bool":
            continue
        if isinstance(s, Const):
            known[s.id] = bool(s.value)
            continue
        if not isinstance(s, Compute):
            continue
        difference = index_difference(facts, s)
        truth = _logic(s, known) if difference is None else _comparison(s.op, *bounds(difference, ranges))
        if truth is not None:
            known[s.id] = truth
    return known


def _logic(s: Compute, known: Mapping[str, bool]) -> bool | None:
    truths = [known.get(name) for name in s.args]
    if s.op in ("logical_and", "bitwise_and"):
        return False if False in truths else True if all(truths) else None
    if s.op in ("logical_or", "bitwise_or"):
        return True if True in truths else False if truths == [False, False] else None
    if s.op in ("logical_not", "bitwise_not"):
        return None if truths[0] is None else not truths[0]
    return None


def _comparison(op: str, low: int | None, high: int | None) -> bool | None:
    """Truth of `x op 0` for low <= x <= high."""
    at_most = {"lt": high is not None and high < 0, "le": high is not None and high <= 0}
    at_least = {"gt": low is not None and low > 0, "ge": low is not None and low >= 0}
    zero = low == 0 and high == 0
    nonzero = at_most["lt"] or at_least["gt"]
    yes = {**at_most, **at_least, "eq": zero, "ne": nonzero}[op]
    no = {
        "lt": at_least["ge"],
        "le": at_least["gt"],
        "gt": at_most["le"],
        "ge": at_most["lt"],
        "eq": nonzero,
        "ne": zero,
    }[op]
    return True if yes else False if no else None
