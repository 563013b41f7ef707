"""8-bit floats: all bytes, and all numbers of 16 bits, against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.triton.ptx.float8 import narrow8, widen8
from tests.triton.ptx.texts import words

TYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@pytest.mark.parametrize("kind", TYPES)
def test_all_numbers(kind: str) -> None:
    held = np.arange(256, dtype=np.uint8)
    known = torch.from_numpy(held).view(TYPES[kind])
    np.testing.assert_array_equal(widen8(kind, held), known.double().numpy())
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    for value in (every.view(dtype).float() for dtype in (torch.float16, torch.bfloat16)):
        most = torch.finfo(TYPES[kind]).max
        wanted = value.clamp(-most, most).to(TYPES[kind])
        with np.errstate(invalid="ignore"):
            found = narrow8(kind, value.numpy())
        missing = value.isnan().numpy()
        assert (found[missing] == 0x7F).all()
        np.testing.assert_array_equal(found[~missing], wanted.view(torch.uint8).numpy()[~missing])


@pytest.mark.parametrize("kind", TYPES)
def test_pairs_are_converted(kind: str) -> None:
    """3 above, -1.5 below; there and back by way of float16."""
    body = f"""
    cvt.rn.satfinite.{kind}x2.f32 %rs1, 0f40400000, 0fBFC00000;
    cvt.rn.f16x2.{kind}x2 %r2, %rs1;
    cvt.rn.satfinite.{kind}x2.f16x2 %rs2, %r2;
    cvt.rn.f16x2.{kind}x2 %r1, %rs2;
    """
    high, low = (int(np.float16(value).view(np.uint16)) for value in (3, -1.5))
    assert set(words(body).tolist()) == {high << 16 | low}
