"""A sample of the suites: every so-manieth operator and module of PyTorch's own databases, always the same ones."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch

from tests.suites import modules, operators, optimizers
from tests.suites.verdicts import REFUSED, RIGHT, WRONG, Tally, Verdict, compare, judge, report

COMPILER = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _assert_good(tally: Tally, least: int) -> None:
    wrong = [f"{verdict.name}: {verdict.reason}" for verdict in tally.verdicts if verdict.kind == WRONG]
    assert not wrong
    assert tally.count(RIGHT) >= least


@pytest.mark.parametrize(
    ("backend", "step", "least"), [("interpret", 15, 100), pytest.param("c", 60, 8, marks=COMPILER)]
)
def test_operators(backend, step, least) -> None:
    tally = Tally("operators")
    for op in operators.operators(torch.float32)[::step]:
        count = 2 if backend == "interpret" else 1
        operators.sweep(tally, op, operators.samples(op, torch.float32, count), backend)
        if op.inplace_variant is not None:
            operators.sweep(tally, op, operators.samples(op, torch.float32, 1), backend, op.inplace_variant)
        if backend == "interpret":
            operators.sweep(tally, op, operators.errors(op), backend)
    _assert_good(tally, least)


@pytest.mark.parametrize(("backend", "step", "least"), [("interpret", 6, 40), pytest.param("c", 40, 4, marks=COMPILER)])
def test_modules(backend, step, least) -> None:
    tally = Tally("modules")
    for info in modules.modules()[::step]:
        for training in (False, True):
            modules.sweep(tally, info, training, backend, 2 if backend == "interpret" else 1)
    _assert_good(tally, least)


def test_verdicts() -> None:
    """The judge finds what it is there to find."""
    x = torch.ones(3)
    assert judge("right", lambda t: t * 2, (x,), "interpret") == Verdict("right", RIGHT)
    refused = judge("refused", lambda t: t + t.numpy().sum(), (x,), "interpret")
    assert refused is not None and refused.kind == REFUSED and "data" in refused.reason
    other = judge("wrong", lambda t: t * (3 if torch.compiler.is_compiling() else 2), (x,), "interpret")
    assert other is not None and other.kind == WRONG
    assert judge("sparse", lambda t: t.to_sparse(), (x,), "eager") is None
    for mine in (torch.ones(3, 1).t(), torch.ones(3).double(), 1.0, [x], x + 1e-3):
        with pytest.raises(AssertionError):
            compare(mine, x, lambda: x.double())
    tally = Tally("suite", [Verdict("a", RIGHT), Verdict("b[0]", REFUSED, "why"), Verdict("c", WRONG, "off")])
    assert report([tally]) == 1
    assert report([Tally("suite", tally.verdicts[:2])]) == 0


@pytest.mark.parametrize(
    ("backend", "every", "least"), [("interpret", 25, 8), pytest.param("c", 60, 3, marks=COMPILER)]
)
def test_optimizers(backend, every, least) -> None:
    tally = Tally("optimizers")
    optimizers.sweep(tally, backend, every=every)
    _assert_good(tally, least)
