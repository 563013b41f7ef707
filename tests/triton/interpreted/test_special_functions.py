"""Special functions in Triton's kernels, along the whole real line; libdevice's are torch's own here."""

from __future__ import annotations

import pytest
import torch

from tests.special_functions import misses


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_as_good_as_eager_everywhere(dtype: torch.dtype) -> None:
    assert not misses("triton", dtype)
