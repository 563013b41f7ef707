"""Functions that go through the items of a data loader: the loop runs in Python, and each turn is a compiled function.

A loader gives other items in every run, in an order that it draws, from files, processes or the net: a program cannot
hold them. So such a loop is not unrolled. What stands before and behind it runs as it is written.
"""

from __future__ import annotations

import gc
import threading
import types
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from graphc.frontend import tree
from graphc.frontend.captured import flatten_call
from graphc.frontend.loop_bodies import KEPT, LOOPS, UNBOUND, SplitFunction, split_loops
from graphc.frontend.objects import is_plain_object, open_class
from graphc.options import Options

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
        options: of the compiled callable.
        compile: makes a compiled function of one that does a turn.
    """

    def __init__(
        self,
        function: types.FunctionType,
        split: SplitFunction,
        options: Options,
        compile: Callable[[Callable[..., Any], Options], Turn],
    ) -> None:
        self._function, self._split, self._options, self._compile = function, split, options, compile
        self._cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        self._of_thread = threading.local()  # what is held in cells is that of one call
        self.run = self._make(split.code, {LOOPS: types.CellType(self)})
        self.run.__defaults__, self.run.__kwdefaults__ = function.__defaults__, function.__kwdefaults__

    def _make(self, code: types.CodeType, cells: Mapping[str, types.CellType]) -> types.FunctionType:
        known = {**self._cells, **cells}
        closure = tuple(known[name] for name in code.co_freevars)
        qualified = self._function.__qualname__.removesuffix(self._function.__name__) + code.co_name
        code = code.replace(co_qualname=qualified)
        return types.FunctionType(code, self._function.__globals__, code.co_name, None, closure)

    @staticmethod
    def is_data(items: Any) -> bool:
        """Whether what a loop goes through is a data loader, or takes its items from one, as `enumerate` does."""
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
        given = {name: scope.get(name, Unbound) for name in body.reads}
        scope.clear()
        held = frozenset(name for name in body.grows if isinstance(given[name], (list, deque)))
        compiled, cells = self._compiled(number, held)
        for name in held:
            cells[name].cell_contents = given[name]
        records = {name for name, value in given.items() if name in self._split.own and _is_record(value)}
        for name in records:
            open_class(type(given[name]))
        arguments = [value for name, value in given.items() if name not in held]
        changing = [name in body.changing or name in records for name in given if name not in held]
        compiled.expect_changes(lambda: _numbers(arguments, changing))
        found: tuple[int, Any, dict[str, Any]] = compiled(*arguments)
        return found

    def _compiled(self, number: int, held: frozenset[str]) -> tuple[Turn, dict[str, types.CellType]]:
        made: dict[Any, tuple[Turn, dict[str, types.CellType]]] = self._of_thread.__dict__.setdefault("made", {})
        if (number, held) not in made:
            cells = {name: types.CellType() for name in held}
            fixed = {KEPT: types.CellType(kept), UNBOUND: types.CellType(Unbound)}
            function = self._make(self._split.body_code(number, held), {**cells, **fixed})
            made[number, held] = self._compile(function, replace(self._options, name=function.__name__)), cells
        return made[number, held]


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


def data_loops(
    target: Callable[..., Any], options: Options, compile: Callable[[Callable[..., Any], Options], Turn]
) -> DataLoops | None:
    """What runs a function turn by turn; None where that cannot be done."""
    split = split_loops(target) if isinstance(target, types.FunctionType) else None
    return None if split is None else DataLoops(target, split, options, compile)  # type: ignore[arg-type]
