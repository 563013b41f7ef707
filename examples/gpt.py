"""A small GPT on letters: tied embeddings, warm-up, gradient clipping; it writes a few words at the end.

python examples/gpt.py [--eager] [--resume]

The text is the reference manual that comes with Python.
"""

from __future__ import annotations

import math

import torch
from fit import Options, Result, example, finish, fit, loaders
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import graphc

CONTEXT, VOCABULARY = 32, 128


class Manual(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Pieces of the manual: letters (T,) and the letters that follow each, (T,) int64."""

    def __init__(self, samples: int) -> None:
        from pydoc_data.topics import topics

        text = "".join(topics[name] for name in sorted(topics)).encode("ascii", "ignore")
        self.letters = torch.tensor(list(text[: samples * CONTEXT + 1]))

    def __len__(self) -> int:
        return (len(self.letters) - 1) // CONTEXT

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = index * CONTEXT
        return self.letters[start : start + CONTEXT], self.letters[start + 1 : start + CONTEXT + 1]


class Block(nn.Module):
    """Causal self-attention and a feed-forward network, each behind a layer norm: (B, T, width) -> (B, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(attended.transpose(1, 2).reshape(batch, time, width))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Letters (B, T) -> logits of the next letters (B, T, 128)."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.letters.weight  # tied

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.letters(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def warm_up(epoch: int) -> float:
    """Factor of the learning rate: up for 2 epochs, then down along a cosine."""
    return min(1.0, (epoch + 1) / 2) * 0.5 * (1 + math.cos(math.pi * min(epoch, 20) / 20))


@example(epochs=6, samples=1000)
def main(options: Options) -> Result:
    data = loaders(Manual(options.samples), 32, options)
    model = GPT()
    for embedding in (model.letters, model.places):
        nn.init.normal_(embedding.weight, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up)

    @graphc.compile
    def train_step(ids: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(ids).flatten(0, 1), following.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    @graphc.compile
    @torch.no_grad()
    def right_letters(ids: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        return (model(ids).argmax(-1) == following).sum()

    @graphc.compile
    @torch.no_grad()
    def next_letter(ids: torch.Tensor, temperature: float) -> torch.Tensor:
        chances = torch.softmax(model(ids)[:, -1] / temperature, dim=-1)
        return torch.multinomial(chances, 1)

    def share(batches) -> float:
        right = sum(int(right_letters(ids, following)) for ids, following in batches)
        return right / (len(batches.dataset) * CONTEXT)

    result = fit(
        options, model, train_step, data.train, lambda: share(data.valid),
        keep={"optimizer": optimizer}, schedule=schedule,
    )  # fmt: skip
    ids = data.test.dataset[0][0].unsqueeze(0)
    for _ in range(120):
        ids = torch.cat([ids, next_letter(ids[:, -CONTEXT:], 0.7)], dim=1)
    print("".join(map(chr, ids[0, CONTEXT:].tolist())))
    return finish(result, share(data.test), train_step, right_letters, next_letter)


if __name__ == "__main__":
    main()
