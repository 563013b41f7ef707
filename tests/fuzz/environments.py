"""What a program under construction holds, run in eager in several precisions and on both calls' inputs."""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

import torch
import torch.nn.functional as F

from tests.fuzz.program import BACKWARD, NARROW, WIDE, Inputs, maker, with_dtypes

MOST_ELEMENTS = 400
LARGEST = 1e6
AGREE = {torch.float16: 0.05, torch.bfloat16: 0.2}
"""Relative distance from float64 up to which a value is well-conditioned; 1e-3 for other dtypes."""
_WRITES = re.compile(r"_\(|out=|inplace=|grad|backward|\.data\b")
_ASSIGNMENT = re.compile(r"(\w+) = .*")


class Rejected(Exception):
    """A statement that does not fit the program: eager raises, or rounding decides its result."""


class Environment:
    """Variables of one run.

    Args:
        call: inputs.
        changed: dtypes that stand for others.
        default: torch's default dtype meanwhile.
    """

    def __init__(self, call: Inputs, changed: dict[str, str], default: torch.dtype = torch.float32) -> None:
        self.call, self.changed, self.default = call, tuple(changed.items()), default
        self._inputs = maker(call, changed)
        self.restart()

    def restart(self) -> None:
        """Back to the inputs."""
        self.leaves = self._inputs()
        self.names: dict[str, Any] = {"torch": torch, "F": F, **self.leaves}
        self.draws = _first_draws()

    def run(self, statement: str) -> None:
        """Run one statement; raises whatever it raises."""
        torch.set_rng_state(self.draws)
        torch.set_default_dtype(self.default)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(_compiled(statement, self.changed), self.names)
        finally:
            torch.set_default_dtype(torch.float32)
            self.draws = torch.get_rng_state()


@functools.cache
def _first_draws() -> torch.Tensor:
    return torch.Generator().manual_seed(0).get_state()


@functools.lru_cache(1000)
def _compiled(statement: str, changed: tuple[tuple[str, str], ...]) -> CodeType:
    return compile(with_dtypes(statement, dict(changed)), "<fuzz>", "exec")


class Environments:
    """The runs of one program; the first is what the user would run on the first inputs."""

    def __init__(self, calls: tuple[Inputs, Inputs]) -> None:
        self.native = [Environment(call, {}) for call in calls]
        self.wide = [Environment(call, WIDE, torch.float64) for call in calls]
        self.narrow = [Environment(call, NARROW) for call in calls]
        self.statements: list[str] = []

    def all(self) -> list[Environment]:
        """Every run."""
        return [*self.native, *self.wide, *self.narrow]

    def __getitem__(self, name: str) -> Any:
        return self.native[0].names[name]

    def tensors(self) -> list[str]:
        """Names of the tensors, in the order in which they were made."""
        return [name for name, value in self.native[0].names.items() if isinstance(value, torch.Tensor)]

    def add(self, statement: str) -> None:
        """Run a statement everywhere.

        Raises:
            Rejected: it does not fit; everything is as before.
        """
        before = {name: id(value) for name, value in self.native[0].names.items()}
        made = _only_makes(statement, before)
        draws = [environment.draws for environment in self.all()]
        ran: list[Environment] = []
        try:
            for environment in self.all():
                ran.append(environment)
                environment.run(statement)
            self._check(
                {name for name, value in self.native[0].names.items() if before.get(name) != id(value)},
                self.tensors() if made is None else [made],
            )
        except Exception as error:
            if made is None:
                self._replay(ran)
            for environment, state in zip(ran, draws):
                if made is not None:
                    environment.names.pop(made, None)
                    environment.draws = state
            raise Rejected from error
        self.statements.append(statement)

    def _replay(self, environments: Iterable[Environment]) -> None:
        """Run what has been accepted once more, from the start."""
        for environment in environments:
            environment.restart()
            for statement in self.statements:
                environment.run(statement)

    def error_of(self, statement: str) -> type[Exception] | None:
        """The class of what a statement raises on the first inputs; everything is as before."""
        try:
            self.native[0].run(statement)
        except Exception as error:
            return type(error)
        finally:
            self._replay([self.native[0]])
        return None

    def has_gradients(self, results: tuple[str, ...]) -> bool:
        """Whether eager can go backward from results, where they require gradients; everything is as before."""
        self._replay([self.native[0]])
        wanted = [self[name] for name in results if self[name].requires_grad]
        try:
            _backward()(wanted)
        except RuntimeError:
            return False
        finally:
            self._replay([self.native[0]])
        return True

    def backward(self, results: tuple[str, ...]) -> bool:
        """Whether results have gradients that rounding does not decide; the runs are then over."""
        if not any(self[name].requires_grad for name in results):
            return False
        try:
            for environment in self.all():
                _backward()([environment.names[name] for name in results])
            for view in self.native[0].call.views:
                for runs in zip(self.native, self.wide, self.narrow):
                    if not all(run.leaves[view.name].is_leaf for run in runs):
                        continue
                    native, wide, narrow = (run.leaves[view.name].grad for run in runs)
                    if native is not None:
                        _check_value(native, wide)
                        _check_value(native, narrow)
        except (RuntimeError, Rejected):
            return False
        return True

    def _check(self, made: set[str], names: Iterable[str]) -> None:
        """What a statement made, and all that it may have changed."""
        for name in names:
            value = self[name]
            if not isinstance(value, torch.Tensor):
                continue
            if name in made and (value.numel() > MOST_ELEMENTS or value.dim() > 6 or value.layout != torch.strided):
                raise Rejected
            for native, wide, narrow in zip(self.native, self.wide, self.narrow):
                _check_value(native.names[name], wide.names[name])
                _check_value(native.names[name], narrow.names[name])

    def exact(self, name: str) -> bool:
        """Whether no rounding has gone into a value, so that every correct implementation has it bit for bit."""
        for native, wide, narrow in zip(self.native, self.wide, self.narrow):
            value = native.names[name].detach()
            if value.dtype not in (torch.float64, torch.complex128):
                if not same(value, wide.names[name].detach()):
                    return False
            elif not same(value, narrow.names[name].detach()):
                return False
        return True


@functools.cache
def _backward() -> Callable[[list[torch.Tensor]], None]:
    names: dict[str, Any] = {"torch": torch}
    exec(BACKWARD, names)
    found: Callable[[list[torch.Tensor]], None] = names["backward"]
    return found


def _only_makes(statement: str, names: Iterable[str]) -> str | None:
    """The one new variable that a statement gives, when that is all it does, whether it raises or not."""
    found = _ASSIGNMENT.fullmatch(statement)
    return found[1] if found and found[1] not in names and not _WRITES.search(statement) else None


def _check_value(value: torch.Tensor, other: torch.Tensor) -> None:
    """Not too large, and the same in other precisions but for rounding."""
    if value.shape != other.shape or value.requires_grad != other.requires_grad:
        raise Rejected
    value, other = value.detach(), other.detach()
    if not (value.is_floating_point() or value.is_complex()):
        if value.dtype != other.dtype or not torch.equal(value, other):
            raise Rejected
        return
    tolerance = AGREE.get(value.dtype, 1e-3)
    kind = torch.complex128 if value.is_complex() else torch.float64
    value, other = value.to(kind), other.to(kind)
    size = value.abs()
    if bool(((size > LARGEST) & (size != math.inf)).any()):
        raise Rejected
    if torch.equal(value, other):
        return
    if not torch.allclose(value, other, rtol=tolerance, atol=tolerance * 0.1, equal_nan=True):
        raise Rejected


def same(value: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in all but dtype, NaN to NaN."""
    if value.is_complex():
        value, other = torch.view_as_real(value.resolve_conj()), torch.view_as_real(other.resolve_conj())
    if not value.is_floating_point():
        return torch.equal(value, other)
    value, other = value.double(), other.double()
    return bool(((value == other) | (value.isnan() & other.isnan())).all())
