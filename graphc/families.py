"""One build for calls of many sizes: what is compiled for sizes that have changed holds for others too.

first size       compiled for it alone, as everything is that never changes
second size      the two graphs are compared; the numbers in which they differ become sizes, and what is compiled now is
                 for these sizes, with the conditions under which it is right for others
further ones     the graph is looked up: where it is the same but for sizes, and the conditions hold, only numbers are
                 filled in; where they do not, as when a row no longer fits in a cache, it is compiled once more

The function itself runs on traced tensors for a size, or once for any sizes, see `graphc.many`; a graph that comes out
otherwise is another one.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from graphc.builds import Build, find_build, store_build
from graphc.errors import GraphcError, GraphcWarning
from graphc.ir.generalize import General, Outline, generalize, generalize_inputs, outline
from graphc.ir.sizes import LEAST

if TYPE_CHECKING:
    from graphc.entries import Stats
    from graphc.ir.graph import Graph
    from graphc.ir.sizes import Conditions
    from graphc.program.record import Program

_MOST_SAMPLES = 5
_MOST_PINNED = 3
"""Builds of a family that turned out to be for one size alone, one after the other, after which it is not tried any
more."""
_NEAR = range(-64, 65)
"""How far from a size others are looked for that meet the same conditions."""


Roll = Callable[["Graph"], "Graph"]
"""Gives a copy of a captured graph with its loops found, which has as many ops for any number of turns."""
Make = Callable[["Graph"], tuple["Program", bytes]]
"""Optimises, plans, generates and builds a graph."""


@dataclass
class Family:
    """Graphs that differ in numbers alone."""

    samples: list[Outline] = field(default_factory=list)
    graphs: list[Graph | None] = field(default_factory=list)  # as captured, of samples that were compiled alone
    general: General | None = None
    builds: list[Build] = field(default_factory=list)
    pinned: int = 0
    refusal: str = ""

    def sizes_of(self, found: Outline) -> dict[str, int] | None:
        """The sizes of a graph of the family; None where it is not like the others."""
        sizes = None if self.general is None else self.general.sizes_of(found)
        if sizes is not None or len(self.samples) == _MOST_SAMPLES or found.numbers in self._numbers():
            return sizes
        general = generalize([*self.samples, found])
        sizes = None if general is None else general.sizes_of(found)
        if sizes is not None:
            self.add(found)
            self.general = general
        return sizes

    def add(self, found: Outline, graph: Graph | None = None) -> None:
        """Take up a graph."""
        if len(self.samples) < _MOST_SAMPLES and found.numbers not in self._numbers():
            first = self.samples[0] if self.samples else found
            self.samples.append(replace(found, graph=first.graph, rest=first.rest))  # numbers are what differs
            self.graphs.append(graph)

    def drop(self, graph: Graph) -> None:
        """Let go of a graph."""
        kept = [at for at, other in enumerate(self.graphs) if other is not graph]
        self.samples, self.graphs = [self.samples[at] for at in kept], [self.graphs[at] for at in kept]

    def _numbers(self) -> list[tuple[int | float, ...]]:
        return [sample.numbers for sample in self.samples]


class Families:
    """The graphs of one compiled function, and what has been built for several of them.

    Args:
        stats: where builds, reuses and refusals are counted.
    """

    def __init__(self, stats: Stats) -> None:
        self._families: dict[Hashable, Family] = {}
        self._of: dict[int, Family] = {}  # by graph, of those that there are programs of
        self._waiting: list[tuple[Graph, str, Roll]] = []  # not compared with any other yet
        self._lock = threading.RLock()
        self._stats = stats

    def __iter__(self) -> Iterator[Family]:
        return iter(list(self._families.values()))

    def find(self, graph: Graph, facts: str, roll: Roll, make: Make) -> tuple[bytes, Program] | None:
        """The program of a graph, and its library, by a build for several sizes; None when it is to be for it alone.

        Args:
            graph: as captured.
            facts: all that code depends on beside the graph.
            roll: finds its loops.
            make: builds one for several sizes.
        """
        with self._lock:
            if not (self._waiting or self._families):
                return None
            self._compare()
            found = outline(roll(graph))
            result = self._find(found, facts) or self._made(found, facts, make)
            if result is None:
                return None
            family = self._of[id(graph)] = self._families[facts, found.rest]
            family.add(found)
            build, program = result
            return build.library, program

    def find_sizes(
        self, general: General, sizes: Mapping[str, int], facts: str, make: Make | None
    ) -> tuple[Build, Program] | None:
        """As `find`, for the graph that one for many sizes is for some; with the build.

        Args:
            make: None: what has been built is looked at, and no more.
        """
        with self._lock:
            family = self._families.get((facts, general.first.rest))
            if family is None:  # its programs have been withdrawn
                return None
            for build in family.builds:
                if build.general.is_like(general) and build.conditions.hold(sizes):
                    return self._reused(family, build, sizes)
            found = general.outline(sizes)
            return self._find(found, facts) or (None if make is None else self._made(found, facts, make))

    def _find(self, found: Outline, facts: str) -> tuple[Build, Program] | None:
        family = self._families.get((facts, found.rest))
        if family is None:
            return None
        for build in family.builds:
            sizes = build.general.sizes_of(found)
            if sizes is not None and build.conditions.hold(sizes):
                return self._reused(family, build, sizes)
        stored = None if family.refusal else find_build(found, facts)
        if stored is None:
            return None
        family.builds.insert(0, stored)
        return self._find(found, facts)

    def _reused(self, family: Family, build: Build, sizes: Mapping[str, int]) -> tuple[Build, Program]:
        self._stats.reuses += 1
        family.pinned = 0
        return build, build.program_for(sizes)

    def _made(self, found: Outline, facts: str, make: Make) -> tuple[Build, Program] | None:
        family = self._families.get((facts, found.rest))
        sizes = None if family is None else family.sizes_of(found)
        if family is None or sizes is None or family.refusal or min(sizes.values()) < LEAST:
            return None
        return self._build(family, sizes, facts, make)

    def inputs_of(self, graph: Graph) -> General | None:
        """What the inputs of a graph that there is a program of are like in all graphs of its family.

        Returns:
            A graph of which the inputs are told; None where no two graphs of the family are for other sizes.
        """
        with self._lock:
            if len(self._waiting) + len(self._of) < 2:
                return None
            self._compare()
            family = self._of.get(id(graph))
            if family is None or family.refusal or len(family.samples) < 2:
                return None
            return family.general or generalize_inputs(family.samples)

    def confirm(self, found: General, facts: str) -> General | None:
        """What a family goes by from now on: a graph for many sizes that is each of those captured for one.

        Returns:
            The graph; None where it is not each of them, or there are not two.
        """
        with self._lock:
            family = self._families.get((facts, found.first.rest))
            if family is None or len(family.samples) < 2 or not all(map(found.gives, family.samples)):
                return None
            if family.general is None or not family.general.is_like(found):
                family.general = found
            return family.general

    def remember(self, graph: Graph, facts: str, roll: Roll) -> None:
        """A graph has been compiled for itself alone; arguments as of `find`."""
        with self._lock:
            self._waiting.append((graph, facts, roll))  # a function that is called for one size pays nothing

    def _compare(self) -> None:
        for graph, facts, roll in self._waiting:
            found = outline(roll(graph))
            family = self._of[id(graph)] = self._families.setdefault((facts, found.rest), Family())
            family.add(found, graph)
        self._waiting.clear()

    def refuse(self, graph: Graph, facts: str, roll: Roll, error: GraphcError) -> None:
        """What was built for several sizes cannot be loaded: graphs of this family are for themselves from now on."""
        with self._lock:
            family = self._families[facts, outline(roll(graph)).rest]
            family.builds = []
            self._refuse(family, error.message)

    def forget(self, graph: Graph) -> None:
        """The program of a graph has been withdrawn."""
        with self._lock:
            self._of.pop(id(graph), None)
            self._waiting = [item for item in self._waiting if item[0] is not graph]
            for key, family in list(self._families.items()):
                family.drop(graph)
                if not family.samples:
                    del self._families[key]

    def _build(self, family: Family, sizes: dict[str, int], facts: str, make: Make) -> tuple[Build, Program] | None:
        assert family.general is not None
        graph, conditions = family.general.graph(sizes)
        try:
            program, library = make(graph)
        except Exception as error:  # what is wrong with more than the sizes shows when the graph is compiled alone
            if isinstance(error, GraphcError):
                self._refuse(family, error.message)
                return None
            self._refuse(family, f"{type(error).__name__}: {error}")
            warnings.warn(GraphcWarning(f"building for several sizes failed: {family.refusal}"), stacklevel=2)
            return None
        self._stats.builds += 1
        build = Build(program, library, conditions, family.general)
        if is_pinned(conditions, sizes):
            family.pinned += 1
            if family.pinned == _MOST_PINNED:
                self._refuse(
                    family, f"what was built turned out to be for one size alone, {_MOST_PINNED} times in a row"
                )
        else:
            store_build(build, facts)
        family.builds.insert(0, build)
        return build, build.program_for(sizes)

    def _refuse(self, family: Family, reason: str) -> None:
        family.refusal = reason
        self._stats.alone.append(reason)


def is_pinned(conditions: Conditions, sizes: dict[str, int]) -> bool:
    """Whether what was built is for these sizes alone, and for none near them."""
    return not any(
        conditions.hold({**sizes, name: value + step})
        for name, value in sizes.items()
        for step in _NEAR
        if step and value + step >= LEAST
    )
