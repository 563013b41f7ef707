"""Sums and stores at places that are data: generated kernels against eager."""

from __future__ import annotations

import re

import pytest
import torch

import graphc
from graphc.frontend import tree
from tests.e2e.scatter_programs import IN_KERNELS, programs
from tests.support import assert_contract

OUTSIDE = {
    "rows": (lambda x, i, s: x.index_add(0, i, s), torch.tensor([0, 1, 7])),
    "vector": (lambda x, i, s: x[:, 0].index_add(0, i, s[:, 0]), torch.tensor([0, 1, -1])),
    "put": (lambda x, i, s: x.index_put((i,), s, accumulate=True), torch.tensor([0, 1, -8])),
    "set rows": (lambda x, i, s: x.index_put((i,), s), torch.tensor([0, 1, 7])),
    "set elements": (lambda x, i, s: x.scatter(0, i[:, None].expand(3, 5), s), torch.tensor([0, 7, 1])),
    "copied": (lambda x, i, s: x.index_copy(0, i, s), torch.tensor([0, 1, 7])),
    "elements": (lambda x, i, s: x.scatter_add(0, i[:, None].expand(3, 5), s), torch.tensor([0, 1, -1])),
}


def _results(fn, args) -> list[torch.Tensor]:
    copies = [torch.empty_strided(a.shape, a.stride(), dtype=a.dtype).copy_(a) for a in args]
    return [*tree.flatten(fn(*copies))[0], *copies]


@pytest.mark.parametrize("name", programs())
@pytest.mark.parametrize("backend", ["c", "interpret"])
def test_as_in_eager(name, backend) -> None:
    fn, args = programs()[name]
    compiled = graphc.compile(fn, backend=backend)
    exact = _results(fn, [a.double() if a.is_floating_point() else a for a in args])
    for mine, other, precise in zip(_results(compiled, args), _results(fn, args), exact, strict=True):
        assert mine.stride() == other.stride()
        assert_contract(mine, other, precise if other.is_floating_point() else None)
    if backend == "c" and name in IN_KERNELS:
        assert not compiled.explain(*args).stats["extern"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_indices_outside_are_refused_before_anything_is_changed(name) -> None:
    fn, indices = OUTSIDE[name]
    source = torch.ones(3, 5)
    with pytest.raises(Exception) as eager:
        fn(torch.zeros(7, 5), indices, source)
    with pytest.raises(type(eager.value), match=re.escape(str(eager.value).partition("\n")[0][:30])):
        graphc.compile(fn, backend="c")(torch.zeros(7, 5), indices, source)
    x = torch.zeros(7, 5)
    with pytest.raises(RuntimeError, match="index 9 is out of bounds"):
        graphc.compile(lambda x, i, s: x.index_add_(0, i, s), backend="c")(x, torch.tensor([0, 1, 9]), source)
    assert not x.any()
    with pytest.raises(IndexError, match="index 9 is out of bounds"):
        graphc.compile(lambda x, i, s: x.index_put_((i,), s), backend="c")(x, torch.tensor([0, 1, 9]), source)
    assert not x.any()


def test_a_sum_is_the_same_for_any_number_of_threads() -> None:
    indices, source = torch.randint(0, 50, (400,)), torch.randn(400, 1000)
    fn = graphc.compile(lambda i, s: torch.zeros(50, 1000).index_add(0, i, s), backend="c")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = fn(indices, source)
        torch.set_num_threads(2)
        assert torch.equal(fn(indices, source), alone)
    finally:
        torch.set_num_threads(threads)
