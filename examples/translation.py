"""Translation with a Transformer, encoder and decoder: simple English sentences into German; greedy decoding.

python examples/translation.py [--eager] [--resume]

The sentences come from a small grammar, in which German articles and adjectives follow the gender of the noun and the
participle goes to the end: "she has seen the old dog" -> "sie hat den alten hund gesehen". The score is the share of
sentences that are right in every word.
"""

from __future__ import annotations

import math
import random

import torch
from fit import Options, Result, example, finish, fit, loaders
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import graphc

WHO = {"i": "ich habe", "you": "du hast", "he": "er hat", "she": "sie hat", "we": "wir haben", "they": "sie haben"}
DONE = {"seen": "gesehen", "found": "gefunden", "bought": "gekauft", "sold": "verkauft", "painted": "gemalt"}
NOUNS = {
    "dog": "hund m",
    "table": "tisch m",
    "cat": "katze f",
    "flower": "blume f",
    "house": "haus n",
    "book": "buch n",
}
ARTICLES = {"the": {"m": "den", "f": "die", "n": "das"}, "a": {"m": "einen", "f": "eine", "n": "ein"}}
ENDINGS = {"the": {"m": "en", "f": "e", "n": "e"}, "a": {"m": "en", "f": "e", "n": "es"}}
KINDS = {"old": "alt", "new": "neu", "small": "klein", "green": "grün", "beautiful": "schön"}
PAD, START = 0, 1
SOURCE_LENGTH, TARGET_LENGTH = 7, 7


def sentence(rng: random.Random) -> tuple[list[str], list[str]]:
    """English words and German words."""
    who, done, noun, article = (rng.choice(list(part)) for part in (WHO, DONE, NOUNS, ARTICLES))
    german, gender = NOUNS[noun].split()
    kinds = rng.sample(list(KINDS), rng.choice((0, 1, 1, 2)))
    source = [who, "has" if who in ("he", "she") else "have", done, article, *kinds, noun]
    ending = ENDINGS[article][gender]
    target = [*WHO[who].split(), ARTICLES[article][gender], *(KINDS[k] + ending for k in kinds), german, DONE[done]]
    return source, target


def corpus(samples: int, seed: int) -> tuple[TensorDataset, list[str], list[str]]:
    """Source ids (N, 7) and target ids with the start mark in front (N, 8), int64; and both vocabularies."""
    rng = random.Random(seed)
    pairs = [sentence(rng) for _ in range(samples)]
    vocabularies = [["<pad>", "<start>", *sorted({w for pair in pairs for w in pair[side]})] for side in (0, 1)]
    ids = [{word: i for i, word in enumerate(vocabulary)} for vocabulary in vocabularies]

    def encode(words: list[str], side: int, length: int) -> torch.Tensor:
        return torch.tensor([ids[side][word] for word in words] + [PAD] * (length - len(words)))

    source = torch.stack([encode(s, 0, SOURCE_LENGTH) for s, _ in pairs])
    target = torch.stack([encode(["<start>", *t], 1, TARGET_LENGTH + 1) for _, t in pairs])
    return TensorDataset(source, target), vocabularies[0], vocabularies[1]


class PositionalEncoding(nn.Module):
    """Adds sines and cosines of the position: (B, T, width) -> (B, T, width)."""

    pe: torch.Tensor

    def __init__(self, width: int, longest: int = 16) -> None:
        super().__init__()
        position = torch.arange(longest).unsqueeze(1)
        frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        pe = torch.zeros(longest, width)
        pe[:, 0::2] = torch.sin(position * frequency)
        pe[:, 1::2] = torch.cos(position * frequency)
        self.register_buffer("pe", pe)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.pe[: x.size(1)]


class Translator(nn.Module):
    """Source ids (B, S), target ids so far (B, T) -> logits of the next words (B, T, targets)."""

    def __init__(self, sources: int, targets: int, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.width = width
        self.source = nn.Embedding(sources, width, padding_idx=PAD)
        self.target = nn.Embedding(targets, width, padding_idx=PAD)
        self.position = PositionalEncoding(width)
        self.transformer = nn.Transformer(
            width, heads, layers, layers, dim_feedforward=128, dropout=0.0, batch_first=True
        )
        self.out = nn.Linear(width, targets)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        padding = source == PAD
        causal = torch.triu(torch.ones(target.size(1), target.size(1), dtype=torch.bool), diagonal=1)
        hidden = self.transformer(
            self.position(self.source(source) * math.sqrt(self.width)),
            self.position(self.target(target) * math.sqrt(self.width)),
            tgt_mask=causal,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return self.out(hidden)


@example(epochs=10, samples=1500)
def main(options: Options) -> Result:
    pairs, english, german = corpus(options.samples, options.seed)
    data = loaders(pairs, 64, options)
    model = Translator(len(english), len(german))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, 2 / (epoch + 1)))

    @graphc.compile
    def train_step(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        logits = model(source, target[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    @graphc.compile
    @torch.no_grad()
    def translate(source: torch.Tensor) -> torch.Tensor:
        target = torch.full((len(source), 1), START)
        for _ in range(TARGET_LENGTH):
            best = model(source, target)[:, -1].argmax(-1, keepdim=True)
            target = torch.cat([target, best], dim=1)
        return target[:, 1:]

    def right(batches) -> float:
        found = [((translate(s) == t[:, 1:]) | (t[:, 1:] == PAD)).all(1) for s, t in batches]
        return float(torch.cat(found).float().mean())

    result = fit(
        options, model, train_step, data.train, lambda: right(data.valid),
        keep={"optimizer": optimizer}, schedule=schedule,
    )  # fmt: skip
    source, target = next(iter(data.test))
    for words, found in list(zip(source.tolist(), translate(source).tolist()))[:3]:
        length = sum(word != PAD for word in target[source.tolist().index(words), 1:].tolist())
        print(*(english[w] for w in words if w != PAD), "->", *(german[w] for w in found[:length]))
    return finish(result, right(data.test), train_step, translate)


if __name__ == "__main__":
    main()
