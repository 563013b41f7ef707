"""Import rules of the gradients of pooling."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.frontend.aten.activation import floats
from graphc.frontend.aten.convolution import per_dim
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.memory_format import like_input
from graphc.frontend.aten.pooling import even_windows, window_attrs
from graphc.frontend.aten.registry import Decline, rule
from graphc.ir.graph import Attr, Value
from graphc.ir.types import i64
from graphc.ops.pooling_backward import is_unrolled, lines_of


def _max_pool_backward(
    imp: Importer,
    grad: Value,
    self: Value,
    indices: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    scattered: bool = False,
) -> Value:
    floats(grad, self)
    spatial = len(kernel)
    lead = self.type.rank - spatial
    if grad.dtype != self.dtype or lead not in (1, 2) or grad.shape != indices.shape or self.type.numel == 0:
        raise Decline("eager raises, or nothing to do")
    if indices.dtype is not i64 or grad.shape[:lead] != self.shape[:lead]:
        raise Decline("eager raises")
    attrs: dict[str, Attr] = {"kernel": tuple(kernel), "stride": tuple(stride), "padding": tuple(padding)}
    attrs |= {"size": self.shape[lead:], "scattered": scattered}
    return like_input(imp, imp.b.op("max_pool_backward", grad, indices, **attrs), self)


@rule("aten.max_pool2d_with_indices_backward.default", "aten.max_pool3d_with_indices_backward.default")
def max_pool_backward(
    imp: Importer,
    grad_output: Value,
    self: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Value,
) -> Value:
    spatial = 3 if max(len(kernel_size), len(stride), len(padding)) == 3 else 2
    kernel, edges = per_dim(kernel_size, spatial), per_dim(padding, spatial)
    has_holes = per_dim(dilation, spatial) != (1,) * spatial
    return _max_pool_backward(
        imp, grad_output, self, indices, kernel, per_dim(stride or kernel_size, spatial), edges, has_holes
    )


@rule("aten.adaptive_max_pool2d_backward.default")
def adaptive_max_pool2d_backward(imp: Importer, grad_output: Value, self: Value, indices: Value) -> Value:
    return _adaptive_max_pool_backward(imp, grad_output, self, indices, 2)


@rule("aten.adaptive_max_pool3d_backward.default")
def adaptive_max_pool3d_backward(imp: Importer, grad_output: Value, self: Value, indices: Value) -> Value:
    return _adaptive_max_pool_backward(imp, grad_output, self, indices, 3)


def _adaptive_max_pool_backward(imp: Importer, grad: Value, self: Value, indices: Value, spatial: int) -> Value:
    none = (0,) * spatial
    try:
        kernel = even_windows(self, grad.shape[-spatial:])  # type: ignore[arg-type]  # static
    except Decline:  # windows of different sizes
        one = (1,) * spatial
        return _max_pool_backward(imp, grad, self, indices, one, one, none, scattered=True)
    return _max_pool_backward(imp, grad, self, indices, kernel, kernel, none)


def _avg_pool_backward(imp: Importer, grad: Value, self: Value, attrs: dict[str, Attr]) -> Value:
    floats(grad, self)
    lead = self.type.rank - len(attrs["kernel"])
    lines = lines_of(self.shape[lead:], grad.shape[lead:], attrs)
    if grad.dtype != self.dtype or grad.type.rank != self.type.rank or grad.shape[:lead] != self.shape[:lead]:
        raise Decline("eager raises")
    if len(attrs["kernel"]) == 3 and grad.dtype.is_reduced:
        raise Decline("eager raises")
    if not is_unrolled(lines) or (grad.device == "cpu" and any(line.reach > 1 < line.stride for line in lines)):
        raise Decline("the library's loops: windows too large to be written out, or that overlap in larger steps")
    return like_input(imp, imp.b.op("avg_pool_backward", grad, size=self.shape[lead:], **attrs), self)


@rule("aten.avg_pool2d_backward.default", "aten.avg_pool3d_backward.default")
def avg_pool_backward(
    imp: Importer,
    grad_output: Value,
    self: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Value:
    if divisor_override == 0:
        raise Decline("eager raises")
    attrs = window_attrs(self, kernel_size, stride, padding, (1,), ceil_mode)
    attrs |= {"count_include_pad": count_include_pad, "divisor": divisor_override}
    return _avg_pool_backward(imp, grad_output, self, attrs)


@rule("aten._adaptive_avg_pool2d_backward.default")
def adaptive_avg_pool2d_backward(imp: Importer, grad_output: Value, self: Value) -> Value:
    return _adaptive_avg_pool_backward(imp, grad_output, self, 2)


@rule("aten._adaptive_avg_pool3d_backward.default")
def adaptive_avg_pool3d_backward(imp: Importer, grad_output: Value, self: Value) -> Value:
    return _adaptive_avg_pool_backward(imp, grad_output, self, 3)


def _adaptive_avg_pool_backward(imp: Importer, grad: Value, self: Value, spatial: int) -> Value:
    kernel = even_windows(self, grad.shape[-spatial:])  # type: ignore[arg-type]  # static
    attrs = window_attrs(self, kernel, kernel, (0,) * spatial, (1,), False)
    return _avg_pool_backward(imp, grad, self, attrs | {"count_include_pad": True, "divisor": None})
