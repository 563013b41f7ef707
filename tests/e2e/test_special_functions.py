"""Special functions in generated C, along the whole real line."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.special_functions import misses

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_as_good_as_eager_everywhere(dtype: torch.dtype) -> None:
    assert not misses("c", dtype)
