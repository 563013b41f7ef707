"""Random functions, each at sizes that come in any order: what was built for others, or for fewer, is right for it."""

import random

import pytest
import torch
from torch.utils._pytree import tree_leaves

import graphc
from graphc.settings import override
from tests.sizes.random_shapes import generate

SIZES = (*range(9, 25), 26, 30, 31, 32, 33, 37)


def gradients_of(function):
    def gradients(x):
        x = x.detach().requires_grad_()
        tensors = [found for found in tree_leaves(function(x)) if isinstance(found, torch.Tensor)]
        total = sum((found * (found.detach().cos() + 1)).sum() for found in tensors)
        return torch.autograd.grad(total, x)

    return gradients


def check(seed):
    function, words = generate(seed)
    draw = random.Random(seed)
    if draw.random() < 0.4:
        function, words = gradients_of(function), f"gradients of {words}"
    fn = graphc.compile(function)
    with override(max_recompiles=100):
        for n in draw.choices(SIZES, k=8):
            x = torch.randn(3, n, 8, generator=torch.Generator().manual_seed(n))
            for found, expected in zip(tree_leaves(fn(x)), tree_leaves(function(x)), strict=True):
                what = f"seed {seed}, {n} items: {words}"
                if isinstance(expected, torch.Tensor):
                    close = {"rtol": 1e-3, "atol": 1e-4, "msg": lambda text, what=what: f"{what}: {text}"}
                    torch.testing.assert_close(found, expected, **close)
                else:
                    assert found == expected, what
    return fn.stats()


@pytest.mark.parametrize("seed", range(8))
def test_a_few(seed):
    assert check(seed).eager_calls == 0


@pytest.mark.suite
def test_many():
    reuses = sum(check(seed).reuses for seed in range(8, 400))
    assert reuses > 600
