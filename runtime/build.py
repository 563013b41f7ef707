"""Building native programs: runs of the C compiler in a private folder, one per source, at the same time."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
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
        deadline = time.monotonic() + timeout
        inputs = list(program.sources)
        if len(inputs) > 1:
            inputs = _compile_each(compiler, program, folder, deadline)
        command = [compiler, "-shared", "-fPIC", *program.flags, *inputs, *_libraries(program), "-o", target.name]
        _run(command, folder, deadline)
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


def _compile_each(compiler: str, program: Program, folder: Path, deadline: float) -> list[str]:
    """Compile every source to an object file, as many at once as there are CPUs; gives the names of the objects."""
    flags = [flag for flag in program.flags if flag != "-shared"]

    def compile_one(source: str) -> str:
        target = f"{source}.o"
        _run([compiler, "-c", "-fPIC", *flags, source, "-o", target], folder, deadline)
        return target

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(compile_one, program.sources))


def _libraries(program: Program) -> list[str]:
    """What to link. torch's own OpenMP stands before the compiler's, which is then not needed, hence not linked."""
    openmp = openmp_library()
    return [*(["-Wl,--as-needed", openmp] if openmp is not None else []), *program.libraries]


def _run(command: list[str], folder: Path, deadline: float) -> None:
    """Run the compiler until it is done or `deadline` (of `time.monotonic`) has come."""
    timeout = max(deadline - time.monotonic(), 0.0)
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
        raise CompilerError(f"{command[0]} was stopped: it ran out of time after {timeout:.1f} s") from None
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
