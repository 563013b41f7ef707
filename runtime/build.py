"""Building native programs: runs of the C compiler in a private folder, one per source, at the same time.

Sources that are known early are compiled early, while the rest of the program is still being planned.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from graphc.errors import CompilerError
from graphc.program.record import Program
from graphc.runtime.library import openmp_library
from graphc.settings import settings

TIMEOUT_SECONDS = 600.0
_LINES_SHOWN = 40


class Build:
    """One native program being built, in a folder of its own that is gone afterwards.

        with Build(flags) as build:
            build.start("kernels_0.c", text)    # as soon as it is known; returns at once
            ...
            library = build.library(program)    # what has not been started, and the link

    Args:
        flags: compiler flags of all sources.
        timeout: seconds after which the compiler is killed, counted from here.
    """

    def __init__(self, flags: Sequence[str], timeout: float = TIMEOUT_SECONDS) -> None:
        self._flags = [flag for flag in flags if flag != "-shared"]
        self._deadline = time.monotonic() + timeout
        self._running: set[subprocess.Popen[bytes]] = set()
        self._objects: dict[tuple[str, str], Future[str]] = {}
        self._cpus = len(os.sched_getaffinity(0))
        self._slots = threading.Semaphore(max(self._cpus - 1, 1))  # one CPU is left to the planning meanwhile
        self._is_early, self._is_over = True, False

    def __enter__(self) -> Build:
        self._temporary = tempfile.TemporaryDirectory(prefix="graphc-build-")
        self._folder = Path(self._temporary.name)
        self._pool = ThreadPoolExecutor(self._cpus)
        return self

    def __exit__(self, *failure: object) -> None:
        """Stop what still runs: after an error, or because the program turned out not to need it."""
        self._is_over = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in list(self._running):
            _kill(process)
        self._pool.shutdown()
        self._temporary.cleanup()

    def start(self, source: str, text: str) -> None:
        """Begin to compile a source; a failure shows when the library is asked for."""
        if (source, text) not in self._objects:
            folder = self._folder / str(len(self._objects))  # one name may come with two texts
            self._objects[source, text] = self._pool.submit(self._compile, _compiler(), folder, source, text)

    def begin(self, program: Program) -> None:
        """Start what has not been started of a program of several sources, on all CPUs."""
        if self._is_early and self._cpus > 1:
            self._slots.release()
        self._is_early = False
        if len(program.sources) > 1:
            for source, text in program.sources.items():
                self.start(source, text)

    def library(self, program: Program) -> bytes:
        """The bytes of the shared library made of a program's sources.

        Raises:
            CompilerError: there is no compiler, or it failed, was killed, or took too long; carries its output.
        """
        compiler = _compiler()
        self.begin(program)
        inputs = [self._objects[item].result() for item in program.sources.items() if item in self._objects]
        if not inputs:  # a single source is compiled and linked by one run
            ((source, text),) = program.sources.items()
            (self._folder / source).write_text(text)
            inputs = [source]
        command = [compiler, "-shared", "-fPIC", *self._flags, *inputs, *_libraries(program), "-o", "program.so"]
        self._run(command, self._folder)
        try:
            return (self._folder / "program.so").read_bytes()
        except OSError as error:
            raise CompilerError(f"{compiler} reported success and wrote no library: {error}") from None

    def _compile(self, compiler: str, folder: Path, source: str, text: str) -> str:
        """Compile a source to an object file, whose name this gives."""
        with self._slots:
            if not self._is_over:
                folder.mkdir()
                (folder / source).write_text(text)
                self._run([compiler, "-c", "-fPIC", *self._flags, source, "-o", f"{source}.o"], folder)
        return f"{folder.name}/{source}.o"

    def _run(self, command: list[str], folder: Path) -> None:
        """Run the compiler until it is done or time is up."""
        timeout = max(self._deadline - time.monotonic(), 0.0)
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
        self._running.add(process)
        if self._is_over:  # since before it was among those that are stopped
            _kill(process)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            _kill(process)
            raise CompilerError(f"{command[0]} was stopped: it ran out of time after {timeout:.1f} s") from None
        except BaseException:
            _kill(process)
            raise
        finally:
            self._running.discard(process)
        if process.returncode:
            text = output.decode(errors="replace").splitlines()
            shown = "\n".join(text[:_LINES_SHOWN]) or "(it printed nothing)"
            how = f"was killed by signal {-process.returncode}" if process.returncode < 0 else "failed"
            raise CompilerError(f"{' '.join(command)}\n{how}:\n{shown}")


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
    with Build(program.flags, timeout) as build:
        return build.library(program)


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


def _libraries(program: Program) -> list[str]:
    """What to link. torch's own OpenMP stands before the compiler's, which is then not needed, hence not linked."""
    openmp = openmp_library()
    return [*(["-Wl,--as-needed", openmp] if openmp is not None else []), *program.libraries]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Stop the compiler and the passes it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
