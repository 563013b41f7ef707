"""Values that no input decides are numbers while capturing: one graph, no decision on data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import graphc
from graphc.errors import DataDependentError
from tests.frontend.harness import check

TABLE = np.array([3, 1, 2])


def sizes(x):
    chunks = torch.div(x.size(0), 2, rounding_mode="trunc")
    return x.reshape(chunks, x.size(0) // chunks)


def rates(x):
    for rate in torch.linspace(0, 0.5, 3):
        if rate.item() > 0.2:
            x = x * rate.item()
    return x


def branch(x):
    mask = torch.ones(x.shape, dtype=torch.bool).tril()
    if mask.all():
        return x
    return x.masked_fill(mask, 0) if bool(mask.any()) else -x


def listed(x):
    return [part.sum() for part in x.split(torch.arange(1, 4).tolist())]


def selected(x):
    mask = torch.arange(x.size(0)) % 2 == 0
    return x[mask] + x[torch.as_tensor(TABLE)[torch.tensor([2, 1])].max() :].sum()


def positions(x):
    where = (torch.arange(x.size(0)) > 2).nonzero()
    return x[where[:, 0]] * int(where.max())


@pytest.mark.parametrize(
    ("fn", "shape"),
    [(sizes, (6,)), (rates, (3,)), (branch, (3, 3)), (listed, (6,)), (selected, (6,)), (positions, (6,))],
)
def test_one_graph(fn, shape) -> None:
    check(fn, torch.randn(shape))
    compiled = graphc.compile(fn, backend="interpret")
    compiled(torch.randn(shape))
    assert (compiled.stats().compiles, compiled.stats().paths) == (1, 0)


@pytest.mark.parametrize("fn", [lambda x: x * int(x.sum()), lambda x: x * int(torch.rand(()) * 10)])
def test_inputs_and_random_numbers_are_not_known(fn) -> None:
    with pytest.raises(DataDependentError):
        graphc.trace(fn, torch.ones(2))
