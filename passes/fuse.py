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

from collections import Counter
from dataclasses import replace

from graphc.ir.graph import Graph, Input, Op, StridedView, Value
from graphc.ir.sizes import typical
from graphc.ir.types import HOST
from graphc.ops.registry import Kind, get
from graphc.passes.fused import Fusion, Library
from graphc.passes.group import ALWAYS, Group, RowLimits, group_of, iterations
from graphc.passes.hoist import hoisted
from graphc.passes.layout import Layouts, Place, int_shape, is_dense, same_strides, wanted_strides
from graphc.passes.library_fusion import LibraryFusion
from graphc.passes.pad_rows import values_with_gaps
from graphc.passes.template_fusion import TemplateFusion
from graphc.passes.templates import Templates
from graphc.passes.update_fusion import UpdateFusion
from graphc.passes.updates import UPDATES, copy_op, is_scattered
from graphc.passes.work import MANY_PIECES, element_count, element_work, is_full, is_kernel_op

CHEAP_WORK, FREE_WORK = 8, 16
"""Additions that an element may cost to be computed again rather than kept."""
FUNCTION_WORK = 4
"""What an exponential or the like counts as on a GPU, where storing a float32 and reading it back takes as long as some
fifty additions, and memory is short."""
ROW_LIMITS = {"c": RowLimits(8, 65_536), "triton": RowLimits(128, 16_384)}
REDUNDANT_WORK = 32_768
"""Scalar operations worth repeating to save a kernel of its own."""
WORK_OF_STORING = {"c": 0, "triton": 2}
"""Scalar operations that take as long as storing an element and reading it back: none where caches hold it."""
TABLE_SHARE, SMALL_TABLE = 64, 4_096
"""A table of so many times the elements that are picked from it, or of these, is let go of by picking early."""


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
    """The sweep; see the module. `UpdateFusion`, `LibraryFusion` and `TemplateFusion` are parts of it."""

    def __init__(self, graph: Graph, backend: str, templates: Templates | None, adds_in_library: bool = False) -> None:
        self.graph, self.backend = graph, backend
        self.in_order = templates is not None and templates.deterministic
        self.products = TemplateFusion(self, templates, adds_in_library) if templates is not None else None
        self.layouts = Layouts(values_with_gaps(graph))
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
        self.effort: dict[Value, int] = {}  # what it takes to compute these again, functions included
        self.drawn: set[Value] = set()  # those among them that are made from random words
        self.early: set[Value] = set()
        self.position: dict[Op, float] = {}
        self.updates, self.calls = UpdateFusion(self), LibraryFusion(self)

    def run(self) -> Fusion:
        self.position = {op: number for number, op in enumerate(self.ops)}
        self.updates.find_updates()
        self.updates.add_writes()
        self._find_cheap()
        self.calls.widen_products()
        if self.products is not None:
            self.products.find_chains()
        self._place_outputs()
        self._store_pieces()
        self._hoist()
        self.calls.find_shared_views()
        self.calls.lay_out_rows()
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

    def append_copy(self, value: Value, before: Op | None = None) -> Value:
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
            if self.backend != "c" and len(op.operands) == 1:
                work = min(work, FUNCTION_WORK)
            for operand in op.operands:
                if isinstance(operand, Value):
                    more, below = self.cheap.get(operand) or (0, frozenset((operand,)))
                    work += more
                    leaves = leaves | below if leaves else below
            if work > (CHEAP_WORK if leaves else FREE_WORK):
                continue
            size = typical(element_count(result))
            read = sum([min(size, typical(element_count(leaf))) * leaf.type.dtype.itemsize for leaf in leaves])
            if 4 * read <= 5 * size * result.type.dtype.itemsize + 2048 or result in masks:
                self.cheap[result] = (work, leaves)
                again = sum(self.effort.get(operand, 0) for operand in dict.fromkeys(op.inputs))
                self.effort[result] = element_work(op) + again
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
        """Slopes are stored, by a kernel next to that of the activation; a GPU has time to compute them again."""
        if self.backend != "c":
            return
        for value, op in hoisted(self.ops, self.live).items():
            assert value.op is not None
            if self.products is not None and value in self.products.inside:
                continue
            self.needed.add(value)
            self.early.add(value)
            self.position[value.op] = self.position[op] + 0.1

    def _place_outputs(self) -> None:
        """Outputs are stored; one that is a view of what nothing else hands out is left as that view."""
        taken = self.live | self.in_inputs | {write.value for write in self.graph.writes}
        counts = Counter(output.value for output in self.graph.outputs)
        for number, output in enumerate(self.graph.outputs):
            value = output.value
            op = value.op
            if counts[value] == 1 and op is not None and op.name in ("reshape", "permute", "slice"):
                place = self.layouts.place(value, self.live - {value}, self.stored)
                base = place.base
                is_library = base.op is not None and not is_kernel_op(base.op)
                wanted = wanted_strides(value)
                fits = same_strides(place.shape, place.strides, wanted)
                fits = fits and (output.view is None or is_dense(int_shape(value), wanted))
                if is_library and fits and base not in taken and base not in self.overwritten.values():
                    taken.add(base)
                    place = replace(place, strides=wanted)  # dims of size 1 too
                    self.output_places[number] = place if output.view is None else _seen(output.view, place)
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

    # the sweep

    def _visit(self, op: Op) -> None:
        if is_scattered(op, self.in_order):
            if self.waiting.pop(op.results[0], None) is not None or op.results[0] in self.needed:
                self.updates.start_scatter(op)
            return
        if not is_kernel_op(op) or self._is_transfer(op):
            if self.products is None or not self.products.take(op):
                self.calls.visit(op)
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
                self.updates.start_update(op)
            return
        if value not in self.needed and not groups:
            return
        if self.products is not None and self.products.add_in_library(op, groups):
            return
        if value in self.needed or not self._absorb(op, value, groups):
            if op.name == "concat" and self.updates.stores_pieces(op):
                self.updates.start_join(op)
            else:
                self.start(value)

    def _is_transfer(self, op: Op) -> bool:
        """Reading a number from another device."""
        return op.name == "item" and next(iter(op.inputs)).device not in ("cpu", HOST)

    def start(self, value: Value) -> None:
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

    def wait(self, value: Value, group: Group) -> None:
        """Have a group wait until it is decided whether the value is stored or computed in it."""
        groups = self.waiting.setdefault(value, [])
        if group not in groups:
            groups.append(group)

    def expand(self, group: Group, value: Value) -> None:
        """Compute a value in a group, wherever it needs it; what it is made of waits to be decided on."""
        for place, visit in list(group.visits[value].items()):
            if not visit.expanded:
                for operand in group.expand(value, place):
                    self.wait(operand, group)

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
        size = typical(element_count(value))
        if value in self.cheap:
            # random words cost more than their work says: worth it for memory, but each element once per kernel
            return value not in self.drawn or all(
                typical(sum(iterations(group, place) for place in group.visits[value])) <= size for group in groups
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
        effort = element_work(op)
        points = typical(sum(iterations(group, place) for place in group.visits[value]))
        # storing and reading it back would take as long as a few scalar operations on each of its elements
        return points <= size or (points - size) * effort <= max(REDUNDANT_WORK, WORK_OF_STORING[self.backend] * size)

    def _frees_table(self, op: Op, value: Value) -> bool:
        """Whether gathering early lets go of a large table, of which but a little is read."""
        table = next(iter(op.inputs))
        is_kept = isinstance(table, Input) or table in self.live
        size = typical(element_count(value))
        return not is_kept and typical(element_count(table)) >= TABLE_SHARE * max(size, SMALL_TABLE)


def _seen(view: StridedView, place: Place) -> Place:
    """A view of a value that is a look into another one's memory."""
    shape, strides = view.shape, view.strides
    return Place(place.base, shape, strides, place.offset + view.offset)  # type: ignore[arg-type]  # static
