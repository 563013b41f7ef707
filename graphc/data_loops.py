"""Functions that go through the items of a data loader: the loop runs in Python, and each turn is a compiled function.

A loader gives other items in every run, in an order that it draws, from files, processes or the net: a program cannot
hold them. So such a loop is not unrolled. What stands before and behind it runs as it is written.
"""

from __future__ import annotations

import gc
import inspect
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from graphc.frontend import tree
from graphc.frontend.captured import flatten_call
from graphc.frontend.inputs import bound
from graphc.frontend.loop_bodies import KEPT, LOOPS, UNBOUND, LoopBody, SplitFunction, note_outer, split_loops
from graphc.frontend.objects import is_plain_object, open_class
from graphc.frontend.shown import Shown, shows
from graphc.options import Options

_DATA = (DataLoader, Iterator)
_DEPTH, _MOST = 4, 200
"""How far, and among how many objects, a loader is looked for in what a loop goes through."""


class Turn(Protocol):
    """A compiled function."""

    def __call__(self, *args: Any) -> Any: ...
    def expect_changes(self, find: Callable[[], set[int]]) -> None: ...


class Unbound:
    """Stands for a name that is not bound yet."""


def kept(scope: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Those of these names that are bound in a turn; nothing else of it stays."""
    found = {name: scope[name] for name in names if name in scope}
    scope.clear()  # before Python 3.13 it lives as long as the frame
    return found


class DataLoops:
    """Runs a function turn by turn.

    Args:
        function: as the user wrote it.
        split: the same with its loops split.
        known: numbers of loops that go through data.
        options: of the compiled callable.
        compile: makes a compiled function of one that does a turn.

    Attributes:
        run: calls like the function.
    """

    def __init__(
        self,
        function: types.FunctionType,
        split: SplitFunction,
        known: frozenset[int],
        options: Options,
        compile: Callable[[Callable[..., Any], Options], Turn],
    ) -> None:
        self._function, self._split, self._known = function, split, known
        self._options, self._compile = options, compile
        self._cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        self._of_thread = threading.local()  # what is held in cells is that of one call
        self._made: dict[str, Any] = {}
        run = self._make(split.code, {LOOPS: types.CellType(self)})
        run.__defaults__, run.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
        self.run: Callable[..., Any] = run

    def _make(self, code: types.CodeType, cells: Mapping[str, types.CellType]) -> types.FunctionType:
        known = {**self._cells, **cells}
        closure = tuple(known[name] for name in code.co_freevars)
        qualified = self._function.__qualname__.removesuffix(self._function.__name__) + code.co_name
        code = code.replace(co_qualname=qualified)
        return types.FunctionType(code, self._function.__globals__, code.co_name, None, closure)

    def is_data(self, number: int, items: Any) -> bool:
        """Whether a loop goes through a data loader, or what takes its items from one, as `enumerate` does."""
        if number in self._known:
            return True
        level, seen = [items], set[int]()
        for _ in range(_DEPTH):
            following: list[Any] = []
            for item in level:
                if isinstance(item, (DataLoader, _BaseDataLoaderIter)):
                    return True
                if id(item) not in seen and len(seen) < _MOST and not isinstance(item, (type, types.ModuleType)):
                    seen.add(id(item))
                    following += gc.get_referents(item)
            level = following
        return False

    def turn(self, number: int, scope: dict[str, Any]) -> tuple[int, Any, dict[str, Any]]:
        """One turn of a loop.

        Args:
            scope: what is bound in the function.

        Returns:
            How it ends, the result of the function where that is RETURN, and names that the turn has bound.
        """
        body = self._split.bodies[number]
        given = {name: self._one(name, scope.get(name, Unbound)) for name in body.reads}
        scope.clear()
        held = frozenset(name for name in body.grows if isinstance(given[name], (list, deque)))
        compiled, cells = self._compiled(number, held)
        for name in held:
            cells[name].cell_contents = given[name]
        arguments = [value for name, value in given.items() if name not in held]
        compiled.expect_changes(lambda: self._changing(body, {n: v for n, v in given.items() if n not in held}))
        found: tuple[int, Any, dict[str, Any]] = compiled(*arguments)
        return found

    def _changing(self, body: LoopBody, given: Mapping[str, Any]) -> set[int]:
        """Leaves of a turn's arguments that are numbers and change from turn to turn, those of records included, which
        are opened for that."""
        records = {name for name, value in given.items() if name in self._split.own and _is_record(value)}
        for name in records:
            open_class(type(given[name]))
        return _numbers(list(given.values()), [name in body.changing or name in records for name in given])

    def _one(self, name: str, value: Any) -> Any:
        """A function, loss or bar of progress that each call of the function makes anew is the same for all calls."""
        if shows(value):
            shown = self._of_thread.__dict__.setdefault("shown", {}).setdefault(name, Shown())
            shown.current = value
            return shown
        if name not in self._split.own or not isinstance(value, (types.FunctionType, torch.nn.Module)):
            return value
        if isinstance(value, torch.nn.Module) and not _is_simple(vars(value)):
            return value
        known = self._made.get(name)
        if known is None or not _is_alike(known, value):
            known = self._made[name] = value
        return known

    def _compiled(self, number: int, held: frozenset[str]) -> tuple[Turn, dict[str, types.CellType]]:
        made: dict[Any, tuple[Turn, dict[str, types.CellType]]] = self._of_thread.__dict__.setdefault("made", {})
        if (number, held) not in made:
            cells = {name: types.CellType() for name in held}
            fixed = {KEPT: types.CellType(kept), UNBOUND: types.CellType(Unbound)}
            function = self._make(self._split.body_code(number, held), {**cells, **fixed})
            note_outer(function, self._function)
            made[number, held] = self._compile(function, replace(self._options, name=function.__name__)), cells
        return made[number, held]


def _is_alike(one: Any, other: Any) -> bool:
    """Whether two functions, or two modules of which the first has no state, do the same."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, types.FunctionType):
        if one.__code__ is not other.__code__:
            return False
        cells = zip(one.__closure__ or (), other.__closure__ or (), strict=True)
        same = all(bound(a, "cell_contents") is bound(b, "cell_contents") for a, b in cells)
        return same and one.__defaults__ is other.__defaults__ is None and not (one.__dict__ or other.__dict__)
    return _is_simple(vars(other)) and vars(one) == vars(other)


def _is_simple(value: Any) -> bool:
    """A number, a text, nothing, or a container of such, as tables of parameters and hooks that hold none."""
    if isinstance(value, dict):
        return all(map(_is_simple, value.values()))
    return isinstance(value, (int, float, str, type(None))) or (isinstance(value, (set, tuple)) and not value)


def _is_record(value: Any) -> bool:
    """An object of numbers and the like, as what averages a loss."""
    return is_plain_object(value) and all(
        isinstance(item, (int, float, str, type(None))) for item in vars(value).values()
    )


def _numbers(arguments: list[Any], changing: list[bool]) -> set[int]:
    """Leaves of the arguments that are numbers, in those that change from turn to turn."""
    leaves, node = flatten_call(tuple(arguments), {})
    found: set[int] = set()
    place = 0
    for is_one, child in zip(changing, node.children[0].children, strict=True):
        if is_one and (child is tree.LEAF or child.kind == "object"):
            found |= {at for at in range(place, place + child.count()) if type(leaves[at]) in (int, float)}
        place += child.count()
    return found


def names_of_data(target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[str]:
    """Parameters that are given data loaders, generators and other iterators: items that come once."""
    if not any(isinstance(value, _DATA) for value in (*args, *kwargs.values())):
        return frozenset()
    try:
        given = inspect.signature(target).bind(*args, **kwargs).arguments
    except TypeError:
        return frozenset()  # the call is an error, which eager raises
    return frozenset(name for name, value in given.items() if isinstance(value, _DATA))


def data_loops(
    target: Callable[..., Any],
    is_data: Callable[[LoopBody], bool],
    options: Options,
    compile: Callable[[Callable[..., Any], Options], Turn],
) -> DataLoops | None:
    """What runs a function turn by turn.

    Args:
        is_data: whether a loop is known to go through data.

    Returns:
        None where no loop is, or where the function cannot be split.
    """
    function = target.__func__ if isinstance(target, types.MethodType) else target
    split = split_loops(function) if isinstance(function, types.FunctionType) else None
    known = frozenset(number for number, body in enumerate(split.bodies) if is_data(body)) if split else None
    if split is None or not known:
        return None
    made = DataLoops(function, split, known, options, compile)  # type: ignore[arg-type]
    if isinstance(target, types.MethodType):
        made.run = types.MethodType(made.run, target.__self__)
    return made
