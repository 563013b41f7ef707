"""Containers and objects among the arguments that a function changes: `cache.keys = ...`, `found.append(x)`.

The function runs once, on copies of them (but see `list_arguments`). What it has done to the copies is done again to
the caller's own after each run: tensors and traced numbers are outputs of the program, plain values are kept, and what
was there before is found in the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from graphc.frontend import tree
from graphc.frontend.guards import is_plain, same, snapshot
from graphc.frontend.leaves import Key, OutputLeaf, Path, find
from graphc.frontend.list_arguments import Lists, has_grown, only_grows
from graphc.frontend.objects import holders, is_plain_object, is_traced
from graphc.frontend.watched import Watched, users


@dataclass(frozen=True)
class Change:
    """New contents of one list, dict or object.

    Args:
        path: where the caller has it.
        keys: of the items, for a dict or the attributes of an object; empty for a list.
        node, leaves: the list of items.
        adds: the items are put behind those of a list.
    """

    path: Path
    keys: tuple[Any, ...]
    node: tree.Node
    leaves: tuple[OutputLeaf, ...]
    adds: bool = False


@dataclass(frozen=True)
class ArgumentEffect:
    """All that a run changes in containers and objects of its arguments."""

    changes: tuple[Change, ...]

    def ready(self, outputs: list[Any], call: Any) -> Callable[[], None]:
        """What makes the changes; everything that is found in the call is looked up now.

        Args:
            outputs: the leaves of this run that are effects.
            call: (args, kwargs).
        """
        found = [(find(call, change.path), change, _items(change, outputs, call)) for change in self.changes]

        def change_all() -> None:
            for home, change, items in found:
                if change.adds:
                    home.extend(items)
                else:
                    _fill(home, change.keys, items)

        return change_all


def _items(change: Change, outputs: list[Any], call: Any) -> list[Any]:
    made: list[Any] = tree.rebuild(change.node, (_item(leaf, outputs, call) for leaf in change.leaves))
    return made


def _item(leaf: OutputLeaf, outputs: list[Any], call: Any) -> Any:
    if leaf.path is not None:
        return find(call, leaf.path)
    return outputs[leaf.number] if leaf.number >= 0 else snapshot(leaf.constant)


def _fill(home: Any, keys: tuple[Any, ...], items: list[Any]) -> None:
    if isinstance(home, list):
        home[:] = items
        return
    table = home if isinstance(home, dict) else vars(home)
    dict.clear(table)
    dict.update(table, zip(keys, items, strict=True))


@dataclass(frozen=True)
class Changed:
    """As `Change`, in the capture: the leaves are those of the run."""

    path: Path
    keys: tuple[Any, ...]
    leaves: list[Any]
    node: tree.Node
    adds: bool = False


def argument_effect(given: Given, changed: list[Changed], first: int) -> tuple[ArgumentEffect | None, list[Any]]:
    """The effect, and the tensors and traced numbers that takes, numbered from `first`."""
    made: list[Any] = []
    changes = []
    for change in changed:
        outputs = []
        for leaf in change.leaves:
            outputs.append(OutputLeaf(first + len(made)) if is_traced(leaf) else OutputLeaf(constant=users(leaf)))
            if is_traced(leaf):
                made.append(leaf)
        located = tuple(given.located(change.leaves, outputs))
        changes.append(Change(change.path, change.keys, change.node, located, change.adds))
    return (ArgumentEffect(tuple(changes)) if changes else None), made


class Given:
    """The arguments as the function is given them.

    Args:
        given: (args, kwargs), with stand-ins for tensors and copies of containers and objects.
    """

    def __init__(self, given: Any) -> None:
        self._homes: list[tuple[Path, Any, Any]] = []  # path, the copy, its contents
        self._known: dict[int, Path] = {}
        self._watched: list[tuple[Path, Any]] = []  # lists that are taken as they are
        for number, part in enumerate(given):  # the tuple and the dict of the call itself are no one's
            items = enumerate(part) if number == 0 else ((Key(key), value) for key, value in part.items())
            for step, item in items:
                self._note(item, (number, step))

    def _note(self, item: Any, path: Path) -> None:
        if id(item) in self._known:
            return
        if isinstance(item, Watched):
            self._known[id(item)] = path
            self._watched.append((path, item))
            return
        if is_plain_object(item) and tree.parts(item) is None:
            contents: Any = dict(vars(item))
            inner: Iterator[tuple[Any, Any]] = iter(contents.items())
        elif isinstance(item, dict):
            contents = dict(item)
            inner = ((Key(key), value) for key, value in contents.items())
        elif isinstance(item, list):
            contents = list(item)
            inner = enumerate(contents)
        elif isinstance(item, tuple):
            contents, inner = None, enumerate(item)
        elif tree.parts(item) is not None and hasattr(item, "__dict__"):
            contents = dict(vars(item))
            inner = iter(contents.items())
        else:
            return
        if contents is not None:
            self._known[id(item)] = path
            self._homes.append((path, item, contents))
        for step, value in inner:
            self._note(value, (*path, step))

    def flatten(self, value: Any) -> tuple[list[Any], tree.Node]:
        """Leaves and structure, where what the caller has given is a leaf, and objects with traced tensors are not."""
        opened = holders(value, is_traced)
        return tree.flatten(value, lambda item: id(item) in opened, self._is_kept)

    def gives(self, item: Any) -> bool:
        """Something that the caller has given, or the copy of it."""
        return id(item) in self._known

    def _is_kept(self, item: Any) -> bool:
        return self.gives(item) or isinstance(item, Watched)

    def located(self, leaves: list[Any], outputs: list[OutputLeaf]) -> list[OutputLeaf]:
        """What becomes of leaves, with the caller's own containers and objects in the places of their copies."""
        paths = (self._known.get(id(leaf)) for leaf in leaves)
        return [out if path is None else OutputLeaf(path=path) for path, out in zip(paths, outputs, strict=True)]

    def changed(self) -> list[Changed]:
        """Everything whose items are others now."""
        found = []
        for path, copy, contents in self._homes:
            if _same_items(copy, contents):
                continue
            now = copy if isinstance(copy, (list, dict)) else vars(copy)
            items, keys = (now, ()) if isinstance(now, list) else (list(now.values()), tuple(now))
            found.append(Changed(path, keys, *self.flatten(list(items))))
        for path, watched in self._watched:
            if watched.added:
                found.append(Changed(path, (), *self.flatten(list(watched.added)), adds=True))
        return found

    def lists(self, known: Lists) -> Lists:
        """What is known of lists, with what this run of the function has shown."""
        grown = (path for path, copy, before in self._homes if isinstance(copy, list) and has_grown(copy, before))
        return known.with_closed(grown).with_open(path for path, watched in self._watched if not only_grows(watched))


def _same_items(copy: Any, contents: Any) -> bool:
    now = copy if isinstance(copy, (list, dict)) else vars(copy)
    if len(now) != len(contents):
        return False
    if isinstance(now, list):
        return all(map(_is_same, now, contents))
    return tuple(now) == tuple(contents) and all(_is_same(now[key], contents[key]) for key in now)


def _is_same(new: Any, old: Any) -> bool:
    return new is old or (is_plain(new) and is_plain(old) and same(new, old))
