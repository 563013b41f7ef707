"""Nets whose form depends on data, trained and evaluated: a recursive net over trees, and a net with early exits."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import graphc
from graphc.errors import FallbackWarning

_WORDS, _WIDTH = 12, 6
_SHAPES: tuple[Any, ...] = (((0, 0), 0), (0, (0, 0)), ((0, 0), (0, 0)), (0, (0, (0, 0))), (0, 0))
"""Nested pairs; a leaf is 0."""


def _tree(shape: Any, choose: random.Random) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A tree as tensors: left and right child of each node (-1 for a leaf), and the word of each; the root is 0."""
    left, right, words = [], [], []

    def add(part: Any) -> int:
        number = len(words)
        left.append(-1)
        right.append(-1)
        words.append(choose.randrange(_WORDS))
        if part:
            left[number], right[number] = add(part[0]), add(part[1])
        return number

    add(shape)
    return torch.tensor(left), torch.tensor(right), torch.tensor(words)


class RecursiveNet(nn.Module):
    """Socher's: a node is tanh(W [left; right]), a leaf a word's vector; the root is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(_WORDS, _WIDTH)
        self.join = nn.Linear(2 * _WIDTH, _WIDTH)
        self.classify = nn.Linear(_WIDTH, 2)

    def encode(self, node: torch.Tensor, left: torch.Tensor, right: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        if left[node] < 0:
            return self.words(words[node])
        parts = [self.encode(side[node], left, right, words) for side in (left, right)]
        return torch.tanh(self.join(torch.cat(parts)))

    def forward(self, left: torch.Tensor, right: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        return self.classify(self.encode(torch.zeros((), dtype=torch.int64), left, right, words))


def _trees(count: int) -> list[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    choose = random.Random(0)
    found = []
    for number in range(count):
        tree = _tree(_SHAPES[number % len(_SHAPES)], choose)
        leaves = tree[2][tree[0] < 0]
        found.append((tree, (leaves.sum() % 2).reshape(())))
    return found


def _train(make: Callable[[], nn.Module], data: list[Any], epochs: int, compile_: Any, whole: bool) -> Any:
    """Losses of all steps and the trained net; `whole`: the step is compiled, else the module."""
    torch.manual_seed(0)
    net = make().double()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    call = net if whole else compile_(net)

    def step(inputs: tuple[torch.Tensor, ...], target: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(call(*inputs).reshape(-1, 2), target.reshape(-1))
        loss.backward()
        optimizer.step()
        return loss.detach()

    run = compile_(step) if whole else step
    losses = [run(*item) for _ in range(epochs) for item in data]
    return losses, net, run if whole else call


def _check(make: Callable[[], nn.Module], data: list[Any], epochs: int, whole: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        theirs, eager, _ = _train(make, data, epochs, lambda fn: fn, whole)
        ours, net, compiled = _train(make, data, epochs, graphc.compile, whole)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dict(net.named_parameters()), dict(eager.named_parameters()), rtol=1e-8, atol=1e-9)
    stats = compiled.stats()
    assert stats.eager_calls == 0
    return stats, ours, net


def test_a_recursive_net_over_trees_is_trained() -> None:
    """A path per form of tree: the words are data. Programs: those that decide, shared, and one per form."""
    data = _trees(10)
    stats, losses, net = _check(RecursiveNet, data, 8, whole=True)
    assert stats.paths == len(_SHAPES)
    seen = stats.compiles
    assert sum(losses[-10:]) < sum(losses[:10]) * 0.9
    with torch.no_grad():
        compiled = graphc.compile(net)
        for tree, _ in data:
            torch.testing.assert_close(compiled(*tree), net(*tree))
    more = _trees(30)
    before, *_ = _train(RecursiveNet, more, 1, lambda fn: fn, True)
    ours, _, step = _train(RecursiveNet, more, 1, graphc.compile, True)
    torch.testing.assert_close(ours, before, rtol=1e-9, atol=1e-9)
    assert step.stats().compiles == seen, "more trees of the same forms need no more programs"


class EarlyExitNet(nn.Module):
    """Ends behind the first block whose head is sure enough of every row."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.heads = nn.ModuleList(nn.Linear(8, 2) for _ in range(4))
        self.register_buffer("depths", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block, head in zip(self.blocks, self.heads, strict=True):
            x = torch.relu(block(x))
            self.depths += 1
            logits = head(x)
            if logits.softmax(-1).max(-1).values.min() > 0.6:
                break
        return logits


def _rows(count: int) -> list[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for number in range(count):
        x = torch.randn(3, 8, generator=generator, dtype=torch.float64) * (1 + 4 * (number % 3))
        found.append(((x,), (x[:, 0] > 0).long()))
    return found


def test_an_early_exit_net_is_trained_and_evaluated() -> None:
    data = _rows(9)
    for whole in (True, False):
        stats, losses, net = _check(EarlyExitNet, data, 6, whole)
        # a path per exit, and another one where it is a fact that a head has had no gradient before
        assert 2 <= stats.paths <= 8 and stats.compiles <= 16, stats
        assert sum(losses[-9:]) < sum(losses[:9])
    net.eval()
    net.depths.zero_()
    compiled = graphc.compile(net)
    taken = set()
    with torch.no_grad():
        for (x,), _ in [*data, *_rows(30)]:
            before = net.depths.clone()
            expected = net(x)
            depth = net.depths - before
            net.depths.copy_(before)
            torch.testing.assert_close(compiled(x), expected)
            torch.testing.assert_close(net.depths, before + depth)
            taken.add(int(depth))
    assert len(taken) > 1 and compiled.stats().eager_calls == 0
    assert compiled.stats().compiles <= 12
