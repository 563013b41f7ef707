"""The path tree: how a function runs whose control flow, numbers or shapes depend on data.

Each node is a program. A call runs the root, reads the decision it ends in, goes on with the child for that answer, and
so on to a leaf, which writes to the user's tensors and gives the results. A child that is not there yet is captured,
up to a bound; beyond it, and on paths where the function raises, the call runs eager from the start, with the random
state it began with.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from graphc.errors import EagerOnlyError, FallbackWarning
from graphc.frontend.segments import Oracle, PathRaises, Step
from graphc.path_direct import Direct
from graphc.path_growth import Growth
from graphc.path_nodes import Execute, Node, RunEager, Walk, ask, random_state, set_random_state
from graphc.settings import settings

if TYPE_CHECKING:
    from graphc.compilation import Compilation
    from graphc.frontend.captured import Captured
    from graphc.ir.graph import Graph

_IN_A_ROW = 16
"""Calls in a row on paths beyond the bound after which calls no longer try the tree."""
_ALL_DIFFERENT = 8
"""Answers to one question, each met once, after which no further ones are compiled."""
_TURNS = 64
"""Nodes of the tree, most of them turns of loops that share a program, per program that there may be."""


class Owner(Protocol):
    """What the tree needs from the compiled function."""

    def capture_path(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        steps: Sequence[Step],
        root: Captured,
        places: frozenset[Hashable],
        oracle: Oracle,
    ) -> Captured:
        """Capture the program that follows these decisions, and those that follow it as long as `oracle` answers.

        Tensors at `places` are looked up in each call.
        """

    def draw_back(self, count: int) -> None:
        """Of what the call has drawn from generators of Python and numpy, only the first draws have been."""

    def path_added(self) -> None:
        """A path is complete."""

    def compile_path(self, graph: Graph, number: int) -> Compilation:
        """Compile one program of the tree."""

    def compile_differentiable(self, captured: Captured, number: int) -> tuple[Compilation, Execute]:
        """Compile the last program of a path whose results can be differentiated."""


class PathTree:
    """The programs of one captured call and all its paths.

    Args:
        name: of the function.
        root: the program up to the first decision.
        owner: captures and compiles.

    Attributes:
        paths: leaves compiled so far.
        programs: compiled so far; the turns of a loop share one.
        closed: why calls no longer try the tree; empty while they do.
        loops_close: a turn that ends in the state of an earlier one goes back there.
        last_call: how the last call that ended ran: `walk`, from program to program, or `one program`.
    """

    def __init__(self, name: str, root: Captured, owner: Owner) -> None:
        self.name, self.owner = name, owner
        self.paths = 0
        self.programs = 0
        self.closed = ""
        self.last_call = ""
        self._nodes = 0
        self._built: dict[str, tuple[Compilation, int]] = {}
        self._lock = threading.RLock()
        self._beyond = 0  # calls in a row that left the tree
        self._warned = False
        self.loops_close = True
        self._direct = Direct(self)
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
        found = self._direct.run(args, kwargs)
        if found is not None:
            self.last_call = "one program"
            return found[0], False
        self.last_call = "walk"
        assert self.root.captured is not None
        self.owner.draw_back(self.root.captured.draws)
        walk = Walk(args, kwargs, inputs)
        try:
            node = self._walk(walk)
            if walk.loops and node.execute is not None:
                return self._unrolled(walk, inputs)
            outputs = self._execute(node, walk)
        except RunEager:
            set_random_state(walk.random_state)
            raise
        except BaseException:
            set_random_state(walk.random_state)
            for captured in walk.grown:
                captured.withdraw()
            raise
        self._beyond = 0
        assert node.captured is not None
        self._direct.note(node, walk)
        return node.captured.rebuild(outputs, walk.inputs, (args, kwargs)), walk.compiles

    def _unrolled(self, walk: Walk, inputs: list[Any]) -> tuple[Any, bool]:
        """A loop leads to results that can be differentiated, for which one program takes all of the path.

        From here on, each number of turns is a path of its own.
        """
        self.loops_close = False
        set_random_state(walk.random_state)
        result, _ = self.run(walk.args, walk.kwargs, inputs)
        return result, True

    def follow(self, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Any]) -> list[Node]:
        """The programs a call runs, in order; effects are not carried out.

        Raises:
            RunEager: the call runs eager.
        """
        walk = Walk(args, kwargs, inputs, random_state=random_state(self.root.gpus))
        try:
            self._walk(walk)
        finally:
            set_random_state(walk.random_state)
        return walk.nodes

    def _walk(self, walk: Walk) -> Node:
        """Run programs and take decisions down to a leaf, which is not run."""
        node = self.root
        while True:
            walk.nodes.append(node)
            if node.question is None:
                return node
            node, key = self.decide(node, walk)
            node = self._child(node, key, walk)

    def decide(self, node: Node, walk: Walk) -> tuple[Node, Any]:
        """Run a program up to its decision and take that.

        Returns:
            The node whose children go on, which is another one where a loop closes, and the key of the answer there.
        """
        segment, question = node.segment, node.question
        assert segment is not None and question is not None
        handed_over = dict(zip(segment.outputs, self._execute(node, walk), strict=True))
        for name in segment.keep:
            handed_over[name] = walk.values[name]
        if node.turn is not None and self.loops_close:
            handed_over = {name: handed_over[mine] for name, mine in node.turn.names}
            node, walk.loops = node.turn.node, True
            segment, question = node.segment, node.question
            assert segment is not None and question is not None
            del walk.steps[node.depth :]
        walk.values = handed_over
        key, answer = ask(question, walk)
        walk.steps.append(Step(segment, answer))
        return node, key

    def _execute(self, node: Node, walk: Walk) -> list[Any]:
        segment = node.segment
        if node.compilation is None or segment is None:
            return []
        if node.execute is not None:
            set_random_state(walk.random_state)  # what the programs before have drawn is drawn again
            return node.execute(walk.inputs)
        if segment.random and walk.random_state is None:
            walk.random_state = random_state(node.gpus)
        inputs: list[Any] = walk.inputs
        values: dict[Any, Any] = walk.values
        return node.compilation.execute([inputs[f] if type(f) is int else values[f] for f in segment.feeds])

    def _child(self, node: Node, key: Any, walk: Walk) -> Node:
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

    def _known(self, node: Node, key: Any, walk: Walk) -> Node | None:
        for child in node.children.get(key, ()):
            if child.captured is None:
                return child
            inputs = walk.inputs if child.covered else child.captured.match(walk.args, walk.kwargs)
            if inputs is not None:
                walk.inputs = inputs
                return child
        return None

    # growing

    def _grow(self, node: Node, key: Any, walk: Walk) -> Node:
        """Capture what follows a decision: programs and their decisions, as far as one run of the function can go."""
        self._check_room(node)
        assert self.root.captured is not None
        walk.compiles = True
        misses = [child.captured for child in node.children.get(key, ()) if child.captured is not None]
        places = frozenset().union(*(captured.moved_places() for captured in misses))
        growth = Growth(self, node, key, walk)
        try:
            with growth:
                captured = self.owner.capture_path(
                    walk.args, walk.kwargs, walk.steps, self.root.captured, places, growth
                )  # fmt: skip
        except PathRaises as raised:
            reason = f"the function raises {type(raised.error).__name__}: {raised.error}"
            child = Node(None, reason=reason, raises=True)
        except EagerOnlyError as error:
            child = Node(None, reason=str(error))
            self.warn(f"runs eager on this path, since {error}")
        else:
            walk.grown.append(captured)
            if growth.node is not node:
                self._check_room(growth.node)
            child = self._node(captured)
            inputs = captured.match(walk.args, walk.kwargs)
            if inputs is None:
                changed = captured.explain_miss(walk.args, walk.kwargs)
                reason = f"it changes, while it runs, what its own compilation depends on: {changed}"
                child = Node(None, reason=reason)
                self.warn(f"runs eager on this path, since {reason}")
            else:
                parent = growth.node.captured
                child.covered = parent is not None and captured.assumes_no_more_than(parent)
                walk.inputs = inputs
        growth.node.add(growth.key, walk.steps[-1].answer, child)
        return child

    def grown(self, captured: Captured) -> Node:
        """A node in the midst of a path, whose guards are its parent's."""
        node = self._node(captured, shared=True)
        node.covered = True
        return node

    def _node(self, captured: Captured, shared: bool = False) -> Node:
        """Compile a program; `shared`: its guards are those of another one, which has seen to them."""
        segment = captured.segment
        assert segment is not None
        if captured.needs_grad:
            self.closed = f"gradients are needed, and {captured.needs_grad}"
            self.warn(f"{self.closed}, so such calls run eager. Under torch.no_grad() they run compiled.")
            return Node(None, reason=self.closed)
        self._nodes += 1
        if segment.question is not None and not segment.graph.ops and not segment.outputs:
            return Node(captured)
        if segment.question is None:
            self.paths += 1
            self.owner.path_added()
        if captured.joint is not None:
            number = self._next()
            forward, execute = self.owner.compile_differentiable(captured, number)
            return Node(captured, forward, execute, number=number)
        text = str(captured.graph)
        if text not in self._built:
            number = self._next()
            self._built[text] = self.owner.compile_path(captured.graph, number), number
        compilation, number = self._built[text]
        checker = getattr(compilation.execute, "fact_check", None)
        if checker is not None and not shared:
            captured.guards.use(checker)
        return Node(captured, compilation, number=number)

    def compile(self, graph: Graph) -> Compilation:
        """A program beside the nodes."""
        return self.owner.compile_path(graph, self._next())

    def _next(self) -> int:
        self.programs += 1
        return self.programs - 1

    def full(self, node: Node) -> str:
        """Why nothing more shall be compiled behind a decision; empty when something may."""
        question, limit = node.question, settings().max_paths
        assert question is not None
        many = len(node.children)
        if self.programs >= limit:
            return f"its paths take {limit} programs already (GRAPHC_MAX_PATHS)"
        if self._nodes >= limit * _TURNS:
            return f"its paths take {self._nodes} turns through {self.programs} programs already (GRAPHC_MAX_PATHS)"
        if many >= min(_ALL_DIFFERENT, limit) and not node.repeats:
            return f"{question.what} was another one in each of {many} calls"
        return ""

    def _check_room(self, node: Node) -> None:
        """Raises:
        RunEager: the tree has grown as large as it may.
        """
        reason, question = self.full(node), node.question
        assert question is not None
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
