"""Sums over rows of scores that are sums over rows of the result: what attention's gradient needs of each query.

    o = matmul(p, v)                                            o = matmul(p, v)
    dp = matmul(do, permute(v))                          ->     delta = sum(mul(do, o), dims=[2])
    delta = sum(mul(dp, p), dims=[2])

Both are the sum over j and d of p[i, j] * do[i, d] * v[j, d]; p may be weights times a dropout mask, when the gradient
has the same mask. The left one needs all scores, the right one a row of the result: without it, the gradient would have
to go over the scores once more, or keep them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

from graphc.ir.graph import Graph, Op, Value
from graphc.passes.base import PassContext, PassResult, Rewriter

_DEPTH = 16


@dataclass(frozen=True)
class ShrinkRowSums:
    """See the module.

    Numerics: where one weight is nearly 1, `dp - delta` cancels, and only the sum on the left has the rounding errors
    of `dp`. So this is done for products that are rounded more coarsely than sums in f32, and not for numerics="eager".
    """

    name: ClassVar[str] = "shrink-row-sums"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if ctx.numerics == "eager" or ctx.target != "gpu":
            return PassResult(False)
        finder = _Finder(ctx.tf32)
        for op in graph.ops:
            if op.name == "matmul":
                finder.add(op)
        return Rewriter(graph, ctx).run(finder.rewrite, {"sum"})


@dataclass
class _Finder:
    """Products by what they multiply with."""

    tf32: bool
    results: dict[tuple[Value, tuple[int, ...]], list[Op]] = field(default_factory=dict)

    def add(self, op: Op) -> None:
        right = op.operands[1]
        assert isinstance(right, Value)
        self.results.setdefault(_unturned(right), []).append(op)

    def rewrite(self, rewriter: Rewriter, op: Op) -> list[Value] | None:
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
                if +rest == _factors(left) and result.shape == gradient.shape:
                    return [_row_sum(rewriter, op, gradient, result)]
        return None


def _row_sum(rewriter: Rewriter, op: Op, gradient: Value, result: Value) -> Value:
    wanted = op.results[0]
    wide = [
        item if item.dtype == wanted.dtype else rewriter.op("cast", item, dtype=wanted.dtype)
        for item in (gradient, result)
    ]
    total = rewriter.op("sum", rewriter.op("mul", *wide), dims=(gradient.type.rank - 1,), keepdim=True)
    return total if total.type == wanted.type else rewriter.op("reshape", total, shape=wanted.shape)


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
            if op.name == "mul" and all(isinstance(x, Value) and x.shape == item.shape for x in op.operands):
                stack += [(x, depth + 1) for x in op.inputs]
                continue
        found[item] += 1
    return found
