"""Losses of rows that a mask selects, for tests of all backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from tests.support import assert_contract

Tensor = torch.Tensor
BAD = -100


class Given(NamedTuple):
    """Arguments of a loss.

    Args:
        x, y: `(6, 4)`
        w: `(4,)`
        z: `(6,) int64`, classes.
        m: `(6,) bool`
    """

    x: Tensor
    y: Tensor
    w: Tensor
    z: Tensor
    m: Tensor

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Given:
        floats = (t.to(dtype).detach().requires_grad_() for t in self[:3])
        return Given(*(t.to(device) for t in (*floats, *self[3:])))


def given(seed: int, selected: int, others: bool = True) -> Given:
    """Rows, of which so many are selected. Those which are not are NaN and infinite, and of no class, unless told."""
    g = torch.Generator().manual_seed(seed)
    x, y, w = (torch.randn(shape, generator=g) for shape in ((6, 4), (6, 4), (4,)))
    z, m = torch.randint(0, 4, (6,), generator=g), torch.randperm(6, generator=g) < selected
    if others:
        x[~m], y[~m], z[~m] = torch.nan, torch.inf, BAD
        x[~m, 1:3] = 0
    return Given(x, y, w, z, m)


def times_two(x: Tensor, m: Tensor) -> Tensor:
    x = x * 1
    x[m] *= 2
    return x


def put(x: Tensor, m: Tensor) -> Tensor:
    out = torch.zeros(x.shape, dtype=x.dtype)
    out[m] = x[m].exp()
    return out


def in_place(x: Tensor, y: Tensor, m: Tensor) -> Tensor:
    rows = x[m]
    rows *= 2
    rows += y[m]
    rows.clamp_(-1, 1)
    return rows.mean()


def written_behind(x: Tensor, m: Tensor) -> Tensor:
    x = x * 1
    rows = x[m]
    x += 1
    return rows.mean() + x[m].sum()


def mask_written(x: Tensor, y: Tensor, m: Tensor) -> Tensor:
    x, mask = x.detach(), m.clone()
    rows = x[mask]
    mask[0] = ~mask[0]
    return rows.mean() + (y.nan_to_num(0, 0, 0)[mask] * 2).sum()


def without_gradient(x: Tensor, w: Tensor, m: Tensor) -> Tensor:
    with torch.no_grad():
        rows = x[m]
    return (rows * w).mean()


def twice(x: Tensor, m: Tensor) -> Tensor:
    if not x.requires_grad:
        return x.sum()
    (gradient,) = torch.autograd.grad((x[m].abs() + 1).log().mean(), x, create_graph=True)
    return gradient.square().sum()


LOSSES: dict[str, Callable[[Given], Any]] = {
    "mean": lambda g: g.x[g.m].mean(),
    "sum": lambda g: g.x[g.m].sum() + g.x[g.m].sum((0, 1)),
    "mean of rows": lambda g: (g.x[g.m].mean(0), g.x[g.m].mean(0, keepdim=True), g.x[g.m].sum(axis=1).mean()),
    "masked_select": lambda g: g.x.masked_select(g.m[:, None]).mean() + torch.masked_select(g.x, g.x > 0).mean(),
    "column": lambda g: g.x[g.m, 2].exp().mean() + g.x[g.m, 1:3].sum() + g.x[g.m, ..., None].new_zeros(3).sum(),
    "columns": lambda g: (g.x[g.m][:, 0] * g.x[g.m][..., 1:3].sum(1)).mean(),
    "logarithm": lambda g: -torch.log(g.x[g.m].abs()).mean(),
    "weights": lambda g: ((1 - g.x[g.m]) * g.w).sum() + (g.w / g.x[g.m].exp()).mean(),
    "distance": lambda g: (g.x[g.m] - g.y[g.m]).pow(2).sum(1).sqrt().mean() + (g.x[g.m] - g.y[g.m]).norm(),
    "equal masks": lambda g: ((g.x[g.z >= 0] - g.y[g.z >= 0]) ** 2).mean(),
    "mse": lambda g: F.mse_loss(g.x[g.m], g.y[g.m]) + nn.MSELoss(reduction="sum")(g.x[g.m], g.y[g.m]),
    "mse of each": lambda g: F.mse_loss(g.x[g.m], g.y[g.m], reduction="none").sum(1).mean(),
    "l1": lambda g: nn.L1Loss()(g.x[g.m], g.y[g.m]) + F.smooth_l1_loss(g.x[g.m], g.y[g.m], beta=0.5),
    "huber": lambda g: F.huber_loss(g.x[g.m], g.y[g.m], delta=0.5),
    "bce": lambda g: F.binary_cross_entropy(g.x[g.m].sigmoid(), torch.sigmoid(g.y[g.m])),
    "bce as given": lambda g: F.binary_cross_entropy(g.x.sigmoid()[g.m], (g.y > 0).to(g.x.dtype)[g.m]),
    "bce of logits": lambda g: F.binary_cross_entropy_with_logits(
        g.x[g.m], torch.zeros_like(g.x[g.m]), pos_weight=g.w.detach().abs()
    ),
    "kl": lambda g: F.kl_div(F.log_softmax(g.x[g.m], 1), F.softmax(g.y[g.m], -1), reduction="batchmean"),
    "cross-entropy": lambda g: F.cross_entropy(g.x[g.m], g.z[g.m]) + F.cross_entropy(
        g.x[g.m], g.z[g.m], reduction="sum", ignore_index=2
    ),
    "cross-entropy, weighted": lambda g: F.cross_entropy(
        g.x[g.m], g.z[g.m], weight=g.w.detach().abs(), label_smoothing=0.1
    ),
    "cross-entropy of each": lambda g: (F.cross_entropy(g.x[g.m], g.z[g.m], reduction="none") * 2).mean(),
    "cross-entropy of probabilities": lambda g: F.cross_entropy(g.x[g.m], g.y[g.m].softmax(1)),
    "nll": lambda g: F.nll_loss(F.log_softmax(g.x, 1)[g.m], g.z[g.m]),
    "gather": lambda g: -F.log_softmax(g.x[g.m], -1).gather(1, g.z[g.m].unsqueeze(1)).squeeze(1).mean(),
    "one-hot": lambda g: (F.one_hot(g.z[g.m], 4) * g.x[g.m]).sum(),
    "accuracy": lambda g: (
        (g.x[g.m].argmax(1) == g.z[g.m]).float().mean(),
        (g.x[g.m].max(1)[1] == g.z[g.m]).sum().item() / g.m.sum().clamp(min=1).item(),
    ),
    "truth": lambda g: ((g.x[g.m] > 9).any(), (g.z[g.m] >= 0).all(), (g.x[g.m] > 0).sum()),
    "count": lambda g: (g.x[g.m].sum() / (g.x[g.m].numel() + 1), g.x[g.m].shape[0] * 2.0, g.z[g.m].size(0)),
    "parts": lambda g: (
        sum(part.sum() * at for at, part in enumerate(g.x[g.m].unbind(1))) + g.x[g.m].chunk(2, 1)[1].sum()
    ),
    "side by side": lambda g: (
        torch.cat([g.x[g.m][:, :2], g.y[g.m][:, :1].exp()], 1).sum(-1).mean()
        + torch.stack([g.x[g.m][:, 0], g.y[g.m][:, 1]], -1).prod(-1).sum()
    ),
    "flat": lambda g: (
        F.mse_loss(g.x[g.m].view(-1), g.y[g.m].flatten())
        + g.x[g.m].view(-1, 2, 2).sum(2).mean()
        + g.x[g.m].view(g.x[g.m].size(0), 4).mean()
    ),
    "dtypes": lambda g: g.x[g.m].double().mean().to(g.x.dtype) + g.z[g.m].float().mean(),
    "division": lambda g: (7 // (g.z[g.m] + 1)).sum() + ((g.z[g.m] + 5) % (g.z[g.m] + 1)).sum(),
    "normal": lambda g: F.normalize(g.x[g.m], dim=-1).sum() + F.cosine_similarity(g.x[g.m], g.y[g.m]).mean(),
    "choice": lambda g: torch.where(g.x[g.m] > 0, g.x[g.m], g.y[g.m] * g.w).mean(),
    "again": lambda g: g.x[g.m][g.y[g.m][:, 0] > 0].mean() + g.z[g.m][g.z[g.m] > 1].float().mean(),
    "same shapes": lambda g: g.x[g.m].sum() if g.x[g.m].shape == g.y[g.m].shape else g.x,
    "times two": lambda g: times_two(g.x, g.m),
    "put": lambda g: put(g.x, g.m),
    "in place": lambda g: in_place(g.x, g.y, g.m),
    "written behind": lambda g: written_behind(g.x, g.m),
    "mask written": lambda g: mask_written(g.x, g.y, g.m),
    "without gradient": lambda g: without_gradient(g.x, g.w, g.m),
    "gradient of a gradient": lambda g: twice(g.x, g.m),
}  # fmt: skip
OTHER_ROWS = frozenset(("masked_select", "times two", "written behind"))
"""What takes more than the selected rows."""


def outcome(f: Callable[..., Any], args: Given) -> list[Any]:
    """Results and gradients."""
    results = f(args)
    results = list(results) if isinstance(results, tuple) else [results]
    wanted = [result for result in results if isinstance(result, Tensor) and result.requires_grad]
    found = torch.autograd.grad([r.sum() for r in wanted], args[:3], allow_unused=True) if wanted else []
    results = [torch.as_tensor(result).detach() for result in results]
    return results + [torch.zeros(()) if grad is None else grad for grad in found]


def check(f: Callable[..., Any], ours: Callable[..., Any], args: Given, dtype: torch.dtype = torch.float32) -> None:
    triples = (outcome(ours, args.to(dtype)), outcome(f, args.to(dtype)), outcome(f, args.to(torch.float64)))
    for mine, eager, exact in zip(*triples, strict=True):
        assert mine.stride() == eager.stride()
        assert_contract(mine, eager, exact if eager.is_floating_point() else None)
