"""The `graphc` command as users call it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from graphc.cli.main import main
from graphc.settings import override

FILE = """
import torch

def twice(x):
    return torch.softmax(x * 2, -1)

def alone(x):
    return x

number = 3

def example_inputs():
    return (torch.randn(4, 5),)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(FILE)
    with override(cache_dir=tmp_path / "cache"):
        yield path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("captured", "softmax"),
        ("optimized", "exp"),
        ("scheduled", "kernel"),
        ("source", "program.c"),
        ("explain", "backend c"),
    ],
)
def test_inspect_prints_each_stage(file, stage, expected) -> None:
    code, output = run("inspect", f"{file}:twice", "--stage", stage)
    assert code == 0
    assert expected in output


def test_inspect_writes_all_stages(file, tmp_path) -> None:
    code, output = run("inspect", f"{file}:twice", "--out", tmp_path / "out")
    assert code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"1_captured.txt", "2_optimized.txt", "3_scheduled.txt", "explain.txt", "program.c"} <= names
    assert str(tmp_path / "out" / "program.c") in output


@pytest.mark.parametrize(
    ("target", "message"),
    [("missing.py:f", "no file missing.py"), ("{}:nothing", "has no nothing; it has twice"), ("{}:number", "is a int")],
)
def test_bad_targets_are_one_clear_line(file, target, message) -> None:
    code, output = run("inspect", target.format(file))
    assert code == 1
    assert message in output
    assert "Traceback" not in output


def test_bench_writes_table_json_and_plot(file, tmp_path) -> None:
    out = tmp_path / "bench"
    code, output = run("bench", f"{file}:twice", "--against", "eager", "--rounds", 2, "--no-cold", "--out", out)
    assert code == 0
    assert "vs eager" in output
    rows = json.loads((out / "bench.json").read_text())["rows"]
    assert [row["contender"] for row in rows] == ["eager", "graphc"]
    assert rows[1]["kernels"] >= 1
    assert rows[1]["max_error"] < 1e-6
    assert (out / "bench.png").stat().st_size > 1000


def test_bench_of_the_zoo(tmp_path) -> None:
    code, output = run("bench", "zoo:mlp", "--against", "eager", "--rounds", 1, "--out", tmp_path)
    assert code == 0
    assert "mlp forward" in output and "mlp step" in output
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [(row["workload"], row["contender"]) for row in rows] == [
        (f"mlp {form}", contender) for form in ("forward", "step") for contender in ("eager", "graphc")
    ]
    assert all(row["max_error"] < 1e-3 and row["peak"] for row in rows)  # 1e-3 is one step of Adam
    assert [row["compile"] is None for row in rows] == [True, False] * 2
    code, output = run("bench", "zoo:zebra")
    assert code == 1 and "the zoo has no zebra; it has generative" in output


def test_bench_refuses_unknown_contenders(file) -> None:
    code, output = run("bench", f"{file}:twice", "--against", "magic")
    assert code == 1
    assert "no contender magic; there are eager, graphc, inductor" in output


def test_doctor_compiles_something(file) -> None:
    code, output = run("doctor")
    assert code == 0
    assert "largest difference to eager" in output


def test_cache_info_and_clear(file) -> None:
    run("inspect", f"{file}:twice", "--stage", "source")
    code, output = run("cache", "info")
    assert code == 0
    assert "1 program" in output
    code, output = run("cache", "clear")
    assert code == 0
    assert "0 program" in run("cache", "info")[1]
