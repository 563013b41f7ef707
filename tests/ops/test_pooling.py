"""Pooling, upsampling and reading paddings: type rule, reference and expansion against eager."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from graphc.errors import InvalidGraphError
from graphc.frontend.aten.resampling import linear_ratio
from graphc.ops import Kind, pooling_backward
from graphc.ops.pooling import UNROLLED_WINDOW
from graphc.ops.resampling import Line
from tests.ops.expansion import check, graph_of, kinds, op_names, ordinary

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
MAX_CASES = [
    # shape, kernel, stride, padding, dilation, ceil
    ((2, 3, 8, 8), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((2, 3, 9, 7), (3, 3), (2, 2), (1, 1), (1, 1), False),
    ((3, 9, 7), (3, 2), (2, 3), (1, 1), (1, 1), True),
    ((1, 2, 10, 9), (3, 2), (1, 2), (1, 0), (2, 3), True),
    ((1, 2, 4, 5, 6), (2, 2, 2), (2, 2, 2), (1, 0, 1), (1, 1, 1), False),
    ((2, 1, 1, 1), (1, 1), (1, 1), (0, 0), (1, 1), False),
]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", MAX_CASES)
def test_max_pool(case, dtype):
    shape, kernel, stride, padding, dilation, ceil = case
    eager = F.max_pool2d if len(kernel) == 2 else F.max_pool3d
    x = ordinary(*shape, dtype=dtype)
    extreme = x.clone()
    extreme.view(-1)[::7] = float("nan")
    extreme.view(-1)[1::5] = float("-inf")
    for t in (x, extreme, torch.full_like(x, float("-inf")), torch.zeros_like(x)):
        graph = check(
            "max_pool", [t], lambda t: eager(t, kernel, stride, padding, dilation, ceil, return_indices=True),
            kernel=kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil,
        )  # fmt: skip
    assert Kind.REDUCTION not in kinds(graph)


AVG_CASES = [
    # shape, kernel, stride, padding, ceil
    ((2, 3, 8, 8), (2, 2), (2, 2), (0, 0), False),
    ((2, 3, 9, 7), (3, 3), (2, 2), (1, 1), False),
    ((3, 9, 7), (3, 2), (2, 3), (1, 1), True),
    ((1, 2, 4, 5, 6), (2, 2, 2), (2, 2, 2), (1, 0, 1), True),
    ((1, 2, 10, 15), (5, 5), (5, 5), (0, 0), False),
]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("divisor", [None, 3])
@pytest.mark.parametrize("case", AVG_CASES)
def test_avg_pool(case, include, divisor, dtype):
    shape, kernel, stride, padding, ceil = case
    eager = F.avg_pool2d if len(kernel) == 2 else F.avg_pool3d
    if len(kernel) == 3 and dtype in (torch.bfloat16, torch.float16):
        pytest.skip("eager has no such kernel")
    graph = check(
        "avg_pool", [ordinary(*shape, dtype=dtype)],
        lambda t: eager(t, kernel, stride, padding, ceil, include, divisor),
        kernel=kernel, stride=stride, padding=padding, ceil_mode=ceil, count_include_pad=include, divisor=divisor,
    )  # fmt: skip
    assert (Kind.REDUCTION in kinds(graph)) == (kernel[0] * kernel[1] > UNROLLED_WINDOW)


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", MAX_CASES)
def test_max_pool_backward(case, dtype, gathers, monkeypatch):
    """Added at positions, as on a CPU, and gathered by comparing positions, as elsewhere."""
    shape, kernel, stride, padding, dilation, ceil = case
    if gathers:
        monkeypatch.setattr(pooling_backward, "adds_at_positions", lambda device, lines: False)
    x = ordinary(*shape, dtype=dtype)
    eager = F.max_pool2d if len(kernel) == 2 else F.max_pool3d
    settings = (kernel, stride, padding, dilation, ceil)
    values, indices = eager(x, *settings, return_indices=True)
    backward = getattr(torch.ops.aten, f"max_pool{len(kernel)}d_with_indices_backward")
    check(
        "max_pool_backward", [ordinary(*values.shape, dtype=dtype), indices],
        lambda grad, places: backward(grad, x.to(grad.dtype), *settings, places),
        size=shape[-len(kernel) :], kernel=kernel, stride=stride, padding=padding,
        scattered=any(step != 1 for step in dilation),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("divisor", [None, 3])
@pytest.mark.parametrize("case", [*AVG_CASES, ((2, 5, 5), (5, 5), (1, 1), (0, 0), False)])
def test_avg_pool_backward(case, include, divisor, dtype):
    shape, kernel, stride, padding, ceil = case
    x = ordinary(*shape, dtype=dtype)
    settings = (kernel, stride, padding, ceil, include, divisor)
    if dtype in (torch.float16, torch.bfloat16) and len(kernel) == 3:
        pytest.skip("eager has no such kernel")
    pooled = (F.avg_pool2d if len(kernel) == 2 else F.avg_pool3d)(x.float(), *settings)
    backward = getattr(torch.ops.aten, f"avg_pool{len(kernel)}d_backward")
    check(
        "avg_pool_backward", [ordinary(*pooled.shape, dtype=dtype)],
        lambda grad: backward(grad, x.to(grad.dtype), *settings),
        size=shape[-len(kernel) :], kernel=kernel, stride=stride, padding=padding, ceil_mode=ceil,
        count_include_pad=include, divisor=divisor,
    )  # fmt: skip


def _ratio(size: int, count: int) -> float:
    return float(np.float32(size) / np.float32(count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("exact", [False, True])
def test_upsample_nearest(exact, dtype):
    mode = "nearest-exact" if exact else "nearest"
    for (h, w), size in itertools.product([(5, 7), (1, 3), (4, 4)], [(10, 14), (3, 9), (8, 8), (5, 7), (13, 1)]):
        x = ordinary(2, 3, h, w, dtype=dtype)
        scale = (_ratio(h, size[0]), _ratio(w, size[1]))
        check("upsample_nearest", [x], lambda t: F.interpolate(t, size, mode=mode), size=size, scale=scale, exact=exact)
    x = ordinary(1, 2, 2, 3, 4, dtype=dtype)
    graph = check("upsample_nearest", [x], lambda t: F.interpolate(t, (4, 6, 8), mode=mode),
                  size=(4, 6, 8), scale=(0.5, 0.5, 0.5), exact=exact)  # fmt: skip
    assert kinds(graph) == {Kind.VIEW}, "whole factors are a view"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("align", [False, True])
def test_upsample_linear(align, dtype):
    for (h, w), size in itertools.product([(5, 7), (1, 3), (4, 4)], [(10, 14), (3, 9), (8, 8), (5, 7), (1, 13)]):
        x = ordinary(2, 3, h, w, dtype=dtype)
        ratio = tuple(linear_ratio(s, c, None, align) for s, c in zip((h, w), size, strict=True))
        check("upsample_linear", [x], lambda t: F.interpolate(t, size, mode="bilinear", align_corners=align),
              size=size, ratio=ratio, align_corners=align)  # fmt: skip
    check("upsample_linear", [ordinary(2, 3, 5, dtype=dtype)],
          lambda t: F.interpolate(t, 10, mode="linear"), size=(10,), ratio=((1, 2),), align_corners=False)  # fmt: skip
    check("upsample_linear", [ordinary(1, 2, 3, 4, 5, dtype=dtype)],
          lambda t: F.interpolate(t, (6, 8, 10), mode="trilinear"),
          size=(6, 8, 10), ratio=((1, 2),) * 3, align_corners=False)  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("align", [False, True])
def test_upsample_linear_backward(align, dtype):
    backward = torch.ops.aten.upsample_bilinear2d_backward
    for shape, size in itertools.product([(5, 7), (1, 3), (4, 4)], [(10, 14), (3, 9), (8, 8), (5, 7), (1, 13)]):
        ratio = tuple(linear_ratio(s, c, None, align) for s, c in zip(shape, size, strict=True))
        check("upsample_linear_backward", [ordinary(2, 3, *size, dtype=dtype)],
              lambda grad: backward(grad, size, (2, 3, *shape), align),
              size=shape, ratio=ratio, align_corners=align)  # fmt: skip


@pytest.mark.parametrize("factor", [1.5, 0.6, 3.0, 2.3])
def test_upsample_by_a_factor(factor):
    """A ratio that is no ratio of the sizes: eager goes by the factor."""
    x = ordinary(2, 3, 7)
    size = int(7 * factor)
    check("upsample_linear", [x], lambda t: F.interpolate(t, scale_factor=factor, mode="linear"),
          size=(size,), ratio=(linear_ratio(7, size, factor, False),), align_corners=False)  # fmt: skip


@pytest.mark.parametrize("factor", [None, 2.0, 1.5, 0.6, 3.0, 2.3, 0.5])
@pytest.mark.parametrize("align", [False, True])
def test_readers_of_a_pixel(align, factor):
    """As many result pixels are looked through as lie between the first and the last one that a pixel is part of."""
    for size, count in itertools.product(range(1, 13), range(1, 30)):
        count = count if factor is None else int(size * factor)
        if count == 0 or (align and (count == 1 or factor)):
            continue
        line = Line(size, count, linear_ratio(size, count, factor, align), align)
        first, step, under = line.place
        lows = [min(max(first + i * step, 0) // under, size - 1) for i in range(count)]
        begins = [0 if j <= 1 else max(-((first + under - j * under) // step), 0) for j in range(size)]
        reach = max(i - begins[j] + 1 for i, low in enumerate(lows) for j in (low, min(low + 1, size - 1)))
        assert reach <= line.most_readers <= reach + (count <= 3)


@pytest.mark.parametrize(("name", "mode"), [("pad_reflect", "reflect"), ("pad_replicate", "replicate")])
@pytest.mark.parametrize("pads", [(1, 2), (3, 0, 2, 4), (-1, 2, 1, -2), (0, 0, 0, 1)])
def test_pads(name, mode, pads):
    x = ordinary(2, 3, 5, 6)
    if len(pads) == 2:
        x = x[0]
    lead = x.dim() - len(pads) // 2
    low, high = (0,) * lead + pads[-2::-2], (0,) * lead + pads[::-2]
    check(name, [x], lambda t: F.pad(t, pads, mode=mode), low=low, high=high)


@pytest.mark.parametrize(
    ("name", "shape", "attrs", "message"),
    [
        (
            "max_pool",
            (2, 2),
            {"kernel": (3, 3), "stride": (1, 1), "padding": (0, 0), "ceil_mode": False},
            "pooling over 2",
        ),
        ("max_pool", (1, 2, 2), {"kernel": (3, 3), "stride": (1, 1), "padding": (0, 0), "ceil_mode": False}, "empty"),
        ("pad_reflect", (2, 3), {"low": (0, 3), "high": (0, 0)}, "wider than the input"),
        ("pad_replicate", (2, 3), {"low": (0, -2), "high": (0, -1)}, "empty"),
        ("pad_replicate", (2, 3), {"low": (1,), "high": (1,)}, "padding by"),
        ("upsample_linear_backward", (1, 2, 3), {"size": (4, 4), "ratio": ((1, 2),), "align_corners": False}, "upsamp"),
        (
            "avg_pool_backward",
            (1, 2, 3, 3),
            {"size": (4, 4), "kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "ceil_mode": False},
            "other windows",
        ),
        ("upsample_linear", (1, 2, 3), {"size": (4,), "ratio": ((3, 0),), "align_corners": False}, "upsampling by"),
        ("upsample_nearest", (2, 3), {"size": (4,), "scale": (0.5,), "exact": False}, "upsampling to"),
    ],
)
def test_refused(name, shape, attrs, message):
    with pytest.raises(InvalidGraphError, match=message):
        graph_of(name, [torch.zeros(shape)], attrs)


def test_sharing_of_row_slices():
    """A 3x3 window takes 3 slices of rows and 9 of columns, not 18 slices."""
    graph = check("max_pool", [ordinary(1, 1, 6, 6)], lambda t: F.max_pool2d(t, 3, 1, return_indices=True),
                  kernel=(3, 3), stride=(1, 1), padding=(0, 0), dilation=(1, 1), ceil_mode=False)  # fmt: skip
    assert op_names(graph).count("slice") == 12
