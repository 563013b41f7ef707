"""Optimised graph -> Plan: fuse, lower to loop IR, order for memory, lay out the arena."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from graphc.errors import LoweringError
from graphc.ir.graph import Graph, Input, Op, Value
from graphc.ir.sizes import typical
from graphc.ir.types import HOST, UNKNOWN, Location, i64
from graphc.loopir.kernel import Kernel
from graphc.ops.extern import effect
from graphc.passes.arena import place_arena
from graphc.passes.commits import commits, commits_last, exposed_inputs
from graphc.passes.counts import call_counts
from graphc.passes.devices import group_devices
from graphc.passes.foreach import Stages, stages_of
from graphc.passes.fuse import fuse
from graphc.passes.fused import Library
from graphc.passes.group import Group, device_of, group_of
from graphc.passes.horizontal import RowKernel, gather, kind_of, row_kernel
from graphc.passes.kernel_writer import CHECKS_ONLY, UNCHECKED
from graphc.passes.layout import Place, int_shape, view_strides
from graphc.passes.loops import PlannedLoop, plan_loop
from graphc.passes.lower import Failure, Lowered, Lowering
from graphc.passes.merge import merge_groups
from graphc.passes.nodes import Node, Nodes, rank_of, runs_on
from graphc.passes.outline import memory_dtype, stored_by_another_name
from graphc.passes.rows_apart import mark_rows
from graphc.passes.schedule import Task, order_tasks
from graphc.passes.sharing import Sharing
from graphc.passes.steps import GEMM, call_of, call_traffic, normal_product, reason, resolve, traffic, without_lead
from graphc.passes.table_steps import batch_step, foreach_step, row_width
from graphc.passes.templates import NEVER, Templates
from graphc.passes.transient import EMPTY
from graphc.passes.updates import IN_PLACE_CALLS, source_of
from graphc.passes.whole import whole_outputs
from graphc.program.plan import (
    ARENA,
    CHECKS,
    EXTERNAL,
    INPUT,
    OUTPUT,
    AtenStep,
    BufferSpec,
    Check,
    ForeachStep,
    GemmStep,
    KernelStep,
    OutputSpec,
    Plan,
    RowArgument,
    Step,
    View,
)
from graphc.program.triton_kernel import runs_on_host


def make_plan(
    graph: Graph,
    *,
    numerics: str = "default",
    backend: str = "c",
    templates: Templates | None = None,
    on_kernels: Callable[[list[Kernel]], None] | None = None,
) -> Plan:
    """Schedule a graph.

    Args:
        graph: optimised: composites expanded, shapes static. It is not changed.
        numerics: `default`: a kernel keeps bf16 and f16 in f32 from load to store; `eager`: rounds after each op.
        backend: `c` or `triton`: what the kernels are meant for.
        templates: which products of matrices are kernels, for `triton`; None = none, all are library calls.
        on_kernels: called with the kernels as soon as they are known, before the plan is done, so that they can be
            built meanwhile. In rare cases (a product that is a sum of nothing) the plan has others in the end.

    Returns:
        The plan. `stats` counts: `graph_ops`, `fused_ops` (done by kernels), `kernels` (distinct), `kernel_calls`,
        `gemm_calls`, `gemm_bytes`, `extern` (ATen calls by name), `extern_reasons`, `extern_bytes`, `bytes_read`,
        `bytes_written`, `arena_bytes`, and `arena_bytes_without_reuse`.

    Raises:
        LoweringError: an op has neither a lowering nor a library call, or an input has a symbolic size.
    """
    for item in graph.inputs:
        if not all(isinstance(size, int) for size in item.shape):
            raise LoweringError(f"input {item!r} has a symbolic size; plans are made for static shapes")
    plan = Planner(graph, numerics, backend, templates).run(on_kernels)
    if templates is not None and templates.policy != NEVER:
        mark_rows(plan)
    return plan


class Planner:
    """Makes one plan; the body of a loop is planned by one of its own.

    Args:
        graph, numerics, backend, templates: as for `make_plan`.
        names: how often names of kernels are taken already.
    """

    def __init__(
        self,
        graph: Graph,
        numerics: str,
        backend: str,
        templates: Templates | None = None,
        names: dict[str, int] | None = None,
    ) -> None:
        self.graph = graph
        self.names = {} if names is None else names
        self.is_loop = names is not None
        self.settings = numerics, backend, templates
        self.loops: dict[Op, PlannedLoop] = {}
        # a loop whose steps are plain products and kernels can be one kernel
        self.fusion = fuse(graph, backend, templates, adds_in_library=names is None and numerics != "eager")
        self.nodes = Nodes(self.fusion)
        self.order: list[Node] = merge_groups(self.nodes)
        self.layouts = self.fusion.layouts
        rounded = stored_by_another_name(graph.ops, self.fusion.stored)
        has_tf32 = templates is not None and templates.tf32
        self.lowering = Lowering(self.layouts, self.fusion.stored, numerics, self.names, has_tf32, rounded)
        self.sharing = Sharing(side_by_side=backend == "triton")
        self.lowered: dict[Group, Lowered] = {}
        self.tables: dict[Library, tuple[Stages, tuple[str, ...]]] = {}
        self.table_kernels: dict[object, Kernel] = {}
        self.row_kernels: dict[Group, RowKernel] = {}
        self.live = {output.value for output in graph.outputs} | {p.base for p in self.fusion.output_places.values()}
        self.writes = {write.value for write in graph.writes}
        self.buffers: list[BufferSpec] = []
        self.buffer_of: dict[Value, int] = {}
        self.kinds: dict[Value, str] = {}
        self.steps: list[Step] = []
        self.offsets: list[int] = []
        self.calls: list[tuple[Op, str]] = []
        self.checks: dict[int, list[Check]] = {}
        self.cut: list[tuple[Group, Group]] = []  # checks, and what they have been cut out of
        self.checks_of: dict[str, int] = {}
        self.op_numbers: dict[Op, int] = {}
        self.plain_bytes = 0
        self.traffic = (0, 0)
        self.call_traffic: dict[str, int] = {}

    def run(self, on_kernels: Callable[[list[Kernel]], None] | None) -> Plan:
        self._lower()
        for node in self.order:
            if isinstance(node, Library) and node.op.name == "scan":
                self.loops[node.op] = plan_loop(node, self.settings, self.names, self._needs_memory)
        if on_kernels is not None:
            kernels = {id(item.kernel): item.kernel for item in self.lowered.values() if not self._is_empty(item)}
            on_kernels([*kernels.values(), *self.table_kernels.values(), *self._loop_kernels()])
        self._choose_memory()
        self._build_steps(self._schedule())
        written = {write.target for write in self.graph.writes if write.value is not write.target}
        plan = Plan(
            self.graph.name,
            kernels={kernel.name: kernel for kernel in (*self._called_kernels(), *self._loop_kernels())},
            steps=self.steps,
            written=tuple(number for number, item in enumerate(self.graph.inputs) if item in written),
        )
        self._close_checks()
        plan.buffers = self.buffers
        self.traffic, self.call_traffic = traffic(plan), call_traffic(plan)  # the arena makes large buffers of small
        plan.checks = self.checks
        handed = {self.buffer_of[value] for value in self.live if value in self.buffer_of}
        placed = place_arena(self.steps, self.buffers, plan.kernels, self.sharing, handed)
        plan.arena_bytes, self.plain_bytes, plan.arena_blocks = placed
        plan.outputs = whole_outputs(plan, self._outputs())
        plan.stats = self._stats(plan)
        moved = plan.stats["bytes_read"] + plan.stats["bytes_written"]
        plan.copied, plan.exposed = exposed_inputs(plan.steps, plan.buffers, plan.kernels, plan.checks, moved)
        plan.draws = any(effect(op) == "random" for op in self.graph.ops)
        return plan

    # kernels

    def _needs_memory(self, value: Value) -> bool:
        return value in self.live or value in self.fusion.homes or bool(self.nodes.readers.get(value))

    def _kept(self, group: Group) -> set[Value]:
        return {
            v
            for v in group.roots
            if v in group.overwrites or (v in self.writes and v in group.stores) or self._needs_memory(v)
        }

    def _lower(self) -> None:
        order: list[Node] = []
        for node in self.order:
            order.append(node)
            if not isinstance(node, Group):
                if node.is_foreach:
                    self._lower_table(node)
                continue
            kept = self._kept(node)
            if not kept:
                order.pop()
                self._forget(node)
                continue
            self.lowered[node] = self.lowering.lower(node, kept)
            order[-1:] = self._checks_apart(node, kept)
            early = [value for value in node.overwrites if not self._may_overwrite(node, value)]
            order.extend(self._store_later(node, value) for value in early)
        self.order = order
        for checks, group in self.cut:
            self.nodes.link(checks, group)

    def _lower_table(self, node: Library) -> None:
        """The kernels of a `foreach`; equal ones of two ops are one."""
        stages = stages_of(node.op, self.lowering.numerics, "gpu" if self.settings[1] == "triton" else "cpu")
        if stages is None:
            raise LoweringError("the body of a foreach op is not one loop over elements", node.op.location)
        names = [
            self._table_kernel(kernel, arguments, stages.scratch, row_width(node.op))
            for kernel, arguments in zip(stages.kernels, stages.arguments, strict=True)
        ]
        self.tables[node] = stages, tuple(names)

    def _table_kernel(self, kernel: Kernel, arguments: tuple[RowArgument, ...], scratch: int, width: int) -> str:
        """The name of a kernel of rows; on a device, where in the table things stand is part of its code."""
        key = (kernel.key(), arguments, scratch, width) if self.settings[1] == "triton" else kernel.key()
        name = f"foreach{len(self.table_kernels)}_{kernel.name}"
        return self.table_kernels.setdefault(key, replace(kernel, name=name)).name

    def _forget(self, node: Group) -> None:
        for earlier in self.nodes.previous.pop(node):
            self.nodes.next[earlier].discard(node)
        for later in self.nodes.next.pop(node):
            self.nodes.previous[later].discard(node)
        for value in self.nodes.reads(node):
            self.nodes.readers[value].pop(node, None)

    def _may_overwrite(self, group: Group, value: Value) -> bool:
        """Whether what a kernel reads of the memory it overwrites is read before, stage by stage."""
        lowered, base = self.lowered[group], group.overwrites[value]
        stored = [a for a in lowered.arguments if a.stored and a.value is value]
        loaded = [a for a in lowered.arguments if not a.stored and a.value is base]
        if not loaded:
            return True
        # a buffer of checks has no argument
        names = {a: b.name for a, b in zip(lowered.arguments, lowered.kernel.buffers, strict=False)}
        same = all(a.offset == stored[0].offset for a in loaded)
        return same and self.sharing.allows(lowered.kernel, [names[a] for a in loaded], names[stored[0]])

    def _checks_apart(self, group: Group, kept: set[Value]) -> list[Node]:
        """A kernel that checks data and writes to an input becomes two, so that data are refused before it writes."""
        if not self.lowered[group].failures or not commits(self.nodes, group):
            return [group]
        checks = replace(group, roots=dict(group.roots), overwrites={}, stores=dict(group.stores))
        self.lowered[checks] = lowered = self.lowering.lower(group, kept, CHECKS_ONLY)
        self.lowered[group] = self.lowering.lower(group, kept, UNCHECKED)
        nodes = self.nodes
        nodes.next[checks], nodes.previous[checks] = set(), set()
        for value in {argument.value for argument in lowered.arguments}:
            producer = nodes.producer.get(value)
            if producer is not None:
                nodes.link(producer, checks)
            nodes.readers.setdefault(value, {})[checks] = None
        self.cut.append((checks, group))
        return [checks, group]

    def _store_later(self, group: Group, value: Value) -> Group:
        """Take a store that comes too early out of a kernel: the value is kept, and stored by a kernel of its own."""
        assert value.op is not None
        source = source_of(value.op) if value in group.stores else next(iter(value.op.inputs))
        later = group_of(source, group.position)
        later.roots = {value: later.roots.pop(source)}
        if value in group.stores:
            later.stores[value] = group.stores.pop(value)
        else:
            later.visits.clear()
            later.visit(value, later.roots[value])
            later.expand(value, later.roots[value])
        later.overwrites[value] = group.overwrites.pop(value)
        del group.roots[value]
        self.fusion.stored.add(source)
        nodes = self.nodes
        nodes.next[later], nodes.previous[later] = nodes.next[group], {group}
        for node in nodes.next[later]:
            nodes.previous[node].add(later)
        nodes.next[group] = nodes.next[group] | {later}
        nodes.producer[value] = later
        nodes.readers.setdefault(source, {})[later] = None
        nodes.readers.setdefault(later.overwrites[value], {})[later] = None
        self.lowered[group] = self.lowering.lower(group, self._kept(group))
        self.lowered[later] = self.lowering.lower(later, {value})
        return later

    def _called_kernels(self) -> list[Kernel]:
        called = {step.kernel for step in self.steps if isinstance(step, KernelStep)}
        called.update(name for step in self.steps if isinstance(step, ForeachStep) for name in step.kernels)
        return [kernel for kernel in [*self.lowering.kernels, *self.table_kernels.values()] if kernel.name in called]

    def _loop_kernels(self) -> list[Kernel]:
        return [kernel for loop in self.loops.values() for kernel in loop.plan.kernels.values()]

    # memory

    def _choose_memory(self) -> None:
        """A buffer for every value that has memory; values stored over others share theirs."""
        for number, item in enumerate(self.graph.inputs):
            self._add_buffer(item, INPUT, number)
        heads: dict[Value, str] = {}
        for node in self.order:
            for value in self._made(node):
                head = self.nodes.head(value)
                if isinstance(head, Input):
                    continue
                is_call = isinstance(node, Library) and not node.fills and head is value
                kind = EXTERNAL if is_call and head.device != HOST else OUTPUT if value in self.live else ARENA
                if heads.get(head) != EXTERNAL and (head not in heads or kind == OUTPUT):
                    heads[head] = kind
        for head, kind in heads.items():
            self._add_buffer(head, kind, -1)
        for node in self.order:
            for value in self._made(node):
                self.buffer_of[value] = self.buffer_of[self.nodes.head(value)]

    def _made(self, node: Node) -> list[Value]:
        """Values that a node gives memory contents."""
        if isinstance(node, Group):
            kept = {a.value for a in self.lowered[node].arguments if a.stored}
            return [value for value in node.roots if value in kept]
        return [r for r in node.results if node.is_foreach or r in node.overwrites or self._needs_memory(r)]

    def _add_buffer(self, value: Value, kind: str, source: int) -> None:
        shape, strides, dtype = int_shape(value), self.layouts.strides(value), memory_dtype(value)
        number = len(self.buffers)
        nbytes = self.layouts.room(value) * dtype.itemsize
        is_host = value.device == HOST
        device = device_of(value)
        self.buffers.append(
            BufferSpec(number, kind, dtype, shape, strides, nbytes, device, source, -1, is_host)
        )  # fmt: skip
        self.buffer_of[value] = number
        self.kinds[value] = kind

    def _schedule(self) -> list[tuple[Node, ...]]:
        """The nodes in the order in which they run, those together that are one launch."""
        nodes, number = self.order, {node: at for at, node in enumerate(self.order)}
        tasks: list[Task] = []
        for node in nodes:
            after = frozenset(number[item] for item in self.nodes.previous[node] if item in number)
            makes = tuple(self.buffer_of[v] for v in self._made(node) if self.nodes.head(v) is v)
            uses = tuple(self.buffer_of[v] for v in self.nodes.reads(node) if v in self.buffer_of)
            tasks.append(Task(after, makes, uses, rank_of(node), runs_on(node)))
        sizes = {spec.index: typical(spec.nbytes) for spec in self.buffers if spec.kind in (ARENA, EXTERNAL)}
        kept = frozenset(self.buffer_of[value] for value in self.live if value in self.buffer_of)
        order = order_tasks(tasks, sizes, kept)
        early, late = commits_last(self.nodes, [nodes[at] for at in order], [group for _, group in self.cut])
        order, places = [number[node] for node in (*early, *late)], [spec.device for spec in self.buffers]
        order = group_devices(tasks, order, len(early), sizes, places, kept)
        found = {number[group]: (group, kernel) for group, kernel in self._find_row_kernels().items()}
        kinds = {at: kind_of(kernel, self.lowered[group].arguments) for at, (group, kernel) in found.items()}
        moved = {at: kernel.moved for at, (_, kernel) in found.items()}
        batches = gather(tasks, order, len(early), kinds, moved, sizes, places, kept)
        return [tuple(nodes[at] for at in batch) for batch in batches]

    def _find_row_kernels(self) -> dict[Group, RowKernel]:
        """The kernels on a device that may run together with their like."""
        if self.settings[1] != "triton" or self.is_loop:
            return {}
        known: dict[int, RowKernel | None] = {}  # groups of one structure share a kernel
        for group, lowered in self.lowered.items():
            used = [self.buffer_of[argument.value] for argument in lowered.arguments]
            there = {(self.buffers[index].device, self.buffers[index].host) for index in used}
            if lowered.failures or self._is_empty(lowered) or len(there) > 1 or runs_on_host(used, self.buffers):
                continue
            if id(lowered.kernel) not in known:
                known[id(lowered.kernel)] = row_kernel(lowered.kernel)
            kernel = known[id(lowered.kernel)]
            if kernel is not None:
                self.row_kernels[group] = kernel
        return self.row_kernels

    # steps

    def _build_steps(self, order: Sequence[tuple[Node, ...]]) -> None:
        for node, *others in order:
            if others:
                self._add_batch([group for group in (node, *others) if isinstance(group, Group)])
            elif isinstance(node, Group):
                self._add_kernel(self.lowered[node], _location(node))
            elif node.is_foreach:
                self._add_foreach(node)
            elif node.is_matmul:
                self._add_gemm(node)
            elif node.op.name == "scan":
                self._add_loop(node)
            elif not node.joins:
                self._add_call(node)

    def _add_kernel(self, lowered: Lowered, location: Location) -> None:
        if self._is_empty(lowered):
            return
        buffers = tuple(self.buffer_of[argument.value] for argument in lowered.arguments)
        offsets = tuple(argument.offset for argument in lowered.arguments)
        if lowered.failures:
            devices = (self.buffers[b].device for b in buffers if not self.buffers[b].host)
            index, first = self._add_cells(
                lowered.failures, max(devices, key=lambda device: device != "cpu", default="cpu")
            )
            buffers, offsets = (*buffers, index), (*offsets, first)
        self.steps.append(KernelStep(lowered.kernel.name, buffers, offsets, location))

    def _is_empty(self, lowered: Lowered) -> bool:
        """No element is computed, or none stored."""
        if any(axis.extent == 0 for axis in lowered.kernel.parallel_axes):
            return True
        stored = [argument for argument in lowered.arguments if argument.stored]
        return bool(stored) and all(0 in self.nodes.head(a.value).shape for a in stored)

    def _add_cells(self, failures: Sequence[Failure], device: str) -> tuple[int, int]:
        """Cells for the checks of one call of a kernel: their buffer, and the first one's number in it."""
        index, found = self._cells(device)
        first = len(found)
        found += [Check(f.error, f.message, self.op_numbers.get(f.op, 0), f.op.location) for f in failures]
        return index, first

    def _cells(self, device: str) -> tuple[int, list[Check]]:
        """The buffer of cells on a device, and what they mean so far."""
        index = self.checks_of.get(device)
        if index is None:
            index = self.checks_of[device] = len(self.buffers)
            self.buffers.append(BufferSpec(index, CHECKS, i64, (0,), (1,), 0, device))
        if not self.op_numbers:
            self.op_numbers.update((op, number) for number, op in enumerate(self.graph.ops))
        return index, self.checks.setdefault(index, [])

    def _close_checks(self) -> None:
        """Buffers of cells get their sizes."""
        for index, found in self.checks.items():
            self.buffers[index] = replace(self.buffers[index], shape=(len(found),), nbytes=8 * len(found))

    def _view(self, place: Place) -> View:
        return View(self.buffer_of[place.base], memory_dtype(place.base), place.shape, place.strides, place.offset)

    def _add_foreach(self, node: Library) -> None:
        stages, names = self.tables[node]
        on_device = self.settings[1] == "triton"
        scratch = -1 if on_device else self._add_scratch(stages.scratch * node.op.attrs["count"])
        cells = self._add_row_checks(stages, node.op)
        self.steps.append(foreach_step(node, stages, names, self.buffer_of, scratch, cells))

    def _add_batch(self, groups: Sequence[Group]) -> None:
        """Kernels that do the same, as one over a table of rows."""
        lowered, kernels = [self.lowered[group] for group in groups], [self.row_kernels[group] for group in groups]
        first = kernels[0]
        name = self._table_kernel(first.kernel, first.arguments, 0, len(first.arguments))
        buffers = [tuple(self.buffer_of[argument.value] for argument in item.arguments) for item in lowered]
        offsets = [tuple(argument.offset for argument in item.arguments) for item in lowered]
        self.steps.append(batch_step(name, kernels, buffers, offsets, _location(groups[0])))

    def _add_scratch(self, nbytes: int) -> int:
        """A part of the arena for what kernels of a table hand on; -1 for none."""
        if not nbytes:
            return -1
        index = len(self.buffers)
        self.buffers.append(BufferSpec(index, ARENA, i64, (nbytes // 8,), (1,), nbytes))
        return index

    def _add_row_checks(self, stages: Stages, op: Op) -> tuple[int, int, int]:
        """Cells for what kernels of a table check, which all rows share: their buffer, the first one, how many."""
        found = [check for checks in stages.plan.checks.values() for check in checks]
        if not found:
            return -1, 0, 0
        failures = tuple(Failure(op, check.error, check.message) for check in found)
        return (*self._add_cells(failures, "cpu"), len(failures))

    def _add_gemm(self, node: Library) -> None:
        (result,) = node.results
        shape = int_shape(result)
        left, right = node.operands[:2]
        assert left is not None and right is not None
        accumulate = result in node.overwrites
        if not (accumulate or self._needs_memory(result)) or 0 in shape:
            return
        if node.added is not None:
            self._add_sum(node, node.added)
            return
        if left.shape[-1] == 0 and not accumulate:  # a sum of nothing
            self._add_fill(result, node.op.location)
            return
        a, b = self._view(left), self._view(right)
        out = self._view(Place(result, shape, self.layouts.strides(result)))
        batch = max((a.shape[:-2], b.shape[:-2], shape[:-2]), key=len)
        if len(batch) > len(shape) - 2:  # the operands have their batch dims apart
            wide = (*batch, *shape[-2:])
            strides = view_strides(out.shape, out.strides, wide)
            assert strides is not None, "splitting a dim is always a view"
            out = View(out.buffer, out.dtype, wide, strides, out.offset)
        a, b, out = normal_product(a, b, out)
        self.steps.append(GemmStep(a, b, out, accumulate, node.op.location))

    def _add_sum(self, node: Library, added: Place) -> None:
        """A product that is added to something before it is rounded, stored where the plan wants it."""
        (result,) = node.results
        a, b = (self._view(place) for place in node.operands[:2] if place is not None)
        out = self._view(Place(result, int_shape(result), self.layouts.strides(result)))
        name = "aten.addmm.out" if len(out.shape) == 2 else "aten.baddbmm.out"
        self.calls.append((node.op, name))
        args = (without_lead(self._view(added)), a, b)
        self.steps.append(AtenStep(name, args, (("out", out),), (), (len(args),), node.op.location))

    def _add_fill(self, value: Value, location: Location) -> None:
        attrs = {"shape": value.shape, "dtype": value.dtype, "value": 0, "device": value.device}
        zeros = Op("full", [], attrs, [value.type], location, [value.name]).results[0]
        self.layouts.chosen[zeros] = self.layouts.strides(value)
        self.buffer_of[zeros] = self.buffer_of[value]
        lowered = self.lowering.lower(group_of(zeros, 0), {zeros})
        self._add_kernel(lowered, location)

    def _add_loop(self, node: Library) -> None:
        loop = self.loops[node.op]

        def add(spec: BufferSpec) -> int:
            index = len(self.buffers)
            self.buffers.append(replace(spec, index=index, source=-1, arena_offset=-1))
            return index

        def add_checks(found: list[Check], device: str) -> tuple[int, int]:
            index, cells = self._cells(device)
            first = len(cells)
            order = self.op_numbers.get(node.op, 0)
            cells += [replace(check, order=order) for check in found]
            return index, first

        self.steps.append(loop.step(node, self.buffer_of, add, add_checks))

    def _add_call(self, node: Library) -> None:
        op = node.op
        views = [None if place is None else self._view(place) for place in node.operands]
        if op.name == "item":
            (value,) = views
            out = self.buffer_of.get(op.results[0], -1)
            self.steps.append(AtenStep("aten._local_scalar_dense.default", (value,), (), (out,), (), op.location))
            return
        name, args, kwargs, mutated = call_of(op)
        self.calls.append((op, name))
        if node.overwrites and op.name != "extern":
            name, mutated = IN_PLACE_CALLS[name], (0,)
            results: Sequence[Value] = ()
        else:
            results = op.results[: len(op.results) - len(mutated)]
        numbers: list[int] = []
        resolved = tuple(resolve(item, op, views, numbers) for item in args)
        named = tuple((key, resolve(item, op, views, numbers)) for key, item in kwargs.items())
        mutates = tuple(at for at, number in enumerate(numbers) if number in mutated)
        outs = tuple(self.buffer_of[r] if self._needs_memory(r) else -1 for r in results)
        self.steps.append(AtenStep(name, resolved, named, outs, mutates, op.location))

    # outputs

    def _outputs(self) -> list[OutputSpec]:
        found: list[OutputSpec] = []
        for number, output in enumerate(self.graph.outputs):
            place = self.fusion.output_places.get(number)
            value = output.value if place is None else place.base
            index = self.buffer_of[value]
            if place is not None:
                found.append(OutputSpec(index, place.shape, place.strides, place.offset, False))
            elif output.view is not None:
                view: Any = output.view
                found.append(OutputSpec(index, tuple(view.shape), tuple(view.strides), view.offset, False))
            else:
                spec = self.buffers[index]
                found.append(OutputSpec(index, spec.shape, spec.strides, 0, True))
        return found

    def _stats(self, plan: Plan) -> dict[str, Any]:
        fused: set[Op] = set()
        for group in self.lowered:
            for value, at in group.visits.items():
                if value.op is not None and any(visit.expanded for visit in at.values()):
                    fused.add(value.op)
        read, written = self.traffic
        calls = self.call_traffic
        return {
            "graph_ops": len(self.graph.ops),
            "fused_ops": len(fused.intersection(self.graph.ops)),
            **call_counts(plan, self.settings[1]),
            "extern_reasons": {name: reason(op) for op, name in self.calls},
            "extern_bytes": {name: count for name, count in calls.items() if name not in (EMPTY, GEMM)},
            "gemm_bytes": calls.get(GEMM, 0),
            "bytes_read": read,
            "bytes_written": written,
            "arena_bytes": plan.arena_bytes,
            "arena_bytes_without_reuse": self.plain_bytes,
        }


def _location(group: Group) -> Location:
    for value in reversed(group.roots):
        if value.op is not None and value.op.location:
            return value.op.location
    return UNKNOWN
