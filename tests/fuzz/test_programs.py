"""Random PyTorch programs, compiled and eager. One that is wrong: `python -m tests.fuzz --seeds N:N+1 --show`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.__main__ import run
from tests.fuzz.check import judge_all
from tests.fuzz.generate import fits, generate
from tests.fuzz.program import Program
from tests.fuzz.shrink import shrink
from tests.suites.verdicts import RIGHT, WRONG

ROOT = Path(__file__).resolve().parents[2]


def _check(programs: list[Program], backend: str, size: int) -> None:
    verdicts = judge_all(programs, backend, size, every=3)
    wrong = [f"{verdict.name}: {verdict.reason}" for verdict in verdicts if verdict.kind == WRONG]
    assert not wrong, "\n".join(wrong)
    assert sum(verdict.kind == RIGHT for verdict in verdicts) > 0.9 * len(programs)  # the others are refused


def test_everything() -> None:
    _check([generate(seed) for seed in range(280)], "c", 40)


@pytest.mark.parametrize("focus", ["branches", "memory"])
def test_focus(focus: str) -> None:
    _check([generate(seed, focus) for seed in range(50)], "interpret", 1)


def test_triton(tmp_path: Path) -> None:
    assert run(0, 12, "triton", tmp_path, processes=1) == 0


@pytest.mark.suite
def test_a_hundred_thousand() -> None:
    assert run(0, 100_000, "c", ROOT / "out" / "fuzz") == 0


def test_a_seed_is_a_program_and_runs_by_itself() -> None:
    program = generate(3)
    assert generate(3) == program and generate(4) != program
    names: dict[str, object] = {"__name__": "alone"}
    exec(program.script(), names)
    assert {"first", "second", "program"} <= names.keys()


def test_shrinking_leaves_what_fails() -> None:
    """To the smallest program, of all that eager runs, which still has a certain statement."""
    program = next(p for p in map(generate, range(50)) if len(p.statements) > 5 and not p.fails)
    kept = program.statements[0]
    smallest = shrink(program, lambda other: kept in other.statements)
    assert kept in smallest.statements and len(smallest.statements) <= 2 and len(smallest.results) == 1
    assert fits(smallest)
