"""Import rules of upsampling and of the paddings that read the input again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphc.frontend.aten.activation import floats
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.memory_format import like_input
from graphc.frontend.aten.registry import Decline, rule
from graphc.ir.graph import Value
from graphc.ir.types import f64
from graphc.ops.composite import static


def _sizes(self: Value, output_size: Sequence[int], spatial: int) -> tuple[int, ...]:
    floats(self)
    if self.type.rank != spatial + 2 or len(output_size) != spatial or self.type.numel == 0 or min(output_size) < 1:
        raise Decline("eager raises, or nothing to do")
    return tuple(output_size)


def _scale(size: int, count: int, given: float | None, wide: bool) -> float:
    """Source pixels per result pixel, in the precision eager computes it in."""
    number = np.float64 if wide else np.float32
    if given is not None and given > 0:
        return float(number(1.0 / given))
    return float(number(size) / number(count))


def _nearest(
    imp: Importer, self: Value, output_size: Sequence[int], scales: Sequence[float | None], exact: bool
) -> Value:
    sizes = _sizes(self, output_size, len(scales))
    if self.dtype == f64:
        raise Decline("eager finds the pixels of float64 images in float64")
    ratios = tuple(_scale(s, c, g, False) for s, c, g in zip(self.shape[2:], sizes, scales, strict=True))  # type: ignore[arg-type]
    return like_input(imp, imp.b.op("upsample_nearest", self, size=sizes, scale=ratios, exact=exact), self)


@rule("aten.upsample_nearest1d.default")
def upsample_nearest1d(imp: Importer, self: Value, output_size: Sequence[int], scales: float | None = None) -> Value:
    return _nearest(imp, self, output_size, (scales,), False)


@rule("aten._upsample_nearest_exact1d.default")
def upsample_nearest_exact1d(
    imp: Importer, self: Value, output_size: Sequence[int], scales: float | None = None
) -> Value:
    return _nearest(imp, self, output_size, (scales,), True)


@rule("aten.upsample_nearest2d.default")
def upsample_nearest2d(
    imp: Importer,
    self: Value,
    output_size: Sequence[int],
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:
    return _nearest(imp, self, output_size, (scales_h, scales_w), False)


@rule("aten._upsample_nearest_exact2d.default")
def upsample_nearest_exact2d(
    imp: Importer,
    self: Value,
    output_size: Sequence[int],
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:
    return _nearest(imp, self, output_size, (scales_h, scales_w), True)


@rule("aten.upsample_nearest3d.default")
def upsample_nearest3d(
    imp: Importer,
    self: Value,
    output_size: Sequence[int],
    scales_d: float | None = None,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:
    return _nearest(imp, self, output_size, (scales_d, scales_h, scales_w), False)


def _linear(
    imp: Importer, self: Value, output_size: Sequence[int], align_corners: bool, scales: Sequence[float | None]
) -> Value:
    sizes = _sizes(self, output_size, len(scales))
    wide = self.dtype == f64
    ratios = []
    for size, count, given in zip(self.shape[2:], sizes, scales, strict=True):
        if align_corners:
            ratios.append(_scale(size - 1, count - 1, None, wide) if count > 1 else 0.0)  # type: ignore[arg-type]
        else:
            ratios.append(_scale(size, count, given, wide))  # type: ignore[arg-type]  # static shapes
    attrs = {"size": sizes, "scale": tuple(ratios), "align_corners": align_corners}
    return like_input(imp, imp.b.op("upsample_linear", self, **attrs), self)


@rule("aten.upsample_linear1d.default")
def upsample_linear1d(
    imp: Importer, self: Value, output_size: Sequence[int], align_corners: bool, scales: float | None = None
) -> Value:
    return _linear(imp, self, output_size, align_corners, (scales,))


@rule("aten.upsample_bilinear2d.default")
def upsample_bilinear2d(
    imp: Importer,
    self: Value,
    output_size: Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:
    return _linear(imp, self, output_size, align_corners, (scales_h, scales_w))


@rule("aten.upsample_trilinear3d.default")
def upsample_trilinear3d(
    imp: Importer,
    self: Value,
    output_size: Sequence[int],
    align_corners: bool,
    scales_d: float | None = None,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:
    return _linear(imp, self, output_size, align_corners, (scales_d, scales_h, scales_w))


def _pads(self: Value, padding: Sequence[int], spatial: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """New elements before and after each dim, from ATen's list, which starts at the last dim.

    Raises:
        Decline: eager refuses the call.
    """
    lead = self.type.rank - spatial
    if lead not in (1, 2) or len(padding) != 2 * spatial or self.type.numel == 0:
        raise Decline("eager raises, or nothing to do")
    low = (0,) * lead + tuple(padding[-2::-2])
    high = (0,) * lead + tuple(padding[::-2])
    if any(size + b + a < 1 for size, b, a in zip(static(self.shape, "padding"), low, high, strict=True)):
        raise Decline("eager raises")
    return low, high


@rule("aten.reflection_pad1d.default", "aten.reflection_pad2d.default", "aten.reflection_pad3d.default")
def reflection_pad(imp: Importer, self: Value, padding: Sequence[int]) -> Value:
    low, high = _pads(self, padding, len(padding) // 2)
    sizes = static(self.shape, "padding")
    if self.dtype.kind == "bool" or any(max(p) >= s for s, *p in zip(sizes, low, high, strict=True) if any(p)):
        raise Decline("eager raises")
    return like_input(imp, imp.b.op("pad_reflect", self, low=low, high=high), self)


@rule("aten.replication_pad1d.default", "aten.replication_pad2d.default", "aten.replication_pad3d.default")
def replication_pad(imp: Importer, self: Value, padding: Sequence[int]) -> Value:
    low, high = _pads(self, padding, len(padding) // 2)
    floats(self)
    return like_input(imp, imp.b.op("pad_replicate", self, low=low, high=high), self)
