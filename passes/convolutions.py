"""Convolutions as products of matrices whose left operand is never stored: implicit matmul, for the templates of GPUs.

    %y = convolution(%x, %w) {stride=[2, 2], padding=[1, 1], ...}             x (N, C, H, W), w (O, C, R, S)
      ->
    %0 = pad(permute(%x)) {low=[0, 1, 1, 0], ...}                             (N, H + 2, W + 2, C)
    %1 = as_strided(%0)                                                       (N, P, Q, R, S, C): a window per pixel
    %2 = matmul(reshape(%1), reshape(permute(%w)))                            (N * P * Q, R * S * C) @ (R * S * C, O)
    %y = permute(reshape(%2))                                                 (N, O, P, Q)

All of it but the product is index arithmetic, so the kernel reads the image where it lies. What reads the result joins
the kernel as for any product. Gradients are products of the same kind: that of the weight sums over pixels, that of the
image walks windows of the cotangent, which for a stride s lies among zeros, every s-th pixel. Zeros are not read, but
multiplied: s times s as many operations as the library needs, which the choice of templates counts. Not done:
transposed convolutions, groups (a group has few channels), and images whose channels do not lie side by side, since
accesses would be narrow.

Source: S. Chetlur et al., cuDNN: Efficient primitives for deep learning, arXiv:1410.0759, 2014.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from graphc.ir.graph import Attr, Graph, Op, Value
from graphc.passes.base import PassContext, PassResult, Rewriter
from graphc.passes.layout import int_shape, wanted_strides

_BACKWARD = "aten.convolution_backward.default"


@dataclass(frozen=True)
class ConvolutionsAsProducts:
    """See the module. It does nothing without templates."""

    name: ClassVar[str] = "convolutions-as-products"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        """Rewrite every convolution, and every pair of gradients of one, that the templates take."""
        templates = ctx.templates
        if templates is None:
            return PassResult(False)

        def rewrite(rewriter: Rewriter, op: Op) -> Sequence[Value] | None:
            found = _convolution(op)
            if found is None:
                return None
            if not templates.takes_convolution(op, found.flops, found.moved, found.is_wide):
                return None
            return found.gradients(rewriter) if op.name == "extern" else (found.product(rewriter),)

        return Rewriter(graph, ctx).run(rewrite, ("convolution", "extern"))


def _convolution(op: Op) -> _Convolution | None:
    """A convolution, or its gradients, of which products can be made."""
    values = list(op.inputs)
    if op.name == "convolution":
        image, weight, *bias = values
        sizes, attrs = int_shape(op.results[0]), op.attrs
        found = _Convolution(op, image, weight, op.results[0], bias, *_geometry(attrs))
        seen = [image]
    elif op.attrs["op"] == _BACKWARD and not op.attrs.get("mutates") and len(values) == 3:
        cotangent, image, weight = values
        sizes = int_shape(cotangent)
        names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
        attrs = dict(zip(names, op.attrs["args"][4:10], strict=True))
        found = _Convolution(op, image, weight, cotangent, [], *_geometry(attrs))
        seen = [image, cotangent]
        if found.gives_image and min(found.around) < 0:
            return None
    else:
        return None
    if attrs["transposed"] or attrs["groups"] != 1 or image.type.rank not in (3, 4, 5):
        return None
    if 0 in (*int_shape(image), *int_shape(weight), *sizes):
        return None
    return found if all(map(_has_channels_last, seen)) else None


def _geometry(attrs: Mapping[str, Attr]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(attrs[name]) for name in ("stride", "padding", "dilation"))


def _has_channels_last(image: Value) -> bool:
    sizes = int_shape(image)
    return sizes[1] == 1 or math.prod(sizes[2:]) == 1 or wanted_strides(image)[1] == 1


@dataclass(frozen=True)
class _Convolution:
    op: Op
    image: Value
    weight: Value
    result: Value
    bias: Sequence[Value]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def window(self) -> tuple[int, ...]:
        return int_shape(self.weight)[2:]

    @property
    def pixels(self) -> tuple[int, ...]:
        return int_shape(self.result)[2:]

    @property
    def flops(self) -> int:
        """Operations of its products, those on zeros included."""
        count = 2 * math.prod(int_shape(self.result)) * math.prod(int_shape(self.weight)[1:])
        if self.op.name != "extern":
            return count
        spread = count * math.prod(int_shape(self.image)[2:]) // math.prod(self.pixels)
        return (spread if self.gives_image else 0) + (count if self.op.attrs["args"][10][1] else 0)

    @property
    def gives_image(self) -> bool:
        """Whether the gradient of the image is wanted."""
        return bool(self.op.attrs["args"][10][0])

    @property
    def moved(self) -> int:
        """Bytes of all operands and results."""
        values = (*self.op.inputs, *self.op.results)
        return sum(math.prod(int_shape(value)) * value.dtype.itemsize for value in values)

    @property
    def is_wide(self) -> bool:
        """Whether the channels of a pixel are whole accesses of 16 bytes, in the image and in the result."""
        return all(int_shape(value)[1] * value.dtype.itemsize % 16 == 0 for value in (self.image, self.result))

    @property
    def around(self) -> tuple[int, ...]:
        """What is to be padded with to make the gradient of the image a convolution."""
        spatial = zip(self.window, self.dilation, self.padding, strict=True)
        return tuple((size - 1) * apart - low for size, apart, low in spatial)

    def product(self, rewriter: Rewriter) -> Value:
        """The convolution."""
        rank, outputs = len(self.window), int_shape(self.weight)[0]
        left = _windows(rewriter, self.image, self.pixels, self.window, self.stride, self.padding, self.dilation)
        right = rewriter.op("permute", self.weight, dims=(*range(2, rank + 2), 1, 0))
        right = rewriter.op("reshape", right, shape=(left.shape[1], outputs))
        y = rewriter.op("matmul", left, right)
        if self.bias:
            y = rewriter.op("add", y, self.bias[0])
        return _channels_second(rewriter, y, (int_shape(self.image)[0], *self.pixels))

    def gradients(self, rewriter: Rewriter) -> list[Value]:
        """Those of the image, the weight and the bias that the call gives."""
        rank, (outputs, channels) = len(self.window), int_shape(self.weight)[:2]
        spatial = tuple(range(2, rank + 2))
        wanted = self.op.attrs["args"][10]
        results: list[Value] = []
        if self.gives_image:
            ones, sizes = (1,) * rank, int_shape(self.image)[2:]
            spread = _among_zeros(rewriter, self.result, self.stride)
            left = _windows(rewriter, spread, sizes, self.window, ones, self.around, self.dilation)
            right = rewriter.op("permute", rewriter.op("flip", self.weight, dims=spatial), dims=(*spatial, 0, 1))
            right = rewriter.op("reshape", right, shape=(left.shape[1], channels))
            y = rewriter.op("matmul", left, right)
            results.append(_channels_second(rewriter, y, (int_shape(self.image)[0], *sizes)))
        if wanted[1]:
            left = rewriter.op("permute", self.result, dims=(1, 0, *spatial))
            right = _windows(rewriter, self.image, self.pixels, self.window, self.stride, self.padding, self.dilation)
            left = rewriter.op("reshape", left, shape=(outputs, right.shape[0]))
            y = rewriter.op("matmul", left, right)
            results.append(_channels_second(rewriter, y, (outputs, *self.window)))
        if wanted[2]:
            results.append(rewriter.op("sum", self.result, dims=(0, *spatial), keepdim=False))
        return results


def _windows(
    rewriter: Rewriter, image: Value, pixels: Sequence[int], window: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int],
) -> Value:  # fmt: skip
    """A row per pixel of a result: what it sees of the image, channels innermost.

    There is at least `padding` behind the image, too, and as much as the pixels look at.
    """
    count, channels, *extents = int_shape(image)
    x = rewriter.op("permute", image, dims=(0, *range(2, image.type.rank), 1))
    spatial = zip(pixels, window, stride, padding, dilation, extents, strict=True)
    seen = [(p - 1) * move + (size - 1) * apart + 1 - low - n for p, size, move, low, apart, n in spatial]
    behind = [max(low, more) for low, more in zip(padding, seen, strict=True)]
    if any(behind):
        x = rewriter.op("pad", x, low=(0, *padding, 0), high=(0, *behind, 0), value=0.0)
    sizes = int_shape(x)
    if any(size != 1 for size in (*window, *stride)) or sizes[1:-1] != tuple(pixels):
        steps = [math.prod(sizes[dim + 1 :]) for dim in range(1, len(sizes) - 1)]
        strides = (
            math.prod(sizes[1:]),
            *(step * move for step, move in zip(steps, stride, strict=True)),
            *(step * apart for step, apart in zip(steps, dilation, strict=True)),
            1,
        )
        x = rewriter.op("as_strided", x, shape=(count, *pixels, *window, channels), strides=strides, offset=0)
    return rewriter.op("reshape", x, shape=(count * math.prod(pixels), math.prod(window) * channels))


def _among_zeros(rewriter: Rewriter, image: Value, stride: Sequence[int]) -> Value:
    """An image with its pixels `stride` apart, and zeros between them and behind the last."""
    if all(step == 1 for step in stride):
        return image
    count, channels, *extents = int_shape(image)
    rank = len(extents)
    order = (0, *range(2, rank + 2), 1)
    x = rewriter.op("permute", image, dims=order)
    x = rewriter.op("reshape", x, shape=(count, *(n for extent in extents for n in (extent, 1)), channels))
    behind = (0, *(n for step in stride for n in (0, step - 1)), 0)
    x = rewriter.op("pad", x, low=(0,) * len(behind), high=behind, value=0.0)
    sizes = tuple(extent * step for extent, step in zip(extents, stride, strict=True))
    x = rewriter.op("reshape", x, shape=(count, *sizes, channels))
    return rewriter.op("permute", x, dims=(0, rank + 1, *range(1, rank + 1)))


def _channels_second(rewriter: Rewriter, rows: Value, sizes: Sequence[int]) -> Value:
    y = rewriter.op("reshape", rows, shape=(*sizes, math.prod(int_shape(rows)) // math.prod(sizes)))
    return rewriter.op("permute", y, dims=(0, len(sizes), *range(1, len(sizes))))
