"""A training function as of a chatbot: packed sequences, attention, teacher forcing drawn by Python, masked losses."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

import graphc

WORDS, SIZE, BATCH, LONGEST, START = 20, 8, 3, 4, 1


class Encoder(nn.Module):
    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding, self.gru = embedding, nn.GRU(SIZE, SIZE, 2, bidirectional=True)

    def forward(self, words: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found, hidden = self.gru(pack_padded_sequence(self.embedding(words), lengths))
        outputs, _ = pad_packed_sequence(found)
        return outputs[:, :, :SIZE] + outputs[:, :, SIZE:], hidden


class Decoder(nn.Module):
    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding, self.gru = embedding, nn.GRU(SIZE, SIZE, 2)
        self.joined, self.words = nn.Linear(2 * SIZE, SIZE), nn.Linear(SIZE, WORDS)

    def forward(
        self, word: torch.Tensor, hidden: torch.Tensor, seen: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        output, hidden = self.gru(self.embedding(word), hidden)
        weights = F.softmax((output * seen).sum(2).t(), 1).unsqueeze(1)
        context = weights.bmm(seen.transpose(0, 1)).squeeze(1)
        both = torch.tanh(self.joined(torch.cat((output.squeeze(0), context), 1)))
        return F.softmax(self.words(both), 1), hidden


def masked_loss(given: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, float]:
    losses = -torch.log(torch.gather(given, 1, target.view(-1, 1)).squeeze(1))
    return losses.masked_select(mask).mean(), mask.sum().item()


def train(nets: Any, optimizers: Any, words: Any, lengths: Any, target: Any, mask: Any) -> float:
    encoder, decoder = nets
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss: Any = 0
    printed, total = [], 0.0
    seen, hidden = encoder(words, lengths)
    hidden, word = hidden[:2], torch.LongTensor([[START for _ in range(BATCH)]])
    is_forced = random.random() < 0.5
    for time in range(len(target)):
        output, hidden = decoder(word, hidden, seen)
        if is_forced:
            word = target[time].view(1, -1)
        else:
            _, best = output.topk(1)
            word = torch.LongTensor([[best[row][0] for row in range(BATCH)]])
        one, count = masked_loss(output, target[time], mask[time])
        loss += one
        printed.append(one.item() * count)
        total += count
    loss.backward()
    for net, optimizer in zip(nets, optimizers, strict=True):
        nn.utils.clip_grad_norm_(net.parameters(), 50.0)
        optimizer.step()
    return sum(printed) / total


def batch(seed: int) -> tuple[torch.Tensor, ...]:
    """Sentences sorted by length, answers of other lengths, and which words are no padding of these."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LONGEST, (BATCH - 1,), generator=draw).sort(descending=True).values
    lengths = torch.cat([torch.tensor([LONGEST]), lengths])
    words = [torch.randint(2, WORDS, (int(length),), generator=draw) for length in lengths]
    target = torch.randint(2, WORDS, (LONGEST, BATCH), generator=draw)
    answers = torch.randint(1, LONGEST + 1, (BATCH,), generator=draw)
    answers[0] = LONGEST
    return pad_sequence(words), lengths, target, torch.arange(LONGEST)[:, None] < answers


def test_two_programs_for_all_batches() -> None:
    """One where the right words are given, and one where its own are; what comes before the draw is in both."""
    torch.manual_seed(0)
    embedding = nn.Embedding(WORDS, SIZE)
    ours: Any = nn.ModuleList([Encoder(embedding), Decoder(embedding)])
    theirs = copy.deepcopy(ours)
    compiled = graphc.compile(train, backend="c")
    losses = []
    for call, nets in ((compiled, ours), (train, theirs)):
        random.seed(0)
        optimizers = [torch.optim.Adam(net.parameters(), 1e-3) for net in nets]
        losses.append([call(nets, optimizers, *batch(seed)) for seed in range(8)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for found, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    stats = compiled.stats()
    assert (stats.paths, stats.eager_calls) == (2, 0) and stats.compiles <= 3 and not stats.recompiles
