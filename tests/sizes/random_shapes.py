"""Random functions of tensors whose sizes change from call to call: what cuts, joins, strides and sums along them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

FIXED = 40
"""Random functions that are named programs."""
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LEAST = 5
"""Items that stay along the dim that changes: what would leave fewer is left out."""


def generate(seed: int) -> tuple[Callable[..., Any], str]:
    """A function of a tensor (3, n, 8), and the steps it takes in words."""
    draw = random.Random(seed)
    steps = [draw.choice(_STEPS)(draw) for _ in range(draw.randint(2, 6))]
    ends = [draw.choice(_ENDS)(draw) for _ in range(draw.randint(1, 3))]

    def function(x: torch.Tensor) -> tuple[Any, ...]:
        kept = [x]
        for at, (_, step) in enumerate(steps):
            made = step(kept[-1], kept[at // 2])
            if made.shape[1] >= LEAST:
                kept.append(made)
            else:
                kept.append(kept[-1] + 1)
        return tuple(end(kept[-1], kept[len(kept) // 2]) for _, end in ends)

    return function, ", ".join(name for name, _ in (*steps, *ends))


def _strided(draw: random.Random) -> tuple[str, Step]:
    start, step = draw.randint(0, 2), draw.randint(1, 3)
    return f"[{start}::{step}]", lambda x, y: x[:, start::step]


def _cut(draw: random.Random) -> tuple[str, Step]:
    end = draw.randint(1, 3)
    return f"[:-{end}]", lambda x, y: x[:, :-end]


def _half(draw: random.Random) -> tuple[str, Step]:
    second = draw.random() < 0.5
    return "half", lambda x, y: x[:, x.shape[1] // 2 :] if second else x[:, : (x.shape[1] + 1) // 2]


def _chunks(draw: random.Random) -> tuple[str, Step]:
    count = draw.randint(2, 3)
    return f"chunk {count}", lambda x, y: torch.cat(x.chunk(count, 1)[::-1], 1)


def _joined(draw: random.Random) -> tuple[str, Step]:
    return "cat", lambda x, y: torch.cat([x, y], 1)


def _pool(draw: random.Random) -> tuple[str, Step]:
    kernel, stride, mode = draw.randint(2, 3), draw.randint(1, 3), draw.choice(("avg", "max"))
    ceil, padding = draw.random() < 0.5, draw.randint(0, 1)
    pool = F.avg_pool1d if mode == "avg" else F.max_pool1d
    return (
        f"{mode} pool {kernel} {stride} {padding} {ceil}",
        lambda x, y: pool(x.transpose(1, 2), kernel, stride, padding, ceil_mode=ceil).transpose(1, 2),
    )


def _convolution(draw: random.Random) -> tuple[str, Step]:
    kernel, stride, padding, dilation = draw.randint(1, 3), draw.randint(1, 2), draw.randint(0, 2), draw.randint(1, 2)
    weight = torch.randn(8, 8, kernel, generator=torch.Generator().manual_seed(kernel)) / 4
    return (
        f"conv {kernel} {stride} {padding} {dilation}",
        lambda x, y: F.conv1d(x.transpose(1, 2), weight, None, stride, padding, dilation).transpose(1, 2),
    )


def _padded(draw: random.Random) -> tuple[str, Step]:
    multiple = draw.randint(2, 5)

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.pad(x, (0, 0, 0, -x.shape[1] % multiple))

    return f"pad to {multiple}s", step


def _grouped(draw: random.Random) -> tuple[str, Step]:
    count = draw.randint(2, 4)

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        whole = x[:, : x.shape[1] // count * count]
        groups = whole.reshape(x.shape[0], -1, count, x.shape[2])
        return (groups - groups.mean(2, keepdim=True)).flatten(1, 2)

    return f"groups of {count}", step


def _softmax(draw: random.Random) -> tuple[str, Step]:
    dim = draw.randint(1, 2)
    return f"softmax {dim}", lambda x, y: x.softmax(dim)


def _attention(draw: random.Random) -> tuple[str, Step]:
    causal = draw.random() < 0.5
    return "attention", lambda x, y: F.scaled_dot_product_attention(x, y, y, is_causal=causal)


def _positions(draw: random.Random) -> tuple[str, Step]:
    return "positions", lambda x, y: x + torch.arange(x.shape[1])[:, None] / x.shape[1]


def _cumulative(draw: random.Random) -> tuple[str, Step]:
    return "cumsum", lambda x, y: x.cumsum(1) / x.shape[1]


def _flipped(draw: random.Random) -> tuple[str, Step]:
    return "flip", lambda x, y: x.flip(1)


def _rolled(draw: random.Random) -> tuple[str, Step]:
    shift = draw.randint(-3, 3)
    return f"roll {shift}", lambda x, y: x.roll(shift, 1)


def _differences(draw: random.Random) -> tuple[str, Step]:
    return "differences", lambda x, y: x[:, 1:] - x[:, :-1]


def _masked(draw: random.Random) -> tuple[str, Step]:
    return "tril", lambda x, y: torch.tril(torch.ones(x.shape[1], y.shape[1])) @ y / y.shape[1]


def _normalized(draw: random.Random) -> tuple[str, Step]:
    return "layer norm", lambda x, y: F.layer_norm(x.transpose(1, 2), (x.shape[1],)).transpose(1, 2)


def _upsampled(draw: random.Random) -> tuple[str, Step]:
    return "upsample", lambda x, y: F.interpolate(x.transpose(1, 2), scale_factor=2.0).transpose(1, 2)[:, :40]


def _written(draw: random.Random) -> tuple[str, Step]:
    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(x.shape[0], x.shape[1] + 2, x.shape[2])
        out[:, 1:-1] = x
        out[:, 0] += 1
        return out

    return "write", step


def _gathered(draw: random.Random) -> tuple[str, Step]:
    return "gather", lambda x, y: x[:, torch.arange(0, x.shape[1] - 1, 2)]


_STEPS: Sequence[Callable[[random.Random], tuple[str, Step]]] = (
    _strided, _cut, _half, _chunks, _joined, _pool, _convolution, _padded, _grouped, _softmax, _attention, _positions,
    _cumulative, _flipped, _rolled, _differences, _masked, _normalized, _upsampled, _written, _gathered,
)  # fmt: skip


def _sum(draw: random.Random) -> tuple[str, Any]:
    dims = draw.choice(((1,), (0, 1), (0, 1, 2), (2,)))
    return f"sum {dims}", lambda x, y: x.sum(dims)


def _mean(draw: random.Random) -> tuple[str, Any]:
    return "mean", lambda x, y: x.square().mean()


def _whole(draw: random.Random) -> tuple[str, Any]:
    return "all", lambda x, y: x * 2


def _loss(draw: random.Random) -> tuple[str, Any]:
    def end(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        labels = torch.arange(x.shape[0] * x.shape[1]) % x.shape[2]
        return F.cross_entropy(x.reshape(-1, x.shape[2]), labels)

    return "loss", end


def _number(draw: random.Random) -> tuple[str, Any]:
    return "numbers", lambda x, y: (x.shape[1], x.numel() / y.numel(), x.std(1))


def _product(draw: random.Random) -> tuple[str, Any]:
    return "product", lambda x, y: x.transpose(1, 2) @ x


_ENDS: Sequence[Callable[[random.Random], tuple[str, Any]]] = (_sum, _mean, _whole, _loss, _number, _product)


def gradients_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """The gradients of what a function gives, by different amounts of each element."""

    def gradients(x: torch.Tensor) -> Any:
        x = x.detach().requires_grad_()
        tensors = [found for found in tree_leaves(function(x)) if isinstance(found, torch.Tensor)]
        total = sum((found * (found.detach().cos() + 1)).sum() for found in tensors)
        return torch.autograd.grad(total, x)

    return gradients


def made(seed: int) -> tuple[Callable[..., Any], str]:
    """A function of a tensor (3, n, 8), or its gradients; and what it is in words."""
    function, words = generate(seed)
    if seed % 5 < 2:
        return gradients_of(function), f"gradients of {words}"
    return function, words


def tensor_for(n: int) -> tuple[torch.Tensor]:
    """The argument of such a function."""
    return (torch.randn(3, n, 8, generator=torch.Generator().manual_seed(n)),)


PROGRAMS = {f"random_{seed}": (lambda seed=seed: made(seed)[0], tensor_for) for seed in range(FIXED)}
