"""Programs compiled against eager: values by the numerics contract, and everything else that a user can see."""

from __future__ import annotations

import contextlib
import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch._prims_common import suggest_memory_format

import graphc
from graphc.errors import CaptureError, FallbackWarning, UnsupportedError
from graphc.report.numerics import errors_of
from graphc.report.rounding import RandomRounding, draws
from graphc.settings import override
from tests.fuzz.program import NARROW, WIDE, Module, Program
from tests.suites.verdicts import RAISES, REFUSED, RIGHT, WRONG, TooSlow, Verdict, limited

BATCH = 50
QUICK = ("-O0",)
"""Flags with which gcc takes a third of the time for a batch; what is generated is the same."""
_ALONE = re.compile(
    r"torch\.(equal|cov)\(|\w\[(\(|torch\.isnan)[^]]*\] = "  # data decide sizes or answers
    r"|\.(t|squeeze|unsqueeze|transpose|swapaxes)_\((?s:.*)requires_grad|requires_grad(?s:.*)\.(t|squeeze|unsqueeze|transpose|swapaxes)_\("
)
"""Programs that cut a batch into pieces, or that may make all of it run eager."""
_CULPRIT = re.compile(r"<fuzz (\d+)>:\d+|arguments\[(\d+)\]")
"""A program of a batch, named in a message."""
SINGLE_ROUNDING = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps


@dataclass
class Outcome:
    """What one call of several programs left.

    Args:
        error: what was raised.
        values: results, arguments afterwards, gradients of arguments, and the next random number.
        facts: strides, which values lie in one memory and how far apart, what is differentiable and what a leaf.
    """

    error: Exception | None = None
    values: Sequence[Any] = ()
    facts: Sequence[Any] = ()


def judge(
    texts: Sequence[str],
    backend: str,
    names: Sequence[str] = (),
    elsewhere: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    here: Callable[[Any], Any] = lambda value: value,
) -> Verdict:
    """Compile programs as one function, call it twice, and compare with eager.

    Args:
        texts: of programs with the same settings.
        backend: of `graphc.compile`.
        names: of the programs.
        elsewhere: has tensors be made on another device; eager runs on the CPU.
        here: brings values back from there.
    """
    name = ", ".join(names)
    modules = [Module(text, str(number)) for number, text in enumerate(texts)]
    first = modules[0].names
    fns = [module.names["program"] for module in modules]
    with warnings.catch_warnings(record=True) as caught, limited():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FallbackWarning)
        compiled: Any = graphc.compile(
            fns[0] if len(fns) == 1 else _joined(fns),
            backend=backend,
            numerics=first["NUMERICS"],
        )
        call = (lambda args: [compiled(*args[0])]) if len(fns) == 1 else compiled
        eager = _joined(fns)
        for inputs in ("first", "second"):
            theirs = _outcome(modules, eager, inputs)
            try:
                with elsewhere():
                    ours = _outcome(modules, call, inputs)
                ours.values = here(ours.values)
            except TooSlow:
                return Verdict(name, WRONG, "too slow")
            if isinstance(ours.error, (UnsupportedError, CaptureError)):
                return Verdict(name, REFUSED, f"{type(ours.error).__name__}: {_line(ours.error)}")
            if ours.error is not None or theirs.error is not None:
                if type(ours.error) is type(theirs.error):
                    return Verdict(name, RIGHT, how=RAISES)
                return Verdict(name, WRONG, f"{inputs} call: {_described(ours)}; eager: {_described(theirs)}")
            miss = _miss(ours, theirs, lambda: _references(modules, inputs))
            if miss:
                return Verdict(name, WRONG, f"{inputs} call: {miss}")
    stats = compiled.stats()
    if stats.eager_calls:
        return Verdict(name, REFUSED, f"runs eager: {_line(caught[0].message) if caught else 'silently'}")
    return Verdict(name, RIGHT)


@dataclass(frozen=True)
class _Case:
    """A program with its text, and what it has in common with those that can be compiled with it."""

    program: Program
    text: str
    kind: tuple[Any, ...]


def judge_all(programs: Iterable[Program], backend: str, size: int = BATCH, every: int = 1) -> list[Verdict]:
    """Judge programs in batches compiled as one; a batch that is not right is judged in parts.

    Args:
        programs: in any order; those that raise, branch or have settings of their own are put with their kind.
        backend: of `graphc.compile`.
        size: most programs of a batch.
        every: of so many batches one is built with the flags of every user, the others with `QUICK`; and of so many
            programs that cannot be part of a batch one is compiled, the others run op by op.

    Returns:
        The verdicts of the programs, by kind.
    """
    found: list[Verdict] = []
    cases = sorted(map(_case, programs), key=lambda case: case.kind)
    for (alone, *_), members in itertools.groupby(cases, lambda case: case.kind):
        group = list(members)
        step = 1 if alone else size
        for first in range(0, len(group), step):
            batch = group[first : first + step]
            usual = sum(case.program.seed for case in batch) % every == 0
            with override(cflags=() if usual else QUICK):
                found += _judge_parts(batch, backend if usual or not alone else "interpret")
    return found


def _judge_parts(batch: Sequence[_Case], backend: str) -> list[Verdict]:
    """Judge a batch as a whole; when that is not right, the program that is named, and the others, else its halves."""
    if len(batch) == 1:
        return [judge([batch[0].text], backend, [str(batch[0].program.seed)])]
    whole = judge([case.text for case in batch], backend)
    if whole.kind == RIGHT and whole.how != RAISES:
        return [Verdict(str(case.program.seed), RIGHT) for case in batch]
    culprit = _CULPRIT.search(whole.reason)
    if culprit is not None:
        number = int(culprit[1] or culprit[2])
        parts = [batch[number : number + 1], [*batch[:number], *batch[number + 1 :]]]
    else:
        parts = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
    found = [verdict for part in parts for verdict in _judge_parts(part, backend)]
    if whole.kind == WRONG and all(verdict.kind == RIGHT for verdict in found):
        names = " ".join(str(case.program.seed) for case in batch)
        found.append(Verdict(names, WRONG, f"together only: {whole.reason}"))
    return found


def _case(program: Program) -> _Case:
    text = program.script()
    complex_numbers = "complex" in text  # which have programs run op by op
    alone = program.fails or program.branches or program.stuck or bool(_ALONE.search(text))
    tracked = "requires_grad" in text
    return _Case(program, text, (alone, complex_numbers, program.resized, program.backward, tracked, program.numerics))


def _joined(fns: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    def batch(arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [fn(*args) for fn, args in zip(fns, arguments)]

    return batch


def _outcome(
    modules: Sequence[Module], call: Callable[..., Any], inputs: str, rounding: RandomRounding | None = None
) -> Outcome:
    """Call programs on inputs of their own, and look at everything that is left."""
    arguments = [module.names[inputs]() for module in modules]
    torch.default_generator.manual_seed(0)  # those of other devices take a while
    try:
        with rounding or contextlib.nullcontext():
            results = call(arguments)
            if modules[0].names["GRADIENTS"]:  # one pass over all, as they may be results of one function of autograd
                modules[0].names["backward"]([tensor for result in results for tensor in result])
    except Exception as error:
        return Outcome(error)
    tensors = [tensor for group in (*results, *arguments) for tensor in group]
    gradients = [arg.grad for group in arguments for arg in group if arg.is_leaf]
    state = torch.rand(1, device="cpu")
    seen = [_tracked(t) for t in tensors]
    facts = [[_layout(t) for t in (*tensors, *gradients)], _sharing(tensors), seen, [g is None for g in gradients]]
    return Outcome(None, [t.detach() for t in (*tensors, *gradients) if t is not None] + [state], facts)


@dataclass(frozen=True)
class _References:
    """Eager's results in float64, as they are and rounded at random, and with float32 for float64 rounded at random."""

    wide: Outcome
    native: Sequence[Outcome]
    narrow: Sequence[Outcome]

    def errors(self, number: int) -> Iterator[torch.Tensor]:
        """How far rounding takes a float result, as far as that can be told; in float64, float32's error tells."""
        if not self.wide.values:
            return
        wide = self.wide.values[number]
        for outcomes, unit in ((self.native, 1.0), (self.narrow, SINGLE_ROUNDING)):
            for outcome in outcomes:
                if outcome.values and outcome.values[number].shape == wide.shape:
                    error = (outcome.values[number].to(wide.dtype) - wide) * unit
                    yield torch.where(torch.isfinite(error), error, 0)


def _references(modules: Sequence[Module], inputs: str) -> _References:
    wide = [module.with_dtypes(WIDE) for module in modules]
    narrow = [module.with_dtypes(NARROW) for module in modules]

    def run(
        programs: Sequence[Module], rounding: RandomRounding | None = None, default: torch.dtype = torch.float32
    ) -> Outcome:
        torch.set_default_dtype(default)
        try:
            return _outcome(programs, _joined([module.names["program"] for module in programs]), inputs, rounding)
        finally:
            torch.set_default_dtype(torch.float32)

    native, halved = ([run(programs, rounding) for rounding in draws()] for programs in (modules, narrow))
    return _References(run(wide, default=torch.float64), native, halved)


def _tracked(tensor: torch.Tensor) -> Any:
    try:
        return tensor.requires_grad, tensor.is_leaf
    except RuntimeError:  # a view made without autograd, whose memory was then written under it: eager forbids to ask
        return RuntimeError


def _layout(tensor: torch.Tensor | None) -> Any:
    """Strides by which something is found, and the memory format that operators see in all of them."""
    if tensor is None or 0 in tensor.shape:
        return None
    strides = [stride for size, stride in zip(tensor.shape, tensor.stride()) if size != 1]
    return (strides, str(suggest_memory_format(tensor))) if tensor.dim() in (4, 5) else strides


def _sharing(tensors: Sequence[torch.Tensor]) -> list[tuple[int, int, int]]:
    """Pairs of tensors in one memory, with their distance in bytes."""
    keys = [t.untyped_storage().data_ptr() if t.numel() else -i - 1 for i, t in enumerate(tensors)]
    return [
        (i, j, tensors[j].data_ptr() - tensors[i].data_ptr())
        for j in range(len(keys))
        for i in range(j)
        if keys[i] == keys[j]
    ]


def _miss(ours: Outcome, theirs: Outcome, references: Callable[[], _References]) -> str:
    """How a compiled call differs from eager's; empty when it does not."""
    for what, mine, other in zip(("strides", "memory", "autograd", "gradients"), ours.facts, theirs.facts):
        if mine != other:
            return f"{what} {mine}, eager {other}"
    found = [errors_of(mine, other).miss for mine, other in zip(ours.values, theirs.values, strict=True)]
    if not any(found):
        return ""
    known = references()
    for number, (mine, other) in enumerate(zip(ours.values, theirs.values, strict=True)):
        miss = errors_of(mine, *_bounds(other, known, number)).miss
        if miss:
            return f"value {number}, {other.dtype}{list(other.shape)}: {miss}"
    return ""


def _bounds(eager: Any, references: _References, number: int) -> tuple[Any, Any]:
    """What a result is held to: eager's, as far off as it is or as random rounding takes it, and the exact one."""
    if not (eager.is_floating_point() or eager.is_complex()) or not references.wide.values:
        return eager, None
    wide = references.wide.values[number]
    if wide.shape != eager.shape:
        return eager, None
    own = eager.to(wide.dtype) - wide
    stacked = torch.stack([torch.where(torch.isfinite(own), own, 0), *references.errors(number)])
    error = stacked.gather(0, stacked.abs().argmax(0, keepdim=True))[0]
    if eager.dtype == wide.dtype:  # nothing exact to compare with: two that are off as much as this may be twice apart
        error = error * 2
    return torch.where(torch.isfinite(eager) & torch.isfinite(wide), (wide + error).to(eager.dtype), eager), wide


def _described(outcome: Outcome) -> str:
    return "no error" if outcome.error is None else f"{type(outcome.error).__name__}: {_line(outcome.error)}"


def _line(error: Exception | Warning | str) -> str:
    """The first line of a message, and the place in a program that it names."""
    text = str(error)
    place = _CULPRIT.search(text)
    line = text.partition("\n")[0][:200]
    return line if place is None or place[0] in line else f"{line} {place[0]}"
