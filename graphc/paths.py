"""The path tree: how a function runs whose control flow, numbers or shapes depend on data.

Each node is a program. A call runs the root, reads the decision it ends in, goes on with the child for that answer, and
so on to a leaf, which writes to the user's tensors and gives the results. A child that is not there yet is captured,
up to a bound; beyond it, and on paths where the function raises, the call runs eager from the start, with the random
state it began with.
"""

from __future__ import annotations

import struct
import threading
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch

from graphc.errors import EagerOnlyError, FallbackWarning, UnsupportedError
from graphc.frontend.segments import (
    LIST,
    NUMBER,
    PathRaises,
    Question,
    Reference,
    Segment,
    Step,
    answer_name,
    specs,
)
from graphc.ir.types import HOST
from graphc.ops.extern import overload, own_returns, resolve
from graphc.settings import settings

if TYPE_CHECKING:
    from graphc.driver import Compilation
    from graphc.frontend.captured import Captured

_IN_A_ROW = 16
"""Calls in a row on paths beyond the bound after which calls no longer try the tree."""
_ALL_DIFFERENT = 8
"""Answers to one question, each met once, after which no further ones are compiled."""


Execute: TypeAlias = Callable[[list[Any]], list[Any]]
"""Inputs of a program to its outputs."""


class Owner(Protocol):
    """What the tree needs from the compiled function."""

    def capture_path(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        steps: Sequence[Step],
        root: Captured,
        places: frozenset[Hashable],
    ) -> Captured:
        """Capture the program that follows these decisions; tensors at `places` are looked up in each call."""

    def path_added(self) -> None:
        """A path is complete."""

    def compile_path(self, captured: Captured, number: int) -> Compilation:
        """Compile one program of the tree."""

    def compile_differentiable(self, captured: Captured, number: int) -> tuple[Compilation, Execute]:
        """Compile the last program of a path whose results can be differentiated."""


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

    @property
    def segment(self) -> Segment | None:
        """How the program goes with the others of its path."""
        return self.captured.segment if self.captured is not None else None

    @property
    def question(self) -> Question | None:
        """The decision the program ends in."""
        return self.segment.question if self.segment is not None else None


@dataclass
class _Walk:
    """One call on its way through the tree."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Any]
    values: dict[str, Any] = field(default_factory=dict)
    steps: list[tuple[Segment, Any]] = field(default_factory=list)  # as arguments of `Step`
    random_state: RandomState | None = None
    compiles: bool = False
    grown: list[Captured] = field(default_factory=list)  # for this call

    def find(self, reference: Reference) -> Any:
        return self.inputs[reference] if isinstance(reference, int) else self.values[reference]


class PathTree:
    """The programs of one captured call and all its paths.

    Args:
        name: of the function.
        root: the program up to the first decision.
        owner: captures and compiles.

    Attributes:
        paths: leaves compiled so far.
        programs: compiled so far.
        closed: why calls no longer try the tree; empty while they do.
    """

    def __init__(self, name: str, root: Captured, owner: Owner) -> None:
        self.name, self.owner = name, owner
        self.paths = 0
        self.programs = 0
        self.closed = ""
        self._built: dict[str, Compilation] = {}
        self._lock = threading.RLock()
        self._beyond = 0  # calls in a row that left the tree
        self._warned = False
        self.root = self._node(root)

    # calls

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Any]) -> tuple[Any, bool]:
        """The function's result for a call, and whether something was compiled for it.

        Args:
            inputs: of the root program, as its guards gave them.

        Raises:
            RunEager: run it eager; nothing has been written, and the random state is that of the beginning.
        """
        if self.closed:
            raise RunEager(self.closed)
        walk = _Walk(args, kwargs, inputs)
        try:
            node = self._walk(walk)
            outputs = self._execute(node, walk)
        except RunEager:
            _set_random_state(walk.random_state)
            raise
        except BaseException:
            _set_random_state(walk.random_state)
            for captured in walk.grown:
                captured.withdraw()
            raise
        self._beyond = 0
        assert node.captured is not None
        return node.captured.rebuild(outputs, walk.inputs, (args, kwargs)), walk.compiles

    def follow(self, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Any]) -> list[Node]:
        """The programs a call runs, in order; effects are not carried out.

        Raises:
            RunEager: the call runs eager.
        """
        walk = _Walk(args, kwargs, inputs, random_state=_random_state(self._devices(self.root)))
        nodes: list[Node] = []
        try:
            self._walk(walk, nodes)
        finally:
            _set_random_state(walk.random_state)
        return nodes

    def _walk(self, walk: _Walk, nodes: list[Node] | None = None) -> Node:
        """Run programs and take decisions down to a leaf, which is not run."""
        node = self.root
        while True:
            if nodes is not None:
                nodes.append(node)
            segment = node.segment
            if segment is None or segment.question is None:
                return node
            outputs = self._execute(node, walk)
            handed_over = dict(zip(segment.outputs, outputs, strict=True))
            for name in segment.keep:
                handed_over[name] = walk.values[name]
            walk.values = handed_over
            key, answer = _ask(segment.question, walk, len(walk.steps))
            walk.steps.append((segment, answer))
            node = self._child(node, key, walk)

    def _execute(self, node: Node, walk: _Walk) -> list[Any]:
        segment = node.segment
        if node.compilation is None or segment is None:
            return []
        if node.execute is not None:
            _set_random_state(walk.random_state)  # what the programs before have drawn is drawn again
            return node.execute(walk.inputs)
        if segment.random and walk.random_state is None:
            walk.random_state = _random_state(self._devices(node))
        inputs: list[Any] = walk.inputs
        values: dict[Any, Any] = walk.values
        return node.compilation.execute([inputs[f] if type(f) is int else values[f] for f in segment.feeds])

    def _devices(self, node: Node) -> set[str]:
        assert node.captured is not None
        return {value.device for value in node.captured.graph.values() if value.device not in ("cpu", HOST)}

    def _child(self, node: Node, key: Any, walk: _Walk) -> Node:
        """The node for an answer.

        Raises:
            RunEager: there is none and there shall be none, or the function raises there.
        """
        child = self._known(node, key, walk)
        if child is not None:
            node.repeats += 1
        else:
            with self._lock:
                child = self._known(node, key, walk) or self._grow(node, key, walk)
        if child.captured is None:
            raise RunEager(child.reason, child.raises)
        return child

    def _known(self, node: Node, key: Any, walk: _Walk) -> Node | None:
        for child in node.children.get(key, ()):
            if child.captured is None:
                return child
            inputs = walk.inputs if child.covered else child.captured.match(walk.args, walk.kwargs)
            if inputs is not None:
                walk.inputs = inputs
                return child
        return None

    # growing

    def _grow(self, node: Node, key: Any, walk: _Walk) -> Node:
        self._check_room(node)
        assert self.root.captured is not None
        walk.compiles = True
        try:
            steps = [Step(segment, answer) for segment, answer in walk.steps]
            misses = [child.captured for child in node.children.get(key, ()) if child.captured is not None]
            places = frozenset().union(*(captured.moved_places() for captured in misses))
            captured = self.owner.capture_path(walk.args, walk.kwargs, steps, self.root.captured, places)
        except PathRaises as raised:
            reason = f"the function raises {type(raised.error).__name__}: {raised.error}"
            child = Node(None, reason=reason, raises=True)
        except EagerOnlyError as error:
            child = Node(None, reason=str(error))
            self.warn(f"runs eager on this path, since {error}")
        else:
            walk.grown.append(captured)
            child = self._node(captured)
            inputs = captured.match(walk.args, walk.kwargs)
            if inputs is None:
                raise UnsupportedError(
                    f"{self.name} changes, while it runs, what its own compilation depends on: "
                    f"{captured.explain_miss(walk.args, walk.kwargs)}. Move that change out of the compiled function."
                )
            child.covered = node.captured is not None and captured.assumes_no_more_than(node.captured)
            walk.inputs = inputs
        child.answer = walk.steps[-1][1]
        node.children.setdefault(key, []).insert(0, child)
        return child

    def _node(self, captured: Captured) -> Node:
        """Compile a program."""
        segment = captured.segment
        assert segment is not None
        if captured.needs_grad:
            self.closed = f"gradients are needed, and {captured.needs_grad}"
            self.warn(f"{self.closed}, so such calls run eager. Under torch.no_grad() they run compiled.")
            return Node(None, reason=self.closed)
        if segment.question is not None and not segment.graph.ops and not segment.outputs:
            return Node(captured)
        if segment.question is None:
            self.paths += 1
            self.owner.path_added()
        number, self.programs = self.programs, self.programs + 1
        if captured.joint is not None:
            forward, execute = self.owner.compile_differentiable(captured, number)
            return Node(captured, forward, execute, number=number)
        text = str(captured.graph)
        compilation = self._built.get(text)
        if compilation is None:
            compilation = self._built[text] = self.owner.compile_path(captured, number)
        checker = getattr(compilation.execute, "fact_check", None)
        if checker is not None:
            captured.guards.use(checker)
        return Node(captured, compilation, number=number)

    def _check_room(self, node: Node) -> None:
        """Raises:
        RunEager: the tree has grown as large as it may.
        """
        question, limit = node.question, settings().max_paths
        assert question is not None
        many = len(node.children)
        reason = ""
        if self.programs >= limit:
            reason = f"its paths take {limit} programs already (GRAPHC_MAX_PATHS)"
        elif many >= min(_ALL_DIFFERENT, limit) and not node.repeats:
            reason = f"{question.what} was another one in each of {many} calls"
        if not reason:
            return
        where = f"{question.location.file}:{question.location.line}"
        self._beyond += 1
        if self._beyond >= _IN_A_ROW:
            self.closed = f"{self._beyond} calls in a row were on paths not compiled: {reason}, at {where}"
        self.warn(
            f"this call runs eager, since {reason}. Keep `.item()` results in tensor arithmetic, where they need no "
            f"program of their own, or do this outside the compiled function\n  at {where}"
        )
        raise RunEager(f"{reason}, at {where}")

    def warn(self, text: str) -> None:
        """Say once that calls run eager, and why."""
        if not self._warned:
            self._warned = True
            warnings.warn(FallbackWarning(f"{self.name}: {text}"), stacklevel=8)


def _ask(question: Question, walk: _Walk, step: int) -> tuple[Any, Any]:
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
        walk.values[answer_name(step, number)] = item
    answer = specs(result)
    return repr(answer), answer


def _key(number: bool | int | float) -> Any:
    """Tells numbers apart as Python could: by type, sign of zero and bits of NaN."""
    return struct.pack("d", number) if isinstance(number, float) else (type(number), number)


def _random_state(devices: set[str]) -> RandomState:
    return [("cpu", torch.get_rng_state()), *((d, _random_of(d).get_rng_state(d)) for d in sorted(devices))]


def _set_random_state(states: RandomState | None) -> None:
    for device, state in states or ():
        if device == "cpu":
            torch.set_rng_state(state)
        else:
            _random_of(device).set_rng_state(state, device)


def _random_of(device: str) -> Any:
    """torch's module for a kind of device: that which keeps its random state."""
    return torch.get_device_module(device.partition(":")[0])
