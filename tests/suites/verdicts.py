"""What became of each sample of a suite: counted, compared with eager, and shown as a table."""

from __future__ import annotations

import contextlib
import copy
import functools
import random
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TextIO

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import graphc
from graphc.errors import FallbackWarning, GraphcError
from graphc.frontend import tree
from graphc.report.rounding import WIDE, draws
from tests.support import assert_contract

RIGHT, REFUSED, WRONG = "right", "refused", "wrong"
COLUMNS = ("suite", "total", "right", "op by op", "raises as eager", "refused with reason", "wrong", "seconds")
COMPILED, BY_OP, RAISES = "compiled", "op by op", "raises"
SECONDS = 60
"""What a sample may take, of this process's own work."""
TIMES = 4
"""What a batch may take on top of that, in times of what eager takes for it."""

reported: list[Tally] = []
"""What `report` was given in this process."""

log: TextIO | None = None
"""Where the name of each sample is written before it is judged, so that one that crashes is known."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of one sample.

    Args:
        name: which sample.
        kind: right, refused or wrong.
        reason: why it was refused, or what is wrong.
        how: what was right: a compiled program, one run op by op, or an error that eager raises too.
        externs: the ATen calls in the compiled program, where that was asked for.
        by_rounding: what was right is so by what random rounding of eager's calls gives alone.
    """

    name: str
    kind: str
    reason: str = ""
    how: str = COMPILED
    externs: tuple[str, ...] = ()
    by_rounding: bool = False


@dataclass
class Tally:
    """The outcomes of one suite; `notes` are lines for below the table."""

    suite: str
    verdicts: list[Verdict] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

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


def first_samples(count: int | None) -> str:
    """Behind the name of a suite: how many samples of each operator or module it takes, where that is not all."""
    return "" if count is None else f", first {count} samples of each"


def seed(number: int = 0) -> None:
    """Every generator that samples or operators draw from.

    `torch.manual_seed` would seed those of all devices: where there are none it notes down each time, with the text of
    the stack, that this is to be done.
    """
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    random.seed(number)
    np.random.seed(number)


def judge(
    name: str,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    backend: str,
    *,
    values: bool = True,
    around: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda fn: fn,
    explain: bool = False,
    batch: bool = False,
) -> Verdict | None:
    """Run a call in eager and compiled, on inputs of their own, and compare what comes back and what was written.

    Args:
        name: of the sample.
        fn: what is compiled; an nn.Module is copied for each of the two runs.
        args: nested tensors and numbers.
        backend: of `graphc.compile`.
        values: False where eager itself returns memory as it finds it.
        around: makes of a function, compiled or not, the function that is called, such as one that goes backward too.
        explain: say in the verdict which ATen calls are left in the program.
        batch: it is several samples, which may take longer where eager does.

    Returns:
        The verdict; None where there is nothing to compare, as eager's result is no dense tensor.
    """
    if log is not None:
        log.write(f"sample {name}\n")
    try:
        ours, theirs, spare = copy.deepcopy((fn, args)), copy.deepcopy((fn, args)), copy.deepcopy((fn, args))
    except (RuntimeError, TypeError, NotImplementedError):  # tensors of layouts that cannot be copied
        return None
    with warnings.catch_warnings(record=True) as caught, limited():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FallbackWarning)
        seed()
        state = torch.get_rng_state()
        start = time.process_time()
        expected, eager_error = _outcome(around(theirs[0]), theirs[1])
        if batch:
            signal.setitimer(signal.ITIMER_PROF, SECONDS + TIMES * (time.process_time() - start))
        draws = not torch.equal(torch.get_rng_state(), state)
        compiled: Any = graphc.compile(ours[0], backend=backend, numerics="eager" if draws else "default")
        try:
            actual, error = _outcome(around(compiled), ours[1])
        except TooSlow:
            return Verdict(name, WRONG, f"more than {SECONDS} s")
        if isinstance(error, GraphcError):
            return Verdict(name, REFUSED, _first_line(error))
        if eager_error is not None or error is not None:
            if type(error) is type(eager_error):
                return Verdict(name, RIGHT, how=RAISES)
            return Verdict(name, WRONG, f"{_described(error)}; eager: {_described(eager_error)}")
        if not _dense(expected):
            return None
        try:
            references = References(spare, around)
            ours_left, theirs_left = (actual, *_left(*ours)), (expected, *_left(*theirs))
            by_rounding = compare(ours_left, theirs_left, references.exact, references.errors, values)
        except AssertionError as mismatch:
            return Verdict(name, WRONG, str(mismatch).strip().replace("\n", " ")[:300])
        said = [_first_line(item.message) for item in caught if issubclass(item.category, FallbackWarning)]
        if compiled.stats().eager_calls:
            return Verdict(name, REFUSED, f"runs eager: {said[0]}") if said else Verdict(name, WRONG, "runs eager")
        externs = tuple(compiled.explain(*copy.deepcopy(args)).stats.get("extern", ())) if explain else ()
    return Verdict(name, RIGHT, how=BY_OP if said else COMPILED, externs=externs, by_rounding=by_rounding)


def _left(fn: Any, args: Any) -> tuple[Any, ...]:
    """What a call may have changed."""
    return args, dict(fn.state_dict()) if isinstance(fn, torch.nn.Module) else {}


def _outcome(fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    seed()
    try:
        return fn(*args), None
    except Exception as error:
        return None, error


def _described(error: Exception | None) -> str:
    return "no error" if error is None else f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception | Warning | str) -> str:
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
        wide = WIDE.get(value.dtype)
        return value if wide is None else value.detach().to(wide).requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: _wide(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(map(_wide, value))
    return WIDE.get(value, value) if isinstance(value, torch.dtype) else value


@dataclass(frozen=True)
class References:
    """What eager gives for a call in float64, and how far its own rounding takes it.

    Args:
        call: a function or module, and its arguments.
        around: as in `judge`.
    """

    call: tuple[Any, Any]
    around: Callable[[Callable[..., Any]], Callable[..., Any]]

    def exact(self) -> Any:
        """Results in float64."""
        fn, args = copy.deepcopy(self.call)
        return _outcome(self.around(_wide(fn)), _wide(args))[0]

    def errors(self) -> Iterator[list[Any]]:
        """Errors of eager with random rounding: of the tensors of a result, in order."""
        exact = tree.flatten(self.exact())[0]
        for rounding in draws():
            fn, args = copy.deepcopy(self.call)
            with rounding:
                native = tree.flatten(_outcome(self.around(fn), args)[0])[0]
            yield [_error(*pair) for pair in zip(native, exact)] if len(native) == len(exact) else []


def _error(native: Any, exact: Any) -> torch.Tensor | None:
    if not isinstance(native, torch.Tensor) or not isinstance(exact, torch.Tensor) or native.shape != exact.shape:
        return None
    return (_real(native.detach()).to(_real(exact).dtype) - _real(exact.detach())).nan_to_num(0.0, 0.0, 0.0)


def compare(
    actual: Any, expected: Any, precise: Callable[[], Any], drawn: Callable[[], Iterable[list[Any]]] = tuple,
    values: bool = True,
) -> bool:  # fmt: skip
    """Assert that results agree in structure, metadata and values.

    Args:
        precise: gives the results in float64, asked for once, where float32's rounding may explain a difference.
        drawn: gives errors of eager with random rounding, asked for once, where its own does not.
        values: False compares metadata alone.

    Returns:
        Whether random rounding had to explain a difference.
    """
    by_rounding = False
    exact = functools.cache(lambda: tree.flatten(precise())[0])
    errors = functools.cache(lambda: list(drawn()))
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
        assert _laid_out_alike(mine, other), f"strides {mine.stride()}, eager {other.stride()}"
        if values:
            by_rounding |= _compare_values(mine, other, exact, errors, index)
    return by_rounding


def _laid_out_alike(mine: torch.Tensor, other: torch.Tensor) -> bool:
    """Strides are equal, but for those by which nothing is found; of four and five dims they tell the memory format."""
    idle = {1} if other.dim() not in (4, 5) else set()
    strides = zip(other.shape, mine.stride(), other.stride())
    return 0 in other.shape or all(size in idle or step == eager for size, step, eager in strides)


def _compare_values(
    mine: torch.Tensor, other: torch.Tensor, precise: Callable[[], list[Any]], drawn: Callable[[], list[list[Any]]],
    index: int,
) -> bool:  # fmt: skip
    """Close to eager, or within the contract: by eager's own error, or (then True) its largest with random rounding."""
    try:
        torch.testing.assert_close(mine, other, equal_nan=True)
        return False
    except AssertionError:
        exact = precise()
        floats = other.dtype.is_floating_point or other.is_complex()
        if not floats or len(exact) <= index or not isinstance(exact[index], torch.Tensor):
            raise
    ours, theirs, wide = (_real(tensor.detach()) for tensor in (mine, other, exact[index]))
    try:
        assert_contract(ours, theirs, wide)
        return False
    except AssertionError:
        found = [errors[index] for errors in drawn() if len(errors) > index]
        largest = max((e for e in found if e is not None and e.shape == wide.shape), key=_size, default=None)
        if largest is None:
            raise
        finite = torch.isfinite(theirs) & torch.isfinite(wide)
        assert_contract(ours, torch.where(finite, (wide + largest).to(theirs.dtype), theirs), wide)
        return True


def _size(error: torch.Tensor) -> float:
    return float(error.abs().max()) if error.numel() else 0.0


def _real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def row(tally: Tally) -> tuple[str, ...]:
    """The cells of one suite. What is right is all that was compiled, what ran op by op, and errors as in eager."""
    right = Counter(verdict.how for verdict in tally.verdicts if verdict.kind == RIGHT)
    counts = (
        len(tally.verdicts), right.total(), right[BY_OP], right[RAISES], tally.count(REFUSED), tally.count(WRONG),
    )  # fmt: skip
    return tally.suite, *map(str, counts), f"{tally.seconds:.0f}"


def table(tallies: list[Tally]) -> Table:
    """One row per suite."""
    made = Table(title="against eager PyTorch")
    for column in COLUMNS:
        made.add_column(column, justify="left" if column == "suite" else "right")
    for tally in tallies:
        made.add_row(*row(tally))
    return made


def grouped(tally: Tally, kind: str) -> list[tuple[str, int, list[str]]]:
    """(reason, samples, names) of what came out so, the most frequent reason first."""
    reasons = Counter(verdict.reason for verdict in tally.verdicts if verdict.kind == kind)
    return [
        (reason, count, sorted({v.name.partition("[")[0] for v in tally.verdicts if v.reason == reason}))
        for reason, count in reasons.most_common()
    ]


def report(tallies: list[Tally]) -> int:
    """Print what is wrong, why samples were refused, and the table; returns the exit status."""
    reported.extend(tallies)
    console = Console(width=160)
    for tally in tallies:
        for verdict in tally.verdicts:
            if verdict.kind == WRONG:
                console.print(f"wrong {tally.suite} {verdict.name}: {verdict.reason}", markup=False)
        for reason, count, names in grouped(tally, REFUSED):
            shown = f"{', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
            console.print(f"refused {count}x: {reason} ({shown})", markup=False)
    console.print(table(tallies))
    for tally in tallies:
        for note in tally.notes:
            console.print(f"{tally.suite}: {note}", markup=False)
    return 1 if any(tally.count(WRONG) for tally in tallies) else 0


@contextlib.contextmanager
def timed(tally: Tally) -> Iterator[None]:
    """Add the seconds of the block to a tally."""
    start = time.perf_counter()
    try:
        yield
    finally:
        tally.seconds += time.perf_counter() - start
