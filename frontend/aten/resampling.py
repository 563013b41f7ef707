"""Import rules of upsampling and of the paddings that read the input again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from graphc.frontend.aten.activation import floats
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.memory_format import like_input
from graphc.frontend.aten.registry import Decline, rule
from graphc.frontend.aten.stated import stated_call
from graphc.ir.graph import Value
from graphc.ir.types import f64
from graphc.ops.composite import static
from graphc.ops.resampling import repeats

LINEAR = ("linear1d", "bilinear2d", "trilinear3d")


def scales_of(
    output_size: Sequence[int], scales: Sequence[float | None], named: Mapping[str, float | None]
) -> list[float | None]:
    """One scale per dim, by position or by name, as `scales` or `scales_d`, `scales_h`, `scales_w`."""
    count = len(output_size)
    names = ["scales"] if count == 1 else [f"scales_{dim}" for dim in "dhw"][3 - count :]
    return [scales[n] if n < len(scales) else named.get(name) for n, name in enumerate(names)]


def _sizes(self: Value, output_size: Sequence[int]) -> tuple[int, ...]:
    floats(self)
    if self.type.rank != len(output_size) + 2 or self.type.numel == 0 or min(output_size) < 1:
        raise Decline("eager raises, or nothing to do")
    return tuple(output_size)


def nearest_scale(size: int, count: int, given: float | None) -> float:
    """Source pixels per result pixel, in float32, as eager computes it."""
    import numpy as np  # 80 ms, which programs without resampling need not pay

    if given is not None and given > 0:
        return float(np.float32(1.0 / given))
    return float(np.float32(size) / np.float32(count))


def _nearest(imp: Importer, exact: bool, self: Value, output_size: Sequence[int], scales: list[float | None]) -> Value:
    sizes = _sizes(self, output_size)
    given = static(self.shape[2:], "upsampling")
    ratios = tuple(nearest_scale(s, c, g) for s, c, g in zip(given, sizes, scales, strict=True))
    attrs = {"size": sizes, "scale": ratios, "exact": exact}
    whole = all(repeats(s, c, r, exact) for s, c, r in zip(given, sizes, ratios, strict=True))
    if not whole and (self.dtype == f64 or self.device == "cpu"):
        # eager finds the pixels of float64 images in float64; on a CPU its loops read single pixels quicker
        overload = f"aten.{'_upsample_nearest_exact' if exact else 'upsample_nearest'}{len(sizes)}d.default"
        (result,) = stated_call(imp, overload, [self, sizes, *scales], imp.b.infer("upsample_nearest", [self], attrs))
    else:
        result = imp.b.op("upsample_nearest", self, **attrs)
    return like_input(imp, result, self)


@rule(*(f"aten.upsample_nearest{dims}d.default" for dims in (1, 2, 3)))
def upsample_nearest(
    imp: Importer, self: Value, output_size: Sequence[int], *scales: float | None, **named: float | None
) -> Value:
    return _nearest(imp, False, self, output_size, scales_of(output_size, scales, named))


@rule(*(f"aten._upsample_nearest_exact{dims}d.default" for dims in (1, 2, 3)))
def upsample_nearest_exact(
    imp: Importer, self: Value, output_size: Sequence[int], *scales: float | None, **named: float | None
) -> Value:
    return _nearest(imp, True, self, output_size, scales_of(output_size, scales, named))


def linear_ratio(size: int, count: int, given: float | None, align_corners: bool) -> tuple[int, int]:
    """Source pixels per result pixel of linear interpolation, exactly."""
    if align_corners:
        found = Fraction(size - 1, count - 1) if count > 1 else Fraction(0)
    elif given is not None and given > 0:
        found = Fraction(1.0 / given).limit_denominator(1 << 26)  # places stay in 63 bits, and exact beyond float64
    else:
        found = Fraction(size, count)
    return found.numerator, found.denominator


@rule(*(f"aten.upsample_{name}.default" for name in LINEAR))
def upsample_linear(
    imp: Importer,
    self: Value,
    output_size: Sequence[int],
    align_corners: bool,
    *scales: float | None,
    **named: float | None,
) -> Value:
    sizes = _sizes(self, output_size)
    given = zip(static(self.shape[2:], "upsampling"), sizes, scales_of(sizes, scales, named), strict=True)
    ratio = tuple(linear_ratio(size, count, scale, align_corners) for size, count, scale in given)
    result = imp.b.op("upsample_linear", self, size=sizes, ratio=ratio, align_corners=align_corners)
    return like_input(imp, result, self)


def pads(self: Value, padding: Sequence[int], reflects: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """New elements before and after each dim, from ATen's list, which starts at the last dim.

    Raises:
        Decline: eager refuses the call.
    """
    lead = self.type.rank - len(padding) // 2
    if lead not in (1, 2) or self.type.numel == 0:
        raise Decline("eager raises, or nothing to do")
    low = (0,) * lead + tuple(padding[-2::-2])
    high = (0,) * lead + tuple(padding[::-2])
    for size, before, after in zip(static(self.shape, "padding"), low, high, strict=True):
        if size + before + after < 1 or (reflects and (before or after) and max(before, after) >= size):
            raise Decline("eager raises")
    return low, high


@rule(*(f"aten.reflection_pad{dims}d.default" for dims in (1, 2, 3)))
def reflection_pad(imp: Importer, self: Value, padding: Sequence[int]) -> Value:
    low, high = pads(self, padding, reflects=True)
    if self.dtype.kind in ("bool", "complex"):
        raise Decline("eager raises, or complex numbers")
    return like_input(imp, imp.b.op("pad_reflect", self, low=low, high=high), self)


@rule(*(f"aten.replication_pad{dims}d.default" for dims in (1, 2, 3)))
def replication_pad(imp: Importer, self: Value, padding: Sequence[int]) -> Value:
    low, high = pads(self, padding, reflects=False)
    floats(self)
    return like_input(imp, imp.b.op("pad_replicate", self, low=low, high=high), self)
