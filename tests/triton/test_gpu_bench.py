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


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_measure

    return gpu_measure


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


def test_eager_and_graphc_come_first_for_all(gpu: Any, measure: Any) -> None:
    assert gpu.jobs_of(["softmax", "adamw_150"], True) == ["1:softmax", "1:adamw_150"]
    jobs = gpu.jobs_of(["softmax", "adamw_150"], False)
    assert jobs == ["1:softmax", "1:adamw_150", "2:softmax", "2:adamw_150", "3:softmax"]
    assert measure.contenders_in(gpu.CASES["attention"], 2) == ("eager", "graphc", "sdpa", "default")
    everybody = {name for phase in (1, 2, 3) for name in measure.contenders_in(gpu.CASES["gpt2_step"], phase)}
    assert everybody == {"eager", "graphc", *gpu.CASES["gpt2_step"].contenders}


def test_a_program_that_kills_its_process_is_measured_without_what_killed_it(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], list[str]]] = []
    names = ["softmax", "adamw_150", "mlp_step"]

    def child(jobs: list[str], small: bool, seconds: float, folder: str, without: list[str]) -> Any:
        started.append((list(jobs), list(without)))
        for job in list(jobs):
            name = job.partition(":")[2]
            yield {"begin": job}
            for contender in ("eager", "graphc"):
                if f"{name}:{contender}" in without:
                    continue
                yield {"start": contender}
                if (name, contender) == ("adamw_150", "graphc"):
                    yield {"tail": "exit -11: illegal memory access"}
                    return
                yield {"program": name, "contender": contender}
            yield {"end": job}

    monkeypatch.setattr(gpu, "_child", child)
    rows: list[Any] = []
    gpu.run_all(names, True, 60, rows.append)
    jobs = [f"1:{name}" for name in names]
    assert started == [(jobs, []), (jobs[1:], ["adamw_150:graphc"])]
    failed = [row for row in rows if "failed" in row]
    assert [(row["program"], row["contender"]) for row in failed] == [("adamw_150", "graphc")]
    assert failed[0]["failed"] == "exit -11: illegal memory access"
    assert {row["program"] for row in rows} == set(names)


def test_a_program_that_dies_at_once_is_left_out(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def child(jobs: list[str], *rest: Any) -> Any:
        yield {"begin": jobs[0]}
        yield {"tail": "exit 1: no memory"}

    monkeypatch.setattr(gpu, "_child", child)
    rows: list[Any] = []
    gpu.run_all(["softmax", "adamw_150"], True, 60, rows.append)
    assert [(row["program"], row["failed"]) for row in rows] == [
        ("softmax", "exit 1: no memory"), ("adamw_150", "exit 1: no memory")
    ]  # fmt: skip


def test_an_unusable_device_ends_the_process(gpu: Any, measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str, *rest: Any) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(measure, "_started", fails)
    monkeypatch.setattr(measure, "results_of", lambda call, made: [torch.zeros(1)])
    monkeypatch.setattr(measure.Clock, "wait", fails)
    found = measure.measure_case(gpu.CASES["softmax"], torch.device("cpu"), True, time.monotonic() + 100)
    assert next(found) == {"start": "eager"}
    assert next(found)["failed"].endswith("an illegal memory access was encountered")
    with pytest.raises(measure.DeadDevice, match="eager"):
        next(found)


def test_who_fails_while_timed_takes_nobody_along(measure: Any) -> None:
    seen: list[int] = []

    def fails() -> None:
        seen.append(1)
        if len(seen) > 4:
            raise RuntimeError("out of memory\nmore")

    failed: dict[str, str] = {}
    clock = measure.Clock(torch.device("cpu"))
    found = measure._timed({"a": lambda: None, "b": fails, "c": lambda: None}, clock, 4, time.monotonic() + 60, failed)
    assert {name: len(samples) for name, samples in found.items()} == {"a": 4, "c": 4}
    assert failed == {"b": "RuntimeError: out of memory"}


def test_a_later_row_takes_the_place_of_an_earlier_one(gpu: Any) -> None:
    first = {"program": "a", "contender": "graphc", "first": 2.0}
    timed = {"program": "a", "contender": "graphc", "median": 1.0, "compile": 2.0}
    other = {"program": "a", "contender": "eager", "median": 3.0}
    rows = gpu.merged(gpu.merged(gpu.merged([], first), other), timed)
    assert rows == [timed, other]
    again = gpu.merged(rows, {"program": "a", "contender": "graphc", "median": 0.5, "compile": 0.1})
    assert again[0] == {"program": "a", "contender": "graphc", "median": 0.5, "compile": 2.0}
    assert gpu.merged(again, first) == again
    assert gpu.merged(again, {**first, "failed": "x"})[0] == {**again[0], "then": "x"}


_SOME_TESTS = """
import os, pytest, torch
torch.cuda.is_available = lambda: True
broken = []
def synchronize():
    if broken:
        raise RuntimeError("illegal memory access")
torch.cuda.synchronize = synchronize
pytestmark = pytest.mark.gpu
def test_a(): pass
def test_b(): os._exit(7)
def test_c(): assert False, "plainly wrong"
def test_d():
    broken.append(1)
    raise RuntimeError("illegal")
def test_e(): pass
"""


def test_tests_go_on_behind_one_that_ends_its_process(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "root" / "tests" / "gpu"
    home.mkdir(parents=True)
    (home / "conftest.py").write_text((ROOT / "tests" / "gpu" / "conftest.py").read_text())
    (home / "test_some.py").write_text(_SOME_TESTS)
    (tmp_path / "root" / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\n")
    monkeypatch.setattr(gpu, "ROOT", tmp_path / "root")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    part = gpu._test_file("some", time.monotonic() + 300, tmp_path)
    failed = {item["test"].partition("::")[2]: item["why"] for item in part["failed"]}
    assert not part["passed"] and set(failed) == {"test_b", "test_c", "test_d"}
    assert "plainly wrong" in failed["test_c"] and "7" in failed["test_b"]
    notes = [json.loads(line) for line in (tmp_path / "some.jsonl").read_text().splitlines()]
    assert [item["test"][-1] for item in notes if "why" not in item] == ["a", "b", "c", "d", "e"]  # each once
    assert capfd.readouterr().out.count("== test_some") == 3


def test_what_there_is_no_time_for_is_said(gpu: Any, measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Any] = []
    gpu.run_all(["softmax", "mlp_step"], False, 3, rows.append)
    assert [row["skipped"] for row in rows] == ["no time: 3 s left"] * 2
    monkeypatch.setattr(
        measure,
        "_started",
        lambda name, *rest: pytest.fail(name) if name != "eager" else (lambda: None, {"program": ""}),
    )
    monkeypatch.setattr(measure, "results_of", lambda call, made: [torch.zeros(1)])
    monkeypatch.setattr(measure, "_timed", lambda *args: {})
    cheap = measure.Case("softmax", lambda *args: gpu.CASES["softmax"].make(args[0], args[1], True), "", 1.0)
    for phase, later in ((1, []), (2, ["default"]), (3, ["max-autotune-no-cudagraphs", "max-autotune"])):
        found = list(measure.measure_case(cheap, torch.device("cpu"), False, time.monotonic() + 1, phase))
        assert [row["contender"] for row in found if "skipped" in row] == ["graphc", *later]


def test_wrong_results_are_told(measure: Any) -> None:
    exact = [torch.ones(4, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    assert measure.error(exact, exact) == 0
    assert measure.error([exact[0] * 1.5, exact[1]], exact) == pytest.approx(0.5)
    assert measure.is_right(1e-3, 1e-3) and not measure.is_right(3e-3, 1e-3) and not measure.is_right(math.nan, 1.0)


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
