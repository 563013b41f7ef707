"""Building: the compiler's failures are told in its own words, and a killed build leaves nothing behind."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from graphc.errors import CompilerError
from graphc.program.record import Program
from graphc.runtime.build import Build, build_library, compiler_version
from graphc.settings import override


def program(text: str = "int graphc_run_0(void) { return 7; }\n") -> Program:
    return Program("f", "c", sources={"program.c": text}, flags=("-O1",))


def fake_compiler(folder: Path, script: str) -> str:
    path = folder / "cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_library_comes_out() -> None:
    assert build_library(program())[:4] == b"\x7fELF"


def test_several_sources() -> None:
    record = program()
    record.sources = {
        "a.c": "int two(void) { return 2; }\n",
        "b.c": "int two(void);\nint three(void) { return two() + 1; }\n",
    }
    assert b"three" in build_library(record)


def test_the_compilers_output_is_shown() -> None:
    with pytest.raises(CompilerError, match=r"failed:\nprogram\.c.*\n?.*error: .*nonsense"):
        build_library(program("int f(void) { return nonsense; }\n"))


def test_no_compiler() -> None:
    with (
        override(cc="no-such-compiler"),
        pytest.raises(CompilerError, match=r"no C compiler: 'no-such-compiler'.*GRAPHC_CC"),
    ):
        build_library(program())


def test_a_compiler_that_cannot_start(tmp_path: Path) -> None:
    compiler = fake_compiler(tmp_path, "")
    Path(compiler).write_text("not a program")
    with override(cc=compiler), pytest.raises(CompilerError, match="could not be started"):
        build_library(program())


def test_a_compiler_that_hangs_is_stopped_with_its_children(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    compiler = fake_compiler(tmp_path, f"sleep 60 &\necho $! > {pid_file}\nwait")
    with override(cc=compiler), pytest.raises(CompilerError, match=r"stopped: it ran out of time after 0\.5 s"):
        build_library(program(), timeout=0.5)
    assert _ends(int(pid_file.read_text()))


def _ends(pid: int) -> bool:
    """Whether a process that was sent a signal is soon no more: only its parent is waited for."""
    for _ in range(50):
        if not _alive(pid):
            return True
        time.sleep(0.1)
    return False


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_killed_compiler(tmp_path: Path) -> None:
    compiler = fake_compiler(tmp_path, "echo out of memory; kill -9 $$")
    with override(cc=compiler), pytest.raises(CompilerError, match=r"was killed by signal 9:\nout of memory"):
        build_library(program())


def test_a_compiler_that_writes_nothing(tmp_path: Path) -> None:
    with override(cc=fake_compiler(tmp_path, "exit 0")), pytest.raises(CompilerError, match="wrote no library"):
        build_library(program())


def test_builds_leave_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    build_library(program())
    with pytest.raises(CompilerError):
        build_library(program("nonsense"))
    assert os.listdir(tmp_path) == []


def test_compiler_version(tmp_path: Path) -> None:
    assert "9.9" in compiler_version(fake_compiler(tmp_path, "echo mycc 9.9; echo more"))
    assert compiler_version(str(tmp_path / "absent")) == ""


def test_sources_started_early_are_compiled_once(tmp_path: Path) -> None:
    """A source given ahead is taken as it is if the program has it, and left out if the program has another text."""
    log = tmp_path / "log"
    compiler = fake_compiler(tmp_path, f'echo "$@" >> {log}\nexec gcc "$@"')
    record = program()
    record.sources = {"a.c": "int two(void) { return 2; }\n", "b.c": "int five(void) { return 5; }\n"}
    with override(cc=compiler), Build(record.flags) as build:
        build.start("a.c", record.sources["a.c"])
        build.start("b.c", "int four(void) { return 4; }\n")
        library = build.library(record)
    assert b"two" in library
    assert b"five" in library
    assert b"four" not in library
    assert sum("a.c.o" in line and "-c" in line.split() for line in log.read_text().splitlines()) == 1


def test_leaving_a_build_stops_the_compiler(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    compiler = fake_compiler(tmp_path, f"sleep 60 &\necho $! > {pid_file}\nwait")
    with override(cc=compiler), pytest.raises(ZeroDivisionError), Build(()) as build:
        for name in ("a.c", "b.c", "c.c"):
            build.start(name, "")
        for _ in range(100):
            if pid_file.exists() and pid_file.read_text():
                break
            time.sleep(0.05)
        raise ZeroDivisionError
    assert _ends(int(pid_file.read_text()))


def test_a_compiler_started_while_its_build_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no running one yet when those are stopped."""
    left = threading.Event()

    def start_late(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        left.wait(5.0)
        return popen(*arguments, **options)

    def shutdown(pool: ThreadPoolExecutor, wait: bool = True, cancel_futures: bool = False) -> None:
        if wait:  # asked for once the running compilers are stopped
            left.set()
        stop(pool, wait=wait, cancel_futures=cancel_futures)

    popen, stop = subprocess.Popen, ThreadPoolExecutor.shutdown
    monkeypatch.setattr(subprocess, "Popen", start_late)
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shutdown)
    with override(cc=fake_compiler(tmp_path, f"sleep 2; touch {tmp_path}/done")), Build(()) as build:
        build.start("a.c", "")
        time.sleep(0.2)  # its thread is about to start the compiler
    assert not (tmp_path / "done").exists()
