"""Masks in memory of attention written by hand: where they begin and end is found out once, ahead of its kernels.

    %3: bool[1, 1, 8, 8] = eq(%bias, 0.0)
    %4: bf16[2, 4, 8, 8] = where(%3, -inf, %scores)
      ->
    %20: i32[1, 1, 8, 1] = amin(where(%seen, %at, 8))       per query the first key that it sees,
    %21: i32[1, 1, 8, 1] = amax(where(%seen, %next, 0))     the end of those that it sees, and
    %22: i32[1, 1, 8, 1] = where(%seen_all, %21, %20)       the end of those that it sees without a gap
    %24: bool[2, 4, 8, 8] = bounded(%at, %20, %21, %22, expand(%3))
    %4: bf16[2, 4, 8, 8] = where(%24, -inf, %scores)

`bounded` says nothing that the mask does not say, so the graph means the same; the kernels of products of products make
their loops end at these edges, and load no mask in between. The edges are plain reductions, planned as all others are:
once for all heads, and for all layers, forward and backward, that have a mask in common. What loops over queries, as
the gradients of keys and values do, has edges per key.

Exactness. A weight hidden by minus infinity is 0 and adds 0 to every sum, unless nothing of its row is seen: then
eager's softmax is NaN, and so are the gradients of all values, so such a row hides nothing. It is told from all masks
of the scores together, with those that are told from positions.

Scores that are hidden by large negative numbers, put in their place or added, weigh 0 where another one of the row is
larger by so much that the exponential is 0 in f32. A score differs from what its masks make of 0 by no more than the
lengths of its query and key say, so this is known when the largest lengths are: they are found out, too, and where they
are too large, infinite or NaN, nothing is hidden. The same holds for minus infinity where it is added, as it does not
hide NaN. A row is then seen whole where its largest mask is, so that none is hidden as a whole.

What is not found out is the data of hidden values: times a weight of 0, an infinite or NaN value is NaN in eager, and
is passed by here, as it is behind masks that are told from positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from graphc.ir.graph import Builder, Graph, Op, Value
from graphc.ir.types import bool_, f32, i32
from graphc.passes.base import PassContext, PassResult
from graphc.passes.chains import find_chains
from graphc.passes.layout import int_shape
from graphc.passes.score_masks import KEYS, LARGE, QUERIES, Mask, Scores, may_have_masks, softmax_scores

_BELOW = 0.8
"""Share of the least number that hides scores, by which other scores of a row have to be larger."""
_ADDED = 8.0 * LARGE
"""The same where numbers are added that are not known: those of old models are -10,000."""
_NOTHING = 200.0
"""Differences from which on an exponential is 0 in f32, the least number of which is e to the power -103.3; and as much
again for sums of scores and masks that are rounded to 16 bits."""
_LARGEST = 3e38
"""Of what is compared in f32."""
_ROUNDED = 1.01
"""For the rounding of products, and of sums of squares."""


@dataclass(frozen=True)
class BoundMasks:
    """See the module. For GPUs, where products of products are kernels.

    Whether the edges of a mask are worth finding depends on what it hides, which is data. It is taken to hide half of
    all scores, as a causal mask does: masks that hide little cost what reading them once more costs, and
    `Templates.takes_mask_edges` weighs that against half of the attention. Masks that differ from head to head are as
    large as the scores, and are left alone.
    """

    name: ClassVar[str] = "bound-masks"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if ctx.templates is None or ctx.target != "gpu" or not may_have_masks(graph):
            return PassResult(False)
        found: dict[Value, Scores] = {}
        for chain in find_chains(graph.ops, graph.live_out(), ctx.templates.takes_chain):
            for scores in softmax_scores(chain):
                found.setdefault(scores, Scores(scores)).chains.append(chain)
        place = {op: number for number, op in enumerate(graph.ops)}
        writer = _Writer(graph, ctx)
        for item in found.values():
            if item.find_masks() and item.may_come_early(place) and _is_worth_it(item, ctx):
                writer.bound(item)
        return PassResult(writer.finish())


def _is_worth_it(scores: Scores, ctx: PassContext) -> bool:
    """Whether less is read of the masks than it takes to compute what they may hide."""
    assert ctx.templates is not None
    outer = scores.chains[0].outer.result
    factors = [] if scores.is_exact or scores.product is None else list(scores.product.inputs)
    read = sum(math.prod(int_shape(value)) * value.dtype.itemsize for value in factors)
    masked = max(math.prod(int_shape(mask.value)) for mask in scores.masks)
    return ctx.templates.takes_mask_edges(math.prod(scores.shape), int_shape(outer)[-1], outer.dtype, masked, read)


class _Writer:
    """Writes edges into a graph.

    Attributes:
        edges: those of masks so far, by what hides and a dim.
        lengths: of the longest row or column of factors.
    """

    def __init__(self, graph: Graph, ctx: PassContext) -> None:
        self.graph = graph
        self.builder = Builder(graph, ctx.infer)
        self.edges: dict[object, tuple[Value, ...]] = {}
        self.lengths: dict[Value, Value] = {}
        self.old, graph.ops = graph.ops, []  # what is built is put between them in the end

    def finish(self) -> bool:
        """Put the new ops where they are needed; whether there are any."""
        modified = bool(self.graph.ops)
        self.graph.ops = list(_in_order(self.old)) if modified else self.old
        return modified

    def bound(self, scores: Scores) -> None:
        """Bound all masks of some scores, in the ops that put them on and in those of gradients."""
        last, shape = scores.masks[0], scores.shape
        self._at(last.op)
        edges = [(dim, self._edges_of(scores, dim)) for dim in scores.dims()]
        if not edges:
            return
        bounded: dict[Value, Value] = {}
        for mask in scores.masks:
            self._at(mask.op)
            bounded[mask.value] = self._bounded(self._hidden(mask, len(shape)), shape, edges)
        hides = {mask.value: mask.hides for mask in scores.masks if mask.number is not None}
        inside = {value.op for chain in scores.chains for value in chain.values}
        for op in (op for op in self.old if op in inside and op.name == "where" and op.operands[0] in hides):
            condition, first, second = op.operands
            if int_shape(op.result) == shape and isinstance(condition, Value):
                op.operands = [bounded[condition], *((first, second) if hides[condition] else (second, first))]
        for mask in scores.masks:
            if mask.number is None:
                mask.op.operands = [mask.kept, bounded[mask.value]]
        if last.number is not None and not last.is_exact:
            self._at(last.op)
            none = self._full(False, len(shape), last.value.device)
            inner = self.builder.op("where", *last.op.operands)
            last.op.operands = [self._bounded(none, shape, edges), -math.inf, inner]

    def _at(self, op: Op) -> None:
        self.builder.location, self.builder.origin = op.location, op.origin

    def _bounded(self, value: Value, shape: tuple[int, ...], edges: Iterable[tuple[int, tuple[Value, ...]]]) -> Value:
        value = self.builder.op("expand", value, shape=shape)
        for dim, found in edges:
            value = self.builder.op("bounded", self._positions(shape[dim], dim, value.device), *found, value)
        return value

    def _full(self, value: bool | int | float, rank: int, device: str) -> Value:
        dtype = bool_ if isinstance(value, bool) else i32 if isinstance(value, int) else f32
        return self.builder.op("full", shape=(1,) * rank, dtype=dtype, value=value, device=device)

    def _hidden(self, mask: Mask, rank: int) -> Value:
        """Where a mask hides, or what it adds, with as many dims as scores have."""
        value, shape = mask.value, int_shape(mask.value)
        if len(shape) < rank:
            value = self.builder.op("reshape", value, shape=((1,) * (rank - len(shape)) + shape))
        return value if mask.hides else self.builder.op("bitwise_not", value)

    def _positions(self, extent: int, dim: int, device: str) -> Value:
        at = self.builder.op("iota", size=extent, start=0, step=1, dtype=i32, device=device)
        return at if dim == KEYS else self.builder.op("reshape", at, shape=(extent, 1))

    # edges

    def _edges_of(self, scores: Scores, dim: int) -> tuple[Value, ...]:
        """The edges of all masks of some scores together, along a dim."""
        b, shape = self.builder, scores.shape
        key = tuple((mask.value, mask.number, mask.hides, mask.factor) for mask in scores.masks), shape[-2:], dim
        found = self.edges.get(key)
        if found is None:
            find = self._exact_edges if scores.is_exact else self._safe_edges
            found = self.edges[key] = find(scores.masks, shape, dim)
        if scores.is_exact:
            return found
        first, last, end = found
        known = self._are_known(scores)
        return tuple(b.op("where", known, edge, other) for edge, other in ((first, 0), (last, shape[dim]), (end, 0)))

    def _exact_edges(self, masks: list[Mask], shape: tuple[int, ...], dim: int) -> tuple[Value, ...]:
        """Of masks that hide by minus infinity; a query that sees nothing counts as one that sees all, with a gap."""
        b = self.builder
        hidden = self._any("bitwise_or", [self._hidden(mask, len(shape)) for mask in masks])
        seen = b.op("bitwise_not", hidden)
        first, last, count = self._between(seen, seen, shape, KEYS)
        if dim == QUERIES:
            reached = b.op("ge", b.op("cast", seen, dtype=i32), b.op("minimum", count, 1))
            first, last, count = self._between(reached, seen, shape, dim)
        else:
            blind = b.op("eq", count, 0)
            first, last = b.op("where", blind, 0, first), b.op("where", blind, shape[dim], last)
        return self._with_end(first, last, count)

    def _safe_edges(self, masks: list[Mask], shape: tuple[int, ...], dim: int) -> tuple[Value, ...]:
        """Of masks that add to scores or put numbers in their place, if these are no larger than `_margin` says."""
        b, rank = self.builder, len(shape)
        total = self._full(0.0, rank, masks[0].value.device)
        inert: list[Value] = []
        for mask in reversed(masks):
            value = self._hidden(mask, rank)
            if mask.number is None:
                wide = b.op("cast", value, dtype=f32) if value.dtype != f32 else value
                total = b.op("add", total, b.op("mul", wide, mask.factor))
                inert.append(b.op("eq", value, 0.0))
            else:
                total = b.op("where", value, mask.number * mask.factor, total)
                inert.append(b.op("bitwise_not", value))
        peak = b.op("amax", total, dims=(rank - 1,), keepdim=True)
        # nothing is less than NaN
        least = b.op("where", b.op("lt", peak, math.inf), b.op("sub", peak, _margin(masks)), -math.inf)
        reached = b.op("bitwise_not", b.op("lt", total, least))
        return self._with_end(*self._between(reached, self._any("bitwise_and", [*inert, reached]), shape, dim))

    def _any(self, name: str, values: list[Value]) -> Value:
        found = values[0]
        for value in values[1:]:
            found = self.builder.op(name, found, value)
        return found

    def _between(self, reached: Value, seen: Value, shape: tuple[int, ...], dim: int) -> tuple[Value, Value, Value]:
        """The first and the end of places that are reached, and how many are seen."""
        b, rank, extent = self.builder, len(shape), shape[dim]
        if reached.shape[dim] == 1:  # all of them, or none
            total = self._full(extent, rank, reached.device)
            first = b.op("where", reached, 0, total)
            return first, b.op("where", reached, total, 0), b.op("where", seen, total, 0)
        at = self._positions(extent, dim, reached.device)

        def reduced(name: str, value: Value) -> Value:
            return b.op(name, value, dims=(rank + dim,), keepdim=True)

        first = reduced("amin", b.op("where", reached, at, extent))
        last = reduced("amax", b.op("where", reached, b.op("add", at, 1), 0))
        return first, last, reduced("sum", b.op("cast", seen, dtype=i32))

    def _with_end(self, first: Value, last: Value, count: Value) -> tuple[Value, Value, Value]:
        b = self.builder
        return first, last, b.op("where", b.op("eq", count, b.op("sub", last, first)), last, first)

    # how large scores are

    def _are_known(self, scores: Scores) -> Value:
        """Whether scores are so small that masks decide alone which of them count."""
        assert scores.product is not None
        b = self.builder
        left, right = scores.product.operands
        assert isinstance(left, Value) and isinstance(right, Value)
        product = b.op("mul", self._length(left, -1), self._length(right, -2))
        most = (_margin(scores.masks) - _NOTHING) / (2 * _ROUNDED * scores.factor)
        known = b.op("lt", product, min(most, _LARGEST))
        return b.op("reshape", known, shape=(1,) * len(scores.shape))

    def _length(self, factor: Value, dim: int) -> Value:
        """Of the longest vector along a dim."""
        found = self.lengths.get(factor)
        if found is None:
            b, rank = self.builder, factor.type.rank
            wide = b.op("cast", factor, dtype=f32) if factor.dtype != f32 else factor
            squares = b.op("sum", b.op("mul", wide, wide), dims=(rank + dim,), keepdim=True)
            found = b.op("sqrt", b.op("amax", squares, dims=tuple(range(rank)), keepdim=True))
            found = self.lengths[factor] = b.op("reshape", found, shape=())
        return found


def _margin(masks: Sequence[Mask]) -> float:
    """By how much what masks make of one score has to be less than what they make of another one, to hide it."""
    least = [_ADDED if mask.number is None else -mask.number * _BELOW for mask in masks]
    return min(number * mask.factor for number, mask in zip(least, masks, strict=True) if number < math.inf)


def _in_order(ops: Iterable[Op]) -> Iterator[Op]:
    """Ops in their order, each behind those that it needs, new ones among them."""
    done: set[Op] = set()
    for last in ops:
        stack = [last]
        while stack:
            op = stack[-1]
            needed = [item.op for item in op.inputs if item.op is not None and item.op not in done]
            if op in done or not needed:
                stack.pop()
                if op not in done:
                    done.add(op)
                    yield op
            else:
                stack.extend(needed)
