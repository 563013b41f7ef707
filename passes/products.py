"""Many small products as one: what unrolled loops over time leave behind.

A recurrent network written as a Python loop multiplies by the same weight once per step, and its backward pass adds up
one small product per step for the gradient of that weight. Neither depends on the order of the steps: the sum over t of
`a_t b_t` is one product of the matrices put side by side, and `x_t w` for parts `x_t` of one tensor are rows of one
product.

Source: J. Appleyard et al., Optimizing Performance of Recurrent Neural Networks on GPUs, 2016, joins products likewise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from graphc.ir.graph import Builder, Graph, Op, Value
from graphc.ir.sizes import typical
from graphc.ir.types import bf16, f16, f32, f64
from graphc.passes.base import PassContext, PassResult, redirect_ends
from graphc.passes.layout import int_shape

_VIEWS = frozenset({"reshape", "slice", "permute"})


@dataclass(frozen=True)
class MergeProducts:
    """Sums of products, sums of column sums, and products with one common factor.

    Before:
        %0: f32[3, 4] = matmul(%a, %b)
        %1: f32[3, 4] = matmul(%c, %d)
        %2: f32[3, 4] = add(%0, %1)
    After (with `at_least=2`):
        %3: f32[3, 10] = concat(%a, %c) {dim=1}
        %4: f32[10, 4] = concat(%b, %d) {dim=0}
        %2: f32[3, 4] = matmul(%3, %4)

    Args:
        at_least: terms from which the copies pay.

    The sum is rounded in another order than term by term, as any product of that length is.
    """

    at_least: int = 4
    name: ClassVar[str] = "merge-products"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if sum(op.name in ("matmul", "sum") for op in graph.ops) < self.at_least:
            return PassResult(False)
        sums = _Sums(graph, ctx, self.at_least).run()
        return PassResult(_Shared(graph, ctx, self.at_least).run() or sums)


def _rank2(value: Value) -> bool:
    return value.type.rank == 2 and not value.type.is_host


class _Sums:
    """Sums whose terms are products, or sums over the same dims, of equal shapes."""

    def __init__(self, graph: Graph, ctx: PassContext, at_least: int) -> None:
        self.graph, self.at_least = graph, at_least
        self.uses = graph.uses()
        self.ends = graph.live_out()
        self.builder = Builder(graph, ctx.infer)
        self.replaced: dict[Value, Value] = {}

    def run(self) -> bool:
        inner = {id(op) for op in self.graph.ops if op.name == "add" and self._feeds_an_add(op)}
        ops, self.graph.ops = self.graph.ops, []
        for op in ops:
            op.operands = [self.replaced.get(item, item) if isinstance(item, Value) else item for item in op.operands]
            if op.name != "add" or id(op) in inner or not self._merge(op):
                self.graph.ops.append(op)
        redirect_ends(self.graph, self.replaced)
        return bool(self.replaced)

    def _alone(self, value: Value) -> bool:
        return value not in self.ends and len(self.uses[value]) == 1

    def _feeds_an_add(self, op: Op) -> bool:
        (result,) = op.results
        return (
            self._alone(result)
            and self.uses[result][0].name == "add"
            and self.uses[result][0].operands.count(result) == 1
        )

    def _terms(self, root: Op) -> list[Value] | None:
        """The terms of a tree of adds of one type; None when a number is among them."""
        terms: list[Value] = []
        stack = list(reversed(root.operands))
        while stack:
            term = stack.pop()
            if not isinstance(term, Value) or term.type != root.results[0].type:
                return None
            if term.op is not None and term.op.name == "add" and self._feeds_an_add(term.op):
                stack.extend(reversed(term.op.operands))
            else:
                terms.append(term)
        return terms

    def _merge(self, root: Op) -> bool:
        terms = self._terms(root)
        if terms is None or len(terms) < self.at_least:
            return False
        self.builder.location = root.location
        rest: list[Value] = []
        groups: dict[object, list[Op]] = {}
        for term in terms:
            key = self._kind(term)
            if key is None:
                rest.append(term)
            else:
                groups.setdefault(key, []).append(term.op)  # type: ignore[arg-type]
        merged: list[Value] = []
        for found in groups.values():
            group = [op for op in found if not _dominates(op, found)]
            rest.extend(op.result for op in found if op not in group)
            if len(group) < self.at_least:
                rest.extend(op.result for op in group)
            else:
                merged.append(self._product(group) if group[0].name == "matmul" else self._sum(group))
        if not merged:
            return False
        value = merged.pop()
        for term in [*merged, *rest]:
            value = self.builder.op("add", term, value)
        if value.type != root.result.type:
            return False
        value.strides = root.result.strides
        self.replaced[root.result] = value
        self.uses[value] = self.uses[root.result]
        if root.result in self.ends:
            self.ends.add(value)
        return True

    def _kind(self, term: Value) -> object:
        """What terms must share to be merged; None for a term that stays."""
        op = term.op
        if op is None or not self._alone(term):
            return None
        if op.name == "matmul":
            a, b = op.operands
            return "matmul" if isinstance(a, Value) and isinstance(b, Value) and _rank2(a) and _rank2(b) else None
        if op.name == "sum" and op.attrs["dims"] and isinstance(op.operands[0], Value):
            dim = op.attrs["dims"][0]
            others = tuple(size for d, size in enumerate(op.operands[0].shape) if d != dim)
            return "sum", op.attrs["dims"], op.attrs["keepdim"], others, op.operands[0].type.rank
        return None

    def _product(self, group: Sequence[Op]) -> Value:
        a = self._beside([op.operands[0] for op in group], 1)  # type: ignore[misc]
        b = self._beside([op.operands[1] for op in group], 0)  # type: ignore[misc]
        return self.builder.op("matmul", a, b)

    def _beside(self, parts: list[Value], dim: int) -> Value:
        """Matrices joined along a dim; transposed ones are joined as they lie in memory."""
        if all(
            part.op is not None and part.op.name == "permute" and tuple(part.op.attrs["dims"]) == (1, 0)
            for part in parts
        ):
            joined = self.builder.op("concat", *(part.op.operands[0] for part in parts), dim=1 - dim)  # type: ignore[union-attr]
            return self.builder.op("permute", joined, dims=(1, 0))
        return self.builder.op("concat", *parts, dim=dim)

    def _sum(self, group: Sequence[Op]) -> Value:
        attrs = group[0].attrs
        joined = self.builder.op("concat", *(op.operands[0] for op in group), dim=attrs["dims"][0])
        return self.builder.op("sum", joined, **attrs)


def _dominates(op: Op, group: Sequence[Op]) -> bool:
    """A term as long as all others together, such as that of a loop: to copy it would cost more than is won."""
    lengths = {id(other): _length(other) for other in group}
    return 2 * lengths[id(op)] >= sum(lengths.values())


def _length(op: Op) -> int:
    """Over how many elements a term sums."""
    shape = int_shape(op.operands[0])  # type: ignore[arg-type]
    return shape[1] if op.name == "matmul" else shape[op.attrs["dims"][0]]


@dataclass(frozen=True)
class AccumulateProducts:
    """A product that is added to other ones is added to them while it is computed.

    Before:
        %0: f32[300, 400] = matmul(%a, %b)
        %1: f32[300, 400] = matmul(%c, %d)
        %2: f32[300, 400] = add(%0, %1)
    After:
        %0: f32[300, 400] = matmul(%a, %b)
        %1: f32[300, 400] = gemm(%c, %d, %0) {accumulate=True}

    Args:
        least_bytes: of a product that is worth it: smaller ones are added on the way, by the kernel that reads them.

    The terms are added in another order, in the dtype of the result: so this is for f32 and f64.
    """

    least_bytes: int = 1 << 16
    name: ClassVar[str] = "accumulate-products"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if sum(op.name == "matmul" for op in graph.ops) < 2:
            return PassResult(False)
        return PassResult(_Accumulated(graph, ctx, 2, self.least_bytes).run())


class _Accumulated(_Sums):
    """Sums of two products or more, each of which takes up the one before it."""

    def __init__(self, graph: Graph, ctx: PassContext, at_least: int, least_bytes: int) -> None:
        super().__init__(graph, ctx, at_least)
        self.least_bytes = least_bytes
        self.number = {op: number for number, op in enumerate(graph.ops)}

    def _merge(self, root: Op) -> bool:
        dtype, size = root.result.dtype, typical(math.prod(int_shape(root.result))) * root.result.dtype.itemsize
        terms = self._terms(root) if dtype in (f32, f64) and _rank2(root.result) and size >= self.least_bytes else None
        products = [term.op for term in terms or () if self._kind(term) == "matmul" and term.op in self.number]
        if len(products) < self.at_least:
            return False
        products.sort(key=lambda op: self.number[op])
        chain: list[Value] = []
        for op in products:
            assert op is not None
            if chain:
                op.name, op.operands, op.attrs = "gemm", [*op.operands, chain[-1]], {"accumulate": True}
            op.result.strides = root.result.strides
            chain.append(op.result)
        value = chain[-1]
        self.builder.location = root.location
        for term in terms or ():
            if term not in chain:
                value = self.builder.op("add", term, value)
        value.strides = root.result.strides
        self.replaced[root.result] = value
        self.uses[value] = self.uses[root.result]
        return True


@dataclass(frozen=True)
class RoundOnce:
    """A product of 16-bit floats that something is added to takes that up while it sums in f32, as `addmm` does.

    Before:
        %0: bf16[30, 40] = matmul(%a, %b)
        %1: bf16[30, 40] = add(%0, %bias)
    After:
        %2: bf16[30, 40] = expand(%bias) {shape=(30, 40)}
        %1: bf16[30, 40] = gemm(%a, %b, %2) {accumulate=True}

    A product that is rounded before a bias near its negative is added loses all digits. On a GPU, kernels with an
    epilogue add before they round; of the products that the library computes, fusion finds those that it can add to
    (`TemplateFusion.add_in_library`).
    """

    name: ClassVar[str] = "round-once"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if ctx.target != "cpu" or ctx.numerics == "eager":
            return PassResult(False)
        uses, ends, builder = graph.uses(), graph.live_out(), Builder(graph, ctx.infer)
        replaced: dict[Value, Value] = {}
        ops, graph.ops = graph.ops, []
        for op in ops:
            op.operands = [replaced.get(item, item) if isinstance(item, Value) else item for item in op.operands]
            product = rounded_before(op)
            if product is None or product in ends or len(uses[product]) > 1:
                graph.ops.append(op)
                continue
            (term,) = (item for item in op.operands if item is not product)
            builder.location = op.location
            assert isinstance(term, Value) and product.op is not None
            if term.shape != product.shape:
                term = builder.op("expand", term, shape=product.shape)
            total = builder.op("gemm", *product.op.operands, term, accumulate=True)
            total.strides = op.result.strides
            replaced[op.result] = total
        redirect_ends(graph, replaced)
        return PassResult(bool(replaced))


def rounded_before(op: Op) -> Value | None:
    """The operand of an addition that is a product, rounded to 16 bits before; None when there is none."""
    if op.name != "add" or op.result.dtype not in (bf16, f16):
        return None
    for item, other in (op.operands, op.operands[::-1]):
        if not isinstance(item, Value) or not isinstance(other, Value) or item is other or other.type.is_host:
            continue
        if item.type == op.result.type and other.dtype == item.dtype and _is_gemm(item.op):
            return item
    return None


def _is_gemm(op: Op | None) -> bool:
    """A product of matrices, or of as many as many."""
    if op is None or op.name != "matmul":
        return False
    a, b = (int_shape(item) for item in op.operands)  # type: ignore[arg-type]
    return len(a) == len(b) and len(a) in (2, 3) and a[:-2] == b[:-2]


class _Shared:
    """Products of several parts of one tensor with the same matrix."""

    def __init__(self, graph: Graph, ctx: PassContext, at_least: int) -> None:
        self.graph, self.ctx, self.at_least = graph, ctx, at_least
        self.builder = Builder(graph, ctx.infer)

    def run(self) -> bool:
        groups: dict[tuple[Value, Value], list[Op]] = {}
        ends = self.graph.live_out()
        for op in self.graph.ops:
            if op.name != "matmul" or not all(isinstance(item, Value) and _rank2(item) for item in op.operands):
                continue
            part, factor = op.operands
            base = _base(part)  # type: ignore[arg-type]
            if base is not part and op.result not in ends:
                groups.setdefault((base, factor), []).append(op)  # type: ignore[arg-type]
        chosen = [group for group in groups.values() if len(group) >= self.at_least]
        if not chosen:
            return False
        first = {id(group[0]): group for group in chosen}
        gone = {id(op) for group in chosen for op in group}
        replaced: dict[Value, Value] = {}
        ops, self.graph.ops = self.graph.ops, []
        for op in ops:
            op.operands = [replaced.get(item, item) if isinstance(item, Value) else item for item in op.operands]
            if id(op) in first:
                self._merge(first[id(op)], replaced)
            elif id(op) not in gone:
                self.graph.ops.append(op)
        redirect_ends(self.graph, replaced)
        return True

    def _merge(self, group: list[Op], replaced: dict[Value, Value]) -> None:
        b = self.builder
        b.location = group[0].location
        parts = [self._again(op.operands[0]) for op in group]  # type: ignore[arg-type]
        product = b.op("matmul", b.op("concat", *parts, dim=0), group[0].operands[1])
        start = 0
        for op in group:
            stop = start + int_shape(op.result)[0]
            b.location = op.location
            rows = b.op("slice", product, dim=0, start=start, stop=stop, step=1)
            replaced[op.result] = rows
            start = stop

    def _again(self, part: Value) -> Value:
        """The view once more, here: its own op may stand further below."""
        op = part.op
        if op is None or op.name not in _VIEWS:
            return part
        return self.builder.op(op.name, self._again(op.operands[0]), **op.attrs)  # type: ignore[arg-type]


def _base(value: Value) -> Value:
    """What a chain of views looks at."""
    while value.op is not None and value.op.name in _VIEWS:
        value = value.op.operands[0]  # type: ignore[assignment]
    return value
