"""Where in the user's program we are: the innermost frame that belongs neither to torch nor Python nor graphc."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable
from functools import lru_cache
from types import CodeType

from graphc.ir.types import UNKNOWN, Location


def _internal_prefixes() -> tuple[str, ...]:
    import torch

    import graphc

    package = os.path.dirname(os.path.abspath(graphc.__file__))
    parts = [os.path.join(package, name) for name in ("frontend", "passes", "codegen", "runtime")]
    folders = [os.path.dirname(torch.__file__), package, *(os.path.realpath(part) for part in parts)]
    return tuple(folder + os.sep for folder in folders)


@lru_cache(maxsize=1)
def _prefixes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    stdlib = tuple({sysconfig.get_path("stdlib") + os.sep, sysconfig.get_path("platstdlib") + os.sep})
    return _internal_prefixes(), stdlib


@lru_cache(maxsize=8192)
def is_user_code(code: CodeType) -> bool:
    """The code was written by the user or by a library that stands on torch."""
    file = code.co_filename
    internal, stdlib = _prefixes()
    if file.startswith(internal) or file.startswith("<frozen"):
        return False
    return not file.startswith(stdlib) or "site-packages" in file or "dist-packages" in file


class Locator:
    """Finds the user's line; one per capture.

    Args:
        module_path: gives the path of the module that runs now.
    """

    def __init__(self, module_path: Callable[[], str]) -> None:
        self._module_path = module_path
        self._known: dict[tuple[CodeType, int, str], Location] = {}

    def here(self) -> Location:
        """The location of the call being made, or `UNKNOWN` when no frame is the user's."""
        frame = sys._getframe(1)
        while frame is not None and not is_user_code(frame.f_code):
            frame = frame.f_back  # type: ignore[assignment]
        if frame is None:
            return UNKNOWN
        key = (frame.f_code, frame.f_lineno, self._module_path())
        found = self._known.get(key)
        if found is None:
            found = Location(key[0].co_filename, key[1], key[0].co_qualname, key[2])
            self._known[key] = found
        return found
