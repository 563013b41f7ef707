"""Import rules of the gradients of upsampling and of the paddings that read the input again.

Each element of the input gathers from the elements that were computed from it: nothing is scattered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.frontend.aten.activation import floats
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.memory_format import like_input
from graphc.frontend.aten.rearrange import among_zeros
from graphc.frontend.aten.registry import Decline, rule
from graphc.frontend.aten.resampling import LINEAR, linear_ratio, nearest_scale, pads, scales_of
from graphc.ir.graph import Value
from graphc.ops.composite import static, wide
from graphc.ops.resampling import Line, repeats

MOST_READERS = 16
"""Result pixels per source pixel, along one dim, up to which the sum over them is written out."""


def _check(grad: Value, output_size: Sequence[int], input_size: Sequence[int]) -> None:
    floats(grad)
    if len(input_size) != len(output_size) + 2 or grad.shape != (*input_size[:2], *output_size) or not grad.type.numel:
        raise Decline("eager raises, or nothing to do")


def _nearest_backward(
    imp: Importer,
    exact: bool,
    grad: Value,
    output_size: Sequence[int],
    input_size: Sequence[int],
    scales: Sequence[float | None],
) -> Value:
    """The sum over the pixels that repeat one of the input, where all are repeated as often; else the library's."""
    _check(grad, output_size, input_size)
    windows: list[int] = []
    for size, count, scale in zip(input_size[2:], output_size, scales, strict=True):
        if not repeats(size, count, nearest_scale(size, count, scale), exact):
            raise Decline("the library's loops: pixels of the input are repeated unevenly")
        windows += (size, count // size)
    apart = imp.reshape(grad, (*input_size[:2], *windows))
    total = imp.b.op("sum", apart, dims=tuple(range(3, 3 + 2 * len(output_size), 2)), keepdim=False)
    return like_input(imp, total, grad)


@rule(*(f"aten.upsample_nearest{dims}d_backward.default" for dims in (1, 2, 3)))
def upsample_nearest_backward(
    imp: Importer,
    grad_output: Value,
    output_size: Sequence[int],
    input_size: Sequence[int],
    *scales: float | None,
    **named: float | None,
) -> Value:
    return _nearest_backward(imp, False, grad_output, output_size, input_size, scales_of(output_size, scales, named))


@rule(*(f"aten._upsample_nearest_exact{dims}d_backward.default" for dims in (1, 2, 3)))
def upsample_nearest_exact_backward(
    imp: Importer,
    grad_output: Value,
    output_size: Sequence[int],
    input_size: Sequence[int],
    *scales: float | None,
    **named: float | None,
) -> Value:
    return _nearest_backward(imp, True, grad_output, output_size, input_size, scales_of(output_size, scales, named))


@rule(*(f"aten.upsample_{name}_backward.default" for name in LINEAR))
def upsample_linear_backward(
    imp: Importer,
    grad_output: Value,
    output_size: Sequence[int],
    input_size: Sequence[int],
    align_corners: bool,
    *scales: float | None,
    **named: float | None,
) -> Value:
    _check(grad_output, output_size, input_size)
    ratio = []
    for size, count, scale in zip(input_size[2:], output_size, scales_of(output_size, scales, named), strict=True):
        pair = linear_ratio(size, count, scale, align_corners)
        if Line(size, count, pair, align_corners).most_readers > MOST_READERS:
            raise Decline("many result pixels per source pixel")
        ratio.append(pair)
    attrs = {"size": tuple(input_size[2:]), "ratio": tuple(ratio), "align_corners": align_corners}
    return like_input(imp, imp.b.op("upsample_linear_backward", grad_output, **attrs), grad_output)


def _reflected(imp: Importer, part: Value, dim: int, size: int, is_low: bool) -> Value:
    """Gradients of elements before (or behind) the input, at the elements that they mirror."""
    width = static(part.shape, "padding")[dim]
    return among_zeros(imp, imp.b.op("flip", part, dims=(dim,)), dim, 1 if is_low else size - 1 - width, size)


def _replicated(imp: Importer, part: Value, dim: int, size: int, is_low: bool) -> Value:
    """Gradients of elements before (or behind) the input, at the first (or last) element."""
    total = imp.b.op("sum", part, dims=(dim,), keepdim=True)
    return among_zeros(imp, total, dim, 0 if is_low else size - 1, size)


def _pad_backward(
    imp: Importer, grad: Value, self: Value, padding: Sequence[int], edge: Callable[..., Value], reflects: bool
) -> Value:
    floats(grad)
    low, high = pads(self, padding, reflects)
    sizes = static(self.shape, "padding")
    padded = tuple(size + before + after for size, before, after in zip(sizes, low, high, strict=True))
    if grad.shape != padded or grad.dtype != self.dtype:
        raise Decline("eager raises")
    total = wide(imp.b, grad)
    for dim, (size, before, after) in enumerate(zip(sizes, low, high, strict=True)):
        first, last = max(before, 0), padded[dim] - max(after, 0)
        if first >= last:
            raise Decline("nothing of the input is left between the edges")
        result = among_zeros(imp, imp.slice(total, dim, first, last), dim, max(-before, 0), size)
        for width, start, is_low in ((before, 0, True), (after, last, False)):
            if width > 0:
                part = imp.slice(total, dim, start, start + width)
                result = imp.b.op("add", result, edge(imp, part, dim, size, is_low))
        total = result
    found = imp.cast(total, grad.dtype)
    assert isinstance(found, Value)
    return like_input(imp, found, self)


@rule(*(f"aten.reflection_pad{dims}d_backward.default" for dims in (1, 2, 3)))
def reflection_pad_backward(imp: Importer, grad_output: Value, self: Value, padding: Sequence[int]) -> Value:
    return _pad_backward(imp, grad_output, self, padding, _reflected, reflects=True)


@rule(*(f"aten.replication_pad{dims}d_backward.default" for dims in (1, 2, 3)))
def replication_pad_backward(imp: Importer, grad_output: Value, self: Value, padding: Sequence[int]) -> Value:
    return _pad_backward(imp, grad_output, self, padding, _replicated, reflects=False)
