"""Gradients of upsampling: each source pixel gathers from the result pixels that were computed from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from graphc.errors import InvalidGraphError
from graphc.ir.graph import Attr, Builder, Op, Operand, Value
from graphc.ir.sizes import bound
from graphc.ir.types import TensorType
from graphc.ops import composite
from graphc.ops.registry import Kind, OpDef, register
from graphc.ops.resampling import Line, linear_type, pixel_numbers

UNROLLED_READERS = 16
"""Result pixels per source pixel, along one dim, up to which the sum over them is written out."""


def _type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    grad = composite.floating(operands[0], "upsample_linear_backward")
    image = grad.type.with_shape((*grad.shape[:2], *attrs["size"]))
    (resized,) = linear_type([Value("image", image)], {**attrs, "size": grad.shape[2:]})
    if resized.shape != grad.shape:
        raise InvalidGraphError(f"upsample_linear_backward to {attrs['size']} of {grad.type}")
    return [image]


def _expand(b: Builder, op: Op) -> Sequence[Value]:
    grad = composite.tensor(op.operands[0], op.name)
    total, counts = composite.wide(b, grad), composite.static(grad.shape, op.name)
    for dim in reversed(range(2, grad.type.rank)):
        size, ratio = op.attrs["size"][dim - 2], op.attrs["ratio"][dim - 2]
        if size != counts[dim]:
            total = _gathered(b, total, dim, Line(size, counts[dim], ratio, op.attrs["align_corners"]))
            composite.lay_out_like(total, op.result)
    return [composite.cast(b, total, grad.dtype)]


def _gathered(b: Builder, grad: Value, dim: int, line: Line) -> Value:
    """The gradient along one dim: of each source pixel the sum over its readers of gradient times weight."""
    pixel = pixel_numbers(b, line, line.size, grad.device)
    start, most = line.readers(b, pixel)
    if most > UNROLLED_READERS:
        readers = b.op("iota", size=most, start=0, step=1, dtype=pixel.dtype, device=grad.device)
        pixel, start = (composite.reshape(b, value, (line.size, 1)) for value in (pixel, start))
        terms = _terms(b, grad, dim, line, pixel, b.op("add", start, readers))
        return b.op("sum", terms, dims=(dim + 1,), keepdim=False)
    total: Value | None = None
    for number in range(bound(most)):
        term = _terms(b, grad, dim, line, pixel, b.op("add", start, number) if number else start)
        total = term if total is None else b.op("add", total, term)
    assert total is not None
    return total


def _terms(b: Builder, grad: Value, dim: int, line: Line, pixel: Value, reader: Value) -> Value:
    """What source pixels get from result pixels: gradient times weight, 0 from those that do not read them."""
    low, high, fraction = line.pixels(b, reader, grad.dtype)
    is_low, is_high = b.op("eq", low, pixel), b.op("eq", high, pixel)
    below = b.op("where", is_low, b.op("sub", 1.0, fraction), 0.0)
    weight = b.op("add", below, b.op("where", is_high, fraction, 0.0))
    reads = b.op("logical_and", b.op("lt", reader, line.count), b.op("logical_or", is_low, is_high))
    given = b.op("take", grad, b.op("minimum", reader, line.count - 1), dim=dim, check="inside")
    spread = (*reader.shape, *(1,) * (grad.type.rank - 1 - dim))
    product = b.op("mul", given, composite.reshape(b, weight, spread))
    return b.op("where", composite.reshape(b, reads, spread), product, 0.0)


def _reference(
    grad: torch.Tensor, size: Sequence[int], ratio: Sequence[tuple[int, int]], align_corners: bool
) -> torch.Tensor:
    """By the weights of each result pixel, as matrices."""
    total = grad if grad.dtype == torch.float64 else grad.float()
    for dim, (pixels, pair) in enumerate(zip(size, ratio, strict=True), 2):
        count = grad.shape[dim]
        if pixels == count:
            continue
        first, step, under = Line(pixels, count, tuple(pair), align_corners).place  # type: ignore[arg-type]
        place = (torch.arange(count) * step + first).clamp(min=0)
        low = (place // under).clamp(max=pixels - 1)
        fraction = (place - low * under).clamp(max=under).to(total.dtype) / under
        weights = torch.zeros(pixels, count, dtype=total.dtype)
        weights[low, torch.arange(count)] += 1 - fraction
        weights[(low + 1).clamp(max=pixels - 1), torch.arange(count)] += fraction
        total = torch.movedim(torch.movedim(total, dim, -1) @ weights.t().to(total.device), -1, dim)
    return total.to(grad.dtype)


register(
    OpDef(
        "upsample_linear_backward",
        Kind.COMPOSITE,
        "Gradients of the pixels that upsample_linear gives to those of its input, of the spatial size `size`. ratio, "
        "align_corners: as there.",
        _type,
        _reference,
        expand=_expand,
    )
)
