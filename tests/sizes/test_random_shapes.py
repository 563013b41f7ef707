"""Random functions, each at sizes that come in any order: what was built for others, or for fewer, is right for it."""

import random

import pytest
import torch
from torch.utils._pytree import tree_leaves

import graphc
from graphc.settings import override
from tests.sizes.random_shapes import made, tensor_for

SIZES = (*range(9, 25), 26, 30, 31, 32, 33, 37)


def check(seed):
    function, words = made(seed)
    fn = graphc.compile(function)
    with override(max_recompiles=100):
        for n in random.Random(seed).choices(SIZES, k=8):
            found, expected = fn(*tensor_for(n)), function(*tensor_for(n))
            for one, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
                what = f"seed {seed}, {n} items: {words}"
                if isinstance(other, torch.Tensor):
                    atol = 1e-4 * (1 + float(other.abs().max()))
                    torch.testing.assert_close(
                        one, other, rtol=1e-3, atol=atol, msg=lambda t, what=what: f"{what}: {t}"
                    )
                else:
                    assert one == other, what
    return fn.stats()


@pytest.mark.parametrize("seed", range(6))
def test_a_few(seed):
    assert check(seed).eager_calls == 0


@pytest.mark.suite
def test_many():
    reuses = sum(check(seed).reuses for seed in range(6, 400))
    assert reuses > 500
