"""The part of fusion that deals with values stored in the memory of others: updates in place, writes, and pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphc.ir.graph import Input, Op, Value
from graphc.ir.sizes import typical
from graphc.ops.registry import Kind, get
from graphc.passes.fused import Library
from graphc.passes.group import group_of
from graphc.passes.layout import Place, int_shape, is_dense, view_strides, wanted_strides
from graphc.passes.updates import (
    UPDATES,
    chain_of,
    copy_op,
    scattering_group,
    scatters_one_by_one,
    source_of,
    update_place,
    updates,
)
from graphc.passes.work import KERNEL_DTYPES, MANY_PIECES, element_count, is_kernel_op

if TYPE_CHECKING:
    from graphc.passes.fuse import Fuser

BIG_CONCAT = 4096
"""Elements from which on the pieces of a stored concat are stored one by one."""


class UpdateFusion:
    """What fusion does with updates: which are stored in the memory of their base, and kernels that store a part of it.

    Args:
        fuser: the sweep that this is a part of.
    """

    def __init__(self, fuser: Fuser) -> None:
        self.fuser, self.layouts = fuser, fuser.layouts

    # preparation

    def find_updates(self) -> None:
        """Choose updates that are to be stored in the memory of their base, and give both one layout."""
        fuser = self.fuser
        written = {write.value: write.target for write in fuser.graph.writes}
        kept = fuser.live | set(written)
        bases = {
            value: base for op in fuser.ops if op.name not in UPDATES or is_kernel_op(op) for value, base in updates(op)
        }
        for value, target in written.items():
            chain = chain_of(value, bases)
            if chain[-1] is target and len(chain) > 1 and not any(link in fuser.live for link in chain[:-1]):
                fuser.in_inputs.update(chain[:-1])
        updated = set(bases.values())
        for value, base in bases.items():
            op = value.op
            assert op is not None
            if value in fuser.in_inputs:
                fuser.overwritten[value] = base
            elif isinstance(base, Input) or base in kept:
                if op.name in ("extern", "gemm", "foreach"):
                    fuser.overwritten[value] = base  # of a copy, made later
            elif op.name in UPDATES and base not in bases and value not in updated:
                continue  # a single one is a masked read, which fuses
            elif base.dtype.name in KERNEL_DTYPES or op.name in ("extern", "foreach"):
                fuser.overwritten[value] = base
        self._lay_out_chains()

    def _lay_out_chains(self) -> None:
        fuser = self.fuser
        ends: dict[Value, Value] = {}
        for value in reversed(fuser.overwritten):
            end = ends.get(value, value)
            base = fuser.overwritten[value]
            if isinstance(base, Input):
                continue
            ends.setdefault(base, end)
            wanted = wanted_strides(end)
            if is_dense(int_shape(end), wanted):
                self.layouts.chosen.setdefault(base, wanted)
        for value, base in list(fuser.overwritten.items()):
            self.layouts.chosen[value] = strides = self.layouts.strides(base)
            op = value.op
            assert op is not None
            if op.name == "update_strided" and view_strides(int_shape(base), strides, (element_count(base),)) != (1,):
                del fuser.overwritten[value]
                del self.layouts.chosen[value]

    def add_writes(self) -> None:
        """Each write that is not an update in place becomes a copy of a stored value; `merge` makes them one kernel."""
        fuser = self.fuser
        for write in fuser.graph.writes:
            if chain_of(write.value, fuser.overwritten)[-1] is write.target:
                fuser.needed.add(write.value)
                continue
            source = write.value
            if isinstance(source, Input):  # may be overwritten itself before it is read here
                source = fuser.append_copy(source)
            fuser.needed.add(source)
            result = fuser.append_copy(source)
            fuser.needed.add(result)
            self.layouts.chosen[result] = self.layouts.strides(write.target)
            fuser.overwritten[result] = write.target
            fuser.homes[result] = write.target

    # the sweep

    def start_update(self, op: Op) -> None:
        """A group that stores the source into its part of the base's memory."""
        fuser = self.fuser
        source, base = op.operands[1], fuser.overwritten[op.results[0]]
        assert isinstance(source, Value)
        if source is base:
            copy = copy_op(base)
            source = copy.results[0]
            fuser.position[copy] = fuser.position[op] - 0.5
            fuser.start(source)
        fuser.needed.add(base)
        self._store_part(op, source, base, fuser.position[op])

    def start_scatter(self, op: Op) -> None:
        """A group that adds the source to elements of the base's memory, or puts it there."""
        fuser = self.fuser
        value, base = op.results[0], fuser.overwritten.get(op.results[0])
        given = next(iter(op.inputs))
        is_made = given.op is not None and get(given.op.name).kind is Kind.CREATION
        if base is None or is_made:
            fresh = copy_op(given, given.op if is_made else None)  # that nothing else reads
            fuser.position[fresh] = fuser.position[op] - 0.5
            base = fuser.overwritten[value] = fresh.results[0]
            self.layouts.chosen[base] = self.layouts.chosen[value] = self.layouts.strides(value)
            fuser.start(base)
        else:
            fuser.needed.update((base, *op.inputs))  # what they are made of may be made of the base
        fuser.stored.add(value)
        group = scattering_group(op, base, fuser.position[op], self.layouts.strides(value))
        fuser.groups.append(group)
        if fuser.backend == "c" and scatters_one_by_one(op, group) and source_of(op) not in fuser.cheap:
            fuser.needed.add(source_of(op))  # what is vector arithmetic stays so
            fuser.early.add(source_of(op))
        for operand in group.visits:
            fuser.wait(operand, group)

    def _store_part(self, op: Op, source: Value, base: Value, position: float) -> None:
        fuser = self.fuser
        value = op.results[0]
        fuser.stored.add(value)
        fuser.needed.add(source)
        group = group_of(source, position)
        group.roots = {value: next(iter(group.roots.values()))}
        group.stores[value] = update_place(op, self.layouts.strides(value))
        group.overwrites[value] = base
        fuser.groups.append(group)

    def stores_pieces(self, op: Op) -> bool:
        """Whether the pieces of a stored concat are stored one by one. A GPU moves what lies in memory at once."""
        if len(op.operands) > MANY_PIECES:
            return True
        if typical(element_count(op.results[0])) < BIG_CONCAT:
            return False
        return self.fuser.backend == "c" or any(self._is_computed(piece) for piece in op.inputs)

    def _is_computed(self, value: Value) -> bool:
        """Whether a kernel makes the elements of a value."""
        while value.op is not None and get(value.op.name).kind is Kind.VIEW and len(value.op.operands) == 1:
            value = next(iter(value.op.inputs))
        return value.op is not None and is_kernel_op(value.op)

    def start_join(self, op: Op) -> None:
        """Groups that store the pieces of a concat, each into its part: by the kernels that make them, if possible."""
        fuser = self.fuser
        value, dim = op.results[0], op.attrs["dim"]
        memory = Value(f"{value.name}_parts", value.type)
        strides = self.layouts.strides(value)
        self.layouts.chosen[memory] = strides
        fuser.stored.update((memory, value))
        fuser.parts.add(memory)
        join = Library(op, fuser.position[op], [], [value], {value: memory}, joins=True)
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
            after = fuser.position[op] - 0.5 if piece.op is None else fuser.position[piece.op] + 0.25
            self._store_part(store, piece, memory, after)
            join.operands.append(Place(part, int_shape(part), strides))
        fuser.libraries.append(join)
