"""The parts that a captured function falls into where it decides on data, as plain records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, Union

import torch

from graphc.frontend.list_arguments import Lists
from graphc.frontend.loop_state import LoopState
from graphc.ir.graph import Graph
from graphc.ir.types import Location
from graphc.ops.extern import effect

Reference: TypeAlias = Union[int, str]
"""Where a program finds a value: an input of the whole function by number, or a value handed over by name."""

NUMBER, LIST, SHAPE = "number", "list", "shape"


class Stop(BaseException):
    """The capture ends at a decision that has no answer yet.

    Not an Exception, so that the user's own handlers let it pass.
    """


class Diverged(BaseException):
    """A replay recorded something else than the run it repeats."""

    def __init__(self, location: Location, before: str, now: str) -> None:
        self.location, self.before, self.now = location, before, now


class Regrow(Exception):
    """A path needs these storages taken as one input each, and these lists, which the programs before it did not do."""

    def __init__(self, merged: frozenset[int], lists: Lists) -> None:
        self.merged, self.lists = merged, lists


class PathRaises(Exception):
    """The user's function raises on this path.

    Args:
        error: what it raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class TensorSpec:
    """Metadata of a tensor whose shape is the answer to a decision; strides in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Question:
    """What a program ends in.

    Args:
        kind: `number` (a host value), `list` (all elements of a tensor) or `shape` (the results of an operator).
        what: in the words of the user's program.
        location: the user's line.
        operands: the value asked for, or the operands of the operator.
        op, args, kwargs: the operator, as attributes of an `extern` op.
        python: the type of a number.
    """

    kind: str
    what: str
    location: Location
    operands: tuple[Reference, ...]
    op: str = ""
    args: Any = ()
    kwargs: Any = None
    python: type = object


@dataclass(frozen=True)
class Segment:
    """One program of a path.

    Args:
        graph: the program.
        feeds: where each of its inputs is found.
        outputs: the names of what it hands over; empty for the last program of a path.
        keep: names handed over by earlier programs that are needed still.
        question: what it ends in; None for the last program of a path.
        random: it draws from torch's generator.
        keys: what the run recorded for it, to tell whether a replay does the same, with locations.
        constants: tensors made from Python data up to here.
        state: of the function at the question, where that may be the state of another turn of a loop.
    """

    graph: Graph
    feeds: tuple[Reference, ...]
    outputs: tuple[str, ...] = ()
    keep: frozenset[str] = frozenset()
    question: Question | None = None
    random: bool = False
    keys: tuple[tuple[Any, Location], ...] = ()
    constants: tuple[torch.Tensor, ...] = ()
    state: LoopState | None = None


@dataclass(frozen=True)
class Step:
    """One decision taken on the way: the program that asked, and the answer.

    Args:
        answer: a number, a nested list of numbers, or the operator's results as `TensorSpec`s.
    """

    segment: Segment
    answer: Any


class Oracle(Protocol):
    """Answers decisions while the function is being captured, so that one run of it can go on to its end."""

    def answer(self, segment: Segment, inputs: int, modules: int) -> Step | None:
        """Run the program up to a decision.

        Args:
            segment: the program.
            inputs, modules: how many inputs and modules the capture knows by now.

        Returns:
            The decision with its answer; None when the capture is to end here.
        """


def answer_name(step: int, number: int) -> str:
    """The name under which result `number` of the operator that a step asked about is handed over."""
    return f"answer{step}.{number}"


def map_leaves(item: Any, change: Callable[[Any], Any]) -> Any:
    """Nested lists and tuples with each leaf changed."""
    if isinstance(item, (list, tuple)):
        return type(item)(map_leaves(part, change) for part in item)
    return change(item)


def specs(answer: Any) -> Any:
    """What an operator returned, with `TensorSpec`s for tensors."""

    def spec(item: Any) -> Any:
        if not isinstance(item, torch.Tensor):
            return item
        return TensorSpec(tuple(item.shape), tuple(item.stride()), item.dtype, item.device)

    return map_leaves(answer, spec)


def is_shape(step: Step) -> bool:
    """The decision was the shape of a result."""
    return step.segment.question is not None and step.segment.question.kind == SHAPE


def whole(graph: Graph) -> Segment:
    """The last program of a path that can be differentiated: all of the path, from the start of the function.

    The programs before it have only taken the decisions. What they have drawn from torch's generator is drawn again.
    """
    return Segment(graph, tuple(range(len(graph.inputs))), random=any(effect(op) == "random" for op in graph.ops))
