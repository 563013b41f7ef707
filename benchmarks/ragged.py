"""Workloads of `graphc bench benchmarks/ragged.py`: sequences and rows of which there are as many as data say.

Each is a loss with its gradients: recurrent layers on packed sequences, whose lengths are much alike or one of them far
longer than the others, and losses of the rows that a mask selects.
"""

from __future__ import annotations

import torch
from kernels import workload
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

BATCH, LONGEST, WIDTH = 64, 50, 128
BOXES, CLASSES, WORDS = (8, 3, 26, 26), 25, 2000

_lstm = nn.LSTM(WIDTH, WIDTH, bidirectional=True)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _sentences(shortest: int, others: int = LONGEST) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch, and lengths of which one is the longest and the others are up to `others`."""
    lengths = torch.randint(shortest, others + 1, (BATCH,), generator=_generator())
    lengths[0] = LONGEST
    return torch.randn(LONGEST, BATCH, WIDTH, generator=_generator()), lengths


def _packed(x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
    found, _ = _lstm(pack_padded_sequence(x, lengths, enforce_sorted=False))
    outputs, _ = pad_packed_sequence(found, total_length=LONGEST)
    return torch.autograd.grad(outputs.square().mean(), list(_lstm.parameters()))


@workload(lambda: _sentences(LONGEST // 2))
def packed_lstm(x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A bidirectional LSTM on sentences of 25 to 50 words."""
    with torch.enable_grad():
        return _packed(x, lengths)


@workload(lambda: _sentences(1, LONGEST // 5))
def packed_lstm_uneven(x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same with one of 50 words and all others of at most 10: all rows go through the time of the longest."""
    with torch.enable_grad():
        return _packed(x, lengths)


def _boxes() -> tuple[torch.Tensor, ...]:
    given = torch.randn(*BOXES, CLASSES, generator=_generator())
    wanted = torch.rand(*BOXES, CLASSES, generator=_generator())
    return given, wanted, torch.rand(BOXES, generator=_generator()) < 0.1


@workload(_boxes)
def masked_boxes(given: torch.Tensor, wanted: torch.Tensor, is_object: torch.Tensor) -> torch.Tensor:
    """The loss of a detector: of places with an object, a tenth of all, and of those without."""
    given = given.detach().requires_grad_()
    with torch.enable_grad():
        nothing = ~is_object
        loss = F.binary_cross_entropy_with_logits(given[..., 0:1][nothing], wanted[..., 0:1][nothing])
        loss = loss + F.mse_loss(given[..., 1:5][is_object].sigmoid(), wanted[..., 1:5][is_object])
        return torch.autograd.grad(loss, given)[0]


@workload(
    lambda: (torch.randn(BATCH, 4096, generator=_generator()), torch.rand(BATCH, 4096, generator=_generator()) < 0.7)
)
def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of squares that are no padding."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad((x * x)[mask].mean(), x)[0]


def _words() -> tuple[torch.Tensor, ...]:
    count = 2048
    scores = torch.randn(count, WORDS, generator=_generator())
    return (
        scores,
        torch.randint(WORDS, (count,), generator=_generator()),
        torch.rand(count, generator=_generator()) < 0.15,
    )


@workload(_words)
def masked_words(scores: torch.Tensor, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A masked language model's cross-entropy, of 15 % of the words."""
    scores = scores.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(F.cross_entropy(scores[mask], words[mask]), scores)[0]
