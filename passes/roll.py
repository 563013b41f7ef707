"""Loops over time, which a capture unrolls, become loops again.

Source: the idea that a trace with a repeated part is a loop is that of trace compilers; loops over lists of ops are
found here as tandem repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from graphc.ir.graph import Builder, Graph, Input, Op, Output, Role, Value, Write
from graphc.ops.registry import Kind, get
from graphc.passes.base import PassContext, PassResult
from graphc.passes.dce import EliminateDeadCode
from graphc.passes.layout import int_shape
from graphc.passes.repeats import Run, find_runs, tokens_of
from graphc.passes.turns import Carried, Finder, Fixed, Gathered, Inner, Item, Part, Place, Slot, Turns

_ROUNDS = 3


@dataclass(frozen=True)
class RollLoops:
    """Repeated ops that differ only in what goes from turn to turn become one `scan`.

    Before (and so on for a number of turns):
        %0: f32[2, 3] = matmul(%h, %w)
        %1: f32[1, 2, 3] = slice(%x) {dim=0, start=0, stop=1, step=1}
        %2: f32[2, 3] = reshape(%1) {shape=[2, 3]}
        %3: f32[2, 3] = add(%0, %2)
        %4: f32[2, 3] = matmul(%3, %w)
        %5: f32[1, 2, 3] = slice(%x) {dim=0, start=1, stop=2, step=1}
    After:
        %6: f32[2, 3] = scan(%h, %x, %w) {carries=1, sequences=1, length=8, reverse=False}
          body graph loop(%c0: f32[2, 3] arg "c0", %s0: f32[2, 3] arg "s0", %i0: f32[3, 3] arg "i0") {
            %0: f32[2, 3] = matmul(%c0, %i0)
            %1: f32[2, 3] = add(%0, %s0)
            return %1
          }

    A turn may use what the turn before it gave, items of tensors at places that move evenly, and what the turns of an
    earlier loop gave, in their order or against it: the backward pass of a loop is a loop over what it saved. Turns at
    either end that differ are left as they are. Ops that are the same in every turn are done once; pieces that the
    turns put side by side into one tensor (the gradient of `x[:, t]`) are stacked and put there at the end.

    Args:
        at_least: turns from which on a loop is rolled.
        long: ops from which on also a loop without products or reductions is: a shorter one is one kernel when it
            stays unrolled.
    """

    at_least: int = 8
    long: int = 600
    name: ClassVar[str] = "roll-loops"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if len(graph.ops) < 2 * self.at_least:
            return PassResult(False)
        runs = find_runs(tokens_of(graph.ops), self.at_least)
        if not runs:
            return PassResult(False)
        finder = Finder(graph.ops, graph.uses(), graph.live_out(), self.at_least)
        self._find(finder, runs)
        if not finder.loops:
            return PassResult(False)
        _Roller(graph, ctx, finder).run()
        EliminateDeadCode().run(graph, ctx)  # pieces of what is one stack now
        return PassResult(True)

    def _find(self, finder: Finder, runs: Sequence[Run]) -> None:
        """Loops that do not overlap, longest first; in order, since later ones may stand on earlier ones."""
        failed: set[Run] = set()
        for _ in range(_ROUNDS):
            chosen: list[Run] = []
            free = [turns is None for turns in finder.owner]
            for run in runs:
                if run in failed or not self._worth(finder.ops, run):
                    continue
                for piece in _free_pieces(run, free, self.at_least):
                    chosen.append(piece)
                    free[piece.start : piece.start + piece.length] = [False] * piece.length
            found = False
            for run in sorted(chosen):
                if finder.find(run) is None:
                    failed.add(run)
                else:
                    found = True
            if not chosen or (not found and not failed.intersection(chosen)):
                return

    def _worth(self, ops: Sequence[Op], run: Run) -> bool:
        body = ops[run.start : run.start + run.period]
        if run.length >= self.long or all(get(op.name).kind is Kind.VIEW for op in body):
            return True
        return any(get(op.name).kind not in (Kind.POINTWISE, Kind.VIEW, Kind.CREATION) for op in body)


def _free_pieces(run: Run, free: list[bool], least: int) -> list[Run]:
    """The parts of a run that no other one has taken, those long enough."""
    if all(free[run.start : run.start + run.length]):
        return [run]
    found: list[Run] = []
    at = run.start
    stop = run.start + run.length
    while at < stop:
        if not free[at]:
            at += 1
            continue
        end = at
        while end < stop and free[end]:
            end += 1
        if end - at >= least * run.period:
            found.append(Run(at, run.period, end - at))
        at = end
    return found


class _Roller:
    """Writes a graph anew, with its loops rolled."""

    def __init__(self, graph: Graph, ctx: PassContext, finder: Finder) -> None:
        self.graph, self.ctx, self.finder = graph, ctx, finder
        self.builder = Builder(graph, ctx.infer)
        self.made: dict[Value, Value] = {}  # values of loops, as the new graph has them
        self.stacks: dict[tuple[int, Place], Value] = {}
        self.reverse: dict[int, bool] = {}
        self.reshaped: dict[Value, Value] = {}  # outside of loops -> what it is of a turn, in the old graph

    def run(self) -> None:
        ops, self.graph.ops = self.graph.ops, []
        starts = {turns.start: turns for turns in self.finder.loops}
        at = 0
        while at < len(ops):
            turns = starts.get(at)
            if turns is not None:
                self._roll(turns)
                at = turns.stop
                continue
            op = ops[at]
            self.builder.location = op.location
            if op.name == "concat" and len(op.operands) > 2:
                self._join(op)
            if op.name == "reshape" and self.finder.where(*op.inputs) is not None:
                self.reshaped[op.result] = next(iter(op.inputs))
            op.operands = [self.value(item) if isinstance(item, Value) else item for item in op.operands]
            self.graph.ops.append(op)
            at += 1
        graph = self.graph
        graph.outputs = [Output(self.value(item.value), item.view) for item in graph.outputs]
        graph.writes = [Write(item.target, self.value(item.value)) for item in graph.writes]

    # what stands for a value of the old graph

    def value(self, old: Value) -> Value:
        """The value in the new graph."""
        found = self.finder.where(old)
        if found is None:
            return old
        settled = self.finder.settled(old)
        made = self.made.get(settled)
        if made is not None:
            return made
        turns, turn, place = found
        item = self._item(turns, turn, place)
        item.strides = old.strides
        self.made[old] = item
        return item

    def _item(self, turns: Turns, turn: int, place: Place) -> Value:
        """What one turn gave, cut out of the stack."""
        at = self._index(turns, turn)
        stack = self.stacks[turns.number, place]
        part = self.builder.op("slice", stack, dim=0, start=at, stop=at + 1, step=1)
        return self.builder.op("reshape", part, shape=stack.shape[1:])

    def _index(self, turns: Turns, turn: int) -> int:
        """Where in a stack the value of a turn lies."""
        return turns.count - 1 - turn if self.reverse[turns.number] else turn

    def _join(self, op: Op) -> None:
        """Operands of a concat that are one value from many turns, perhaps reshaped, become the stack of them."""
        dim, operands = op.attrs["dim"], list(op.operands)
        places = [self._place_of(item) for item in operands]  # type: ignore[arg-type]
        joined: list[Value] = []
        at = 0
        while at < len(operands):
            end = at + 1
            here = places[at]
            step = 0
            while here is not None and end < len(operands):
                there = places[end]
                if there is None or there[0] is not here[0] or there[2] != here[2]:
                    break
                if operands[end].shape != operands[at].shape:  # type: ignore[union-attr]
                    break
                move = there[1] - places[end - 1][1]  # type: ignore[index]
                if abs(move) != 1 or (step and move != step):
                    break
                step, end = move, end + 1
            if here is None or end - at < 3 or here[2].position in here[0].fixed or (here[0].number, here[2]) not in (
                self.stacks
            ):  # fmt: skip
                joined.append(self.value(operands[at]))  # type: ignore[arg-type]
                at += 1
                continue
            stack = self._items(here[0], here[2], here[1], step, end - at, False)
            shape = (end - at, *int_shape(operands[at]))  # type: ignore[arg-type]
            if shape != stack.shape:
                stack = self.builder.op("reshape", stack, shape=shape)
            joined.append(self._side_by_side(stack, dim))
            at = end
        op.operands = list(joined)

    def _place_of(self, item: Value) -> tuple[Turns, int, Place] | None:
        """Where a value comes from, as is or reshaped outside of the loop."""
        return self.finder.where(self.reshaped.get(item, item))

    def _items(self, turns: Turns, place: Place, first: int, step: int, count: int, reverse: bool) -> Value:
        """A stack of what turns `first`, `first + step`, ... gave; in `reverse` order."""
        a, b = self._index(turns, first), self._index(turns, first + step * (count - 1))
        stack = self.stacks[turns.number, place]
        low, high = min(a, b), max(a, b) + 1
        if (low, high) != (0, stack.shape[0]):
            stack = self.builder.op("slice", stack, dim=0, start=low, stop=high, step=1)
        return self.builder.op("flip", stack, dims=(0,)) if (a > b) != reverse else stack

    def _side_by_side(self, stack: Value, dim: int) -> Value:
        """Items of a stack one after the other along a dim of theirs."""
        count, *shape = stack.shape
        order = (*range(1, dim + 1), 0, *range(dim + 1, len(shape) + 1))
        if dim:
            stack = self.builder.op("permute", stack, dims=order)
        shape[dim] = count * shape[dim]
        return self.builder.op("reshape", stack, shape=tuple(shape))

    # a loop

    def _roll(self, turns: Turns) -> None:
        ops = self.finder.ops
        for position in sorted(turns.fixed):
            op = ops[turns.start + position]
            if op.name == "reshape" and self.finder.where(*op.inputs) is not None:
                self.reshaped[op.result] = next(iter(op.inputs))
            op.operands = [self.value(item) if isinstance(item, Value) else item for item in op.operands]
            self.graph.ops.append(op)
            for result in op.results:
                self.made[result] = result
        _Loop(self, turns).write()


class _Loop:
    """Writes one loop as a scan."""

    def __init__(self, roller: _Roller, turns: Turns) -> None:
        self.roller, self.turns, self.finder = roller, turns, roller.finder
        self.builder = roller.builder
        self.sample = self.finder.ops[turns.start + turns.count // 2 * turns.period :][: turns.period]
        self.body = Graph("loop")
        self.carries: dict[Carried, Input] = {}
        self.items: dict[Item | int, Input] = {}  # a part by its position
        self.fixed: dict[Value, Input] = {}
        self.inner: dict[Place, Value] = {}

    def write(self) -> None:
        turns, roller = self.turns, self.roller
        reverse = roller.reverse[turns.number] = self._runs_backward()
        self._inputs()
        self._ops()
        carries = list(self.carries)
        kept = self._kept()
        gathered = list(turns.gathered.values())
        results = [self.inner[carry.place] for carry in carries]
        results += [self.inner[place] for place in kept]
        results += [self._operand(item.source) for item in gathered]
        self.body.outputs = [Output(value) for value in results]
        self.body.inputs = [*self.carries.values(), *self.items.values(), *self.fixed.values()]
        self.builder.location = self.sample[0].location
        operands = [roller.value(carry.initial) for carry in carries]
        operands += [self._sequence(item, reverse) for item in self.items]
        operands += [roller.value(value) for value in self.fixed]
        attrs = {
            "carries": len(carries), "sequences": len(self.items), "length": turns.count, "reverse": reverse,
            "body": self.body,
        }  # fmt: skip
        scan = self.builder.multi("scan", operands, attrs)
        last = self.finder.ops[turns.stop - turns.period : turns.stop]
        for carry, value in zip(carries, scan.results, strict=False):
            roller.made[last[carry.place.position].results[carry.place.result]] = value
        for place, value in zip(kept, scan.results[len(carries) :], strict=False):
            roller.stacks[turns.number, place] = value
        for item, value in zip(gathered, scan.results[len(carries) + len(kept) :], strict=True):
            roller.made[last[item.at].results[0]] = self._spread(item, value, last[item.at])

    def _runs_backward(self) -> bool:
        """Most sequences are met from their end to their start."""
        moves = [part.move for part in self.turns.parts.values()]
        seen: set[Item] = set()
        for slot in (slot for slots in self.turns.slots for slot in slots):
            if isinstance(slot, Item) and slot not in seen:
                seen.add(slot)
                moves.append(-slot.step if self.roller.reverse[slot.loop] else slot.step)
        return sum(1 if move < 0 else -1 for move in moves) > 0

    def _inputs(self) -> None:
        """One input of the body per carry, item and value from outside, by the kind of slot."""
        turns = self.turns
        for position, slots in enumerate(turns.slots):
            if position in turns.fixed or position in turns.parts:
                continue
            taken = turns.gathered.get(position)
            if taken is not None:
                slots = [taken.source]
            elif position in turns.skipped:
                continue
            for slot in slots:
                self._input(slot)

    def _input(self, slot: Slot) -> None:
        turns = self.turns
        if isinstance(slot, Carried) and slot not in self.carries:
            self.carries[slot] = _argument("c", len(self.carries), slot.initial)
            if slot.place.position in turns.fixed:  # what the ops before it saw in the first turn was another value
                op = self.finder.ops[turns.start + slot.place.position]
                self._input(Fixed(op.results[slot.place.result]))
                self.inner[slot.place] = self.fixed[op.results[slot.place.result]]
        elif isinstance(slot, Item) and slot not in self.items:
            loop = self.finder.loops[slot.loop]
            sample = self.finder.ops[loop.start + slot.place.position].results[slot.place.result]
            self.items[slot] = _argument("s", len(self.items), sample)
        elif isinstance(slot, Fixed) and slot.value not in self.fixed:
            self.fixed[slot.value] = _argument("i", len(self.fixed), slot.value)
        elif isinstance(slot, Inner) and slot.place.position in turns.parts and slot.place.position not in self.items:
            self.items[slot.place.position] = _argument("s", len(self.items), self.sample[slot.place.position].result)

    def _ops(self) -> None:
        turns = self.turns
        for position in turns.parts:  # a part that is only shown outside
            if Place(position, 0) in turns.shown or any(c.place.position == position for c in self.carries):
                self._input(Inner(Place(position, 0)))
            if position in self.items:
                self.inner[Place(position, 0)] = self.items[position]
        count = 0
        for position, op in enumerate(self.sample):
            if position in turns.fixed or position in turns.parts or position in turns.skipped:
                continue
            operands = [
                item if slot is None else self._operand(slot)
                for item, slot in zip(op.operands, turns.slots[position], strict=True)
            ]
            names = [str(count + number) for number in range(len(op.results))]
            count += len(names)
            twin = Op(op.name, operands, op.attrs, [value.type for value in op.results], op.location, names)
            twin.origin = op.origin
            for number, (old, new) in enumerate(zip(op.results, twin.results, strict=True)):
                new.strides = old.strides
                self.inner[Place(position, number)] = new
            self.body.ops.append(twin)

    def _operand(self, slot: Slot) -> Value:
        if isinstance(slot, Carried):
            return self.carries[slot]
        if isinstance(slot, Item):
            return self.items[slot]
        if isinstance(slot, Fixed):
            return self.fixed[slot.value]
        assert isinstance(slot, Inner)
        return self.inner[slot.place]

    def _kept(self) -> list[Place]:
        """What is stacked: what is needed of more turns than the last, or of the last and no carry."""
        turns = self.turns
        last = {turns.count - 1}
        carried = {carry.place for carry in self.carries}
        return [
            place
            for place, shown in turns.shown.items()
            if place.position not in turns.skipped and not (place in carried and shown == last)
        ]

    def _sequence(self, item: Item | int, reverse: bool) -> Value:
        """The tensor of which turn t sees an item."""
        turns, roller = self.turns, self.roller
        if isinstance(item, Item):
            return roller._items(self.finder.loops[item.loop], item.place, item.first, item.step, turns.count, reverse)
        return self._parts(turns.parts[item], reverse)

    def _parts(self, part: Part, reverse: bool) -> Value:
        b, count = self.builder, self.turns.count
        value = self.roller.value(part.value)
        low = min(part.first, part.first + part.move * (count - 1))
        step = abs(part.move) if part.size == 1 else 1
        stop = low + step * (count - 1) + 1 if part.size == 1 else low + count * part.size
        if (low, stop, step) != (0, value.shape[part.dim], 1):
            value = b.op("slice", value, dim=part.dim, start=low, stop=stop, step=step)
        shape = [*value.shape[: part.dim], count, part.size, *value.shape[part.dim + 1 :]]
        value = b.op("reshape", value, shape=tuple(shape))
        if part.dim:
            others = [dim for dim in range(len(shape)) if dim != part.dim]
            value = b.op("permute", value, dims=(part.dim, *others))
        return b.op("flip", value, dims=(0,)) if (part.move < 0) != reverse else value

    def _spread(self, item: Gathered, stack: Value, op: Op) -> Value:
        """Stacked pieces side by side, in the tensor they belong to."""
        b, count = self.builder, self.turns.count
        if (item.move < 0) != self.roller.reverse[self.turns.number]:
            stack = b.op("flip", stack, dims=(0,))
        pieces = self.roller._side_by_side(stack, item.dim)
        low = min(item.first, item.first + item.move * (count - 1))
        initial = self.roller.value(item.initial)
        sample = self.sample[item.at] if not item.adds else None
        starts = self._starts(item, sample)
        starts[item.dim] = low
        if sample is not None:
            value = b.op("update_slice", initial, pieces, starts=tuple(starts), steps=(1,) * len(starts))
        else:
            room = [a - s - p for a, s, p in zip(initial.shape, starts, pieces.shape, strict=True)]
            whole = b.op("pad", pieces, low=tuple(starts), high=tuple(room), value=0)
            value = b.op("add", initial, whole)
        value.strides = op.result.strides
        return value

    def _starts(self, item: Gathered, update: Op | None) -> list[int]:
        """Where the pieces of the sampled turn start, per dim."""
        if update is not None:
            return list(update.attrs["starts"])
        padded = next(
            inner for inner in self.sample[item.at].inputs if inner.op is not None and inner.op.name == "pad"
        )  # fmt: skip
        assert padded.op is not None
        return list(padded.op.attrs["low"])


def _argument(kind: str, number: int, like: Value) -> Input:
    name = f"{kind}{number}"
    return Input(name, like.type, Role.ARG, name)
