"""Data that eager refuses, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

import graphc
from tests.e2e.bad_data import LOWERED, check

torch.set_num_threads(1)


@pytest.mark.parametrize("name", LOWERED)
def test_refused_as_in_eager(name: str) -> None:
    check(LOWERED[name], graphc.compile(LOWERED[name][0], backend="triton"))
