"""Surroundings that several files of tests ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def float64_on_one_thread() -> Iterator[None]:
    """Eager and compiled round alike to far more digits than a wrong update would leave right."""
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(before)
        torch.set_num_threads(threads)
