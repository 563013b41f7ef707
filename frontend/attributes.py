"""Attributes, closure cells, globals and hooks that a function changes: `self.n += 1`, `self.h = h.detach()`.

The function runs once, while it is captured, and whatever it binds then must be bound again after every run. So what it
has bound is put back when the capture ends, and becomes an effect: tensors and traced numbers are outputs of the
program, plain values are kept. A number that is found to change between calls becomes an input of the program.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from graphc.frontend import tree
from graphc.frontend.growing import Change, Growing
from graphc.frontend.guards import GROWING, AnyOf, GuardBuilder, is_plain, same, snapshot
from graphc.frontend.inputs import (
    GONE,
    Access,
    Binding,
    BindingKind,
    bind,
    bound,
    names_of,
    put_in_order,
    shown_key,
    slots_of,
)
from graphc.frontend.leaves import OutputLeaf
from graphc.frontend.objects import holders, is_plain_object, is_traced
from graphc.frontend.reads import keeps_state, parts_of
from graphc.frontend.watched import Watched, users

if TYPE_CHECKING:
    from graphc.frontend.modules import ModuleFacts
    from graphc.frontend.reads import Reads
    from graphc.frontend.recorder import Recorder
    from graphc.ir.graph import Graph

_DEPTH = 2
Home: TypeAlias = Any
"""See `inputs.bound`."""


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
            bind(self.home, self.key, GONE)
            return
        bind(self.home, self.key, _rebuilt(self.node, self.leaves, outputs))


class Attributes:
    """The names that a function can be seen to reach, as they were before it ran.

    Args:
        reads, modules: where names are.
        dynamic: keys of numbers that are to be inputs of the program.
        wide: see `Growing`.

    Attributes:
        replaced: keys of places where `rebound` has found lists and dicts that make way for others in every run.
    """

    def __init__(self, reads: Reads, modules: ModuleFacts, dynamic: Collection[Hashable], wide: bool = False) -> None:
        self.numbers = {number.key: number for number in _numbers(reads, modules)}
        for module in modules.modules():
            reads.note_class(type(module))
        tables = [*modules.tables(), *((path, access, access.resolve()) for path, access in reads.tables)]
        others = [held for held in reads.holders if keeps_state(held[2])]
        tables += _attributes((*_held(modules.modules()), *others))
        tables += [*reads.slotted, *((name, Access(cls, ""), cls) for cls, name in reads.classes.items())]
        tables = [table for table in tables if _is_home(table[2])]
        self._tables = {id(table): (path, access) for path, access, table in reversed(tables)}
        homes: dict[int, Home] = {id(table): table for _, _, table in (*tables, *_attributes(reads.holders))}
        hooks = {id(table): table for table in modules.hook_tables()}
        homes.update(hooks)
        self._hooks = frozenset(hooks)
        self._before = [(home, names_of(home)) for home in homes.values()]
        self.numbers.update({n.key: n for n in self._numbers_found(dynamic) if n.key not in self.numbers})
        self.inputs = {key: self.numbers[key] for key in dynamic if key in self.numbers}
        places = [access.place() for _, access, _ in (*reads.values, *reads.identities)]
        places += [access.place() for _, access in reads.objects]
        single = {(id(place[0]), place[1]): place for place in places if place and id(place[0]) not in homes}
        self._single = [(home, name, bound(home, name)) for home, name in single.values()]
        self._contents = reads.contents
        self.replaced: set[Hashable] = set()
        self._placed: dict[tuple[int, Any], tuple[Home, Any, Any, Any]] = {}
        self._guarded: dict[Hashable, Callable[[GuardBuilder], None]] = {}
        slots = [
            (path, access, home, name)
            for path, access, home in tables
            if type(home) is not list
            for name in names_of(home)
        ]
        self.growing = Growing(reads, [*slots, *(("", None, home, name) for home, name, _ in self._single)], wide)

    def _numbers_found(self, dynamic: Collection[Hashable]) -> Iterator[Number]:
        """Numbers in homes that an earlier capture has found to change, though nothing is seen to read them."""
        for home, before in self._before if dynamic else ():
            path, access = self._tables.get(id(home), ("", None))
            for name, value in before.items() if access is not None else ():
                if type(value) in (int, float) and (id(home), name) in dynamic:
                    yield Number(f"{path}[{shown_key(name)}]", access.item(home, name), value)

    def place(self, recorder: Recorder) -> None:
        """Put traced numbers where numbers are that shall be inputs."""
        for key, number in self.inputs.items():
            home, name = number.access.place()  # type: ignore[misc]  # numbers have one
            traced = recorder.number_input(number.value, number.path, number.access, key)
            self._placed[id(home), name] = home, name, traced, number.value
            bind(home, name, traced)
        self.growing.place()

    def changed(self) -> list[tuple[Home, str, Any]]:
        """(home, name, new value) of every name bound anew to something that can be bound again after each run.

        For a list that the function has added to, or changed in another way, the value is that `Change`.
        """
        return [
            (home, name, new)
            for home, name, old, new in self._differences()
            if new is not self._stood(home, name, old) and self._is_effect(home, new, old)
        ] + self.growing.changed()

    def _stood(self, home: Home, name: Any, old: Any) -> Any:
        """What was there when the function began."""
        return self._placed[id(home), name][2] if (id(home), name) in self._placed else old

    def _is_effect(self, home: Home, new: Any, old: Any) -> bool:
        """Something that can be bound again after each run; hooks always can."""
        return id(home) in self._hooks or _is_effect(new, old)

    def _differences(self) -> Iterator[tuple[Home, str, Any, Any]]:
        for home, before in self._before:
            now = names_of(home)
            if isinstance(home, list) and len(now) != len(before):
                continue  # for `Growing`
            for name in [*before, *(name for name in now if name not in before)]:
                old, new = before.get(name, GONE), bound(home, name)
                if new is not old and not self.growing.watches(home, name):
                    yield home, name, old, new
        for home, name, old in self._single:
            new = bound(home, name)
            if new is not old and not self.growing.watches(home, name):
                yield home, name, old, new

    def rebound(self) -> set[int]:
        """Ids of the tensors in whose place the function has bound others."""
        found: set[int] = set()
        for home, name, old, new in self._differences():
            if old is not GONE and _is_effect(new, old):
                if type(old) in (list, dict):
                    self.replaced.add((id(home), name))
                found.update(id(leaf) for leaf in tree.flatten(old)[0] if isinstance(leaf, torch.Tensor))
        return found

    def restore(self) -> None:
        """Bind names to what they were bound to before, where `changed` tells of it or where both are alike."""
        self.growing.restore()
        self._note_changed()
        for home, name, traced, number in self._placed.values():
            if bound(home, name) is traced:
                bind(home, name, number)
        for home, name, old, new in list(self._differences()):
            if self._is_effect(home, new, old) or (id(home), name) in self._placed or _is_alike(new, old):
                bind(home, name, old)
        for home, before in self._before:
            if isinstance(home, dict) and home.keys() == before.keys() and list(home) != list(before):
                put_in_order(home, before)

    def _note_changed(self) -> None:
        """Dicts and objects in which names are changed, and what these were, are facts if they were none before."""
        for home, name, old, _ in self._differences():
            path, access = self._tables.get(id(home), ("", None))
            if access is None:
                continue
            self._guarded[access.key()] = partial(GuardBuilder.is_object, where=access, item=home, what=path)
            inner = access.item(home, name)
            path += f"[{shown_key(name)}]" if isinstance(home, (dict, list)) else f".{name}"
            if is_plain(old):
                self._guarded[inner.key()] = partial(GuardBuilder.equals, where=inner, item=snapshot(old), what=path)
                if type(old) in (int, float) and inner.place() is not None:
                    self.numbers.setdefault(inner.key(), Number(path, inner, old))
            elif old is GONE and not isinstance(home, list):
                absent = GuardBuilder.is_absent if isinstance(home, dict) else GuardBuilder.lacks
                self._guarded[inner.key()] = partial(absent, where=access, key=name, what=path)

    def guards(self, g: GuardBuilder) -> None:
        """The facts that have come to light while the function ran."""
        for key, fact in self._guarded.items():
            if key not in self.inputs:
                fact(g)
        self.growing.guards(g, lambda home, before: _masked_items(home, before, set(), self.inputs))

    def masked(self, access: Access, value: Any) -> Any:
        """The value to guard at a place, where numbers in it may be inputs and lists in it may grow."""
        unseen = self.growing.unseen()
        if type(value) not in (list, dict, tuple) or not (unseen or self.inputs):
            return value
        return _masked(access.resolve(), unseen, self.inputs)

    def contents(self) -> Iterator[tuple[str, Access, Any]]:
        """(path, access, items) of the containers of more than plain values whose items are to be guarded."""
        unseen = self.growing.unseen()
        for path, access, home, items in self._contents:
            if id(home) not in unseen:
                yield path, access, _masked_items(home, items, unseen, self.inputs)


def _masked(value: Any, unseen: Collection[int], inputs: Collection[Hashable]) -> Any:
    if id(value) in unseen:
        return GROWING
    if type(value) is tuple:
        return tuple(_masked(item, unseen, inputs) for item in value)
    return _masked_items(value, value, unseen, inputs) if type(value) in (list, dict) else snapshot(value)


def _masked_items(home: Any, items: Any, unseen: Collection[int], inputs: Collection[Hashable]) -> Any:
    """What to compare items with that are, or were, in a list or dict."""

    def item(key: Any, value: Any) -> Any:
        if (id(home), key) in inputs:
            return AnyOf(type(value))
        return _masked(value, unseen, inputs) if is_plain(value) else value

    if isinstance(items, dict):
        return {key: item(key, value) for key, value in items.items()}
    return [item(key, value) for key, value in enumerate(items)]


def _is_home(item: Any) -> bool:
    """Something in which names can be bound one by one."""
    return isinstance(item, (dict, list, type)) or bool(slots_of(type(item)))


@dataclass(frozen=True)
class GrowEffect:
    """A list that a run adds to.

    Args:
        home, key: where the list is.
        node, leaves: the list of what is added, as in `BindEffect`.
        replaces: it takes the place of what was in the list.
    """

    home: Home
    key: str
    node: tree.Node
    leaves: tuple[OutputLeaf, ...]
    replaces: bool

    def apply(self, outputs: list[Any], inputs: Sequence[Any]) -> None:
        """Add it; `outputs` are the leaves of this run that are effects."""
        items = bound(self.home, self.key)
        if self.replaces:
            items.clear()
        items.extend(_rebuilt(self.node, self.leaves, outputs))


def _rebuilt(node: tree.Node, leaves: tuple[OutputLeaf, ...], outputs: list[Any]) -> Any:
    found = (outputs[leaf.number] if leaf.number >= 0 else snapshot(leaf.constant) for leaf in leaves)
    return tree.rebuild(node, found)


def effects_of(changed: list[tuple[Home, str, Any]], first: int) -> tuple[list[BindEffect | GrowEffect], list[Any]]:
    """Effects that bind names, and the tensors and traced numbers that takes, numbered from `first`."""
    effects: list[BindEffect | GrowEffect] = []
    made: list[Any] = []
    for home, name, value in changed:
        if value is GONE:
            effects.append(BindEffect(home, name, None))
            continue
        leaves, node = flatten(value)
        outputs = []
        for leaf in leaves:
            if is_traced(leaf):
                outputs.append(OutputLeaf(first + len(made)))
                made.append(leaf)
            else:
                outputs.append(OutputLeaf(constant=snapshot(users(leaf))))
        if isinstance(value, Change):
            effects.append(GrowEffect(home, name, node, tuple(outputs), value.replaces))
        else:
            effects.append(BindEffect(home, name, node, tuple(outputs)))
    return effects, made


def flatten(value: Any) -> tuple[list[Any], tree.Node]:
    """Leaves and structure of what `Attributes.changed` tells of; new objects with traced tensors are opened."""
    value = value.items if isinstance(value, Change) else value
    opened = holders(value, is_traced)
    return tree.flatten(value, lambda item: id(item) in opened, lambda item: isinstance(item, Watched))


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


def _held(modules: Iterable[torch.nn.Module]) -> Iterator[tuple[str, Access, Any]]:
    """(path, access, object) of the plain objects that are attributes of modules, and of those in them."""
    seen: set[int] = set()
    queue = [(key, Access(m.__dict__, f"[{key!r}]"), item, _DEPTH) for m in modules for key, item in m.__dict__.items()]
    while queue:
        path, access, item, depth = queue.pop()
        if not is_plain_object(item) or id(item) in seen:
            continue
        seen.add(id(item))
        yield path, access, item
        for key, inner in vars(item).items() if depth else ():
            queue.append((f"{path}.{key}", Access(access.root, f"{access.suffix}.__dict__[{key!r}]"), inner, depth - 1))


def _attributes(objects: Iterable[tuple[str, Access, Any]]) -> Iterator[tuple[str, Access, dict[str, Any]]]:
    for path, access, item in objects:
        yield path, Access(access.root, f"{access.suffix}.__dict__"), vars(item)


def _numbers(reads: Reads, modules: ModuleFacts) -> Iterator[Number]:
    for path, access, value in (*modules.plain(), *reads.values):
        yield from _numbers_in(path, access, value)
    for path, access, home, _ in reads.contents:
        for suffix, part in parts_of(home):
            yield from _numbers_in(path + suffix, Access(access.root, access.suffix + suffix), part)


def _numbers_in(path: str, access: Access, value: Any) -> Iterator[Number]:
    if type(value) in (int, float):
        if access.place() is not None:
            yield Number(path, access, value)
    elif type(value) in (list, dict, tuple):
        for suffix, part in parts_of(value):
            yield from _numbers_in(path + suffix, Access(access.root, access.suffix + suffix), part)


def _is_effect(new: Any, old: Any) -> bool:
    """Something that can be bound again: a deletion, a plain value, a structure with traced tensors or numbers."""
    if new is GONE or is_traced(new):
        return True
    if is_plain(new):
        return not same(new, old)
    return (isinstance(new, (list, tuple, dict)) or is_plain_object(new)) and any(map(is_traced, flatten(new)[0]))


def _is_alike(new: Any, old: Any, depth: int = 6) -> bool:
    """The very same, or a new container or plain object that consists of the same."""
    if new is old:
        return True
    if type(new) is not type(old) or not depth:
        return False
    if type(new) in (list, tuple):
        return len(new) == len(old) and all(_is_alike(a, b, depth - 1) for a, b in zip(new, old, strict=True))
    if isinstance(new, dict):
        return list(new) == list(old) and all(_is_alike(new[key], old[key], depth - 1) for key in new)
    if is_plain(new):
        return same(new, old)
    return is_plain_object(new) and _is_alike(vars(new), vars(old), depth - 1)
