"""Calls that take the path of the calls before run as one program, which checks the decisions on the way.

Nothing is written to the user's tensors before all checks have passed. Where one fails, or anything else does, the
random state is put back and the call walks through the tree, which finds its own path, or raises as eager does.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from graphc.ir.graph import Graph, Role
from graphc.path_nodes import Node, Walk, random_state, set_random_state
from graphc.settings import settings

if TYPE_CHECKING:
    from graphc.paths import PathTree

_IN_A_ROW = 2
"""Calls on one path after which the next is expected there."""


class Direct:
    """Knows which path calls have been taking.

    Args:
        tree: whose calls these are.
    """

    def __init__(self, tree: PathTree) -> None:
        self._tree = tree
        self._leaf: Node | None = None
        self._calls = 0
        self._lock = threading.Lock()

    def note(self, leaf: Node, walk: Walk) -> None:
        """A call has walked to a leaf."""
        self._calls = self._calls + 1 if leaf is self._leaf else 1
        self._leaf = leaf if not walk.loops else None

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
        """The function's result, or None where the call has to walk."""
        leaf = self._leaf
        if leaf is None or self._calls < _IN_A_ROW:
            return None
        captured = leaf.captured
        assert captured is not None
        if not captured.checks or leaf.gpus:  # a GPU says too late that a check has failed
            return None
        if leaf.execute is None and captured.path is not None and _trains(captured.path):
            return None
        inputs = captured.match(args, kwargs)
        if inputs is None or not self._ready(leaf):
            return None
        assert leaf.direct is not None and leaf.segment is not None
        before = random_state(()) if leaf.draws else None
        try:
            outputs = leaf.direct(inputs)
        except Exception:  # the walk meets it again, if the user's program does
            set_random_state(before)
            self._calls = 0
            return None
        return (captured.rebuild(outputs, inputs, (args, kwargs)),)

    def _ready(self, leaf: Node) -> bool:
        if leaf.direct is None:
            with self._lock:
                if leaf.direct is None and self._tree.programs < settings().max_paths:
                    assert leaf.captured is not None and leaf.captured.path is not None
                    leaf.direct = leaf.execute or self._tree.compile(leaf.captured.path).execute
        return leaf.direct is not None


def _trains(graph: Graph) -> bool:
    """Whether it writes to parameters: where sums are rounded otherwise, a resumed run would take another course."""
    return any(write.target.role is Role.PARAM for write in graph.writes)
