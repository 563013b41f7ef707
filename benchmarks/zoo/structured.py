"""Networks on vectors, tables, trees and graphs, and agents."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

from .entry import Batch, Size, Workload, entry, floats, images, labels, pick


@entry
def mlp(size: Size) -> Workload:
    """784-128-10, batch 64."""
    pixels, hidden, classes, batch = pick(size, (12, 24, 5, 8), (784, 128, 10, 64))
    net = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, classes))
    return Workload(net, images(classes, batch, pixels))


@entry
def norm_and_dropout(size: Size) -> Workload:
    """Every kind of norm, and dropout behind it; width 256, batch 64."""
    width, classes, batch = pick(size, (12, 4, 9), (256, 10, 64))
    layers: list[nn.Module] = []
    for norm in (nn.BatchNorm1d(width), nn.LayerNorm(width), nn.GroupNorm(3 if width == 12 else 8, width)):
        layers += [nn.Linear(width, width), norm, nn.ELU(), nn.Dropout(0.3)]
    return Workload(nn.Sequential(*layers, nn.Linear(width, classes)), images(classes, batch, width), draws=True)


class Recommender(nn.Module):
    """Users (B,), films (B,) -> rating (B,): inner products with biases, and a small network over both embeddings."""

    def __init__(self, users: int, films: int, width: int, hidden: int) -> None:
        super().__init__()
        self.users, self.films = nn.Embedding(users, width), nn.Embedding(films, width)
        self.user_bias, self.film_bias = nn.Embedding(users, 1), nn.Embedding(films, 1)
        self.deep = nn.Sequential(nn.Linear(3 * width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, users: torch.Tensor, films: torch.Tensor) -> torch.Tensor:
        u, f = self.users(users), self.films(films)
        product = u * f
        deep = self.deep(torch.cat([u, f, product], dim=1))
        return product.sum(1) + (deep + self.user_bias(users) + self.film_bias(films)).squeeze(1)


@entry
def recommender(size: Size) -> Workload:
    """6,040 users, 3,706 films, embeddings of 32, batch 256."""
    users, films, width, hidden, batch = pick(size, (9, 12, 4, 8, 10), (6040, 3706, 32, 64, 256))
    return Workload(
        Recommender(users, films, width, hidden),
        lambda seed: (labels(seed, users, batch), labels(seed + 1, films, batch), floats(seed, batch)),
        lambda net, u, f, rating: F.smooth_l1_loss(net(u, f), rating), takes=2,
    )  # fmt: skip


def _rollout(net: nn.Module, place: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Walk towards the origin in sampled steps until all walkers are there: actions and rewards, (T, B) each."""
    moves = torch.tensor([[0.0, 0.4], [0.0, -0.4], [0.4, 0.0], [-0.4, 0.0]]).to(place)
    actions, rewards = [], []
    for _ in range(6):
        action = Categorical(logits=net(place)).sample()
        place = place + moves[action]
        distance = place.square().sum(1)
        actions.append(action)
        rewards.append(-distance)
        if (distance < 4.0).all():
            break
    return torch.stack(actions), torch.stack(rewards)


def _reinforce(net: nn.Module, state: torch.Tensor, action: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
    chosen = Categorical(logits=net(state))
    advantage = (reward - reward.mean()) / (reward.std() + 1e-6)
    return -(chosen.log_prob(action) * advantage).mean() - 0.01 * chosen.entropy().mean()


@entry
def policy_gradient(size: Size) -> Workload:
    """Walkers in the plane: a sampled walk that ends when all are home, and REINFORCE's update of 512 steps."""
    hidden, batch = pick(size, (16, 7), (128, 512))
    net = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 4))
    return Workload(
        net, lambda seed: (floats(seed, batch, 2), labels(seed, 4, batch), floats(seed + 1, batch)), _reinforce,
        forward=_rollout, draws=True, programs={"forward": 7, "step": 3},
    )  # fmt: skip


class TreeNet(nn.Module):
    """A recursive network: words (N,) at the leaves of a tree -> logits of its root (1, classes).

    The tree (N - 1, 2) int64 holds, per join and in order, which two nodes are joined; node N + i is made by join i.
    """

    def __init__(self, words: int, width: int, classes: int) -> None:
        super().__init__()
        self.leaf, self.join, self.out = (
            nn.Embedding(words, width),
            nn.Linear(2 * width, width),
            nn.Linear(width, classes),
        )

    def forward(self, words: torch.Tensor, tree: torch.Tensor) -> torch.Tensor:
        nodes = list(self.leaf(words).split(1))
        for left, right in tree.tolist():
            nodes.append(torch.tanh(self.join(torch.cat([nodes[left], nodes[right]], -1))))
        return self.out(nodes[-1])


def _sentiment(net: nn.Module, words: torch.Tensor, tree: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(net(words, tree), wanted)


@entry
def tree_net(size: Size) -> Workload:
    """Sentences of 16 words with one of two trees, width 64; the tree is data, on which Python decides."""
    words, width, classes, leaves = pick(size, (11, 6, 3, 5), (1000, 64, 5, 16))

    def data(seed: int) -> Batch:
        free, tree = list(range(leaves)), []
        for join in range(leaves - 1):  # of neighbours, from the left or from the right
            at = 0 if seed % 2 else len(free) - 2
            tree.append(free[at : at + 2])
            free[at : at + 2] = [leaves + join]
        return labels(seed, words, leaves), torch.tensor(tree), labels(seed, classes, 1)

    return Workload(TreeNet(words, width, classes), data, _sentiment, takes=2, programs={"forward": 3, "step": 3})


class GraphNet(nn.Module):
    """Message passing: nodes (N, F), edges (2, E), graph of each node (N,) -> logits (graphs, classes)."""

    def __init__(self, features: int, width: int, rounds: int, graphs: int, classes: int) -> None:
        super().__init__()
        self.graphs = graphs
        self.enter = nn.Linear(features, width)
        self.message = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(rounds))
        self.update = nn.GRUCell(width, width)
        self.out = nn.Linear(2 * width, classes)

    def forward(self, x: torch.Tensor, edges: torch.Tensor, member: torch.Tensor) -> torch.Tensor:
        source, target = edges
        h = torch.relu(self.enter(x))
        degree = torch.zeros_like(h[:, 0]).scatter_add_(0, target, torch.ones_like(h[source, 0])).clamp(min=1)
        for message in self.message:
            sent = torch.relu(message(torch.cat([h[source], h[target]], -1)))
            received = torch.zeros_like(h).index_add_(0, target, sent) / degree[:, None]
            h = self.update(received, h)
        mean = h.new_zeros(self.graphs, h.shape[1]).index_add_(0, member, h)
        most = h.new_zeros(self.graphs, h.shape[1]).scatter_reduce_(
            0, member[:, None].expand_as(h), h, "amax", include_self=False
        )
        return self.out(torch.cat([mean, most], -1))


@entry
def graph_network(size: Size) -> Workload:
    """64 graphs of 16 nodes and 64 edges each, width 64, three rounds of messages."""
    features, width, rounds, graphs, each, edges = pick(size, (3, 6, 2, 2, 5, 8), (16, 64, 3, 64, 16, 64))

    def data(seed: int) -> Batch:
        ends = labels(seed, each, 2, graphs, edges) + each * torch.arange(graphs)[:, None]
        member = torch.arange(graphs).repeat_interleave(each)
        return floats(seed, graphs * each, features), ends.flatten(1), member, labels(seed, 4, graphs)

    return Workload(
        GraphNet(features, width, rounds, graphs, 4), data,
        lambda net, x, edges, member, wanted: F.cross_entropy(net(x, edges, member), wanted), takes=3,
    )  # fmt: skip


class Experts(nn.Module):
    """A gate sends each row to two experts: (B, F) -> (B, classes), and how evenly it does ()."""

    def __init__(self, features: int, width: int, experts: int, classes: int) -> None:
        super().__init__()
        self.gate = nn.Linear(features, experts, bias=False)
        self.w1, self.b1 = (
            nn.Parameter(torch.randn(experts, features, width) / features**0.5),
            nn.Parameter(torch.zeros(experts, width)),
        )
        self.w2, self.b2 = (
            nn.Parameter(torch.randn(experts, width, classes) / width**0.5),
            nn.Parameter(torch.zeros(experts, classes)),
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.gate(x)
        best, chosen = scores.topk(2, dim=-1)
        gates = torch.zeros_like(scores).scatter(1, chosen, best.softmax(-1))
        hidden = torch.relu(torch.einsum("bf,efh->ebh", x, self.w1) + self.b1[:, None])
        out = torch.einsum("ebh,ehc->ebc", hidden, self.w2) + self.b2[:, None]
        load, importance = (gates > 0).to(x.dtype).mean(0), scores.softmax(-1).mean(0)
        return torch.einsum("be,ebc->bc", gates, out), load.shape[0] * (load * importance).sum()


def _balanced(net: nn.Module, x: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    logits, balance = net(x)
    return F.cross_entropy(logits, wanted) + 0.01 * balance


@entry
def mixture_of_experts(size: Size) -> Workload:
    """Eight experts of which a gate chooses two, 256-256-10, batch 128."""
    features, width, experts, classes, batch = pick(size, (6, 8, 3, 4, 9), (256, 256, 8, 10, 128))
    return Workload(Experts(features, width, experts, classes), images(classes, batch, features), _balanced)
