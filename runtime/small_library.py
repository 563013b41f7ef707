"""Small C libraries beside a program: compiled when they are first needed, and kept in the disk cache."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence

from graphc.errors import CompilerError
from graphc.program.record import Program
from graphc.runtime.build import build_library, compiler_version
from graphc.runtime.cache import disk_cache, read_entry, temporary_entry
from graphc.settings import settings


def small_library(name: str, text: str, flags: Sequence[str], libraries: Sequence[str] = ()) -> ctypes.CDLL:
    """Compile a C source, or take it from the disk cache, and load it.

    Args:
        name: of the library.
        text: the source.
        flags, libraries: of the compiler and the linker.

    Raises:
        CompilerError: there is no C compiler, or it failed; carries its output.
    """
    compiler = settings().compiler()
    if compiler is None:
        raise CompilerError(f"no C compiler ({settings().cc}) for {name}")
    facts = "\0".join((text, *flags, *libraries, compiler, compiler_version(compiler)))
    key, file = hashlib.sha256(facts.encode()).hexdigest(), f"{name}.so"
    folder = disk_cache().get(key) if settings().cache else None
    if folder is None:
        program = Program(name, "c", sources={f"{name}.c": text}, flags=tuple(flags), libraries=tuple(libraries))
        made = {file: build_library(program)}
        folder = disk_cache().put(key, made) if settings().cache else temporary_entry(key, made)
    else:
        read_entry(folder, file)  # checks it
    return ctypes.CDLL(str(folder / file))
