"""Strides of results are eager's, whatever the operands' own."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from tests.frontend.harness import check

LAYOUTS = {
    "contiguous": torch.randn(2, 3, 4, 5),
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "permuted": torch.randn(5, 2, 4, 3).permute(1, 3, 2, 0),
    "gaps": torch.randn(2, 6, 4, 5)[:, ::2],
    "expanded": torch.randn(2, 1, 4, 5).expand(2, 3, 4, 5),
    "broadcast": torch.randn(3, 1, 5).transpose(0, 2).reshape(3, 1, 5),
    "size_one": torch.randn(2, 1, 4, 1).transpose(0, 2).transpose(0, 2),
    "scalar": torch.randn(()),
    "empty": torch.randn(2, 3, 0, 5).transpose(0, 1).transpose(0, 1),
}


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations_with_replacement(LAYOUTS, 2)))
def test_pointwise_of_two(first: str, second: str) -> None:
    x, y = LAYOUTS[first], LAYOUTS[second]
    try:
        x + y
    except RuntimeError:
        pytest.skip("these shapes do not broadcast")
    check(lambda x, y: (x + y, torch.maximum(y, x), torch.where(x > y, x, y), x > y), x, y, calls=1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_of_one(name: str) -> None:
    def fn(x):
        return (
            x.exp(),
            x * 2,
            1 - x,
            x.clone(),
            x.contiguous(),
            x.double(),
            torch.zeros_like(x),
            x.sum(0) if x.dim() else x.sum(),
            x.softmax(-1),
            torch.nn.functional.gelu(x),
            x.clamp(0, 1),
            x.cumsum(-1),
            x.flip(0) if x.dim() else x,
            x.to(memory_format=torch.channels_last) if x.dim() == 4 else x,
        )

    check(fn, LAYOUTS[name], calls=1)


def test_numbers_that_are_operands() -> None:
    """A number that ATen makes a tensor of has a part in eager's order of dims; one that is an attribute has none."""

    def fn(x, n):
        numbers = torch.lerp(x, x + 1, 0.5), torch.add(x, x, alpha=2), torch.xlogy(x, 2), torch.xlogy(2, x)
        return *numbers, torch.special.xlog1py(x, 0.5), torch.remainder(3, x), x * 2, torch.isinf(n), torch.isfinite(n)

    x = torch.arange(8.0).as_strided((5, 1, 1, 1), (1, 5, 5, 5))
    check(fn, x, torch.arange(16).as_strided((1, 7, 1, 2), (1, 2, 2, 1)), calls=1)


@pytest.mark.parametrize("shape", [(1, 2, 1), (2, 2, 1), (2, 1, 3), (2, 2, 3)])
def test_convolutions_of_one_dim(shape: tuple[int, ...]) -> None:
    """Eager makes two dims of one, and reads a memory format off the strides of dims of size 1."""

    def fn(x, weight):
        return F.conv1d(x, weight), F.conv_transpose1d(x, weight.transpose(0, 1)), F.conv1d(x[0], weight)

    weight = torch.randn(shape[1], shape[1], 1)
    for strides in itertools.product((1, 2, 3, 6), repeat=3):
        x = torch.randn(30).as_strided(shape, strides)
        try:
            fn(x, weight)
        except RuntimeError:
            continue
        check(fn, x, weight, calls=1)
    check(fn, torch.randn(shape), torch.randn(shape[1], 1, shape[1]).transpose(1, 2), calls=1)


def test_pooling_of_one_dim() -> None:
    """Eager has a function of its own where no gradient is recorded."""
    x, weight = torch.randn(7, 4, 5).transpose(1, 2), torch.randn(7, 4, 5, requires_grad=True).transpose(1, 2)
    check(lambda x: (F.max_pool1d(x, 2), torch.max_pool1d(input=x, kernel_size=3, padding=1)), x, calls=1)
    check(lambda x: F.max_pool1d(x * weight, 2).detach(), x, calls=1)
