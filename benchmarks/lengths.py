"""Inputs of many lengths: what is waited for while programs for them come to be, and what they take then.

    python benchmarks/lengths.py [--against inductor] [--batches 1500]
    python benchmarks/lengths.py --texts 6 [--against inductor]

The first trains a Transformer on batches of 12 to 120 words, each contender in a process of its own, from the same
seed, with an empty cache, and prints per contender the seconds of the whole loop, of its slowest step, and of the last
hundred batches. graphc is there twice: as it is, and with `dynamic=False`, where each length is compiled for itself.

The second has a Transformer write texts, word by word, with a cache of keys and values that grows by each word.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import graphc
from graphc.report.bench import describe_machine
from graphc.report.own_models import empty_caches

WORDS, WIDTH, ROWS = 1000, 128, 16
SHORTEST, LONGEST = 12, 120
LAST = 100
HEADS, TEXT = 4, 200
CONTENDERS = ("eager", "graphc", "graphc dynamic=False")


class Tagger(nn.Module):
    """A class per word."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.encoder(self.embed(words)))
        return out


def make_step(contender: str) -> Callable[[torch.Tensor, torch.Tensor], Any]:
    """A training step."""
    torch.manual_seed(0)
    net = Tagger()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)

    def loss_of(words: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(net(words).flatten(0, 1), tags.flatten())

    def whole(words: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(words, tags)
        loss.backward()
        optimizer.step()
        return loss.detach()

    if contender.startswith("graphc"):
        return graphc.compile(whole, dynamic=False if contender.endswith("False") else None)
    if contender == "eager":
        return whole
    forward, update = torch.compile(loss_of), torch.compile(optimizer.step)

    def compiled(words: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = forward(words, tags)
        loss.backward()
        update()
        return loss.detach()

    return compiled


def train(contender: str, batches: int) -> dict[str, Any]:
    """Seconds of the loop, of its slowest step and of the last batches; and how often graphc built what."""
    with empty_caches():
        step = make_step(contender)
        random = torch.Generator().manual_seed(1)
        times: list[float] = []
        loss = torch.zeros(())
        for _ in range(batches):
            length = int(torch.randint(SHORTEST, LONGEST + 1, (), generator=random))
            words = torch.randint(0, WORDS, (ROWS, length), generator=random)
            start = time.perf_counter()
            loss = step(words, words.flip(1))
            times.append(time.perf_counter() - start)
    found: dict[str, Any] = {
        "whole": sum(times),
        "slowest": max(times),
        "last": sum(times[-LAST:]),
        "loss": float(loss),
    }
    if contender.startswith("graphc"):
        stats = step.stats()  # type: ignore[attr-defined]
        found["compiles"] = f"{stats.compiles}, {stats.compiles - stats.reuses} of them built"
    return found


class Writer(nn.Module):
    """The word that comes next, with the keys and values of those before."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0) for _ in range(4))
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(
        self, word: torch.Tensor, cache: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        x, grown = self.embed(word), []
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            attention = layer.self_attn
            projected = F.linear(layer.norm1(x), attention.in_proj_weight, attention.in_proj_bias)
            query, key, value = projected.view(-1, 3, HEADS, WIDTH // HEADS).transpose(0, 2).unsqueeze(3).unbind(1)
            keys, values = torch.cat([keys, key.transpose(0, 1)], 2), torch.cat([values, value.transpose(0, 1)], 2)
            found = F.scaled_dot_product_attention(query.transpose(0, 1), keys, values)
            x = x + attention.out_proj(found.reshape(-1, WIDTH))
            x = x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
            grown.append((keys, values))
        return self.head(x).argmax(-1), grown


def write(contender: str, texts: int) -> dict[str, Any]:
    """Seconds of each text of `TEXT` words; and how often graphc built what."""
    with empty_caches(), torch.inference_mode():
        torch.manual_seed(0)
        writer: Any = Writer().eval()
        if contender != "eager":
            one_each = contender.endswith("False")
            writer = torch.compile(writer) if contender == "inductor" else graphc.compile(
                writer, dynamic=False if one_each else None
            )  # fmt: skip
        times, word = [], torch.tensor([0])
        for text in range(texts):
            start, word = time.perf_counter(), torch.tensor([text])
            empty = torch.zeros(1, HEADS, 0, WIDTH // HEADS)
            cache = [(empty, empty)] * 4
            for _ in range(TEXT):
                word, cache = writer(word, cache)
            times.append(time.perf_counter() - start)
    found: dict[str, Any] = {"texts": times, "word": int(word)}
    if contender.startswith("graphc"):
        stats = writer.stats()
        found["compiles"] = f"{stats.compiles}, {stats.compiles - stats.reuses} of them built"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", default="", help="inductor, or nothing")
    parser.add_argument("--batches", type=int, default=1500)
    parser.add_argument("--texts", type=int, default=0, help="write so many texts in place of training")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(write(options.only, options.texts) if options.texts else train(options.only, options.batches)))
        return
    titles = (
        ["contender", "first text", "second text", "last text", "all texts", "compiles", "last word"]
        if options.texts
        else ["contender", "all batches", "slowest step", "last 100 batches", "compiles", "loss"]
    )
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for contender in (*CONTENDERS, *filter(None, options.against.split(","))):
        command = [sys.executable, __file__, "--only", contender, "--batches", str(options.batches)]
        command += ["--texts", str(options.texts)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        if options.texts:
            first, second, *_, last = row["texts"]
            cells = [*(f"{seconds:.2f} s" for seconds in (first, second, last, sum(row["texts"])))]
            cells += [row.get("compiles", ""), str(row["word"])]
        else:
            cells = [f"{row['whole']:.1f} s", f"{row['slowest']:.2f} s", f"{row['last']:.2f} s"]
            cells += [row.get("compiles", ""), f"{row['loss']:.5f}"]
        print(f"| {contender} | {' | '.join(cells)} |", flush=True)
    print(f"\nMeasured one after the other: {', '.join(f'{key} {value}' for key, value in describe_machine().items())}")


if __name__ == "__main__":
    main()
