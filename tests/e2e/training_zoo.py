"""Small models with data and a loss, for comparing training steps with eager."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

MODELS: dict[str, Callable[[], tuple[nn.Module, Callable[[int], tuple[Any, ...]], Callable[..., torch.Tensor]]]] = {}


def model(build: Callable[[], Any]) -> Callable[[], Any]:
    MODELS[build.__name__] = build
    return build


def floats(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.get_default_dtype())


def labels(seed: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def classify(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(net(x), y)


@model
def mlp() -> Any:
    net = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 5))
    return net, lambda i: (floats(i, 8, 12), labels(i, 5, 8)), classify


@model
def cnn() -> Any:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 5)
    )
    return net, lambda i: (floats(i, 6, 1, 8, 8), labels(i, 5, 6)), classify


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


@model
def resnet() -> Any:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), Residual(4), Residual(4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip
    return net, lambda i: (floats(i, 4, 3, 9, 9), labels(i, 5, 4)), classify


class Tagger(nn.Module):
    def __init__(self, kind: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.embed, self.core = nn.Embedding(11, 6), kind(6, 8, batch_first=True, **options)
        self.out = nn.Linear(16 if options.get("bidirectional") else 8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.core(self.embed(x))[0]).transpose(1, 2)


def _tagger(kind: type[nn.Module], **options: Any) -> Any:
    return Tagger(kind, **options), lambda i: (labels(i, 11, 3, 7), labels(i + 99, 5, 3, 7)), classify


@model
def lstm() -> Any:
    return _tagger(nn.LSTM, num_layers=2)


@model
def gru() -> Any:
    return _tagger(nn.GRU, bidirectional=True)


@model
def rnn() -> Any:
    return _tagger(nn.RNN)


class HandWritten(nn.Module):
    """An LSTM cell in a Python loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.out = nn.Linear(6, 32), nn.Linear(8, 32, bias=False), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = c = x.new_zeros(x.shape[0], 8)
        for t in range(x.shape[1]):
            i, f, g, o = (self.x(x[:, t]) + self.h(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h)


@model
def hand_written_lstm() -> Any:
    return HandWritten(), lambda i: (floats(i, 3, 6, 6), labels(i, 5, 3)), classify


class Translation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.core = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)
        self.out = nn.Linear(8, 11)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        mask = torch.triu(torch.full((target.shape[1],) * 2, -math.inf), diagonal=1)
        return self.out(self.core(self.embed(source), self.embed(target), tgt_mask=mask))


@model
def translation() -> Any:
    def loss(net: nn.Module, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(net(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten(), label_smoothing=0.1)

    return Translation(), lambda i: (labels(i, 11, 2, 5), labels(i + 99, 11, 2, 6)), loss


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (p.unflatten(-1, (2, -1)).transpose(1, 2) for p in self.qkv(self.ln1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.proj(y)
        return x + self.mlp(self.ln2(x))


class Gpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(13, 8), nn.Embedding(7, 8)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.ln, self.head = nn.LayerNorm(8), nn.Linear(8, 13, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        return self.head(self.ln(self.blocks(x)))


@model
def gpt() -> Any:
    def loss(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(net(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    return Gpt(), lambda i: (labels(i, 13, 3, 8),), loss


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc, self.mu, self.logvar = nn.Linear(10, 16), nn.Linear(16, 3), nn.Linear(16, 3)
        self.dec = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = torch.relu(self.enc(x))
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return torch.sigmoid(self.dec(z)), mu, logvar


@model
def vae() -> Any:
    def loss(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out, mu, logvar = net(x)
        kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        return F.binary_cross_entropy(out, x, reduction="sum") + kl

    return Vae(), lambda i: (torch.sigmoid(floats(i, 6, 10)),), loss


@model
def autoencoder() -> Any:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.LeakyReLU(0.1), nn.ConvTranspose2d(4, 1, 4, stride=2, padding=1)
    )
    return net, lambda i: (floats(i, 4, 1, 8, 8),), lambda net, x: F.mse_loss(net(x), x)


class Recommender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(9, 4), nn.Embedding(12, 4)
        self.bias, self.top = nn.Embedding(12, 1), nn.Linear(8, 1)

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        u, v = self.user(user), self.item(item)
        return (u * v).sum(-1) + self.bias(item).squeeze(-1) + self.top(torch.cat([u, v], -1)).squeeze(-1)


@model
def recommender() -> Any:
    def loss(net: nn.Module, user: torch.Tensor, item: torch.Tensor, rating: torch.Tensor) -> torch.Tensor:
        return F.smooth_l1_loss(net(user, item), rating)

    return Recommender(), lambda i: (labels(i, 9, 10), labels(i + 1, 12, 10), floats(i, 10)), loss


@model
def policy_gradient() -> Any:
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))

    def loss(net: nn.Module, state: torch.Tensor, action: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
        log = torch.log_softmax(net(state), -1)
        entropy = -(log.exp() * log).sum(-1).mean()
        return -(log.gather(1, action[:, None]).squeeze(1) * reward).mean() - 0.01 * entropy

    return net, lambda i: (floats(i, 7, 4), labels(i, 3, 7), floats(i + 1, 7)), loss


@model
def norm_and_dropout() -> Any:
    layers: list[nn.Module] = []
    for norm in (nn.BatchNorm1d(12), nn.LayerNorm(12), nn.GroupNorm(3, 12)):
        layers += [nn.Linear(12, 12), norm, nn.ELU(), nn.Dropout(0.3)]
    net = nn.Sequential(*layers, nn.Linear(12, 4))
    return net, lambda i: (floats(i, 9, 12), labels(i, 4, 9)), classify
