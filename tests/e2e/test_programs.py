"""Every program of `programs.py` on every backend: same results, mutations, aliasing and random state as eager."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten

import graphc
from tests.e2e.programs import PROGRAMS, Program
from tests.support import assert_contract


def _state(fn: Any) -> list[torch.Tensor]:
    return [*fn.parameters(), *fn.buffers()] if isinstance(fn, torch.nn.Module) else []


def _leaves(value: Any) -> list[Any]:
    import dataclasses

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return tree_flatten(value)[0]


def run_calls(make: Callable[[], Any], program: Program, calls: int, wrap: Callable[[Any], Any]) -> list[Any]:
    """Results, arguments after the call, state after the call, and a random draw, of each call in turn."""
    torch.manual_seed(1)
    fn = make()
    call = wrap(fn)
    seen: list[Any] = []
    for _ in range(calls):
        arguments = program.inputs()
        seen += _leaves(call(*arguments))
        seen += _leaves(arguments)
        seen += [t.detach().clone() for t in _state(fn)]
        seen.append(torch.rand(2))
    return seen


def _to_double(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def exact(program: Program, calls: int) -> list[Any] | None:
    """The same run in float64, or None where the program cannot run in it."""
    double = Program(
        program.name,
        lambda: (lambda f: f.double() if isinstance(f, torch.nn.Module) else f)(program.make()),
        lambda: tuple(torch.utils._pytree.tree_map(_to_double, a) for a in program.inputs()),
    )
    try:
        return run_calls(double.make, double, calls, lambda f: f)
    except (RuntimeError, TypeError):
        return None  # it mixes in float32 of its own: eager's result is then the reference


def compare(ours: list[Any], eager: list[Any], exact: list[Any] | None) -> None:
    """What `run_calls` has seen of compiled code, eager code, and eager code in float64."""
    assert len(ours) == len(eager)
    for number, (mine, theirs) in enumerate(zip(ours, eager, strict=True)):
        if not isinstance(theirs, torch.Tensor):
            assert type(mine) is type(theirs)
            assert mine == pytest.approx(theirs, rel=1e-5) if isinstance(theirs, float) else mine == theirs
            continue
        reference = exact[number] if exact is not None and isinstance(exact[number], torch.Tensor) else None
        if reference is not None and reference.shape != theirs.shape:
            reference = None
        assert_contract(mine, theirs, reference)
        assert mine.stride() == theirs.stride(), f"leaf {number}: strides {mine.stride()}, eager {theirs.stride()}"


def _shared(values: list[Any]) -> list[tuple[int, int]]:
    """Which pairs of tensors share memory."""
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    keys = [t.untyped_storage().data_ptr() if t.numel() else -i - 1 for i, t in enumerate(tensors)]
    return [(i, j) for j in range(len(keys)) for i in range(j) if keys[i] == keys[j]]


@pytest.mark.parametrize("backend", ["c", "interpret"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_same_as_eager(program: Program, backend: str) -> None:
    with torch.no_grad():
        eager = run_calls(program.make, program, 2, lambda f: f)
        right = exact(program, 2)
        compiled: list[Any] = []

        def wrap(fn: Any) -> Any:
            numerics = "eager" if program.name == "dropout_train" else "default"  # eager's mask
            compiled.append(graphc.compile(fn, backend=backend, numerics=numerics))
            return compiled[0]

        ours = run_calls(program.make, program, 2, wrap)
    compare(ours, eager, right)
    assert _shared(ours) == _shared(eager)
    stats = compiled[0].stats()
    assert (stats.compiles, stats.hits) == (1, 1), stats


def test_deepcopy_of_inputs_is_not_needed() -> None:
    """The harness sees mutation: a program that mutates its input is told apart from one that does not."""
    program = next(p for p in PROGRAMS if p.name == "assign_column")
    torch.manual_seed(0)
    arguments = program.inputs()
    before = copy.deepcopy(arguments)
    program.make()(*arguments)
    assert not torch.equal(before[0], arguments[0])
