"""Every operator that PyTorch's own tests know, compiled and in eager: `python -m tests.suites.operators`.

Samples and erroneous inputs come from `torch.testing._internal.common_methods_invocations.op_db`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import click
import torch

from tests.suites.verdicts import Tally, judge, report, seed, timed

UNINITIALISED = frozenset((
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted",
))  # fmt: skip


def operators(dtype: torch.dtype) -> list[Any]:
    """The operators that eager has for a dtype on CPU."""
    from torch.testing._internal import common_methods_invocations

    # random ones come wrapped in a call that seeds the generator, which is no part of an operator
    common_methods_invocations.wrapper_set_seed = lambda op, *args, **kwargs: op(*args, **kwargs)
    return [op for op in common_methods_invocations.op_db if dtype in op.supported_dtypes("cpu")]


def _call(operator: Callable[..., Any]) -> Callable[..., Any]:
    def call(input: Any, args: Any, kwargs: Any) -> Any:
        return operator(input, *args, **kwargs)

    return call


def label(op: Any) -> str:
    """Name of an operator with its variant."""
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


def samples(op: Any, dtype: torch.dtype, count: int | None) -> Iterator[tuple[Any, ...]]:
    """Argument tuples of the first samples of an operator."""
    seed()
    for sample in itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=False), count):
        yield sample.input, sample.args, sample.kwargs


def errors(op: Any) -> Iterator[tuple[Any, ...]]:
    """Argument tuples that eager refuses."""
    seed()
    for erroneous in op.error_inputs("cpu") if op.error_inputs_func is not None else ():
        sample = erroneous.sample_input
        yield sample.input, sample.args, sample.kwargs


@torch.no_grad()
def sweep(
    tally: Tally, op: Any, calls: Iterator[tuple[Any, ...]], backend: str, operator: Callable[..., Any] | None = None
) -> None:
    """Judge some calls of one operator, or of another form of it."""
    with timed(tally):
        for number, args in enumerate(calls):
            values = op.name not in UNINITIALISED
            verdict = judge(f"{label(op)}[{number}]", _call(operator or op.op), args, backend, values=values)
            if verdict is not None:
                tally.verdicts.append(verdict)


@click.command()
@click.option("--dtype", default="float32", show_default=True)
@click.option("--samples", "count", default=None, type=int, help="Samples of each operator; all by default.")
@click.option("--backend", default="c", show_default=True)
@click.option("--only", default="", help="Operators whose name starts so.")
@click.option("--part", default="0/1", show_default=True, help="i/n: every n-th operator, from the i-th.")
@click.option("--erroneous/--no-erroneous", default=True, help="Arguments that eager refuses, too.")
def main(dtype: str, count: int | None, backend: str, only: str, part: str, erroneous: bool) -> None:
    """Compare every operator with eager; exits with 1 when an answer is wrong."""
    torch.set_num_threads(1)
    kind: torch.dtype = getattr(torch, dtype)
    good, bad = Tally(f"operators, {dtype}, {backend}"), Tally(f"erroneous arguments, {backend}")
    in_place = Tally(f"in place, {dtype}, {backend}")
    first, step = map(int, part.split("/"))
    for op in operators(kind)[first::step]:
        if not op.name.startswith(only):
            continue
        if count != 0:
            sweep(good, op, samples(op, kind, count), backend)
            if op.inplace_variant is not None:
                sweep(in_place, op, samples(op, kind, count), backend, op.inplace_variant)
        if erroneous:
            sweep(bad, op, errors(op), backend)
    raise SystemExit(report([tally for tally in (good, in_place, bad) if tally.verdicts]))


if __name__ == "__main__":
    main()
