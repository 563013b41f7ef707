"""What a function reads beside its arguments: globals, closure cells and attributes, found in its byte code.

Python code is not executed here. From `scale * table[cfg.size]` we learn that the global `cfg.size` is read; the guards
then hold its value. Functions the user's function calls are read too.
"""

from __future__ import annotations

import enum
import functools
import io
import os
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from graphc.frontend.guards import PLAIN, is_plain, snapshot
from graphc.frontend.inputs import Access, owner_of, slots_of
from graphc.frontend.locations import is_user_code, is_user_file
from graphc.frontend.names import chains
from graphc.frontend.python_random import generators
from graphc.frontend.shown import shows
from graphc.frontend.watched import ADDING, contents

_ATTRIBUTE_LIMIT = 128
_ITEM_LIMIT = 256
_DEPTH = 5
_ENVIRONMENT = (("environ",), ("getenv",))
_WITH_GUARDS = (
    torch.Tensor, torch.nn.Module, torch.optim.Optimizer, LRScheduler, torch.amp.GradScaler, type,
)  # fmt: skip
_OF_OPTIMIZERS = ("param_groups", "state", "defaults")


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
        classes: classes of the user's, with their names.
        slotted: (path, access, object) of objects with slots.
        contents: (path, access, container, items) of lists, dicts, ... that are more than plain values.
        running: (path, object) of iterators, which only eager can let go on.
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
        self.classes: dict[type, str] = {}
        self.slotted: list[tuple[str, Access, Any]] = []
        self.contents: list[tuple[str, Access, Any, Any]] = []
        self.running: list[tuple[str, Any]] = []
        self.outer: types.CodeType | None = None  # the function that the one which is read does a part of
        self._opened: dict[int, Any] = {}
        self._installed = False  # what is read now is code of an installed library, most of which does not run
        self._seen: set[tuple[int, int]] = set()
        self._noted: set[tuple[int, str]] = set()

    def function(self, fn: Any, this: tuple[str, Access] | None = None) -> None:
        """Read a function; `this` says how its first argument is reached, for methods."""
        code = getattr(fn, "__code__", None)
        if code is None or code is self.outer:
            return
        key = (id(fn), id(this[1].resolve()) if this else 0)
        if key in self._seen:
            return
        self._seen.add(key)
        self._opened[id(fn)] = fn
        self._kept(fn)
        if this is not None and "super" in code.co_names:
            self._inherited(code, this)
        if "globals" in code.co_names:
            for name in fn.__globals__.keys() & set(filter(lambda constant: isinstance(constant, str), code.co_consts)):
                self._chain(name, Access(fn.__globals__, f"[{name!r}]"), ())
        cells = dict(zip(code.co_freevars, fn.__closure__ or (), strict=True))
        outer, self._installed = self._installed, is_installed(code)
        for kind, name, attributes in chains(code):
            if kind == "global" and name in fn.__globals__:
                self._chain(name, Access(fn.__globals__, f"[{name!r}]"), attributes)
            elif kind == "cell" and name in cells:
                self._chain(name, Access(cells[name], ".cell_contents"), attributes)
            elif kind == "local" and this is not None:
                self._chain(this[0], this[1], attributes)
        self._installed = outer

    def _kept(self, fn: types.FunctionType) -> None:
        """What a function of the user's keeps itself: defaults of its arguments, and attributes."""
        if not is_user_code(fn.__code__):
            return
        if fn.__defaults__:
            path = f"the defaults of {fn.__name__}"
            self._identity(path, Access(fn, ".__defaults__"), fn.__defaults__)
            for number, item in enumerate(fn.__defaults__):
                if not isinstance(item, PLAIN):
                    self._settle(f"{path}[{number}]", Access(fn, f".__defaults__[{number}]"), item, final=True)
        if fn.__kwdefaults__:
            named = f"the keyword defaults of {fn.__name__}"
            self._settle(named, Access(fn, ".__kwdefaults__"), fn.__kwdefaults__, final=True)
        self.holders.append((fn.__name__, Access(fn, ""), fn))
        for name, item in list(vars(fn).items()):
            if name.isidentifier():
                self._settle(f"{fn.__name__}.{name}", Access(fn, f".__dict__[{name!r}]"), item, final=True)

    def _inherited(self, code: types.CodeType, this: tuple[str, Access]) -> None:
        """The methods that `super()` may lead to."""
        for name in code.co_names:
            for base in type(this[1].resolve()).__mro__:
                function = function_in(vars(base).get(name))
                if function is not None and is_user_code(function.__code__):
                    self.function(function, this)

    def _chain(self, path: str, access: Access, attributes: tuple[str, ...]) -> None:
        """Follow attributes from an object as far as they lead to something plain."""
        try:
            item = access.resolve()
        except ValueError:  # an empty cell
            return
        if item is os and attributes[:1] in _ENVIRONMENT:
            held: Any = vars(os.environ)
            self.contents.append(("os.environ", Access(held, "['_data']"), held["_data"], dict(held["_data"])))
        for attribute in attributes:
            if isinstance(item, (list, deque)):
                if attribute in ADDING:
                    self.grown.append((path, access))
                elif attribute != "clear":
                    self.seen.add(id(item))
            inner = f"{path}.{attribute}" if path else attribute
            if is_own(item):
                self._identity(path, access, item)
                self.note_class(item)
                owner = owner_of(item, attribute)
                function = function_in(vars(owner)[attribute]) if owner is not None else None
                if owner is None or not is_own(owner):
                    return self.of_class(item)
                if function is not None:
                    return self.function(function, (path, access))
                path, access, item = inner, Access(item, f".{attribute}"), vars(owner)[attribute]
                continue
            if self._settle(path, access, item):
                return
            if (
                isinstance(item, torch.optim.Optimizer) and attribute in _OF_OPTIMIZERS
            ):  # which have guards of their own
                for number, param in enumerate(p for group in item.param_groups for p in group["params"]):
                    self._attached(f"{path}.param{number}", Access(param, ""), param)
                return self.objects.append((inner, Access(access.root, f"{access.suffix}.{attribute}")))
            holder = vars(item) if hasattr(item, "__dict__") else {}
            self._holder(path, access, item)
            if attribute in holder:
                suffix = f".{attribute}" if isinstance(item, (types.ModuleType, type)) else f".__dict__[{attribute!r}]"
                path, access, item = inner, Access(access.root, access.suffix + suffix), holder[attribute]
            elif attribute in slots_of(type(item)) and hasattr(item, attribute):
                suffix = f".{attribute}"
                path, access, item = inner, Access(access.root, access.suffix + suffix), getattr(item, attribute)
            else:
                return self._member(item, access, path, attribute)
        if isinstance(item, (list, deque)):
            self.seen.add(id(item))
        self._settle(path, access, item, final=True)

    def _member(self, item: Any, access: Access, path: str, attribute: str) -> None:
        """A method, class attribute or submodule of an object."""
        if isinstance(item, torch.nn.Module):
            for table in ("_modules", "_parameters", "_buffers"):
                if attribute in item.__dict__.get(table, {}):
                    return
        owner = owner_of(type(item), attribute)
        if isinstance(item, types.ModuleType) or owner is None:
            return
        member = vars(owner)[attribute]
        named, home = f"{path}.{attribute}" if path else attribute, Access(type(item), f".{attribute}")
        function = function_in(member)
        if function is not None and is_user_code(function.__code__):
            if not isinstance(member, (property, classmethod)):
                self._identity(named, home, getattr(type(item), attribute))
            this = Access(type(item), "") if isinstance(member, classmethod) else access
            self.function(function, None if isinstance(member, staticmethod) else (path, this))
        elif is_plain(member):
            self._value(named, home, member)
        elif is_own(owner) and not hasattr(type(member), "__get__"):
            self._settle(named, home, member, final=True)
        else:
            return
        if hasattr(item, "__dict__") and not isinstance(item, torch.nn.Module):  # of those, all attributes are known
            self.absent.append((named, access, attribute))

    def _settle(self, path: str, access: Access, item: Any, final: bool = False) -> bool:
        """Note an object met on a chain; True when there is nothing to follow beyond it."""
        if isinstance(item, dict):
            self.tables.append((path, access))
        if is_plain(item):
            self._value(path, access, item)
            return True
        if isinstance(item, torch.Tensor):
            self.objects.append((path, access))
            self._attached(path, access, item)
            return True
        if isinstance(item, torch.nn.Module):
            if not any(known is item for _, known in self.modules):
                self.modules.append((path, item))
            self._identity(path, access, item)
            return False
        if isinstance(item, LRScheduler) or shows(item):  # what they do is done after each run
            self._identity(path, access, item)
            return True
        if isinstance(item, _FUNCTIONS):
            self._callable(path, access, item)
            return True
        if isinstance(item, types.ModuleType):
            return _is_library(item)
        if isinstance(item, type) or (isinstance(item, (types.BuiltinFunctionType, Callable)) and _is_library(item)):  # type: ignore[arg-type]
            self._identity(path, access, item)
            if final and is_own(item):
                self.of_class(item)
            return True
        final = final or (isinstance(item, _CONTAINERS) and is_own(type(item)))
        if not (final and type(item) is tuple):  # what is in it is guarded
            self._identity(path, access, item)
        if isinstance(item, _CONTAINERS):
            self.objects.append((path, access))
            self.whole(path, access, item)
            if final:
                self._contents(path, access, item)
            return True
        if final and isinstance(item, torch.amp.GradScaler):  # which has guards of its own
            self.objects.append((path, access))
            return True
        if final:
            is_running = isinstance(item, Iterator) and not isinstance(item, io.IOBase) and not is_own(type(item))
            if is_running and not self._installed:
                self.running.append((path, item))
            self.objects.append((path, access))
            self.whole(path, access, item)
        return False

    def _attached(self, path: str, access: Access, item: torch.Tensor) -> None:
        """The attributes that a tensor has been given, and may be given."""
        if type(item) not in (torch.Tensor, torch.nn.Parameter):
            return
        self.tables.append((path, Access(access.root, f"{access.suffix}.__dict__")))
        for name, value in vars(item).items():
            if is_plain(value):
                self._value(f"{path}.{name}", Access(access.root, f"{access.suffix}.__dict__[{name!r}]"), value)

    def _callable(self, path: str, access: Access, item: Any) -> None:
        """A function, or something that calls one."""
        if isinstance(item, functools.partial):
            self._partial(path, access, item)
        elif isinstance(item, types.MethodType):
            self._bound(path, access, item)
        elif isinstance(item, CACHED):
            self._identity(path, access, item)
            self.function(item.__wrapped__)
        elif is_user_code(item.__code__):
            self._identity(path, access, item)
            self.function(item)
        elif item.__closure__:
            self._wrapper(path, access, item)

    def whole(self, path: str, access: Access, item: Any) -> None:
        """An object that the function may hand on to code not seen here: its attributes, and its methods."""
        self.attributes(path, access, item)
        for base in own_classes(type(item)):
            for member in list(vars(base).values()):
                function = function_in(member)
                if function is not None and is_user_code(function.__code__) and not is_installed(function.__code__):
                    self.function(function, None if isinstance(member, staticmethod) else (path, access))

    def of_class(self, cls: type) -> None:
        """A class that the function may hand on, or make objects of."""
        for base in own_classes(cls):
            if id(base) in self._opened:
                continue
            self._opened[id(base)] = base
            self.note_class(base)
            for name, member in list(vars(base).items()):
                function = function_in(member)
                if function is not None and not is_installed(function.__code__):
                    self.function(function)
                elif not name.startswith("__") and not hasattr(type(member), "__get__"):
                    self._settle(f"{base.__name__}.{name}", Access(base, f".{name}"), member, final=True)

    def note_class(self, cls: type) -> None:
        """A class whose attributes the function may change."""
        for base in own_classes(cls):
            self.classes.setdefault(base, base.__name__)

    def _nested(self, path: str, access: Access, item: Any) -> None:
        """The containers in a plain value, in which names may be bound."""
        for suffix, part in parts_of(item) if isinstance(item, (dict, list, tuple)) else ():
            if isinstance(part, (dict, list, tuple)):
                inner = Access(access.root, access.suffix + suffix)
                self.tables.append((path + suffix, inner))
                self._nested(path + suffix, inner, part)
        if isinstance(item, list):
            self.tables.append((path, access))

    def _contents(self, path: str, access: Access, item: Any) -> None:
        """What is in a container that is more than a plain value."""
        if id(item) in self._opened:
            return
        self._opened[id(item)] = item
        items = dict(dict.items(item)) if isinstance(item, dict) else list(item)
        self.contents.append((path, access, item, items))
        if isinstance(item, (list, dict)):
            self.tables.append((path, access))
        for suffix, part in parts_of(item):
            if not isinstance(part, PLAIN):
                self._settle(path + suffix, Access(access.root, access.suffix + suffix), part, final=True)

    def attributes(self, path: str, access: Access, item: Any, depth: int = _DEPTH) -> None:
        """Guard all plain attributes of an object that the function may hand on to code not seen here."""
        if isinstance(item, generators()):
            return  # which have attributes of their own that draws change
        self._holder(path, access, item)
        found = {name: f".__dict__[{name!r}]" for name in list(getattr(item, "__dict__", {}))[:_ATTRIBUTE_LIMIT]}
        found.update((name, f".{name}") for name in slots_of(type(item)) if hasattr(item, name))
        for name, suffix in found.items():
            inner = Access(access.root, access.suffix + suffix)
            value = inner.resolve()
            if isinstance(item, torch.optim.Optimizer) and name in _OF_OPTIMIZERS:
                self.objects.append((f"{path}.{name}", inner))
            elif is_plain(value):
                self._value(f"{path}.{name}", inner, value)
            elif isinstance(value, _FUNCTIONS) or (isinstance(value, _CONTAINERS) and is_own(type(item))):
                self._settle(f"{path}.{name}", inner, value, final=True)
            elif (
                depth > 1
                and not isinstance(value, _WITH_GUARDS)
                and not shows(value)
                and not callable(value)
                and id(value) not in self._opened
            ):
                self._opened[id(value)] = value
                self.attributes(f"{path}.{name}", inner, value, depth - 1)

    def _holder(self, path: str, access: Access, item: Any) -> None:
        """An object whose attributes the function may change."""
        if isinstance(item, generators()):
            return
        self.note_class(type(item))
        table = getattr(item, "__dict__", None)
        if slots_of(type(item)) and is_own(type(item)):
            self.slotted.append((path, access, item))
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
        self.arguments_of(path, call)

    def arguments_of(self, path: str, call: functools.partial[Any]) -> None:
        """The arguments that a `partial` has been given."""
        for number, item in enumerate(call.args):
            self._settle(f"{path}.args[{number}]", Access(call, f".args[{number}]"), item, final=True)
        for key, item in call.keywords.items():
            self._settle(f"{path}.keywords[{key!r}]", Access(call, f".keywords[{key!r}]"), item, final=True)

    def _value(self, path: str, access: Access, item: Any) -> None:
        if self._first(access):
            self.values.append((path, access, snapshot(item)))
            self._nested(path, access, item)

    def _identity(self, path: str, access: Access, item: Any) -> None:
        if self._first(access):
            self.identities.append((path, access, item))

    def _first(self, access: Access) -> bool:
        key = (id(access.root), access.suffix)
        if key in self._noted:
            return False
        self._noted.add(key)
        return True


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: defined in Python
CACHED = type(functools.lru_cache(lambda: None))
"""Functions under `functools.lru_cache`."""
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial, CACHED)
_CALLABLES = (*_FUNCTIONS, torch.nn.Module)
_CONTAINERS = (list, dict, tuple, set, frozenset, deque)


def parts_of(item: Any) -> list[tuple[str, Any]]:
    """(suffix of an access, part) of what is in a container, where there are not too many and accesses lead there."""
    kind = next((kind for kind in (dict, list, tuple, deque) if isinstance(item, kind)), None)
    if kind is None or len(item) > _ITEM_LIMIT or _gives_others(type(item), kind):
        return []
    if kind is dict:
        pairs = list(dict.items(item))
    else:
        pairs = list(enumerate(contents(item) if kind in (list, deque) else item))
    return [(f"[{key!r}]", part) for key, part in pairs if type(key) in (str, int)]


def _gives_others(cls: type, kind: type) -> bool:
    """A container of the user's that gives something else than what is in it."""
    return any("__getitem__" in vars(base) for base in cls.__mro__[: cls.__mro__.index(kind)] if is_own(base))


def is_installed(code: types.CodeType) -> bool:
    """Code of an installed library, of which only what is seen to be called is read."""
    return "-packages" in code.co_filename


def function_in(member: Any) -> types.FunctionType | None:
    """The function that an entry of a class calls."""
    member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    while isinstance(member, types.FunctionType) and not is_user_code(member.__code__):  # under `torch.no_grad()`
        inner = getattr(member, "__wrapped__", None)
        if not isinstance(inner, types.FunctionType):
            break
        member = inner
    return member if isinstance(member, types.FunctionType) else None


def is_own(item: Any) -> bool:
    """A class of the user's, whose attributes may change."""
    return (
        isinstance(item, type)
        and bool(item.__flags__ & _HEAP_TYPE)
        and not issubclass(item, (enum.Enum, BaseException))
        and not _is_library(item)
    )


def own_classes(cls: type) -> list[type]:
    """A class and those that it derives from, as far as they are the user's."""
    return [base for base in cls.__mro__ if is_own(base)]


def keeps_state(item: Any) -> bool:
    """Something of the user's whose attributes may change; torch's own objects have guards and effects of their own."""
    return is_own(type(item)) or isinstance(item, (types.FunctionType, types.SimpleNamespace))


def _is_library(item: Any) -> bool:
    """Part of torch, of Python or of an installed package: taken as fixed."""
    name: str = item.__name__ if isinstance(item, types.ModuleType) else getattr(item, "__module__", None) or ""
    if name.partition(".")[0] in ("torch", "builtins", "math", "numpy", "functools", "operator", "itertools", "typing"):
        return True
    if isinstance(item, type):
        return _is_of_python(name)
    if not isinstance(item, types.ModuleType):
        return False
    file = getattr(item, "__file__", None)
    if file is None:  # built in, or made by the user
        return getattr(item, "__spec__", None) is not None
    return "site-packages" in file or "lib/python" in file


@lru_cache(maxsize=4096)
def _is_of_python(module: str) -> bool:
    """A module that is built in or of the standard library."""
    found = sys.modules.get(module)
    file = getattr(found, "__file__", None)
    return not is_user_file(file) if file is not None else getattr(found, "__spec__", None) is not None
