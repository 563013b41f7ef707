"""Numbers read from tensors, and arguments that may change, as values of the program."""

from __future__ import annotations

import math

import pytest
import torch

import graphc
from graphc.frontend.capture import capture
from graphc.ir.graph import Role
from tests.frontend.harness import call, check


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, s: (s * 2 + 1) / 3 - s**2,
        lambda x, s: 1 - s,
        lambda x, s: 2.0 / (abs(s) + 1),
        lambda x, s: -s // 0.5,
        lambda x, s: s % 0.7,
        lambda x, s: math.floor(s) + math.ceil(s) + math.trunc(s),
    ],
)
def test_arithmetic_on_items(fn) -> None:
    def program(x):
        return x * fn(x, x.sum().item()), fn(x, x.max().item())

    check(program, torch.tensor([0.25, 1.5, -0.5]))


def test_items_of_integers_and_bools() -> None:
    def program(x):
        n, flag = x.sum().item(), (x > 1).any().item()
        return x + n, n // 2, n % 3, n * 1.5, flag, n & 6, torch.full((2,), n), x.float() * (n + flag)

    check(program, torch.tensor([3, 4, 5]))


def test_items_as_operator_arguments() -> None:
    def program(x):
        s = x.mean().item()
        y = torch.add(x, x, alpha=s).clamp(min=s) + torch.tensor(s)
        y[0] = s
        return y.mul_(s), torch.full((2,), s), x.masked_fill(x > s, s)

    check(program, torch.randn(4))


def test_numbers_of_arguments_as_inputs() -> None:
    def step(p, g, lr, n):
        p.sub_(g * (lr / (1 - 0.9**n)))
        return p * lr, lr * 2, n + 1

    p, g = torch.randn(3), torch.randn(3)
    captured = capture(step, (p, g, 0.1, 3), dynamic_scalars={2, 3})
    assert [value.role for value in captured.graph.inputs] == [Role.ARG, Role.ARG, Role.SCALAR, Role.SCALAR]
    for lr, n in ((0.1, 3), (0.05, 7)):
        q = p.clone()
        expected = step(q, g, lr, n)
        actual = call(captured, p, g, lr, n)
        torch.testing.assert_close(actual[0], expected[0])
        torch.testing.assert_close(p, q)
        assert actual[1] == pytest.approx(expected[1]) and type(actual[1]) is float
        assert actual[2] == expected[2] and type(actual[2]) is int
    assert captured.match((p, g, 1, 3), {}) is None  # an int where a float was


def test_numbers_python_looks_at_become_constants() -> None:
    def fn(x, s, n):
        y = x * s
        return y + 1 if s > 0 else y.expand(n, 3)

    captured = capture(fn, (torch.randn(3), 0.5, 2), dynamic_scalars={1, 2})
    assert [value.role for value in captured.graph.inputs] == [Role.ARG, Role.SCALAR]
    assert captured.explain_miss((torch.randn(3), -1.0, 2), {}) == "argument s: -1.0, compiled for 0.5"
    assert captured.match((torch.randn(3), 0.5, 9), {}) is not None


def test_a_number_used_as_a_size_becomes_a_constant() -> None:
    captured = capture(lambda x, n: x.expand(n, 3) * n, (torch.randn(3), 2), dynamic_scalars={1})
    assert captured.explain_miss((torch.randn(3), 3), {}) == "argument n: 3, compiled for 2"


def test_constructors_of_lists_with_traced_elements() -> None:
    """`torch.LongTensor([[t[0] for t in best]])`, as a decoder's next input: no decision."""

    def program(x):
        values, places = x.topk(1)
        given = torch.LongTensor([[places[row][0] for row in range(3)]])
        kinds = isinstance(given, torch.LongTensor), torch.FloatTensor([1, 2]), torch.IntTensor(2, 0)
        return given + 1, torch.FloatTensor([values[0, 0].item(), 2.0, values[1]]), kinds

    compiled = graphc.compile(program, backend="interpret")
    constructor = torch.LongTensor
    for seed in range(3):
        x = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(compiled(x), program(x))
    assert (compiled.stats().compiles, compiled.stats().eager_calls) == (1, 0)
    assert torch.LongTensor is constructor
    refused = graphc.compile(lambda x: torch.LongTensor([x.sum(), 1]), backend="interpret")
    with pytest.raises(TypeError):
        refused(torch.tensor([0.5, 1.0]))
