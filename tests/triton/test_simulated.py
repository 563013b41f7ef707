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

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from gpu_cases import CASES

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


@pytest.mark.parametrize(
    "name",
    [
        "launch",
        "streams",
        "several_gpus",
        "programs",
        "cuda",
        "loops",
        "sizes",
        "attention",
    ],
)
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


@pytest.mark.parametrize("name", CASES)
def test_the_benchmarks(name: str, tmp_path: Path) -> None:
    said = simulated("benchmarks/gpu.py", "--dry", "--out", tmp_path, name)
    assert "Measured on simulated GPU" in said


_IDLE = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
x = torch.ones(1 << 19, device="cuda")
print((x + 1).sum().item(), torch.empty(100 << 30, dtype=torch.uint8, device="cuda").numel() >> 30)
image = torch.empty(128, 64, 112, 112, device="cuda").to(memory_format=torch.channels_last)
made = torch.nn.functional.conv2d(image, torch.empty(256, 64, 1, 1, device="cuda"), stride=2)
with FakeTensorMode(allow_non_fake_inputs=True):
    expected = torch.nn.functional.conv2d(image, torch.empty(256, 64, 1, 1, device="cuda"), stride=2)
print(*made.shape, made.stride() == expected.stride() == (802816, 1, 14336, 256))
event = torch.cuda.Event()
event.record()
print(event.query(), torch.cuda.current_stream().query())
"""


def test_an_idle_gpu_does_nothing_of_any_size() -> None:
    said = simulated("-c", _IDLE, GRAPHC_SIMULATED_IDLE="1", GRAPHC_SIMULATED_GIB="141")
    assert said.split("\n") == ["0.0 100", "128 256 56 56 True", "True True", ""]


def test_what_compiling_and_steps_cost_the_host() -> None:
    said = simulated("benchmarks/gpu_compile.py", "--rounds", "1", "softmax", GRAPHC_SIMULATED_GIB="141")
    ours, theirs = ([cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()[-2:])
    assert ours[:2] == ["softmax", "graphc"] and theirs[:2] == ["softmax", "default"]
    assert all(float(row[column].split()[0]) > 0 for row in (ours, theirs) for column in (2, 4, 5))
    said = simulated("benchmarks/gpu_host.py", "mlp")
    rows = dict(line.split()[1:3] for line in said.splitlines() if line.startswith("mlp"))
    assert list(rows) == ["eager", "graphc", "default", "reduce-overhead", "apart"]
    assert all(float(microseconds) > 0 for microseconds in rows.values())
