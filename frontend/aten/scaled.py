"""Import rule of products of 8-bit floats."""

from __future__ import annotations

import torch

from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.registry import CONTIGUOUS, Decline, rule
from graphc.ir.graph import Value
from graphc.ir.types import FLOAT8, bf16, f8e5m2, f16, f32
from graphc.ops import scaled

_STEP = 16
"""What the library of a GPU asks of the sizes along which bytes lie."""


@rule("aten._scaled_mm.default", layout=CONTIGUOUS, float8=True)
def scaled_mm(
    imp: Importer,
    self: Value,
    mat2: Value,
    scale_a: Value,
    scale_b: Value,
    bias: Value | None = None,
    scale_result: Value | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> Value:
    dtype = imp.dtype(out_dtype, self.dtype)
    if dtype not in (bf16, f16, f32) or scale_result is not None:
        raise Decline("a result that is scaled itself")
    if bias is not None and (bias.dtype != dtype or dtype == f32 or bias.shape != mat2.shape[1:]):
        raise Decline("eager raises, or rounds the bias")
    _check(imp, self, mat2)
    scales = [_scale(imp, scale, self, mat2, at) for at, scale in enumerate((scale_a, scale_b))]
    if {scale.shape for scale in scales} != {(1, 1)} and dtype != bf16:
        raise Decline("scales of rows and columns go with bf16 on GPUs")
    operands = [self, mat2, *scales, *([] if bias is None else [bias])]
    return imp.b.op(scaled.NAME, *operands, dtype=dtype, fast=use_fast_accum)


def _check(imp: Importer, a: Value, b: Value) -> None:
    """Check what the library of a GPU takes: rows of the left and columns of the right matrix lie side by side.

    Raises:
        Decline: eager raises there.
    """
    if a.dtype not in FLOAT8 or b.dtype not in FLOAT8 or {a.dtype, b.dtype} == {f8e5m2} or a.device != b.device:
        raise Decline("dtypes")
    if a.type.rank != 2 or b.type.rank != 2 or a.shape[1] != b.shape[0] or 0 in (*a.shape, *b.shape):
        raise Decline("eager raises, or there is nothing to multiply")
    if imp.strides(a)[1] != 1 or imp.strides(b)[0] != 1:
        raise Decline("eager raises on GPUs")
    if any(size % _STEP for size in (*b.shape, imp.strides(a)[0], imp.strides(b)[1])):
        raise Decline("eager raises on GPUs")


def _scale(imp: Importer, scale: Value, a: Value, b: Value, at: int) -> Value:
    """A scale with two dims.

    Raises:
        Decline: of blocks, or in another dtype.
    """
    if scale.dtype != f32 or scale.device != a.device:
        raise Decline("scales of another kind")
    if all(size == 1 for size in scale.shape):
        return imp.reshape(scale, (1, 1))
    if scale.shape != ((a.shape[0], 1), (1, b.shape[1]))[at]:
        raise Decline("scales of blocks")
    return scale
