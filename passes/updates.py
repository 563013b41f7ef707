"""Values that are another value with some elements changed: what they change, and where that lies in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from graphc.ir.dims import simplify
from graphc.ir.graph import Op, Value
from graphc.ops.foreach import updated
from graphc.ops.registry import Kind, get
from graphc.passes.access import trace
from graphc.passes.group import Group, group_of
from graphc.passes.layout import Layouts, Place, flat_index, int_shape

UPDATES = ("update_slice", "update_strided")
ADDED_DTYPES = ("f64", "f32", "i64", "i32")
"""Dtypes that kernels add to in memory."""
IN_PLACE_CALLS = {
    "aten.scatter.src": "aten.scatter_.src",
    "aten.scatter_add.default": "aten.scatter_add_.default",
    "aten.scatter_reduce.two": "aten.scatter_reduce_.two",
    "aten.index_put.default": "aten.index_put_.default",
    "aten.index_add.default": "aten.index_add_.default",
    "aten.index_copy.default": "aten.index_copy_.default",
}
"""The form of a scatter that writes to its first operand."""


def is_scattered(op: Op, in_order: bool = False) -> bool:
    """Whether a kernel can add the source of a scatter to its base, or put it there, one element at a time.

    Args:
        in_order: floats are to be added, and elements put into one place, in an order that is the same in each run.
    """
    if get(op.name).place is None or op.operands[0] in op.operands[1:]:
        return False
    dtype, mode = op.results[0].dtype, op.attrs["mode"]
    if mode == "add":
        return dtype.name in ADDED_DTYPES and not (in_order and dtype.is_float)
    return mode == "set" and dtype.kind != "complex" and not in_order


def scatters(group: Group, value: Value) -> bool:
    """Whether a group adds to the memory of this root, or stores to it, at places that are data."""
    return value in group.stores and value.op is not None and value.op.name not in UPDATES


def source_of(op: Op) -> Value:
    """What an update stores to elements of its base, or adds to them: the last operand."""
    source = op.operands[-1]
    assert isinstance(source, Value)
    return source


def overwrites_its_input(group: Group, layouts: Layouts) -> bool:
    """Whether a group stores into memory that it reads at another place in the same kernel."""
    for value, base in group.overwrites.items():
        read = group.visits.get(base)
        if not read:
            continue
        place = group.stores.get(value)
        if scatters(group, value):
            return True  # to any element
        strides = layouts.strides(value) if place is None else place.strides
        offset = 0 if place is None else place.offset
        target = simplify(flat_index(group.roots[value], strides) + offset, group.ranges)
        own = layouts.strides(base)
        if any(simplify(flat_index(index, own), group.ranges) != target for index in read):
            return True
    return False


def updated_positions(op: Op) -> dict[Value, int]:
    """For each result of a call that is an operand with other contents the number of that operand."""
    if op.name == "foreach":
        return dict(updated(op))
    mutates = (2,) if op.name == "gemm" and op.attrs["accumulate"] else op.attrs.get("mutates", ())
    return dict(zip(op.results[len(op.results) - len(mutates) :], mutates, strict=True))


def updates(op: Op) -> Iterable[tuple[Value, Value]]:
    """(result, operand) pairs of which the result is the operand with some elements changed."""
    if op.name in UPDATES or get(op.name).kind is Kind.SCATTER:
        base = op.operands[0]
        assert isinstance(base, Value)
        yield op.results[0], base
    elif op.name == "gemm" and op.attrs["accumulate"]:
        base = op.operands[2]
        assert isinstance(base, Value)
        yield op.results[0], base
    elif op.name in ("extern", "foreach"):
        for result, number in updated_positions(op).items():
            operand = op.operands[number]
            assert isinstance(operand, Value)
            yield result, operand


def chain_of(value: Value, bases: Mapping[Value, Value]) -> list[Value]:
    """The value, what it updates, what that updates, and so on."""
    chain = [value]
    while chain[-1] in bases:
        chain.append(bases[chain[-1]])
    return chain


def update_place(op: Op, strides: tuple[int, ...]) -> Place:
    """The part of a value's memory, laid out with `strides`, that an update stores its source into."""
    value, source = op.results[0], source_of(op)
    if op.name == "update_strided":
        return Place(value, op.attrs["shape"], op.attrs["strides"], op.attrs["offset"])
    steps = tuple(step * stride for step, stride in zip(op.attrs["steps"], strides, strict=True))
    offset = sum(start * stride for start, stride in zip(op.attrs["starts"], strides, strict=True))
    return Place(value, int_shape(source), steps, offset)


def scattering_group(op: Op, base: Value, position: float, strides: tuple[int, ...]) -> Group:
    """A group that scatters its source, element by element, to the memory of its base.

    Args:
        strides: of that memory.
    """
    value, index = op.results[0], op.operands[1]
    assert isinstance(index, Value)
    group = group_of(source_of(op), position)
    (at,) = group.roots.values()
    group.roots = {value: at}
    group.stores[value] = Place(value, int_shape(value), strides)
    group.overwrites[value] = base
    for read in trace(op, at, group.ranges).reads:
        group.visit(index, read.place)
    return group


def scatters_one_by_one(op: Op, group: Group) -> bool:
    """Whether each element of the innermost axis that the group of a scatter walks goes to a place of its own."""
    innermost = next(iter(reversed(group.axes)), None)
    index = op.operands[1]
    assert isinstance(index, Value)
    return any(innermost in group.axes_of(place) for place in group.visits[index])


def copy_op(value: Value, like: Op | None = None) -> Op:
    """A fresh op that gives the same value, in memory of its own.

    Args:
        like: the op that made it, to be done again; None = the value is read.
    """
    location = value.op.location if value.op is not None else None
    names = [f"{value.name}_copy"]
    if like is not None:
        return Op(like.name, like.operands, dict(like.attrs), [value.type], like.location, names)
    if location is None:
        return Op("reshape", [value], {"shape": value.shape}, [value.type], result_names=names)
    return Op("reshape", [value], {"shape": value.shape}, [value.type], location, names)
