"""Random programs, with gradients, on a device that is made up, against eager on the CPU."""

from __future__ import annotations

import re

import pytest
import torch

from graphc.runtime.device import Device
from tests.fuzz.check import RIGHT, WRONG, judge
from tests.fuzz.generate import generate
from tests.triton.backend.register import IS_CUDA, KIND, here

torch.set_num_threads(1)
DRAWS = re.compile(r"rand|dropout|normal_|bernoulli|uniform_|exponential_|geometric_|cauchy_")


@pytest.mark.parametrize(
    "first", [pytest.param(first, marks=pytest.mark.suite if first >= 150 else ()) for first in range(0, 400, 50)]
)
def test_as_on_a_cpu(first: int, device: Device) -> None:
    """What data eager refuses is refused by the next call on a device, so programs that are to fail are left out."""
    programs = [program for seed in range(first, first + 50) if not (program := generate(seed)).fails]
    if IS_CUDA:  # torch draws other numbers there
        programs = [program for program in programs if not DRAWS.search(program.script())]
    found = [
        judge([program.script()], "auto", [str(program.seed)], lambda: torch.device(KIND), here) for program in programs
    ]
    assert [verdict for verdict in found if verdict.kind == WRONG] == []
    assert sum(verdict.kind == RIGHT for verdict in found) > 0.9 * len(found)
