"""Attention written by hand, forward and backward, as the library call that computes it.

    %s = mul(matmul(%q, permute(%k)), 0.125)
    %p = softmax(where(%ahead, -inf, %s))              %o, %lse = attention(%q, %k, %v) {causal=True, ...}
    %o = matmul(%p, %v)                            ->
    %dv = matmul(permute(%p), %do)                     %dq, %dk, %dv = attention_gradient(%do, %q, %k, %v, %o, %lse)
    %ds = mul(where(%ahead, 0, softmax_gradient(matmul(%do, permute(%v)), %p)), 0.125)
    %dq = matmul(%ds, %k);  %dk = matmul(permute(%ds), %q)

Found before composites are expanded, and before a joint graph is split: so what is kept for the backward pass is the
result and a number per row, not the weights. `graphc.passes.attention_forms` tells what is attention; whether a library
is called is the decision of `graphc.passes.templates`, and what it does not take stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from graphc.ir.graph import Attr, Graph, Op, Value
from graphc.ir.types import contiguous_strides
from graphc.ops import attention
from graphc.passes.attention_forms import Form, find_forms
from graphc.passes.base import PassContext, PassResult, Rewriter
from graphc.passes.layout import Layouts, Strides, dense_like, int_shape, same_strides, wanted_strides
from graphc.passes.matrices import Matrices
from graphc.passes.templates import Templates

_QUERY, _KEY, _VALUE = range(3)


@dataclass(frozen=True)
class FindAttention:
    """See the module.

    Attention that is one op already is written out where it is to be a template instead. Numerics: the library keeps
    scores and weights in f32, as templates do; with numerics="eager" nothing is done.
    """

    name: ClassVar[str] = "find-attention"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        templates = ctx.templates
        if templates is None or ctx.numerics == "eager":
            return PassResult(False)
        calls: dict[Op, _Call] = {}
        for form in find_forms(graph):
            library = _library(form, templates)
            if library:
                call = _Call(form, library)
                calls |= dict.fromkeys((form.product, *form.gradients), call)

        def rewrite(rewriter: Rewriter, op: Op) -> Sequence[Value] | None:
            call = calls.get(op)
            if call is not None:
                return (call.result_of(rewriter, op),)
            if op.attrs.get("library") and templates.takes_call(op):
                return _written_out(rewriter, op)
            return None

        return Rewriter(graph, ctx).run(rewrite, ("matmul", attention.NAME, attention.GRADIENT))


def _library(form: Form, templates: Templates) -> str:
    query, dtype = form.query_shape, form.product.results[0].dtype
    return templates.library_for_attention(
        form.product.results[0].device, dtype, query, form.keys, form.causal, bool(form.gradients)
    )


def _written_out(rewriter: Rewriter, op: Op) -> Sequence[Value]:
    expand = rewriter.ctx.get_def(op.name).expand
    assert expand is not None
    return expand(rewriter.builder, op)


@dataclass
class _Call:
    """One form on its way into the graph.

    Attributes:
        heads: query, key and value as (B, H, S, D), once they have been made.
        results: of the forward call.
        gradients: of the backward call.
    """

    form: Form
    library: str
    heads: list[Value] = field(default_factory=list)
    results: list[Value] = field(default_factory=list)
    gradients: list[Value] = field(default_factory=list)

    @property
    def _attrs(self) -> dict[str, Attr]:
        return {"causal": self.form.causal, "scale": self.form.scale, "library": self.library}

    def result_of(self, rewriter: Rewriter, op: Op) -> Value:
        """What stands for the result of a product of the form."""
        if not self.results:
            self._call_forward(rewriter)
        shape = int_shape(op.results[0])
        if op is self.form.product:
            return rewriter.op("reshape", self.results[0], shape=shape)
        if not self.gradients:
            self._call_backward(rewriter)
        role = self.form.gradients[op]
        found = self.gradients[role.operand]
        if not role.is_turned:
            return rewriter.op("reshape", found, shape=shape)
        dims = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
        upright = rewriter.op("reshape", found, shape=tuple(shape[dim] for dim in dims))
        return rewriter.op("permute", upright, dims=dims)

    def _call_forward(self, rewriter: Rewriter) -> None:
        form = self.form
        self.heads = [_as_heads(rewriter, item, form.batch) for item in (form.query, form.key, form.value)]
        op = rewriter.builder.multi(attention.NAME, self.heads, {**self._attrs, "mask": False})
        self.results = op.results
        _lie_as(self.results[0], self.heads[_QUERY])

    def _call_backward(self, rewriter: Rewriter) -> None:
        assert self.form.cotangent is not None
        cotangent = _as_heads(rewriter, self.form.cotangent, self.form.batch)
        op = rewriter.builder.multi(attention.GRADIENT, [cotangent, *self.heads, *self.results], self._attrs)
        self.gradients = op.results
        for gradient, operand in zip(self.gradients, self.heads, strict=True):
            _lie_as(gradient, operand)


def _as_heads(rewriter: Rewriter, item: Matrices, batch: tuple[int, int]) -> Value:
    """Matrices as (B, H, rows, columns): a permutation of what they are views of, with the strides that this has."""
    source = rewriter.replaced.get(item.source, item.source)
    dims = (*item.lead, *item.rows, *item.columns)
    ones = tuple(dim for dim in range(source.type.rank) if dim not in dims)
    shape, found = int_shape(source), source
    if (*ones, *dims) != tuple(range(source.type.rank)):
        found = rewriter.op("permute", found, dims=(*ones, *dims))
    wanted = (*batch, math.prod(shape[dim] for dim in item.rows), math.prod(shape[dim] for dim in item.columns))
    if int_shape(found) != wanted:
        found = rewriter.op("reshape", found, shape=wanted)
    if found is not source:
        strides = Layouts().place(found).strides
        if all(size == 1 or step for size, step in zip(wanted, strides, strict=True)):
            _state(found, strides)  # what is repeated gets memory of its own
    return found


def _lie_as(result: Value, operand: Value) -> None:
    """All libraries lay results out as `empty_like` of an operand does."""
    _state(result, dense_like(int_shape(operand), wanted_strides(operand)))


def _state(value: Value, strides: Strides) -> None:
    shape = int_shape(value)
    plain: Strides = tuple(contiguous_strides(shape))  # type: ignore[arg-type]  # static
    value.strides = None if same_strides(shape, strides, plain) else strides
