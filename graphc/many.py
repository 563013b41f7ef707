"""One capture for calls of many sizes: a program for each of them, made without running the function."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from graphc import driver
from graphc.compilation import Compilation, rolled_graph
from graphc.differentiable import cotangents_of
from graphc.entries import Entry, Stats, entry_of, leave_to_native
from graphc.errors import CompilerError
from graphc.families import Families, is_pinned
from graphc.frontend.aten.sized_trials import OneSizeOnly, at
from graphc.ir.generalize import General, derived
from graphc.options import Options, cache_key, choose_backend

if TYPE_CHECKING:
    from graphc.frontend.captured import Captured
    from graphc.frontend.joint import Joint
    from graphc.frontend.sized import Key
    from graphc.ir.graph import Graph
    from graphc.ir.sizes import Conditions
    from graphc.passes.partition import Split

_MOST = 4096
"""Calls remembered for which there is no program."""


class _Compilation(Compilation):
    """One whose graph is made for those who ask for it.

    Args:
        make: makes the graph.
    """

    def __init__(self, make: Callable[[], Graph], options: Options, backend: str) -> None:
        self._make, self._graph = make, None
        super().__init__(None, options, backend)  # type: ignore[arg-type]  # made later

    _graph: Graph | None

    @property
    def graph(self) -> Graph:
        if self._graph is None:
            self._graph = self._make()
        return self._graph

    @graph.setter
    def graph(self, graph: Graph | None) -> None:
        self._graph = graph


@dataclass(frozen=True)
class _Part:
    """A graph for many sizes: a whole program, or one half of it.

    Attributes:
        captured: the graph.
        rolled: the same with its loops found, by which its family knows it.
        facts: all that code depends on beside it.
    """

    captured: General
    rolled: General
    options: Options
    backend: str
    facts: str
    families: Families

    @staticmethod
    def of(graph: Graph, options: Options, conditions: Conditions, families: Families) -> _Part:
        """Take up a graph whose numbers know what they are made of.

        Raises:
            OneSizeOnly: it is not what has been captured for single sizes.
        """
        backend = choose_backend(graph, options)
        if backend == "interpret":
            raise OneSizeOnly("its programs run op by op")
        facts = cache_key("", options, backend)
        rolled = families.confirm(derived(rolled_graph(graph, options, backend), conditions), facts)
        if rolled is None:
            raise OneSizeOnly("captured for any size it is another graph than for single ones")
        return _Part(derived(graph, conditions), rolled, options, backend, facts, families)

    def compiled(self, sizes: Mapping[str, int], builds: bool) -> Compilation | None:
        """The program for some sizes; None where there is no build that serves them, nor can be.

        Args:
            builds: make one where there is none.
        """
        from graphc.runtime.load import program_sharing

        make = partial(driver.build_for_sizes, self.options, self.backend) if builds else None
        found = self.families.find_sizes(self.rolled, sizes, self.facts, make)
        if found is None:
            return None
        build, program = found
        compilation = _Compilation(lambda: self.captured.at(sizes), self.options, self.backend)
        try:
            with driver.timed(compilation.seconds, "load"):
                compilation.execute = program_sharing(build.loaded, program)
        except CompilerError:  # of kernels that a device compiles now
            return None
        compilation.program = program
        return compilation


class Many:
    """The programs of a capture for many sizes.

    Args:
        captured: the capture.
        options: of the function.
        families: of the function, which have seen what it captures for single sizes.
        stats: where compiles are counted.

    Raises:
        OneSizeOnly: it is for the sizes of its call alone after all.
    """

    def __init__(self, captured: Captured, options: Options, families: Families, stats: Stats) -> None:
        sized = captured.sized
        assert sized is not None
        self._captured, self._sized, self._options = captured, sized, options
        self._stats = stats
        self._lock = threading.RLock()
        self._entries: dict[Key, Entry] = {}
        self._others: set[Key] = set()  # of calls that no program fits
        self._split: Split | None = None
        self._joint: Joint | None = captured.joint
        conditions = sized.conditions
        with driver.collector_paused():
            if captured.joint is None:
                self._forward = _Part.of(captured.graph, options, conditions, families)
            else:
                self._split = split = driver.split_joint(captured.joint, options)
                captured.graph = split.forward
                self._forward = _Part.of(split.forward, options, conditions, families)
                behind = driver.backward_options(split.backward, split, options)
                self._backward = _Part.of(split.backward, behind, conditions, families)
        if is_pinned(conditions, conditions.given()):
            raise OneSizeOnly(f"it holds for these sizes alone: {'; '.join(str(conditions).splitlines()[-3:])}")

    def find(self, inputs: Sequence[Any]) -> Entry | None:
        """What runs a call; None where it is not for such calls, or something must be built for it first.

        Args:
            inputs: of the program.
        """
        key = self._sized.key(inputs)
        found = self._entries.get(key)
        if found is not None or key in self._others:
            return found
        found = self._made(key, inputs, builds=False)
        self._stats.hits -= found is not None  # the call is counted for one, and the program is new
        return found

    def build(self, inputs: Sequence[Any]) -> bool:
        """Build what a call needs; False where the capture does not hold for it."""
        key = self._sized.key(inputs)
        return key in self._entries or self._made(key, inputs, builds=True) is not None

    def _made(self, key: Key, inputs: Sequence[Any], builds: bool) -> Entry | None:
        with self._lock, driver.collector_paused():
            if key in self._entries:
                return self._entries[key]
            sizes = self._sized.sizes_of(inputs)
            found = None if sizes is None else self._entry(sizes, builds)
            if found is not None:
                self._others.clear()  # what has been built may serve them
                if not self._entries:
                    leave_to_native(self._captured, found.compilation)
                self._stats.compiles += 1
                self._stats.known += bool(self._entries)
                self._entries[key] = found
            elif len(self._others) < _MOST:
                self._others.add(key)
            return found

    def _entry(self, sizes: Mapping[str, int], builds: bool) -> Entry | None:
        forward = self._forward.compiled(sizes, builds)
        if forward is None:
            return None
        captured = self._captured.at(sizes)
        if self._joint is None:
            return entry_of(captured, forward)
        assert self._split is not None
        part, values = self._backward, self._sized.conditions.all_sizes(sizes)

        def recorded() -> Compilation:
            found = part.compiled(sizes, builds=True)
            return driver.compile_graph(part.captured.at(sizes), part.options) if found is None else found

        cotangents = [at(value, values) for value in cotangents_of(self._split, self._joint)]
        behind = driver.Behind(cotangents, lambda: part.captured.at(sizes), recorded)
        execute = driver.with_backward(self._joint, self._split, self._options, forward, None, behind)
        return entry_of(captured, forward, execute)
