"""Import rules of the gradients of max pooling: a formula where the windows tile the input, else a library call."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.frontend.aten.activation import floats
from graphc.frontend.aten.convolution import per_dim
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.memory_format import like_input
from graphc.frontend.aten.pooling import even_windows
from graphc.frontend.aten.registry import Decline, rule
from graphc.ir.graph import Value
from graphc.ir.types import i64


def _scattered(imp: Importer, grad: Value, self: Value, kernel: tuple[int, ...], indices: Value) -> Value:
    """The gradient of each window where its position says, and zero elsewhere in the window and outside of all.

    Each element lies in one window at most, so it reads that window's position and compares: nothing is scattered.
    """
    floats(grad, self)
    builder, spatial = imp.b, len(kernel)
    if grad.dtype != self.dtype or grad.shape != indices.shape or indices.dtype is not i64 or self.type.numel == 0:
        raise Decline("eager raises, or nothing to do")
    lead = self.type.rank - spatial
    sizes: tuple[int, ...] = self.shape[lead:]  # type: ignore[assignment]  # static
    counts: tuple[int, ...] = grad.shape[lead:]  # type: ignore[assignment]
    alone, split = [], []
    position: Value | None = None
    for dim, (count, k, size) in enumerate(zip(counts, kernel, sizes, strict=True)):
        alone += [count, 1]
        split += [count, k]
        here = builder.op("iota", size=count * k, start=0, step=1, dtype=i64, device=self.device)
        here = builder.op("reshape", here, shape=(count, k, *(1,) * 2 * (spatial - 1 - dim)))
        position = here if position is None else builder.op("add", builder.op("mul", position, size), here)
    assert position is not None
    outer = self.shape[:lead]
    chosen = builder.op("eq", builder.op("reshape", indices, shape=(*outer, *alone)), position)
    sum_of_one = builder.op("add", grad, 0.0)  # eager adds to zeros, which makes a positive zero of a negative one
    value = builder.op("where", chosen, builder.op("reshape", sum_of_one, shape=(*outer, *alone)), 0.0)
    covered = tuple(count * k for count, k in zip(counts, kernel, strict=True))
    value = builder.op("reshape", value, shape=(*outer, *covered))
    if covered != sizes:
        high = tuple(size - end for size, end in zip(sizes, covered, strict=True))
        none = (0,) * lead
        value = builder.op("pad", value, low=(0,) * self.type.rank, high=(*none, *high), value=0.0)
    return like_input(imp, value, self)


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
    kernel = per_dim(kernel_size, spatial)
    if per_dim(stride or kernel_size, spatial) != kernel or per_dim(dilation, spatial) != (1,) * spatial:
        raise Decline("windows that overlap, or have holes")
    if any(padding) or self.type.rank - spatial not in (1, 2):
        raise Decline("windows that reach beyond the input")
    sizes = zip(self.shape[-spatial:], kernel, grad_output.shape[-spatial:], strict=True)
    if any(count != size // k for size, k, count in sizes):
        raise Decline("a last window that is cut off")
    return _scattered(imp, grad_output, self, kernel, indices)


@rule("aten.adaptive_max_pool2d_backward.default")
def adaptive_max_pool2d_backward(imp: Importer, grad_output: Value, self: Value, indices: Value) -> Value:
    return _scattered(imp, grad_output, self, even_windows(self, grad_output.shape[-2:]), indices)  # type: ignore[arg-type]


@rule("aten.adaptive_max_pool3d_backward.default")
def adaptive_max_pool3d_backward(imp: Importer, grad_output: Value, self: Value, indices: Value) -> Value:
    return _scattered(imp, grad_output, self, even_windows(self, grad_output.shape[-3:]), indices)  # type: ignore[arg-type]
