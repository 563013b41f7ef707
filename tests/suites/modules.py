"""Every nn.Module that PyTorch's own tests know, compiled and in eager: `python -m tests.suites.modules`.

Samples come from `torch.testing._internal.common_modules.module_db`, run in train and in eval mode, forward alone, and
forward and backward by random cotangents. What a module's own state is after the call is compared too.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import click
import torch

from tests.suites.batches import Call, judge_all
from tests.suites.gradients import cotangents
from tests.suites.verdicts import Tally, first_samples, report, seed, timed

MODES = ("eval forward", "train forward", "eval backward", "train backward")


def modules() -> list[Any]:
    """What module_db knows."""
    from torch.testing._internal.common_modules import module_db

    return list(module_db)


def samples(
    info: Any, training: bool, count: int | None, backward: bool = False
) -> Iterator[tuple[torch.nn.Module, tuple[Any, ...]]]:
    """Modules with the arguments of one call of each; arguments require grad where a backward pass is asked for."""
    inputs = info.module_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=backward, training=training)
    for sample in itertools.islice(inputs, count):
        if sample.forward_input is None:
            continue
        made, forward = sample.constructor_input, sample.forward_input
        module = info.module_cls(*made.args, **made.kwargs).train(training)
        if isinstance(module, torch.nn.modules.lazy.LazyModuleMixin):
            module(*forward.args, **forward.kwargs)  # such calls are eager, as there is nothing to capture yet
        yield _Call(module).train(training), (forward.args, forward.kwargs)


class _Call(torch.nn.Module):
    """A module called with tuples of arguments."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.module(*args, **kwargs)


def sweep(
    tally: Tally, info: Any, training: bool, backend: str, count: int | None = None, backward: bool = False
) -> None:
    """Judge the samples of one module."""
    seed()
    with timed(tally), warnings.catch_warnings(), torch.set_grad_enabled(backward):
        warnings.simplefilter("ignore")
        found = [
            Call(f"{info.name}[{number}]", module, args, _given(module, args) if backward else None)
            for number, (module, args) in enumerate(list(samples(info, training, count, backward)))
        ]
        tally.verdicts += judge_all(found, backend)


def _given(module: torch.nn.Module, args: tuple[Any, ...]) -> list[torch.Tensor]:
    seed()
    try:
        return cotangents(copy.deepcopy(module)(*copy.deepcopy(args)))
    except Exception:  # and so will what is judged
        return []


@click.command()
@click.option("--mode", "modes", multiple=True, type=click.Choice(MODES), help="All by default.")
@click.option("--samples", "count", default=None, type=int, help="Samples of each module; all by default.")
@click.option("--backend", default="c", show_default=True)
@click.option("--only", default="", help="Modules whose name starts so.")
@click.option("--part", default="0/1", show_default=True, help="i/n: every n-th module, from the i-th.")
def main(modes: tuple[str, ...], count: int | None, backend: str, only: str, part: str) -> None:
    """Compare every module with eager; exits with 1 when an answer is wrong."""
    torch.set_num_threads(1)
    first, step = map(int, part.split("/"))
    tallies = []
    for mode in modes or MODES:
        tally = Tally(f"modules, {mode}, {backend}{first_samples(count)}")
        for info in modules()[first::step]:
            if info.name.startswith(only):
                sweep(tally, info, mode.startswith("train"), backend, count, mode.endswith("backward"))
        tallies.append(tally)
    raise SystemExit(report(tallies))


if __name__ == "__main__":
    main()
