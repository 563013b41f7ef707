"""What a path tree is made of: its nodes, a call on its way through them, and the answer to a decision."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from graphc.frontend.segments import LIST, NUMBER, Question, Reference, Segment, Step, answer_name, specs
from graphc.ir.types import HOST
from graphc.ops.extern import overload, own_returns, resolve

if TYPE_CHECKING:
    from graphc.compilation import Compilation
    from graphc.frontend.captured import Captured

Execute: TypeAlias = Callable[[list[Any]], list[Any]]
"""Inputs of a program to its outputs."""

RandomState: TypeAlias = list[tuple[str, torch.Tensor]]
"""States of torch's generators, by device."""


class RunEager(Exception):
    """This call cannot go on in the tree.

    Args:
        reason: why.
        raises: because the function is expected to raise.
    """

    def __init__(self, reason: str, raises: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.raises = reason, raises


@dataclass(frozen=True)
class Turn:
    """A loop goes back to an earlier node.

    Args:
        node: it.
        names: pairs of a name there and the name of the value that takes its place.
    """

    node: Node
    names: tuple[tuple[str, str], ...]


@dataclass
class Node:
    """One program of the tree, or a place where calls run eager.

    Attributes:
        captured: the program; None where calls run eager.
        compilation: how it runs; None where it computes nothing.
        execute: runs all of the path from the inputs, with results that can be differentiated; else None.
        covered: a call that the parent's guards let pass needs no check of its own guards.
        reason: why calls run eager here.
        raises: because the function raises here.
        answer: the answer that leads here.
        number: of the program in the tree, in order of compilation.
        children: by the answer to the question that the program ends in.
        repeats: how often a call met a child that was there.
        parent: the node whose child this is.
        depth: decisions on the way from the root to the one that the program ends in.
        turn: the state at its decision is that of a node above: a loop closes.
        direct: runs all of the path as one program, which raises where it is not the path of its inputs.
    """

    captured: Captured | None
    compilation: Compilation | None = None
    execute: Execute | None = None
    covered: bool = False
    reason: str = ""
    raises: bool = False
    answer: Any = None
    number: int = -1
    children: dict[Any, list[Node]] = field(default_factory=dict)
    repeats: int = 0
    parent: Node | None = field(default=None, repr=False)
    depth: int = 0
    turn: Turn | None = None
    direct: Execute | None = None

    @property
    def segment(self) -> Segment | None:
        """How the program goes with the others of its path."""
        return self.captured.segment if self.captured is not None else None

    @cached_property
    def gpus(self) -> frozenset[str]:
        """Those that the program uses."""
        assert self.captured is not None
        return frozenset(v.device for v in self.captured.graph.values() if v.device not in ("cpu", HOST))

    @cached_property
    def draws(self) -> bool:
        """Some program on the way here draws from torch's generator."""
        node: Node | None = self
        while node is not None:
            if node.segment is not None and node.segment.random:
                return True
            node = node.parent
        return False

    @property
    def question(self) -> Question | None:
        """The decision the program ends in."""
        return self.segment.question if self.segment is not None else None

    def closing(self) -> Turn | None:
        """The node above with whose state the program of this one ends."""
        mine = self.segment.state if self.segment is not None else None
        above = self.parent
        while mine is not None and above is not None:
            theirs = above.segment.state if above.segment is not None else None
            if theirs is not None and theirs.key == mine.key:
                return Turn(above, tuple(zip(theirs.names, mine.names, strict=True)))
            above = above.parent
        return None

    def add(self, key: Any, answer: Any, child: Node) -> None:
        """Put a child behind an answer; of several there the newest is tried first."""
        child.answer, child.parent, child.depth = answer, self, self.depth + 1
        child.turn = child.closing()
        self.children.setdefault(key, []).insert(0, child)


@dataclass
class Walk:
    """One call on its way through the tree.

    Attributes:
        values: what the programs before have handed over, by name.
        steps: decisions taken.
        nodes: met so far.
        random_state: of the beginning, once a program has drawn from torch's generator.
        compiles: something was captured for it.
        loops: it has gone back to an earlier node.
        grown: what.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Any]
    values: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)  # in the order in which the call meets them
    random_state: RandomState | None = None
    compiles: bool = False
    loops: bool = False
    grown: list[Captured] = field(default_factory=list)  # for this call

    def find(self, reference: Reference) -> Any:
        return self.inputs[reference] if isinstance(reference, int) else self.values[reference]


def ask(question: Question, walk: Walk) -> tuple[Any, Any]:
    """The key of the answer among children, and the answer as replays get it."""
    operands = [walk.find(reference) for reference in question.operands]
    if question.kind == NUMBER:
        number = question.python(operands[0])
        return _key(number), number
    if question.kind == LIST:
        elements = operands[0].tolist()
        return repr(elements), elements
    call = overload(question.op)
    with torch.no_grad(), torch._C._DisableAutocast():
        result = call(*resolve(question.args, operands), **resolve(question.kwargs or {}, operands))
    for number, item in enumerate(own_returns(call, result)):
        walk.values[answer_name(len(walk.steps), number)] = item
    answer = specs(result)
    return repr(answer), answer


def _key(number: bool | int | float) -> Any:
    """Tells numbers apart as Python could: by type, sign of zero and bits of NaN."""
    return struct.pack("d", number) if isinstance(number, float) else (type(number), number)


def random_state(devices: Collection[str]) -> RandomState:
    """States of the generators of the CPU and of these GPUs."""
    own = [(device, _random_of(device).get_rng_state(device)) for device in sorted(devices)]
    return [("cpu", torch.default_generator.get_state()), *own]


def set_random_state(states: RandomState | None) -> None:
    """Put them back; None: nothing to do."""
    for device, state in states or ():
        if device == "cpu":
            torch.default_generator.set_state(state)
        else:
            _random_of(device).set_rng_state(state, device)


def _random_of(device: str) -> Any:
    """torch's module for a kind of device: that which keeps its random state."""
    return torch.get_device_module(device.partition(":")[0])
