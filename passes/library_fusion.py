"""The part of fusion that deals with library calls: where operands and results lie, copied as seldom as can be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from graphc.errors import LoweringError
from graphc.ir.graph import Op, Value
from graphc.ir.types import contiguous_strides
from graphc.ops import attention, grouped, scaled
from graphc.ops.extern import effect
from graphc.ops.foreach import rows_of, updated
from graphc.ops.registry import get
from graphc.passes.fused import PRODUCTS, Library
from graphc.passes.layout import (
    Place,
    before_merge,
    dense_like,
    int_shape,
    same_strides,
    view_strides,
    wanted_strides,
)
from graphc.passes.steps import operands_read
from graphc.passes.updates import copy_op, updates
from graphc.passes.work import element_count, is_kernel_op

if TYPE_CHECKING:
    from graphc.passes.fuse import Fuser


class LibraryFusion:
    """What fusion does with ops that a library or the runtime runs.

    Args:
        fuser: the sweep that this is a part of.

    Attributes:
        shared: values that are read by calls, each of which reads a part.
        rows: per foreach op the operands of its rows, copies where they are needed.
    """

    def __init__(self, fuser: Fuser) -> None:
        self.fuser, self.layouts = fuser, fuser.layouts
        self.shared: set[Value] = set()
        self.rows: dict[Op, list[Value]] = {}

    # preparation

    def widen_products(self) -> None:
        """Products whose batch dims are merged before and split behind, as torch.bmm wants them, keep them apart.

        So operands and results are read through their views instead of being copied. A product that is then only read
        transposed and reshaped is stored so that both are views of it.
        """
        fuser = self.fuser
        users: dict[Value, list[Op]] = {}  # of products, and of what reads them in another shape
        for op in fuser.graph.ops:
            if not users.keys().isdisjoint(op.operands):
                for operand in dict.fromkeys(op.inputs):
                    if operand in users:
                        users[operand].append(op)
                        if op.name in ("permute", "reshape"):
                            users[op.results[0]] = []
            if op.name == "matmul":
                users[op.results[0]] = []
        for op in fuser.graph.ops:
            if op.name != "matmul":
                continue
            result = op.results[0]
            readers = users[result]
            split = readers[0] if len(readers) == 1 and result not in fuser.live else None
            if split is not None and _splits_batch(split.results[0], result):
                fuser.wide[result] = split.results[0]
                result = split.results[0]
                fuser.stored.add(result)
            if result not in fuser.live and len(users[result]) == 1:
                self._lay_out_product(result, users[result][0], users)

    def _lay_out_product(self, result: Value, reader: Op, users: dict[Value, list[Op]]) -> None:
        rank = result.type.rank
        if reader.name != "permute" or reader.attrs["dims"][-1] != rank - 1 or reader.results[0] in self.fuser.live:
            return
        if not all(user.name == "reshape" for user in users[reader.results[0]]):
            return
        strides = [0] * rank
        for stride, dim in zip(contiguous_strides(reader.results[0].shape), reader.attrs["dims"], strict=True):
            strides[dim] = stride  # type: ignore[assignment]  # static
        self.layouts.chosen[result] = tuple(strides)

    def find_shared_views(self) -> None:
        """Values of which calls read all elements, each a part, as attention does of one product."""
        parts: dict[Value, set[Place]] = {}
        for op in self.fuser.ops:
            if op.name in PRODUCTS or is_kernel_op(op):
                continue
            for operand in op.inputs:
                value = operand
                while value.op is not None and value.op.name in ("reshape", "permute", "slice", "copy"):
                    value = next(iter(value.op.inputs))
                if value is not operand and value.op is not None and is_kernel_op(value.op):
                    place = self.layouts.place(_uncopied(operand))
                    if place.base is value:
                        parts.setdefault(value, set()).add(place)
        for value, places in parts.items():
            if len(places) > 1 and sum(math.prod(place.shape) for place in places) >= element_count(value):
                self.shared.add(value)

    def lay_out_rows(self) -> None:
        """All tensors of a row of a `foreach` lie alike in memory, as the one that it updates; others are copied."""
        fuser = self.fuser
        for op in fuser.graph.ops:
            if op.name != "foreach":
                continue
            lists, results = rows_of(op).lists, {number: result for result, number in updated(op)}
            wide = [values for values in lists if any(value.type.rank for value in values)]
            changed = [lists[number] for number in op.attrs["mutates"] if lists[number] in wide]
            rows = [self._wanted(value) for value in (changed or wide or lists)[0]]
            found: list[Value] = []
            for value, strides in ((value, rows[row]) for values in lists for row, value in enumerate(values)):
                if value.type.rank and not same_strides(int_shape(value), self._wanted(value), strides):
                    value = fuser.append_copy(value, before=op)
                    fuser.needed.add(value)
                    self.layouts.chosen[value] = strides
                    result = results.get(len(found))
                    if result is not None:  # the copy is updated
                        fuser.overwritten[result] = value
                        self.layouts.chosen[result] = strides
                found.append(value)
            self.rows[op] = found

    def _wanted(self, value: Value) -> tuple[int, ...]:
        return self.layouts.chosen.get(value) or wanted_strides(value)

    # the sweep

    def visit(self, op: Op) -> None:
        """A call, if anything needs what it gives or does.

        Raises:
            LoweringError: the op has neither a lowering nor a library call.
        """
        fuser = self.fuser
        results = [fuser.wide.get(value, value) for value in op.results]
        used = [value for value in results if value in fuser.needed or fuser.waiting.pop(value, None) is not None]
        if not used and not effect(op):
            return
        if op.name not in (*PRODUCTS, "scan", "extern", "item", "foreach") and get(op.name).call is None:
            raise LoweringError(
                f"{op.name} on {op.results[0].type} has neither a lowering nor a library call", op.location
            )
        fuser.stored.update(results)
        if op.name in PRODUCTS:
            factors = self._place_factors(op, results[0])
            others = [self.own(item) for item in op.operands[2:] if isinstance(item, Value)]
            overwrites = {value: base for value, base in updates(op) if value in fuser.overwritten}
            fuser.libraries.append(Library(op, fuser.position[op], [*factors, *others], results, overwrites))
            return
        if op.name == "scan":
            self._visit_loop(op)
            return
        for result in results:  # the library decides how its results lie, as it does for eager
            self.layouts.chosen.setdefault(result, wanted_strides(result))
        overwrites = {value: fuser.overwritten[value] for value, _ in updates(op) if value in fuser.overwritten}
        changed = set(overwrites.values())
        read = operands_read(op)
        given = [*self.rows.get(op, ()), *op.operands[len(self.rows.get(op, ())) :]]
        operands = [
            (self.own(x) if x in changed else self._place_argument(x, op))
            if isinstance(x, Value) and at in read
            else None
            for at, x in enumerate(given)
        ]
        fuser.libraries.append(Library(op, fuser.position[op], operands, results, overwrites))

    def _visit_loop(self, op: Op) -> None:
        """Sequences and what every turn sees are read as they lie; carries begin in the layout that the body keeps."""
        fuser = self.fuser
        for result in op.results:
            self.layouts.chosen[result] = tuple(contiguous_strides(result.shape))  # type: ignore[arg-type]  # static
        places: list[Place | None] = []
        for number, value in enumerate(op.inputs):
            place = self.layouts.place(value, fuser.stored, fuser.needed)
            base = place.base
            plain = tuple(contiguous_strides(value.shape))
            if number < op.attrs["carries"] and not same_strides(place.shape, place.strides, plain):  # type: ignore[arg-type]
                copy = copy_op(value)
                (result,) = copy.results
                self.layouts.chosen[result] = plain  # type: ignore[assignment]  # static
                fuser.position[copy] = fuser.position[op] - 0.5
                fuser.start(result)
                places.append(self.own(result))
            elif (
                base not in fuser.needed
                and base.op is not None
                and is_kernel_op(base.op)
                and element_count(value) < element_count(base)
            ):
                places.append(self.own(value))  # storing all of the base for a part of it does not pay
            else:
                places.append(self.need(place))
        fuser.libraries.append(Library(op, fuser.position[op], places, list(op.results)))

    def _place_factors(self, op: Op, result: Value) -> list[Place | None]:
        """Operands of a product, with batch dims as the result or one of the operands has them before a merge."""
        values = [item for item in op.operands[:2] if isinstance(item, Value)]
        sources = [before_merge(value) for value in values]
        batch = int_shape(result)[:-2]
        if result is op.results[0]:
            batches = {int_shape(source)[:-2] for source in sources if source is not None}
            batch = batches.pop() if len(batches) == 1 and len(batch) == 1 else batch
        found: list[Place | None] = []
        for value, source in zip(values, sources, strict=True):
            if source is not None and int_shape(source)[:-2] == batch:
                found.append(self.place_factor(source))
                continue
            place = self.place_factor(value)
            if len(place.shape) == 3 and len(batch) > 1 and place.shape[0] == math.prod(batch) != 1:
                shape = (*batch, *place.shape[-2:])
                strides = view_strides(place.shape, place.strides, shape)
                assert strides is not None, "splitting a dim is always a view"
                place = Place(place.base, shape, strides, place.offset)
            found.append(place)
        return found

    def need(self, place: Place) -> Place:
        """A place whose base is stored, since a call reads it."""
        self.fuser.needed.add(place.base)
        return place

    def own(self, value: Value) -> Place:
        """The place of a value that is stored itself."""
        return self.need(Place(value, int_shape(value), self.layouts.strides(value)))

    def _place_argument(self, value: Value, op: Op) -> Place:
        """An operand of an ATen call: with eager's strides, without a copy where they can be had."""
        fuser = self.fuser
        if op.name in (grouped.NAME, scaled.NAME) and value in op.operands[:2]:
            return self.place_factor(value, grouped.ALIGNMENT // value.dtype.itemsize)
        if attention.library_of(op) != attention.CPU and value.type.rank == 4:
            return self._place_heads(value, attention.LIBRARIES[attention.library_of(op)].step)
        wanted = wanted_strides(value)
        if value not in fuser.stored and value not in fuser.needed:
            place = self.layouts.place(_uncopied(value), fuser.stored, fuser.needed)
            if place.base in self.shared and _suits(op, place, wanted):
                return self.need(place)
        place = self.layouts.place(value, fuser.stored, fuser.needed)
        base = place.base
        smaller = base not in fuser.needed and base.op is not None and element_count(value) < element_count(base)
        if (smaller and is_kernel_op(base.op)) or not same_strides(  # type: ignore[arg-type]
            place.shape, place.strides, wanted
        ):
            return self.own(value)
        return self.need(place)

    def _place_heads(self, value: Value, step: int) -> Place:
        """Heads for a call that reads them wherever they lie, and lays its results out in the order of their dims.

        Args:
            step: elements at whose multiples rows begin.
        """
        fuser, shape = self.fuser, int_shape(value)
        wanted = dense_like(shape, wanted_strides(value))
        place = self.layouts.place(_uncopied(value), fuser.stored, fuser.needed)
        base, rows = place.base, [stride for size, stride in zip(shape, place.strides, strict=True) if size != 1][:-1]
        is_stored = base in fuser.stored or base in fuser.needed or base in self.shared
        smaller = not is_stored and base.op is not None and element_count(value) < element_count(base)
        if (
            place.strides[-1] == 1
            and all(stride % step == 0 and stride > 0 for stride in (*rows, step + place.offset))
            and same_strides(shape, dense_like(shape, place.strides), wanted)
            and not (smaller and is_kernel_op(base.op))  # type: ignore[arg-type]  # it has an op
        ):
            return self.need(place)
        self.layouts.chosen.setdefault(value, wanted)
        return self.own(value)

    def place_factor(self, value: Value, step: int = 1) -> Place:
        """An operand of a matrix product: any strides that BLAS takes, in steps of so many elements."""
        fuser = self.fuser
        place = self.layouts.place(value, fuser.stored, fuser.needed)
        *_, rows, columns = place.shape
        *_, row_stride, column_stride = place.strides
        is_row_major = column_stride == 1 or columns == 1
        is_column_major = row_stride == 1 or rows == 1
        if is_row_major and row_stride % step == 0 and (rows == 1 or row_stride >= max(1, columns)):
            return self.need(place)
        if is_column_major and column_stride % step == 0 and (columns == 1 or column_stride >= max(1, rows)):
            return self.need(place)
        return self.own(value)


def _splits_batch(value: Value, product: Value) -> bool:
    """Whether `value` is a product of rank 3 with its batch dim split."""
    op, shape, own = value.op, int_shape(value), int_shape(product)
    return op is not None and op.name == "reshape" and len(own) == 3 and len(shape) > 3 and shape[-2:] == own[-2:]


def _uncopied(value: Value) -> Value:
    """What a value is a copy of, made for the sake of its strides."""
    if value.op is not None and value.op.name == "copy":
        return next(iter(value.op.inputs))
    return value


def _suits(op: Op, place: Place, wanted: tuple[int, ...]) -> bool:
    """Whether an ATen call reads an operand in this place as it would in eager's; attention takes any rows."""
    rows_in_one_piece = op.name == "attention" and place.strides[-1] == 1
    return rows_in_one_piece or same_strides(place.shape, place.strides, wanted)
