"""Runs the interpreter's tests, those on a made-up device, and random programs from machine code: long runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
PROGRAMS = 2000

pytestmark = [
    pytest.mark.suite,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter cannot compile"),
]


def _run(*arguments: str, **more: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("target", ["cuda:80", "cuda:90"])
def test_what_the_interpreter_runs(target: str) -> None:
    _run("pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", "tests/triton/interpreted",
         GRAPHC_TEST_PTX="1", GRAPHC_PTX_TARGET=target)  # fmt: skip


@pytest.mark.skipif(shutil.which("g++") is None, reason="the device is C++")
def test_on_a_device_of_its_own() -> None:
    _run("pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", "tests/triton/backend",
         GRAPHC_TEST_PTX="1", GRAPHC_MADE_UP_BACKEND="1")  # fmt: skip


def test_random_programs(tmp_path: Path) -> None:
    _run("tests.fuzz", "--programs", str(PROGRAMS), "--backend", "ptx", "--out", str(tmp_path))
