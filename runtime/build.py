"""Building native programs: one run of the C compiler in a private folder."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import tempfile
from pathlib import Path

from graphc.errors import CompilerError
from graphc.program.record import Program
from graphc.runtime.library import openmp_library
from graphc.settings import settings

TIMEOUT_SECONDS = 600.0
_LINES_SHOWN = 40


def build_library(program: Program, timeout: float = TIMEOUT_SECONDS) -> bytes:
    """Compile the sources of a program.

    Args:
        program: sources and compiler flags.
        timeout: seconds after which the compiler is killed.

    Returns:
        The bytes of the shared library.

    Raises:
        CompilerError: there is no compiler, or it failed, was killed, or took too long; carries its output.
    """
    compiler = _compiler()
    with tempfile.TemporaryDirectory(prefix="graphc-build-") as name:
        folder = Path(name)
        for file, text in program.sources.items():
            (folder / file).write_text(text)
        target = folder / "program.so"
        _run([compiler, *_arguments(program), "-o", target.name], folder, timeout)
        try:
            return target.read_bytes()
        except OSError as error:
            raise CompilerError(f"{compiler} reported success and wrote no library: {error}") from None


@functools.cache
def compiler_version(compiler: str) -> str:
    """First line of `compiler --version`, for cache keys; empty when it does not answer."""
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.partition("\n")[0]


def _compiler() -> str:
    compiler = settings().compiler()
    if compiler is None:
        raise CompilerError(f"no C compiler: {settings().cc!r} is not on PATH; install gcc or name one in GRAPHC_CC")
    return compiler


def _arguments(program: Program) -> list[str]:
    """Flags and inputs. torch's own OpenMP stands before the compiler's, which is then not needed, hence not linked."""
    openmp = openmp_library()
    libraries = ["-Wl,--as-needed", openmp] if openmp is not None else []
    return ["-shared", "-fPIC", *program.flags, *program.sources, *libraries, *program.libraries]


def _run(command: list[str], folder: Path, timeout: float) -> None:
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise CompilerError(f"{command[0]} could not be started: {error}") from None
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _kill(process)
        raise CompilerError(f"{command[0]} was stopped after {timeout:g} s") from None
    except BaseException:
        _kill(process)
        raise
    if process.returncode:
        text = output.decode(errors="replace").splitlines()
        shown = "\n".join(text[:_LINES_SHOWN]) or "(it printed nothing)"
        how = f"was killed by signal {-process.returncode}" if process.returncode < 0 else "failed"
        raise CompilerError(f"{' '.join(command)}\n{how}:\n{shown}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Stop the compiler and the passes it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
