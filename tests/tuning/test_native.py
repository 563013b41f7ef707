"""`mode="max"` on the CPU: what the timer says is what is chosen, and whatever is chosen keeps the contract."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import graphc
from graphc.program.loops import LoopStep
from graphc.program.plan import AtenStep, GemmStep
from graphc.runtime.timing import fastest_times, timed_by
from graphc.settings import override
from tests.support import assert_contract
from tests.tuning.timers import Says, prefers

FORMS = ("blas", "tiles 8x384", "tiles 4x256", "tiles 16x384")


@pytest.fixture(autouse=True)
def _nothing_measured_yet(tmp_path: Path) -> Iterator[None]:
    with override(cache_dir=tmp_path):
        yield


def layer(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ w) + 1


def _operands(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape) for shape in shapes]


def _forms(compiled: Any, *args: Any) -> list[str]:
    steps = compiled.graph(*args, stage="scheduled").steps
    inner = [one for step in steps for one in (step.steps if isinstance(step, LoopStep) else (step,))]
    return [step.form for step in inner if isinstance(step, (GemmStep, AtenStep))]


@pytest.mark.parametrize("form", FORMS)
def test_products_are_computed_as_the_timer_says(form: str) -> None:
    x, w = _operands((70, 300), (300, 90))
    compiled = graphc.compile(layer, mode="max")
    with timed_by(prefers(form)):
        assert_contract(compiled(x, w), layer(x, w), layer(x.double(), w.double()))
    assert _forms(compiled, x, w) == [form]
    suffix = "" if form == "tiles 8x384" else f"_{form.partition(' ')[2]}"  # of the usual tiles
    called = "matmul_float(" if form == "blas" else f"multiply_by_tiles{suffix}("
    assert any(line.startswith(f"  {called}") for line in compiled.source(x, w)["program.c"].splitlines())
    (found,) = compiled.explain(x, w).stats["measured"].values()
    assert found == {"chosen": form, **{name: 1.0 if name == form else 2.0 for name in FORMS}}


@pytest.mark.parametrize("form", FORMS)
def test_products_in_batches_that_add_up(form: str) -> None:
    def step(x: torch.Tensor, w: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(total, x.mT, w)

    args = _operands((5, 40, 33), (5, 40, 70), (5, 33, 70))
    with timed_by(prefers(form)):
        compiled = graphc.compile(step, mode="max")
        assert_contract(compiled(*args), step(*args), step(*(x.double() for x in args)))
    assert _forms(compiled, *args) == [form]


@pytest.mark.parametrize("form", ["library", "generated"])
def test_attention_forward_and_backward(form: str) -> None:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v))]

    args = _operands(*[(2, 3, 70, 16)] * 3)
    compiled = graphc.compile(attend, mode="max")
    with timed_by(prefers(form)):
        found = compiled(*args)
    for mine, eager, exact in zip(found, attend(*args), attend(*(x.double() for x in args)), strict=True):
        assert_contract(mine.contiguous(), eager.contiguous(), exact.contiguous())
    assert _forms(compiled, *args) == [form, form]


def test_products_of_a_loop() -> None:
    gru = torch.nn.GRU(8, 16)
    exact = copy.deepcopy(gru).double()
    (x,) = _operands((12, 4, 8))
    compiled = graphc.compile(gru, mode="max")
    with torch.no_grad(), timed_by(prefers("blas")):
        found, _ = compiled(x)
        assert_contract(found, gru(x)[0], exact(x.double())[0])
        loop = next(s for s in compiled.graph(x, stage="scheduled").steps if isinstance(s, LoopStep))
        assert {step.form for step in loop.steps if isinstance(step, GemmStep)} == {"blas"}


def test_a_little_faster_is_not_faster() -> None:
    x, w = _operands((70, 300), (300, 90))
    compiled = graphc.compile(layer, mode="max")
    with timed_by(Says(lambda label, form: 1.0 if form == "blas" else 0.98)):
        compiled(x, w)
    assert _forms(compiled, x, w) == ["blas"]


def test_the_same_product_is_measured_once() -> None:
    def twice(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.relu(x @ w) @ w)

    timer = prefers("blas")
    x, w = _operands((64, 48), (48, 48))
    with timed_by(timer):
        graphc.compile(twice, mode="max")(x, w)
        assert timer.asked == ["f32[64, 48]{48, 1} @ f32[48, 48]{48, 1}"]
        graphc.compile(lambda x, w: torch.tanh(x @ w), mode="max")(x, w)  # another program
        assert len(timer.asked) == 1
        graphc.compile(layer, mode="max")(*_operands((64, 48), (48, 49)))
        assert len(timer.asked) == 2


PROGRAM = """
import sys, torch, graphc
from graphc.runtime.timing import timed_by

def layer(x, w):
    return torch.relu(x @ w) + 1

def other(x, w):
    return torch.tanh(x @ w)

def timer(label, runs, clock):
    print("measured")
    return {form: 1.0 if form == sys.argv[1] else 2.0 for form in runs}

torch.manual_seed(0)
x, w = torch.randn(70, 300), torch.randn(300, 90)
with timed_by(timer):
    for fn in (layer, other):
        compiled = graphc.compile(fn, mode="max")
        print(compiled(x, w).sum().item())
        print(compiled.explain(x, w).cached, compiled.explain(x, w).stats["measured"])
"""


def test_another_process_measures_nothing(tmp_path: Path) -> None:
    """And gives the same numbers, whatever its own timer would say."""

    def run(form: str) -> list[str]:
        command = [sys.executable, "-c", textwrap.dedent(PROGRAM), form]
        env = {**os.environ, "GRAPHC_CACHE_DIR": str(tmp_path)}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()

    first, second = run("tiles 4x256"), run("blas")
    assert first[0] == "measured" and first.count("measured") == 1
    assert "measured" not in second
    assert [line.replace("False", "True") for line in first[1:]] == second
    assert "'chosen': 'tiles 4x256'" in second[1]


def test_time_is_limited() -> None:
    x, w = _operands((70, 300), (300, 90))

    def none(label: str, runs: Any, clock: Any) -> dict[str, float]:
        raise AssertionError("no time for that")

    with timed_by(none), override(tune_seconds=0.0):
        compiled = graphc.compile(layer, mode="max")
        assert_contract(compiled(x, w), layer(x, w), layer(x.double(), w.double()))
    assert _forms(compiled, x, w) == [""]
    report = compiled.explain(x, w)
    assert list(report.stats["measured"].values()) == [dict.fromkeys(FORMS, "not measured")]
    assert "as by default (blas not measured;" in str(report)
    with timed_by(prefers("blas")):  # what was left out is not kept: the next process measures it
        again = graphc.compile(layer, mode="max")
        again(x, w)
    assert _forms(again, x, w) == ["blas"]


def test_without_a_disk_cache_a_process_measures_once() -> None:
    timer = prefers("tiles 4x256")
    x, w = _operands((71, 301), (301, 91))
    with timed_by(timer), override(cache=False):
        for _ in range(2):
            compiled = graphc.compile(layer, mode="max")
            compiled(x, w)
            assert _forms(compiled, x, w) == ["tiles 4x256"]
    assert len(timer.asked) == 1


def test_the_clock_of_the_cpu() -> None:
    """The timer that is used runs all, and gives up the hopeless early."""
    counts = dict.fromkeys(("quick", "slow"), 0)

    def run(name: str, size: int) -> None:
        counts[name] += 1

    def clock(run: Any, repeats: int) -> float:
        before = dict(counts)
        for _ in range(repeats):
            run()
        return 1e-3 if counts["quick"] > before["quick"] else 1e-2

    found = fastest_times("test", {"quick": lambda: run("quick", 1), "slow": lambda: run("slow", 9)}, clock)
    assert found == {"quick": 1e-3, "slow": 1e-2}
    assert counts["slow"] == 2 and counts["quick"] == 2


def test_default_measures_nothing() -> None:
    def none(label: str, runs: Any, clock: Any) -> dict[str, float]:
        raise AssertionError("measured")

    x, w = _operands((70, 300), (300, 90))
    compiled = graphc.compile(layer)
    with timed_by(none):
        compiled(x, w)
    assert "measured" not in compiled.explain(x, w).stats
