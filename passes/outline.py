"""What a group computes, in an order that depends on its structure only: what its kernel is made of, and its key.

Groups with the same key are the same kernel, called with other arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from typing import NamedTuple

from graphc.errors import LoweringError
from graphc.ir.graph import Op, Value
from graphc.ir.types import HOST, DType, f64, i64
from graphc.loopir.kernel import Gap
from graphc.ops.registry import Kind, get
from graphc.passes.access import attrs_key
from graphc.passes.group import Group
from graphc.passes.layout import Layouts, Place, int_shape
from graphc.passes.updates import scatters, source_of


class Argument(NamedTuple):
    """A buffer argument of a kernel call: where in which value's memory it points. `stored` = written."""

    value: Value
    offset: int
    stored: bool


def memory_dtype(value: Value) -> DType:
    """Element type in memory: host scalars live in cells of 8 bytes."""
    if value.device != HOST:
        return value.dtype
    return f64 if value.dtype.is_float else i64


_CHOICES = frozenset(("where", "maximum", "minimum", "fmax", "fmin", "neg", "abs"))
"""Ops whose results are numbers of operands, but for a sign: rounded before or after, they are the same."""


def stored_by_another_name(ops: Sequence[Op], stored: set[Value]) -> set[Value]:
    """Reduced floats with several users whose numbers are stored, as those of what is chosen from them.

    They are rounded as what is stored is, in all kernels: `x - where(c, x, y)` is 0 where c holds.
    """
    stack = [value for value in stored if value.dtype.is_reduced and value.op is not None]
    if not stack:
        return set()
    users = Counter(item for op in ops for item in set(op.inputs))
    found, seen = set[Value](), set[Value]()
    while stack:
        value = stack.pop()
        op = value.op
        if op is None or value in seen:
            continue
        seen.add(value)
        sources = _chosen_from(op)
        found.update(item for item in sources if users[item] > 1)
        stack.extend(sources)
    exact = set[Value]()  # what is chosen from rounded numbers is rounded
    for op in ops:
        sources = _chosen_from(op)
        if sources and all(item.op is None or item in exact for item in sources):
            exact.update(op.results)
            found.difference_update(op.results)
        else:
            exact.update(value for value in op.results if value in found or value in stored)
    return found


def _chosen_from(op: Op) -> list[Value]:
    """Operands of which a result is one, but for a sign."""
    if op.name not in _CHOICES and get(op.name).kind is not Kind.VIEW:
        return []
    return [item for item in op.inputs if item.dtype == op.results[0].dtype]


class Outline:
    """What a group computes, in an order that depends on its structure only.

    Args:
        layouts: strides of stored values.
        stored: values that have memory.
        group: a fusion group.
        kept: those of its roots that have to be stored.
        rounded: values that are rounded though they are not stored.

    Attributes:
        ops: ops to be written, operands first.
        loads: values read from memory, as places in it.
        stores: roots to be stored, likewise.
        arguments: the buffers behind both, each (value, offset) once.
    """

    def __init__(
        self, layouts: Layouts, stored: set[Value], group: Group, kept: set[Value], rounded: Set[Value] = frozenset()
    ) -> None:
        self.layouts, self.stored, self.group, self.rounded = layouts, stored, group, rounded
        self.ops: list[Op] = []
        self.loads: dict[Value, Place] = {}
        self.stores: dict[Value, Place] = {}
        self.arguments: list[Argument] = []
        self.number: dict[Value, int] = {}
        self._argument_numbers: dict[tuple[Value, int, bool], int] = {}
        for root in group.roots:
            if root in kept:
                self._walk(root)
        for root in group.roots:
            if root in kept:
                place = group.stores.get(root)
                self.stores[root] = place or Place(root, int_shape(root), self.layouts.strides(root))
                self.argument(self.stores[root], True)

    def source(self, root: Value) -> Value:
        """The value whose elements are stored for a root: the update for an update of a part."""
        if root not in self.group.stores:
            return root
        assert root.op is not None
        return source_of(root.op)

    def _walk(self, root: Value) -> None:
        """Number everything under a root, operands first, without recursion."""
        self._walk_value(self.source(root))
        if scatters(self.group, root):
            assert root.op is not None
            for operand in root.op.inputs:
                if operand in self.group.visits:
                    self._walk_value(operand)
            self.ops.append(root.op)

    def _walk_value(self, value: Value) -> None:
        stack: list[tuple[Value, bool]] = [(value, False)]
        while stack:
            value, done = stack.pop()
            if done:
                assert value.op is not None
                self.number[value] = len(self.number)
                self.ops.append(value.op)
                continue
            if value in self.number:
                continue
            place = self._load_place(value)
            if place is not None:
                self.number[value] = len(self.number)
                self.loads[value] = place
                self.argument(place, False)
                continue
            op = value.op
            if op is None:
                raise LoweringError(f"{value!r} has no memory and no definition")
            stack.append((value, True))
            visits = self.group.visits
            stack.extend([(x, False) for x in reversed(op.operands) if isinstance(x, Value) and x in visits])

    def _load_place(self, value: Value) -> Place | None:
        """Where a value is read from memory; None when it is computed."""
        roots = self.group.roots
        if value in self.stored:
            if value in roots and value not in self.group.stores:
                return None
            return Place(value, int_shape(value), self.layouts.strides(value))
        if value.op is None or get(value.op.name).kind is not Kind.VIEW:
            return None
        place = self.layouts.place(value, self.stored)
        if place.base in self.stored and (place.base not in roots):
            return place
        return None

    def argument(self, place: Place, stored: bool) -> int:
        """Number of the argument that reads or stores a place."""
        key = (place.base, place.offset, stored)
        found = self._argument_numbers.get(key)
        if found is None:
            found = self._argument_numbers[key] = len(self.arguments)
            self.arguments.append(Argument(place.base, place.offset, stored))
        return found

    def gap(self, argument: Argument) -> Gap | None:
        """Behind the rows of all of a buffer."""
        return None if argument.offset else self.layouts.gap(argument.value)

    def key(self) -> object:
        """Everything the kernel depends on."""
        group, number = self.group, self.number
        return (
            tuple(group.axes.items()),
            group.rows,
            tuple(
                (
                    op.name,
                    attrs_key(op),
                    tuple(
                        [
                            number.get(item, -1) if isinstance(item, Value) else (type(item), repr(item))
                            for item in op.operands
                        ]
                    ),
                    _type_key(op.results[0]),
                    op.results[0] in self.rounded,
                )
                for op in self.ops
            ),
            tuple(
                (number[value], self.argument(place, False), _type_key(value), place.strides)
                for value, place in self.loads.items()
            ),
            tuple(
                (number[self.source(root)], group.roots[root], self.argument(place, True), place.shape, place.strides)
                for root, place in self.stores.items()
            ),
            tuple([(memory_dtype(argument.value).name, self.gap(argument)) for argument in self.arguments]),
        )


def _type_key(value: Value) -> tuple[object, ...]:
    """A type as plain data, which is quick to hash."""
    type = value.type
    return type.dtype.name, type.shape, type.device
