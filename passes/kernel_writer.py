"""A group written as a kernel: the element of each of its roots, by the lowering rules of its ops.

What is known while compiling is decided here: comparisons of positions, casts that change nothing, masks.
"""

from __future__ import annotations

from typing import TypeAlias

from graphc.errors import LoweringError
from graphc.ir.dims import Dim, bounds, simplify, symbol
from graphc.ir.graph import Op, Operand, Value
from graphc.ir.sizes import Size
from graphc.ir.types import HOST, UNFAILED, DType, bool_, f32, i64
from graphc.loopir.bounded import drop_idle_bounds
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.comparisons import cancel_positions
from graphc.loopir.kernel import PARALLEL, ROW, Axis, Buffer, Kernel
from graphc.loopir.transform import drop_dead, drop_idle_axes
from graphc.ops.registry import KeptIndex, Kind, get
from graphc.ops.rules import broadcast_index
from graphc.passes.access import Index, normalise
from graphc.passes.axes import tidy
from graphc.passes.layout import Place, flat_index, int_shape, span
from graphc.passes.naming import buffer_names, kernel_name, notes
from graphc.passes.outline import Argument, Outline, memory_dtype
from graphc.passes.updates import scatters

WHOLE, CHECKS_ONLY, UNCHECKED = "whole", "checks only", "unchecked"
"""Parts of a kernel that checks data: see `Lowering.lower`."""

Check: TypeAlias = tuple[int, str, str]
"""Which op of an outline checks data, and the class and message of what eager raises."""


class _Missing(Exception):
    """An element that has to be written before the one that asks for it."""

    def __init__(self, key: tuple[Value, Index, str | None]) -> None:
        super().__init__()
        self.key = key


class KernelWriter:
    """An `ElementContext` that writes a group into a kernel.

    A lowering rule that asks for an element not written yet is stopped and run again later, so depth costs no stack;
    what it wrote before is found again by the builder, statement for statement.
    """

    def __init__(self, outline: Outline, numerics: str, tf32: bool) -> None:
        self.outline, self.group, self.numerics, self.tf32 = outline, outline.group, numerics, tf32
        group = self.group
        axes = [Axis(name, group.axes[name], PARALLEL) for name in group.parallel]
        axes += [Axis(name, group.axes[name], ROW) for name in (*group.rows, *group.inner)]
        self.builder = KernelBuilder(tuple(axes))
        self.names = buffer_names(outline.arguments)
        self.sizes = [0] * len(outline.arguments)
        self.known: dict[tuple[Value, Index, str | None], str] = {}
        self.expressions: dict[str, Dim] = {}
        self.widened: dict[str, str] = {}  # f32 values that are bf16 or f16 ones, widened
        self.op: Op | None = None
        self.mask: str | None = None
        # per check what fails it: conditions with the values to report
        self.checks: dict[tuple[Op, str, str], dict[tuple[str, str], None]] = {}

    def write(self, part: str = WHOLE) -> tuple[Kernel, tuple[int, ...], tuple[Check, ...]]:
        """The kernel, which argument of the outline each of its buffers is, and what its checks are."""
        outline, builder = self.outline, self.builder
        values: list[str] = []
        targets: dict[Value, Index] = {}
        for root in outline.stores:
            source = outline.source(root)
            index = normalise(self.group.roots[root], int_shape(source), builder.ranges)
            values.append(self._to_memory(self._evaluate(source, index), root))
            if scatters(self.group, root):
                targets[root] = self._target(root, index)
        checks = self._store_checks() if part != UNCHECKED else ()
        stores = outline.stores.items() if part != CHECKS_ONLY else ()
        # stores come last: one may go to memory that another value is loaded from
        added: set[int] = set()
        for (root, place), value in zip(stores, values, strict=part != CHECKS_ONLY):
            number = outline.argument(place, True)
            self.sizes[number] = max(self.sizes[number], span(place.shape, place.strides))
            index, mode = self.group.roots[root], "set"
            if root in targets:
                assert root.op is not None
                index, mode = targets[root], "add" if root.op.attrs["mode"] == "add" else "put"
                if mode == "add":
                    added.add(number)
            builder.store(self.names[number], flat_index(index, place.strides), value, mode=mode)
        buffers = tuple(self._buffer(number, number in added) for number in range(len(outline.arguments)))
        if checks:
            buffers += (Buffer(self.cells, i64, len(checks), "inout"),)
        name = kernel_name(outline.ops, self.group) + ("_checks" if part == CHECKS_ONLY else "")
        whole = builder.finish(name, buffers, notes(outline.ops))
        if part != WHOLE:
            whole = drop_idle_axes(drop_dead(whole))  # checks of numbers are made once
        kernel = tidy(cancel_positions(whole))
        bounded = drop_idle_bounds(kernel)  # it is known now along which axes there are loops
        if bounded is not kernel:
            kernel = tidy(bounded)
        kernel, order = _drop_unused_buffers(kernel)
        return kernel, order[: len(order) - bool(checks)], checks

    def _target(self, root: Value, index: Index) -> Index:
        """Where in a root an element of what is scattered to it goes."""
        op = root.op
        assert op is not None
        place = get(op.name).place
        assert place is not None
        while True:
            self.op, self.mask = op, None
            try:
                return place(self, op, index)
            except _Missing as needed:
                self._evaluate(*needed.key[:2])

    def _store_checks(self) -> tuple[Check, ...]:
        """Write the checks: each has a cell that takes the largest offending value."""
        position = {op: number for number, op in enumerate(self.outline.ops)} if self.checks else {}
        for cell, found in enumerate(self.checks.values()):
            for failed, value in found:
                if value not in self.builder.constants:  # no offending value may look like none
                    value = self.compute("maximum", value, self.constant(UNFAILED + 1, i64), dtype=i64)
                self.builder.store(self.cells, cell, value, failed, "max")
        return tuple((position[op], error, message) for op, error, message in self.checks)

    @property
    def cells(self) -> str:
        """Name of the buffer of the checks' cells."""
        name = "failed"
        while name in self.names:
            name += "_"
        return name

    def _to_memory(self, value: str, root: Value) -> str:
        return self.compute("cast", value, dtype=memory_dtype(root))

    def _evaluate(self, value: Value, index: Index) -> str:
        stack: list[tuple[Value, Index, str | None]] = [(value, index, None)]
        known = self.known
        while stack:
            key = stack[-1]
            if key in known:
                stack.pop()
                continue
            missing = self._operands_of_pointwise(key)
            if missing:
                stack.extend(missing)
                continue
            try:
                known[key] = self._write(*key)
                stack.pop()
            except _Missing as needed:
                stack.append(needed.key)
        return known[value, index, None]

    def _operands_of_pointwise(self, key: tuple[Value, Index, str | None]) -> list[tuple[Value, Index, str | None]]:
        """Elements that a pointwise op is sure to ask for and that are not written yet."""
        value, index, mask = key
        op = value.op
        if op is None or value in self.outline.loads or get(op.name).kind is not Kind.POINTWISE:
            return []
        needed = [self._element_key(item, broadcast_index(item, index), mask) for item in op.inputs]
        return [item for item in reversed(needed) if item not in self.known]

    def _write(self, value: Value, index: Index, mask: str | None) -> str:
        place = self.outline.loads.get(value)
        if place is not None:
            return self._load(value, place, index, mask, 0)
        op = value.op
        assert op is not None
        definition = get(op.name)
        lower = definition.lower or definition.contract
        if lower is None:
            raise LoweringError(f"{op.name} has no lowering", op.location)
        self.op, self.mask = op, mask
        result = lower(self, op, index)
        return self._round(op, result)

    def _round(self, op: Op, result: str) -> str:
        """What is stored is rounded for those too that use it in this kernel: were it another number in other kernels,
        both sides of one condition could be taken."""
        value, dtype = op.results[0], op.results[0].dtype
        if not dtype.is_reduced:
            return result
        is_stored = value in self.outline.stores and value not in self.group.stores
        is_stored = is_stored or value in self.outline.rounded
        if not is_stored and get(op.name).kind is Kind.VIEW:
            return result
        if not is_stored and self.numerics != "eager" and op.name != "cast":
            return result
        return self.compute("cast", self.compute("cast", result, dtype=dtype), dtype=dtype.compute)

    def _buffer(self, number: int, is_added: bool) -> Buffer:
        argument = self.outline.arguments[number]
        gap, size = self.outline.gap(argument), self.sizes[number]
        if gap is not None:
            size = self.outline.layouts.room(argument.value)
        access = _access(argument, is_added)
        return Buffer(self.names[number], memory_dtype(argument.value), size, access, gap)

    def _load(self, value: Value, place: Place, index: Index, mask: str | None, other: bool | int | float) -> str:
        dtype = memory_dtype(value)
        filler = bool(other) if dtype.kind == "bool" else float(other) if dtype.is_float else int(other)
        if 0 in place.shape:  # no element is needed: the mask holds nowhere, or a loop that does not run reads ahead
            return self.constant(filler, value.dtype.compute)
        number = self.outline.argument(place, False)
        self.sizes[number] = max(self.sizes[number], span(place.shape, place.strides))
        flat = flat_index(index, place.strides)
        loaded = self.builder.load(self.names[number], dtype, flat, mask, 0 if mask is None else filler)
        return self.compute("cast", loaded, dtype=value.dtype.compute)

    # ElementContext

    def element(self, operand: Operand, index: Index) -> str:
        """Element of an operand; a literal takes the dtype of the op's tensor operands."""
        if not isinstance(operand, Value):
            return self.constant(operand, self._literal_dtype())  # type: ignore[arg-type]  # never complex here
        return self._known_element(operand, index, self.mask)

    def _known_element(self, operand: Value, index: Index, mask: str | None) -> str:
        key = self._element_key(operand, normalise(index, operand.shape, self.builder.ranges), mask)
        found = self.known.get(key)
        if found is None:
            raise _Missing(key)
        return found

    def _element_key(self, value: Value, index: Index, mask: str | None) -> tuple[Value, Index, str | None]:
        if mask is not None and self._is_read_everywhere(value, index):
            return value, index, None
        return value, index, mask

    def _is_read_everywhere(self, value: Value, index: Index) -> bool:
        """Whether an element asked for under a mask is needed without it too; always so for reductions."""
        visit = self.group.visits.get(value, {}).get(index)
        if visit is not None and not visit.masked:
            return True
        return value not in self.outline.loads and get(value.op.name).kind in (Kind.REDUCTION, Kind.SCAN)  # type: ignore[union-attr]

    def _literal_dtype(self) -> DType:
        assert self.op is not None
        for item in self.op.inputs:
            if item.dtype != bool_ and item.device != HOST:
                return item.dtype.compute
        return self.op.results[0].dtype.compute

    def masked_element(self, operand: Operand, index: Index, mask: str, other: float) -> str:
        """Element where the mask holds, else `other`."""
        if not isinstance(operand, Value):
            return self.element(operand, index)
        dtype = operand.dtype.compute
        decided = self.builder.constants.get(mask)
        if decided is not None:
            return self.element(operand, index) if decided else self.constant(other, dtype)
        whole = mask if self.mask is None else self.compute("logical_and", self.mask, mask, dtype=bool_)
        place = self.outline.loads.get(operand)
        if place is not None:
            at = normalise(index, operand.shape, self.builder.ranges)
            return self._load(operand, place, at, whole, other)
        value = self._known_element(operand, index, whole)
        return self.compute("where", mask, value, self.constant(other, dtype), dtype=dtype)

    def compute(self, op: str, *args: str, dtype: DType) -> str:
        """A scalar op; what is known while compiling is decided here."""
        folded = self._fold(op, args, dtype)
        return self.builder.compute(op, *args, dtype=dtype) if folded is None else folded

    def _fold(self, op: str, args: tuple[str, ...], dtype: DType) -> str | None:
        constants = self.builder.constants
        if op == "cast":
            return self._fold_cast(args[0], dtype)
        if op in _DECIDABLE and args[0] in self.expressions and args[1] in self.expressions:
            left, right = (self.expressions[arg] for arg in args)
            low, high = bounds(simplify(left - right, self.builder.ranges), self.builder.ranges)
            if op in ("maximum", "minimum"):
                larger = (
                    args[0] if low is not None and low >= 0 else args[1] if high is not None and high <= 0 else None
                )
                return larger if larger is None or op == "maximum" else args[1 - args.index(larger)]
            decided = _compare(op, low, high)
            return None if decided is None else self.constant(decided, bool_)
        if op == "logical_and":
            for one, other in (args, args[::-1]):
                if one in constants:
                    return other if constants[one] else one
        if op == "where" and args[0] in constants:
            return args[1] if constants[args[0]] else args[2]
        return None

    def _fold_cast(self, arg: str, dtype: DType) -> str | None:
        """Casts that change nothing, or of a number that both dtypes hold."""
        source = self.builder.dtypes[arg]
        if source == dtype:
            return arg
        narrow = self.widened.get(arg)
        if narrow is not None and self.builder.dtypes[narrow] == dtype:
            return narrow
        number = self.builder.constants.get(arg)
        if number is not None and not dtype.is_reduced and dtype.kind != "uint" and _is_small_integer(number):
            return self.constant(number, dtype)
        result = self.builder.compute("cast", arg, dtype=dtype)
        if source.is_reduced and dtype == source.compute:
            self.widened[result] = arg
        return result

    def constant(self, value: bool | int | float, dtype: DType) -> str:
        """A constant."""
        found = self.builder.constant(value, dtype)
        if dtype == i64:
            self.expressions[found] = value if type(value) is Size else int(value)
        return found

    def index_value(self, expr: Dim) -> str:
        """An index expression as a number."""
        found = self.builder.index_value(expr)
        self.expressions[found] = simplify(expr, self.builder.ranges)
        return found

    def data_index(self, value: str, extent: Dim) -> Dim:
        """A loaded integer as a symbol."""
        known = self.expressions.get(value)
        if known is not None:
            return known
        self.builder.set_range(value, extent)
        return symbol(value)

    def check(self, failed: str, value: str, error: str, message: str) -> None:
        """Have the program raise where a condition holds."""
        assert self.op is not None
        if self.mask is not None:
            failed = self.compute("logical_and", self.mask, failed, dtype=bool_)
        if self.builder.constants.get(failed) is not False:
            self.checks.setdefault((self.op, error, message), {})[failed, value] = None

    def reduce(self, op: str, operand: Operand, dims: tuple[int, ...], index: Index, dtype: DType) -> str:
        """A reduction over the row axes."""
        assert isinstance(operand, Value)
        shape = int_shape(operand)
        kept = tuple(size for dim, size in enumerate(shape) if dim not in dims)
        at = self.group.row_index(operand, dims, normalise(index, kept, self.builder.ranges))
        value = self._known_element(operand, at, self.mask)
        if op in ("argmax", "argmin"):
            return self.constant(0, i64) if _is_single(shape, dims) else self.builder.reduce(op, value)
        value = self.compute("cast", value, dtype=dtype)
        over = self.group.rows if self.group.sums else ()
        return value if _is_single(shape, dims) else self.builder.reduce(op, value, over)

    def contract(
        self, left: Operand, left_index: KeptIndex, right: Operand, right_index: KeptIndex,
        within: tuple[str, str] | None = None, dtype: DType | None = None,
    ) -> str:  # fmt: skip
        """A sum of products over the row axis; operands are rounded to their dtype, as matrix units take them."""
        assert self.op is not None
        factors: list[str] = []
        rows = self.group.sums.get(self.op.results[0], self.group.rows)
        counts = None if within is None else self._counts(left, left_index[0], rows, within)
        for operand, (dim, kept) in ((left, left_index), (right, right_index)):
            assert isinstance(operand, Value)
            sizes = tuple(size for at, size in enumerate(int_shape(operand)) if at != dim)
            at = self.group.row_index(operand, (dim,), normalise(kept, sizes, self.builder.ranges), rows)
            if counts is None:
                value = self._known_element(operand, at, self.mask)
            else:
                value = self.masked_element(operand, at, counts, 0.0)
            factors.append(self.compute("cast", value, dtype=dtype or operand.dtype))
        first, second = factors
        tf32 = self.tf32 and self.builder.dtypes[first] == f32
        return self.builder.contract(first, second, tf32, rows if self.group.sums else ())

    def _counts(self, operand: Operand, dim: int, rows: tuple[str, ...], within: tuple[str, str]) -> str:
        """Whether a position along the dim that is summed over lies between two loaded ones."""
        assert isinstance(operand, Value)
        (position,) = self.group.row_parts((int_shape(operand)[dim],), rows)
        at = self.index_value(position)
        is_behind, is_before = (
            self.compute(op, at, bound, dtype=bool_) for op, bound in zip(("ge", "lt"), within, strict=True)
        )
        return self.compute("logical_and", is_behind, is_before, dtype=bool_)

    def scan(self, op: str, operand: Operand, dim: int, index: Index, dtype: DType) -> str:
        """A running reduction along the row axis."""
        assert isinstance(operand, Value)
        value = self.compute("cast", self._known_element(operand, index, self.mask), dtype=dtype)
        return value if operand.shape[dim] == 1 else self.builder.scan(op, value)


def _access(argument: Argument, is_added: bool) -> str:
    return "inout" if is_added else "out" if argument.stored else "in"


_DECIDABLE = frozenset(("lt", "ge", "eq", "maximum", "minimum"))


def _is_single(shape: tuple[int, ...], dims: tuple[int, ...]) -> bool:
    return all(shape[dim] == 1 for dim in dims)


def _is_small_integer(number: bool | int | float) -> bool:
    return number == number and abs(number) < 1 << 24 and float(number).is_integer() and str(number) != "-0.0"


def _compare(op: str, low: int | None, high: int | None) -> bool | None:
    """`difference op 0` for a difference in [low, high], when that decides it."""
    is_negative, is_positive = high is not None and high < 0, low is not None and low > 0
    if op == "eq":
        return True if low == high == 0 else False if is_negative or is_positive else None
    if is_negative:
        return op == "lt"
    return op == "ge" if low is not None and low >= 0 else None


def _drop_unused_buffers(kernel: Kernel) -> tuple[Kernel, tuple[int, ...]]:
    used = {s.buffer for s in kernel.body if hasattr(s, "buffer")}
    order = tuple(number for number, buffer in enumerate(kernel.buffers) if buffer.name in used)
    buffers = tuple(kernel.buffers[number] for number in order)
    return Kernel(kernel.name, kernel.axes, buffers, kernel.body, kernel.notes), order
