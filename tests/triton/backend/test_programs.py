"""The programs of the end-to-end tests and of training features on a device that torch does not take for the CPU."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map

import graphc
from graphc.runtime.device import Device
from tests.e2e import features
from tests.e2e.programs import PROGRAMS, Program
from tests.e2e.test_programs import compare, exact, run_calls
from tests.triton.backend.register import IS_CUDA, KIND, here

torch.set_num_threads(1)
for file in sorted(Path(features.__file__).parent.glob("*_features.py")):
    importlib.import_module(f"tests.e2e.{file.stem}")

CALLS = 3
OF_CPUS = ("reads_global_tensor",)
"""Programs with tensors of their own that lie with the CPU, which eager refuses to mix with another device's."""
OTHERS = frozenset(
    ("per_sample_models", "per_sample_in_chunks", "private_step", "ensemble_step", "hessians", "meta_learning",  # mix
     "forward_in_place_pickle", "torch_save_whole", "resume", "load_opt_same",  # torch stores no such device
     "custom_op_step", "sparse_adam")  # operators that this device lacks
)  # fmt: skip
"""Features that cannot be asked of this device."""


@pytest.mark.skipif(IS_CUDA, reason="tests/gpu/test_programs.py, with what torch draws on a GPU")
@pytest.mark.parametrize("program", [p for p in PROGRAMS if p.name not in OF_CPUS], ids=lambda p: p.name)
def test_programs_give_what_eager_gives_on_a_cpu(program: Program, device: Device) -> None:
    def make() -> Any:
        with torch.device(KIND):
            return program.make()

    def inputs() -> tuple[Any, ...]:
        return tuple(tree_map(lambda x: x.to(KIND) if isinstance(x, torch.Tensor) else x, a) for a in program.inputs())

    numerics = "eager" if program.name == "dropout_train" else "default"  # eager's mask
    with torch.no_grad():
        eager = run_calls(program.make, program, CALLS, lambda fn: fn)
        there = Program(program.name, make, inputs)
        ours = run_calls(make, there, CALLS, lambda fn: graphc.compile(fn, numerics=numerics))
        compare(tree_map(here, ours), eager, exact(program, CALLS))


@pytest.mark.parametrize("name", sorted(features.CASES.keys() - OTHERS))
def test_features_of_training(name: str, device: Device) -> None:
    """In float64, made on the device by `torch.device`, as compiled for it as on a CPU."""
    case = features.CASES[name]
    with torch.device(KIND if IS_CUDA else "cpu"):  # a GPU has random numbers of its own
        wanted, _ = features.run(case.program, on=False)
    with torch.device(KIND):
        found, outcome = features.run(case.program, on=True, backend="auto")
    features.compare(here(found), here(wanted), 1e-7)
    assert outcome.eager_calls == case.eager, outcome.said
