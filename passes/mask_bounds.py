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

Exactness. A weight that is hidden by minus infinity is 0, and adds 0 to every sum, unless nothing of its row is seen:
then eager's softmax is NaN, and NaN goes to the gradients of all keys and values, so such a row hides nothing. It is
told from all masks of the scores together, with those that are told from positions. What is not found out is the data
of hidden keys: times a weight of 0, an infinite or NaN value is NaN in eager, and is passed by here, as it is behind
masks that are told from positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from graphc.ir.graph import Builder, Graph, Op, Value
from graphc.ir.types import i32
from graphc.ops import rules
from graphc.ops.registry import Kind, get
from graphc.passes.base import PassContext, PassResult
from graphc.passes.chains import Chain, find_chains, open_group
from graphc.passes.group import group_of
from graphc.passes.layout import int_shape

_KEYS, _QUERIES = -1, -2
"""Dims of scores."""
_PURE = (Kind.POINTWISE, Kind.VIEW, Kind.CREATION, Kind.REDUCTION)


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
        if ctx.templates is None or ctx.target != "gpu":
            return PassResult(False)
        found: dict[Value, _Scores] = {}
        for chain in find_chains(graph.ops, graph.live_out(), ctx.templates.takes_chain):
            for scores in _softmax_scores(chain):
                item = found.setdefault(scores, _Scores(scores))
                item.chains.append(chain)
        writer = _Writer(graph, ctx)
        for item in found.values():
            if item.find_masks() and item.is_worth_it(ctx):
                writer.bound(item)
        return PassResult(writer.finish())


def _softmax_scores(chain: Chain) -> Iterator[Value]:
    """What exponentials inside a chain are of, short of what is subtracted."""
    for value in chain.values:
        shifted = value.op.operands[0] if value.op is not None and value.op.name == "exp" else None
        if isinstance(shifted, Value) and shifted.op is not None and shifted.op.name == "sub":
            scores = shifted.op.operands[0]
            if isinstance(scores, Value) and scores in chain.values:
                yield scores


@dataclass(frozen=True)
class _Mask:
    """An op that puts minus infinity in the place of scores.

    Args:
        op: a `where`.
        condition: that it goes by.
        hides: the scores are hidden where it holds; else where it does not.
    """

    op: Op
    condition: Value
    hides: bool


@dataclass
class _Scores:
    """What one or several chains take exponentials of.

    Attributes:
        masks: those on the way from the product to it, the last one first.
        shape: of the scores where they are masked.
    """

    value: Value
    chains: list[Chain] = field(default_factory=list)
    masks: list[_Mask] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        return int_shape(self.masks[0].op.result)

    def find_masks(self) -> bool:
        """Whether there are masks in memory, all of which hide by minus infinity, seen in one shape."""
        value: Value | None = self.value
        moved = False
        while value is not None and value.op is not None:
            op = value.op
            mask = _mask_of(op)
            if mask is not None:
                if moved and self.masks:
                    return False  # a row may be hidden by both together, which is not told in two shapes
                self.masks.append(mask)
                value = _kept_of(mask)
            elif op.name == "cast" or (op.name in ("mul", "div") and _is_positive(op.operands[1])):
                value = next(iter(op.inputs))
            elif get(op.name).kind is Kind.VIEW and len(op.operands) == 1:
                value, moved = next(iter(op.inputs)), bool(self.masks)
            else:
                break
        leaves = _Leaves()
        conditions = [mask.condition for mask in self.masks]
        if not any(leaves.is_data(item) and item.shape[-1] == self.shape[-1] for item in conditions):
            return False
        if len({item: mask.hides for item, mask in zip(conditions, self.masks)}) < len(self.masks):
            return False
        return math.prod(rules.broadcast(self.value.name, [item.shape for item in conditions])) < math.prod(self.shape)

    def is_worth_it(self, ctx: PassContext) -> bool:
        """Whether less is read of the masks than it takes to compute what they may hide."""
        assert ctx.templates is not None
        product = self.chains[0].products[0]
        width = int_shape(self.chains[0].outer.result)[-1]
        masks = {mask.condition for mask in self.masks}
        return ctx.templates.takes_mask_edges(
            math.prod(self.shape), width, product.result.dtype, max(math.prod(int_shape(mask)) for mask in masks)
        )

    def dims(self) -> list[int]:
        """Which dims of the scores kernels loop over."""
        place = self.masks[0].op.result
        return sorted({_looped_over(chain, place) for chain in self.chains} - {0}, reverse=True)


def _mask_of(op: Op) -> _Mask | None:
    if op.name != "where":
        return None
    condition, first, second = op.operands
    if not isinstance(condition, Value) or not any(
        isinstance(kept, Value) and hidden == -math.inf and int_shape(kept) == int_shape(op.result)
        for hidden, kept in ((first, second), (second, first))
    ):
        return None
    return _Mask(op, condition, first == -math.inf)


def _kept_of(mask: _Mask) -> Value:
    kept = mask.op.operands[2 if mask.hides else 1]
    assert isinstance(kept, Value)
    return kept


def _is_positive(operand: object) -> bool:
    return isinstance(operand, (int, float)) and 0 < operand < math.inf


def _looped_over(chain: Chain, place: Value) -> int:
    """Along which dim of scores the kernel of a chain has its loop: keys or queries; 0 for neither."""
    if place not in chain.values:
        return 0
    group = open_group(group_of(chain.outer.result, 0), chain)
    if group is None:
        return 0
    (index,) = group.visits[place]
    rows = frozenset(group.rows)
    return next((dim for dim in (_KEYS, _QUERIES) if group.axes_of((index[dim],)) & rows), 0)


class _Leaves:
    """Tells what is data from what positions alone tell."""

    def __init__(self) -> None:
        self.known: dict[Value, bool] = {}

    def is_data(self, value: Value) -> bool:
        """Whether it is made of anything but numbers and positions."""
        if value not in self.known:
            op = value.op
            if op is None or get(op.name).kind not in _PURE:
                self.known[value] = True
            else:
                self.known[value] = any(self.is_data(item) for item in op.inputs)
        return self.known[value]


class _Writer:
    """Writes edges into a graph.

    Attributes:
        edges: those of masks so far, by what hides and a dim.
    """

    def __init__(self, graph: Graph, ctx: PassContext) -> None:
        self.graph = graph
        self.builder = Builder(graph, ctx.infer)
        self.edges: dict[object, tuple[Value, ...]] = {}
        self.old, graph.ops = graph.ops, []  # what is built is put between them in the end

    def finish(self) -> bool:
        """Put the new ops where they are needed; whether there are any."""
        modified = bool(self.graph.ops)
        self.graph.ops = list(_in_order(self.old)) if modified else self.old
        return modified

    def bound(self, scores: _Scores) -> None:
        """Bound all masks of some scores, in the ops that put minus infinity in their place and those of gradients."""
        dims, shape = scores.dims(), scores.shape
        if not dims:
            return
        self._at(scores.masks[0].op)
        edges = [(dim, self._edges_of(scores.masks, shape, dim)) for dim in dims]
        bounded: dict[Value, Value] = {}
        for mask in scores.masks:
            self._at(mask.op)
            value = self._hidden(mask.condition, mask.hides, len(shape))
            value = self.builder.op("expand", value, shape=shape)
            for dim, found in edges:
                value = self.builder.op("bounded", self._positions(shape[dim], dim, value.device), *found, value)
            bounded[mask.condition] = value
        hides = {mask.condition: mask.hides for mask in scores.masks}
        inside = {value.op for chain in scores.chains for value in chain.values}
        for op in (op for op in self.old if op in inside and op.name == "where" and op.operands[0] in bounded):
            if int_shape(op.result) == shape:
                condition, first, second = op.operands
                assert isinstance(condition, Value)
                op.operands = [bounded[condition], *((first, second) if hides[condition] else (second, first))]

    def _at(self, op: Op) -> None:
        self.builder.location, self.builder.origin = op.location, op.origin

    def _hidden(self, condition: Value, hides: bool, rank: int) -> Value:
        """Where a mask hides, with as many dims as scores have."""
        shape = int_shape(condition)
        if len(shape) < rank:
            condition = self.builder.op("reshape", condition, shape=((1,) * (rank - len(shape)) + shape))
        return condition if hides else self.builder.op("bitwise_not", condition)

    def _positions(self, extent: int, dim: int, device: str) -> Value:
        at = self.builder.op("iota", size=extent, start=0, step=1, dtype=i32, device=device)
        return at if dim == _KEYS else self.builder.op("reshape", at, shape=(extent, 1))

    def _edges_of(self, masks: Sequence[_Mask], shape: tuple[int, ...], dim: int) -> tuple[Value, ...]:
        """The edges of all masks of some scores together, along a dim."""
        key = frozenset((mask.condition, mask.hides) for mask in masks), shape[-2:], dim
        found = self.edges.get(key)
        if found is None:
            hidden: Value | None = None
            for mask in masks:
                one = self._hidden(mask.condition, mask.hides, len(shape))
                hidden = one if hidden is None else self.builder.op("bitwise_or", hidden, one)
            assert hidden is not None
            found = self.edges[key] = self._edges(hidden, shape, dim)
        return found

    def _edges(self, hidden: Value, shape: tuple[int, ...], dim: int) -> tuple[Value, ...]:
        """Where what is seen begins and ends, and where it ends to be seen without a gap."""
        b, rank, extent = self.builder, len(shape), shape[dim]

        def reduced(name: str, value: Value, along: int = dim) -> Value:
            return b.op(name, value, dims=(rank + along,), keepdim=True)

        seen = b.op("bitwise_not", hidden)
        # a query that sees nothing counts as one that sees all, with a gap
        keys = self._positions(shape[_KEYS], _KEYS, hidden.device)
        last_key = reduced("amax", b.op("where", seen, b.op("add", keys, 1), 0), _KEYS)
        blind = b.op("eq", last_key, 0)
        if dim == _QUERIES:
            reached, at = b.op("bitwise_or", seen, blind), self._positions(extent, dim, hidden.device)
            if hidden.shape[dim] == 1:  # each key is seen by all queries, or by none
                reached, seen = (self._expanded(item, extent) for item in (reached, seen))
            first = reduced("amin", b.op("where", reached, at, extent))
            last = reduced("amax", b.op("where", reached, b.op("add", at, 1), 0))
        else:
            first = b.op("where", blind, 0, reduced("amin", b.op("where", seen, keys, extent)))
            last = b.op("where", blind, extent, last_key)
        count = reduced("sum", b.op("cast", seen, dtype=i32))
        return first, last, b.op("where", b.op("eq", count, b.op("sub", last, first)), last, first)

    def _expanded(self, value: Value, queries: int) -> Value:
        shape = int_shape(value)
        return self.builder.op("expand", value, shape=(*shape[:-2], queries, shape[-1]))


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
