"""Random programs of pointwise, reduction, view, mutation and broadcast ops agree with the interpreter everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.agreement import by_backend, by_oracle, check_agreement
from tests.strategies import graphs

ROOT = Path(__file__).resolve().parents[2]
RELAXED = {"suppress_health_check": list(HealthCheck)}


@settings(max_examples=100, **RELAXED)
@given(graphs(), st.integers(0, 9))
def test_oracle_agrees(graph, seed) -> None:
    check_agreement(graph, seed, by_oracle)


@settings(max_examples=40, **RELAXED)
@given(graphs(), st.integers(0, 9))
def test_c_agrees(graph, seed) -> None:
    check_agreement(graph, seed, by_backend("c"))


@pytest.mark.suite
@settings(max_examples=1000, **RELAXED)
@given(graphs(max_ops=20), st.integers(0, 9))
def test_oracle_and_c_agree_on_a_thousand(graph, seed) -> None:
    check_agreement(graph, seed, by_oracle)
    check_agreement(graph, seed, by_backend("c"))


def _triton(examples: int) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.e2e.triton_agreement", str(examples)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_triton_agrees() -> None:
    _triton(30)


@pytest.mark.suite
def test_triton_agrees_on_a_thousand() -> None:
    _triton(1000)
