"""The turns of an unrolled loop: what each operand of its body is, from turn to turn.

    kind of operand        in turn t it is
    Inner                  what op `position` of turn t gives
    Carried                what op `position` of turn t - 1 gives; in the first turn the initial value
    Fixed                  one value from before the loop
    Item                   what an op of turn `first + step * t` of an earlier loop gives, or part t of a tensor

A loop of which an operand is none of these, in some turns at either end, is made shorter by those; when too little is
left it stays unrolled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from graphc.ir.graph import Op, Value
from graphc.ir.types import HOST
from graphc.ops.extern import effect
from graphc.ops.registry import get
from graphc.passes.repeats import LOOSE, Run


class Place(NamedTuple):
    """Result `result` of op `position` of the body."""

    position: int
    result: int


@dataclass(frozen=True)
class Inner:
    place: Place


@dataclass(frozen=True)
class Carried:
    place: Place
    initial: Value


@dataclass(frozen=True)
class Fixed:
    value: Value


@dataclass(frozen=True)
class Item:
    """What turn `first + step * t` of loop number `loop` gives at `place`."""

    loop: int
    place: Place
    first: int
    step: int


Slot: TypeAlias = "Inner | Carried | Fixed | Item | None"
"""An operand of the body; None for a literal."""


@dataclass(frozen=True)
class Part:
    """A slice, of a value from before the loop, that moves on from turn to turn.

    Args:
        first: where it starts in the first turn.
        move: by how much it moves from turn to turn.
    """

    value: Value
    dim: int
    first: int
    move: int
    size: int


@dataclass(frozen=True)
class Gathered:
    """Pieces that each turn puts into another part of one tensor, which nothing reads before the end.

    Args:
        initial: the tensor before the first turn.
        source: what a turn puts there.
        adds: it is added to what is there, else it replaces that.
        at: the op of the body that gives the whole tensor.
    """

    initial: Value
    source: Slot
    dim: int
    first: int
    move: int
    size: int
    adds: bool
    at: int


@dataclass
class Turns:
    """A loop, found in the ops `start` to `start + period * count`.

    Attributes:
        slots: per op of the body its operands.
        fixed: positions of ops that give the same in every turn.
        parts, gathered: by position.
        skipped: positions whose ops are done by what is gathered.
        shown: values that are needed outside the loop, and of which turns.
    """

    number: int
    start: int
    period: int
    count: int
    slots: list[list[Slot]] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)
    parts: dict[int, Part] = field(default_factory=dict)
    gathered: dict[int, Gathered] = field(default_factory=dict)
    skipped: set[int] = field(default_factory=set)
    shown: dict[Place, set[int]] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        return self.start + self.period * self.count


class _Shorter(Exception):
    """The pattern holds for turns `low` to `high` only."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high


class _No(Exception):
    """There is no loop here."""


class Finder:
    """Reads runs of ops as loops.

    Args:
        ops: of the graph.
        users: for each value the ops that read it.
        ends: values that outputs and writes need.
        least: turns from which on a loop is one.
    """

    def __init__(self, ops: Sequence[Op], users: Mapping[Value, list[Op]], ends: set[Value], least: int) -> None:
        self.ops, self.users, self.ends, self.least = ops, users, ends, least
        self.number = {op: at for at, op in enumerate(ops)}
        self.loops: list[Turns] = []
        self.owner: list[Turns | None] = [None] * len(ops)

    def find(self, run: Run) -> Turns | None:
        """The loop that a run of ops is, or None. It is known to later ones from now on."""
        start, count = self._cut(run)
        for _ in range(12):
            if count < self.least:
                return None
            turns = Turns(len(self.loops), start, run.period, count)
            try:
                _Reader(self, turns).read()
            except _Shorter as shorter:
                start, count = start + shorter.low * run.period, shorter.high - shorter.low
                continue
            except _No:
                return None
            self.loops.append(turns)
            for at in range(turns.start, turns.stop):
                self.owner[at] = turns
            return turns
        return None

    def _cut(self, run: Run) -> tuple[int, int]:
        """Where a turn begins: where the fewest values go on from one turn to the next, to the fewest readers there.

        Among equals it is where most of these are stacked in any case, then where most turns are whole.
        """
        period, spare = run.period, run.length % run.period
        middle = run.start + run.length // period // 2 * period
        costs = [[0, 0, 0] for _ in range(period)]
        for at in range(middle - period, middle):
            for value in self.ops[at].results:
                places = [self.number[user] for user in self.users[value]]
                near = [place for place in places if place < at + 2 * period]
                is_stacked = len(near) < len(places) or value in self.ends
                for cut in range(at + 1, min(max(near, default=at), at + period) + 1):
                    cost = costs[(cut - run.start) % period]
                    cost[0] += 1
                    cost[1] += sum(place >= cut for place in near)
                    cost[2] += not is_stacked
        # starting later than the spare ops allow costs a turn, which is done outside the loop
        best = min(range(period), key=lambda phase: (costs[phase], phase > spare, phase))
        return run.start + best, (run.length - best) // period

    def where(self, value: Value) -> tuple[Turns, int, Place] | None:
        """The loop, turn and place that a value comes from; None when it comes from no loop."""
        at = -1 if value.op is None else self.number.get(value.op, -1)  # -1: an input, or made by a pass
        turns = self.owner[at] if at >= 0 else None
        if turns is None or value.op is None:
            return None
        turn, position = divmod(at - turns.start, turns.period)
        return turns, turn, Place(position, value.op.results.index(value))

    def settled(self, value: Value) -> Value:
        """The value, or for one that is the same in every turn of its loop that of the first turn."""
        found = self.where(value)
        if found is None or found[2].position not in found[0].fixed:
            return value
        turns, _, place = found
        return self.ops[turns.start + place.position].results[place.result]


def _understood(op: Op) -> bool:
    """A pure op on tensors that kernels or products can do."""
    definition = get(op.name)
    known = op.name == "matmul" or definition.lower is not None or definition.expand is not None
    return known and op.name != "foreach" and not effect(op) and all(value.type.device != HOST for value in op.results)


class _Reader:
    """Reads one run as one loop."""

    def __init__(self, finder: Finder, turns: Turns) -> None:
        self.finder, self.turns = finder, turns
        self.ops, self.number = finder.ops, finder.number
        self.middle = turns.count // 2
        self.low, self.high = 0, turns.count
        self._moves: dict[int, tuple[int, int, int]] = {}  # by position: dim, first, move

    def read(self) -> None:
        turns = self.turns
        for position in range(turns.period):
            column = self.ops[turns.start + position : turns.stop : turns.period]
            op = column[self.middle]
            if not _understood(op):
                raise _No
            slots = [self._slot([other.operands[k] for other in column]) for k in range(len(op.operands))]
            turns.slots.append(slots)
            self._move(position, column, slots)
            if position not in turns.parts and position not in turns.gathered:
                plain = all(slot is None or isinstance(slot, Fixed) for slot in slots)
                if plain and position not in self._moves:
                    turns.fixed.add(position)
        if self.low > 0 or self.high < turns.count:
            raise _Shorter(self.low, self.high)
        self._gather()
        self._show()

    # operands

    def _slot(self, values: list[Any]) -> Slot:
        turns, middle = self.turns, self.middle
        value = values[middle]
        if not isinstance(value, Value):
            return None
        at = -1 if value.op is None else self.number[value.op]
        if turns.start <= at < turns.stop:
            turn, position = divmod(at - turns.start, turns.period)
            assert value.op is not None
            return self._own(values, Place(position, value.op.results.index(value)), middle - turn)
        return self._other(values)

    def _own(self, values: list[Value], place: Place, lag: int) -> Slot:
        turns = self.turns
        made = [op.results[place.result] for op in self.ops[turns.start + place.position : turns.stop : turns.period]]
        if place.position in turns.fixed:
            first = made[0]
            own = set(made)
            self._hold(lambda t: values[t] in own)
            return Fixed(first)
        if lag == 0:
            self._hold(lambda t: values[t] is made[t])
            return Inner(place)
        if lag != 1:
            raise _No
        self._hold(lambda t: t == 0 or values[t] is made[t - 1])
        initial = values[0]
        at = -1 if initial.op is None else self.number[initial.op]
        if self.low == 0 and (turns.start <= at or initial.type != made[0].type):
            self.low = 1
        return Carried(place, initial)

    def _other(self, values: list[Value]) -> Slot:
        finder, middle = self.finder, self.middle
        settled = [finder.settled(value) for value in values]
        if settled[middle] is settled[middle - 1]:
            value = settled[middle]
            self._hold(lambda t: settled[t] is value)
            return Fixed(value)
        here, before = finder.where(values[middle]), finder.where(values[middle - 1])
        if here is None or before is None or here[0] is not before[0] or here[2] != before[2]:
            raise _No
        loop, turn, place = here
        step = turn - before[1]
        if abs(step) != 1 or loop.number == self.turns.number or values[middle].type.device == HOST:
            raise _No
        first = turn - step * middle
        made = self.ops[loop.start + place.position : loop.stop : loop.period]

        def holds(t: int) -> bool:
            source = first + step * t
            return 0 <= source < loop.count and values[t] is made[source].results[place.result]

        self._hold(holds)
        return Item(loop.number, place, first, step)

    def _hold(self, holds: Callable[[int], bool]) -> None:
        """Keep the turns around the middle one for which something holds."""
        middle = self.middle
        if not holds(middle):
            raise _No
        low = middle
        while low > self.low and holds(low - 1):
            low -= 1
        high = middle + 1
        while high < self.high and holds(high):
            high += 1
        self.low, self.high = low, high

    # attributes that move on

    def _move(self, position: int, column: Sequence[Op], slots: list[Slot]) -> None:
        """Note how a slice, an update or a padding moves on; one that stays where it is is an op like any other."""
        name = column[0].name
        if name not in LOOSE:
            return
        key = LOOSE[name][0]
        starts = [op.attrs[key] if name != "slice" else (op.attrs[key],) for op in column]
        here, before = starts[self.middle], starts[self.middle - 1]
        if not all(isinstance(start, int) for start in (*here, *before)):
            raise _No
        moved = [dim for dim, (a, b) in enumerate(zip(here, before, strict=True)) if a != b]
        if not moved:
            self._hold(lambda t: starts[t] == here)
            return
        if len(moved) > 1:
            raise _No
        (dim,) = moved
        move = here[dim] - before[dim]
        first = here[dim] - move * self.middle

        def holds(t: int) -> bool:
            return starts[t] == (*here[:dim], first + move * t, *here[dim + 1 :])

        self._hold(holds)
        if name != "slice":
            self._moves[position] = (dim, first, move)
            return
        op, slot = column[self.middle], slots[0]
        dim, size = op.attrs["dim"], op.result.shape[op.attrs["dim"]]
        if not isinstance(slot, Fixed) or not isinstance(size, int):
            raise _No
        if size != 1 and (abs(move) != size or op.attrs["step"] != 1):
            raise _No
        self.turns.parts[position] = Part(slot.value, dim, first, move, size)

    def _gather(self) -> None:
        """Updates and paddings that move on are right only as pieces of one tensor that is read at the end."""
        for position, (dim, first, move) in self._moves.items():
            op = self.ops[self.turns.start + self.middle * self.turns.period + position]
            slots = self.turns.slots[position]
            if op.name == "update_slice":
                size = op.operands[1].shape[dim]  # type: ignore[union-attr]
                plain = all(step == 1 for step in op.attrs["steps"]) and len(slots) == 2
                whole, source, at, adds = slots[0], slots[1], position, False
            else:
                size = op.operands[0].shape[dim]  # type: ignore[union-attr]
                at = self._adder(op, position)
                inner = self.turns.slots[at]
                whole = inner[1] if inner[0] == Inner(Place(position, 0)) else inner[0]
                source, adds = slots[0], True
                plain = op.attrs["value"] == 0
                self.turns.skipped.add(position)
            if (
                not plain
                or not isinstance(size, int)
                or not isinstance(whole, Carried)
                or whole.place != Place(at, 0)
                or abs(move) != size
            ):
                raise _No
            self._only_read_at_the_end(at)
            self.turns.skipped.add(at)
            self.turns.gathered[at] = Gathered(whole.initial, source, dim, first, move, size, adds, at)

    def _adder(self, op: Op, position: int) -> int:
        """The position of the addition that alone reads a padding."""
        users = self.finder.users[op.result]
        if len(users) != 1 or users[0].name != "add" or op.result in self.finder.ends:
            raise _No
        turn, at = divmod(self.number[users[0]] - self.turns.start, self.turns.period)
        if turn != self.middle or position >= at:
            raise _No
        return at

    def _only_read_at_the_end(self, position: int) -> None:
        turns = self.turns
        column = self.ops[turns.start + position : turns.stop : turns.period]
        for turn, op in enumerate(column[:-1]):
            if self.finder.users[op.result] != [column[turn + 1]] or op.result in self.finder.ends:
                raise _No

    # results

    def _show(self) -> None:
        turns, finder = self.turns, self.finder
        for position in range(turns.period):
            if position in turns.fixed:
                later = self.ops[turns.start + position + turns.period : turns.stop : turns.period]
                if any(value in finder.ends for op in later for value in op.results):
                    raise _No  # each of them is a tensor of its own to the user
                continue
            for turn, op in enumerate(self.ops[turns.start + position : turns.stop : turns.period]):
                for number, value in enumerate(op.results):
                    if value in finder.ends or any(
                        not turns.start <= finder.number[user] < turns.stop for user in finder.users[value]
                    ):
                        turns.shown.setdefault(Place(position, number), set()).add(turn)
