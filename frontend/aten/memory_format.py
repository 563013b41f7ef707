"""Which memory format eager gives the results of layers on images: that which the input's strides suggest."""

from __future__ import annotations

from graphc.frontend.aten import layout
from graphc.frontend.aten.importer import Importer
from graphc.ir.graph import Value


def suggests_channels_last(shape: layout.Shape, strides: layout.Shape) -> bool:
    """As `Tensor.suggest_memory_format()`: 4 or 5 dims whose strides ascend in the order C, W, H, (D,) N.

    Source of the algorithm: `is_channels_last_strides_2d_s4` of c10/core/MemoryFormat.h.
    """
    if len(shape) not in (4, 5) or strides[1] == 0:
        return False
    smallest = 0
    for dim in (1, *range(len(shape) - 1, 1, -1), 0):
        if shape[dim] == 0 or strides[dim] < smallest:
            return False
        if dim == 0 and smallest == strides[1]:
            # N111 and N11W: no telling, so contiguous
            return False
        smallest = strides[dim] * max(shape[dim], 1)
    return True


def suggested(imp: Importer, *values: Value) -> bool:
    """True when any of the tensors suggests channels_last."""
    return any(suggests_channels_last(v.shape, imp.strides(v)) for v in values)  # type: ignore[arg-type]  # static


def with_format(imp: Importer, value: Value, channels_last: bool) -> Value:
    """State that eager returns `value` as channels_last, or as contiguous."""
    make = layout.channels_last if channels_last and value.type.rank in (4, 5) else layout.contiguous
    return imp.with_strides(value, make(value.shape))  # type: ignore[arg-type]  # static shapes


def like_input(imp: Importer, value: Value, source: Value) -> Value:
    """State that eager returns `value` in the format that `source` suggests."""
    return with_format(imp, value, suggested(imp, source))


def batch_format(imp: Importer, value: Value, source: Value) -> Value:
    """State that eager returns `value` as batch norm of `source` lies: it asks first whether that is contiguous."""
    if layout.is_contiguous(source.shape, imp.strides(source)):  # type: ignore[arg-type]  # static shapes
        return imp.with_strides(value, layout.contiguous(value.shape))  # type: ignore[arg-type]
    return like_input(imp, value, source)
