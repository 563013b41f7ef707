"""Who likes which film? Embeddings of users and films and their interactions; Adagrad, bfloat16 autocast.

python examples/recommender.py [--eager] [--resume]

Likes are drawn from hidden tastes: 300 users and 200 films with 4 tastes each, and some users who like everything.
"""

from __future__ import annotations

import torch
from fit import Options, Result, example, finish, fit, loaders
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import graphc

USERS, FILMS, TASTES = 300, 200, 4


def likes(samples: int, seed: int) -> TensorDataset:
    """Users (N,) and films (N,) int64, liked (N,) float32 of 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    users, films = torch.randn(USERS, TASTES, generator=generator), torch.randn(FILMS, TASTES, generator=generator)
    kindness = torch.randn(USERS, generator=generator)
    u = torch.randint(0, USERS, (samples,), generator=generator)
    f = torch.randint(0, FILMS, (samples,), generator=generator)
    chance = torch.sigmoid(2 * (users[u] * films[f]).sum(1) + kindness[u])
    return TensorDataset(u, f, torch.bernoulli(chance, generator=generator))


class Recommender(nn.Module):
    """Users (B,), films (B,) -> logits (B,): inner products with biases, and a small network over both embeddings."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.users, self.films = nn.Embedding(USERS, width), nn.Embedding(FILMS, width)
        self.user_bias, self.film_bias = nn.Embedding(USERS, 1), nn.Embedding(FILMS, 1)
        self.deep = nn.Sequential(nn.Linear(3 * width, 32), nn.ReLU(), nn.Linear(32, 1))
        for embedding in (self.users, self.films):
            nn.init.normal_(embedding.weight, std=0.3)
        for embedding in (self.user_bias, self.film_bias):
            nn.init.zeros_(embedding.weight)

    def forward(self, users: torch.Tensor, films: torch.Tensor) -> torch.Tensor:
        u, f = self.users(users), self.films(films)
        product = u * f
        deep = self.deep(torch.cat([u, f, product], dim=1))
        return product.sum(1) + (deep + self.user_bias(users) + self.film_bias(films)).squeeze(1)


@example(epochs=10, samples=20000, patience=2)
def main(options: Options) -> Result:
    data = loaders(likes(options.samples, options.seed), 256, options)
    model = Recommender()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05, weight_decay=1e-4)

    @graphc.compile
    def train_step(users: torch.Tensor, films: torch.Tensor, liked: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(users, films)
        loss = F.binary_cross_entropy_with_logits(logits.float(), liked)
        loss.backward()
        optimizer.step()
        return loss.detach()

    @graphc.compile
    @torch.no_grad()
    def predict(users: torch.Tensor, films: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(model(users, films))

    def area(batches) -> float:
        scores, wanted = [], []
        for users, films, liked in batches:
            scores.append(predict(users, films))
            wanted.append(liked)
        return float(roc_auc_score(torch.cat(wanted), torch.cat(scores)))

    result = fit(options, model, train_step, data.train, lambda: area(data.valid), keep={"optimizer": optimizer})
    return finish(result, area(data.test), train_step, predict)


if __name__ == "__main__":
    main()
