"""Plain Python objects that hold tensors, such as a cache of keys and values, among arguments and results.

An argument of such a class is taken as its attributes: tensors in it are inputs, the rest is guarded by value, and the
function is given a copy, so that another object with the same contents is another call of the same program. Which
classes these are is seen from an object that holds tensors, or that the function has put one in while it was captured.
"""

from __future__ import annotations

import random
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from graphc.frontend import host, tree
from graphc.frontend.shown import shows
from graphc.frontend.traced import TracedTensor
from graphc.frontend.watched import Watched

_LIMIT = 20_000
_KNOWN = (torch.nn.Module, torch.optim.Optimizer, LRScheduler, torch.amp.GradScaler)
_NEVER_PLAIN = (
    *_KNOWN, torch.Tensor, type, types.FunctionType, types.MethodType, types.ModuleType, random.Random,
)  # fmt: skip
"""What is known by identity: of these, a copy with the same contents is not the same to the function."""
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: defined in Python
_TAKES_TENSORS: set[type] = set()


class Restart(Exception):
    """The function has put tensors into an argument's object: capture it again with that class opened."""


def is_plain_object(value: Any) -> bool:
    """An instance of a class written in Python whose attributes are all that it consists of."""
    cls = type(value)
    if not hasattr(value, "__dict__") or isinstance(value, _NEVER_PLAIN) or shows(value):
        return False
    if any(isinstance(item, _KNOWN) for item in vars(value).values()):
        return False  # as a trainer is, with its network: another one is another program in any case
    return cls.__new__ is object.__new__ and all(
        base.__flags__ & _HEAP_TYPE and not vars(base).get("__slots__") for base in cls.__mro__[:-1]
    )


def is_traced(value: Any) -> bool:
    """A tensor or number of the capture."""
    return type(value) is TracedTensor or host.is_traced(value)


def holders(value: Any, holds: Callable[[Any], bool]) -> dict[int, Any]:
    """The plain objects in `value`, by id, that have a leaf for which `holds` is true somewhere in them.

    So are those in one list with such an object: of the layers of a cache some hold nothing.
    """
    found: dict[int, Any] = {}
    seen: set[int] = set()

    def search(item: Any) -> bool:
        if holds(item):
            return True
        if id(item) in found:
            return True
        if id(item) in seen or len(seen) > _LIMIT or isinstance(item, Watched):
            return False
        children = tree.parts(item)
        if children is not None:
            seen.add(id(item))
            hold = sum(map(search, children[2])) > 0  # all of them, for `found`
            if type(item) is list and any(id(child) in found for child in children[2]):
                found.update((id(child), child) for child in children[2] if is_plain_object(child))
            return hold
        if not is_plain_object(item):
            return False
        seen.add(id(item))
        if sum(map(search, list(vars(item).values()))):
            found[id(item)] = item
            return True
        return False

    search(value)
    return found


def opened_arguments(value: Any) -> Callable[[Any], bool]:
    """Which objects among these arguments are taken as their attributes."""
    with_tensors = holders(value, lambda item: isinstance(item, torch.Tensor))
    return lambda item: id(item) in with_tensors or type(item) in _TAKES_TENSORS


def open_class(cls: type) -> None:
    """Objects of this class among arguments are taken as their attributes from now on."""
    _TAKES_TENSORS.add(cls)


class Closed:
    """Objects among the arguments that are not opened, with what they and all they reach looked like before the run.

    Args:
        leaves: of the arguments.
    """

    def __init__(self, leaves: list[Any]) -> None:
        self._objects = [leaf for leaf in leaves if is_plain_object(leaf)]
        self._before = [(home, home.copy()) for leaf in self._objects for home in _homes(leaf)]

    def check(self) -> None:
        """After the run.

        Raises:
            Restart: tensors of the capture are in one of them.
        """
        classes = {type(found) for leaf in self._objects for found in holders(leaf, is_traced).values()}
        if classes:
            _TAKES_TENSORS.update(classes)
            self.restore()
            raise Restart

    def restore(self) -> None:
        """Put back the contents of all dicts, lists and attributes."""
        for home, contents in self._before:
            if isinstance(home, list):
                home[:] = contents
            else:
                home.clear()
                home.update(contents)


def _homes(value: Any) -> Iterator[Any]:
    """The dicts, lists and tables of attributes in an object, itself included."""
    queue, seen = [value], set[int]()
    while queue and len(seen) < _LIMIT:
        item = queue.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if is_plain_object(item):
            item = vars(item)
        if type(item) in (list, dict):
            yield item
        children = tree.parts(item)
        queue.extend(children[2] if children is not None else ())
