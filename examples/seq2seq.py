"""Sequence to sequence with attention: a GRU reads a word, a GRU cell in a Python loop writes its letters sorted.

python examples/seq2seq.py [--eager] [--resume]

Training feeds the right letters back (teacher forcing); evaluation feeds its own. The score is the share of right
letters.
"""

from __future__ import annotations

import torch
from fit import Options, Result, accuracy, example, finish, fit, loaders
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import graphc

LENGTH, LETTERS = 8, 12
START = LETTERS


def words(samples: int, seed: int) -> TensorDataset:
    """Words (N, T) and the same letters in order (N, T), int64."""
    letters = torch.randint(0, LETTERS, (samples, LENGTH), generator=torch.Generator().manual_seed(seed))
    return TensorDataset(letters, letters.sort(dim=1).values)


class Attention(nn.Module):
    """Additive attention of a state (B, H) on memory (B, T, H) -> what it looks at (B, H)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query, self.key, self.score = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)

    def forward(self, state: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        scores = self.score(torch.tanh(self.query(state).unsqueeze(1) + self.key(memory))).squeeze(-1)
        return torch.bmm(F.softmax(scores, dim=-1).unsqueeze(1), memory).squeeze(1)


class Seq2Seq(nn.Module):
    """Words (B, T) -> logits (B, T, letters); `target` (B, T) is fed back where given."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(LETTERS + 1, hidden)
        self.encoder = nn.GRU(hidden, hidden, batch_first=True)
        self.attention = Attention(hidden)
        self.cell = nn.GRUCell(2 * hidden, hidden)
        self.out = nn.Linear(hidden, LETTERS)

    def forward(self, source: torch.Tensor, target: torch.Tensor | None = None) -> torch.Tensor:
        memory, last = self.encoder(self.embedding(source))
        state, letter = last[0], torch.full((len(source),), START)
        outputs = []
        for t in range(LENGTH):
            looked_at = self.attention(state, memory)
            state = self.cell(torch.cat([self.embedding(letter), looked_at], dim=-1), state)
            logits = self.out(state)
            outputs.append(logits)
            letter = logits.argmax(-1) if target is None else target[:, t]
        return torch.stack(outputs, dim=1)


@example(epochs=8, samples=2000)
def main(options: Options) -> Result:
    data = loaders(words(options.samples, options.seed), 50, options)
    model = Seq2Seq()
    optimizer = torch.optim.NAdam(model.parameters(), lr=4e-3)

    @graphc.compile
    def train_step(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.nll_loss(F.log_softmax(model(source, target), -1).flatten(0, 1), target.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    @graphc.compile
    @torch.no_grad()
    def predict(source: torch.Tensor) -> torch.Tensor:
        return model(source).argmax(-1)

    result = fit(
        options, model, train_step, data.train, lambda: accuracy(predict, data.valid), keep={"optimizer": optimizer}
    )
    return finish(result, accuracy(predict, data.test), train_step, predict)


if __name__ == "__main__":
    main()
