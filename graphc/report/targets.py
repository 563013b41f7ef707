"""Finds what the user names as `FILE.py:NAME`, with its example inputs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from graphc.errors import GraphcError


class TargetError(GraphcError):
    """`FILE.py:NAME` cannot be found, or has no example inputs."""


@dataclass(frozen=True)
class Target:
    """A callable of a user's file with arguments for it.

    Args:
        spec: `FILE.py:NAME`, by which another process finds it too.
        fn: the function or module; undecorated if it was compiled in the file.
        make_inputs: fresh arguments on every call, as (args, kwargs).
    """

    spec: str
    fn: Callable[..., Any]
    make_inputs: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]

    @property
    def name(self) -> str:
        return self.spec.rpartition(":")[2]


def load_module(path: str) -> ModuleType:
    """Import a Python file by path.

    Raises:
        TargetError: there is no such file. An exception of the file's own code comes through as it is.
    """
    file = Path(path)
    if not file.is_file():
        raise TargetError(f"no file {path}")
    name = "_graphc_target_" + file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise TargetError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, dict):
        return (), dict(example)
    return tuple(example) if isinstance(example, (tuple, list)) else (example,), {}


def _undecorated(candidate: Any) -> Any:
    from graphc.api import CompiledFunction, CompiledModule

    if isinstance(candidate, CompiledFunction):
        return candidate.target
    return candidate.original if isinstance(candidate, CompiledModule) else candidate


def load_targets(spec: str) -> list[Target]:
    """The target of `FILE.py:NAME`, or of `FILE.py` every callable that carries its own `example_inputs`.

    Raises:
        TargetError: nothing there, or no example inputs; says what the file holds.
    """
    path, _, name = spec.partition(":")
    module = load_module(path)
    carrying = [key for key, value in vars(module).items() if callable(getattr(value, "example_inputs", None))]
    if not name:
        if not carrying:
            raise TargetError(f"{path}: no function in it has an `example_inputs` attribute; name one as {path}:NAME")
        return [_target(module, path, key) for key in carrying]
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise TargetError(f"{path} has no {name}; it has {', '.join(public) or 'nothing that can be called'}")
    return [_target(module, path, name)]


def load_target(spec: str) -> Target:
    """The one target that a spec names.

    Raises:
        TargetError: as `load_targets`, or there are several.
    """
    targets = load_targets(spec)
    if len(targets) != 1:
        raise TargetError(f"{spec} holds {len(targets)} functions; name one: {', '.join(t.name for t in targets)}")
    return targets[0]


def _target(module: ModuleType, path: str, name: str) -> Target:
    candidate = getattr(module, name)
    if not callable(candidate):
        raise TargetError(f"{path}:{name} is a {type(candidate).__name__}, which cannot be called")
    maker = getattr(candidate, "example_inputs", None) or getattr(module, "example_inputs", None)
    if not callable(maker):
        raise TargetError(
            f"{path}:{name} has no inputs: define `def example_inputs(): return (x, ...)` in the file, "
            f"or set {name}.example_inputs"
        )
    return Target(f"{path}:{name}", _undecorated(candidate), lambda: _arguments(maker()))
