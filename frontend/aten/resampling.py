"""Import rules of upsampling and of the paddings that read the input again."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.frontend.aten.activation import floats
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.memory_format import like_input
from graphc.frontend.aten.registry import Decline, rule
from graphc.frontend.aten.stated import stated_call
from graphc.ir.graph import Value
from graphc.ir.types import f64
from graphc.ops.composite import static
from graphc.ops.resampling import repeats


def _sizes(self: Value, output_size: Sequence[int], spatial: int) -> tuple[int, ...]:
    floats(self)
    if self.type.rank != spatial + 2 or len(output_size) != spatial or self.type.numel == 0 or min(output_size) < 1:
        raise Decline("eager raises, or nothing to do")
    return tuple(output_size)


def _scale(size: int, count: int, given: float | None, wide: bool) -> float:
    """Source pixels per result pixel, in the precision eager computes it in."""
    import numpy as np  # 80 ms, which programs without resampling need not pay

    number = np.float64 if wide else np.float32
    if given is not None and given > 0:
        return float(number(1.0 / given))
    return float(number(size) / number(count))


def _nearest(
    imp: Importer, overload: str, self: Value, output_size: Sequence[int], scales: Sequence[float | None]
) -> Value:
    sizes, exact = _sizes(self, output_size, len(scales)), "exact" in overload
    given = static(self.shape[2:], "upsampling")
    ratios = tuple(_scale(s, c, g, False) for s, c, g in zip(given, sizes, scales, strict=True))
    attrs = {"size": sizes, "scale": ratios, "exact": exact}
    whole = all(repeats(s, c, r, exact) for s, c, r in zip(given, sizes, ratios, strict=True))
    if not whole and (self.dtype == f64 or _library_wins(self)):
        # eager finds the pixels of float64 images in float64
        (result,) = stated_call(imp, overload, [self, sizes, *scales], imp.b.infer("upsample_nearest", [self], attrs))
    else:
        result = imp.b.op("upsample_nearest", self, **attrs)
    return like_input(imp, result, self)


def _library_wins(self: Value) -> bool:
    """On CPU reading pixels at computed places is slower than ATen's loops; elsewhere it fuses with its consumers."""
    return self.device == "cpu"


@rule("aten.upsample_nearest1d.default")
def upsample_nearest1d(imp: Importer, self: Value, output_size: Sequence[int], scales: float | None = None) -> Value:
    return _nearest(imp, "aten.upsample_nearest1d.default", self, output_size, (scales,))


@rule("aten._upsample_nearest_exact1d.default")
def upsample_nearest_exact1d(
    imp: Importer, self: Value, output_size: Sequence[int], scales: float | None = None
) -> Value:
    return _nearest(imp, "aten._upsample_nearest_exact1d.default", self, output_size, (scales,))


@rule("aten.upsample_nearest2d.default")
def upsample_nearest2d(
    imp: Importer,
    self: Value,
    output_size: Sequence[int],
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:
    return _nearest(imp, "aten.upsample_nearest2d.default", self, output_size, (scales_h, scales_w))


@rule("aten._upsample_nearest_exact2d.default")
def upsample_nearest_exact2d(
    imp: Importer,
    self: Value,
    output_size: Sequence[int],
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:
    return _nearest(imp, "aten._upsample_nearest_exact2d.default", self, output_size, (scales_h, scales_w))


@rule("aten.upsample_nearest3d.default")
def upsample_nearest3d(
    imp: Importer,
    self: Value,
    output_size: Sequence[int],
    scales_d: float | None = None,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:
    return _nearest(imp, "aten.upsample_nearest3d.default", self, output_size, (scales_d, scales_h, scales_w))


def _nearest_backward(
    imp: Importer,
    exact: bool,
    grad: Value,
    output_size: Sequence[int],
    input_size: Sequence[int],
    scales: Sequence[float | None],
) -> Value:
    """The sum over the pixels that repeat one of the input, where all are repeated as often; else the library's."""
    floats(grad)
    lead, given = tuple(input_size[:2]), tuple(input_size[2:])
    if len(given) != len(scales) or grad.shape != (*lead, *output_size) or grad.type.numel == 0:
        raise Decline("eager raises, or nothing to do")
    windows: list[int] = []
    for size, count, scale in zip(given, output_size, scales, strict=True):
        if not repeats(size, count, _scale(size, count, scale, False), exact):
            raise Decline("the library's loops: pixels of the input are repeated unevenly")
        windows += (size, count // size)
    apart = imp.reshape(grad, (*lead, *windows))
    total = imp.b.op("sum", apart, dims=tuple(range(3, 3 + 2 * len(given), 2)), keepdim=False)
    return like_input(imp, total, grad)


@rule("aten.upsample_nearest1d_backward.default")
def upsample_nearest1d_backward(
    imp: Importer,
    grad_output: Value,
    output_size: Sequence[int],
    input_size: Sequence[int],
    scales: float | None = None,
) -> Value:
    return _nearest_backward(imp, False, grad_output, output_size, input_size, (scales,))


@rule("aten._upsample_nearest_exact1d_backward.default")
def upsample_nearest_exact1d_backward(
    imp: Importer,
    grad_output: Value,
    output_size: Sequence[int],
    input_size: Sequence[int],
    scales: float | None = None,
) -> Value:
    return _nearest_backward(imp, True, grad_output, output_size, input_size, (scales,))


@rule("aten.upsample_nearest2d_backward.default", "aten.upsample_nearest3d_backward.default")
def upsample_nearest_backward(
    imp: Importer,
    grad_output: Value,
    output_size: Sequence[int],
    input_size: Sequence[int],
    *scales: float | None,
    **named: float | None,
) -> Value:
    return _nearest_backward(imp, False, grad_output, output_size, input_size, _all(output_size, scales, named))


@rule("aten._upsample_nearest_exact2d_backward.default", "aten._upsample_nearest_exact3d_backward.default")
def upsample_nearest_exact_backward(
    imp: Importer,
    grad_output: Value,
    output_size: Sequence[int],
    input_size: Sequence[int],
    *scales: float | None,
    **named: float | None,
) -> Value:
    return _nearest_backward(imp, True, grad_output, output_size, input_size, _all(output_size, scales, named))


def _all(
    output_size: Sequence[int], scales: Sequence[float | None], named: dict[str, float | None]
) -> list[float | None]:
    """One scale per dim, by position or by name, as `scales_d`, `scales_h`, `scales_w`."""
    count = len(output_size)
    names = [f"scales_{dim}" for dim in "dhw"][3 - count :]
    return [scales[n] if n < len(scales) else named.get(name) for n, name in enumerate(names)]


def _linear(
    imp: Importer,
    overload: str,
    self: Value,
    output_size: Sequence[int],
    align_corners: bool,
    scales: Sequence[float | None],
) -> Value:
    sizes = _sizes(self, output_size, len(scales))
    wide = self.dtype == f64
    ratios = []
    for size, count, given in zip(static(self.shape[2:], "upsampling"), sizes, scales, strict=True):
        if align_corners:
            ratios.append(_scale(size - 1, count - 1, None, wide) if count > 1 else 0.0)
        else:
            ratios.append(_scale(size, count, given, wide))
    attrs = {"size": sizes, "scale": tuple(ratios), "align_corners": align_corners}
    if _library_wins(self):
        types = imp.b.infer("upsample_linear", [self], attrs)
        (result,) = stated_call(imp, overload, [self, sizes, align_corners, *scales], types)
    else:
        result = imp.b.op("upsample_linear", self, **attrs)
    return like_input(imp, result, self)


@rule("aten.upsample_linear1d.default")
def upsample_linear1d(
    imp: Importer, self: Value, output_size: Sequence[int], align_corners: bool, scales: float | None = None
) -> Value:
    return _linear(imp, "aten.upsample_linear1d.default", self, output_size, align_corners, (scales,))


@rule("aten.upsample_bilinear2d.default")
def upsample_bilinear2d(
    imp: Importer,
    self: Value,
    output_size: Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:
    return _linear(imp, "aten.upsample_bilinear2d.default", self, output_size, align_corners, (scales_h, scales_w))


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
    return _linear(
        imp, "aten.upsample_trilinear3d.default", self, output_size, align_corners, (scales_d, scales_h, scales_w)
    )


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


def _padded(
    imp: Importer,
    kind: str,
    name: str,
    self: Value,
    padding: Sequence[int],
    low: tuple[int, ...],
    high: tuple[int, ...],
) -> Value:
    attrs = {"low": low, "high": high}
    if _library_wins(self):
        overload = f"aten.{kind}_pad{len(padding) // 2}d.default"
        (result,) = stated_call(imp, overload, [self, padding], imp.b.infer(name, [self], attrs))
    else:
        result = imp.b.op(name, self, **attrs)
    return like_input(imp, result, self)


@rule("aten.reflection_pad1d.default", "aten.reflection_pad2d.default", "aten.reflection_pad3d.default")
def reflection_pad(imp: Importer, self: Value, padding: Sequence[int]) -> Value:
    low, high = _pads(self, padding, len(padding) // 2)
    sizes = static(self.shape, "padding")
    if self.dtype.kind == "bool" or any(max(p) >= s for s, *p in zip(sizes, low, high, strict=True) if any(p)):
        raise Decline("eager raises")
    return _padded(imp, "reflection", "pad_reflect", self, padding, low, high)


@rule("aten.replication_pad1d.default", "aten.replication_pad2d.default", "aten.replication_pad3d.default")
def replication_pad(imp: Importer, self: Value, padding: Sequence[int]) -> Value:
    low, high = _pads(self, padding, len(padding) // 2)
    floats(self)
    return _padded(imp, "replication", "pad_replicate", self, padding, low, high)
