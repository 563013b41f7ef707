"""Fusion: which values are stored in memory, and which ops are computed together in one kernel.

First sweep, consumers before producers: a value is taken into the group of its only reader, or into the groups of all
its readers when computing it again costs less than reading it back; else it becomes the root of a group of its own.
Views, constants and masks are never stored: groups read through them. Then `graphc.passes.merge` joins groups that
share an iteration space: that is what makes softmax, layer_norm with its residual, or batch_norm with its running
statistics one kernel.

What the program overwrites (`Write`, `update_slice` chains, `mutates` of extern calls) is stored in place whenever
every reader of the old contents can come first; otherwise a copy is made.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from graphc.errors import LoweringError
from graphc.ir.graph import Graph, Input, Op, Value
from graphc.ir.types import HOST, contiguous_strides
from graphc.ops import grouped, scaled
from graphc.ops.extern import effect
from graphc.ops.foreach import rows_of, updated
from graphc.ops.registry import Kind, get
from graphc.passes.fused import PRODUCTS, Fusion, Library
from graphc.passes.group import ALWAYS, Group, RowLimits, group_of, iterations
from graphc.passes.hoist import hoisted
from graphc.passes.layout import (
    Layouts,
    Place,
    before_merge,
    int_shape,
    is_dense,
    same_strides,
    view_strides,
    wanted_strides,
)
from graphc.passes.steps import operands_read
from graphc.passes.template_fusion import TemplateFusion
from graphc.passes.templates import Templates
from graphc.passes.updates import (
    UPDATES,
    chain_of,
    copy_op,
    is_scattered,
    scattering_group,
    scatters_one_by_one,
    source_of,
    update_place,
    updates,
)
from graphc.passes.work import MANY_PIECES, element_count, element_work, is_full

KERNEL_DTYPES = frozenset(("f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "u16", "u32", "u64", "bool"))
BIG_CONCAT = 4096
"""Elements from which on the pieces of a stored concat are stored one by one."""
CHEAP_WORK, FREE_WORK = 8, 16
ROW_LIMITS = {"c": RowLimits(8, 65_536), "triton": RowLimits(128, 16_384)}
REDUNDANT_WORK = 32_768
"""Scalar operations worth repeating to save a kernel of its own."""
WORK_OF_STORING = {"c": 0, "triton": 2}
"""Scalar operations that take as long as storing an element and reading it back: none where caches hold it."""
TABLE_SHARE, SMALL_TABLE = 64, 4_096
"""A table of so many times the elements that are picked from it, or of these, is let go of by picking early."""


def is_kernel_op(op: Op) -> bool:
    """Whether generated kernels can compute the op: it has a lowering and all dtypes are real numbers."""
    if get(op.name).lower is None:
        return False
    for value in (*op.operands, *op.results):
        if isinstance(value, Value) and value.type.dtype.name not in KERNEL_DTYPES:
            return False
    return True


def fuse(graph: Graph, backend: str = "c", templates: Templates | None = None, adds_in_library: bool = False) -> Fusion:
    """Partition a graph into kernels and library calls. The graph is not changed.

    Args:
        graph: optimised, of static shapes.
        backend: `c` or `triton`.
        templates: which products are kernels; None = none.
        adds_in_library: library calls for products of 16-bit floats take a bias, where there are templates.

    Raises:
        LoweringError: an op has neither a lowering nor a library call.
    """
    return Fuser(graph, backend, templates, adds_in_library).run()


class Fuser:
    """The sweep; see the module."""

    def __init__(self, graph: Graph, backend: str, templates: Templates | None, adds_in_library: bool = False) -> None:
        self.graph, self.backend = graph, backend
        self.in_order = templates is not None and templates.deterministic
        self.products = TemplateFusion(self, templates, adds_in_library) if templates is not None else None
        self.layouts = Layouts()
        self.ops: list[Op] = list(graph.ops)
        self.live = {output.value for output in graph.outputs}
        self.stored: set[Value] = set(graph.inputs)
        self.needed: set[Value] = set()  # values that must be stored
        self.waiting: dict[Value, list[Group]] = {}  # groups that visit a value not decided yet
        self.groups: list[Group] = []
        self.libraries: list[Library] = []
        self.homes: dict[Value, Input] = {}
        self.in_inputs: set[Value] = set()
        self.output_places: dict[int, Place] = {}
        self.parts: set[Value] = set()
        self.overwritten: dict[Value, Value] = {}  # result -> base in whose memory it is to be stored
        self.wide: dict[Value, Value] = {}  # product -> the same with its batch dims split, which is stored instead
        self.cheap: dict[Value, tuple[int, frozenset[Value]]] = {}
        self.drawn: set[Value] = set()  # those among them that are made from random words
        self.early: set[Value] = set()
        self.shared: set[Value] = set()  # read by calls, each of which reads a part
        self.position: dict[Op, float] = {}
        self.rows: dict[Op, list[Value]] = {}  # per foreach op the operands of its rows, copies where they are needed

    def run(self) -> Fusion:
        self.position = {op: number for number, op in enumerate(self.ops)}
        self._find_updates()
        self._add_writes()
        self._find_cheap()
        self._widen_products()
        if self.products is not None:
            self.products.find_chains()
        self._place_outputs()
        self._store_pieces()
        self._hoist()
        self._find_shared_views()
        self._lay_out_rows()
        for op in reversed(self.ops):
            self._visit(op)
        self.groups.reverse()
        self.libraries.reverse()
        return Fusion(
            self.graph,
            self.backend,
            self.groups,
            self.libraries,
            self.stored,
            self.layouts,
            self.homes,
            self.in_inputs,
            self.output_places,
            self.parts,
            self.early,
        )

    # preparation

    def _find_updates(self) -> None:
        """Choose updates that are to be stored in the memory of their base, and give both one layout."""
        written = {write.value: write.target for write in self.graph.writes}
        kept = self.live | set(written)
        bases = {
            value: base for op in self.ops if op.name not in UPDATES or is_kernel_op(op) for value, base in updates(op)
        }
        for value, target in written.items():
            chain = chain_of(value, bases)
            if chain[-1] is target and len(chain) > 1 and not any(link in self.live for link in chain[:-1]):
                self.in_inputs.update(chain[:-1])
        updated = set(bases.values())
        for value, base in bases.items():
            op = value.op
            assert op is not None
            if value in self.in_inputs:
                self.overwritten[value] = base
            elif isinstance(base, Input) or base in kept:
                if op.name in ("extern", "gemm", "foreach"):
                    self.overwritten[value] = base  # of a copy, made later
            elif op.name in UPDATES and base not in bases and value not in updated:
                continue  # a single one is a masked read, which fuses
            elif base.dtype.name in KERNEL_DTYPES or op.name in ("extern", "foreach"):
                self.overwritten[value] = base
        self._lay_out_chains()

    def _lay_out_chains(self) -> None:
        ends: dict[Value, Value] = {}
        for value in reversed(self.overwritten):
            end = ends.get(value, value)
            base = self.overwritten[value]
            if isinstance(base, Input):
                continue
            ends.setdefault(base, end)
            wanted = wanted_strides(end)
            if is_dense(int_shape(end), wanted):
                self.layouts.chosen.setdefault(base, wanted)
        for value, base in list(self.overwritten.items()):
            self.layouts.chosen[value] = strides = self.layouts.strides(base)
            op = value.op
            assert op is not None
            if op.name == "update_strided" and view_strides(int_shape(base), strides, (element_count(base),)) != (1,):
                del self.overwritten[value]
                del self.layouts.chosen[value]

    def _add_writes(self) -> None:
        """Each write that is not an update in place becomes a copy of a stored value; `merge` makes them one kernel."""
        for write in self.graph.writes:
            if chain_of(write.value, self.overwritten)[-1] is write.target:
                self.needed.add(write.value)
                continue
            source = write.value
            if isinstance(source, Input):  # may be overwritten itself before it is read here
                source = self._append_copy(source)
            self.needed.add(source)
            result = self._append_copy(source)
            self.needed.add(result)
            self.layouts.chosen[result] = self.layouts.strides(write.target)
            self.overwritten[result] = write.target
            self.homes[result] = write.target

    def _append_copy(self, value: Value, before: Op | None = None) -> Value:
        """A copy right behind the value, in the order of preference; a copy of an input comes last, or before an op."""
        copy = copy_op(value)
        if before is not None:
            self.ops.append(copy)
            self.position[copy] = self.position[before] - 0.25
            return copy.results[0]
        at = len(self.ops) if value.op is None else self.position[value.op] + 0.25
        self.ops.append(copy)
        self.position[copy] = at
        return copy.results[0]

    def _find_cheap(self) -> None:
        """Values that cost less to compute again than to read back: (work, values read)."""
        masks = self._find_masks()
        for op in self.ops:
            kind = get(op.name).kind
            if kind not in (Kind.POINTWISE, Kind.VIEW, Kind.CREATION, Kind.RANDOM) or len(op.results) != 1:
                continue
            if op.name == "concat" or op.name in UPDATES:
                continue
            result = op.results[0]
            work, leaves = element_work(op), frozenset[Value]()
            for operand in op.operands:
                if isinstance(operand, Value):
                    more, below = self.cheap.get(operand) or (0, frozenset((operand,)))
                    work += more
                    leaves = leaves | below if leaves else below
            if work > (CHEAP_WORK if leaves else FREE_WORK):
                continue
            size = element_count(result)
            read = sum([min(size, element_count(leaf)) * leaf.type.dtype.itemsize for leaf in leaves])
            if 4 * read <= 5 * size * result.type.dtype.itemsize + 2048 or result in masks:
                self.cheap[result] = (work, leaves)
                if kind is Kind.RANDOM or not self.drawn.isdisjoint(op.inputs):
                    self.drawn.add(result)

    def _find_masks(self) -> set[Value]:
        """Comparisons with a number whose readers all read what is compared too, as in `where(x < 0, 0, x)`."""
        readers: dict[Value, list[Op]] = {}
        for op in self.ops:
            result = op.results[0] if op.results else None
            is_mask = result is not None and result.dtype.name == "bool" and get(op.name).kind is Kind.POINTWISE
            if is_mask and result not in self.live and len(list(op.inputs)) == 1:
                readers[op.results[0]] = []
            for operand in op.inputs:
                if operand in readers:
                    readers[operand].append(op)
        return {
            mask
            for mask, found in readers.items()
            if found and mask.op is not None and all(next(iter(mask.op.inputs)) in op.operands for op in found)
        }

    def _hoist(self) -> None:
        """Slopes are stored, by a kernel next to that of the activation."""
        for value, op in hoisted(self.ops, self.live).items():
            assert value.op is not None
            if self.products is not None and value in self.products.inside:
                continue
            self.needed.add(value)
            self.early.add(value)
            self.position[value.op] = self.position[op] + 0.1

    def _find_shared_views(self) -> None:
        """Values of which calls read all elements, each a part, as attention does of one product."""
        parts: dict[Value, set[Place]] = {}
        for op in self.ops:
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

    def _widen_products(self) -> None:
        """Products whose batch dims are merged before and split behind, as torch.bmm wants them, keep them apart.

        So operands and results are read through their views instead of being copied. A product that is then only read
        transposed and reshaped is stored so that both are views of it.
        """
        users: dict[Value, list[Op]] = {}  # of products, and of what reads them in another shape
        for op in self.graph.ops:
            if not users.keys().isdisjoint(op.operands):
                for operand in dict.fromkeys(op.inputs):
                    if operand in users:
                        users[operand].append(op)
                        if op.name in ("permute", "reshape"):
                            users[op.results[0]] = []
            if op.name == "matmul":
                users[op.results[0]] = []
        for op in self.graph.ops:
            if op.name != "matmul":
                continue
            result = op.results[0]
            readers = users[result]
            split = readers[0] if len(readers) == 1 and result not in self.live else None
            if split is not None and _splits_batch(split.results[0], result):
                self.wide[result] = split.results[0]
                result = split.results[0]
                self.stored.add(result)
            if result not in self.live and len(users[result]) == 1:
                self._lay_out_product(result, users[result][0], users)

    def _lay_out_product(self, result: Value, reader: Op, users: dict[Value, list[Op]]) -> None:
        rank = result.type.rank
        if reader.name != "permute" or reader.attrs["dims"][-1] != rank - 1 or reader.results[0] in self.live:
            return
        if not all(user.name == "reshape" for user in users[reader.results[0]]):
            return
        strides = [0] * rank
        for stride, dim in zip(contiguous_strides(reader.results[0].shape), reader.attrs["dims"], strict=True):
            strides[dim] = stride  # type: ignore[assignment]  # static
        self.layouts.chosen[result] = tuple(strides)

    def _place_outputs(self) -> None:
        """Outputs are stored; one that is a view of what nothing else hands out is left as that view."""
        taken = self.live | self.in_inputs | {write.value for write in self.graph.writes}
        counts = Counter(output.value for output in self.graph.outputs)
        for number, output in enumerate(self.graph.outputs):
            value = output.value
            op = value.op
            if (
                output.view is None
                and counts[value] == 1
                and op is not None
                and op.name in ("reshape", "permute", "slice")
            ):
                place = self.layouts.place(value, self.live - {value}, self.stored)
                base = place.base
                is_library = base.op is not None and not is_kernel_op(base.op)
                fits = same_strides(place.shape, place.strides, wanted_strides(value))
                if is_library and fits and base not in taken and base not in self.overwritten.values():
                    taken.add(base)
                    self.output_places[number] = replace(place, strides=wanted_strides(value))  # dims of size 1 too
                    self.needed.add(base)
                    continue
            self.needed.add(value)

    def _store_pieces(self) -> None:
        """What a piece of a large product gives is stored, that of the last one too: so all have the same kernels, and
        nothing computes it again when the piece is gone."""
        pieces = {item for op in self.ops if op.name == "gemm" for item in op.operands[2:] if isinstance(item, Value)}
        self.needed.update(pieces)
        if pieces:
            for op in self.ops:
                if op.name == "concat" and not pieces.isdisjoint(op.operands):
                    self.needed.update(op.inputs)

    def _lay_out_rows(self) -> None:
        """All tensors of a row of a `foreach` lie alike in memory, as the one that it updates; others are copied."""
        for op in self.graph.ops:
            if op.name != "foreach":
                continue
            lists, results = rows_of(op).lists, {number: result for result, number in updated(op)}
            wide = [values for values in lists if any(value.type.rank for value in values)]
            changed = [lists[number] for number in op.attrs["mutates"] if lists[number] in wide]
            rows = [self._wanted(value) for value in (changed or wide or lists)[0]]
            found: list[Value] = []
            for value, strides in ((value, rows[row]) for values in lists for row, value in enumerate(values)):
                if value.type.rank and not same_strides(int_shape(value), self._wanted(value), strides):
                    value = self._append_copy(value, before=op)
                    self.needed.add(value)
                    self.layouts.chosen[value] = strides
                    result = results.get(len(found))
                    if result is not None:  # the copy is updated
                        self.overwritten[result] = value
                        self.layouts.chosen[result] = strides
                found.append(value)
            self.rows[op] = found

    def _wanted(self, value: Value) -> tuple[int, ...]:
        return self.layouts.chosen.get(value) or wanted_strides(value)

    # the sweep

    def _visit(self, op: Op) -> None:
        if is_scattered(op, self.in_order):
            if self.waiting.pop(op.results[0], None) is not None or op.results[0] in self.needed:
                self._start_scatter(op)
            return
        if not is_kernel_op(op) or self._is_transfer(op):
            if self.products is None or not self.products.take(op):
                self._visit_library(op)
            return
        value = op.results[0]
        if self.products is not None and value in self.products.inside:
            self.products.visit_inside(op)
            return
        if self.wide and op.name == "reshape" and self.wide.get(op.operands[0]) is value:  # type: ignore[arg-type]
            return  # stored by the product
        groups = self.waiting.pop(value, [])
        if value in self.overwritten and op.name in UPDATES:
            if groups or value in self.needed:
                self._start_update(op)
            return
        if value not in self.needed and not groups:
            return
        if self.products is not None and self.products.add_in_library(op, groups):
            return
        if value in self.needed or not self._absorb(op, value, groups):
            if op.name == "concat" and self._is_stored_by_pieces(op):
                self._start_join(op)
            else:
                self._start(value)

    def _is_transfer(self, op: Op) -> bool:
        """Reading a number from another device."""
        return op.name == "item" and next(iter(op.inputs)).device not in ("cpu", HOST)

    def _start(self, value: Value) -> None:
        """A group that stores this value."""
        op = value.op
        assert op is not None
        self.stored.add(value)
        group = group_of(value, self.position[op])
        base = self.overwritten.get(value)
        if base is not None:
            group.overwrites[value] = base
        self.groups.append(group)
        for place in list(group.visits[value]):
            if get(op.name).kind in (Kind.REDUCTION, Kind.SCAN):
                admitted = group.admit(op, place, ALWAYS)
                assert admitted
            self.expand(group, value)

    def _start_update(self, op: Op) -> None:
        """A group that stores the source into its part of the base's memory."""
        source, base = op.operands[1], self.overwritten[op.results[0]]
        assert isinstance(source, Value)
        if source is base:
            copy = copy_op(base)
            source = copy.results[0]
            self.position[copy] = self.position[op] - 0.5
            self._start(source)
        self.needed.add(base)
        self._store_part(op, source, base, self.position[op])

    def _start_scatter(self, op: Op) -> None:
        """A group that adds the source to elements of the base's memory, or puts it there."""
        value, base = op.results[0], self.overwritten.get(op.results[0])
        given = next(iter(op.inputs))
        is_made = given.op is not None and get(given.op.name).kind is Kind.CREATION
        if base is None or is_made:
            fresh = copy_op(given, given.op if is_made else None)  # that nothing else reads
            self.position[fresh] = self.position[op] - 0.5
            base = self.overwritten[value] = fresh.results[0]
            self.layouts.chosen[base] = self.layouts.chosen[value] = self.layouts.strides(value)
            self._start(base)
        else:
            self.needed.update((base, *op.inputs))  # what they are made of may be made of the base
        self.stored.add(value)
        group = scattering_group(op, base, self.position[op], self.layouts.strides(value))
        self.groups.append(group)
        if self.backend == "c" and scatters_one_by_one(op, group) and source_of(op) not in self.cheap:
            self.needed.add(source_of(op))  # what is vector arithmetic stays so
            self.early.add(source_of(op))
        for operand in group.visits:
            self._wait(operand, group)

    def _store_part(self, op: Op, source: Value, base: Value, position: float) -> None:
        value = op.results[0]
        self.stored.add(value)
        self.needed.add(source)
        group = group_of(source, position)
        group.roots = {value: next(iter(group.roots.values()))}
        group.stores[value] = update_place(op, self.layouts.strides(value))
        group.overwrites[value] = base
        self.groups.append(group)

    def _is_stored_by_pieces(self, op: Op) -> bool:
        """Whether the pieces of a stored concat are stored one by one. A GPU moves what lies in memory at once."""
        if len(op.operands) > MANY_PIECES:
            return True
        if element_count(op.results[0]) < BIG_CONCAT:
            return False
        return self.backend == "c" or any(self._is_computed(piece) for piece in op.inputs)

    def _is_computed(self, value: Value) -> bool:
        """Whether a kernel makes the elements of a value."""
        while value.op is not None and get(value.op.name).kind is Kind.VIEW and len(value.op.operands) == 1:
            value = next(iter(value.op.inputs))
        return value.op is not None and is_kernel_op(value.op)

    def _start_join(self, op: Op) -> None:
        """Groups that store the pieces of a concat, each into its part: by the kernels that make them, if possible."""
        value, dim = op.results[0], op.attrs["dim"]
        memory = Value(f"{value.name}_parts", value.type)
        strides = self.layouts.strides(value)
        self.layouts.chosen[memory] = strides
        self.stored.update((memory, value))
        self.parts.add(memory)
        join = Library(op, self.position[op], [], [value], {value: memory}, joins=True)
        start = 0
        for number, piece in enumerate(op.inputs):
            starts = tuple(start if d == dim else 0 for d in range(len(strides)))
            start += int_shape(piece)[dim]
            if 0 in piece.shape:
                continue
            attrs = {"starts": starts, "steps": (1,) * len(strides)}
            store = Op(
                "update_slice", [memory, piece], attrs, [value.type], op.location, [f"{value.name}_part{number}"]
            )
            part = store.results[0]
            self.layouts.chosen[part] = strides
            after = self.position[op] - 0.5 if piece.op is None else self.position[piece.op] + 0.25
            self._store_part(store, piece, memory, after)
            join.operands.append(Place(part, int_shape(part), strides))
        self.libraries.append(join)

    def _wait(self, value: Value, group: Group) -> None:
        groups = self.waiting.setdefault(value, [])
        if group not in groups:
            groups.append(group)

    def expand(self, group: Group, value: Value) -> None:
        """Compute a value in a group, wherever it needs it; what it is made of waits to be decided on."""
        for place, visit in list(group.visits[value].items()):
            if not visit.expanded:
                for operand in group.expand(value, place):
                    self._wait(operand, group)

    def _absorb(self, op: Op, value: Value, groups: list[Group]) -> bool:
        """Take `value` into the groups that need it, if that is right; False = it is to be stored."""
        kind = get(op.name).kind
        if self.products is not None and self.products.feeds_product(value, groups):
            taken = self.products.worth_computing(op, value, groups)
        elif kind in (Kind.REDUCTION, Kind.SCAN):
            taken = len(groups) == 1 and self._absorb_reduction(op, value, groups[0])
        elif kind is Kind.CREATION or (kind is Kind.VIEW and len(op.operands) == 1):
            taken = True
        else:
            taken = self._worth_computing_again(op, value, groups)
        if taken:
            for group in groups:
                self.expand(group, value)
        return taken

    def _absorb_reduction(self, op: Op, value: Value, group: Group) -> bool:
        places = group.visits[value]
        if len(places) != 1 or is_full(group):
            return False
        ((place, visit),) = places.items()
        return not visit.masked and group.admit(op, place, ROW_LIMITS[self.backend])

    def _worth_computing_again(self, op: Op, value: Value, groups: list[Group]) -> bool:
        if any(is_full(group) for group in groups):
            return False
        if len(op.operands) > MANY_PIECES or any(group.device != groups[0].device for group in groups):
            return False
        if value in self.cheap:
            # random words cost more than their work says: worth it for memory, but each element once per kernel
            return value not in self.drawn or all(
                sum(iterations(group, place) for place in group.visits[value]) <= element_count(value)
                for group in groups
            )
        if len(groups) > 1:
            return False
        if get(op.name).kind is Kind.INDEXING:
            # reading the table costs no more than reading what was gathered from it, but it must be kept until then
            if not self._frees_table(op, value):
                return True
            self.early.add(value)
            return False
        (group,) = groups
        size, effort = element_count(value), element_work(op)
        points = sum(iterations(group, place) for place in group.visits[value])
        # storing and reading it back would take as long as a few scalar operations on each of its elements
        return points <= size or (points - size) * effort <= max(REDUNDANT_WORK, WORK_OF_STORING[self.backend] * size)

    def _frees_table(self, op: Op, value: Value) -> bool:
        """Whether gathering early lets go of a large table, of which but a little is read."""
        table = next(iter(op.inputs))
        is_kept = isinstance(table, Input) or table in self.live
        return not is_kept and element_count(table) >= TABLE_SHARE * max(element_count(value), SMALL_TABLE)

    # library calls

    def _visit_library(self, op: Op) -> None:
        results = [self.wide.get(value, value) for value in op.results]
        used = [value for value in results if value in self.needed or self.waiting.pop(value, None) is not None]
        if not used and not effect(op):
            return
        if op.name not in (*PRODUCTS, "scan", "extern", "item", "foreach") and get(op.name).call is None:
            raise LoweringError(
                f"{op.name} on {op.results[0].type} has neither a lowering nor a library call", op.location
            )
        self.stored.update(results)
        if op.name in PRODUCTS:
            factors = self._place_factors(op, results[0])
            others = [self.own(item) for item in op.operands[2:] if isinstance(item, Value)]
            overwrites = {value: base for value, base in updates(op) if value in self.overwritten}
            self.libraries.append(Library(op, self.position[op], [*factors, *others], results, overwrites))
            return
        if op.name == "scan":
            self._visit_loop(op)
            return
        for result in results:  # the library decides how its results lie, as it does for eager
            self.layouts.chosen.setdefault(result, wanted_strides(result))
        overwrites = {value: self.overwritten[value] for value, _ in updates(op) if value in self.overwritten}
        changed = set(overwrites.values())
        read = operands_read(op)
        given = [*self.rows.get(op, ()), *op.operands[len(self.rows.get(op, ())) :]]
        operands = [
            (self.own(x) if x in changed else self._place_argument(x, op))
            if isinstance(x, Value) and at in read
            else None
            for at, x in enumerate(given)
        ]
        self.libraries.append(Library(op, self.position[op], operands, results, overwrites))

    def _visit_loop(self, op: Op) -> None:
        """Sequences and what every turn sees are read as they lie; carries begin in the layout that the body keeps."""
        for result in op.results:
            self.layouts.chosen[result] = tuple(contiguous_strides(result.shape))  # type: ignore[arg-type]  # static
        places: list[Place | None] = []
        for number, value in enumerate(op.inputs):
            place = self.layouts.place(value, self.stored, self.needed)
            base = place.base
            plain = tuple(contiguous_strides(value.shape))
            if number < op.attrs["carries"] and not same_strides(place.shape, place.strides, plain):  # type: ignore[arg-type]
                copy = copy_op(value)
                (result,) = copy.results
                self.layouts.chosen[result] = plain  # type: ignore[assignment]  # static
                self.position[copy] = self.position[op] - 0.5
                self._start(result)
                places.append(self.own(result))
            elif (
                base not in self.needed
                and base.op is not None
                and is_kernel_op(base.op)
                and element_count(value) < element_count(base)
            ):
                places.append(self.own(value))  # storing all of the base for a part of it does not pay
            else:
                places.append(self.need(place))
        self.libraries.append(Library(op, self.position[op], places, list(op.results)))

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
        self.needed.add(place.base)
        return place

    def own(self, value: Value) -> Place:
        return self.need(Place(value, int_shape(value), self.layouts.strides(value)))

    def _place_argument(self, value: Value, op: Op) -> Place:
        """An operand of an ATen call: with eager's strides, without a copy where they can be had."""
        if op.name in (grouped.NAME, scaled.NAME) and value in op.operands[:2]:
            return self.place_factor(value, grouped.ALIGNMENT // value.dtype.itemsize)
        wanted = wanted_strides(value)
        if value not in self.stored and value not in self.needed:
            place = self.layouts.place(_uncopied(value), self.stored, self.needed)
            if place.base in self.shared and _suits(op, place, wanted):
                return self.need(place)
        place = self.layouts.place(value, self.stored, self.needed)
        base = place.base
        smaller = base not in self.needed and base.op is not None and element_count(value) < element_count(base)
        if (smaller and is_kernel_op(base.op)) or not same_strides(  # type: ignore[arg-type]
            place.shape, place.strides, wanted
        ):
            return self.own(value)
        return self.need(place)

    def place_factor(self, value: Value, step: int = 1) -> Place:
        """An operand of a matrix product: any strides that BLAS takes, in steps of so many elements."""
        place = self.layouts.place(value, self.stored, self.needed)
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
