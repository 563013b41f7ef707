"""`make gpu` without a GPU: what it says, how it decides, and a rehearsal on the CPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_it_says_so() -> None:
    command = ["make", "-s", "gpu", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert done.stdout.startswith("no GPU: ") and "nothing was tested or measured" in done.stdout


def test_a_rehearsal_measures_compares_and_writes(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--dry", "--out", str(tmp_path), "softmax", "adamw_150"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "dry.json").read_text())
    rows = {(row["program"], row["contender"]): row for row in found["rows"]}
    assert set(rows) == {(program, name) for program in ("softmax", "adamw_150") for name in ("eager", "graphc")}
    assert all(row["right"] and row["median"] > 0 and row["error"] < 0.1 for row in rows.values())
    assert found["versions"]["torch"] == torch.__version__
    text = (tmp_path / "dry.md").read_text()
    assert "| softmax | graphc |" in text and "| adamw_150 | >= 90 % of the copy |" in text


def test_a_program_that_kills_its_process_takes_no_other_with_it(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def child(names: list[str], small: bool, seconds: float, folder: str) -> Any:
        started.append(list(names))
        for name in list(names):
            yield {"begin": name}
            if name == "b":
                yield {"tail": "exit -11: illegal memory access"}
                return
            yield {"program": name, "contender": "eager"}
            yield {"end": name}

    monkeypatch.setattr(gpu, "_child", child)
    rows: list[Any] = []
    gpu.run_all(["a", "b", "c"], True, 60, rows.append)
    assert [row["program"] for row in rows] == ["a", "b", "c"] and started == [["a", "b", "c"], ["c"]]
    assert rows[1]["failed"] == "exit -11: illegal memory access"


def test_what_there_is_no_time_for_is_said(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Any] = []
    gpu.run_all(["softmax", "mlp_step"], False, 3, rows.append)
    assert [row["skipped"] for row in rows] == ["no time: 3 s left"] * 2
    monkeypatch.setattr(
        gpu, "_started", lambda name, *rest: pytest.fail(name) if name != "eager" else (lambda: None, {})
    )
    monkeypatch.setattr(gpu, "results_of", lambda call, made: [torch.zeros(1)])
    monkeypatch.setattr(gpu, "_timed", lambda *args: {})
    cheap = gpu.Case("softmax", lambda *args: gpu.CASES["softmax"].make(args[0], args[1], True), "", 1.0)
    found = list(gpu.measure_case(cheap, torch.device("cpu"), False, time.monotonic() + 1))
    assert [row["contender"] for row in found if "skipped" in row] == ["graphc", *cheap.contenders]


def test_wrong_results_are_told(gpu: Any) -> None:
    exact = [torch.ones(4, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    assert gpu.error(exact, exact) == 0
    assert gpu.error([exact[0] * 1.5, exact[1]], exact) == pytest.approx(0.5)
    assert gpu.is_right(1e-3, 1e-3) and not gpu.is_right(3e-3, 1e-3) and not gpu.is_right(math.nan, 1.0)


def test_every_case_is_the_same_for_all_contenders(gpu: Any) -> None:
    for item in gpu.CASES.values():
        made = []
        for exact in (True, False, False):
            torch.manual_seed(0)
            made.append(item.make(torch.device("cpu"), exact, True))
        exact, first, second = ([*one.args, *one.state] for one in made)
        for a, b, c in zip(exact, first, second, strict=True):
            assert torch.equal(b, c), item.name
            assert torch.equal(a, b.double() if b.is_floating_point() else b), item.name
            assert a.dtype is torch.float64 or not b.is_floating_point()
