"""Lists that a function adds to and keeps: `self.losses.append(loss.detach())`, `history["loss"].append(loss.item())`.

While the function is captured, another list stands in the place of such a list. It knows what is added, and whether
anybody looks at the rest. What is added is added again after each run; as long as nobody looks, the list may have grown
in between, and no fact about what is in it is guarded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from graphc.frontend.guards import GuardBuilder, holds
from graphc.frontend.inputs import Access, bind, bound
from graphc.frontend.reads import Reads
from graphc.frontend.watched import contents, kinds


class Unwatched(Exception):
    """The function has changed a list that it could not be seen to change: capture it again, and watch all lists."""


@dataclass
class _Place:
    """Where a list is: under a key of a dict or in a closure cell, and how that dict is reached, if it may be another.

    Attributes:
        own, before: the user's list, and what was in it.
        watched: what stands in its place while the function runs.
        changed: when it has run: it has added to the list, or done something else to it.
        left: when it has run: it has left the watching list in its place.
    """

    home: Any
    key: Any
    path: str
    table: Access | None
    own: Any
    before: list[Any]
    watched: Any = None
    changed: bool = False
    left: bool = False

    @property
    def is_there(self) -> bool:
        """The function has left it in its place."""
        return self.watched is not None and bound(self.home, self.key) is self.watched

    def has_changed(self) -> bool:
        return self.watched.cleared or bool(self.watched.added) or _differs(contents(self.watched), self.before)

    def change(self) -> Change:
        """What the function has done to the list."""
        now, count = contents(self.watched), len(self.before)
        before = [] if self.watched.cleared else self.before
        if not self.watched.looked and not _differs(now, [*before, *self.watched.added][-(len(now) or 1) :]):
            return Change(list(self.watched.added), self.watched.cleared)
        drops = isinstance(self.own, deque) and self.own.maxlen is not None
        if drops or len(now) < count or any(new is not old for new, old in zip(now, self.before, strict=False)):
            self.watched.looked = True  # what comes out depends on what was in it
            return Change(now, replaces=True)
        return Change(now[count:])


@dataclass(frozen=True)
class Change:
    """What each run adds to a list, or puts into it in the place of everything."""

    items: list[Any]
    replaces: bool = False


class Growing:
    """The lists that a function can be seen to add to, as they were before it ran.

    Args:
        reads: where they are.
        slots: (path, access, dict, key) of the names that the function can reach, or a closure cell; where the dict may
            be another one in later calls, an access to it.
        wide: watch all lists in `slots`, as the function has changed one that it could not be seen to change.

    Attributes:
        ends_early: the run has ended at a decision; what comes behind it has guards of its own.
    """

    def __init__(self, reads: Reads, slots: Iterable[tuple[str, Access | None, Any, Any]], wide: bool) -> None:
        self._places: dict[tuple[int, Any], _Place] = {}
        self.ends_early = False
        self._seen = reads.seen
        self._others: list[tuple[Any, list[Any]]] = []
        for path, reached in reads.grown:
            place = reached.place()
            if place is not None:
                self._note(*place, path, None)
        for path, access, home, key in slots:
            found = bound(home, key)
            if type(found) not in kinds:
                continue
            if wide:
                self._note(home, key, f"{path}[{key!r}]" if path else str(key), access)
            elif (id(home), key) not in self._places:
                self._others.append((found, list(found)))

    def _note(self, home: Any, key: Any, path: str, table: Access | None) -> None:
        found = bound(home, key)
        if type(found) in kinds:
            self._places.setdefault((id(home), key), _Place(home, key, path, table, found, list(found)))

    def check(self) -> None:
        """After the run.

        Raises:
            Unwatched: it has made a list longer or shorter that nobody watches.
        """
        if any(len(items) != len(before) for items, before in self._others):
            raise Unwatched

    def place(self) -> None:
        """Put the lists that watch into the places of the user's."""
        for place in self._places.values():
            place.watched = kinds[type(place.own)](place.own)
            place.watched.looked = id(place.own) in self._seen
            bind(place.home, place.key, place.watched)

    def restore(self) -> None:
        """Put the user's lists back, where the function has left the others, which then hold nothing any more."""
        for place in self._places.values():
            if place.is_there:
                place.changed, place.left = place.has_changed(), True
                bind(place.home, place.key, place.own)
            if place.watched is not None:
                place.watched.clear()  # and so what was added
        for items, before in self._others:
            if _differs(items, before):
                items.clear()
                items.extend(before)

    def watches(self, home: Any, key: Any) -> bool:
        """A list that watches stands there."""
        place = self._places.get((id(home), key))
        return place is not None and place.is_there

    def changed(self) -> list[tuple[Any, Any, Change]]:
        """(home, key, change) of every list that is no longer as it was."""
        places = (place for place in self._places.values() if place.is_there and place.has_changed())
        return [(place.home, place.key, place.change()) for place in places]

    def unseen(self) -> set[int]:
        """Ids of the lists that grow, now or behind a decision, and that nobody looks into: they may hold anything."""
        return {id(place.own) for place in self._places.values() if self._grows(place) and not place.watched.looked}

    def _grows(self, place: _Place) -> bool:
        return place.changed or (self.ends_early and place.left)

    def guards(self, g: GuardBuilder, masked: Callable[[Any, Any], Any]) -> None:
        """Guard where changed lists are, and what was in those that the function has looked into.

        Args:
            masked: given a list and what was in it, what to compare that with.
        """
        for place in self._places.values():
            if not (self._grows(place) or (place.watched is not None and place.watched.shared)):
                continue
            if place.table is not None:
                g.is_object(place.table, place.home, place.path.rpartition("[")[0])
            access = Access(place.home, "").item(place.home, place.key)
            where = g.hold(access.root) + access.suffix
            if place.watched.shared:
                g.is_object(where, place.own, place.path)
            g.check(f"type({where}) is {g.hold(type(place.own))}", f"the type of {place.path}")
            if place.watched.looked:
                g.check(f"{g.hold(holds(masked(place.own, place.before)))}({where})", f"what is in {place.path}")


def _differs(now: Iterable[Any], before: list[Any]) -> bool:
    items = list(now)
    return len(items) != len(before) or any(new is not old for new, old in zip(items, before, strict=True))
