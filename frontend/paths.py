"""Decisions on data: where a captured function is cut, and what each part hands to the next.

When Python looks at a number that tensors hold, or an operator's result has a shape that data decide, the run of the
function stops there. What has been recorded so far becomes a program of its own, the prefix. Once it has run, the
answer is known; the function is run again from its start with the answers so far, and what it records after the last
of them is the next program, which starts from the values the earlier ones hand over:

    y = f(x)                 prefix:       x -> y.sum() > 0, y
    if y.sum() > 0:          answer True
        y.mul_(2)            continuation: y -> y * 2
    return y

No program writes to the user's tensors before the last one of a path does, so a call may still be run eager from its
start at any of these places, once the random state is put back.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import torch

from graphc.frontend.aten import layout
from graphc.frontend.cutting import Cutter, Names, cheap_source
from graphc.frontend.functionalize import dynamic_links
from graphc.frontend.locations import is_user_code
from graphc.frontend.loop_state import Known, loop_state
from graphc.frontend.segments import (
    LIST,
    NUMBER,
    SHAPE,
    Diverged,
    Oracle,
    Question,
    Reference,
    Segment,
    Step,
    Stop,
    TensorSpec,
    answer_name,
    map_leaves,
)
from graphc.ir.graph import Graph, Input, Op, Output, Role, Value
from graphc.ir.types import Location, i64
from graphc.ops.extern import effect

if TYPE_CHECKING:
    from graphc.frontend.functionalize import Storage, TensorState
    from graphc.frontend.host import HostNode
    from graphc.frontend.recorder import Recorder

OTHER_PATH = "a decision on data comes out in another way"
_CHECKED = 32
"""Decisions that one program may check."""
_LOOKED_AT = 8
"""Turns of a loop whose states are compared: one that has not closed by then counts, or keeps what it makes."""
_DEPTH = 32
"""Arithmetic of Python numbers is compared down to this depth."""


class Decider:
    """The decisions of one run of the function.

    Args:
        recorder: the capture.
        steps: decisions of earlier runs, answered; those answered in this run are added.
        oracle: answers further ones; None: the run ends at the first.

    Attributes:
        segment: the program up to the first decision without an answer, once that is met.
        outermost: code of the frame that calls the function.
    """

    def __init__(self, recorder: Recorder, steps: list[Step], oracle: Oracle | None = None) -> None:
        self._recorder, self._steps, self._oracle = recorder, steps, oracle
        self._taken = 0
        self._start = 0  # first op of the program being recorded
        self._known: dict[int, Any] = {}
        self._identities: dict[Any, int] = {}
        self._constant_values: dict[Value, bool | int | float] = {}
        self._answers: list[tuple[Value, Any]] = []
        self._turns: Counter[tuple[int, int]] = Counter()
        self._decisions: list[tuple[Value, Any, Location]] = []
        self._one_program = True
        self.outermost: CodeType | None = None
        self.names: Names = {}
        self._values: dict[str, Value] = {}  # by name, up to the last decision
        self.segment: Segment | None = None

    @property
    def taken(self) -> int:
        """Decisions met so far, in this run."""
        return self._taken

    @property
    def all_met(self) -> bool:
        """There are answered decisions, and this run has met them all."""
        return 0 < self._taken == len(self._steps)

    def drop_question(self) -> None:
        """What asked the last question has been given up, and nothing is to be answered."""
        self.segment = None

    def number(self, node: HostNode) -> bool | int | float:
        """The value of a traced number that Python looks at.

        Raises:
            Stop: it has to be computed first.
        """
        key = self._identity(node.value)
        if key not in self._known:
            article = "an" if node.kind is int else "a"
            what = f"{article} {node.kind.__name__} that Python looks at"
            self._known[key] = self._ask(NUMBER, what, [node.value], python=node.kind)
            self._answers.append((node.value, self._known[key]))
        answer: bool | int | float = node.kind(self._known[key])
        return answer

    def _identity(self, value: Value, depth: int = 0) -> int:
        """The same for two host values that are computed in the same way from the same tensor."""
        found = self._identities.get(value)
        if found is not None:
            return found
        op = value.op
        key: Any = value
        if op is not None and (op.name in ("item", "reshape") or value.type.is_host) and depth < _DEPTH:
            operands = (
                self._identity(o, depth + 1) if isinstance(o, Value) else (type(o), repr(o)) for o in op.operands
            )
            key = (op.name, repr(op.attrs), *operands)
        number = self._identities.setdefault(key, len(self._identities))
        self._identities[value] = number
        return number

    def elements(self, value: Value) -> Any:
        """All elements of a tensor as Python numbers, nested as `tolist()` gives them.

        Raises:
            Stop: they have to be computed first.
        """
        return self._ask(LIST, "the elements of a tensor", [value])

    def results(self, func: Any, operands: list[Value], args: Any, kwargs: Any) -> Any:
        """Stand-ins for what an operator returns whose result's shape depends on data.

        Raises:
            Stop: it has to be run first.
        """
        what = f"the shape of a result of {func}"
        answer = self._ask(SHAPE, what, operands, op=str(func), args=args, kwargs=kwargs)
        return map_leaves(answer, _empty)

    def answered(self, op: Op) -> None:
        """The op of a call that was asked about is in the graph: its results are handed over."""
        step = self._taken - 1
        for number, result in enumerate(op.results):
            self.names[result] = (answer_name(step, number), result.strides)  # type: ignore[assignment]  # static
        self._begin()

    def _ask(self, kind: str, what: str, operands: list[Value], **call: Any) -> Any:
        if self._recorder.forks is not None:
            self._recorder.forks.give_up()
        if self.segment is not None:
            raise Stop  # the user's code caught the first one
        location = self._recorder.locator.here()
        place = _place()
        self._turns[place] += 1
        if self._taken == len(self._steps):
            self._steps.append(self._answer(self._cut(kind, what, location, operands, call, self._turns[place])))
            step = self._steps[-1]
        else:
            step = self._steps[self._taken]
            self._check(step.segment, (kind, tuple(v.name for v in operands), repr(call)), location)
        for op in self._recorder.graph.ops[self._start :]:
            self._values.update((result.name, result) for result in op.results)
        for name in step.segment.outputs:  # of this program, or made again by it
            value = self._values[name]
            self.names[value] = (name, dense_strides(value))
        self._begin()
        self._taken += 1
        self._one_program = self._one_program and kind == NUMBER and _is_checkable(step.answer)
        self._decisions.append((operands[0], step.answer, location))
        if kind == NUMBER and (source := _source(operands[0])) is not None:
            self._constant_values[source] = step.answer
        return step.answer

    def _answer(self, segment: Segment) -> Step:
        """The next decision, taken now.

        Raises:
            Stop: it is not to be.
        """
        recorder = self._recorder
        known = len(recorder.bindings)
        if self._oracle is not None and len(recorder.graph.inputs) == known:  # else there are cotangents
            step = self._oracle.answer(segment, known, len(recorder.sources.modules))
            if step is not None:
                return step
        self.segment = segment
        raise Stop

    def _begin(self) -> None:
        """The next program begins here."""
        self._start = len(self._recorder.graph.ops)
        self._recorder.imp.keys.restart()

    def add_checks(self) -> int:
        """Have the whole graph check that decisions come out as in this run, so that it can run as one program.

        Returns:
            How many outputs that has added, one per decision; 0 where there are answers of other kinds, or too many.
        """
        if not self._one_program or len(self._decisions) > _CHECKED:
            return 0
        builder, graph = self._recorder.builder, self._recorder.graph
        for value, answer, location in self._decisions:
            builder.location = location
            if value.op is not None and value.op.name == "item":
                (number,) = value.op.inputs
            else:
                number = builder.op("to_tensor", value, dtype=value.dtype, device="cpu")
            if number.dtype.kind == "bool":
                number = builder.op("cast", number, dtype=i64)
            expected = float(answer) if number.dtype.is_float else int(answer)
            attrs = {"low": expected, "high": expected, "error": "RuntimeError", "message": OTHER_PATH}
            graph.outputs.append(Output(builder.op("checked", number, **attrs)))
        return len(self._decisions)

    # replays

    def _keys(self, question: Any, location: Location) -> tuple[tuple[Any, Location], ...]:
        ops = self._recorder.graph.ops[self._start :]
        return (*((_op_key(op), op.location) for op in ops), (question, location))

    def _check(self, segment: Segment, question: Any, location: Location) -> None:
        """The run has recorded what the run before it did.

        Raises:
            Diverged: something else.
        """
        now = self._keys(question, location)
        for (theirs, _), (mine, where) in zip(segment.keys, now, strict=False):
            if mine != theirs:
                raise Diverged(where, str(theirs[0]), str(mine[0]))
        if len(now) != len(segment.keys):
            raise Diverged(location, f"{len(segment.keys) - 1} operations", f"{len(now) - 1}")

    def check_end(self) -> None:
        """After the run: all decisions were met again, and Python data made the same tensors.

        Raises:
            Diverged: not so.
        """
        if self._taken < len(self._steps):
            missing = self._steps[self._taken].segment.question
            assert missing is not None
            raise Diverged(missing.location, "a decision on data", "none")
        if self._steps:
            for before, now in zip(self._steps[-1].segment.constants, self._constants(), strict=False):
                if not _same_data(before, now):
                    raise Diverged(self._recorder.locator.here(), "a tensor made from Python data", "another one")

    def _constants(self) -> tuple[torch.Tensor, ...]:
        pairs = zip(self._recorder.graph.inputs, self._recorder.bindings, strict=False)  # cotangents have no binding
        return tuple(b.tensor for value, b in pairs if value.role is Role.CONST and b.tensor is not None)

    # cutting

    def _cut(self, kind: str, what: str, location: Location, operands: list[Value], call: Any, turn: int) -> Segment:
        """The program up to here; `turn` counts how often Python has come by here to decide."""
        graph = self._recorder.graph
        cutter = Cutter(graph, self._start, self.names, self._constant_values)
        cutter.body()
        live = [
            *(value for value in self._live() if value not in self._constant_values),
            *self._recorder.imp.keys.live(),
        ]
        if kind == NUMBER and (source := _source(operands[0])) is not None:
            live = [value for value in live if value is not source]  # a constant once the answer is known
        wanted = [v for v in dict.fromkeys((*operands, *live)) if v not in self.names and not isinstance(v, Input)]
        for value in wanted:
            cutter.hand_over(value, dense_strides(value))
        keep = frozenset(self.names[v][0] for v in (*live, *operands) if v in self.names)
        names = tuple(value.name for value in wanted)
        places = tuple(self._reference(v) for v in operands)
        question = Question(kind, what, location, places, **call)
        key = (kind, tuple(v.name for v in operands), repr(call))
        state = None
        if self.outermost is not None and 1 < turn <= _LOOKED_AT:
            handed_over = {v: self.names[v][0] if v in self.names else v.name for v in (*wanted, *live, *operands)
                           if v in self.names or not isinstance(v, Input)}  # fmt: skip
            state = loop_state(
                self._recorder,
                Known(
                    handed_over, self._constant_values, self._answers, ((kind, repr(call)), tuple(operands)),
                    frozenset(graph.ops[self._start :]),
                ),
                self.outermost,
            )  # fmt: skip
        return Segment(
            cutter.twin, cutter.feeds(), names, keep, question, _is_random(cutter.twin), self._keys(key, location),
            self._constants(), state,
        )  # fmt: skip

    def _reference(self, value: Value) -> Reference:
        if isinstance(value, Input):
            return self._recorder.graph.inputs.index(value)
        return self.names[value][0] if value in self.names else value.name

    def last(self) -> Segment:
        """The last program of the path, once the graph has its writes and outputs."""
        cutter = Cutter(self._recorder.graph, self._start, self.names, self._constant_values)
        cutter.body()
        cutter.finish()
        return Segment(cutter.twin, cutter.feeds(), random=_is_random(cutter.twin))

    def _live(self) -> list[Value]:
        """Values that later code can reach and that cannot be had again by reading them at other indices."""
        recorder = self._recorder
        recorder.forget_dead()
        states = [tensor.state for ref in recorder.made if (tensor := ref()) is not None]
        storages: dict[Storage, None] = dict.fromkeys((*recorder.storages, *(s.storage for s in states)))
        found: dict[Value, None] = {}
        for storage in storages:
            _add(found, cheap_source(storage.base, found, self.names))
        places = (link.index for state in states for link in dynamic_links(state))
        for value in (*places, *_cached(states)):
            _add(found, cheap_source(value, found, self.names))
        for ref in recorder.numbers:
            node = ref()
            if node is not None:
                _add(found, cheap_source(node.value, found, self.names))
        return list(found)


def _add(found: dict[Value, None], value: Value | None) -> None:
    if value is not None:
        found[value] = None


def _cached(states: Iterable[TensorState]) -> Iterable[Value]:
    """Values of views that are known and current."""
    for state in states:
        view: TensorState | None = state
        while view is not None:
            if view.cached is not None and view.version == view.storage.version:
                yield view.cached
            view = view.parent


def dense_strides(value: Value) -> tuple[int, ...] | None:
    """How a value is laid out when it is handed over: as it asks to be, or contiguous (None)."""
    strides: tuple[int, ...] | None = value.strides  # type: ignore[assignment]  # static by construction
    return strides if strides is not None and layout.is_dense(value.shape, strides) else None  # type: ignore[arg-type]


def _source(number: Value) -> Value | None:
    """The tensor of one element that a host value was read from, where it is just that."""
    if number.op is None or number.op.name != "item":
        return None
    (tensor,) = number.op.inputs
    while tensor.op is not None and tensor.op.name == "reshape":
        (tensor,) = tensor.op.inputs
    plain = tensor.dtype.kind in ("bool", "int", "uint", "float") and tensor.strides is None
    return None if isinstance(tensor, Input) or not plain else tensor


def _place() -> tuple[int, int]:
    """Where in the innermost function of the user's Python is."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and not is_user_code(frame.f_code):
        frame = frame.f_back
    return (0, 0) if frame is None else (id(frame.f_code), frame.f_lasti)


def _is_checkable(answer: bool | int | float) -> bool:
    """Equal numbers are the same number: neither NaN, nor a zero, which has two signs."""
    return not isinstance(answer, float) or (math.isfinite(answer) and answer != 0.0)


def _op_key(op: Op) -> tuple[Any, ...]:
    operands = tuple(o.name if isinstance(o, Value) else (type(o).__name__, repr(o)) for o in op.operands)
    return (op.name, operands, repr(op.attrs), tuple((r.name, str(r.type)) for r in op.results))


def _is_random(graph: Graph) -> bool:
    return any(effect(op) == "random" for op in graph.ops)


def _empty(spec: Any) -> Any:
    if not isinstance(spec, TensorSpec):
        return spec
    with torch._C._DisableTorchDispatch():
        return torch.empty_strided(spec.shape, spec.strides, dtype=spec.dtype, device=spec.device)


def _same_data(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    return bool(torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))) or math.prod(a.shape) == 0
