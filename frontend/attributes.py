"""Attributes, closure cells, globals and hooks that a function changes: `self.n += 1`, `self.h = h.detach()`.

The function runs once, while it is captured, and whatever it binds then must be bound again after every run. So what it
has bound is put back when the capture ends, and becomes an effect: tensors and traced numbers are outputs of the
program, plain values are kept. A number that is found to change between calls becomes an input of the program.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from graphc.frontend import tree
from graphc.frontend.guards import is_plain, same, snapshot
from graphc.frontend.inputs import Access, Binding, BindingKind
from graphc.frontend.leaves import OutputLeaf
from graphc.frontend.objects import is_traced

if TYPE_CHECKING:
    from graphc.frontend.modules import ModuleFacts
    from graphc.frontend.reads import Reads
    from graphc.frontend.recorder import Recorder
    from graphc.ir.graph import Graph

Home: TypeAlias = Any
"""A dict with names, or a closure cell."""

_GONE = object()


@dataclass(frozen=True)
class Number:
    """A Python number that guards compare, and that may become an input instead.

    Args:
        access: how it is found in every call.
        value: when captured.
    """

    path: str
    access: Access
    value: int | float

    @property
    def key(self) -> Hashable:
        """Names the place; see `Access.key`."""
        return self.access.key()

    def has_changed(self) -> bool:
        """Another number of the same type is there now."""
        try:
            now = self.access.resolve()
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            return False
        return type(now) is type(self.value) and not same(now, self.value)


@dataclass(frozen=True)
class BindEffect:
    """A name that a run binds.

    Args:
        home, key: where.
        node: the structure bound; None where the name is deleted.
        leaves: its leaves, each a constant or the number of an effect's output.
    """

    home: Home
    key: str
    node: tree.Node | None
    leaves: tuple[OutputLeaf, ...] = ()

    def apply(self, outputs: list[Any], inputs: Sequence[Any]) -> None:
        """Bind it; `outputs` are the leaves of this run that are effects."""
        if self.node is None:
            _bind(self.home, self.key, _GONE)
            return
        found = [outputs[leaf.number] if leaf.number >= 0 else snapshot(leaf.constant) for leaf in self.leaves]
        _bind(self.home, self.key, tree.rebuild(self.node, iter(found)))


class Attributes:
    """The names that a function can be seen to reach, as they were before it ran.

    Args:
        reads, modules: where names are.
        dynamic: keys of numbers that are to be inputs of the program.
    """

    def __init__(self, reads: Reads, modules: ModuleFacts, dynamic: Collection[Hashable]) -> None:
        self.numbers = {number.key: number for number in _numbers(reads, modules)}
        self.inputs = {key: self.numbers[key] for key in dynamic if key in self.numbers}
        homes: dict[int, Home] = {}
        homes.update({id(table): table for table in modules.tables()})
        homes.update({id(table): table for table in reads.holders})
        hooks = {id(table): table for table in modules.hook_tables()}
        homes.update(hooks)
        self._hooks = frozenset(hooks)
        self._before = [(home, dict(home)) for home in homes.values()]
        places = [access.place() for _, access, _ in (*reads.values, *reads.identities)]
        places += [access.place() for _, access in reads.objects]
        single = {(id(place[0]), place[1]): place for place in places if place and id(place[0]) not in homes}
        self._single = [(home, name, _bound(home, name)) for home, name in single.values()]
        self._placed: dict[tuple[int, str], Any] = {}

    def place(self, recorder: Recorder) -> None:
        """Put traced numbers where numbers are that shall be inputs."""
        for key, number in self.inputs.items():
            home, name = number.access.place()  # type: ignore[misc]  # numbers have one
            traced = recorder.number_input(number.value, number.path, number.access, key)
            self._placed[id(home), name] = traced
            _bind(home, name, traced)

    def changed(self) -> list[tuple[Home, str, Any]]:
        """(home, name, new value) of every name bound anew to something that can be bound again after each run."""
        return [
            (home, name, new)
            for home, name, old, new in self._differences()
            if new is not self._placed.get((id(home), name), old) and self._is_effect(home, new, old)
        ]

    def _is_effect(self, home: Home, new: Any, old: Any) -> bool:
        """Something that can be bound again after each run; hooks always can."""
        return id(home) in self._hooks or _is_effect(new, old)

    def _differences(self) -> Iterator[tuple[Home, str, Any, Any]]:
        for home, before in self._before:
            for name in [*before, *(name for name in home if name not in before)]:
                old, new = before.get(name, _GONE), home.get(name, _GONE)
                if new is not old:
                    yield home, name, old, new
        for home, name, old in self._single:
            new = _bound(home, name)
            if new is not old:
                yield home, name, old, new

    def rebound(self) -> set[int]:
        """Ids of the tensors in whose place the function has bound others."""
        found: set[int] = set()
        for _, _, old, new in self._differences():
            if old is not _GONE and _is_effect(new, old):
                found.update(id(leaf) for leaf in tree.flatten(old)[0] if isinstance(leaf, torch.Tensor))
        return found

    def restore(self) -> None:
        """Bind every name to what it was bound to before, where `changed` tells of it."""
        for home, name, old, new in list(self._differences()):
            if self._is_effect(home, new, old) or (id(home), name) in self._placed:
                _bind(home, name, old)


def effects_of(changed: list[tuple[Home, str, Any]], first: int) -> tuple[list[BindEffect], list[Any]]:
    """Effects that bind names, and the tensors and traced numbers that takes, numbered from `first`."""
    effects: list[BindEffect] = []
    made: list[Any] = []
    for home, name, value in changed:
        if value is _GONE:
            effects.append(BindEffect(home, name, None))
            continue
        leaves, node = tree.flatten(value)
        outputs = []
        for leaf in leaves:
            if is_traced(leaf):
                outputs.append(OutputLeaf(first + len(made)))
                made.append(leaf)
            else:
                outputs.append(OutputLeaf(constant=snapshot(leaf)))
        effects.append(BindEffect(home, name, node, tuple(outputs)))
    return effects, made


def look_up_rebound(
    graph: Graph, bindings: list[Binding], rebound: set[int], places: Collection[Hashable] = ()
) -> list[Binding]:
    """Tensors that a name is likely to find others of later are looked up in every call.

    Those are plain attributes, the tensors of `rebound`, and what is found at `places`, which held another tensor in an
    earlier call. A tensor that the program writes stays guarded by identity: what overlaps with it in memory was found
    out for this very tensor. So do trained tensors, which gradients and optimizers know by identity.
    """
    written = {write.target for write in graph.writes}
    found = []
    for value, binding in zip(graph.inputs, bindings, strict=False):
        fixed = binding.kind is BindingKind.FIXED and len(binding.accesses) == 1 and value not in written
        if fixed and (binding.rebindable or id(binding.tensor) in rebound or _moved_before(binding, places)):
            binding = replace(binding, kind=BindingKind.FOUND)
        found.append(binding)
    return found


def _moved_before(binding: Binding, places: Collection[Hashable]) -> bool:
    trained = binding.tensor is not None and binding.tensor.requires_grad
    return bool(places) and not trained and binding.accesses[0].key() in places


def _numbers(reads: Reads, modules: ModuleFacts) -> Iterator[Number]:
    for path, access, value in (*modules.plain(), *reads.values):
        if type(value) in (int, float) and access.place() is not None:
            yield Number(path, access, value)


def _bound(home: Home, name: str) -> Any:
    if not isinstance(home, types.CellType):
        return home.get(name, _GONE)
    try:
        return home.cell_contents
    except ValueError:  # an empty cell
        return _GONE


def _bind(home: Home, name: str, value: Any) -> None:
    if isinstance(home, types.CellType):
        if value is _GONE:
            del home.cell_contents
        else:
            home.cell_contents = value
    elif value is _GONE:
        home.pop(name, None)
    else:
        home[name] = value


def _is_effect(new: Any, old: Any) -> bool:
    """Something that can be bound again: a deletion, a plain value, a structure with traced tensors or numbers."""
    if new is _GONE or is_traced(new):
        return True
    if is_plain(new):
        return not same(new, old)
    return isinstance(new, (list, tuple, dict)) and any(map(is_traced, tree.flatten(new)[0]))
