"""Convolutions and their gradients as products of windows, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import graphc
from graphc.settings import override

CL = torch.channels_last
IMAGE = torch.randn(2, 8, 9, 7).to(memory_format=CL)
SEQUENCE = torch.randn(2, 11, 6).transpose(1, 2)
VOLUME = torch.randn(2, 4, 5, 4, 3).to(memory_format=torch.channels_last_3d)
FORMS: dict[str, tuple[Tensor, tuple[int, ...], dict[str, Any]]] = {
    "plain": (IMAGE, (16, 8, 3, 3), {}),
    "padded": (IMAGE, (16, 8, 3, 3), {"padding": 1}),
    "strided": (IMAGE, (5, 8, 3, 3), {"stride": 2, "padding": 1}),
    "uneven": (IMAGE, (3, 8, 2, 3), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}),
    "dilated": (IMAGE, (4, 8, 3, 3), {"dilation": 2, "padding": 2}),
    "pointwise": (IMAGE, (16, 8, 1, 1), {}),
    "pointwise_strided": (IMAGE, (16, 8, 1, 1), {"stride": 2}),
    "strided_beyond_the_window": (IMAGE, (4, 8, 2, 2), {"stride": 3}),
    "strided_and_dilated": (IMAGE, (4, 8, 3, 2), {"stride": 2, "dilation": (2, 3), "padding": 1}),
    "strided_sequence": (SEQUENCE, (5, 6, 4), {"stride": 2, "padding": 1}),
    "sequence": (SEQUENCE, (5, 6, 3), {"padding": 1}),
    "volume": (VOLUME, (3, 4, 2, 2, 3), {"padding": (1, 0, 1)}),
    "padded_beyond_the_window": (IMAGE, (4, 8, 1, 1), {"padding": 1}),
}
LEFT = {"padded_beyond_the_window"}
"""Of these the library makes the gradients."""


def _convolution(rank: int, settings: dict[str, Any]) -> Callable[..., Tensor]:
    call = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[rank]
    return lambda x, w, b: call(x, w, b, **settings)


def _parameters(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return torch.randn(shape), torch.randn(shape[0])


@pytest.mark.parametrize("name", FORMS)
def test_convolution_with_an_epilogue(name: str) -> None:
    x, shape, settings = FORMS[name]
    call = _convolution(x.dim(), settings)
    args = (x, *_parameters(shape))
    with override(templates="always", cache=False):
        compiled = graphc.compile(lambda x, w, b: call(x, w, b).relu() * 2, backend="triton")
        mine = compiled(*args)
        stats = compiled.explain(*args).stats
    other = call(*args).relu() * 2
    assert mine.stride() == other.stride()
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    assert not stats["extern"] and stats["kernel_calls"] == (1 if x.dim() == 4 else stats["kernel_calls"])


@pytest.mark.parametrize("name", FORMS)
def test_gradients(name: str) -> None:
    x, shape, settings = FORMS[name]
    call = _convolution(x.dim(), settings)

    def gradients(x: Tensor, w: Tensor, b: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        x, w, b = (t.detach().requires_grad_() for t in (x, w, b))
        return torch.autograd.grad(call(x, w, b), (x, w, b), cotangent)

    args = (x, *_parameters(shape))
    args = (*args, torch.randn_like(call(*args)))
    with override(templates="always", cache=False):
        compiled = graphc.compile(gradients, backend="triton")
        found = compiled(*args)
        externs = compiled.explain(*args).stats["extern"]
    for mine, other in zip(found, gradients(*args), strict=True):
        assert mine.stride() == other.stride()
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    if x.dim() == 4:
        assert bool(externs) == (name in LEFT)


def test_what_is_left_to_the_library() -> None:
    w = torch.randn(8, 4, 3, 3)
    with override(templates="always", cache=False):
        for fn, args in (
            (lambda x, w: functional.conv2d(x, w, groups=2), (IMAGE, w)),
            (lambda x, w: functional.conv_transpose2d(x, w), (IMAGE, w)),
            (lambda x, w: functional.conv2d(x, w), (IMAGE.contiguous(), torch.randn(4, 8, 3, 3))),
        ):
            compiled = graphc.compile(fn, backend="triton")
            torch.testing.assert_close(compiled(*args), fn(*args), rtol=1e-4, atol=1e-4)
            assert compiled.explain(*args).stats["extern"]
