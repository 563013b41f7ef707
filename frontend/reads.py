"""What a function reads beside its arguments: globals, closure cells and attributes, found in its byte code.

Python code is not executed here. From `scale * table[cfg.size]` we learn that the global `cfg.size` is read; the guards
then hold its value. Functions the user's function calls are read too.
"""

from __future__ import annotations

import dis
import functools
import types
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any, TypeAlias

import torch
from torch.optim.lr_scheduler import LRScheduler

from graphc.frontend.guards import is_plain, snapshot
from graphc.frontend.inputs import Access
from graphc.frontend.locations import is_user_code
from graphc.frontend.watched import ADDING

Chain: TypeAlias = tuple[str, str, tuple[str, ...]]
"""(`global`, `cell` or `local`, name, attributes read from it in a row)."""


@lru_cache(maxsize=4096)
def chains(code: types.CodeType) -> tuple[Chain, ...]:
    """The names a code object and the functions defined inside it read, each with the attributes that follow."""
    found: dict[Chain, None] = {}
    root: tuple[str, str] | None = None
    attributes: list[str] = []
    first = code.co_varnames[0] if code.co_argcount else ""
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if root is not None and name in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.append(instruction.argval)
            continue
        if root is not None and name not in ("CACHE", "PUSH_NULL", "RESUME"):
            found[(*root, tuple(attributes))] = None
            root = None
        if name in ("LOAD_GLOBAL", "LOAD_NAME"):
            root, attributes = ("global", instruction.argval), []
        elif name in ("LOAD_DEREF", "LOAD_CLASSDEREF"):
            root, attributes = ("cell", instruction.argval), []
        elif name.startswith("LOAD_FAST") and first and instruction.argval == first:
            root, attributes = ("local", first), []
    if root is not None:
        found[(*root, tuple(attributes))] = None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found.update(dict.fromkeys(chain for chain in chains(constant) if chain[0] != "local"))
    return tuple(found)


_ATTRIBUTE_LIMIT = 128


class Reads:
    """Everything a function is found to read.

    Attributes:
        values: (path, access, value) of plain values, to be guarded by value.
        identities: (path, access, object) of functions and other objects, to be guarded by identity.
        modules: (path, module) of nn.Modules.
        objects: (path, access) of containers, objects and tensors that may hold tensors.
        grown: (path, access) of lists and deques that are added to.
        seen: ids of lists and deques that are used in other ways too.
        tables: (path, access) of dicts, which may hold such lists.
        holders: (path, access, object) of those whose attributes are read.
        absent: (path, access, name) of attributes found on an object's class that the object itself does not have.
    """

    def __init__(self) -> None:
        self.values: list[tuple[str, Access, Any]] = []
        self.identities: list[tuple[str, Access, Any]] = []
        self.modules: list[tuple[str, torch.nn.Module]] = []
        self.objects: list[tuple[str, Access]] = []
        self.absent: list[tuple[str, Access, str]] = []
        self.holders: list[tuple[str, Access, Any]] = []
        self.grown: list[tuple[str, Access]] = []
        self.seen: set[int] = set()
        self.tables: list[tuple[str, Access]] = []
        self._seen: set[tuple[int, int]] = set()
        self._noted: set[tuple[int, str]] = set()

    def function(self, fn: Any, this: tuple[str, Access] | None = None) -> None:
        """Read a function; `this` says how its first argument is reached, for methods."""
        code = getattr(fn, "__code__", None)
        if code is None:
            return
        key = (id(code), id(this[1].resolve()) if this else 0)
        if key in self._seen:
            return
        self._seen.add(key)
        cells = dict(zip(code.co_freevars, fn.__closure__ or (), strict=True))
        for kind, name, attributes in chains(code):
            if kind == "global" and name in fn.__globals__:
                self._chain(name, Access(fn.__globals__, f"[{name!r}]"), attributes)
            elif kind == "cell" and name in cells:
                self._chain(name, Access(cells[name], ".cell_contents"), attributes)
            elif kind == "local" and this is not None:
                self._chain(this[0], this[1], attributes)

    def _chain(self, path: str, access: Access, attributes: tuple[str, ...]) -> None:
        """Follow attributes from an object as far as they lead to something plain."""
        try:
            item = access.resolve()
        except ValueError:  # an empty cell
            return
        for attribute in attributes:
            if isinstance(item, (list, deque)):
                if attribute in ADDING:
                    self.grown.append((path, access))
                elif attribute != "clear":
                    self.seen.add(id(item))
            if self._settle(path, access, item):
                return
            holder = vars(item) if hasattr(item, "__dict__") else {}
            self._holder(path, access, item)
            path = f"{path}.{attribute}" if path else attribute
            if attribute in holder:
                suffix = f".{attribute}" if isinstance(item, (types.ModuleType, type)) else f".__dict__[{attribute!r}]"
                access, item = Access(access.root, access.suffix + suffix), holder[attribute]
                continue
            self._member(item, access, path.rpartition(".")[0], attribute)
            return
        self._settle(path, access, item, final=True)

    def _member(self, item: Any, access: Access, path: str, attribute: str) -> None:
        """A method, class attribute or submodule of an object."""
        if isinstance(item, torch.nn.Module):
            for table in ("_modules", "_parameters", "_buffers"):
                if attribute in item.__dict__.get(table, {}):
                    return
        if isinstance(item, types.ModuleType):
            return
        member = getattr(type(item), attribute, None)
        named, home = f"{path}.{attribute}" if path else attribute, Access(type(item), f".{attribute}")
        if isinstance(member, types.FunctionType) and is_user_code(member.__code__):
            self._identity(named, home, member)
            self.function(member, (path, access))
        elif isinstance(member, property) and member.fget is not None and is_user_code(member.fget.__code__):
            self.function(member.fget, (path, access))
        elif member is not None and is_plain(member):
            self._value(named, home, member)
        else:
            return
        if hasattr(item, "__dict__") and not isinstance(item, torch.nn.Module):  # of those, all attributes are known
            self.absent.append((named, access, attribute))

    def _settle(self, path: str, access: Access, item: Any, final: bool = False) -> bool:
        """Note an object met on a chain; True when there is nothing to follow beyond it."""
        if final and isinstance(item, (list, deque)):
            self.seen.add(id(item))
        if isinstance(item, dict):
            self.tables.append((path, access))
        if is_plain(item):
            self._value(path, access, item)
            return True
        if isinstance(item, torch.Tensor):
            self.objects.append((path, access))
            return True
        if isinstance(item, torch.nn.Module):
            if not any(known is item for _, known in self.modules):
                self.modules.append((path, item))
            self._identity(path, access, item)
            return False
        if isinstance(item, LRScheduler):  # its steps are made after each run
            self._identity(path, access, item)
            return True
        if isinstance(item, types.FunctionType):
            if is_user_code(item.__code__):
                self._identity(path, access, item)
                self.function(item)
            elif item.__closure__:
                self._wrapper(path, access, item)
            return True
        if isinstance(item, functools.partial):
            self._partial(path, access, item)
            return True
        if isinstance(item, types.MethodType):
            self._bound(path, access, item)
            return True
        if isinstance(item, types.ModuleType):
            return _is_library(item)
        if isinstance(item, type) or (isinstance(item, (types.BuiltinFunctionType, Callable)) and _is_library(item)):  # type: ignore[arg-type]
            self._identity(path, access, item)
            return True
        self._identity(path, access, item)
        if final or isinstance(item, (list, dict, tuple)):
            self.objects.append((path, access))
            self.attributes(path, access, item)
        return isinstance(item, (list, dict, tuple))

    def attributes(self, path: str, access: Access, item: Any, depth: int = 2) -> None:
        """Guard all plain attributes of an object that the function may hand on to code not seen here."""
        self._holder(path, access, item)
        for name, value in list(getattr(item, "__dict__", {}).items())[:_ATTRIBUTE_LIMIT]:
            inner = Access(access.root, f"{access.suffix}.__dict__[{name!r}]")
            if is_plain(value):
                self._value(f"{path}.{name}", inner, value)
            elif (
                depth > 1
                and not isinstance(value, (torch.Tensor, torch.nn.Module, LRScheduler, type))
                and not callable(value)
            ):
                self.attributes(f"{path}.{name}", inner, value, depth - 1)

    def _holder(self, path: str, access: Access, item: Any) -> None:
        """An object whose attributes the function may change."""
        table = getattr(item, "__dict__", None)
        if type(table) is dict and not isinstance(item, (types.ModuleType, types.FunctionType, torch.nn.Module)):
            self.holders.append((path, access, item))

    def _bound(self, path: str, access: Access, method: types.MethodType) -> None:
        if isinstance(method.__self__, torch.nn.Module):
            self.modules.append((f"{path}.__self__", method.__self__))
        self._identity(f"{path}.__self__", Access(access.root, access.suffix + ".__self__"), method.__self__)
        self.function(method.__func__, (path, Access(method, ".__self__")))

    def _wrapper(self, path: str, access: Access, function: types.FunctionType) -> None:
        """A function that a library made of functions of the user's, such as `vmap(grad(loss))`."""
        if not self._first(Access(function, "")):
            return
        self._identity(path, access, function)
        for cell in function.__closure__ or ():
            inner = Access(cell, ".cell_contents")
            try:
                held = inner.resolve()
            except ValueError:  # an empty cell
                continue
            if isinstance(held, _CALLABLES):
                self._settle(path, inner, held, final=True)

    def _partial(self, path: str, access: Access, call: functools.partial[Any]) -> None:
        self._identity(path, access, call)
        self._settle(f"{path}.func", Access(call, ".func"), call.func, final=True)
        for number, item in enumerate(call.args):
            self._settle(f"{path}.args[{number}]", Access(call, f".args[{number}]"), item, final=True)
        for key, item in call.keywords.items():
            self._settle(f"{path}.keywords[{key!r}]", Access(call, f".keywords[{key!r}]"), item, final=True)

    def _value(self, path: str, access: Access, item: Any) -> None:
        if self._first(access):
            self.values.append((path, access, snapshot(item)))

    def _identity(self, path: str, access: Access, item: Any) -> None:
        if self._first(access):
            self.identities.append((path, access, item))

    def _first(self, access: Access) -> bool:
        key = (id(access.root), access.suffix)
        if key in self._noted:
            return False
        self._noted.add(key)
        return True


_CALLABLES = (types.FunctionType, types.MethodType, functools.partial, torch.nn.Module)


def _is_library(item: Any) -> bool:
    """Part of torch, of Python or of an installed package: taken as fixed."""
    name: str = item.__name__ if isinstance(item, types.ModuleType) else getattr(item, "__module__", None) or ""
    if name.partition(".")[0] in ("torch", "builtins", "math", "numpy", "functools", "operator", "itertools", "typing"):
        return True
    file = getattr(item, "__file__", None)
    return isinstance(item, types.ModuleType) and (file is None or "site-packages" in file or "lib/python" in file)


def attribute_names(cls: type) -> frozenset[str]:
    """Names that the methods of a module class may read as attributes; its constructor and printing left out."""
    return _attribute_names(cls)


@cache
def _attribute_names(cls: type) -> frozenset[str]:
    names: set[str] = set()
    for base in cls.__mro__:
        if base in (torch.nn.Module, object):
            continue
        for name, member in vars(base).items():
            if isinstance(member, types.FunctionType) and name not in _NOT_RUN:
                names.update(_code_names(member.__code__))
    return frozenset(names)


_NOT_RUN = frozenset(
    ("__init__", "extra_repr", "__repr__", "reset_parameters", "__setstate__", "_load_from_state_dict")
)


def _code_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_names(constant)
        elif isinstance(constant, str):
            yield constant  # getattr(self, "name")
