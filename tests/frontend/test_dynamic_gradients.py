"""`x[t]` with a tensor t, read and written where it is differentiated."""

from __future__ import annotations

import pytest
import torch

import graphc


def read(w, x, i):
    return (w[i] * x).sum()


def read_twice(w, x, i):
    return (w.view(2, 2, 3)[-i, i] * x).sum()


def write(w, x, i):
    t = w * 2
    t[i] = x * w[0]
    t[1, i] = t[1, i] * 5
    t[i, i] = 3.0
    return t.square().sum()


def write_value(w, x, i):
    t = torch.zeros(2, 2, 3)
    t[i, i - 1, :2] = (x * w[i])[:2]
    return t.square().sum()


def write_to_a_row(w, x, i):
    t = w * 2
    row = t[i]
    row.mul_(w[0] + 1)
    return row.sum() + (t * x).square().sum()


@pytest.mark.parametrize("fn", [read, read_twice, write, write_value, write_to_a_row])
def test_gradients(fn) -> None:
    compiled, place = graphc.compile(fn, backend="interpret"), torch.tensor(1)
    results = []
    for call in (compiled, fn):
        w = torch.arange(12.0).reshape(4, 3).requires_grad_()
        loss = call(w, torch.arange(3.0), place)
        loss.backward()
        results.append((loss, w.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert (compiled.stats().eager_calls, compiled.stats().compiles) == (0, 1)
