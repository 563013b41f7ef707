"""From a program record to something that can be called, by way of the disk cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from graphc.errors import BackendUnavailableError, CacheError
from graphc.program.record import Program
from graphc.runtime.build import Build
from graphc.runtime.cache import disk_cache, read_entry, temporary_entry
from graphc.settings import settings

if TYPE_CHECKING:
    from graphc.runtime.sized_library import SizedLibrary

RECORD, LIBRARY = "program.json", "program.so"


class Executable(Protocol):
    """A program ready to run: takes one tensor or number per graph input, gives one per graph output."""

    program: Program

    def __call__(self, inputs: Sequence[Any]) -> list[Any]: ...


def load_program(program: Program, folder: Path | None) -> Executable:
    """Make a built program callable.

    Args:
        program: the record.
        folder: holds its shared library; None when it has no C sources.

    Raises:
        OSError: the library cannot be loaded.
        BackendUnavailableError: this torch lacks a function that the program calls, or nothing here runs Triton code.
        CompilerError: a Triton kernel does not compile.
    """
    if program.backend == "triton":
        from graphc.runtime.triton_program import TritonProgram

        return TritonProgram(program)
    from graphc.runtime.native_program import NativeProgram

    return NativeProgram(program, folder / LIBRARY if folder is not None and program.sources else None)


def find_program(key: str) -> Executable | None:
    """The program stored under a key, ready to run, or None when there is none that works here."""
    if not settings().cache:
        return None
    cache = disk_cache()
    folder = cache.get(key)
    if folder is None:
        return None
    try:
        return load_program(Program.from_json(read_entry(folder, RECORD).decode()), folder)
    except BackendUnavailableError:
        return None  # nothing wrong with the entry
    except (CacheError, OSError, UnicodeDecodeError) as error:
        if folder.is_dir():  # else another process has thrown it out meanwhile
            cache.discard(key, str(error))
        return None


def build_program(program: Program, key: str, build: Build | None = None, keep: bool = True) -> Executable:
    """Build a program, store it under its key, and make it callable.

    Args:
        program: what to build.
        key: its place in the cache.
        build: where some of its sources may have been started already.
        keep: store it for other processes too.

    Raises:
        CompilerError: it could not be built.
    """
    files = {name: text.encode() for name, text in program.sources.items()}
    if not program.sources or program.backend == "triton":
        files[RECORD] = program.to_json().encode()
    elif build is None:
        with Build(program.flags) as fresh:
            return build_program(program, key, fresh, keep)
    else:
        build.begin(program)
        files[RECORD] = program.to_json().encode()  # while the compiler works
        files[LIBRARY] = build.library(program)
    return _stored(program, key, files, keep)


def program_sharing(library: SizedLibrary | None, program: Program) -> Executable:
    """A program that has its library in common with others.

    Raises:
        CompilerError: a Triton kernel does not compile.
    """
    if library is None:
        return load_program(program, None)
    from graphc.runtime.native_program import NativeProgram

    return NativeProgram(program, library)


def program_with(library: bytes, program: Program, key: str) -> Executable:
    """A program whose library has been built, stored under its key and callable.

    Args:
        library: of the program, for any sizes; each program loads a copy, which knows its own. Empty for none.
    """
    files = {name: text.encode() for name, text in program.sources.items()}
    files[RECORD] = program.to_json().encode()
    if library:
        files[LIBRARY] = library
    return _stored(program, key, files, True)


def _stored(program: Program, key: str, files: dict[str, bytes], keep: bool) -> Executable:
    """A built program, in the cache where it is to be kept, callable."""
    if not (keep and settings().cache):
        return load_program(program, temporary_entry(key, files))
    folder = disk_cache().put(key, files)
    try:
        return load_program(program, folder)
    except OSError:
        if folder.is_dir():
            raise
        return load_program(program, temporary_entry(key, files))  # another process has thrown it out meanwhile
