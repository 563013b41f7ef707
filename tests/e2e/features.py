"""What the tests of training features share: a program is written once and run eager and compiled."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

import graphc
from graphc.errors import GraphcWarning

Program: TypeAlias = Callable[[Any], Any]
"""Takes what compiles (or does not), gives everything that is to agree: results, gradients, states."""


@dataclass
class Compiler:
    """`graphc.compile` that remembers what it compiled; with `on` False it gives back what it gets."""

    on: bool
    backend: str = "c"
    made: list[Any] = field(default_factory=list)

    def __call__(self, target: Any = None, **options: Any) -> Any:
        if target is None:
            return lambda given: self(given, **options)
        if not self.on:
            return target
        made = graphc.compile(target, **{"backend": self.backend, **options})
        if hasattr(made, "stats"):
            self.made.append(made)
        return made

    def total(self, counter: str) -> int:
        """Sum of a counter over all that was compiled."""
        return sum(getattr(made.stats(), counter) for made in self.made)


@dataclass
class Outcome:
    """A compiled run: its counters and the warnings it gave."""

    compiles: int
    eager_calls: int
    said: list[str]
    recompiles: list[str]


def run(program: Program, on: bool, backend: str = "c", seed: int = 0) -> tuple[Any, Outcome]:
    """One run from a fixed seed, in float64; what it gave, and what it took."""
    compiler = Compiler(on, backend)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    try:
        with torch.enable_grad(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = snapshot(program(compiler))
    finally:
        torch.set_default_dtype(before)
    said = [str(w.message) for w in caught if issubclass(w.category, GraphcWarning)]
    recompiles = [reason for made in compiler.made for reason in made.stats().recompiles]
    return result, Outcome(compiler.total("compiles"), compiler.total("eager_calls"), said, recompiles)


def agree(program: Program, *, eager: int | None = 0, compiles: int | None = None, backend: str = "c",
          tolerance: float = 1e-9) -> Outcome:  # fmt: skip
    """The program gives compiled what it gives eager.

    Args:
        eager: how many calls may run eager; None: any number.
        compiles: how many programs it takes; None: any number but zero.
        tolerance: relative and absolute, in float64; what is of float32 or smaller is given 1e-4, bfloat16 2e-2.
    """
    want, _ = run(program, on=False)
    got, outcome = run(program, on=True, backend=backend)
    compare(got, want, tolerance)
    if eager is not None:
        assert outcome.eager_calls == eager, (outcome.eager_calls, outcome.said)
    if compiles is None:
        assert outcome.compiles > 0 or eager != 0, "nothing was compiled"
    else:
        assert outcome.compiles == compiles, (outcome.compiles, outcome.recompiles)
    return outcome


def snapshot(item: Any) -> Any:
    """A copy of results as they are now: programs go on writing to parameters."""
    if isinstance(item, torch.Tensor):
        return item.detach().clone()
    if isinstance(item, nn.Module):
        grads = {name: p.grad for name, p in item.named_parameters()}
        return snapshot({"state": dict(item.state_dict()), "grads": grads})
    if isinstance(item, torch.optim.Optimizer):
        return snapshot(item.state_dict())
    if isinstance(item, dict):
        return {key: snapshot(value) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [snapshot(part) for part in item]
    return copy.copy(item)


def compare(got: Any, want: Any, tolerance: float = 1e-9, path: str = "") -> None:
    """Nested results agree; dtypes, shapes and everything that is no tensor exactly."""
    if isinstance(want, torch.Tensor):
        assert isinstance(got, torch.Tensor), f"{path}: {got!r}"
        assert (got.shape, got.dtype) == (want.shape, want.dtype), f"{path}: {got.dtype}{list(got.shape)}"
        limit = max(tolerance, {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}.get(want.dtype, 0.0))
        torch.testing.assert_close(got, want, rtol=limit, atol=limit, equal_nan=True, msg=lambda m: f"{path}: {m}")
    elif isinstance(want, dict):
        assert isinstance(got, dict) and list(got) == list(want), f"{path}: {list(got)} for {list(want)}"
        for key in want:
            compare(got[key], want[key], tolerance, f"{path}.{key}")
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want), path
        for number, (a, b) in enumerate(zip(got, want, strict=True)):
            compare(a, b, tolerance, f"{path}[{number}]")
    elif isinstance(want, float):
        assert got == want or abs(got - want) <= tolerance * max(1.0, abs(want)) or (got != got and want != want), (
            f"{path}: {got} for {want}"
        )
    else:
        assert got == want, f"{path}: {got!r} for {want!r}"


def net() -> nn.Sequential:
    """A small classifier in float64."""
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def data(seed: int, *shape: int) -> torch.Tensor:
    """Reproducible numbers that do not draw from torch's own generator."""
    device = torch.get_default_device()
    generator = torch.Generator(device if device.type == "cuda" else "cpu").manual_seed(seed)
    return torch.randn(*(shape or (5, 4)), generator=generator)


@dataclass(frozen=True)
class Case:
    """A program with what is expected of it.

    Args:
        eager: how many of its calls run eager.
        compiles: how many programs it takes; None: any number but zero.
        backend: that compiles it; the interpreter takes the same captures and guards without a C compiler.
    """

    program: Program
    eager: int = 0
    compiles: int | None = None
    backend: str = "interpret"

    def check(self) -> None:
        """Compiled it gives what it gives eager."""
        agree(self.program, eager=self.eager, compiles=self.compiles, backend=self.backend)


CASES: dict[str, Case] = {}
"""Every program of the files of features, by name."""


def program(eager: int = 0, compiles: int | None = None, backend: str = "interpret") -> Callable[[Program], Program]:
    """Register a program."""

    def register(function: Program) -> Program:
        CASES[function.__name__.removeprefix("case_")] = Case(function, eager, compiles, backend)
        return function

    return register
