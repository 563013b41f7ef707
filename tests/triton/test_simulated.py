"""Runs the tests for GPUs on simulated ones, where torch is built for CUDA; each file in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests.triton.simulated.build import missing

ROOT = Path(__file__).parents[2]
LACKS = missing() or ("" if shutil.which("g++") else "g++")
pytestmark = [pytest.mark.skipif(bool(LACKS), reason=f"the simulation needs {LACKS}"), pytest.mark.suite]


def simulated(*command: str | Path, **variables: str) -> str:
    """Output of a Python command on simulated GPUs, which must end well."""
    own: Mapping[str, str] = {"GRAPHC_SIMULATED_GIB": "8", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    whole = [sys.executable, "-m", "tests.triton.simulated", sys.executable, *command]
    done = subprocess.run(whole, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


def test_what_the_simulation_refuses() -> None:
    simulated("-m", "pytest", "-q", "--import-mode=importlib", Path(__file__).parent / "simulated")


@pytest.mark.parametrize("name", ["launch", "streams", "several_gpus", "programs", "cuda", "loops", "attention"])
def test_of_a_gpu(name: str) -> None:
    chosen = ["-k", "never or auto"] if name == "attention" else []  # machine code of large products takes long here
    simulated("-m", "pytest", "-q", "-m", "gpu", *chosen, f"tests/gpu/test_{name}.py", GRAPHC_SIMULATED_GPUS="2")


def test_templates_of_capability_90() -> None:
    """Programs that stay, with blocks copied by descriptors; batches, groups, bytes, 8-bit floats; attention."""
    for name, chosen in (
        ("templates", "groups or batches or 2052 or bytes or bit_floats"),
        ("attention", "always and odd"),
    ):
        command = ("-m", "pytest", "-q", "-m", "gpu", "-k", chosen, f"tests/gpu/test_{name}.py")
        assert " passed" in simulated(*command, GRAPHC_SIMULATED_CAPABILITY="90")


def test_training_loops_and_random_programs() -> None:
    simulated("-m", "pytest", "-q", "--import-mode=importlib", "tests/triton/backend", GRAPHC_MADE_UP_BACKEND="cuda")


def test_the_benchmarks(tmp_path: Path) -> None:
    said = simulated("benchmarks/gpu.py", "--dry", "--out", tmp_path)
    assert "Measured on simulated GPU" in said
