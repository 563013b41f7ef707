"""What the examples share: flags, seeded splits, the loop with early stopping and checkpoints, the table at the end."""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Dataset, random_split

import graphc


@dataclass(frozen=True)
class Options:
    """The flags of one run.

    Args:
        eager: run everything that is decorated with `graphc.compile` as plain PyTorch.
        epochs: most epochs to train; early stopping may end sooner.
        samples: size of the data set, split included.
        seed: of weights, split, shuffling and noise.
        patience: epochs without a better validation score after which training stops.
        checkpoint: file written after every epoch.
        resume: go on from `checkpoint` where it exists.
    """

    eager: bool
    epochs: int
    samples: int
    seed: int
    patience: int
    checkpoint: Path
    resume: bool


@dataclass
class Result:
    """What a run left: per epoch the mean training loss, the validation score and seconds; then the test score.

    `compiles` counts captures, `eager_calls` calls that fell back to eager, `reasons` says why it compiled again.
    """

    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    test: float = 0.0
    compiles: int = 0
    eager_calls: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def epoch_seconds(self) -> float:
        """Seconds of a usual epoch: the median, without the first where there are more, since that one compiles."""
        return statistics.median(self.seconds[1:] or self.seconds)


def example(
    *, epochs: int, samples: int, patience: int = 5
) -> Callable[[Callable[[Options], Result]], Callable[..., Result]]:
    """Decorator of an example's `main(options)`: reads the flags, seeds torch, obeys `--eager`, prints the table."""

    def decorate(main: Callable[[Options], Result]) -> Callable[..., Result]:
        @functools.wraps(main)
        def run(argv: list[str] | None = None) -> Result:
            module = sys.modules[main.__module__]
            name = Path(str(module.__file__)).stem
            parser = argparse.ArgumentParser(prog=name, description=str(module.__doc__).partition("\n")[0])
            parser.add_argument("--eager", action="store_true", help="plain PyTorch, nothing compiled")
            parser.add_argument("--epochs", type=_at_least(1), default=epochs, help="most epochs (%(default)s)")
            parser.add_argument("--samples", type=_at_least(20), default=samples, help="of all data (%(default)s)")
            parser.add_argument("--seed", type=int, default=0, help="of weights, split and shuffling (%(default)s)")
            parser.add_argument(
                "--patience", type=_at_least(1), default=patience, help="epochs without a better score (%(default)s)"
            )
            parser.add_argument(
                "--checkpoint", type=Path, default=Path("out/examples") / f"{name}.pt",
                help="file written after each epoch (%(default)s)",
            )  # fmt: skip
            parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
            options = Options(**vars(parser.parse_args(argv)))
            torch.manual_seed(options.seed)
            with graphc.eager() if options.eager else contextlib.nullcontext():
                result = main(options)
            _print_table(name, options, result)
            return result

        return run

    return decorate


def _at_least(least: int) -> Callable[[str], int]:
    """Reads a whole number from a flag."""

    def read(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return int(text)

    read.__name__ = "number"
    return read


@dataclass(frozen=True)
class Loaders:
    """Batches for training (shuffled anew each epoch), validation and test; the last batch of each may be smaller."""

    train: DataLoader[Any]
    valid: DataLoader[Any]
    test: DataLoader[Any]


def loaders(data: Dataset[Any], batch: int, options: Options, collate: Callable[..., Any] | None = None) -> Loaders:
    """Split `data` 70 : 15 : 15, the same way for the same seed."""
    parts = random_split(data, [0.7, 0.15, 0.15], torch.Generator().manual_seed(options.seed))
    shuffle = torch.Generator().manual_seed(options.seed)
    return Loaders(
        DataLoader(parts[0], batch, shuffle=True, generator=shuffle, collate_fn=collate),
        DataLoader(parts[1], batch, collate_fn=collate, generator=torch.Generator()),
        DataLoader(parts[2], batch, collate_fn=collate, generator=torch.Generator()),
    )


def fit(
    options: Options,
    model: nn.Module,
    step: Callable[..., torch.Tensor],
    batches: Iterable[Any],
    validate: Callable[[], float],
    keep: dict[str, Any],
    schedule: Any = None,
    lower_is_better: bool = False,
) -> Result:
    """Train until `options.epochs` or until the validation score stops getting better; leaves the best weights.

    Args:
        model: put into training mode for each epoch, and into evaluation mode for `validate` and on return.
        step: takes one batch and gives its loss, `() float32`.
        validate: the score on validation data.
        keep: everything else with a `state_dict`: optimizers, and whatever else changes while training.
        schedule: a learning-rate schedule, stepped once per epoch.

    Raises:
        SystemExit: the checkpoint to go on from is of other data.
    """
    result, best, best_model, first = Result(), float("-inf"), copy.deepcopy(model.state_dict()), 0
    keep = {**keep, "model": model} | ({"schedule": schedule} if schedule is not None else {})
    shuffle = getattr(batches, "generator", None) or torch.Generator()
    data = {"samples": options.samples, "seed": options.seed}
    if options.resume and not options.checkpoint.exists():
        print(f"no checkpoint {options.checkpoint}: starts from the beginning")
    elif options.resume:
        saved = torch.load(options.checkpoint, weights_only=True)
        if saved["data"] != data:
            raise SystemExit(f"{options.checkpoint} is of {saved['data']}, this run of {data}")
        for name, part in keep.items():
            part.load_state_dict(saved["states"][name])
        torch.set_rng_state(saved["random"])
        shuffle.set_state(saved["shuffle"])
        result, best, best_model = Result(**saved["result"]), saved["best"], saved["best_model"]
        first = len(result.losses)
        print(f"goes on from {options.checkpoint} behind epoch {first}")
    options.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    for epoch in range(first, options.epochs):
        if epoch - _best_epoch(result.scores, lower_is_better) > options.patience:
            print(f"no better validation score in {options.patience} epochs: stopped")
            break
        start = time.perf_counter()
        model.train()
        losses = [step(*batch) for batch in batches]
        result.losses.append(float(torch.stack(losses).mean()))
        if schedule is not None:
            schedule.step()
        result.seconds.append(time.perf_counter() - start)
        model.eval()
        result.scores.append(validate())
        print(f"epoch {epoch + 1:3d}  loss {result.losses[-1]:8.4f}  validation {result.scores[-1]:8.4f}")
        worth = -result.scores[-1] if lower_is_better else result.scores[-1]
        if worth > best:
            best, best_model = worth, copy.deepcopy(model.state_dict())
        saved = {
            "data": data,
            "states": {name: part.state_dict() for name, part in keep.items()},
            "random": torch.get_rng_state(),
            "shuffle": shuffle.get_state(),
            "result": vars(result),
            "best": best,
            "best_model": best_model,
        }
        torch.save(saved, options.checkpoint)
    model.load_state_dict(best_model)
    model.eval()
    return result


def _best_epoch(scores: list[float], lower_is_better: bool) -> int:
    """Number of the epoch with the best score, from 1; 0 before the first."""
    return scores.index((min if lower_is_better else max)(scores)) + 1 if scores else 0


def accuracy(predict: Callable[..., torch.Tensor], batches: Iterable[Any]) -> float:
    """Share of right answers of `predict(inputs...) -> labels` over batches of (inputs..., labels)."""
    right = total = 0
    for *inputs, labels in batches:
        right += int((predict(*inputs) == labels).sum())
        total += labels.numel()
    return right / total


def finish(result: Result, test: float, *compiled: Any) -> Result:
    """Add the test score, and what the compiled callables counted."""
    result.test = test
    for part in compiled:
        stats = part.stats()
        result.compiles += stats.compiles
        result.eager_calls += stats.eager_calls
        result.reasons += stats.recompiles
    return result


def _print_table(name: str, options: Options, result: Result) -> None:
    table = Table("example", "mode", "epochs", "test score", "first epoch", "epoch", "compiles", "eager fallbacks")
    table.add_row(
        name, "eager" if options.eager else "compiled", str(len(result.losses)), f"{result.test:.4f}",
        f"{result.seconds[0]:.2f} s", f"{result.epoch_seconds:.3f} s", str(result.compiles), str(result.eager_calls),
    )  # fmt: skip
    Console(width=120).print(table)
