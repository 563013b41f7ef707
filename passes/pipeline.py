"""The graph -> graph pipeline: every pass in order, each with its reason."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace

from graphc.errors import InvalidGraphError
from graphc.ir.graph import Graph, Op, regions
from graphc.ir.verifier import verify
from graphc.ops.foreach import reduces
from graphc.passes.attention import FindAttention
from graphc.passes.base import Pass, PassContext
from graphc.passes.canonicalize import Canonicalize
from graphc.passes.carry_layout import CarryLayout
from graphc.passes.chains import find_chains, may_be_weighted
from graphc.passes.channels_last import ChannelsLast
from graphc.passes.convolutions import ConvolutionsAsProducts
from graphc.passes.cse import EliminateCommonSubexpressions
from graphc.passes.dce import EliminateDeadCode
from graphc.passes.expand import ExpandComposites
from graphc.passes.fold_constants import FoldConstants
from graphc.passes.foreach import ExpandForeach
from graphc.passes.group_rows import NameGroupsOfRows
from graphc.passes.join_stacks import JoinStacks
from graphc.passes.lift import LiftFromLoops
from graphc.passes.mask_bounds import BoundMasks
from graphc.passes.one_hot import ShrinkOneHots
from graphc.passes.pad_rows import PadRows
from graphc.passes.products import AccumulateProducts, MergeProducts, RoundOnce
from graphc.passes.restack import RecomputeStacks
from graphc.passes.roll import RollLoops
from graphc.passes.row_chunks import ChunkRows, find_region
from graphc.passes.row_sums import ShrinkRowSums
from graphc.passes.simplify import Simplify

ROLL: tuple[Pass, ...] = (
    EliminateDeadCode(),  # what nothing needs would differ from turn to turn
    RollLoops(),  # as captured: any other pass could treat the first turn unlike the others
    LiftFromLoops(),
    RecomputeStacks(),  # when it is known what is read turn by turn, and what as a whole
    JoinStacks(),  # of what is left
)
PREPARE: tuple[Pass, ...] = (
    ExpandForeach(),  # before all others, so that what it writes out is treated as if it had been captured so
    Canonicalize(),  # one form first: the rules below match literals on the right and single views
    FoldConstants(),  # constants become literals before algebra looks at them
    Simplify(),
    EliminateCommonSubexpressions(),  # whole composites at once, before they fall apart
    FindAttention(),  # while a softmax is one op, and what is equal is one value
    EliminateDeadCode(),  # nothing unused is expanded
    ExpandComposites(),
    ConvolutionsAsProducts(),  # before clean-up: what is made is views of views
    NameGroupsOfRows(),  # before clean-up, which makes equal vectors one
)
CLEAN_UP: tuple[Pass, ...] = (
    Canonicalize(),  # expansions bring casts and reshapes that meet each other
    FoldConstants(),
    Simplify(),
    EliminateCommonSubexpressions(),  # expansions of neighbours share work, such as a mean
    EliminateDeadCode(),
)
ATTENTION: tuple[Pass, ...] = (
    ShrinkRowSums(),  # after clean-up: factors are values, and no transpose is in between
    EliminateDeadCode(),
)
REGROUP: tuple[Pass, ...] = (
    MergeProducts(),  # after clean-up: terms of a sum stand side by side, and equal factors are one value
    EliminateDeadCode(),  # the rest only where something was merged: the small products are gone
    EliminateCommonSubexpressions(),  # a joined operand may serve several products
)
ADD_UP: tuple[Pass, ...] = (
    AccumulateProducts(),  # after all that asks for plain products
    EliminateDeadCode(),  # the rest only where there were such sums: what added them up before
)
ROUND: tuple[Pass, ...] = (
    RoundOnce(),  # after all that asks for plain products
    EliminateDeadCode(),  # the rest only where there were such sums: the products that were rounded
)
BOUND: tuple[Pass, ...] = (
    BoundMasks(),  # last but for layouts: what the kernels of attention hold is settled
    EliminateCommonSubexpressions(),  # the rest only where there were such masks: edges of several layers
    EliminateDeadCode(),  # masks that are read in another form now
)
SPLIT: tuple[Pass, ...] = (
    ChunkRows(),  # last: it multiplies ops, and needs to see all that reads a product
    EliminateDeadCode(),  # the rest only where something was split: what is now made chunk by chunk
    Canonicalize(),  # slices of slices
)
LABELS: tuple[Pass, ...] = (
    ShrinkOneHots(),  # after splitting, which follows a row through its sum
    Canonicalize(),  # the rest only where there were such rows: views of labels
    EliminateCommonSubexpressions(),  # a label may be looked at by several losses
    EliminateDeadCode(),
)
LAY_OUT: tuple[Pass, ...] = (
    ChannelsLast(),  # last: which values there are is settled
    CarryLayout(),  # what lies between those that have a layout now
    PadRows(),  # of what is left in the plain order
)
ROLL_FROM = 32
"""Ops from which on a graph may hold a loop worth finding."""
MAX_ROUNDS = 3
"""Rounds of clean-up. One walk settles whole chains, so a second round rarely finds anything and a third never did."""


@dataclass(frozen=True)
class PassRecord:
    """What one pass did.

    Args:
        name: of the pass.
        modified: it changed the graph.
        seconds: time it took, verifying and printing left out.
        ops_before, ops_after: size of the graph.
    """

    name: str
    modified: bool
    seconds: float
    ops_before: int
    ops_after: int


def optimize(graph: Graph, ctx: PassContext | None = None) -> list[PassRecord]:
    """Run the whole pipeline on `graph`, in place.

    Args:
        graph: a well-formed graph.
        ctx: settings, numerics and target; the defaults when left out.

    Returns:
        One record per pass run, in order.

    Raises:
        InvalidGraphError: with `settings.verify_passes`, the pass that broke the graph, by name.
    """
    context = ctx or PassContext()
    records = roll(graph, context)
    for op in graph.ops:
        for region in regions(op):
            if op.name == "foreach" and reduces(region):
                continue  # its reductions are over rows of any shape, and its kernels are planned by themselves
            records += optimize(region, replace(context, roll=False))
    records += [run_pass(item, graph, context) for item in PREPARE]
    pending = set(CLEAN_UP)  # passes that may find something
    for _ in range(MAX_ROUNDS):
        for item in CLEAN_UP:
            if item not in pending:
                continue
            pending.discard(item)
            records.append(run_pass(item, graph, context))
            # each pass finds all there is for it in one walk, and none asks who reads a value
            if records[-1].modified and item.name != EliminateDeadCode.name:
                pending.update(other for other in CLEAN_UP if other is not item)
    for passes in (ATTENTION, REGROUP, SPLIT, LABELS, ADD_UP, ROUND, BOUND):
        for item in passes:
            records.append(run_pass(item, graph, context))
            if not records[-1].modified:
                break
    return records + lay_out(graph, context)


def prepare_split(graph: Graph, ctx: PassContext) -> set[Op]:
    """What is done with a joint graph before it is split, in place.

    Returns:
        Products that are computed in chunks of rows, or whose elements are never stored, and so once more in the
        backward pass.

    Raises:
        InvalidGraphError: as `optimize`.
    """
    roll(graph, ctx)  # a loop is saved from as a whole, not turn by turn
    if run_pass(FindAttention(), graph, ctx).modified:  # so that no weights are saved
        run_pass(EliminateDeadCode(), graph, ctx)
    run_pass(ExpandComposites(only=("max_pool",)), graph, ctx)  # to save places in windows, not eager's i64 positions
    again = _large_products(graph, ctx) | _scores(graph, ctx)
    lay_out(graph, ctx)  # while both passes over the saved values are seen
    return again


def _large_products(graph: Graph, ctx: PassContext) -> set[Op]:
    """Losses of such products are expanded in place: what the backward pass needs of them is a few numbers per row."""
    pass_ = ChunkRows()
    if not any(pass_.rows_of_chunk(op, ctx) for op in graph.ops):
        return set()
    for item in (ExpandComposites(least_bytes=ctx.settings.chunk_bytes), EliminateDeadCode()):
        run_pass(item, graph, ctx)
    seeds = [op for op in graph.ops if pass_.rows_of_chunk(op, ctx)]
    return {op for op in seeds if find_region(graph, op) is not None}


def _scores(graph: Graph, ctx: PassContext) -> set[Op]:
    """Products inside of others, as of attention: what the backward pass needs of a softmax is two numbers per row.

    Everything is written out for that, in place, where kernels that never store the weights are to be had: also the
    sums over rows of weights and their gradients, which are those of results and theirs.
    """
    if ctx.templates is None or not any(op.name == "matmul" and may_be_weighted(op) for op in graph.ops):
        return set()
    trial = graph.copy()
    for item in (*PREPARE, *CLEAN_UP, *ATTENTION):
        run_pass(item, trial, ctx)
    chains = find_chains(trial.ops, trial.live_out(), ctx.templates.takes_chain)
    inside = {op for chain in chains if chain.statistics for op in chain.products}
    if inside:
        graph.inputs, graph.ops = trial.inputs, trial.ops
        graph.writes, graph.outputs = trial.writes, trial.outputs
    return inside


def lay_out(graph: Graph, ctx: PassContext) -> list[PassRecord]:
    """Choose layouts of inner values, in place; what `optimize` does last."""
    return [run_pass(item, graph, ctx) for item in LAY_OUT]


def roll(graph: Graph, ctx: PassContext) -> list[PassRecord]:
    """Find the loops in a captured graph, in place; what `optimize` does first.

    Raises:
        InvalidGraphError: as `optimize`.
    """
    if not ctx.roll or (len(graph.ops) < ROLL_FROM and not any(map(regions, graph.ops))):
        return []
    return [run_pass(item, graph, ctx) for item in ROLL]


def run_pass(item: Pass, graph: Graph, ctx: PassContext) -> PassRecord:
    """Run one pass, with what the settings ask for after it.

    Raises:
        InvalidGraphError: with `settings.verify_passes`, when the pass broke the graph.
    """
    before = len(graph.ops)
    start = time.perf_counter()
    result = item.run(graph, ctx)
    record = PassRecord(item.name, result.modified, time.perf_counter() - start, before, len(graph.ops))
    if item.name in ctx.settings.print_after:
        print(f"# after {item.name}\n{graph}", file=sys.stderr)
    if ctx.settings.verify_passes:
        try:
            verify(graph, ctx.get_def)
        except InvalidGraphError as error:
            raise InvalidGraphError(f"pass {item.name} broke the graph: {error.message}", error.location) from None
    if ctx.on_pass is not None:
        ctx.on_pass(item.name, graph)
    return record
