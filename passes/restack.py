"""What a loop stacks for those that come after it: as few bytes as possible.

The backward pass of a loop reads, turn by turn, what the forward one stacked. What can be computed again from other
stacks at little cost is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from graphc.ir.graph import Attr, Builder, Graph, Input, Op, Operand, Output, Role, Value
from graphc.ops.registry import Kind, get
from graphc.passes.base import PassContext, PassResult, redirect_ends
from graphc.passes.cut import INFINITE, smallest_cut
from graphc.passes.dce import EliminateDeadCode
from graphc.passes.partition import is_cheap, value_bytes
from graphc.passes.stacked import Stacked, can_stack, stack

_FUSED = (Kind.POINTWISE, Kind.REDUCTION)
"""Kinds of ops that compute what they read on the way, without memory for it."""
Users = Mapping[Value, Sequence[Op]]


def users_of(graph: Graph) -> dict[Value, list[Op]]:
    found: dict[Value, list[Op]] = {}
    for op in graph.ops:
        for value in dict.fromkeys(op.inputs):
            found.setdefault(value, []).append(op)
    return found


def is_fused(value: Value, users: Users, kept: set[Value]) -> bool:
    """Whether all that reads a stack does so turn by turn or element by element, through views or not."""
    if value in kept:
        return False
    for user in users.get(value, ()):
        kind = get(user.name).kind
        if user.name == "scan":
            carries = user.attrs["carries"]
            others = [*user.operands[:carries], *user.operands[carries + user.attrs["sequences"] :]]
            if value in others:
                return False
        elif kind is Kind.VIEW:
            if not all(is_fused(result, users, kept) for result in user.results):
                return False
        elif kind not in _FUSED:
            return False
    return True


@dataclass(frozen=True)
class RecomputeStacks:
    """What a loop stacks to be read turn by turn is computed again by those who read it, where that keeps fewer bytes.

    Before:
        %0: f32[2, 3], %1: f32[9, 2, 3], %2: f32[9, 2, 3] = scan(%h, %x) {carries=1, sequences=1, length=9, ..}
          body graph loop(%c0: f32[2, 3] .., %s0: f32[2, 3] ..) {
            %0: f32[2, 3] = mul(%c0, %s0)
            %1: f32[2, 3] = tanh(%0)
            return %0, %0, %1
          }
        %3: f32[2, 3] = scan(%g, %2) {carries=1, sequences=1, length=9, reverse=True}
    After:
        %0: f32[2, 3], %1: f32[9, 2, 3] = scan(%h, %x) ..
        %3: f32[2, 3] = scan(%g, %1) {carries=1, sequences=1, length=9, reverse=True}
          body graph loop(%c0: f32[2, 3] .., %in: f32[2, 3] ..) {
            %0: f32[2, 3] = tanh(%in)
            ...

    Which ones is a minimum cut, as where a graph is split: see `graphc.passes.cut`. Only cheap ops are done again.
    """

    name: ClassVar[str] = "recompute-stacks"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if not any(op.name == "scan" for op in graph.ops):
            return PassResult(False)
        return _Recompute(graph, ctx).run()


@dataclass
class _Recipe:
    """How a stack is computed again.

    Args:
        value: of the body.
        sources: values of the body -> what they are in the graph: stacks, or the same in all turns.
        part: attributes of the slice of it that is meant; None = all of it.
    """

    value: Value
    sources: Mapping[Value, Stacked]
    part: Mapping[str, Attr] | None = None
    made: dict[Value, Stacked] = field(default_factory=dict)

    def source(self, b: Builder, value: Value) -> Stacked:
        """The part of a source."""
        if value not in self.made:
            given = self.sources[value]
            if given.varies and self.part is not None:
                given = Stacked(b.op("slice", given.value, **self.part), True)
            self.made[value] = given
        return self.made[value]

    def ops(self) -> list[Op]:
        """In an order in which they can be done, what is computed again."""
        found: dict[Op, None] = {}

        def visit(value: Value) -> None:
            if value in self.sources or value.op is None or value.op in found:
                return
            for operand in value.op.inputs:
                visit(operand)
            found[value.op] = None

        visit(self.value)
        return list(found)

    def whole(self, b: Builder, length: int) -> Value:
        """The stack, as a value of the graph."""
        known: dict[Value, Stacked] = {}

        def given(item: Operand) -> Stacked | Operand:
            if not isinstance(item, Value):
                return item
            return self.source(b, item) if item in self.sources else known[item]

        for op in self.ops():
            operands = [given(item) for item in op.operands]
            b.location, b.origin = op.location, op.origin
            if any(isinstance(item, Stacked) and item.varies for item in operands):
                known[op.result] = Stacked(stack(b, op, operands, length), True)  # type: ignore[arg-type]
            else:
                plain = [item.value if isinstance(item, Stacked) else item for item in operands]
                known[op.result] = Stacked(b.op(op.name, *plain, **op.attrs), False)
        answer = known[self.value]
        if answer.varies:
            return answer.value
        return b.op("expand", answer.value, shape=(length, *answer.value.shape))


class _Recompute:
    def __init__(self, graph: Graph, ctx: PassContext) -> None:
        self.graph, self.ctx = graph, ctx
        self.users, self.kept = users_of(graph), graph.live_out()
        self.b = Builder(graph, ctx.infer)
        self.recipes: dict[Value, _Recipe] = {}
        self.replaced: dict[Value, Value] = {}
        self.modified = False

    def run(self) -> PassResult:
        ops, self.graph.ops = self.graph.ops, []
        for op in ops:
            op.operands = [self.replaced.get(item, item) if isinstance(item, Value) else item for item in op.operands]
            if not self._reads_recipe(op):
                self.graph.ops.append(op)
            if op.name == "scan":
                self._leave_out(op)
        redirect_ends(self.graph, self.replaced)
        return PassResult(self.modified)

    # those that read

    def _reads_recipe(self, op: Op) -> bool:
        """See to an op that reads what is not stacked any more; True when nothing is left of it."""
        if self.recipes.keys().isdisjoint(op.operands):
            return False
        first = op.operands[0]
        if (
            op.name == "slice"
            and op.attrs["dim"] == 0
            and isinstance(first, Value)
            and self.recipes[first].part is None
        ):
            recipe = self.recipes[first]
            self.recipes[op.result] = _Recipe(recipe.value, recipe.sources, op.attrs)
            return True
        if op.name == "scan":
            _Sink(op, self.recipes, self.b).run()
            return False
        for item in op.operands:
            if isinstance(item, Value) and item in self.recipes and item not in self.replaced:
                self.replaced[item] = self.recipes[item].whole(self.b, item.shape[0])  # type: ignore[arg-type]
        op.operands = [self.replaced.get(item, item) if isinstance(item, Value) else item for item in op.operands]
        return False

    # loops

    def _leave_out(self, op: Op) -> None:
        """Have a loop stack less."""
        carries, body = op.attrs["carries"], op.attrs["body"]
        stacks = dict(zip(op.results[carries:], (o.value for o in body.outputs[carries:]), strict=True))
        needed = {stack: value for stack, value in stacks.items() if stack in self.kept or self.users.get(stack)}
        shown = [value for stack, value in needed.items() if stack in self.kept]
        if len(set(shown)) < len(shown):
            return  # results that are equal would become one
        fused = {stack: value for stack, value in needed.items() if is_fused(stack, self.users, self.kept)}
        given = {value for stack, value in needed.items() if stack not in fused}
        cut = self._cut(op, dict.fromkeys(value for value in fused.values() if value not in given), given)
        dropped = {stack: value for stack, value in fused.items() if value not in cut and value not in given}
        if not dropped:
            return
        self.modified = True
        inputs = dict(zip(body.inputs, op.operands, strict=True))
        stacked = dict.fromkeys([value for stack, value in needed.items() if stack not in dropped])
        stacked.update(dict.fromkeys(value for value in cut if value not in inputs))
        made = self._rebuild(op, list(stacked))
        sequences = body.inputs[carries : carries + op.attrs["sequences"]]
        sources = {value: Stacked(result, True) for value, result in made.items()}
        sources |= {
            item: Stacked(inputs[item], item in sequences) for item in cut if item in inputs and item not in made
        }
        for old, value in needed.items():
            if old in dropped:
                self.recipes[old] = _Recipe(value, sources)
            else:
                made[value].strides = old.strides if old in self.kept else made[value].strides
                self.replaced[old] = made[value]

    def _cut(self, op: Op, needed: Mapping[Value, None], given: set[Value]) -> set[Value]:
        carries, length = op.attrs["carries"], op.attrs["length"]
        operands = dict(zip(op.attrs["body"].inputs, op.inputs, strict=True))
        moving = op.attrs["body"].inputs[:carries]

        def cost(value: Value) -> float:
            if value in given or _is_constant(value):
                return 0  # stacked in any case, or never
            if value in moving and value not in needed:
                return INFINITE  # what a turn begins with is no item of a stack, unless it is stacked itself
            if value in operands and value not in moving:
                return 1 if isinstance(operands[value], Input) else value_bytes(operands[value])
            return length * value_bytes(value)

        def is_computed(value: Value) -> bool:
            return value.op is not None and is_cheap(value.op) and (can_stack(value.op) or _is_constant(value))

        found = smallest_cut(needed, cost, is_computed) if needed else []
        return {value for value in found if not _is_constant(value)}

    def _rebuild(self, op: Op, stacked: Sequence[Value]) -> dict[Value, Value]:
        """The loop with other stacks; for each of them the new result."""
        carries, body = op.attrs["carries"], op.attrs["body"]
        new = with_outputs(op, self.b, self.ctx, [*(output.value for output in body.outputs[:carries]), *stacked])
        self.graph.ops.remove(op)
        self.replaced.update(zip(op.results[:carries], new.results, strict=False))
        return dict(zip(stacked, new.results[carries:], strict=True))


def _is_constant(value: Value) -> bool:
    return value.op is not None and get(value.op.name).kind is Kind.CREATION


def with_outputs(op: Op, b: Builder, ctx: PassContext, values: Sequence[Value]) -> Op:
    """A loop as another one, but for what its body gives; the body is changed in place."""
    body = op.attrs["body"]
    body.outputs = [Output(value) for value in values]
    EliminateDeadCode().run(body, ctx)
    b.location, b.origin = op.location, op.origin
    new = b.multi("scan", op.operands, op.attrs)
    for old, made in zip(op.results[: op.attrs["carries"]], new.results, strict=False):
        made.strides = old.strides
    return new


class _Sink:
    """A loop that computes items of its sequences from those of others; it is changed in place."""

    def __init__(self, op: Op, recipes: Mapping[Value, _Recipe], b: Builder) -> None:
        self.op, self.recipes, self.b = op, recipes, b
        self.body: Graph = op.attrs["body"].copy()
        self.inner = Builder(self.body, b.infer)
        self.ops = self.body.ops
        self.body.ops = []
        carries, sequences = op.attrs["carries"], op.attrs["sequences"]
        pairs = list(zip(self.body.inputs, op.operands, strict=True))
        self.carries = pairs[:carries]
        self.sequences = pairs[carries : carries + sequences]
        self.fixed = pairs[carries + sequences :]

    def run(self) -> None:
        found: dict[Value, Value] = {}
        parts: dict[tuple[int, str], dict[Value, Value]] = {}
        for item, operand in list(self.sequences):
            if isinstance(operand, Value) and operand in self.recipes:
                recipe = self.recipes[operand]
                self.sequences.remove((item, operand))
                known = parts.setdefault((id(recipe.sources), str(recipe.part)), {})
                found[item] = self._compute(recipe, known)
        for op in self.ops:
            op.operands = [found.get(item, item) if isinstance(item, Value) else item for item in op.operands]
        self.body.ops += self.ops
        self.body.outputs = [Output(found.get(output.value, output.value)) for output in self.body.outputs]
        pairs = [*self.carries, *self.sequences, *self.fixed]
        self.body.inputs = [item for item, _ in pairs]
        self.op.operands = [operand for _, operand in pairs]
        self.op.attrs |= {"sequences": len(self.sequences), "body": self.body}

    def _compute(self, recipe: _Recipe, known: dict[Value, Value]) -> Value:
        for op in recipe.ops():
            if op.result in known:
                continue
            operands = [self._source(recipe, item, known) if isinstance(item, Value) else item for item in op.operands]
            self.inner.location, self.inner.origin = op.location, op.origin
            known[op.result] = self.inner.op(op.name, *operands, **op.attrs)
        return self._source(recipe, recipe.value, known)

    def _source(self, recipe: _Recipe, value: Value, known: dict[Value, Value]) -> Value:
        if value not in known:
            given = recipe.source(self.b, value)
            known[value] = self._input(given, value)
        return known[value]

    def _input(self, given: Stacked, like: Value) -> Value:
        """The body's input for an operand, which may be there already."""
        pairs = self.sequences if given.varies else self.fixed
        for item, operand in pairs:
            if operand is given.value or _same_slice(operand, given.value):
                return item
        made = self.inner.input("in", like.type, Role.ARG, "in")
        pairs.append((made, given.value))
        return made


def _same_slice(one: Operand, other: Value) -> bool:
    a, b = one.op if isinstance(one, Value) else None, other.op
    if a is None or b is None or a.name != "slice" or b.name != "slice":
        return False
    return a.operands == b.operands and a.attrs == b.attrs
