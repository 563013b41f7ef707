"""Import rules of pooling. Windows too large to be written out stay library calls, of types known here."""

from __future__ import annotations

import math
from collections.abc import Sequence

from graphc.frontend.aten.activation import floats
from graphc.frontend.aten.convolution import per_dim
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.memory_format import like_input
from graphc.frontend.aten.registry import Decline, rule
from graphc.frontend.aten.stated import stated_call
from graphc.ir.graph import Attr, Value
from graphc.ops.pooling import UNROLLED_WINDOW, tiles, window_count

MAX_POOL = {2: "aten.max_pool2d_with_indices.default", 3: "aten.max_pool3d_with_indices.default"}
AVG_POOL = {2: "aten.avg_pool2d.default", 3: "aten.avg_pool3d.default"}


def window_attrs(
    x: Value, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil: bool
) -> dict[str, Attr]:
    """The attributes of a pooling op.

    Raises:
        Decline: eager refuses such windows, or the input is empty.
    """
    spatial = 3 if max(len(kernel), len(stride), len(padding)) == 3 else 2
    attrs: dict[str, Attr] = {
        "kernel": per_dim(kernel, spatial),
        "stride": per_dim(stride or kernel, spatial),
        "padding": per_dim(padding, spatial),
        "ceil_mode": ceil,
    }
    dilations = per_dim(dilation, spatial)
    if x.type.rank not in (spatial + 1, spatial + 2) or x.type.numel == 0:
        raise Decline("eager raises, or nothing to do")
    for size, k, s, p, d in zip(
        x.shape[-spatial:], attrs["kernel"], attrs["stride"], attrs["padding"], dilations, strict=True
    ):
        if k < 1 or s < 1 or d < 1 or not 0 <= p <= k // 2 or window_count(size, k, s, p, d, ceil) < 1:  # type: ignore[arg-type]
            raise Decline("eager raises")
    return attrs


def _max_pool(
    imp: Importer,
    self: Value,
    spatial: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Value, Value]:
    floats(self)
    kernel = per_dim(kernel_size, spatial)
    attrs = window_attrs(self, kernel, stride, padding, dilation, ceil_mode) | {"dilation": per_dim(dilation, spatial)}
    if math.prod(attrs["kernel"]) <= UNROLLED_WINDOW:
        values, indices = imp.b.multi("max_pool", [self], attrs).results
    else:
        types = imp.b.infer("max_pool", [self], attrs)
        settings = (attrs["kernel"], attrs["stride"], attrs["padding"], attrs["dilation"], ceil_mode)
        values, indices = stated_call(imp, MAX_POOL[spatial], [self, *settings], types)
    return like_input(imp, values, self), like_input(imp, indices, self)


@rule("aten.max_pool2d_with_indices.default")
def max_pool2d(
    imp: Importer,
    self: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Value, Value]:
    return _max_pool(imp, self, 2, kernel_size, stride, padding, dilation, ceil_mode)


@rule("aten.max_pool3d_with_indices.default")
def max_pool3d(
    imp: Importer,
    self: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Value, Value]:
    return _max_pool(imp, self, 3, kernel_size, stride, padding, dilation, ceil_mode)


def _avg_pool(
    imp: Importer,
    self: Value,
    spatial: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Value:
    floats(self)
    if divisor_override == 0 or (spatial == 3 and self.dtype.is_reduced):
        raise Decline("eager raises")
    kernel = per_dim(kernel_size, spatial)
    attrs = window_attrs(self, kernel, stride, padding, (1,), ceil_mode)
    attrs |= {"count_include_pad": count_include_pad, "divisor": divisor_override}
    if math.prod(attrs["kernel"]) <= UNROLLED_WINDOW or tiles(self, attrs):
        return like_input(imp, imp.b.op("avg_pool", self, **attrs), self)
    types = imp.b.infer("avg_pool", [self], attrs)
    settings = (attrs["kernel"], attrs["stride"], attrs["padding"], ceil_mode, count_include_pad, divisor_override)
    (value,) = stated_call(imp, AVG_POOL[spatial], [self, *settings], types)
    return like_input(imp, value, self)


@rule("aten.avg_pool2d.default")
def avg_pool2d(
    imp: Importer,
    self: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    return _avg_pool(imp, self, 2, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


@rule("aten.avg_pool3d.default")
def avg_pool3d(
    imp: Importer,
    self: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    return _avg_pool(imp, self, 3, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def even_windows(self: Value, output_size: Sequence[int]) -> tuple[int, ...]:
    """Window sizes of an adaptive pooling whose windows all have the same size.

    Raises:
        Decline: they differ, or eager refuses the call.
    """
    spatial = len(output_size)
    if self.type.rank not in (spatial + 1, spatial + 2) or self.type.numel == 0:
        raise Decline("eager raises, or nothing to do")
    sizes = self.shape[-spatial:]
    if any(count < 1 or size % count != 0 for size, count in zip(sizes, output_size, strict=True)):
        raise Decline("windows of different sizes")
    return tuple(size // count for size, count in zip(sizes, output_size, strict=True))  # type: ignore[misc]  # static


@rule("aten._adaptive_avg_pool2d.default", "aten._adaptive_avg_pool3d.default")
def adaptive_avg_pool(imp: Importer, self: Value, output_size: Sequence[int]) -> Value:
    windows, none = even_windows(self, output_size), (0,) * len(output_size)
    return _avg_pool(imp, self, len(output_size), windows, windows, none, False, True, None)


@rule("aten.adaptive_max_pool2d.default", "aten.adaptive_max_pool3d.default")
def adaptive_max_pool(imp: Importer, self: Value, output_size: Sequence[int]) -> tuple[Value, Value]:
    windows, none = even_windows(self, output_size), (0,) * len(output_size)
    return _max_pool(imp, self, len(output_size), windows, windows, none, (1,), False)
