"""What became of each sample of a suite: counted, compared with eager, and shown as a table."""

from __future__ import annotations

import contextlib
import copy
import random
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import graphc
from graphc.errors import GraphcError
from graphc.frontend import tree
from tests.support import assert_contract

RIGHT, REFUSED, WRONG = "right", "refused", "wrong"
SECONDS = 60


@dataclass(frozen=True)
class Verdict:
    """The outcome of one sample.

    Args:
        name: which sample.
        kind: right, refused or wrong.
        reason: why it was refused, or what is wrong.
    """

    name: str
    kind: str
    reason: str = ""


@dataclass
class Tally:
    """The outcomes of one suite."""

    suite: str
    verdicts: list[Verdict] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, kind: str) -> int:
        """How many samples came out so."""
        return sum(verdict.kind == kind for verdict in self.verdicts)


class TooSlow(BaseException):
    """A sample took longer than it may. Not an Exception, so that no handler takes it for the sample's own."""


@contextlib.contextmanager
def limited(seconds: int = SECONDS) -> Iterator[None]:
    """Raise `TooSlow` in the block after some seconds of this process's own work; on the main thread only."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def seed() -> None:
    """Every generator that samples or operators draw from."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def judge(
    name: str, fn: Callable[..., Any], args: tuple[Any, ...], backend: str, *, values: bool = True
) -> Verdict | None:
    """Run a call in eager and compiled, on inputs of their own, and compare what comes back and what was written.

    Args:
        name: of the sample.
        fn: what is compiled; an nn.Module is copied for each of the two runs.
        args: nested tensors and numbers.
        backend: of `graphc.compile`.
        values: False where eager itself returns memory as it finds it.

    Returns:
        The verdict; None where there is nothing to compare, as eager's result is no dense tensor.
    """
    try:
        ours, theirs, precise = copy.deepcopy((fn, args)), copy.deepcopy((fn, args)), copy.deepcopy((fn, args))
    except (RuntimeError, TypeError, NotImplementedError):  # tensors of layouts that cannot be copied
        return None
    with warnings.catch_warnings(), limited():
        warnings.simplefilter("ignore")
        seed()
        state = torch.get_rng_state()
        expected, eager_error = _outcome(*theirs)
        draws = not torch.equal(torch.get_rng_state(), state)
        compiled = graphc.compile(ours[0], backend=backend, numerics="eager" if draws else "default")
        try:
            actual, error = _outcome(compiled, ours[1])
        except TooSlow:
            return Verdict(name, WRONG, f"more than {SECONDS} s")
        if isinstance(error, GraphcError):
            return Verdict(name, REFUSED, _first_line(error))
        if eager_error is not None or error is not None:
            if type(error) is type(eager_error):
                return Verdict(name, RIGHT)
            return Verdict(name, WRONG, f"{_described(error)}; eager: {_described(eager_error)}")
        if not _dense(expected):
            return None
        try:
            compare((actual, ours[1]), (expected, theirs[1]), lambda: (_outcome(*_wide(precise))[0], None), values)
        except AssertionError as mismatch:
            return Verdict(name, WRONG, str(mismatch).strip().replace("\n", " ")[:300])
    return Verdict(name, RIGHT)


def _outcome(fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    seed()
    try:
        return fn(*args), None
    except Exception as error:
        return None, error


def _described(error: Exception | None) -> str:
    return "no error" if error is None else f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _dense(value: Any) -> bool:
    return all(
        leaf.layout == torch.strided and not leaf.is_quantized and not leaf.is_nested
        for leaf in tree.flatten(value)[0]
        if isinstance(leaf, torch.Tensor)
    )


def _wide(value: Any) -> Any:
    """The same call in float64."""
    if isinstance(value, torch.nn.Module):
        return value.double()
    if isinstance(value, torch.Tensor):
        return value.double() if value.dtype in (torch.float32, torch.float16, torch.bfloat16) else value
    if isinstance(value, dict):
        return {key: _wide(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(map(_wide, value))
    return torch.float64 if value is torch.float32 else value


def compare(actual: Any, expected: Any, precise: Callable[[], Any], values: bool = True) -> None:
    """Assert that results agree in structure, metadata and values.

    Args:
        precise: gives the results in float64, asked for only where float32's rounding may explain a difference.
        values: False compares metadata alone.
    """
    ours, our_node = tree.flatten(actual)
    theirs, their_node = tree.flatten(expected)
    assert our_node == their_node, f"structure {our_node}, eager {their_node}"
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if not isinstance(other, torch.Tensor):
            if isinstance(other, (bool, int, float, complex)):
                assert type(mine) is type(other), f"{type(mine).__name__}, eager {type(other).__name__}"
                assert mine == other or mine != mine, f"{mine}, eager {other}"
            continue
        assert isinstance(mine, torch.Tensor), f"{mine!r}, eager a tensor"
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype), f"{mine.shape} {mine.dtype}, eager {other.shape}"
        assert mine.stride() == other.stride() or 0 in other.shape, f"strides {mine.stride()}, eager {other.stride()}"
        if values:
            _compare_values(mine, other, precise, index)


def _compare_values(mine: torch.Tensor, other: torch.Tensor, precise: Callable[[], Any], index: int) -> None:
    try:
        torch.testing.assert_close(mine, other, equal_nan=True)
    except AssertionError:
        exact = tree.flatten(precise())[0]
        if not other.dtype.is_floating_point or len(exact) <= index or not isinstance(exact[index], torch.Tensor):
            raise
        assert_contract(mine, other, exact[index])


def table(tallies: list[Tally]) -> Table:
    """Suite, samples, right, refused, wrong, seconds."""
    made = Table(title="against eager PyTorch")
    for column in ("suite", "total", "right", "refused with reason", "wrong", "seconds"):
        made.add_column(column, justify="left" if column == "suite" else "right")
    for tally in tallies:
        made.add_row(
            tally.suite, str(len(tally.verdicts)), *(str(tally.count(kind)) for kind in (RIGHT, REFUSED, WRONG)),
            f"{tally.seconds:.0f}",
        )  # fmt: skip
    return made


def report(tallies: list[Tally]) -> int:
    """Print what is wrong, why samples were refused, and the table; returns the exit status."""
    console = Console(width=160)
    for tally in tallies:
        for verdict in tally.verdicts:
            if verdict.kind == WRONG:
                console.print(f"[red]wrong[/] {tally.suite} {verdict.name}: {verdict.reason}", markup=True)
        reasons = Counter(verdict.reason for verdict in tally.verdicts if verdict.kind == REFUSED)
        for reason, count in reasons.most_common():
            names = sorted({v.name.partition("[")[0] for v in tally.verdicts if v.reason == reason})
            console.print(f"refused {count}x: {reason} ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})",
                          markup=False)  # fmt: skip
    console.print(table(tallies))
    return 1 if any(tally.count(WRONG) for tally in tallies) else 0


@contextlib.contextmanager
def timed(tally: Tally) -> Iterator[None]:
    """Add the seconds of the block to a tally."""
    start = time.perf_counter()
    try:
        yield
    finally:
        tally.seconds += time.perf_counter() - start
