"""Nested Python structures of arguments and results: flattened to leaves, rebuilt from them, and described in code.

Handled: list, tuple, NamedTuple, dict and its subclasses (OrderedDict, defaultdict, Hugging Face's ModelOutput),
UserDict, dataclasses, and whatever is registered with `torch.utils._pytree`. Anything else is a leaf, unless the caller
asks for plain objects (a cache of keys and values) to be opened: those consist of their attributes.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch.utils import _pytree

from graphc.frontend.watched import kinds


@dataclass(frozen=True)
class Node:
    """The structure of a value.

    Args:
        kind: leaf, list, tuple, namedtuple, dict, userdict, dataclass, registered, object; or again for an object that
            is met a second time.
        cls: its class; `object` for a leaf.
        keys: keys of a mapping, names of a dataclass's fields or of an object's attributes, the context of a registered
            class, or the number of the object met again, among all objects in order.
        children: structures of the parts, in order.
        extra: what is no leaf: a default factory, attributes beside the fields of a dataclass or UserDict.
    """

    kind: str
    cls: type = object
    keys: tuple[Any, ...] = ()
    children: tuple[Node, ...] = ()
    extra: Any = field(default=None, compare=False)

    def count(self) -> int:
        """Number of leaves."""
        return 1 if self.kind == "leaf" else sum(child.count() for child in self.children)

    @property
    def flat(self) -> bool:
        """All parts are leaves."""
        return all(child is LEAF for child in self.children)


LEAF = Node("leaf")
Test: TypeAlias = Callable[[Any], bool]
_WATCHED = kinds[list]
_ATOMS = frozenset((torch.Tensor, torch.nn.Parameter, int, float, bool, str, type(None), complex, torch.Size))


def parts(value: Any) -> tuple[str, tuple[Any, ...], list[Any]] | None:
    """(kind, keys, children) of a container, or None for a leaf."""
    cls = type(value)
    if cls in _ATOMS or isinstance(value, (torch.Tensor, torch.nn.Module)):
        return None
    if cls is list or cls is _WATCHED:
        return "list", (), value
    if cls is tuple:
        return "tuple", (), list(value)
    if isinstance(value, tuple) and hasattr(cls, "_fields"):
        return "namedtuple", cls._fields, list(value)
    if isinstance(value, dict):
        return "dict", tuple(value), list(value.values())
    if isinstance(value, collections.UserDict):
        return "userdict", tuple(value.data), list(value.data.values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = tuple(field.name for field in dataclasses.fields(value) if hasattr(value, field.name))
        return "dataclass", names, [getattr(value, name) for name in names]
    registered = _pytree.SUPPORTED_NODES.get(cls)
    if registered is not None:
        children, context = registered.flatten_fn(value)
        return "registered", (context,), list(children)
    return None


def flatten(value: Any, opened: Test | None = None, closed: Test | None = None) -> tuple[list[Any], Node]:
    """Leaves in order, and the structure.

    Args:
        opened: says which objects that would be leaves are taken as their attributes; none by default.
        closed: says which containers and objects are leaves all the same; none by default.
    """
    leaves: list[Any] = []
    return leaves, _flatten(value, leaves, opened, closed, {})


def _flatten(value: Any, leaves: list[Any], opened: Test | None, closed: Test | None, met: dict[int, int]) -> Node:
    found = parts(value)
    if (found is not None or opened is not None) and closed is not None and closed(value):
        leaves.append(value)
        return LEAF
    if found is not None:
        kind, keys, children = found
        nodes = tuple(_flatten(child, leaves, opened, closed, met) for child in children)
        return Node(kind, type(value), keys, nodes, _extra(kind, keys, value))
    if opened is None or type(value) in _ATOMS or not opened(value):
        leaves.append(value)
        return LEAF
    if id(value) in met:
        return Node("again", type(value), (met[id(value)],))
    met[id(value)] = len(met)
    attributes = vars(value)
    nodes = tuple(_flatten(child, leaves, opened, closed, met) for child in attributes.values())
    return Node("object", type(value), tuple(attributes), nodes)


def _extra(kind: str, keys: tuple[Any, ...], value: Any) -> Any:
    if kind == "dict":
        return getattr(value, "default_factory", None)
    if kind in ("dataclass", "userdict"):
        return {name: item for name, item in getattr(value, "__dict__", {}).items() if name not in (*keys, "data")}
    return None


def rebuild(node: Node, leaves: Iterator[Any]) -> Any:
    """The value with this structure and these leaves."""
    return _rebuild(node, leaves, [])


def _rebuild(node: Node, leaves: Iterator[Any], objects: list[Any]) -> Any:
    if node.kind == "leaf":
        return next(leaves)
    if node.kind == "again":
        return objects[node.keys[0]]
    if node.kind == "object":
        made: Any = object.__new__(node.cls)
        objects.append(made)
        for name, child in zip(node.keys, node.children, strict=True):
            made.__dict__[name] = _rebuild(child, leaves, objects)
        return made
    return assemble(node, [_rebuild(child, leaves, objects) for child in node.children])


def assemble(node: Node, children: list[Any]) -> Any:
    """A container from its rebuilt parts."""
    if node.kind == "list":
        return children
    if node.kind == "tuple":
        return tuple(children)
    if node.kind == "namedtuple":
        return node.cls._make(children)  # type: ignore[attr-defined]
    if node.kind == "registered":
        return _pytree.SUPPORTED_NODES[node.cls].unflatten_fn(children, node.keys[0])
    pairs = dict(zip(node.keys, children, strict=True))
    if node.kind == "dict":
        return _mapping(node, pairs)
    return _with_attributes(node.cls, {**node.extra, **({"data": pairs} if node.kind == "userdict" else pairs)})


def _mapping(node: Node, pairs: dict[Any, Any]) -> Any:
    if node.cls is dict:
        return pairs
    if issubclass(node.cls, collections.defaultdict):
        return node.cls(node.extra, pairs)
    make: type[Any] = node.cls
    return make(**pairs) if dataclasses.is_dataclass(node.cls) else make(pairs)


def _with_attributes(cls: type, attributes: dict[str, Any]) -> Any:
    made: Any = object.__new__(cls)
    for name, value in attributes.items():
        object.__setattr__(made, name, value)
    return made


def paths(node: Node, name: str) -> Iterator[str]:
    """A readable path for each leaf: `x[0]['ids'].mask`."""
    if node.kind == "leaf":
        yield name
    for index, child in enumerate(node.children):
        yield from paths(child, name + step(node, index))


def flat_lists(call: Node) -> Iterator[range]:
    """Which leaves are the items of one list or tuple of leaves, of those among the arguments of a call.

    Args:
        call: the structure of (args, kwargs).
    """
    start = 0
    waiting = [child for arguments in reversed(call.children) for child in reversed(arguments.children)]
    while waiting:
        node = waiting.pop()
        if node.kind in ("list", "tuple") and node.flat:
            yield range(start, start + node.count())
        if node.kind == "leaf" or node.flat:
            start += node.count()
        else:
            waiting += reversed(node.children)


def step(node: Node, index: int) -> str:
    """How part `index` of a container is written in Python."""
    if node.kind in ("dict", "userdict"):
        return f"[{node.keys[index]!r}]"
    if node.kind in ("dataclass", "namedtuple", "object"):
        return f".{node.keys[index]}"
    return f"[{index}]"
