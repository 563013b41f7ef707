"""A call that fails leaves the user's memory as it was: what can fail runs first, what writes to inputs last.

    before   update %p; gather %table at %i (may raise)       an index out of range leaves %p changed
    after    gather %table at %i (may raise); update %p

The schedule keeps writes to inputs behind everything that can fail and that does not read what they write; groups that
belong before and behind are not merged. A kernel that checks data and writes to an input at once is cut in two, the
checks first. What cannot be ordered so is told to the runtime, which copies the inputs in question before each call as
long as that costs little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from graphc.ir.graph import Input
from graphc.ir.sizes import typical
from graphc.ops.checks import may_refuse
from graphc.passes.fused import Library
from graphc.passes.group import Group
from graphc.passes.layout import int_shape
from graphc.program.loops import LoopStep
from graphc.program.plan import CHECKS, INPUT, AtenStep, BufferSpec, Check, ForeachStep, GemmStep, KernelStep, Step

if TYPE_CHECKING:
    from graphc.loopir.kernel import Kernel
    from graphc.passes.nodes import Node, Nodes

EARLY, LATE, LAST = 1, 2, 3
"""Stages of groups: a library call depends on it; it writes to an input and may wait; it has to."""
SMALL = 1
"""Elements of a value whose write to an input is worth no kernel that it could be part of."""
COPIED_PART = 16
"""Inputs are copied before each call when they are at most one in so many of the bytes that the program moves."""
COPIED_BYTES = 1 << 16
"""Inputs of no more than so many bytes in all are copied in any case."""
COPY_BYTES = 1 << 12
"""What a copy costs beside its bytes, in bytes."""
ITEM, ITEM_CALL = "item", "aten._local_scalar_dense.default"
"""The op that reads a tensor's only element, and its call: it never fails. What a device computes is waited for in it,
which had better be when the rest of the program is under way."""

_SURE = (
    "convolution", "_convolution", "mkldnn_", "_scaled_dot_product", "native_batch_norm", "native_layer_norm",
    "native_group_norm", "native_dropout", "max_pool", "avg_pool", "_adaptive_avg_pool", "adaptive_", "upsample_",
    "bernoulli", "rand", "normal", "uniform", "exponential", "cumsum", "sort", "topk", "mm", "bmm", "addmm", "baddbmm",
    "_to_copy", "embedding_dense_backward", "lstm", "gru", "rnn_",
)  # fmt: skip
"""How names of ATen calls begin that fail for want of memory only, once their shapes are right."""


def may_fail(node: Node) -> bool:
    """Whether running a node can raise: library calls, and kernels that check data."""
    if isinstance(node, Library) and node.is_foreach:
        return any(may_refuse(op) for op in node.op.attrs["body"].ops)
    if isinstance(node, Library):
        return not node.is_matmul and not node.joins and node.op.name != ITEM
    return any(value.op is not None and may_refuse(value.op) for value in (*node.visits, *node.roots))


def commits(nodes: Nodes, node: Node) -> bool:
    """Whether a node writes to an input of the program."""
    return any(isinstance(nodes.head(value), Input) for value in node.overwrites)


def _leading_to(nodes: Nodes, targets: Iterable[Node]) -> set[Node]:
    """What any of these nodes depends on."""
    leads: set[Node] = set()
    stack = list(targets)
    while stack:
        for earlier in nodes.previous[stack.pop()]:
            if earlier not in leads:
                leads.add(earlier)
                stack.append(earlier)
    return leads


def set_stages(nodes: Nodes) -> None:
    """Say of groups what they may be merged with, so that writes to inputs can wait; see `may_merge`."""
    writers = [node for node in nodes.previous if isinstance(node, Group) and node.overwrites and commits(nodes, node)]
    if not writers:
        return
    fallible = [node for node in nodes.previous if may_fail(node)]
    before_calls = _leading_to(nodes, [node for node in fallible if isinstance(node, Library)])
    before_all = _leading_to(nodes, fallible)
    for node in before_calls:
        if isinstance(node, Group):
            node.stage = EARLY
    for node in writers:
        if node not in before_calls and node.stage != EARLY:
            producers = [nodes.producer.get(value) for value in nodes.reads(node)]
            is_small = all(prod(int_shape(value)) <= SMALL for value in node.roots)
            waits = is_small and node not in before_all and any(item in before_all for item in producers)
            node.stage = LAST if waits else LATE


def may_merge(first: Group, second: Group) -> bool:
    """Whether two groups may become one kernel without writing to an input before a library call that does not need it.

    Small values, such as the step counters of optimizers, do not wait for library calls only but for everything.
    """
    return LAST not in (first.stage, second.stage) and {first.stage, second.stage} != {EARLY, LATE}


def commits_last(nodes: Nodes, order: Sequence[Node], cut: Iterable[Node]) -> tuple[list[Node], list[Node]]:
    """The order with writes to inputs behind everything that can fail, where that does not depend on them.

    Args:
        order: a valid one.
        cut: kernels whose checks have been made kernels of their own.

    Returns:
        What comes up to the last node that can fail, and what comes behind.
    """
    writers = {node for node in order if node.overwrites and commits(nodes, node)}
    if not writers:
        return list(order), []
    unchecked = set(cut)
    fallible = {node for node in order if node not in unchecked and may_fail(node)}
    leads = _leading_to(nodes, fallible)
    late: set[Node] = set()
    last = max((at for at, node in enumerate(order) if node in fallible - writers), default=-1)
    for node in order[: last + 1]:
        if (node in writers and node not in leads) or not late.isdisjoint(nodes.previous[node]):
            late.add(node)
    early = [node for node in order[: last + 1] if node not in late]
    return early, [*(node for node in order[: last + 1] if node in late), *order[last + 1 :]]


def exposed_inputs(
    steps: Sequence[Step], buffers: Sequence[BufferSpec], kernels: Mapping[str, Kernel],
    checks: Mapping[int, Sequence[Check]], moved: int,
) -> tuple[tuple[int, ...], tuple[int, ...]]:  # fmt: skip
    """Inputs that have been written to when a later step, or the writing one itself, fails.

    Args:
        checks: as in `Plan`.
        moved: bytes that the program reads and writes.

    Returns:
        Those that the runtime should copy before each call, and the others.
    """
    when: dict[int, int] = {}  # by buffer: the first step whose failure finds it written to
    refuses = fails = -1  # the last steps that can refuse data, and that can fail for any reason
    assumes = -1  # the last step behind which eager may have to start over
    for number, step in enumerate(steps):
        for index in _written(step, kernels):
            if buffers[index].kind == INPUT:  # a call that writes checks first, as for eager
                when.setdefault(index, number + isinstance(step, AtenStep))
        if isinstance(step, KernelStep) and step.buffers and buffers[step.buffers[-1]].kind == CHECKS:
            fails = number
            first, count = step.offsets[-1], kernels[step.kernel].buffers[-1].size
            assert isinstance(count, int), "cells are counted while compiling"
            found = checks[step.buffers[-1]][first : first + count]
            if any(check.error != "ZeroDivisionError" for check in found):  # that is: of Python numbers, such as steps
                refuses = number
            if any(check.error == "AssumptionError" for check in found):
                assumes = number
        elif isinstance(step, ForeachStep) and step.cells:
            fails = number
            found = checks[step.checks][step.first_cell : step.first_cell + step.cells]
            if any(check.error != "ZeroDivisionError" for check in found):
                refuses = number
        elif isinstance(step, LoopStep):
            if any(spec.kind == CHECKS for spec in step.specs) or any(isinstance(s, AtenStep) for s in step.steps):
                fails = refuses = number
        elif isinstance(step, AtenStep) and step.op != ITEM_CALL:
            fails = number
            name = step.op.partition(".")[2]
            if not step.op.startswith("aten.") or not name.startswith(_SURE):
                refuses = number
    exposed = [index for index, number in when.items() if number <= fails]
    copied = [index for index in exposed if when[index] <= refuses]
    effort = typical(sum(buffers[index].nbytes + COPY_BYTES for index in copied))
    if effort > max(COPIED_BYTES, typical(moved) // COPIED_PART):
        copied = [index for index in copied if when[index] <= assumes]
    others = (buffers[index].source for index in exposed if index not in copied)
    return tuple(buffers[index].source for index in copied), tuple(others)


def _written(step: Step, kernels: Mapping[str, Kernel]) -> Iterable[int]:
    if isinstance(step, KernelStep):
        names = zip(step.buffers, kernels[step.kernel].buffers, strict=True)
        return [index for index, buffer in names if buffer.access != "in"]
    if isinstance(step, ForeachStep):
        return [row[at] for row in step.rows for at in step.written]
    if isinstance(step, GemmStep):
        return [step.out.buffer]
    if isinstance(step, LoopStep):
        return []  # what it stores is its own
    views = list(step.views())
    return [*(views[at].buffer for at in step.mutates), *(index for index in step.outs if index >= 0)]
