"""Runs the tests that need Triton's interpreter in a process of its own, which has it switched on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

FOLDER = Path(__file__).parent / "interpreted"
ROOT = Path(__file__).parents[2]
ATTENTION = sorted([*FOLDER.glob("test_attention*.py"), FOLDER / "test_mask_edges.py"])
"""Run by `test_interpreted_attention.py`, so that two processes share the tests."""

elsewhere = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the tests are collected in this process"
)


def run_interpreted(*arguments: str | Path, marked: str = "not suite") -> None:
    """Run tests under TRITON_INTERPRET=1; they are to pass.

    Args:
        marked: which of them, by their marks.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--import-mode=importlib", "-p", "no:cacheprovider"]
    command += ["-m", marked]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.long
@elsewhere
def test_in_the_interpreter() -> None:
    run_interpreted(FOLDER, *(f"--ignore={file}" for file in ATTENTION))


@pytest.mark.suite
@elsewhere
def test_what_takes_long_in_the_interpreter() -> None:
    run_interpreted(FOLDER, *(f"--ignore={file}" for file in ATTENTION), marked="suite")
