"""Runs the tests on a device of torch that is made up, in a process of their own: what is registered stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

FOLDER = Path(__file__).parent / "backend"
ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="the device is C++")
def test_on_a_device_of_its_own() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--import-mode=importlib", "-p", "no:cacheprovider", FOLDER]
    command += ["-m", "not suite"]  # machine code and simulated GPUs run all of them
    own = {"TRITON_INTERPRET": "1", "GRAPHC_MADE_UP_BACKEND": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **own}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
