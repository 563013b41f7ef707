"""The programs of the end-to-end tests on a GPU: called often enough to be replayed, against eager and float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map

import graphc
from tests.e2e.programs import PROGRAMS, Program
from tests.e2e.test_programs import compare, exact, run_calls

pytestmark = pytest.mark.gpu
CALLS = 3
OF_CPUS = ("reads_global_tensor",)
"""Programs with tensors of their own that lie with the CPU, which eager refuses to mix with a GPU's."""


def on_gpu(program: Program) -> Program:
    def move(value: Any) -> Any:
        return value.cuda() if isinstance(value, (torch.Tensor, torch.nn.Module)) else value

    def inputs() -> tuple[Any, ...]:
        return tuple(tree_map(move, argument) for argument in program.inputs())

    return Program(program.name, lambda: move(program.make()), inputs)


@pytest.mark.parametrize("program", [p for p in PROGRAMS if p.name not in OF_CPUS], ids=lambda p: p.name)
def test_same_as_eager(program: Program) -> None:
    there = on_gpu(program)
    numerics = "eager" if program.name == "dropout_train" else "default"  # eager's mask
    with torch.no_grad():
        eager = run_calls(there.make, there, CALLS, lambda fn: fn)
        ours = run_calls(there.make, there, CALLS, lambda fn: graphc.compile(fn, numerics=numerics))
        compare(ours, eager, exact(there, CALLS))
