"""Names in byte code: what functions read, and what the methods of module classes use."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import TypeAlias

import torch

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
        if root is not None and name not in ("CACHE", "PUSH_NULL", "RESUME", "COPY"):
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
                names.update(code_names(member.__code__))
    return frozenset(names)


def constructor_names(cls: type) -> frozenset[str]:
    """Names in the constructors of a module class; other attributes have been set from outside."""
    return _constructor_names(cls)


@cache
def _constructor_names(cls: type) -> frozenset[str]:
    inits = [vars(base).get("__init__") for base in cls.__mro__]
    return frozenset(
        name for init in inits if isinstance(init, types.FunctionType) for name in code_names(init.__code__)
    )


_NOT_RUN = frozenset(
    ("__init__", "extra_repr", "__repr__", "reset_parameters", "__setstate__", "_load_from_state_dict")
)


def code_names(code: types.CodeType) -> Iterator[str]:
    """The names that code uses, and those that may be in strings of it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_names(constant)
        elif isinstance(constant, str):
            yield constant  # getattr(self, "name")
