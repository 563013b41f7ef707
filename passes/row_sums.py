"""Sums over rows of scores that are sums over rows of the result: what attention's gradient needs of each query.

    o = matmul(p, v)                                            o = matmul(p, v)
    dp = matmul(do, permute(v))                          ->     delta = sum(mul(do, o), dims=[2])
    delta = sum(mul(dp, p), dims=[2])

Both are the sum over j and d of p[i, j] * do[i, d] * v[j, d]; p may be weights times a dropout mask, when the gradient
has the same mask. The left one needs all scores, the right one a row of the result: without it, the gradient would have
to go over the scores once more, or keep them.

    w = cast(cast(p)), p = div(exp(...), total)                 counts = cast(ge(total, 1.0001))
    ds = cast(mul(sub(dp, delta), w))                           ds = mul(mul(sub(dp, delta), counts), p)
    dx = mul(where(mask, 0, ds), 0.1)                     ->    dx = cast(mul(where(mask, 0, ds), 0.1))

The gradient of the scores is then computed for each of them in kernels that round what they multiply, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

from graphc.ir.graph import Graph, Op, Operand, Value
from graphc.ops.attention import OTHER_KEYS
from graphc.passes.base import PassContext, PassResult, Rewriter
from graphc.passes.chains import is_peak_of

_DEPTH = 16
ONE_KEY = 1 + OTHER_KEYS
"""Sums of exponentials, the largest of which is 1, below which the gradient of a row of scores is nothing."""


@dataclass(frozen=True)
class ShrinkRowSums:
    """See the module.

    Numerics: where one weight is nearly 1, `dp - delta` cancels, and only the sum on the left has the rounding errors
    of `dp`. So this is done for products that are rounded more coarsely than sums in f32, and not for numerics="eager".
    What is left of the difference is the rounding of the result, 2^-9 of `delta` in bf16 and 2^-12 in f16 and tf32. So
    a row counts for nothing when its other weights are less than 2^-14 together, as where a query sees one key, and
    the gradient of its scores is below that; infinities and NaN still show. Weights and the gradient of scores are
    rounded where they enter a product, and not before.
    """

    name: ClassVar[str] = "shrink-row-sums"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if ctx.numerics == "eager" or ctx.target != "gpu":
            return PassResult(False)
        finder = _Finder(ctx.tf32)
        for op in graph.ops:
            if op.name == "matmul":
                finder.add(op)
        return Rewriter(graph, ctx).run(finder.rewrite, {"sum", "mul", "cast", "where", "div"})


@dataclass
class _Finder:
    """Products by what they multiply with.

    Attributes:
        results: of products, by a right operand and how it is turned.
        deltas: per row sum that was replaced what it was the sum of: a gradient, and weights.
        slopes: gradients of scores that are not rounded.
        late: per rounded value that is made of one of these what is rounded.
    """

    tf32: bool
    results: dict[tuple[Value, tuple[int, ...]], list[Op]] = field(default_factory=dict)
    deltas: dict[Value, tuple[Operand, ...]] = field(default_factory=dict)
    slopes: set[Value] = field(default_factory=set)
    late: dict[Value, Value] = field(default_factory=dict)

    def add(self, op: Op) -> None:
        right = op.operands[1]
        assert isinstance(right, Value)
        self.results.setdefault(_unturned(right), []).append(op)

    def rewrite(self, rewriter: Rewriter, op: Op) -> list[Value] | None:
        if op.name == "sum":
            return self._shrink(rewriter, op)
        if op.name == "cast":
            return self._pass_on(op)
        if op.name == "mul" and self.deltas:
            found = self._slope(rewriter, op)
            if found is not None:
                return found
        if op.result.dtype.is_reduced:
            return self._round_later(rewriter, op) if self.late else None
        if not self.slopes.isdisjoint(op.inputs):
            self.slopes.add(op.result)
        return None

    def _pass_on(self, op: Op) -> list[Value] | None:
        """A rounding that is noted, or one that is taken back."""
        source = op.operands[0]
        assert isinstance(source, Value)
        if source in self.slopes and op.result.dtype.is_reduced:
            self.late[op.result] = source
        exact = self.late.get(source)
        return [exact] if exact is not None and exact.type == op.result.type else None

    def _slope(self, rewriter: Rewriter, op: Op) -> list[Value] | None:
        """The gradient of scores, from a difference with a row sum that was replaced."""
        for difference, weights in (op.operands, op.operands[::-1]):
            if not isinstance(difference, Value) or difference.op is None or difference.op.name != "sub":
                continue
            gradient, delta = difference.op.operands
            pair = self.deltas.get(delta, ()) if isinstance(delta, Value) else ()
            if pair not in ((gradient, weights), (weights, gradient)) or not isinstance(weights, Value):
                continue
            exact = _unrounded(weights)
            total = _total(exact)
            if total is not None:
                counts = rewriter.op("cast", rewriter.op("ge", total, ONE_KEY), dtype=total.dtype)
                difference = rewriter.op("mul", difference, counts)
            slope = rewriter.op("mul", difference, exact)
            self.slopes.add(slope)
            return [slope]
        return None

    def _round_later(self, rewriter: Rewriter, op: Op) -> list[Value] | None:
        """A multiple of a rounded gradient of scores, or one with zeros in it, rounded afterwards."""
        rounded = [item for item in op.operands if isinstance(item, Value) and item in self.late]
        others = [item for item in op.operands[op.name == "where" :] if item not in rounded]
        if len(rounded) != 1 or any(isinstance(item, Value) for item in others) or op.operands[0] in others:
            return None
        if op.name == "where" and (others != [0.0] or not _same_size(op.result, rounded[0])):
            return None
        wide = rewriter.op(op.name, *(self.late[rounded[0]] if item is rounded[0] else item for item in op.operands))
        self.slopes.add(wide)
        return [rewriter.op("cast", wide, dtype=op.result.dtype)]

    def _shrink(self, rewriter: Rewriter, op: Op) -> list[Value] | None:
        (source,) = op.inputs
        rank = source.type.rank
        if tuple(op.attrs["dims"]) != (rank - 1,) or not op.attrs["keepdim"] or not source.dtype.is_float:
            return None
        factors = _factors(source)
        for inner in factors:
            if inner.op is None or inner.op.name != "matmul":
                continue
            gradient, turned = inner.op.operands
            assert isinstance(gradient, Value) and isinstance(turned, Value)
            if not gradient.dtype.is_reduced and not (self.tf32 and gradient.dtype.name == "f32"):
                return None
            base, dims = _unturned(turned)
            flat = (*dims[:-2], dims[-1], dims[-2])
            for product in self.results.get((base, flat), ()):
                left, result = product.operands[0], product.results[0]
                assert isinstance(left, Value)
                rest = factors.copy()
                rest.subtract({inner: 1})
                # the right form has the same look: do is to o what p is to dp
                if +rest == _factors(left) and result.shape == gradient.shape and any(map(_is_weight, +rest)):
                    total = _row_sum(rewriter, op, gradient, result)
                    if source.op is not None and source.op.name == "mul":
                        self.deltas[total] = tuple(source.op.operands)
                    return [total]
        return None


def _row_sum(rewriter: Rewriter, op: Op, gradient: Value, result: Value) -> Value:
    wanted = op.results[0]
    wide = [
        item if item.dtype == wanted.dtype else rewriter.op("cast", item, dtype=wanted.dtype)
        for item in (gradient, result)
    ]
    total = rewriter.op("sum", rewriter.op("mul", *wide), dims=(gradient.type.rank - 1,), keepdim=True)
    return total if total.type == wanted.type else rewriter.op("reshape", total, shape=wanted.shape)


def _is_weight(value: Value) -> bool:
    """Whether a value is an exponential, perhaps divided by a sum or 0 in places."""
    while value.op is not None and value.op.name in ("div", "where", "cast", "reshape"):
        value = [item for item in value.op.operands if isinstance(item, Value)][value.op.name == "where"]
    return value.op is not None and value.op.name == "exp"


def _same_size(value: Value, other: Value) -> bool:
    """Whether shapes are the same but for leading ones."""
    short, long = sorted((value.shape, other.shape), key=len)
    return (1,) * (len(long) - len(short)) + tuple(short) == tuple(long)


def _unrounded(value: Value) -> Value:
    """What a value is before it is rounded, and widened again."""
    source = value.op.operands[0] if value.op is not None and value.op.name == "cast" else None
    if isinstance(source, Value) and source.op is not None and source.op.name == "cast":
        first = source.op.operands[0]
        if isinstance(first, Value) and first.type == value.type and source.dtype.is_reduced:
            return first
    return value


def _total(weights: Value) -> Value | None:
    """The sum that the weights of a softmax are divided by."""
    op = weights.op
    if op is not None and op.name == "where" and op.operands[1] == 0 and isinstance(op.operands[2], Value):
        op = op.operands[2].op  # rows that are masked whole
    if op is None or op.name != "div":
        return None
    exponential, total = op.operands
    shifted = exponential.op.operands[0] if isinstance(exponential, Value) and exponential.op is not None else None
    if not isinstance(total, Value) or not isinstance(shifted, Value) or shifted.op is None or shifted.op.name != "sub":
        return None
    is_sum = total.op is not None and total.op.name == "sum" and total.op.operands[0] is exponential
    return total if is_sum and is_peak_of(*shifted.op.operands[::-1]) else None


def _unturned(value: Value) -> tuple[Value, tuple[int, ...]]:
    """What a value is a permutation of, and which."""
    dims = tuple(range(value.type.rank))
    while value.op is not None and value.op.name == "permute":
        dims = tuple(value.op.attrs["dims"][dim] for dim in dims)
        value = next(iter(value.op.inputs))
    return value, dims


def _factors(value: Value) -> Counter[Value]:
    """What a value is the product of, casts and reshapes that keep rows left aside."""
    found: Counter[Value] = Counter()
    stack = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        op = item.op
        if op is not None and depth < _DEPTH:
            if op.name in ("cast", "reshape"):
                source = next(iter(op.inputs))
                if source.type.rank and item.shape[-1:] == source.shape[-1:] and source.dtype.is_float:
                    stack.append((source, depth + 1))
                    continue
            if op.name == "mul" and all(isinstance(x, Value) and _same_size(x, item) for x in op.operands):
                stack += [(x, depth + 1) for x in op.inputs]
                continue
        found[item] += 1
    return found
