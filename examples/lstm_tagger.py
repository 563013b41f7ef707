"""Part-of-speech tagging with a bidirectional LSTM: sentences of any length, padded; gradient clipping; F1.

python examples/lstm_tagger.py [--eager] [--resume]

Sentences come from a small grammar in which many words ("watch", "light", "the light light") have several tags, so that
only their neighbours tell which.
"""

from __future__ import annotations

import random

import torch
from fit import Options, Result, example, finish, fit, loaders
from sklearn.metrics import f1_score
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

import graphc

WORDS = {
    "DET": ["the", "a", "this", "every"],
    "ADJ": ["light", "cold", "open", "kind", "fast", "green", "clean", "sound"],
    "NOUN": ["light", "watch", "play", "run", "kind", "dog", "cold", "open", "sound", "child", "park", "cook"],
    "VERB": ["light", "watch", "play", "run", "open", "sees", "sound", "clean", "cook", "likes"],
    "ADV": ["fast", "often", "light"],
    "PREP": ["in", "near", "like"],
}
TAGS = list(WORDS)
VOCABULARY = {word: i for i, word in enumerate(dict.fromkeys(w for words in WORDS.values() for w in words), 1)}
PAD, NO_TAG = 0, -100


def sentence(rng: random.Random) -> list[str]:
    """The tags of one sentence."""

    def noun_phrase() -> list[str]:
        return ["DET", *["ADJ"] * rng.choice((0, 0, 1, 2)), "NOUN"]

    tags = [*noun_phrase(), "VERB"]
    if rng.random() < 0.6:
        tags += noun_phrase()
    if rng.random() < 0.3:
        tags.append("ADV")
    if rng.random() < 0.4:
        tags += ["PREP", *noun_phrase()]
    return tags


def corpus(samples: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of word ids (T,) and tag ids (T,), both int64."""
    rng, pairs = random.Random(seed), []
    for _ in range(samples):
        tags = sentence(rng)
        words = [VOCABULARY[rng.choice(WORDS[tag])] for tag in tags]
        pairs.append((torch.tensor(words), torch.tensor([TAGS.index(tag) for tag in tags])))
    return pairs


def pad(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch: words and tags (B, T), T that of the longest sentence, rounded up to a multiple of 8, since each length
    that is met is compiled once."""
    words, tags = zip(*pairs)
    padded = pad_sequence(words, True, PAD), pad_sequence(tags, True, NO_TAG)
    missing = -padded[0].shape[1] % 8
    return F.pad(padded[0], (0, missing), value=PAD), F.pad(padded[1], (0, missing), value=NO_TAG)


class Tagger(nn.Module):
    """Word ids (B, T) -> logits (B, T, tags)."""

    def __init__(self, embedding: int = 32, hidden: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY) + 1, embedding, padding_idx=PAD)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(2 * hidden, len(TAGS))

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(self.embedding(words))
        return self.tags(states)


@example(epochs=6, samples=1200)
def main(options: Options) -> Result:
    data = loaders(corpus(options.samples, options.seed), 32, options, pad)  # type: ignore[arg-type]
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    @graphc.compile
    def train_step(words: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(words).flatten(0, 1), tags.flatten(), ignore_index=NO_TAG)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def macro_f1(batches) -> float:
        wanted, found = [], []
        for words, tags in batches:
            real = tags != NO_TAG
            found.append(model(words).argmax(-1)[real])
            wanted.append(tags[real])
        return float(f1_score(torch.cat(wanted), torch.cat(found), average="macro"))

    result = fit(options, model, train_step, data.train, lambda: macro_f1(data.valid), keep={"optimizer": optimizer})
    return finish(result, macro_f1(data.test), train_step)


if __name__ == "__main__":
    main()
