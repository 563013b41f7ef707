"""Work that a loop need not do turn by turn is done for all turns at once, before or behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from graphc.ir.graph import Builder, Graph, Input, Literal, Op, Output, Role, Value
from graphc.ops.registry import Kind, get
from graphc.passes.base import PassContext, PassResult, redirect_ends
from graphc.passes.dce import EliminateDeadCode
from graphc.passes.stacked import Given, Stacked, can_stack, stack

_VIEWS = ("reshape", "permute")


@dataclass(frozen=True)
class LiftFromLoops:
    """Products and reductions that need no carry, or that no carry needs, leave their loop; so do sums over turns.

    Before:
        %0: f32[2, 3], %1: f32[4, 3] = scan(%h, %z, %x, %w) {carries=2, sequences=1, length=9, reverse=False}
          body graph loop(%c0: f32[2, 3] .., %c1: f32[4, 3] .., %s0: f32[2, 4] .., %i0: f32[4, 3] ..) {
            %0: f32[2, 3] = matmul(%s0, %i0)
            %1: f32[2, 3] = add(%c0, %0)
            %2: f32[4, 2] = permute(%s0) {dims=[1, 0]}
            %3: f32[4, 3] = matmul(%2, %1)
            %4: f32[4, 3] = add(%c1, %3)
            return %1, %4
          }
    After:
        %2: f32[18, 3] = matmul(%x as 18 rows, %w)
        %3: f32[2, 3], %4: f32[9, 2, 3] = scan(%h, %2 as 9 items) {carries=1, sequences=1, length=9, reverse=False}
          body graph loop(%c0: f32[2, 3] .., %s1: f32[2, 3] ..) {
            %1: f32[2, 3] = add(%c0, %s1)
            return %1, %1
          }
        %5: f32[4, 3] = matmul(transposed %x, %4 as 18 rows)
        %1: f32[4, 3] = add(%z, %5)

    A loop without carries is done for all its turns at once as far as that can be. Sums over turns are rounded in
    another order, as any product of that length is.

    Source: J. Appleyard et al., Optimizing Performance of Recurrent Neural Networks on GPUs, 2016.
    """

    name: ClassVar[str] = "lift-from-loops"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if not any(op.name == "scan" for op in graph.ops):
            return PassResult(False)
        needed = graph.live_out() | {value for op in graph.ops for value in op.inputs}
        builder = Builder(graph, ctx.infer)
        replaced: dict[Value, Value] = {}
        ops, graph.ops = graph.ops, []
        for op in ops:
            op.operands = [replaced.get(item, item) if isinstance(item, Value) else item for item in op.operands]
            if op.name != "scan":
                graph.ops.append(op)
                continue
            builder.location = op.location
            results = _Lift(op, builder, ctx, [result in needed for result in op.results]).run()
            for old, new in zip(op.results, results, strict=True):
                if new is not None:
                    new.strides = old.strides
                    replaced[old] = new
        redirect_ends(graph, replaced)
        return PassResult(True)


class _Lift:
    def __init__(self, op: Op, builder: Builder, ctx: PassContext, needed: Sequence[bool]) -> None:
        self.op, self.b, self.ctx = op, builder, ctx
        self.length: int = op.attrs["length"]
        self.body: Graph = op.attrs["body"]
        carries, sequences = op.attrs["carries"], op.attrs["sequences"]
        inputs, outputs = self.body.inputs, [output.value for output in self.body.outputs]
        operands: list[Value] = list(op.inputs)
        self.initial = dict(zip(inputs[:carries], operands, strict=False))
        self.next = dict(zip(inputs[:carries], outputs, strict=False))
        self.known: dict[Value, Stacked] = {}  # values of the body, for all turns
        for number, (item, operand) in enumerate(zip(inputs, operands, strict=True)):
            if number >= carries:
                self.known[item] = Stacked(operand, number < carries + sequences)
        self.sequences = inputs[carries : carries + sequences]
        self.fixed = inputs[carries + sequences :]
        self.needed = needed
        self.last = {item: needed[number] for number, item in enumerate(inputs[:carries])}  # final carries in use
        self.shown = [value for value, used in zip(outputs[carries:], needed[carries:], strict=True) if used]
        self.stacks: list[Value] = []  # what the new body stacks
        self.sums: dict[Input, Value] = {}
        self.moved: set[Op] = set()

    def run(self) -> list[Value | None]:
        """Write the loop anew; for each result of the old one what stands for it, or None when nothing needs it."""
        self._drop_dead_carries()
        self._find_sums()
        self._choose()
        self._before()
        results = self._loop()
        for value, result in zip(self.stacks, results[len(self.next) :], strict=True):
            self.known.setdefault(value, Stacked(result, True))
        found: dict[Input, Value] = dict(zip(self.next, results, strict=False))
        for item, value in self.next.items():  # stacked as well: it is one buffer then
            if value in self.stacks and self.last[item]:
                found[item] = self._last_of(self.known[value].value)
        for item, term in self.sums.items():
            found[item] = self.b.op("add", self.initial[item], self._sum(term))
        old = self.body.inputs[: self.op.attrs["carries"]]
        answers: list[Value | None] = [found.get(item) for item in old]
        outputs = [output.value for output in self.body_outputs[len(old) :]]
        for value, used in zip(outputs, self.needed[len(old) :], strict=True):
            answers.append(self._stack_of(value) if used else None)
        return answers

    def _last_of(self, stacked: Value) -> Value:
        """What the last turn gave."""
        at = 0 if self.op.attrs["reverse"] else self.length - 1
        part = self.b.op("slice", stacked, dim=0, start=at, stop=at + 1, step=1)
        return self.b.op("reshape", part, shape=stacked.shape[1:])

    # what is needed

    def _drop_dead_carries(self) -> None:
        self.body_outputs = list(self.body.outputs)
        live = {item for item, used in self.last.items() if used}
        while True:
            reached = self._above([*self.shown, *(self.next[item] for item in live)])
            more = {item for item in self.next if item in reached} - live
            if not more:
                break
            live |= more
        self.next = {item: value for item, value in self.next.items() if item in live}

    def _above(self, values: Sequence[Value]) -> set[Value]:
        """The values and all that they are computed from."""
        found: set[Value] = set(values)
        for op in reversed(self.body.ops):
            if not found.isdisjoint(op.results):
                found.update(op.inputs)
        return found

    def _find_sums(self) -> None:
        """Carries that only add up what needs no carry of its own to be known: a product or a reduction."""
        counts: dict[Value, int] = {}
        for op in self.body.ops:
            for value in op.inputs:
                counts[value] = counts.get(value, 0) + 1
        ends = [*self.next.values(), *self.shown]
        for item, value in list(self.next.items()):
            op = value.op
            if op is None or op.name != "add" or counts.get(item) != 1 or item not in op.operands:
                continue
            if counts.get(value) or ends.count(value) != 1 or item in ends:
                continue
            term = op.operands[1 - op.operands.index(item)]
            if not isinstance(term, Value) or term.type != item.type:
                continue
            core = _below_views(term).op
            if core is not None and core.name in ("matmul", "sum") and can_stack(core):
                self.sums[item] = term
                del self.next[item]

    # what moves

    def _choose(self) -> None:
        """Ops that are done outside: see the class."""
        carried = set(self.next) | set(self.sums)
        recurrent: set[Value] = set(carried)
        for op in self.body.ops:
            if not recurrent.isdisjoint(op.operands):
                recurrent.update(op.results)
        kept = self._above(list(self.next.values()))
        needed = self._above([*self.next.values(), *self.shown, *self.sums.values()])
        self.live = [op for op in self.body.ops if not needed.isdisjoint(op.results)]
        users: dict[Value, list[Op]] = {}
        for op in self.body.ops:
            for value in op.inputs:
                users.setdefault(value, []).append(op)
        self._choose_before(recurrent)
        self._choose_behind(kept, users, recurrent)

    def _choose_before(self, recurrent: set[Value]) -> None:
        """Products and reductions of what no carry has touched, with all that they are computed from; and views."""
        able: set[Value] = {item for item in self.body.inputs if item not in recurrent}
        above: dict[Op, list[Op]] = {}
        for op in self.live:
            if not recurrent.isdisjoint(op.operands) or not (can_stack(op) or self._is_fixed(op)):
                continue
            if all(value in able for value in op.inputs):
                able.update(op.results)
                above[op] = [value.op for value in op.inputs if value.op is not None]
        free = {op for op in above if _below_views(op.results[0]).op is None}  # views of what comes from outside
        stack_ = [op for op in above if op in free or _is_heavy(op) or not (self.next or self.sums)]
        while stack_:
            op = stack_.pop()
            if op not in self.moved:
                self.moved.add(op)
                stack_.extend(above[op])

    def _is_fixed(self, op: Op) -> bool:
        """Every turn computes the same."""
        return get(op.name).kind is Kind.CREATION

    def _choose_behind(self, kept: set[Value], users: dict[Value, list[Op]], recurrent: set[Value]) -> None:
        """Products and reductions that no carry needs, with all that is computed from them."""
        candidates: set[Op] = set()
        alive = set(self.live)
        for op in reversed(self.live):
            behind = all(user in candidates or user not in alive for v in op.results for user in users.get(v, ()))
            if behind and kept.isdisjoint(op.results) and can_stack(op):
                candidates.add(op)
        for op in self.live:
            if op in candidates and op not in self.moved:
                behind = any(value.op in self.moved and value in recurrent for value in op.inputs)
                if behind or (_is_heavy(op) and not recurrent.isdisjoint(op.operands)):
                    self.moved.add(op)

    # writing

    def _stack_of(self, value: Value) -> Value:
        """The value for all turns; one that is the same in all of them is repeated."""
        found = self._given(value)
        assert isinstance(found, Stacked)
        if found.varies:
            return found.value
        return self.b.op("expand", found.value, shape=(self.length, *found.value.shape))

    def _given(self, item: Value | Literal) -> Given:
        if not isinstance(item, Value):
            return item
        found = self.known.get(item)
        if found is not None:
            return found
        op = item.op
        assert op is not None and (op in self.moved or op.name in _VIEWS), "a value that the loop does not give"
        given = [self._given(operand) for operand in op.operands]
        if any(isinstance(part, Stacked) and part.varies for part in given):
            found = Stacked(stack(self.b, op, given, self.length), True)
        else:
            plain = [part.value if isinstance(part, Stacked) else part for part in given]
            found = Stacked(self.b.op(op.name, *plain, **op.attrs), False)
        self.known[item] = found
        return found

    def _before(self) -> None:
        """What is needed of before the loop by what stays in it."""
        recurrent: set[Value] = set(self.next) | set(self.sums)
        wanted: list[Value] = [*self.next.values(), *self.shown]
        for op in self.live:
            if not recurrent.isdisjoint(op.operands):
                recurrent.update(op.results)
            if op not in self.moved:
                wanted += op.inputs
        for value in dict.fromkeys(wanted):
            if value.op in self.moved and value not in recurrent:
                self._given(value)

    def _loop(self) -> list[Value]:
        """The new loop: what has not moved. Its results, or none when nothing is left of it."""
        summed = [value for term in self.sums.values() for value in _below_views(term).op.inputs]  # type: ignore[union-attr]
        for value in dict.fromkeys([*self.shown, *summed, *self._read_by_moved()]):
            self._stack_in_loop(value)
        values = [*self.next.values(), *self.stacks]
        if not values:
            return []
        outside = {value: item for value, item in self.known.items() if value.op is not None}
        body = Graph(self.body.name)
        new: dict[Value, Value] = {}
        used = self._used(values, outside)
        carries = [_input(body, new, item) for item in self.next]
        pairs = [(value, self.known[value]) for value in [*self.sequences, *self.fixed, *outside] if value in used]
        items = [pair for pair in pairs if pair[1].varies]
        fixed = [pair for pair in pairs if not pair[1].varies]
        for value, _ in (*items, *fixed):
            _input(body, new, value)
        for op in self.live:
            if not used.isdisjoint(op.results) and op.results[0] not in new:
                _copy(body, new, op)
        body.outputs = [Output(new[value]) for value in values]
        EliminateDeadCode().run(body, self.ctx)
        operands = [*(self.initial[item] for item in self.next), *(given.value for _, given in (*items, *fixed))]
        attrs = {
            "carries": len(carries), "sequences": len(items), "length": self.length,
            "reverse": self.op.attrs["reverse"], "body": body,
        }  # fmt: skip
        return list(self.b.multi("scan", operands, attrs).results)

    def _used(self, values: Sequence[Value], outside: dict[Value, Stacked]) -> set[Value]:
        """What the values are computed from, back to what comes from outside."""
        found = set(values)
        for op in reversed(self.live):
            if any(value in found and value not in outside for value in op.results):
                found.update(op.inputs)
        return found

    def _read_by_moved(self) -> list[Value]:
        """Operands of what is done behind the loop."""
        return [value for op in self.live if op in self.moved for value in op.inputs]

    def _stack_in_loop(self, value: Value) -> None:
        """Have the loop stack what is needed of it for `value`."""
        if value in self.known or value in self.stacks:
            return
        op = value.op
        if op is not None and (op in self.moved or (op.name in _VIEWS and op.inputs)):
            for inner in op.inputs:
                self._stack_in_loop(inner)
            return
        self.stacks.append(value)

    # sums over turns

    def _sum(self, term: Value) -> Value:
        """The sum of a term over all turns."""
        op = term.op
        assert op is not None
        if op.name in _VIEWS:
            return self.b.op(op.name, self._sum(op.operands[0]), **op.attrs)  # type: ignore[arg-type]
        if op.name == "matmul":
            return self._sum_of_products(op)
        dims = op.attrs["dims"]
        (operand,) = op.inputs
        dims = (0, *(dim + 1 for dim in dims))
        total = self.b.op("sum", self._stack_of(operand), **{**op.attrs, "dims": dims})
        return self.b.op("reshape", total, shape=term.shape) if op.attrs["keepdim"] else total

    def _sum_of_products(self, op: Op) -> Value:
        """The sum over t of a_t b_t is one product, of rows as long as all turns together; of a_t b, one of the sum."""
        a, b = op.operands
        assert isinstance(a, Value) and isinstance(b, Value)
        for left, right in ((a, b), (b, a)):
            fixed = self._given(right)
            if isinstance(fixed, Stacked) and not fixed.varies:
                total = self.b.op("sum", self._stack_of(left), dims=(0,), keepdim=False)
                factors = (total, fixed.value) if left is a else (fixed.value, total)
                return self.b.op("matmul", *factors)
        rows, inner = a.shape
        left = self._stack_of(a)
        wide = self.b.op("reshape", self.b.op("permute", left, dims=(1, 0, 2)), shape=(rows, self.length * inner))
        high = self.b.op("reshape", self._stack_of(b), shape=(self.length * inner, b.shape[1]))
        return self.b.op("matmul", wide, high)


def _is_heavy(op: Op) -> bool:
    return get(op.name).kind in (Kind.CONTRACTION, Kind.REDUCTION)


def _below_views(value: Value) -> Value:
    while value.op is not None and value.op.name in _VIEWS:
        value = value.op.operands[0]  # type: ignore[assignment]
    return value


def _input(body: Graph, new: dict[Value, Value], like: Value) -> Input:
    made = Input(f"in{len(body.inputs)}", like.type, Role.ARG, f"in{len(body.inputs)}")
    body.inputs.append(made)
    new[like] = made
    return made


def _copy(body: Graph, new: dict[Value, Value], op: Op) -> None:
    operands = [new[item] if isinstance(item, Value) else item for item in op.operands]
    names = [value.name for value in op.results]
    twin = Op(op.name, operands, op.attrs, [value.type for value in op.results], op.location, names)
    twin.origin = op.origin
    for old, made in zip(op.results, twin.results, strict=True):
        made.strides = old.strides
        new[old] = made
    body.ops.append(twin)
