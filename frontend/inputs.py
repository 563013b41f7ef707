"""Where real tensors come from: parameters, buffers, closures, globals; their roles and paths, and how to find them."""

from __future__ import annotations

import ast
import functools
import re
import types
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch

from graphc.frontend.traced import TracedTensor
from graphc.frontend.watched import Watched, contents
from graphc.ir.graph import Role


class BindingKind(Enum):
    """What a graph input is fed with on each call."""

    ARG = "arg"  # leaf number `leaf` of the arguments
    SCALAR = "scalar"  # the same, a Python number
    FIXED = "fixed"  # always the same tensor object
    STORAGE = "storage"  # `count` elements of the whole storage of a tensor, 1-D
    ARG_GRAD = "grad"  # the gradient of that argument
    FOUND = "found"  # whichever tensor, or Python number, is found at the first of `accesses`
    DRAWN = "drawn"  # what the call has drawn at place `leaf`; see `draws`


@dataclass(frozen=True)
class Access:
    """How to reach an object again: a Python expression from an object that stays.

    Args:
        root: the object held.
        suffix: subscripts and attributes, such as `['weight']` or `.table[3]`.
    """

    root: Any
    suffix: str

    def resolve(self) -> Any:
        """The object found there now."""
        if not self.suffix:
            return self.root
        return eval(_compiled(self.suffix), {"_root": self.root})

    def item(self, home: Any, name: Any) -> Access:
        """How to reach what is under a name (see `bound`) of the home that this leads to."""
        if isinstance(home, types.CellType) or has_names(home) or type(name) in (str, int):
            return Access(self.root, self.suffix + suffix_of(home, name))
        return Access(_Entry(self, name), _VALUE)

    def entry(self) -> tuple[dict[Any, Any], str] | None:
        """The dict and the key, when it is a dict's entry under a string and nothing more."""
        found = _ENTRY.fullmatch(self.suffix)
        return (self.root, found[1]) if found is not None and type(self.root) in _DICTS else None

    def place(self) -> tuple[Any, Any] | None:
        """The home and the name in it (see `bound`) where what is found can be replaced."""
        if self.suffix == ".cell_contents":
            return self.root, ""
        if isinstance(self.root, _Entry) and self.suffix == _VALUE:
            home = self.root.home.resolve()
            return (home, self.root.key) if isinstance(home, dict) else None
        entry = _LAST.fullmatch(self.suffix) or _ATTRIBUTE.fullmatch(self.suffix)
        if entry is None:
            return None
        home = Access(self.root, entry[1]).resolve()
        if self.suffix[len(entry[1])] == "[":
            return (home, ast.literal_eval(entry[2])) if isinstance(home, (dict, list)) else None
        if isinstance(home, types.ModuleType):
            return vars(home), entry[2]
        if isinstance(home, type):
            return owner_of(home, entry[2]) or home, entry[2]
        return (home, entry[2]) if entry[2] in slots_of(type(home)) else None

    def key(self) -> tuple[int, Any]:
        """The same for all accesses to one place, as long as something keeps that alive."""
        place = self.place()
        return (id(self.root), self.suffix) if place is None else (id(place[0]), place[1])


_VALUE = ".value"


@dataclass(frozen=True, eq=False)
class _Entry:
    """An entry of a dict under a key that no text stands for, such as a tensor."""

    home: Access
    key: Any

    @property
    def value(self) -> Any:
        """What is there now."""
        return self.home.resolve()[self.key]


@functools.lru_cache(maxsize=4096)
def _compiled(suffix: str) -> types.CodeType:
    return compile(f"_root{suffix}", "<access>", "eval")


GONE = object()
"""In the place of what a name is not bound to."""


def has_names(home: Any) -> bool:
    """A home whose names are its own attributes, in no dict that could be written: a class, an object with slots."""
    return isinstance(home, type) or not isinstance(home, (dict, list, types.CellType))


def suffix_of(home: Any, name: Any) -> str:
    """The expression, behind one for the home, for what is under a name of it."""
    if isinstance(home, types.CellType):
        return ".cell_contents"
    return f".{name}" if has_names(home) else f"[{name!r}]"


def names_of(home: Any) -> dict[Any, Any]:
    """What is under each name of a home; see `bound`."""
    if isinstance(home, list):
        return dict(enumerate(contents(home)))
    if isinstance(home, type):
        return dict(vars(home))
    if isinstance(home, dict):
        return dict(dict.items(home))  # without methods of the user's
    return {name: getattr(home, name) for name in slots_of(type(home)) if hasattr(home, name)}


def owner_of(cls: type, attribute: str) -> type | None:
    """The class in which an attribute of a class is found."""
    return next((base for base in cls.__mro__ if attribute in vars(base)), None)


def slots_of(cls: type) -> tuple[str, ...]:
    """The names of the slots of a class of the user's."""
    tables = [vars(base) for base in cls.__mro__ if "__slots__" in vars(base)]
    return tuple(name for table in tables for name, item in table.items() if type(item) is types.MemberDescriptorType)


def bound(home: Any, name: Any) -> Any:
    """What is under a name of a home; `GONE` where nothing is.

    A home is a dict with keys, a list with indices, a class or an object with slots, or a closure cell, whatever the
    name.
    """
    if isinstance(home, dict):
        return dict.get(home, name, GONE)  # a class of the user's may have made another of it
    if isinstance(home, list):
        return list.__getitem__(home, name) if name < list.__len__(home) else GONE  # one that watches does not notice
    if isinstance(home, type):
        return vars(home).get(name, GONE)
    if not isinstance(home, types.CellType):
        return getattr(home, name, GONE)
    try:
        return home.cell_contents
    except ValueError:  # an empty cell
        return GONE


def bind(home: Any, name: Any, value: Any) -> None:
    """Put something there; `GONE` takes away what is there."""
    if isinstance(home, types.CellType):
        if value is GONE:
            del home.cell_contents
        else:
            home.cell_contents = value
    elif has_names(home):
        if value is not GONE:
            setattr(home, name, value)
        elif bound(home, name) is not GONE:
            delattr(home, name)
    else:  # by no method of the user's
        kind: Any = next(kind for kind in (OrderedDict, dict, list) if isinstance(home, kind))
        if value is not GONE:
            kind.__setitem__(home, name, value)
        elif bound(home, name) is not GONE:
            kind.__delitem__(home, name)


def put_in_order(home: dict[Any, Any], order: Iterable[Any]) -> None:
    """Have the entries of a dict follow each other as these keys do; by no method of the user's."""
    entries = names_of(home)
    for name in list(entries):
        bind(home, name, GONE)
    for name in order:
        bind(home, name, entries[name])


_ENTRY = re.compile(r"\['([^'\\]*)'\]")
_LAST = re.compile(r"(.*)\[('[^'\\]*'|\d+)\]")
_ATTRIBUTE = re.compile(r"(.*)\.(\w+)")
_DICTS = (dict, OrderedDict)  # looking into them runs no Python code


@dataclass(frozen=True, eq=False)
class Binding:
    """How one graph input is fed.

    Args:
        kind: see `BindingKind`.
        tensor: the tensor of a FIXED input, the one whose storage a STORAGE input is when it is no argument, or the one
            that a FOUND input was when captured.
        leaf: argument leaf, or -1.
        count: elements of a STORAGE input.
        accesses: where the tensor is looked up on each call, so that a replaced one is noticed.
        warning: what the user should know about it.
        rebindable: a plain attribute, to which the function may bind another tensor in every call.
        number: Python type of a FOUND number.
    """

    kind: BindingKind
    tensor: torch.Tensor | None = None
    leaf: int = -1
    count: int = 0
    accesses: tuple[Access, ...] = ()
    warning: str = ""
    rebindable: bool = False
    number: type | None = None

    def has_moved(self) -> bool:
        """Another tensor is now where the one of a FIXED input was found."""
        if self.kind is not BindingKind.FIXED or len(self.accesses) != 1:
            return False
        try:
            now = self.accesses[0].resolve()
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            return False
        return isinstance(now, torch.Tensor) and now is not self.tensor

    def found(self, leaves: Sequence[Any]) -> Any:
        """What the input is for a call with these argument leaves; None where that cannot be told."""
        if self.kind is BindingKind.ARG:
            return leaves[self.leaf]
        if self.kind is BindingKind.ARG_GRAD:
            return leaves[self.leaf].grad
        if self.kind is not BindingKind.FOUND:
            return self.tensor
        try:
            return self.accesses[0].resolve()
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            return None

    def without_argument(self) -> Binding:
        """The same without the argument seen at capture, which must not be kept alive."""
        return replace(self, tensor=None) if self.leaf >= 0 else self


@dataclass(frozen=True)
class _Found:
    tensor: torch.Tensor  # held, so that its id stays its own
    role: Role
    path: str
    accesses: list[Access]
    kind: BindingKind = BindingKind.FIXED
    rebindable: bool = False


_SEARCH_LIMIT = 20_000
_KNOWN = ("_parameters", "_buffers", "_modules")
"""Tables of modules that were looked at before the run; `functional_call` puts others there for as long as it runs."""


class SourceMap:
    """Knows the tensors that a function can reach without being given them.

    Args:
        modules: (path, module) of the modules found before the run; the function itself has path "".
        objects: (path, access) of other objects the function reads: closure cells, globals, arguments.
    """

    def __init__(self, modules: list[tuple[str, torch.nn.Module]], objects: list[tuple[str, Access]]) -> None:
        self.module_paths: dict[int, str] = {}
        self.modules: list[torch.nn.Module] = []
        self._tensors: dict[int, _Found] = {}
        self._objects = [(path, access, access.resolve()) for path, access in objects]  # as a call begins
        self._stack: list[str] = []
        self._searched = False
        for path, module in modules:
            self.add_module(path, module)

    def add_module(self, path: str, root: torch.nn.Module) -> None:
        """Learn the parameters, buffers and plain tensor attributes of a module and its children."""
        for name, module in root.named_modules(prefix=path):
            if id(module) in self.module_paths:
                continue
            self.module_paths[id(module)] = name
            self.modules.append(module)
            prefix = f"{name}." if name else ""
            own = module.__dict__
            for role, table in ((Role.PARAM, own["_parameters"]), (Role.BUFFER, own["_buffers"]), (Role.STATE, own)):
                for key, tensor in table.items():
                    if not isinstance(tensor, torch.Tensor):
                        continue
                    self.note(tensor, role, prefix + key, Access(table, f"[{key!r}]"), role is Role.STATE)
                    for name, kept in vars(tensor).items() if type(tensor) is not TracedTensor else ():
                        if isinstance(kept, torch.Tensor):
                            self.note(
                                kept, Role.STATE, f"{prefix}{key}.{name}", Access(vars(tensor), f"[{name!r}]"), True
                            )

    def note_looked_up(self, tensor: torch.Tensor, path: str, access: Access) -> None:
        """A tensor that another one may replace between calls: looked up in every call."""
        self._tensors.setdefault(id(tensor), _Found(tensor, Role.STATE, path, [access], BindingKind.FOUND))

    def note(self, tensor: torch.Tensor, role: Role, path: str, access: Access, rebindable: bool = False) -> None:
        """A tensor that the function can reach; not one that it has put there itself."""
        if type(tensor) is TracedTensor or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return
        found = self._tensors.setdefault(id(tensor), _Found(tensor, role, path, [], rebindable=rebindable))
        if not found.accesses or access.key() not in {known.key() for known in found.accesses}:
            found.accesses.append(access)

    # modules as they run

    def enter(self, module: torch.nn.Module) -> None:
        """A module starts to run."""
        self.learn(module)
        self._stack.append(self.module_paths[id(module)])

    def learn(self, module: torch.nn.Module) -> None:
        """A module that the function has not been seen to reach is about to be used."""
        if id(module) not in self.module_paths:
            self.add_module(type(module).__name__.lower(), module)

    def leave(self) -> None:
        """The module entered last returns or raises."""
        self._stack.pop()

    def current_path(self) -> str:
        """Path of the module that runs now."""
        return self._stack[-1] if self._stack else ""

    # tensors

    def find(self, tensor: torch.Tensor) -> tuple[Role, str, Binding]:
        """Role, path and binding of a real tensor met in the function."""
        found = self._tensors.get(id(tensor))
        if found is None and not self._searched:
            self._searched = True
            for path, access, item in self._objects:
                self._search(path, access, item)
            for module in list(self.modules):
                for key in [key for key in module.__dict__ if key not in _KNOWN]:
                    path = f"{self.module_paths[id(module)]}.{key}".lstrip(".")
                    self._search(path, Access(module.__dict__, f"[{key!r}]"), module.__dict__[key])
            found = self._tensors.get(id(tensor))
        if found is None or found.tensor is not tensor:
            shape = tuple(tensor.shape)
            warning = (
                f"a tensor of shape {shape} is found in no argument, module, closure or global of the function; the "
                "compiled program keeps using this very object"
            )
            return Role.STATE, "tensor", Binding(BindingKind.FIXED, tensor=tensor, warning=warning)
        accesses = tuple(found.accesses)
        return found.role, found.path, Binding(found.kind, tensor, accesses=accesses, rebindable=found.rebindable)

    def _search(self, path: str, start: Access, found: Any) -> None:
        """Look for tensors inside containers and plain objects, breadth first."""
        queue = deque([(path, start, found)])
        seen: set[int] = set()
        while queue and len(seen) < _SEARCH_LIMIT:
            name, access, item = queue.popleft()
            if id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, torch.nn.Module):
                self.add_module(name, item)
            elif isinstance(item, torch.Tensor):
                self.note(item, Role.STATE, name, access, ".__dict__[" in access.suffix)
                if type(item) is not TracedTensor and vars(item):
                    queue.extend((name + n, reached, child) for n, reached, child in _children(access, item))
            else:
                queue.extend((name + n, reached, child) for n, reached, child in _children(access, item))


def _children(access: Access, item: Any) -> Iterator[tuple[str, Access, Any]]:
    """(path, access, child) of what a container or a plain object holds."""
    if isinstance(item, dict):
        for key, child in list(item.items()):
            if _may_hold(child):
                yield f"[{shown_key(key)}]", access.item(item, key), child
    elif isinstance(item, (list, tuple, deque)):
        before = item.own if isinstance(item, Watched) else item  # where things are when a call begins
        for index, child in enumerate(before if isinstance(before, tuple) else contents(before)):
            if _may_hold(child):
                yield f"[{index}]", Access(access.root, f"{access.suffix}[{index}]"), child
    else:
        for key, child in list(getattr(item, "__dict__", {}).items()):
            if key.isidentifier() and _may_hold(child):
                yield f".{key}", Access(access.root, f"{access.suffix}.__dict__[{key!r}]"), child


def shown_key(key: Any) -> str:
    """A key of a dict as text."""
    return f"a {type(key).__name__}" if isinstance(key, (torch.Tensor, torch.nn.Module)) else repr(key)


_LEAVES = (str, bytes, int, float, complex, bool, type(None), type, torch.dtype, torch.device)


def _may_hold(item: Any) -> bool:
    if isinstance(item, _LEAVES) or (callable(item) and not isinstance(item, torch.nn.Module)):
        return False
    return not type(item).__module__.startswith(("torch.cuda", "threading", "logging", "builtins.module"))
