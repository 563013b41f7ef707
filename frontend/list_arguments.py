"""Lists among the arguments that a function only adds to: `step(x, losses)` with `losses.append(loss.item())`.

Arguments are opened: what is in their lists are inputs and facts, of which a list that grows has others in every call.
So a capture that finds a list to have grown is made again with that list closed. The function is given one that watches
in its place, and what it adds is added to the caller's own after each run, whatever is in that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from graphc.frontend.leaves import Path, find
from graphc.frontend.watched import Watched, contents


@dataclass(frozen=True)
class Lists:
    """What is known of lists among the arguments of a function.

    Args:
        closed: those that are taken as they are.
        open: those that the function does more with than adding to them.
    """

    closed: frozenset[Path] = frozenset()
    open: frozenset[Path] = frozenset()

    def with_closed(self, paths: Iterable[Path]) -> Lists:
        """These are taken as they are from now on, unless the function is known to look into them."""
        return replace(self, closed=(self.closed | frozenset(paths)) - self.open)

    def with_open(self, paths: Iterable[Path]) -> Lists:
        """The function looks into these."""
        found = frozenset(paths)
        return Lists(self.closed - found, self.open | found)

    def ids(self, call: Any) -> set[int]:
        """Those of the lists in a call that are taken as they are.

        Args:
            call: (args, kwargs).
        """
        return {id(item) for path in self.closed if type(item := _found(call, path)) is list}


def _found(call: Any, path: Path) -> Any:
    try:
        return find(call, path)
    except (AttributeError, KeyError, IndexError, TypeError):
        return None  # this call has other arguments


class OtherLists(Exception):
    """The arguments are to be taken in another way."""

    def __init__(self, lists: Lists) -> None:
        self.lists = lists


def only_grows(watched: Any) -> bool:
    """Nothing has been done to a list that watches but adding to it, and it is nowhere else."""
    assert isinstance(watched, Watched)
    now, before = contents(watched), contents(watched.own)
    fits = len(now) == len(before) + len(watched.added)
    return fits and not (watched.looked or watched.cleared or watched.shared) and _begins(now, before)


def has_grown(now: list[Any], before: list[Any]) -> bool:
    """A list has what was in it, and more."""
    return len(now) > len(before) and _begins(now, before)


def _begins(now: list[Any], before: list[Any]) -> bool:
    return all(new is old for new, old in zip(now, before, strict=False))
