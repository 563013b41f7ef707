"""Programs that draw random numbers, in Triton's interpreter: the numbers of all other backends."""

from __future__ import annotations

import pytest
import torch

import graphc
from tests.random_programs import PROGRAMS, assert_same_draws, example

SAMPLE = ("dropout", "dropout of a slice", "dropout2d", "dropout of bf16", "two draws", "bernoulli of f64", "rand",
          "randint", "randint of 64 bits", "uniform_", "randn", "softmax and dropout")  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
def test_backends_draw_the_same_numbers(name: str) -> None:
    found = []
    for backend in ("triton", "interpret"):
        torch.manual_seed(0)
        found.append(graphc.compile(PROGRAMS[name], backend=backend)(example()))
    assert_same_draws(name, *found)
