"""The part of fusion that deals with templates: products that kernels take in, and what is computed on their way."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

from graphc.ir.graph import Op, Value
from graphc.ir.types import FLOAT8
from graphc.ops.checks import may_refuse
from graphc.ops.registry import Kind, get
from graphc.passes.access import Index, trace
from graphc.passes.chains import Chain, find_chains
from graphc.passes.fused import Library
from graphc.passes.group import Group, group_of
from graphc.passes.layout import Place, before_merge, int_shape
from graphc.passes.products import rounded_before
from graphc.passes.templates import PROLOGUE_WORK, Templates
from graphc.passes.work import MANY_PIECES, element_count, element_work, is_full

if TYPE_CHECKING:
    from graphc.passes.fuse import Fuser


class TemplateFusion:
    """What fusion does with products of matrices when there are templates.

    Args:
        fuser: the sweep that this is a part of.
        templates: the policy.
        adds_in_library: as for `graphc.passes.fuse.fuse`.

    Attributes:
        inside: values that are computed in kernels of chains, and never stored but for statistics.
    """

    def __init__(self, fuser: Fuser, templates: Templates, adds_in_library: bool) -> None:
        self.fuser, self.templates, self.adds_in_library = fuser, templates, adds_in_library
        self.chains: dict[Op, Chain] = {}  # by the product that ends them
        self.inside: dict[Value, list[Chain]] = {}
        self.holders: dict[Chain, Group] = {}

    def find_chains(self) -> None:
        """Find products of products that become kernels."""
        fuser = self.fuser
        kept = fuser.live | fuser.needed | fuser.overwritten.keys()
        for chain in find_chains(fuser.ops, kept, self.templates.takes_chain):
            self.chains[chain.outer] = chain
            for value in chain.values:
                self.inside.setdefault(value, []).append(chain)
            for product in chain.products:
                whole = fuser.wide.pop(product.results[0], None)
                if whole is not None:
                    fuser.stored.discard(whole)

    def visit_inside(self, op: Op) -> None:
        """A value within chains: computed by the kernel of each that needs it, except for a softmax's statistics."""
        fuser, value = self.fuser, op.results[0]
        groups = fuser.waiting.pop(value, [])
        owner = next((chain for chain in self.inside[value] if value in chain.statistics), None)
        holder = None if owner is None else self.holders.get(owner)
        if holder is not None:
            ((place, _),) = holder.visits[value].items()
            if value in fuser.needed or any(group is not holder for group in groups):
                holder.roots[value] = place
                fuser.stored.add(value)
            groups = [holder]
        for group in groups:
            if op.name == "matmul":
                (place,) = group.visits[value]
                admitted = group.admit_inner(op, place)
                assert admitted, "tried out before"
            fuser.expand(group, value)

    def take(self, op: Op) -> bool:
        """Make a product part of a kernel, that of what reads it if possible, when that pays."""
        if self._reads_through(op):
            return True
        if not self.templates.can_hold(op):
            return False
        fuser, value = self.fuser, op.results[0]
        if value in self.inside:
            self.visit_inside(op)
            return True
        chain = self.chains.get(op)
        whole = fuser.wide.get(value, value)
        readers, is_needed = fuser.waiting.get(whole, []), whole in fuser.needed
        if not readers and not is_needed:
            return False
        taker = readers[0] if len(readers) == 1 and not is_needed and not readers[0].contracts else None
        place = None if taker is None else _place_in(taker, whole, value)
        # what is stored for others as well is joined with those that read it later, in `merge`
        saved, launches = (2, 1) if place is not None else (1, 1) if readers and is_needed else (0, 0)
        size = math.prod(int_shape(value)) * value.dtype.itemsize
        work = 0 if place is None or taker is None else self._work_behind(taker)
        if chain is None and not self.templates.takes_product(op, saved * size, launches, work):
            return False
        if taker is None or place is None or not taker.admit_contraction(op, place):
            taker = group_of(whole, fuser.position[op])
            place = _place_in(taker, whole, value)
            if place is None or not taker.admit_contraction(op, place):
                return False
            fuser.groups.append(taker)
            fuser.stored.add(whole)
        else:
            fuser.stored.discard(whole)
        if chain is not None:
            self.holders[chain] = taker
        fuser.waiting.pop(whole, None)
        for inner in dict.fromkeys((whole, value)):
            fuser.expand(taker, inner)
        return True

    def add_in_library(self, op: Op, groups: list[Group]) -> bool:
        """Let a library call add to a product of 16-bit floats before it rounds, as `addmm` does in eager.

        For products that no kernel takes in: those that do add before they round. The call saves a kernel where nothing
        else is done with the product. Where more is, it saves none, and costs none if it adds a bias that is in memory.

        Args:
            op: any op, in the sweep.
            groups: that wait for its result.
        """
        fuser, calls, value = self.fuser, self.fuser.calls, op.results[0]
        product = rounded_before(op) if self.adds_in_library else None
        if product is None or not self._is_by_itself(product):
            return False
        assert product.op is not None
        (term,) = (item for item in op.inputs if item is not product)
        place = fuser.layouts.place(term, fuser.stored, fuser.needed)
        is_all = value in fuser.needed and not groups  # no kernel reads the sum
        is_stored = place.base in fuser.stored or place.base in fuser.needed or not _has_kernel(place.base)
        if _is_bias(place, int_shape(value)[-1]):
            is_worth_it = is_all or is_stored
        else:
            is_worth_it = is_all and is_stored
        if term.device != value.device or not is_worth_it:
            return False
        # as `take` will see it
        takes_in = value in fuser.needed or (len(groups) == 1 and not groups[0].contracts)
        saved = 2 * element_count(value) * value.dtype.itemsize if takes_in else 0
        work = self._work_behind(groups[0]) if takes_in and groups else 0
        if self.templates.can_hold(product.op) and self.templates.takes_product(product.op, saved, int(takes_in), work):
            return False
        left, right = product.op.inputs
        added = calls.need(place) if is_stored else calls.own(term)
        operands: list[Place | None] = [calls.place_factor(left), calls.place_factor(right), added]
        fuser.stored.add(value)
        fuser.libraries.append(Library(product.op, fuser.position[op], operands, [value]))
        return True

    def _work_behind(self, group: Group) -> int:
        """Additions per element that a group does, with what it will compute again rather than read."""
        done = (value.op for value, places in group.visits.items() if any(v.expanded for v in places.values()))
        known = sum(element_work(op) for op in done if op is not None)
        waiting = (value for value, places in group.visits.items() if not any(v.expanded for v in places.values()))
        return known + sum(self.fuser.effort.get(value, 0) for value in waiting)

    def _is_by_itself(self, product: Value) -> bool:
        """Whether a product is part of no chain, has its batch dims where `baddbmm` wants them, and is read once."""
        fuser, op = self.fuser, product.op
        if op is None or op in self.chains or product in self.inside or product in fuser.wide:
            return False
        if product in fuser.needed or len(self._uses[product]) > 1:
            return False
        return all(before_merge(factor) is None for factor in op.inputs)

    @cached_property
    def _uses(self) -> dict[Value, list[Op]]:
        return self.fuser.graph.uses()

    def _reads_through(self, op: Op) -> bool:
        """Let products read 8-bit floats, which kernels do not store, where a view of them is."""
        if get(op.name).kind is not Kind.VIEW:  # calls that only check have no result
            return False
        fuser, value = self.fuser, op.results[0]
        if value.dtype not in FLOAT8 or value in fuser.needed:
            return False
        groups = fuser.waiting.pop(value, [])
        for group in groups:
            fuser.expand(group, value)
        return bool(groups)

    def feeds_product(self, value: Value, groups: list[Group]) -> bool:
        """Whether some group needs a value to make an operand of its product."""
        return any(group.contracts and not _after_product(group, value) for group in groups)

    def worth_computing(self, op: Op, value: Value, groups: list[Group]) -> bool:
        """Whether products compute an operand as they read it, once for each block."""
        fuser, kind = self.fuser, get(op.name).kind
        if kind is Kind.CREATION or (kind is Kind.VIEW and len(op.operands) == 1):
            return True
        if kind is not Kind.POINTWISE or value in fuser.drawn or may_refuse(op):
            return False  # data are checked behind loops
        holds_blocks = all(group.sums or not group.contracts for group in groups)  # which serve many scores
        if value in fuser.cheap and (holds_blocks or not fuser.cheap[value][1]):
            return True
        if len(groups) > 1:
            return False
        (group,) = groups
        if group.sums and element_work(op) <= PROLOGUE_WORK:
            return True
        if is_full(group) or len(op.operands) > MANY_PIECES or any(x.device != value.device for x in op.inputs):
            return False
        product = next(item.op for item in group.visits if item.op is not None and get(item.op.name).contract)
        leaves = sum(math.prod(int_shape(item)) * item.dtype.itemsize for item in dict.fromkeys(op.inputs))
        return self.templates.takes_operand(product, value, leaves, element_work(op))


def _place_in(group: Group, whole: Value, product: Value) -> Index | None:
    """The one element of a product that a group needs at each point, read through a reshape to `whole` or as it is."""
    places = group.visits[whole]
    if len(places) != 1 or any(visit.masked for visit in places.values()):
        return None
    (place,) = places
    if whole is product:
        return place
    assert whole.op is not None
    return trace(whole.op, place, group.ranges).reads[0].place


def _is_bias(place: Place, columns: int) -> bool:
    """Whether the same numbers are added to every row."""
    *lead, row = zip(place.shape, place.strides, strict=True)
    return row[0] == columns and all(size == 1 or stride == 0 for size, stride in lead)


def _has_kernel(value: Value) -> bool:
    return value.op is not None and get(value.op.name).lower is not None


def _after_product(group: Group, value: Value) -> bool:
    """Whether a group that contracts needs a value for its results only, not for the operands of the product."""
    rows = frozenset((*group.rows, *group.inner))
    return bool(rows) and all(group.axes_of(place).isdisjoint(rows) for place in group.visits[value])
