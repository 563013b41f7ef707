"""The generators of Python and numpy while a function is captured: what it draws from them is told to the capture."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from graphc.frontend.draws import Draw, Draws
from graphc.frontend.guards import is_plain, snapshot
from graphc.frontend.inputs import Access, bind, bound
from graphc.frontend.objects import is_traced
from graphc.frontend.python_random import generators, refused

_OF_METHOD = ".__self__"
"""Ends an access to the generator of a method that has a name of its own, as `from random import choice` gives it."""
_STATES = ("seed", "getstate", "setstate", "get_state", "set_state")


class GeneratorProxy:
    """In the place of a generator of the user's: what is drawn from it is told to the capture.

    Args:
        own: the generator.
        draws: of the capture.
    """

    __slots__ = ("_draws", "_thread", "own")

    def __init__(self, own: Any, draws: Draws) -> None:
        self.own, self._draws, self._thread = own, draws, threading.get_ident()

    __class__ = property(lambda self: type(self.own))

    def __getattr__(self, name: str) -> Any:
        item = getattr(self.own, name)
        if not callable(item) or name.startswith("_") or name in _STATES:
            return item
        return _telling(name, item, self._draws, self._thread)


def stand_in(item: Any, draws: Draws) -> Any:
    """What the function is given for an argument: for a generator, what tells of it."""
    if not isinstance(item, generators()):
        return item
    return draws.stand_ins.setdefault(id(item), GeneratorProxy(item, draws))


def own(item: Any) -> Any:
    """The user's generator, for what stands in for it; else the item itself."""
    return item.own if type(item) is GeneratorProxy else item


@contextlib.contextmanager
def told(draws: Draws, read: Iterable[tuple[Access, Any]]) -> Iterator[None]:
    """For the block, what this thread draws from generators it gets from `draws`.

    Args:
        read: (access, object) of objects that the function is found to read: generators, and methods under names of its
            own.

    Raises:
        EagerOnlyError: a program cannot draw that.
    """
    stand_ins: dict[int, Any] = {}
    places: list[tuple[Any, Any]] = []
    for module, name, method in _methods():
        stand_ins[id(method)] = _telling(name, method, draws, threading.get_ident())
        places.append((module, name))
    for access, item in read:
        if isinstance(item, generators()):
            stand_ins[id(item)] = stand_in(item, draws)
            if access.suffix.endswith(_OF_METHOD):
                access = Access(access.root, access.suffix.removesuffix(_OF_METHOD))
                item = access.resolve()
                stand_ins[id(item)] = _telling(item.__name__, item, draws, threading.get_ident())
        if id(item) in stand_ins and (place := access.place()) is not None:
            places.append(place)
    replaced: list[tuple[Any, Any, Any]] = []
    try:
        for home, name in places:
            original = bound(home, name)
            if id(original) in stand_ins:
                replaced.append((home, name, original))
                bind(home, name, stand_ins[id(original)])
        yield
    finally:
        for home, name, original in replaced:
            bind(home, name, original)


def _methods() -> Iterator[tuple[Any, str, Any]]:
    """(module, name, method) of all that the global generators can do but for their states."""
    owners = [(random, random._inst)]
    numpy: Any = sys.modules.get("numpy.random")
    owners += [] if numpy is None else [(numpy, numpy.mtrand._rand)]
    for module, generator in owners:
        for name, item in vars(module).items():
            if getattr(item, "__self__", None) is generator and not name.startswith("_") and name not in _STATES:
                yield module, name, item


def _telling(name: str, method: Callable[..., Any], draws: Draws, thread: int) -> Callable[..., Any]:
    """Stands in for a method of a generator."""
    generator = method.__self__  # type: ignore[attr-defined]  # it is a method
    family = "random" if isinstance(generator, random.Random) else "numpy.random"
    choose = _CHOICES.get((family, name))
    full = f"{family}.{name}"

    def draw(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return method(*args, **kwargs)
        if isinstance(generator, random.SystemRandom):
            raise refused(full, draws.location())
        if choose is not None and (chosen := choose(draws, full, method, *args, **kwargs)) is not None:
            return chosen[0]
        if not is_plain(args) or not is_plain(kwargs) or any(map(is_traced, (*args, *kwargs.values()))):
            raise refused(full, draws.location())
        outcomes = _outcomes(full, args, kwargs)
        return draws.draw(Draw(full, method, tuple(map(snapshot, args)), snapshot(kwargs), outcomes))

    return draw


def _choice(draws: Draws, name: str, method: Callable[..., Any], items: Any) -> tuple[Any]:
    """`random.choice`, of which the index is drawn."""
    drawn = draws.draw(Draw(name, method, (range(len(items)),), {}, len(items)))
    return (items[drawn],)


def _numpy_choice(
    draws: Draws, name: str, method: Callable[..., Any], a: Any, *args: Any, **kwargs: Any
) -> tuple[Any] | None:
    """`numpy.random.choice` of one item of many, of which the index is drawn; None for all else."""
    if args or kwargs.keys() - {"p"} or not isinstance(a, (list, tuple)) or not is_plain([*a, kwargs], 2):
        return None
    drawn = draws.draw(Draw(name, method, (len(a),), snapshot(kwargs), len(a)))
    return (a[drawn],)


_CHOICES: dict[tuple[str, str], Callable[..., tuple[Any] | None]] = {
    ("random", "choice"): _choice, ("numpy.random", "choice"): _numpy_choice,
}  # fmt: skip


def _outcomes(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many whole numbers a draw may give; 0 where it gives others, or is not known."""
    count = _OUTCOMES.get(name)
    try:
        return 0 if count is None else max(count(*args, **kwargs), 0)
    except TypeError:
        return 0  # the call is an error, or has arguments that are not looked into


_OUTCOMES: dict[str, Callable[..., int]] = {
    "random.randint": lambda a, b: b - a + 1,
    "random.randrange": lambda *bounds: len(range(*bounds)),
    "random.getrandbits": lambda k: 1 << k,
    "numpy.random.randint": lambda low, high=None: low if high is None else high - low,
    "numpy.random.integers": lambda low, high=None: low if high is None else high - low,
    "numpy.random.choice": lambda a, p=None: a,
    "numpy.random.binomial": lambda n, p: n + 1,
}
