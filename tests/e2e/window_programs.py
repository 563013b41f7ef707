"""Small programs whose results, or gradients, come from a few elements around each: pooling, resampling, paddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Program = Callable[[Tensor], Any]


def _with_gradient(fn: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Results and the gradient by another gradient per result element."""
    leaf = x.detach().requires_grad_()
    result = fn(leaf * 1)
    weights = (torch.arange(result.numel()) % 17 * 0.37 - 3).to(x.dtype).reshape(result.shape)
    (result * weights).sum().backward()
    return result.detach(), leaf.grad


FUNCTIONS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "max overlapping": ((2, 3, 9, 8), lambda x: F.max_pool2d(x, 3, 2, 1)),
    "max dense": ((2, 7, 6), lambda x: F.max_pool2d(x, 3, 1, 1)),
    "max gaps": ((2, 3, 9, 8), lambda x: F.max_pool2d(x, 2, 3)),
    "max ceil": ((1, 2, 8, 7), lambda x: F.max_pool2d(x, (3, 2), (2, 3), (1, 0), ceil_mode=True)),
    "max dilated": ((1, 2, 9, 9), lambda x: F.max_pool2d(x, 2, 1, dilation=3)),
    "max large": ((1, 2, 9, 9), lambda x: F.max_pool2d(x, 7, 1, 3)),
    "max volume": ((1, 2, 5, 4, 6), lambda x: F.max_pool3d(x, 2, 1)),
    "max line": ((2, 3, 10), lambda x: F.max_pool1d(x, 3, 2, 1)),
    "max uneven": ((1, 2, 7, 8), lambda x: F.adaptive_max_pool2d(x, (3, 3))),
    "max channels last": (
        (2, 3, 9, 8), lambda x: F.max_pool2d(x.contiguous(memory_format=torch.channels_last), 3, 2, 1),
    ),
    "mean overlapping": ((2, 3, 8, 9), lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
    "mean steps": ((2, 3, 8, 9), lambda x: F.avg_pool2d(x, 3, 2, 1)),
    "mean ceil": ((3, 9, 7), lambda x: F.avg_pool2d(x, (3, 2), (2, 3), (1, 1), ceil_mode=True)),
    "mean divisor": ((1, 2, 6, 6), lambda x: F.avg_pool2d(x, (2, 3), divisor_override=5)),
    "mean of all": ((2, 3, 4, 4), lambda x: F.avg_pool2d(x, 4, 1)),
    "mean volume": ((1, 2, 4, 5, 6), lambda x: F.avg_pool3d(x, 2, 2, (1, 0, 1))),
    "mean adaptive": ((2, 3, 8, 6), lambda x: F.adaptive_avg_pool2d(x, (4, 2))),
    "bilinear twice": ((2, 3, 5, 4), lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    "bilinear uneven": ((1, 2, 5, 7), lambda x: F.interpolate(x, (8, 4), mode="bilinear")),
    "bilinear corners": ((1, 2, 5, 7), lambda x: F.interpolate(x, (9, 15), mode="bilinear", align_corners=True)),
    "bilinear factor": ((1, 2, 5, 7), lambda x: F.interpolate(x, scale_factor=(1.7, 0.6), mode="bilinear")),
    "bilinear single": ((1, 2, 1, 3), lambda x: F.interpolate(x, (4, 1), mode="bilinear", align_corners=True)),
    "linear": ((2, 3, 6), lambda x: F.interpolate(x, 15, mode="linear")),
    "trilinear": ((1, 2, 2, 3, 4), lambda x: F.interpolate(x, (4, 4, 2), mode="trilinear")),
    "nearest uneven": ((1, 2, 4, 6), lambda x: F.interpolate(x, (8, 12), mode="nearest")),
    "reflect": ((2, 3, 5, 6), lambda x: F.pad(x, (2, 1, 3, 0), mode="reflect")),
    "reflect line": ((3, 6), lambda x: F.pad(x, (5, 2), mode="reflect")),
    "replicate": ((2, 3, 4, 5), lambda x: F.pad(x, (2, 1, 0, 6), mode="replicate")),
    "replicate cut": ((2, 3, 6, 5), lambda x: F.pad(x, (-1, 2, 1, -2), mode="replicate")),
    "replicate volume": ((1, 2, 3, 4, 3), lambda x: F.pad(x, (1, 2, 0, 1, 2, 0), mode="replicate")),
    "slices": ((4, 9), lambda x: x[:, 1::3] * 2 + x[:, :3]),
}  # fmt: skip


def programs() -> dict[str, tuple[Program, Tensor]]:
    """Functions that give a result and a gradient, with their argument, by name."""
    draw = torch.Generator().manual_seed(0)
    return {
        name: (lambda x, fn=fn: _with_gradient(fn, x), torch.randn(*shape, generator=draw))
        for name, (shape, fn) in FUNCTIONS.items()
    }


IN_CALLS = ("max large", "max uneven")
"""Those whose forward pass is left to the library: windows too large to be written out, or of different sizes."""
SLOWER = ("mean steps", "mean ceil")
"""Those whose backward pass is left to the library on a CPU, where its loops are quicker."""
