"""What Python holds while a captured function runs, as text that is the same when it would go on in the same way.

Objects that stay from run to run (parameters, classes, functions) stand for themselves; everything else is described by
what is in it, in the order of the walk. What cannot be looked into makes the whole unclear.
"""

from __future__ import annotations

import enum
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from graphc.frontend.guards import PLAIN
from graphc.frontend.hidden_stack import WITH, hidden
from graphc.frontend.locations import is_graphc_code, is_user_code

_LIMIT = 20_000
_CODE_OPTIMIZED = 1
_THEMSELVES = (
    types.ModuleType, types.BuiltinFunctionType, types.MethodWrapperType, torch._ops.OpOverload,
    torch._ops.OpOverloadPacket, property, torch.Generator, enum.Enum,
)  # fmt: skip
_CONTAINERS = (list, tuple, set, frozenset, deque, torch.Size)
_TABLES = (dict, OrderedDict, defaultdict, types.MappingProxyType)
_ITERATORS: tuple[type, ...] = (
    type(iter(())), type(iter([])), type(iter(range(0))), range, slice, enumerate, zip, reversed,
)  # fmt: skip
_HOOKS = {"_forward_hooks", "_forward_pre_hooks"}
_OF_MODULES = frozenset(vars(torch.nn.Module())) - {"training", "_parameters", "_buffers", "_modules", *_HOOKS}


class UnclearError(Exception):
    """Something cannot be described."""


class PythonState:
    """Describes frames and objects.

    Args:
        traced: describes a tensor or number of the capture; None for what is none of these.
    """

    def __init__(self, traced: Callable[[Any], Any]) -> None:
        self._traced = traced
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []  # keeps ids valid
        self.tokens: list[Any] = []

    def frames(self, frames: Iterator[types.FrameType]) -> None:
        """Describe running frames: where each is, its variables, and the globals that its code names.

        Raises:
            UnclearError: there is something that cannot be looked into.
        """
        for frame in frames:
            code = frame.f_code
            below = hidden(code, frame.f_lasti)
            if below is None or any(what != WITH for what in below):
                raise UnclearError(f"{code.co_qualname} is inside of a `for` loop or an expression")
            self.tokens += ("frame", id(code), frame.f_lasti)
            self._kept.append(code)
            for name, item in _variables(frame).items():
                self.tokens.append(name)
                self.visit(item)
            self._globals(code, frame.f_globals)

    def _globals(self, code: types.CodeType, names: dict[str, Any]) -> None:
        """The globals that code names, with the functions and classes defined in it."""
        for name in code.co_names:
            if name in names:
                self.tokens.append(name)
                self.visit(names[name])
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._globals(constant, names)

    def _class(self, kind: type) -> None:
        """A class stands for itself; of the user's, what its functions can reach and its attributes may change."""
        self.tokens.append(("itself", id(kind)))
        for base in kind.__mro__:
            parts = vars(base)
            functions = [part for part in parts.values() if isinstance(part, types.FunctionType)]
            if not any(is_user_code(function.__code__) for function in functions):
                continue
            for name, part in parts.items():
                part = part.fget if isinstance(part, property) else getattr(part, "__func__", part)
                if isinstance(part, types.FunctionType) or (
                    not name.startswith("__") and not hasattr(type(part), "__get__")
                ):
                    self.tokens.append(name)
                    self.visit(part)

    def release(self) -> None:
        """Let go of all objects."""
        self._kept.clear()

    def visit(self, item: Any) -> None:
        """Describe an object.

        Raises:
            UnclearError: it cannot be looked into.
        """
        if issubclass(type(item), PLAIN):
            self.tokens.append((type(item).__name__, repr(item)))
            return
        if id(item) in self._numbers:
            self.tokens.append(("again", self._numbers[id(item)]))
            return
        if len(self._kept) > _LIMIT:
            raise UnclearError("too many objects")
        self._numbers[id(item)] = len(self._kept)
        self._kept.append(item)
        traced = self._traced(item)
        if traced is not None:
            self.tokens.append(traced)
        else:
            self._object(item)

    def _object(self, item: Any) -> None:
        kind = type(item)
        if isinstance(item, type):
            self._class(item)
        elif isinstance(item, (torch.Tensor, *_THEMSELVES)):
            self.tokens.append(("itself", id(item)))
        elif kind in _CONTAINERS:
            self.tokens.append((kind.__name__, len(item)))
            for part in item:
                self.visit(part)
        elif kind in _TABLES:
            self._table(item)
        elif kind is types.CellType:
            self.visit(item.cell_contents if _is_filled(item) else None)
        elif kind is types.FunctionType:
            self.tokens.append(("function", id(item.__code__)))
            for part in (item.__defaults__, item.__kwdefaults__, item.__closure__):
                self.visit(part)
            if is_user_code(item.__code__):
                self._globals(item.__code__, item.__globals__)
        elif kind is types.MethodType:
            self.visit(item.__func__)
            self.visit(item.__self__)
        elif kind in _ITERATORS:
            self.tokens.append(kind.__name__)
            self.visit(item.__reduce__())
        elif isinstance(item, torch.nn.Module):
            self.tokens.append("module")
            self.visit(kind)
            self._table({name: part for name, part in vars(item).items() if name not in _OF_MODULES})
        elif hasattr(item, "__dict__") and kind.__new__ is object.__new__ and not hasattr(kind, "__slots__"):
            self.tokens.append("object")
            self.visit(kind)
            self._table(vars(item))
        else:
            raise UnclearError(f"a {kind.__name__} cannot be looked into")

    def _table(self, table: Any) -> None:
        self.tokens.append((type(table).__name__, len(table)))
        for key, part in table.items():
            self.visit(key)
            self.visit(part)


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # asks
    except ValueError:
        return False
    return True


def _variables(frame: types.FrameType) -> dict[str, Any]:
    """The local variables of a frame. Python's own snapshot of them must not keep alive what the function lets go."""
    snapshot = frame.f_locals
    found = dict(snapshot)
    if type(snapshot) is dict and frame.f_code.co_flags & _CODE_OPTIMIZED:
        snapshot.clear()
    return found


def frames_to(frame: types.FrameType | None, outermost: types.CodeType) -> Iterator[types.FrameType]:
    """The frames of the user's and of libraries' code, from the innermost to the one that `outermost` has called."""
    while frame is not None and frame.f_code is not outermost:
        if not is_graphc_code(frame.f_code):
            yield frame
        frame = frame.f_back
