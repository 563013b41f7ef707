"""Import rules of convolution. The bias stays inside: the library adds it for nothing."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.frontend.aten import layout
from graphc.frontend.aten.activation import floats
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.memory_format import suggested, suggests_channels_last, with_format
from graphc.frontend.aten.registry import Decline, Erroneous, rule
from graphc.ir.graph import Value
from graphc.ops.convolution import library_convolves


def per_dim(values: Sequence[int], rank: int) -> tuple[int, ...]:
    """One number per spatial dim from a list of them, or of one for all."""
    return tuple(values) * rank if len(values) == 1 else tuple(values)


@rule("aten.convolution.default")
def convolution(
    imp: Importer,
    input: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    given = [input, weight] if bias is None else [input, weight, bias]
    floats(*given)
    if any(value.dtype != input.dtype for value in given) or any(0 in value.shape for value in given):
        raise Decline("eager raises, or an empty batch")
    rank = input.type.rank - 2
    if min(*stride, *dilation, groups) <= 0 or min(*padding, *output_padding) < 0:
        raise Erroneous("convolution geometry")
    if transposed and any(
        extra >= max(step, spread)
        for extra, step, spread in zip(
            per_dim(output_padding, rank), per_dim(stride, rank), per_dim(dilation, rank), strict=False
        )
    ):
        raise Erroneous("convolution geometry")
    out = imp.b.multi(
        "convolution",
        given,
        {
            "stride": per_dim(stride, rank),
            "padding": per_dim(padding, rank),
            "dilation": per_dim(dilation, rank),
            "transposed": transposed,
            "output_padding": per_dim(output_padding, rank),
            "groups": groups,
            "bias": bias is not None,
        },
    ).result
    if rank == 1:
        return imp.with_strides(out, _strides_1d(imp, input, weight, out))
    if input.device != "cpu":
        return with_format(imp, out, suggested(imp, input, weight))
    return with_format(imp, out, suggested(imp, input, weight) and (rank == 2 or library_convolves(input.dtype)))


def _strides_1d(imp: Importer, input: Value, weight: Value, out: Value) -> layout.Shape:
    """Strides of the result of a convolution with one spatial dim, which eager makes two of.

    Source of the rules: `_convolution` of ATen/native/Convolution.cpp. It makes the input contiguous, so that a
    permuted one is not taken for channels_last, but the weight stays as it is, and so does an input that is contiguous
    by its dims of size 1 alone.
    """

    def is_last(shape: layout.Shape, strides: layout.Shape) -> bool:
        along = (shape[2] * strides[2], strides[2])
        return suggests_channels_last((*shape[:2], 1, shape[2]), (*strides[:2], *along))

    shapes: list[layout.Shape] = [input.shape, weight.shape, out.shape]  # type: ignore[list-item]  # static
    (read, of_weight, made), lies = shapes, imp.strides(input)
    if not layout.is_contiguous(read, lies):
        lies = layout.contiguous(read)
    if is_last(read, lies) or is_last(of_weight, imp.strides(weight)):
        return (made[1] * made[2], 1, made[1])
    return layout.contiguous(made)
