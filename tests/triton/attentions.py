"""Attention as people write it, for the tests of its template: in the interpreter, and compiled for GPUs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

Form = Callable[..., torch.Tensor]
NONE = float("-inf")


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1) @ v


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    mask = torch.tril(torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device))
    return F.softmax(scores.masked_fill(~mask, NONE), dim=-1) @ v


def causal_with_buffer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    scores = q @ k.transpose(-2, -1) * 0.3
    scores = scores.masked_fill(mask[: q.shape[-2], : k.shape[-2]] == 0, NONE)
    return (F.softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2)


def with_bias(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.softmax(q @ k.mT + bias, dim=-1) @ v


def softcap(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.softmax(5.0 * torch.tanh(q @ k.mT / 5.0), dim=-1) @ v


def window(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    rows, columns = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    near = (columns <= rows) & (columns > rows - 9)
    return F.softmax(torch.where(near, q @ k.mT, NONE), dim=-1) @ v


def alibi(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    slopes = 2.0 ** -torch.arange(1, q.shape[1] + 1, dtype=q.dtype)
    distance = torch.arange(k.shape[-2])[None, :] - torch.arange(q.shape[-2])[:, None]
    return F.softmax(q @ k.mT + slopes[:, None, None] * distance, dim=-1) @ v


def grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    k, v = (x[:, :1].repeat_interleave(q.shape[1], dim=1) for x in (k, v))
    return F.softmax(q @ k.mT, dim=-1) @ v


def shared(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """All query heads on the first key head, causal."""
    scores = torch.einsum("bhid,bjd->bhij", q, k[:, 0]) * q.shape[-1] ** -0.5
    mask = torch.tril(torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device))
    return torch.einsum("bhij,bjd->bhid", F.softmax(scores.masked_fill(~mask, NONE), dim=-1), v[:, 0])


def rotary(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    def turned(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    return F.softmax(turned(q) @ turned(k).mT, dim=-1) @ v


def safe(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=1e-9)


def dropped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.dropout(F.softmax(q @ k.mT, dim=-1), 0.4) @ v


def einsums(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * 0.4
    return torch.einsum("bhij,bhjd->bihd", scores.softmax(-1), v).reshape(q.shape[0], q.shape[2], -1)


def in_float32(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = (q @ k.mT).float() * 0.4
    return F.softmax(scores, dim=-1).type_as(q) @ v


FORMS: dict[str, tuple[Form, tuple[tuple[int, ...], ...]]] = {
    "plain": (plain, ()),
    "causal": (causal, ()),
    "causal with a buffer": (causal_with_buffer, ((40, 40),)),
    "bias": (with_bias, ((3, 21, 37),)),
    "softcap": (softcap, ()),
    "window": (window, ()),
    "alibi": (alibi, ()),
    "grouped": (grouped, ()),
    "shared": (shared, ()),
    "rotary": (rotary, ((8,),)),
    "einsum": (einsums, ()),
    "softmax in f32": (in_float32, ()),
}
"""Forms, and the shapes of their tensors besides q (2, 3, 21, 8), k and v (2, 3, 37, 8)."""


def inputs(name: str, dtype: torch.dtype = torch.float32, **sizes: int) -> list[Any]:
    """Tensors for a form; `sizes` replace queries, keys and width."""
    queries, keys, width = (sizes.get(key, default) for key, default in (("queries", 21), ("keys", 37), ("width", 8)))
    _, others = FORMS[name]
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 3, queries, width), (2, 3, keys, width), (2, 3, keys, width), *others]
    found = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    if name == "causal with a buffer":
        found[3] = torch.tril(torch.ones(others[0]))
    return found
