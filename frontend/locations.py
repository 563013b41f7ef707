"""Where in the user's program we are: the innermost frame that belongs neither to torch nor Python nor graphc."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import CodeType, FrameType

import torch

from graphc.ir.types import UNKNOWN, Location

_next_node = torch._C._autograd._get_sequence_nr


@lru_cache(maxsize=1)
def _graphc_prefixes() -> tuple[str, ...]:
    import graphc

    package = os.path.dirname(os.path.abspath(graphc.__file__))
    parts = [os.path.join(package, name) for name in ("frontend", "passes", "codegen", "runtime")]
    return tuple(folder + os.sep for folder in (package, *map(os.path.realpath, parts)))


@lru_cache(maxsize=1)
def _prefixes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    stdlib = tuple({sysconfig.get_path("stdlib") + os.sep, sysconfig.get_path("platstdlib") + os.sep})
    return (os.path.dirname(torch.__file__) + os.sep, *_graphc_prefixes()), stdlib


_USER_FILES: dict[str, bool] = {}  # whether code of a file is the user's; a code object would be slow to hash


def is_user_code(code: CodeType) -> bool:
    """The code was written by the user or by a library that stands on torch."""
    found = _USER_FILES.get(code.co_filename)
    if found is None:
        found = _USER_FILES[code.co_filename] = is_user_file(code.co_filename)
    return found


def is_graphc_code(code: CodeType) -> bool:
    """The code is graphc's own."""
    return code.co_filename.startswith(_graphc_prefixes())


def is_user_file(file: str) -> bool:
    """Of the user's, or of a library that stands on torch."""
    internal, stdlib = _prefixes()
    if file.startswith(internal) or file.startswith("<frozen"):
        return False
    return not file.startswith(stdlib) or "site-packages" in file or "dist-packages" in file


class Locator:
    """Finds the user's line; one per capture.

    Args:
        module_path: gives the path of the module that runs now.

    Attributes:
        differentiates: a call of a backward pass has been seen.
    """

    def __init__(self, module_path: Callable[[], str]) -> None:
        self._module_path = module_path
        self._known: dict[tuple[str, int, str, str], Location] = {}
        self._by_node: dict[int, Location] = {}
        self.differentiates = False
        self._place: Location | None = None

    @contextlib.contextmanager
    def standing_at(self, place: Location) -> Iterator[None]:
        """For the block, calls are made at this place: it is late for what the user's program did there."""
        outer, self._place = self._place, place
        try:
            yield
        finally:
            self._place = outer

    def here(self) -> Location:
        """The location of the call being made, or `UNKNOWN` when no frame is the user's."""
        if self._place is not None:
            return self._place
        frame: FrameType | None = sys._getframe(1)
        known = _USER_FILES
        while frame is not None:
            code = frame.f_code
            is_user = known.get(code.co_filename)
            if is_user or (is_user is None and is_user_code(code)):
                break
            frame = frame.f_back
        else:
            return UNKNOWN
        key = (code.co_filename, frame.f_lineno, code.co_qualname, self._module_path())
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Location(*key)
        return found

    def of_call(self) -> Location:
        """As `here`; for a call of a backward pass, the line of the forward pass that it differentiates.

        Autograd numbers its nodes as it makes them: the call that runs just before node n is made is what n
        differentiates.
        """
        node = torch._C._current_autograd_node()
        if node is not None:
            self.differentiates = True
            found = self._by_node.get(node._sequence_nr())
            if found is not None:
                return found
        location = self.here()
        if node is None and torch.is_grad_enabled():
            self._by_node.setdefault(_next_node() - 1, location)
        return location
