"""8-bit floats: their values, and conversions from and to them, two at a time.

Source: PTX ISA 8.7, 5.2.3 Alternate Floating-Point Data Formats, 9.7.9.21 cvt; Micikevicius et al., FP8 Formats for
Deep Learning, 2022.
"""

from __future__ import annotations

import functools

import numpy as np

from tests.triton.ptx.floats import narrow, widen
from tests.triton.ptx.integers import stepping
from tests.triton.ptx.parse import Instruction
from tests.triton.ptx.registers import Array, Step

KINDS8 = ("e4m3", "e5m2")
PAIRS8 = {f"{kind}x2" for kind in KINDS8}
_NAN = 0x7F


@functools.cache
def _values(kind: str) -> Array:
    """Of all bytes."""
    held = np.arange(256)
    if kind == "e5m2":
        return (held << 8).astype(np.uint16).view(np.float16).astype(np.float64)
    exponent, mantissa = held >> 3 & 15, held & 7
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return np.where(held & 127 == 127, np.nan, size) * np.where(held & 128, -1.0, 1.0)


def widen8(kind: str, held: Array) -> Array:
    """float64 values of bytes."""
    return _values(kind)[held]


def narrow8(kind: str, value: Array) -> Array:
    """The nearest bytes of float32 values, ties to even; what is too large is the largest."""
    known = _values(kind)[:128]
    known = known[np.isfinite(known)]
    size = np.abs(value.astype(np.float64))
    above = np.clip(np.searchsorted(known, size), 1, len(known) - 1)
    low, high = size - known[above - 1], known[above] - size
    up = (high < low) | ((high == low) & (above % 2 == 0))
    found = np.where(up, above, above - 1).astype(np.uint8) | (np.signbit(value).astype(np.uint8) << np.uint8(7))
    return np.where(np.isnan(value), np.uint8(_NAN), found)


def convert_pair(instruction: Instruction) -> Step:
    """`cvt` between a pair of bytes and a pair of float16, or two float32; the first of two operands is above."""
    *flags, target, source = instruction.modifiers
    if target.removesuffix("x2") in KINDS8 and set(flags) == {"rn", "satfinite"}:
        kind = target.removesuffix("x2")

        def joined(high: Array, low: Array) -> Array:
            upper, lower = (narrow8(kind, part).astype(np.uint16) for part in (high, low))
            return upper << np.uint16(8) | lower

        if source == "f32" and len(instruction.operands) == 3:
            return stepping(instruction, joined, ["f32", "f32"], "b16")
        if source == "f16x2" and len(instruction.operands) == 2:
            return stepping(instruction, lambda pair: joined(*_halves(pair)), ["b32"], "b16")
    if source.removesuffix("x2") in KINDS8 and target == "f16x2" and set(flags) == {"rn"}:
        kind = source.removesuffix("x2")

        def split(pair: Array) -> Array:
            upper, lower = (
                narrow("f16", widen8(kind, part).astype(np.float32)).astype(np.uint32)
                for part in (pair >> np.uint16(8), pair & np.uint16(255))
            )
            return upper << np.uint32(16) | lower

        return stepping(instruction, split, ["b16"], "b32")
    raise instruction.unknown()


def _halves(pair: Array) -> tuple[Array, Array]:
    return widen("f16", (pair >> np.uint32(16)).astype(np.uint16)), widen("f16", pair.astype(np.uint16))
