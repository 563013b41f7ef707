"""A sample of the suites: every so-manieth operator and module of PyTorch's own databases, always the same ones."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch

from tests.suites import __main__ as command
from tests.suites import modules, operators, optimizers
from tests.suites.batches import Call, judge_all
from tests.suites.tables import fused, load, markdown, merged, save
from tests.suites.verdicts import (
    COMPILED,
    RAISES,
    REFUSED,
    RIGHT,
    WRONG,
    Tally,
    Verdict,
    compare,
    first_samples,
    judge,
    report,
)

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
    ("form", "dtype", "step", "least"),
    [
        ("forward", torch.float32, 40, 20),
        ("forward", torch.bfloat16, 80, 10),
        ("forward", torch.int64, 80, 10),
        ("forward", torch.complex64, 80, 6),
        ("in-place", torch.float32, 40, 4),
        ("method", torch.float32, 60, 6),
        ("strided", torch.float32, 80, 10),
        ("backward", torch.float32, 40, 20),
        ("outside", torch.float32, 80, 8),
        ("erroneous", torch.float32, 15, 20),
    ],
)
@COMPILER
def test_operators(form, dtype, step, least) -> None:
    tally = Tally("operators")
    for op in operators.operators(dtype, form)[::step]:
        operators.sweep(tally, op, "c", dtype, form, 2)
    _assert_good(tally, least)


def test_names_tell_how_many_samples() -> None:
    assert (first_samples(None), first_samples(4)) == ("", ", first 4 samples of each")


def test_strided_samples_are_dense() -> None:
    """Operators on sparse tensors have samples that cannot be made non-contiguous."""
    (op,) = [op for op in operators.operators(torch.float32, "strided") if op.name == "sparse.sampled_addmm"]
    assert operators.calls(op, torch.float32, "forward") and not operators.calls(op, torch.float32, "strided")


def test_operators_op_by_op() -> None:
    tally = Tally("operators")
    for op in operators.operators(torch.float32)[::20]:
        operators.sweep(tally, op, "interpret", torch.float32, count=2)
    _assert_good(tally, 50)


@pytest.mark.parametrize(("backend", "step", "least"), [("interpret", 8, 40), pytest.param("c", 40, 4, marks=COMPILER)])
def test_modules(backend, step, least) -> None:
    for mode in modules.MODES:
        tally = Tally(f"modules, {mode}")
        for info in modules.modules()[::step]:
            modules.sweep(
                tally, info, mode.startswith("train"), backend, 2 if backend == "interpret" else 1, "backward" in mode
            )
        _assert_good(tally, least // 2)


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
    off, zero = torch.tensor([3e-5]), torch.zeros(1)
    assert compare(off, zero, zero.double, lambda: [[torch.tensor([1e-9]).double()], [torch.tensor([-2e-5]).double()]])
    for drawn in ([], [[None]], [[torch.tensor([1e-6]).double()]]):
        with pytest.raises(AssertionError):
            compare(off, zero, zero.double, lambda drawn=drawn: drawn)
    tally = Tally("suite", [Verdict("a", RIGHT), Verdict("b[0]", REFUSED, "why"), Verdict("c", WRONG, "off")])
    assert report([tally]) == 1
    assert report([Tally("suite", tally.verdicts[:2])]) == 0


def test_batches() -> None:
    """A batch is one program; what is wrong or refused in it is told apart from the rest."""
    x = torch.ones(3)
    good = Call("good", lambda t: t * 2, (x,))
    bad = Call("bad", lambda t: t * (3 if torch.compiler.is_compiling() else 2), (x,))
    refusing = Call("refusing", lambda t: t + t.numpy().sum(), (x,))
    raising = Call("raising", lambda t: t + torch.ones(4), (x,))
    found = judge_all([good, bad, refusing, raising, good], "interpret", size=5)
    assert [verdict.kind for verdict in found] == [RIGHT, WRONG, REFUSED, RIGHT, RIGHT]
    assert [verdict.how for verdict in found][3:] == [RAISES, COMPILED]
    assert [verdict.name for verdict in judge_all([good] * 3, "interpret")] == ["good"] * 3
    leaf = torch.ones(3, requires_grad=True)
    slope = Call("slope", lambda t: t * t, (leaf,), [torch.ones(3)])
    steep = Call("steep", lambda t: t * t * (2 if torch.compiler.is_compiling() else 1), (leaf,), [torch.ones(3)])
    with torch.enable_grad():
        assert [v.kind for v in judge_all([slope, steep], "interpret")] == [RIGHT, WRONG]


def test_parts_are_put_together(tmp_path) -> None:
    parts = [Tally("a", [Verdict("x[0]", RIGHT, externs=("aten.mm.default",)), Verdict("y[0]", RIGHT)], 1.0, ["note"])]
    parts += [Tally("a", [Verdict("z[0]", REFUSED, "no | such"), Verdict("z[1]", WRONG, "off")], 2.0)]
    save(parts, tmp_path / "tallies.json")
    assert load(tmp_path / "tallies.json") == parts
    (whole,) = merged(parts)
    assert (len(whole.verdicts), whole.seconds, fused(whole)) == (4, 3.0, (1, 3))
    page = markdown([whole], ["a note"])
    assert "| a | 4 | 2 | 0 | 0 | 1 | 1 | 3 |" in page and "no \\| such" in page and "## Wrong" in page


def test_a_part_that_dies_is_wrong(tmp_path) -> None:
    parts = [command.Job("no_such_suite", ()), command.Job("modules", ("--only", "nn.ReLU6", "--samples", "1"))]
    found = dict(command.run(parts, tmp_path, 2))
    (tally,) = found[0]
    assert tally.count(WRONG) == 1 and "died: exit status 1" in tally.verdicts[0].reason
    assert "ModuleNotFoundError" in tally.verdicts[0].reason
    assert [tally.count(RIGHT) for tally in found[1]] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("backend", "every", "least"), [("interpret", 25, 8), pytest.param("c", 60, 3, marks=COMPILER)]
)
def test_optimizers(backend, every, least) -> None:
    tally = Tally("optimizers")
    optimizers.sweep(tally, backend, every=every)
    _assert_good(tally, least)
