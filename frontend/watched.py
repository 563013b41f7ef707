"""Lists that know whether anybody looks into them; see `graphc.frontend.growing`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

ADDING = frozenset(("append", "extend"))
"""Methods that change a list and do not look into it."""
_LOOKING = (
    "__getitem__", "__iter__", "__len__", "__contains__", "__reversed__", "__eq__", "__ne__", "__lt__", "__le__",
    "__gt__", "__ge__", "__add__", "__mul__", "__rmul__", "__imul__", "__setitem__", "__delitem__", "__repr__",
    "__reduce_ex__", "copy", "count", "index", "insert", "pop", "remove", "reverse", "sort", "appendleft",
    "extendleft", "popleft", "rotate",
)  # fmt: skip


class Watched:
    """What the lists have in common.

    Args:
        own: the user's list, in whose place it is.

    Attributes:
        looked: something of its contents has been seen.
        added: what has been added, in order.
        cleared: what was in it when it was made has been removed without looking at it.
        shared: it is part of what the function has returned or kept elsewhere.
    """

    looked = shared = cleared = False

    def __init__(self, own: Any) -> None:
        super().__init__(*((own, own.maxlen) if isinstance(own, deque) else (own,)))
        self.own = own
        self.added: list[Any] = []


def _looking(kind: type, name: str) -> Callable[..., Any]:
    method = getattr(kind, name)

    def look(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.looked = True
        return method(self, *args, **kwargs)

    return look


def _watched(kind: Any) -> type:
    class WatchedItems(Watched, kind):
        def append(self, item: Any) -> None:
            self.added.append(item)
            kind.append(self, item)

        def extend(self, items: Iterable[Any]) -> None:
            added = list(items)
            self.added += added
            kind.extend(self, added)

        def __iadd__(self, items: Iterable[Any]) -> Any:
            self.extend(items)
            return self

        def clear(self) -> None:
            self.cleared = True
            self.added.clear()
            kind.clear(self)

        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            self.looked = True
            return np.array(contents(self), *args, **kwargs)

    for name in _LOOKING:
        if hasattr(kind, name):
            setattr(WatchedItems, name, _looking(kind, name))
    return WatchedItems


kinds: dict[type, type] = {kind: _watched(kind) for kind in (list, deque)}
"""The classes that stand for lists and deques."""


def contents(items: Any) -> list[Any]:
    """What is in a list or deque; one that watches does not notice."""
    return list((deque if isinstance(items, deque) else list).__iter__(items))


def look_into(items: Iterable[Any]) -> None:
    """Arguments that are lists which watch are looked into by code that is not Python."""
    for item in items:
        if isinstance(item, Watched):
            item.looked = True


def users(item: Any) -> Any:
    """The user's list, for one that watches and that has got out of its place; else the item itself."""
    if not isinstance(item, Watched):
        return item
    item.shared = True
    return item.own
