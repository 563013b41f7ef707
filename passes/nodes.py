"""The nodes of a program, kernels to be and library calls, with their dependencies, and what may be stored in place.

Overwriting memory is an extra dependency: every reader of the old contents runs before. Where that would make a cycle,
and where the memory may not be touched, what overwrites works on a copy instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from graphc.ir.graph import Input, Value
from graphc.ops.extern import effect
from graphc.passes.commits import set_stages
from graphc.passes.fused import Fusion, Library
from graphc.passes.group import Group, device_of, group_of
from graphc.passes.layout import Place
from graphc.passes.schedule import BETWEEN, SENDS, WAITS, in_order
from graphc.passes.updates import copy_op, updated_positions

Node: TypeAlias = Group | Library


class Nodes:
    """Dependencies between all nodes of a program.

    Attributes:
        next, previous: direct dependencies.
        readers: nodes that read or overwrite each stored value.
        producer: the node that stores each value.
    """

    def __init__(self, fusion: Fusion) -> None:
        self.fusion = fusion
        self.next: dict[Node, set[Node]] = {}
        self.previous: dict[Node, set[Node]] = {}
        self.producer: dict[Value, Node] = {}
        self.readers: dict[Value, dict[Node, None]] = {}
        outputs = [output.value for output in fusion.graph.outputs]
        outputs += [write.value for write in fusion.graph.writes]  # the last contents of an input
        self._final = {value for value in outputs if not isinstance(value, Input)}  # an input is its memory
        self._behind: set[Node] | None = None  # nodes that run after the one that is looked at
        nodes: list[Node] = sorted([*fusion.groups, *fusion.libraries], key=lambda item: item.position)
        for node in nodes:
            self._add(node)
        for node in nodes:
            self._link_producers(node)
        self._link_effects()
        for node in nodes:
            self._store_in_place(node)
        self._finish_writes()
        set_stages(self)

    def _add(self, node: Node) -> None:
        self.next[node], self.previous[node] = set(), set()
        for value in node.roots if isinstance(node, Group) else node.results:
            self.producer[value] = node
        for value in self.reads(node):
            self.readers.setdefault(value, {})[node] = None

    def reads(self, node: Node) -> Iterable[Value]:
        """Stored values that a node reads from memory or overwrites."""
        if isinstance(node, Library):
            places = [item.base for item in node.operands if item is not None]
            return dict.fromkeys([*places, *(base for base in node.overwrites.values() if base in self.fusion.parts)])
        stored = self.fusion.stored
        found = {value: None for value in node.visits if value in stored and value not in node.roots}
        found.update(dict.fromkeys(base for base in node.overwrites.values() if base not in node.roots))
        return found

    def link(self, first: Node, second: Node) -> None:
        if first is not second:
            self.next[first].add(second)
            self.previous[second].add(first)

    def _link_producers(self, node: Node) -> None:
        for value in self.reads(node):
            producer = self.producer.get(value)
            if producer is not None:
                self.link(producer, node)

    def _link_effects(self) -> None:
        last: Library | None = None
        for library in self.fusion.libraries:
            if effect(library.op):
                if last is not None:
                    self.link(last, library)
                last = library

    def _reachable(self, start: Node) -> set[Node]:
        found: set[Node] = set()
        stack = [start]
        while stack:
            for node in self.next[stack.pop()]:
                if node not in found:
                    found.add(node)
                    stack.append(node)
        return found

    # in place

    def _store_in_place(self, node: Node) -> None:
        uses = Counter(item.base for item in node.operands if item is not None) if isinstance(node, Library) else None
        self._behind, positions = None, updated_positions(node.op) if isinstance(node, Library) else {}
        for value, base in list(node.overwrites.items()):
            if base in self.fusion.parts:
                continue
            if (uses is None or uses[base] < 2) and self._may_overwrite(node, value, base):
                for reader in self.readers[base]:
                    self.link(reader, node)
            elif isinstance(node, Library) and node.op.name not in ("extern", "foreach") and not node.is_matmul:
                del node.overwrites[value]  # a scatter has a form that makes its own copy
                self.fusion.layouts.chosen.pop(value)
            else:
                self._copy_first(node, value, base, positions)

    def _may_overwrite(self, node: Node, value: Value, base: Value) -> bool:
        if isinstance(base, Input) and value not in self.fusion.in_inputs and value not in self.fusion.homes:
            return False
        if base in self._final:
            return False
        producer = self.producer.get(base)
        if isinstance(producer, Library) and not producer.fills and base not in producer.overwrites:
            return False  # memory that a library returned may be shared with what it was called on
        others = [reader for reader in self.readers[base] if reader is not node]
        if others and self._behind is None:
            self._behind = self._reachable(node)  # links added meanwhile all end at the node, or at copies before it
        return not others or self._behind.isdisjoint(others)  # type: ignore[union-attr]

    def _copy_first(self, node: Node, value: Value, base: Value, positions: Mapping[Value, int]) -> None:
        """Give `node` a copy of `base` to overwrite; `positions`: of the operands that a library call overwrites."""
        strides = self.fusion.layouts.strides(value)
        copy = copy_op(base).results[0]
        group = self._add_copy(copy, strides, node.position - 0.5)
        self.link(group, node)
        node.overwrites[value] = copy
        self.readers[copy] = {node: None}
        if isinstance(node, Library):
            node.operands[positions[value]] = Place(copy, copy.shape, strides)  # type: ignore[arg-type]  # static
        if base not in self.reads(node):
            del self.readers[base][node]

    def _add_copy(self, copy: Value, strides: tuple[int, ...], position: float) -> Group:
        """A group that copies a stored value."""
        self.fusion.layouts.chosen[copy] = strides
        self.fusion.stored.add(copy)
        group = group_of(copy, position)
        group.expand(copy, group.roots[copy])
        self._add(group)
        self._link_producers(group)
        return group

    def head(self, value: Value) -> Value:
        """The value in whose memory this one is stored."""
        while True:
            node = self.producer.get(value)
            if node is None or value not in node.overwrites:
                return value
            value = node.overwrites[value]

    def _finish_writes(self) -> None:
        """Updates of an input that had to leave its memory end with a copy into it."""
        homes = set(self.fusion.homes.values())
        left: dict[Value, list[Value]] = {}  # by input: what is read of its memory, which updates may have left there
        for value in self.readers:
            left.setdefault(self.head(value), []).append(value)
        for write in self.fusion.graph.writes:
            if write.target in homes or self.head(write.value) is write.target:
                continue
            copy = copy_op(write.value).results[0]
            producer = self.producer[write.value]
            group = self._add_copy(copy, self.fusion.layouts.strides(write.target), producer.position + 0.5)
            self.fusion.homes[copy] = write.target
            group.overwrites[copy] = write.target
            for value in left.get(write.target, ()):
                for reader in self.readers[value]:
                    self.link(reader, group)
            self.readers.setdefault(write.target, {})[group] = None

    def order(self) -> list[Node]:
        """Topological order, as near to program order as can be."""
        nodes = list(self.next)
        number = {node: at for at, node in enumerate(nodes)}
        after = [[number[earlier] for earlier in self.previous[node]] for node in nodes]
        return [nodes[at] for at in in_order(after, [node.position for node in nodes])]


def rank_of(node: Node) -> int:
    """Whether a call works between the CPU and another device; see `graphc.passes.schedule.Task`."""
    if isinstance(node, Group) or node.fills or not node.results:
        return 0
    given = {device_of(value) != "cpu" for value in node.op.inputs}
    made = {device_of(value) != "cpu" for value in node.results}
    if given == {True} and made == {False}:
        return WAITS
    return SENDS if given == {False} and made == {True} else 0


def runs_on(node: Node) -> str:
    """The device that a node runs on; see `graphc.passes.schedule.Task`."""
    if isinstance(node, Group):
        return "" if node.device == "cpu" else node.device
    found = {device_of(value) for value in (*node.op.inputs, *node.results)} - {"cpu"}
    return BETWEEN if len(found) > 1 else next(iter(found), "")
