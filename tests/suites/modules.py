"""Every nn.Module that PyTorch's own tests know, compiled and in eager: `python -m tests.suites.modules`.

Samples come from `torch.testing._internal.common_modules.module_db`, run in train and in eval mode without gradients.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import click
import torch

from tests.suites.verdicts import Tally, judge, report, seed, timed


def modules() -> list[Any]:
    """What module_db knows."""
    from torch.testing._internal.common_modules import module_db

    return list(module_db)


def samples(info: Any, training: bool, count: int | None) -> Iterator[tuple[torch.nn.Module, tuple[Any, ...]]]:
    """Modules with the arguments of one call of each."""
    inputs = info.module_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=training)
    for sample in itertools.islice(inputs, count):
        if sample.forward_input is None:
            continue
        made, forward = sample.constructor_input, sample.forward_input
        module = info.module_cls(*made.args, **made.kwargs).train(training)
        yield _Call(module).train(training), (forward.args, forward.kwargs)


class _Call(torch.nn.Module):
    """A module called with tuples of arguments."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.module(*args, **kwargs)


@torch.no_grad()
def sweep(tally: Tally, info: Any, training: bool, backend: str, count: int | None = None) -> None:
    """Judge the samples of one module."""
    seed()
    with timed(tally), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, (module, args) in enumerate(samples(info, training, count)):
            verdict = judge(f"{info.name}[{number}]", module, args, backend)
            if verdict is not None:
                tally.verdicts.append(verdict)


@click.command()
@click.option("--samples", "count", default=None, type=int, help="Samples of each module; all by default.")
@click.option("--backend", default="c", show_default=True)
@click.option("--only", default="", help="Modules whose name starts so.")
@click.option("--part", default="0/1", show_default=True, help="i/n: every n-th module, from the i-th.")
def main(count: int | None, backend: str, only: str, part: str) -> None:
    """Compare every module with eager; exits with 1 when an answer is wrong."""
    torch.set_num_threads(1)
    first, step = map(int, part.split("/"))
    tallies = {training: Tally(f"modules, {'train' if training else 'eval'}, {backend}") for training in (False, True)}
    for info in modules()[first::step]:
        if info.name.startswith(only):
            for training, tally in tallies.items():
                sweep(tally, info, training, backend, count)
    raise SystemExit(report(list(tallies.values())))


if __name__ == "__main__":
    main()
