"""Data that eager refuses is refused by compiled programs: the same class and words, and the user's line."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import graphc
from graphc.driver import compile_graph
from graphc.options import Options
from graphc.program.plan import CHECKS, KernelStep
from tests.e2e.agreement import by_oracle
from tests.e2e.bad_data import BAD, CALLED, CASES, DIVISOR, LOWERED, SEVEN, X, check, refused


@pytest.mark.parametrize("backend", ["c", "interpret"])
@pytest.mark.parametrize("name", CASES)
def test_refused_as_in_eager(name: str, backend: str) -> None:
    check(CASES[name], graphc.compile(CASES[name][0], backend=backend))


@pytest.mark.parametrize("name", LOWERED)
def test_refused_by_the_oracle_of_kernels(name: str) -> None:
    fn, args = LOWERED[name]
    ours, eager = refused(lambda *inputs: by_oracle(graphc.trace(fn, *args), list(inputs)), args), refused(fn, args)
    assert type(ours) is type(eager) and str(ours) == str(eager).split("\n")[0]


def test_the_cases_are_on_the_side_they_are_said_to_be() -> None:
    for name, (fn, args) in (LOWERED | CALLED).items():
        plan = compile_graph(graphc.trace(fn, *args), Options("probe", backend="c")).stage("scheduled")
        assert bool(plan.checks) == (name in LOWERED), name


def test_a_refused_call_leaves_nothing_behind() -> None:
    lookup = graphc.compile(lambda i, x: F.embedding(i, x) * 2, backend="c")
    good = torch.tensor([3, 0, 1])
    with torch.no_grad():
        assert isinstance(refused(lookup, (BAD, X)), IndexError)
        assert torch.equal(lookup(good, X), X[good] * 2)
        assert isinstance(refused(lookup, (BAD, X)), IndexError)
    assert lookup.stats().compiles == 1


def test_the_first_failure_of_the_program_is_the_one_raised() -> None:
    def both(x, i, a, b):
        looked_up = x[i]
        return looked_up.sum() + (a // b).sum()

    def other(x, i, a, b):
        quotient = (a // b).sum()
        return quotient + x[i].sum()

    with torch.no_grad():
        for fn, kind in ((both, IndexError), (other, RuntimeError)):
            assert type(refused(fn, (X, BAD, SEVEN, DIVISOR))) is kind
            assert type(refused(graphc.compile(fn, backend="c"), (X, BAD, SEVEN, DIVISOR))) is kind


def test_kernels_after_the_failure_do_not_run() -> None:
    def step(counter, x, i):
        rows = torch.softmax(x[i] @ x.t(), -1)
        counter += rows.sum()

    counter = torch.zeros(())
    with torch.no_grad():
        assert isinstance(refused(graphc.compile(step, backend="c"), (counter, X, BAD)), IndexError)
    assert counter == 0


def test_python_numbers() -> None:
    def ratio(x, y):
        return x.sum() * (x[0].item() / y[0].item())

    def quotient(i):
        return i * (i[0].item() // i[1].item())

    floats, ints = torch.tensor([1.0, 2.0]), torch.tensor([7, 0])
    with torch.no_grad():
        for fn, args in ((ratio, (floats, floats * 0)), (quotient, (ints,))):
            assert type(refused(fn, args)) is ZeroDivisionError
            for backend in ("c", "interpret"):
                ours = refused(graphc.compile(fn, backend=backend), args)
                assert type(ours) is ZeroDivisionError and __file__ in str(ours)


def test_good_data_at_the_edges_is_not_refused() -> None:
    def edges(x, i, t, a, p):
        losses = F.cross_entropy(x, t, ignore_index=7), F.binary_cross_entropy(p, p)
        return *losses, x[i], a // -1, x.gather(1, t[:, None])

    args = (
        X, torch.tensor([-4, 3, 0]), torch.tensor([0, 2, 1, 2]), torch.tensor([3, -3]), torch.tensor([0.0, 1.0, 0.5]),
    )  # fmt: skip
    with torch.no_grad():
        for ours, eager in zip(graphc.compile(edges, backend="c")(*args), edges(*args), strict=True):
            torch.testing.assert_close(ours, eager)
        ignored = torch.tensor([0, -100, 1, 7])
        loss = graphc.compile(lambda x, t: F.cross_entropy(x, t.where(t != 7, t - 107)), backend="c")
        torch.testing.assert_close(loss(X, ignored), F.cross_entropy(X, torch.tensor([0, -100, 1, -100])))


def test_checks_do_not_cost_kernels() -> None:
    def head(i, table, w, t):
        return F.cross_entropy(F.embedding(i, table) @ w, t)

    i = torch.zeros(64, dtype=torch.int64)
    graph = graphc.trace(head, i, torch.randn(10, 8), torch.randn(8, 50), i)
    plan = compile_graph(graph, Options("head", backend="c")).stage("scheduled")
    checked = [s for s in plan.steps if isinstance(s, KernelStep) and plan.buffers[s.buffers[-1]].kind == CHECKS]
    assert len(checked) == 2
    assert sum(isinstance(s, KernelStep) for s in plan.steps) == 3


def test_indices_known_to_be_in_range_have_no_checks() -> None:
    def crop(x):
        return x[torch.arange(3)] + F.interpolate(x[None, None], size=(3, 3), mode="bilinear")[0, 0]

    plan = compile_graph(graphc.trace(crop, X), Options("crop", backend="c")).stage("scheduled")
    assert not plan.checks
