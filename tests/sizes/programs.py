"""Functions, and inputs for them of any sizes: what one build is to do for many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Inputs = Callable[[int], tuple[Any, ...]]
PROGRAMS: dict[str, tuple[Callable[[], Callable[..., Any]], Inputs]] = {}
"""Per name what makes the function, and inputs for a size."""


def program(inputs: Inputs) -> Callable[[Callable[[], Callable[..., Any]]], Callable[[], Callable[..., Any]]]:
    """Enter what makes a function."""

    def enter(make: Callable[[], Callable[..., Any]]) -> Callable[[], Callable[..., Any]]:
        PROGRAMS[make.__name__] = make, inputs
        return make

    return enter


def floats(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def words(*shape: int, most: int = 50) -> torch.Tensor:
    return torch.randint(0, most, shape)


@program(lambda n: (floats(n, 24), floats(24)))
def pointwise():
    return lambda x, y: (torch.sigmoid(x) * y + x.abs().sqrt(), (x > y).sum())


@program(lambda n: (floats(5, n),))
def softmax():
    return lambda x: torch.softmax(x, 1)


@program(lambda n: (floats(n, n + 3),))
def reductions():
    return lambda x: (x.sum(), x.mean(0), x.var(1), x.argmax(1), x.amax(), x.logsumexp(0), x.cumsum(1), x.std())


@program(lambda n: (floats(3, n, 16), floats(3, n)))
def layouts():
    def fn(x, y):
        turned = x.transpose(1, 2).contiguous()
        joined = torch.cat([turned, y.unsqueeze(1)], 1).flip(2)
        return joined.reshape(3, -1)[:, 1:-2], torch.stack([y, y * 2], -1).flatten(1), F.pad(y, (1, 2)), y[:, ::2]

    return fn


@program(lambda n: (words(2, n), floats(2, n)))
def indexing():
    table = floats(50, 12)

    def fn(i, w):
        found = table[i] * w.unsqueeze(-1)
        total = torch.zeros(50).index_add(0, i.flatten(), w.flatten())
        return (
            found,
            total,
            F.one_hot(i, 50).sum(1),
            torch.gather(w, 1, i % w.shape[1]),
            w.masked_fill(w < 0, 0.0).tril(),
        )

    return fn


@program(lambda n: (floats(n, 24), words(n, most=10)))
def classifier():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(24, 33), nn.BatchNorm1d(33), nn.ReLU(), nn.Dropout(0.0), nn.Linear(33, 10))
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)

    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


@program(lambda n: (words(3, n), words(3, n)))
def language_model():
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
    embed, head = nn.Embedding(50, 32), nn.Linear(32, 50)
    net = nn.ModuleList([layer, embed, head])
    optimizer = torch.optim.AdamW(net.parameters())

    def step(x, y):
        n = x.shape[1]
        mask = torch.triu(torch.ones(n, n, dtype=torch.bool), 1)
        loss = F.cross_entropy(head(layer(embed(x), src_mask=mask)).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


@program(lambda n: (floats(2, 4, n, 16), floats(2, 2, n + 5, 16), floats(2, 2, n + 5, 16)))
def attention():
    def fn(q, k, v):
        return (
            F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
            F.scaled_dot_product_attention(q, q, q, is_causal=True),
            torch.softmax(q @ q.transpose(-2, -1) / 4.0, -1) @ q,
        )

    return fn


@program(lambda n: (floats(2, 3, n, n + 2),))
def images():
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, stride=2),
        nn.GroupNorm(3, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    ).eval()  # fmt: skip

    def fn(x):
        with torch.no_grad():
            return net(x)

    return fn


@program(lambda n: (floats(4, n, 6),))
def convolution_over_time():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv1d(6, 8, 5, padding=2), nn.GELU(), nn.ConvTranspose1d(8, 4, 3, stride=2))

    def fn(x):
        out = net(x.transpose(1, 2))
        return out, torch.autograd.grad(out.square().mean(), list(net.parameters()))

    return fn


@program(lambda n: (floats(n, 7, 5),))
def recurrent():
    torch.manual_seed(1)
    net = nn.GRU(5, 9, 2, batch_first=True)

    def fn(x):
        with torch.no_grad():
            return net(x)

    return fn


@program(lambda n: (floats(n, 6), floats(2 * n, 6)))
def pairs():
    def fn(x, y):
        distance = torch.cdist(x, y)
        near = distance.topk(2, largest=False).indices
        return distance, near, (x @ y.T).softmax(1) @ y, torch.einsum("ni,mi->nm", x, y).relu().sort(1).values

    return fn


@program(lambda n: (floats(n, 40), floats(n, 40).bfloat16()))
def norms():
    torch.manual_seed(1)
    layer, weight = nn.LayerNorm(40), torch.randn(40, requires_grad=True)

    def fn(x, half):
        x = x.clone().requires_grad_()
        out = layer(x) + F.rms_norm(x, (40,), weight) * F.normalize(x, dim=0)
        out.sum().backward()
        return out.detach(), x.grad, F.layer_norm(half, (40,)), half.float().var(0)

    return fn


@program(lambda n: (torch.arange(n * 3), floats(n)))
def numbers():
    def fn(i, x):
        n = x.shape[0]
        return (
            i * n,
            x / n,
            x.new_full((n, 2), n),
            torch.arange(n) + n,
            torch.linspace(0, 1, n),
            x * (n**0.5),
            n,
            x.numel(),
        )

    return fn


@program(lambda n: (floats(3, n, 8),))
def writes():
    state = torch.zeros(3, 70, 8)

    def fn(x):
        n = x.shape[1]
        state[:, :n] += x
        x.mul_(2)
        return state[:, :n].sum(), state.clone()

    return fn


@program(lambda n: (floats(2, 3, n, n),))
def resized_images():
    def fn(x):
        return (
            F.interpolate(x, scale_factor=2.0),
            F.interpolate(x, size=(7, 9), mode="bilinear"),
            F.avg_pool2d(x, x.shape[2:]),
            F.adaptive_avg_pool2d(x, 3),
            F.max_pool2d(x, 3, 2, padding=1),
            F.avg_pool2d(x, 2, ceil_mode=True),
            F.pixel_unshuffle(x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2], 2),
        )

    return fn


@program(lambda n: (floats(2, 3, n, n),))
def whole_windows():
    def fn(x):
        return F.avg_pool2d(x, x.shape[2:]), F.avg_pool2d(x, (x.shape[2], 3), (1, 2), (0, 1)), F.max_pool2d(x, (4, 2))

    return fn


@program(lambda n: (floats(3, n, 4), floats(3, 6)))
def recurrent_over_time():
    torch.manual_seed(1)
    cell, lstm = nn.GRUCell(4, 6), nn.LSTM(4, 6, batch_first=True)

    def fn(x, h):
        with torch.no_grad():
            out = lstm(x)[0]
            for t in range(x.shape[1]):
                h = cell(x[:, t], h)
            return out, h

    return fn


@program(lambda n: (floats(n, 12), words(n, most=3000)))
def large_vocabulary():
    torch.manual_seed(1)
    head = nn.Linear(12, 3000)

    def fn(x, y):
        head.zero_grad()
        loss = F.cross_entropy(head(x), y, label_smoothing=0.1)
        loss.backward()
        return loss.detach(), head.weight.grad

    return fn


@program(lambda n: (floats(2, 2, n, 16), floats(2, 2, n + 3, 16)))
def masked_attention():
    def fn(q, k):
        rows, keys = q.shape[2], k.shape[2]
        scores = q @ k.transpose(-2, -1) * 16**-0.5
        seen = torch.arange(keys)[None, :] <= torch.arange(rows)[:, None] + (keys - rows)
        near = (torch.arange(keys)[None, :] - torch.arange(rows)[:, None]).abs() < 9
        return torch.softmax(scores.masked_fill(~seen, float("-inf")), -1) @ k, torch.softmax(
            scores.where(near, -1e9), -1
        ) @ k

    return fn


@program(lambda n: (floats(n, 16), torch.randint(0, 4, (n,)), floats(40, 16)))
def graphs():
    def fn(x, group, table):
        n = x.shape[0]
        sums = torch.zeros(4, 16).index_add(0, group, x)
        most = torch.full((4, 16), -1e9).scatter_reduce(0, group[:, None].expand(-1, 16), x, "amax")
        order = torch.argsort(x[:, 0])
        return (
            sums,
            most,
            torch.cdist(x, x).triu(1).sum(),
            x[order],
            table[:n].sum(),
            x.unfold(0, 2, 1).mean(),
        )

    return fn
