"""One library for programs of many sizes, which is told those of the program that runs.

A program of other sizes that is to run meanwhile, in another thread, takes a copy of its own.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from pathlib import Path

from graphc.runtime.cache import temporary_entry
from graphc.runtime.library import bind, libtorch
from graphc.runtime.load import LIBRARY


class SizedLibrary:
    """A library for any sizes.

    Args:
        content: of its file.
        name: of a folder for it.
        symbols: what it calls of libtorch, see `graphc.program.record.Program`.

    Raises:
        OSError: it cannot be loaded.
        BackendUnavailableError: this torch lacks a function that it calls.
    """

    def __init__(self, content: bytes, name: str, symbols: Sequence[str]) -> None:
        self._content, self._name = content, name
        self.loaded = load_library(self.copy(), symbols)
        self._lock = threading.Lock()
        self._sizes: tuple[int, ...] = ()
        self._running = 0

    def copy(self) -> Path:
        """A file with the same content."""
        return temporary_entry(self._name, {LIBRARY: self._content}) / LIBRARY

    def enter(self, sizes: tuple[int, ...]) -> bool:
        """A program of these sizes begins to run, unless False is given: one of others does."""
        with self._lock:
            if sizes != self._sizes:
                if self._running:
                    return False
                tell_sizes(self.loaded, sizes)
                self._sizes = sizes
            self._running += 1
            return True

    def leave(self) -> None:
        """It has run."""
        with self._lock:
            self._running -= 1


def load_library(path: Path, symbols: Sequence[str]) -> ctypes.CDLL:
    """Load a program's library, and tell it where the functions are that it calls."""
    libtorch()
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
    bind(library, tuple(symbols))
    return library


def tell_sizes(library: ctypes.CDLL, sizes: tuple[int, ...]) -> None:
    """Have a library compute with these sizes from now on."""
    if sizes and hasattr(library, "graphc_set_sizes"):
        library.graphc_set_sizes((ctypes.c_int64 * len(sizes))(*sizes))
