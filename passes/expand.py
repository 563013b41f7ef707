"""Composite ops to core ops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from graphc.ir.graph import Attr, Graph, Op, Operand, Value
from graphc.ir.types import TensorType
from graphc.ops.registry import Kind
from graphc.passes.base import PassContext, PassResult, Rewriter
from graphc.passes.layout import int_shape


@dataclass(frozen=True)
class ExpandComposites:
    """Replaces each composite op by the core ops that its definition expands it into.

    Before:
        %0: f32[4] = sigmoid(%x)              # mlp.py:14
    After:
        %1: f32[4] = neg(%x)                  # mlp.py:14
        %2: f32[4] = exp(%1)                  # mlp.py:14
        %3: f32[4] = add(%2, 1.0)             # mlp.py:14
        %4: f32[4] = div(1.0, %3)             # mlp.py:14

    Composites in `ctx.keep` stay whole. Expansions compute reduced floats in f32 and round once at the end, as eager's
    kernels do, so they are right under both settings of `ctx.numerics`. The few with a second, more precise expansion
    get that on a CPU, unless `ctx.numerics` is `eager`.

    Args:
        least_bytes: only those that read a value of so many bytes.
        only: only ops of these names; all when empty.
    """

    name: ClassVar[str] = "expand-composites"
    least_bytes: int = 0
    only: tuple[str, ...] = ()

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        expander = _Expander()
        names = self.only or _Composites(ctx)

        def expand_large(rewriter: Rewriter, op: Op) -> Sequence[Value] | None:
            sizes = (math.prod(int_shape(item)) * item.dtype.itemsize for item in op.inputs)
            return expander(rewriter, op) if max(sizes, default=0) >= self.least_bytes else None

        return Rewriter(graph, ctx).run(expand_large if self.least_bytes else expander, names)


class _Composites(dict[str, bool]):
    """The names of ops that are to be expanded."""

    def __init__(self, ctx: PassContext) -> None:
        super().__init__()
        self.ctx = ctx

    def __contains__(self, name: object) -> bool:
        return self[name]  # type: ignore[index]  # always a name

    def __missing__(self, name: str) -> bool:
        definition = self.ctx.get_def(name)
        is_composite = definition.kind is Kind.COMPOSITE and definition.expand is not None
        found = self[name] = is_composite and name not in self.ctx.keep
        return found


class _Expander:
    """Expands ops, and makes copies of what it has made for an equal op: layers of a model are expanded once."""

    def __init__(self) -> None:
        self.known: dict[Any, _Template | None] = {}

    def __call__(self, rewriter: Rewriter, op: Op) -> Sequence[Value]:
        rewriter.builder.origin = op.origin or op.name
        key = _key(op)
        template = self.known.get(key)
        if template is not None:
            return template.instantiate(rewriter, op)
        mark = len(rewriter.graph.ops)
        values = _expand(rewriter, op)
        if key not in self.known:
            self.known[key] = _Template.of(op, rewriter.graph.ops[mark:], values)
        return values


def _key(op: Op) -> Any:
    """Everything that an expansion may depend on: which operands are one and the same, types, layouts, attributes."""
    operands = [
        (op.operands.index(item), item.type, item.strides) if isinstance(item, Value) else (type(item), repr(item))
        for item in op.operands
    ]
    results = [(value.type, value.strides) for value in op.results]
    return op.name, tuple(operands), tuple(results), repr(sorted(op.attrs.items()))


@dataclass(frozen=True)
class _Template:
    """Ops over numbered values: first the operands of the expanded op, then the results of the ops themselves.

    Args:
        ops: name, operands (a number as `_Number`, a literal as it is), attributes, and types and strides of results.
        values: numbers of what stands for the results.
    """

    ops: tuple[tuple[str, tuple[Operand | _Number, ...], dict[str, Attr], tuple[tuple[TensorType, Any], ...]], ...]
    values: tuple[int, ...]

    @staticmethod
    def of(op: Op, made: Sequence[Op], values: Sequence[Value]) -> _Template | None:
        """What an expansion made, or None when it took up values that are no operands."""
        numbers: dict[Value, int] = {}
        for at, item in enumerate(op.operands):
            if isinstance(item, Value):
                numbers.setdefault(item, at)
        count = len(op.operands)
        found = []
        for new in made:
            if not all(item in numbers for item in new.inputs):
                return None
            operands = tuple(_Number(numbers[item]) if isinstance(item, Value) else item for item in new.operands)
            found.append((new.name, operands, new.attrs, tuple((value.type, value.strides) for value in new.results)))
            for value in new.results:
                numbers[value] = count
                count += 1
        if not all(value in numbers for value in values):
            return None
        return _Template(tuple(found), tuple(numbers[value] for value in values))

    def instantiate(self, rewriter: Rewriter, op: Op) -> Sequence[Value]:
        """The ops once more, on the operands of `op`."""
        env: list[Any] = list(op.operands)
        for name, operands, attrs, results in self.ops:
            given: list[Any] = [env[item.at] if type(item) is _Number else item for item in operands]
            made = rewriter.builder.multi(name, given, attrs, [type for type, _ in results])
            for value, (_, strides) in zip(made.results, results, strict=True):
                value.strides = strides
            env += made.results
        return [env[at] for at in self.values]


@dataclass(frozen=True, slots=True)
class _Number:
    at: int


def _expand(rewriter: Rewriter, op: Op) -> Sequence[Value]:
    definition, ctx = rewriter.ctx.get_def(op.name), rewriter.ctx
    expand = definition.expand
    if definition.expand_precisely is not None and ctx.target == "cpu" and ctx.numerics != "eager":
        expand = definition.expand_precisely
    assert expand is not None
    values: list[Value] = []
    for value in expand(rewriter.builder, op):
        # a result must be a value of its own: an operand or another result could not be handed out in its place
        own = value not in values and value not in op.operands
        values.append(value if own else rewriter.op("reshape", value, shape=value.shape))
    return values
