"""Where real tensors come from: parameters, buffers, closures, globals; their roles and paths, and how to find them."""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch

from graphc.ir.graph import Role


class BindingKind(Enum):
    """What a graph input is fed with on each call."""

    ARG = "arg"  # leaf number `leaf` of the arguments
    SCALAR = "scalar"  # the same, a Python number
    FIXED = "fixed"  # always the same tensor object
    STORAGE = "storage"  # `count` elements of the whole storage of a tensor, 1-D
    FOUND = "found"  # whichever tensor, or Python number, is found at the first of `accesses`


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
        return eval(f"_root{self.suffix}", {"_root": self.root})

    def entry(self) -> tuple[dict[Any, Any], str] | None:
        """The dict and the key, when it is a dict's entry under a string and nothing more."""
        found = _ENTRY.fullmatch(self.suffix)
        return (self.root, found[1]) if found is not None and type(self.root) in _DICTS else None


_ENTRY = re.compile(r"\['([^'\\]*)'\]")
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
    """

    kind: BindingKind
    tensor: torch.Tensor | None = None
    leaf: int = -1
    count: int = 0
    accesses: tuple[Access, ...] = ()
    warning: str = ""

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


_SEARCH_LIMIT = 20_000


class SourceMap:
    """Knows the tensors that a function can reach without being given them.

    Args:
        modules: (path, module) of the modules found before the run; the function itself has path "".
        objects: (path, access) of other objects the function reads: closure cells, globals, arguments.
        assigned: names of attributes that code may assign which runs with a module of this class. What tensor is there
            is looked up in each call.
    """

    def __init__(
        self, modules: list[tuple[str, torch.nn.Module]], objects: list[tuple[str, Access]],
        assigned: Callable[[type], Collection[str]] = lambda cls: (),
    ) -> None:  # fmt: skip
        self.module_paths: dict[int, str] = {}
        self.modules: list[torch.nn.Module] = []
        self._tensors: dict[int, _Found] = {}
        self._objects, self._assigned = objects, assigned
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
            own, assigned = module.__dict__, self._assigned(type(module))
            for role, table in ((Role.PARAM, own["_parameters"]), (Role.BUFFER, own["_buffers"]), (Role.STATE, own)):
                for key, tensor in table.items():
                    if isinstance(tensor, torch.Tensor):
                        kind = BindingKind.FIXED if role is Role.PARAM or key not in assigned else BindingKind.FOUND
                        self.note(tensor, role, prefix + key, Access(table, f"[{key!r}]"), kind)

    def note_looked_up(self, tensor: torch.Tensor, path: str, access: Access) -> None:
        """A tensor that another one may replace between calls: looked up in every call."""
        self._tensors.setdefault(id(tensor), _Found(tensor, Role.STATE, path, [access], BindingKind.FOUND))

    def note(
        self, tensor: torch.Tensor, role: Role, path: str, access: Access, kind: BindingKind = BindingKind.FIXED
    ) -> None:
        """A tensor that the function can reach: always this one, or the one it finds there."""
        found = self._tensors.setdefault(id(tensor), _Found(tensor, role, path, [], kind))
        found.accesses.append(access)

    # modules as they run

    def enter(self, module: torch.nn.Module) -> None:
        """A module starts to run."""
        if id(module) not in self.module_paths:
            self.add_module(type(module).__name__.lower(), module)
        self._stack.append(self.module_paths[id(module)])

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
            for path, access in self._objects:
                self._search(path, access)
            for module in list(self.modules):
                self._search(self.module_paths[id(module)], Access(module.__dict__, ""))
            found = self._tensors.get(id(tensor))
        if found is None or found.tensor is not tensor:
            shape = tuple(tensor.shape)
            warning = (
                f"a tensor of shape {shape} is found in no argument, module, closure or global of the function; the "
                "compiled program keeps using this very object"
            )
            return Role.STATE, "tensor", Binding(BindingKind.FIXED, tensor=tensor, warning=warning)
        return found.role, found.path, Binding(found.kind, tensor=tensor, accesses=tuple(found.accesses))

    def _search(self, path: str, start: Access) -> None:
        """Look for tensors inside containers and plain objects, breadth first."""
        queue = deque([(path, start.suffix, start.resolve())])
        seen: set[int] = set()
        while queue and len(seen) < _SEARCH_LIMIT:
            name, suffix, item = queue.popleft()
            if id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, torch.nn.Module):
                self.add_module(name, item)
            elif isinstance(item, torch.Tensor):
                self.note(item, Role.STATE, name, Access(start.root, suffix))
            else:
                queue.extend((name + n, suffix + s, child) for n, s, child in _children(item))


def _children(item: Any) -> Iterator[tuple[str, str, Any]]:
    """(path, suffix, child) of what a container or a plain object holds."""
    if isinstance(item, dict):
        for key, child in list(item.items()):
            if isinstance(key, (str, int)) and _may_hold(child):
                yield f"[{key!r}]", f"[{key!r}]", child
    elif isinstance(item, (list, tuple)):
        for index, child in enumerate(item):
            if _may_hold(child):
                yield f"[{index}]", f"[{index}]", child
    else:
        for key, child in list(getattr(item, "__dict__", {}).items()):
            if key.isidentifier() and _may_hold(child):
                yield f".{key}", f".__dict__[{key!r}]", child


_LEAVES = (str, bytes, int, float, complex, bool, type(None), type, torch.dtype, torch.device)


def _may_hold(item: Any) -> bool:
    if isinstance(item, _LEAVES) or (callable(item) and not isinstance(item, torch.nn.Module)):
        return False
    return not type(item).__module__.startswith(("torch.cuda", "threading", "logging", "builtins.module"))
