"""Attention and convolution: type rule, reference, expansion, and the ATen call they stand for."""

from __future__ import annotations

import math

import pytest
import torch

from graphc import ops
from graphc.errors import InvalidGraphError
from graphc.ops import extern
from tests.ops.expansion import check, graph_of, ordinary, wide
from tests.support import assert_contract

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(
    "shapes", [((2, 4, 6, 8), (2, 4, 6, 8)), ((1, 4, 5, 8), (1, 2, 7, 8)), ((1, 1, 1, 4), (1, 1, 3, 4))]
)
def test_attention(dtype, causal, mask, shapes):
    if causal and mask:
        pytest.skip("eager takes one or the other")
    (q_shape, k_shape), scale = shapes, 0.3
    tensors = [
        ordinary(*q_shape, dtype=dtype),
        ordinary(*k_shape, dtype=dtype, seed=1),
        ordinary(*k_shape, dtype=dtype, seed=2),
    ]
    if mask:
        bias = ordinary(q_shape[2], k_shape[2], dtype=dtype, seed=3)
        bias[0] = -math.inf
        bias[1:2] = torch.finfo(dtype).min  # which hides nothing where it is everywhere
        tensors.append(bias)

    def eager(q, k, v, m=None):
        out, lse = flash(q, k, v, 0.0, causal, attn_mask=m, scale=scale)
        return out.contiguous(), lse.contiguous()

    check("attention", tensors, eager, causal=causal, scale=scale, mask=mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_call(dtype):
    tensors = [ordinary(2, 4, 6, 8, dtype=dtype, seed=s) for s in range(3)]
    op = graph_of("attention", tensors, {"causal": True, "scale": 0.5, "mask": False})[2]
    rule = ops.get("attention").call
    assert rule is not None
    name, args, kwargs = rule(op)
    answers = extern.overload(name)(*extern.resolve(args, tensors), **extern.resolve(kwargs, tensors))
    exact = flash(*(wide(t) for t in tensors), 0.0, True, scale=0.5)
    for answer, expected, precise in zip(answers, flash(*tensors, 0.0, True, scale=0.5), exact, strict=True):
        assert_contract(answer, expected, precise)
    for answer, value in zip(answers, op.results, strict=True):
        assert str(answer.dtype).endswith(value.dtype.torch_name) and tuple(answer.shape) == value.shape


def test_attention_flops():
    op = graph_of("attention", [torch.zeros(2, 4, 6, 8)] * 3, {"causal": False, "scale": 1.0, "mask": False})[2]
    flops = ops.get("attention").flops
    assert flops is not None and flops(op) == 2 * 2 * (2 * 4 * 6 * 6 * 8)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 3, 4), (2, 3, 4), (2, 3, 4)], "takes .B, H, S, D"),
        ([(1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3, 4)], "do not fit"),
        ([(1, 3, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)], "no multiple"),
    ],
)
def test_attention_refused(shapes, message):
    with pytest.raises(InvalidGraphError, match=message):
        graph_of("attention", [torch.zeros(s) for s in shapes], {"causal": False, "scale": 1.0, "mask": False})


CONVOLUTIONS = [
    ((2, 4, 9), (6, 4, 3), {}),
    ((2, 4, 9, 8), (6, 4, 3, 2), {"stride": (2, 1), "padding": (1, 0)}),
    ((2, 4, 9, 8), (6, 2, 3, 3), {"groups": 2, "dilation": (2, 2)}),
    ((2, 4, 5, 5, 5), (6, 4, 3, 3, 3), {"padding": (1, 1, 1)}),
    ((2, 4, 5, 5), (4, 3, 3, 3), {"transposed": True, "stride": (2, 2), "output_padding": (1, 1)}),
    ((2, 4, 5), (4, 3, 3), {"transposed": True, "groups": 2}),
]


def _settings(rank: int, given: dict) -> dict:
    defaults = {"stride": (1,) * rank, "padding": (0,) * rank, "dilation": (1,) * rank, "output_padding": (0,) * rank}
    return {**defaults, "transposed": False, "groups": 1, **given}


@pytest.mark.parametrize(("x_shape", "w_shape", "given"), CONVOLUTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_convolution(x_shape, w_shape, given, bias):
    settings = _settings(len(x_shape) - 2, given)
    channels = w_shape[1] * settings["groups"] if settings["transposed"] else w_shape[0]
    tensors = [ordinary(*x_shape), ordinary(*w_shape, seed=1)] + ([ordinary(channels, seed=2)] if bias else [])
    op = graph_of("convolution", tensors, {**settings, "bias": bias})[2]
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    expected = torch.convolution(*(*tensors, None)[:3], *(settings[n] for n in names))
    assert op.result.shape == tuple(expected.shape)
    definition = ops.get("convolution")
    assert definition.call is not None and definition.flops is not None
    assert torch.equal(definition.reference(*tensors, **op.attrs), expected)
    name, args, kwargs = definition.call(op)
    assert torch.equal(extern.overload(name)(*extern.resolve(args, tensors), **kwargs), expected)


def test_convolution_flops():
    x, weight = torch.zeros(2, 4, 8, 8), torch.zeros(6, 4, 3, 3)
    op = graph_of("convolution", [x, weight], {**_settings(2, {"padding": (1, 1)}), "bias": False})[2]
    flops = ops.get("convolution").flops
    assert flops is not None and flops(op) == 2 * (2 * 8 * 8) * (6 * 4 * 9)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "given", "message"),
    [
        ((2, 4, 9), (6, 4, 3, 3), {}, "ranks"),
        ((2, 4, 9), (6, 3, 3), {}, "channels"),
        ((2, 4, 2), (6, 4, 4), {}, "larger than the input"),
    ],
)
def test_convolution_refused(x_shape, w_shape, given, message):
    settings = _settings(len(x_shape) - 2, given)
    with pytest.raises(InvalidGraphError, match=message):
        graph_of("convolution", [torch.zeros(x_shape), torch.zeros(w_shape)], {**settings, "bias": False})
