"""Updates of many parameters, captured once: the loops of torch.optim over lists of tensors.

`torch.optim` keeps the arithmetic of an optimizer in functions over lists, `_single_tensor_adam(params, grads,
exp_avgs, ...)`, which do the same for every parameter. During a capture such a function runs for one parameter of each
kind (dtypes, device, which states there are); what it recorded becomes the body of one `foreach` op over all
parameters of that kind. Where that body is no elementwise arithmetic (means over rows, products, decisions on data),
the function runs as it stands for all others.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from graphc.frontend.aten import layout
from graphc.frontend.aten.views import select
from graphc.frontend.forks import LIMIT, Forks, Run, Unforked, chosen, forking
from graphc.frontend.functionalize import TensorState
from graphc.frontend.traced import TracedTensor
from graphc.ir.graph import Builder, Graph, Op, Operand, Output, Role, Value
from graphc.ir.types import HOST, TensorType
from graphc.ops import infer
from graphc.ops.foreach import NUMBER, WHOLE
from graphc.ops.registry import Kind, get

if TYPE_CHECKING:
    from graphc.frontend.recorder import Recorder

FEWEST = 8
"""Parameters of one kind from which on they are one op; fewer fuse better with what computes their gradients."""
_PREFIXES = ("_single_tensor_", "_multi_tensor_")
_SUPPORT = "_has_foreach_support"
"""What the clipping of gradients asks before it makes one call on a list of them."""
_DTYPES = frozenset(("f64", "f32", "f16", "bf16"))


@contextlib.contextmanager
def grouped_updates(running: Callable[[], Recorder | None]) -> Iterator[None]:
    """For the block: torch.optim's functions over lists are captured once per kind of parameter.

    Args:
        running: the capture that goes on in this thread, if any.
    """
    replaced: list[tuple[Any, str, Any]] = []
    clip = torch.nn.utils.clip_grad
    if hasattr(clip, _SUPPORT):
        replaced.append((clip, _SUPPORT, getattr(clip, _SUPPORT)))
        setattr(clip, _SUPPORT, _with_traced(getattr(clip, _SUPPORT)))
    for module, key in _list_functions(len(sys.modules)):
        function = getattr(module, key)
        replaced.append((module, key, function))
        setattr(module, key, _grouped(function, running))
    try:
        yield
    finally:
        for module, key, function in replaced:
            setattr(module, key, function)


@functools.lru_cache(maxsize=1)
def _list_functions(modules: int) -> list[tuple[Any, str]]:
    """Torch.optim's functions over lists, as module and name; looked for again when modules have been imported."""
    return [
        (module, key)
        for name, module in list(sys.modules.items())
        if name.startswith("torch.optim.")
        for key, function in vars(module).items()
        if key.startswith(_PREFIXES) and callable(function)
    ]


def _with_traced(supported: Callable[..., bool]) -> Callable[..., bool]:
    """Traced tensors stand for plain ones, which would be taken."""

    @functools.wraps(supported)
    def with_traced(tensors: list[Any], device: torch.device) -> bool:
        return supported([None if type(tensor) is TracedTensor else tensor for tensor in tensors], device)

    return with_traced


def _grouped(function: Callable[..., Any], running: Callable[[], Recorder | None]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        recorder = running()
        if recorder is None or not args or not isinstance(args[0], list):
            return function(*args, **kwargs)
        return grouped_call(recorder, function, args, kwargs)

    return call


def grouped_call(
    recorder: Recorder, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Call a function that does the same for each item of its lists, the first argument among them, and returns None.

    Args:
        function: may put tensors in the place of None in its lists.
        args, kwargs: lists as long as the first one hold tensors or None; the rest is the same for all items.
    """
    if args[0]:
        _Call(recorder, function, args, kwargs).run()
    else:
        function(*args, **kwargs)


@dataclass
class _Part:
    """What one representative recorded, as the body of an op.

    Args:
        body: the arithmetic on one element; its inputs are one per list, then the shared ones.
        lists: numbers of the lists it takes.
        shared: values that are the same for all rows.
        made: numbers of the lists in which it left a new tensor: the first results.
        numbers: those among them whose tensors are a number per row, from a reduction over the row.
        mutates: numbers of the lists that get new contents: the other results.
        before: by list, what the representative's tensors held.
    """

    body: Graph
    lists: list[int]
    shared: list[Value]
    made: list[int]
    numbers: set[int]
    mutates: list[int]
    before: dict[int, Value]


class _Start:
    """One parameter before the function runs for it.

    Args:
        own: its tensors by list.
        values: what these hold.
        before: its items of the lists.
    """

    def __init__(self, row: int, own: dict[int, TensorState], values: dict[int, Value], before: list[Any]) -> None:
        self.row, self.own, self.values, self.before = row, own, values, before
        self.versions = {at: state.storage.version for at, state in own.items()}
        self._bases = {at: state.storage.base for at, state in own.items()}

    def restore(self, lists: list[list[Any]]) -> None:
        """Undo what a run has done."""
        for at, state in self.own.items():
            if state.storage.version != self.versions[at]:
                state.storage.base, state.storage.version = self._bases[at], self.versions[at]
                state.cached, state.version = None, -1
        for column, item in zip(lists, self.before, strict=True):
            column[self.row] = item


@dataclass(frozen=True)
class _Outcome:
    """What one run for a parameter has come to.

    Args:
        made: numbers of the lists in which it left a new tensor.
        mutates: numbers of the lists whose tensors it has written.
        new: what these hold now.
        is_regular: it did nothing but that.
    """

    forks: Forks
    made: list[int]
    mutates: list[int]
    new: dict[int, Value]
    is_regular: bool

    def run(self, start: _Start, lists: list[int]) -> Run:
        """What the tensors of these lists hold after it."""
        return Run(self.forks, [self.new[at] if at in self.new else start.values[at] for at in lists])


class _Call:
    """One call of a function over lists.

    Args:
        function: the original.
        args, kwargs: what it is called with; lists as long as the first one hold an item per parameter.
    """

    def __init__(
        self, recorder: Recorder, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.recorder, self.function, self.args, self.kwargs = recorder, function, args, kwargs
        self.count = len(args[0])
        self.places: list[int | str] = [at for at, item in enumerate(args) if self._is_list(item)]
        self.places += [key for key, item in kwargs.items() if self._is_list(item)]
        self.lists: list[list[Any]] = [self._at(place) for place in self.places]

    def _is_list(self, item: Any) -> bool:
        tensors = isinstance(item, list) and len(item) == self.count
        return tensors and all(part is None or isinstance(part, torch.Tensor) for part in item)

    def _at(self, place: int | str) -> Any:
        return self.args[place] if isinstance(place, int) else self.kwargs[place]

    def run(self) -> None:
        """Do what the function does."""
        with _hidden():
            states = self._states()
        if states is None:
            self._plain(range(self.count))
            return
        kinds: dict[Any, list[int]] = {}
        for row in range(self.count):
            kinds.setdefault(_kind([column[row] for column in states]), []).append(row)
        for kind, rows in kinds.items():
            if kind is None or len(rows) < FEWEST:
                self._few(rows, states)
                continue
            rows.sort(key=lambda row: self._is_empty(states, row))
            part = self._representative(rows[0], states)
            if part is None:
                self._plain(rows[1:])
                continue
            empty = [row for row in rows[1:] if part.numbers and self._is_empty(states, row)]
            self._plain(empty)  # not every reduction takes them
            with _hidden():
                self._record(part, rows[: len(rows) - len(empty)], states)

    @staticmethod
    def _is_empty(states: list[list[TensorState | None]], row: int) -> bool:
        return any(state is not None and 0 in state.shape for state in (column[row] for column in states))

    def _states(self) -> list[list[TensorState | None]] | None:
        """The tensors of each list; None where one is met twice, so that the order of updates may matter."""
        found = [[None if item is None else self.recorder.state_of(item) for item in column] for column in self.lists]
        seen: set[int] = set()
        for column in found:
            for state in column:
                if state is not None:
                    if id(state.storage) in seen:
                        return None
                    seen.add(id(state.storage))
        return found

    def _plain(self, rows: Sequence[int]) -> None:
        """The function itself, for some parameters."""
        if not rows:
            return
        parts = {place: [column[row] for row in rows] for place, column in zip(self.places, self.lists, strict=True)}
        args = [parts.get(at, item) for at, item in enumerate(self.args)]
        self.function(*args, **{key: parts.get(key, item) for key, item in self.kwargs.items()})
        for place, column in zip(self.places, self.lists, strict=True):
            for row, item in zip(rows, parts[place], strict=True):
                column[row] = item

    # one parameter

    def _representative(self, row: int, states: list[list[TensorState | None]]) -> _Part | None:
        """Run the function for one parameter; what it recorded is taken out again when it is a body."""
        start, mark = self._start(row, states), len(self.recorder.graph.ops)
        outcomes, forked = self._outcomes(start)
        part = self._part(start, outcomes, mark) if outcomes else None
        if part is not None:
            self._forget(mark)
        elif forked:
            self._settle(start, outcomes, mark)
        return part

    def _few(self, rows: Sequence[int], states: list[list[TensorState | None]]) -> None:
        """The function for some parameters, with values in the place of its decisions on data."""
        for place, row in enumerate(rows):
            start, mark = self._start(row, states), len(self.recorder.graph.ops)
            outcomes, forked = self._outcomes(start)
            if not forked:
                self._plain(rows[place + 1 :])
                return
            self._settle(start, outcomes, mark)

    def _start(self, row: int, states: list[list[TensorState | None]]) -> _Start:
        own = {at: state for at, column in enumerate(states) if (state := column[row]) is not None}
        with _hidden():
            values = {at: self.recorder.value_of(self.lists[at][row]) for at in own}
        return _Start(row, own, values, [column[row] for column in self.lists])

    def _outcomes(self, start: _Start) -> tuple[list[_Outcome], bool]:
        """What the function does for a parameter, for every answer to its decisions; empty when it does more than that.

        Returns:
            That, and whether answers were made up: else what the last run has done is what the function does.
        """
        found: list[_Outcome] = []
        answers: list[bool] | None = []
        while answers is not None:
            start.restore(self.lists)
            forks = Forks(answers)
            try:
                found.append(self._outcome(start, forks))
            except Unforked:
                return [], True
            answers = forks.following()
            if not found[-1].is_regular or (answers is not None and len(found) == LIMIT):
                return [], bool(forks.conditions)
        return found, bool(found[0].forks.conditions)

    def _settle(self, start: _Start, outcomes: list[_Outcome], mark: int) -> None:
        """Let one parameter be what the outcomes together say; where they cannot, its decisions are real ones."""
        mutates = sorted({at for outcome in outcomes for at in outcome.mutates})
        results = None
        if outcomes and not any(outcome.made for outcome in outcomes):
            results = chosen(self.recorder, [outcome.run(start, mutates) for outcome in outcomes])
        start.restore(self.lists)
        if results is None:
            self._forget(mark)
            self._plain([start.row])
            return
        with _hidden():
            for at, value in zip(mutates, results, strict=True):
                self.recorder.write(self.lists[at][start.row], value)

    def _forget(self, mark: int) -> None:
        """Take out what was recorded since `mark`."""
        ops = self.recorder.graph.ops[mark:]
        del self.recorder.graph.ops[mark:]
        self.recorder.forget(ops)

    def _outcome(self, start: _Start, forks: Forks) -> _Outcome:
        """One run for a parameter, with these answers to its decisions."""
        recorder, own, row = self.recorder, start.own, start.row
        taken = _decisions(recorder)
        with recorder.watching_writes() as written, forking(recorder, forks):
            self._plain([row])
        made = [at for at, column in enumerate(self.lists) if column[row] is not start.before[at]]
        mutates = [at for at, state in own.items() if state.storage.version != start.versions[at]]
        storages = {id(state.storage) for state in own.values()}
        is_regular = (
            _decisions(recorder) == taken
            and not any(storage.source is not None and id(storage) not in storages for storage in written)
            and not any(own[at].parent is not None for at in mutates)
            and all(start.before[at] is None and type(self.lists[at][row]) is TracedTensor for at in made)
        )
        with _hidden():
            new = {at: recorder.value_of(self.lists[at][row]) for at in (*made, *mutates)} if is_regular else {}
        return _Outcome(forks, made, mutates, new, is_regular)

    def _part(self, start: _Start, outcomes: list[_Outcome], mark: int) -> _Part | None:
        """What was recorded since `mark`, in one run for each outcome, as a body."""
        made = outcomes[0].made
        if any(outcome.made != made for outcome in outcomes):
            return None
        mutates = sorted({at for outcome in outcomes for at in outcome.mutates})
        shape = next((state.shape for state in start.own.values() if state.shape), ())
        results = chosen(self.recorder, [outcome.run(start, [*made, *mutates]) for outcome in outcomes])
        if results is None or not all(value.shape in (shape, ()) for value in results[: len(made)]):
            return None
        numbers = {at for at, value in zip(made, results, strict=False) if value.shape != shape}
        found = _body(start.values, self.recorder.graph.ops[mark:], results, mutates, len(numbers))
        if found is None:
            return None
        body, lists, shared = found
        return _Part(body, lists, shared, made, numbers, mutates, start.values)

    # all parameters

    def _record(self, part: _Part, rows: list[int], states: list[list[TensorState | None]]) -> None:
        """One op for all rows, its results in the place of what the function writes and makes."""
        recorder = self.recorder
        columns = [
            [part.before[at], *(recorder.value_of(self.lists[at][row]) for row in rows[1:])] for at in part.lists
        ]
        number = {at: place for place, at in enumerate(part.lists)}
        model = next((at for at in part.lists if states[at][rows[0]].shape), part.lists[0])  # type: ignore[union-attr]
        attrs = {
            "count": len(rows),
            "mutates": tuple(number[at] for at in part.mutates),
            "like": tuple(NUMBER if at in part.numbers else number[model] for at in part.made),
            "body": part.body,
        }
        operands = [value for column in columns for value in column]
        op = recorder.builder.multi("foreach", [*operands, *part.shared], attrs)
        results = iter(op.results)
        for at in part.made:
            if at in part.numbers:
                vector = recorder.wrap(next(results), (1,)).state
                for place, row in enumerate(rows):
                    self.lists[at][row] = recorder.make(select(vector, 0, place))
                continue
            for row in rows:
                state = states[model][row]
                assert state is not None
                self.lists[at][row] = recorder.wrap(next(results), state.strides)
        for at in part.mutates:
            for row in rows:
                state, result = states[at][row], next(results)
                assert state is not None
                if not layout.is_contiguous(state.shape, state.strides):
                    result.strides = state.strides  # it may be handed on to another program before it is written
                recorder.write(self.lists[at][row], result)


@contextlib.contextmanager
def _hidden() -> Iterator[None]:
    """For the block: what is asked of real tensors is no part of the program."""
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        yield


def _decisions(recorder: Recorder) -> int:
    return recorder.decider.taken if recorder.decider is not None else 0


def _kind(row: list[TensorState | None]) -> Any:
    """What makes the function record the same for two parameters; None when it must be run for this one alone."""
    found: list[Any] = []
    geometry = None
    for state in row:
        if state is None:
            found.append(None)
            continue
        if state.dtype.name not in _DTYPES:
            return None
        if state.shape:
            geometry = geometry or (state.shape, state.strides)
            if (state.shape, state.strides) != geometry and 0 not in state.shape:
                return None
            if not layout.is_dense(state.shape, state.strides):
                return None
        found.append((state.dtype.name, state.device, bool(state.shape)))
    return tuple(found)


def _body(
    values: dict[int, Value], ops: list[Op], results: list[Value], mutates: list[int], numbers: int
) -> tuple[Graph, list[int], list[Value]] | None:
    """Recorded ops as arithmetic on one element of each tensor; None when they are more than that.

    Args:
        values: what the parameter's tensors held before, by list.
        ops: what was recorded.
        results: what comes of it.
        mutates: lists that are taken even where they are not read.
        numbers: how many of the results are reductions over the row.

    Returns:
        The body, the lists it takes, and the shared values that it takes behind them.
    """
    if len(set(values.values())) < len(values):
        return None  # another parameter may not have one value in two places
    body = Graph("body")
    builder = Builder(body, infer)
    inputs = {at: builder.input(f"x{at}", _element(value), Role.ARG, f"list {at}") for at, value in values.items()}
    known: dict[Value, Operand] = {value: inputs[at] for at, value in values.items()}
    wide = {value for value in values.values() if value.shape}
    reduced: set[Value] = set()
    shared: dict[Value, None] = {}
    for op in ops:
        if len(op.results) != 1 or not (_is_elementwise(op, wide) or _is_over_row(op, wide)):
            return None
        if op.name in WHOLE or not reduced.isdisjoint(op.inputs):
            reduced.add(op.results[0])
            if op.results[0].shape:
                return None
        for item in op.inputs:
            if item not in known:
                if item.shape:
                    return None
                known[item] = builder.input(item.name, item.type, Role.ARG, item.name)
                shared[item] = None
        (result,) = op.results
        if result.shape:
            wide.add(result)
        operands = [known[item] if isinstance(item, Value) else item for item in op.operands]
        if op.name in ("expand", "reshape"):
            known[result] = operands[0]
            continue
        builder.location, builder.origin = op.location, op.origin
        attrs = {**op.attrs, "shape": ()} if op.name == "full" else op.attrs
        attrs = {**attrs, "dims": ()} if op.name in WHOLE else attrs
        known[result] = builder.multi(op.name, operands, attrs).result
    found = [known.get(value) for value in results]
    if not all(isinstance(value, Value) and value.device != HOST for value in found):
        return None
    if sum(value in reduced for value in results) != numbers:
        return None
    body.outputs = [Output(value) for value in found]  # type: ignore[arg-type]
    needed = {item for op in body.ops for item in op.inputs} | {output.value for output in body.outputs}
    lists = [at for at, item in inputs.items() if item in needed or at in mutates]
    kept = {inputs[at] for at in lists}
    body.inputs = [item for item in body.inputs if item in kept or item not in inputs.values()]
    return body, lists, list(shared)


def _element(value: Value) -> TensorType:
    return TensorType(value.dtype, (), value.device)


def _is_over_row(op: Op, wide: set[Value]) -> bool:
    """Whether it makes one number of all elements of a row."""
    if op.name not in WHOLE:
        return False
    (value,) = op.inputs
    return value in wide and len(op.attrs["dims"]) == value.type.rank and not op.attrs["keepdim"]


def _is_elementwise(op: Op, wide: set[Value]) -> bool:
    """Whether each element of the result needs the elements at its place, and nothing else."""
    if op.name == "full":
        return isinstance(op.attrs["value"], (bool, int, float))
    if op.name in ("expand", "reshape"):
        (value,) = op.inputs
        return value.shape == op.results[0].shape or (not value.shape and value not in wide)
    return get(op.name).kind is Kind.POINTWISE and (op.name != "item" or op.operands[0] not in wide)
