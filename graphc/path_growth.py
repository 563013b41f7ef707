"""Growing a path tree: one run of the function captures a path, while its programs run and answer its decisions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from graphc.frontend.segments import Segment, Step
from graphc.path_nodes import Node, Walk, random_state, set_random_state

if TYPE_CHECKING:
    from graphc.paths import PathTree


@contextlib.contextmanager
def _outside() -> Iterator[None]:
    """For the block: calls of torch are no part of the capture around it."""
    with (
        torch._C.DisableTorchFunction(),
        torch._C._DisableTorchDispatch(),
        torch._C._DisableAutocast(),
        torch.no_grad(),
    ):
        yield


class Growth:
    """Answers the decisions of a capture by running the programs before them, which become nodes of the tree.

    So a loop of n turns takes one run of the function, and not n. It ends where the function meets tensors or modules
    that the programs before did not know: what follows has inputs and guards of its own.

    Args:
        tree: that grows.
        node, key: the decision and the answer behind which it does.
        walk: the call.

    Attributes:
        node, key: where the next node goes.
    """

    def __init__(self, tree: PathTree, node: Node, key: Any, walk: Walk) -> None:
        self.node, self.key = node, key
        self._tree, self._walk = tree, walk
        self._random = random_state(tree.root.gpus)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        set_random_state(self._random)  # the capture has put it back to where it began

    def answer(self, segment: Segment, inputs: int, modules: int) -> Step | None:
        """As `Oracle.answer`."""
        known = self.node.captured
        assert known is not None
        if (inputs, modules) != (len(known.bindings), known.modules) or self._tree.full(self.node):
            return None
        walk = self._walk
        try:
            with _outside():
                set_random_state(self._random)
                child = self._tree.grown(replace(known, graph=segment.graph, segment=segment, created=[]))
                child.parent = self.node
                if self._tree.loops_close and child.closing() is not None:
                    return None
                _, key = self._tree.decide(child, walk)
                self._random = random_state(self._tree.root.gpus)
        except Exception:
            return None  # the walk comes here too, and meets it outside of the user's code
        self.node.add(self.key, walk.steps[-2].answer, child)
        walk.nodes.append(child)
        self.node, self.key = child, key
        return walk.steps[-1]
