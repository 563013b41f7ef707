"""Gradients of pooling: each element of the input gathers from the windows that it lies in.

A window starts every `stride` elements, so an element at distance q behind the start of window t lies in the windows t,
t - 1, ... too, as far as they reach. Written with t and q as two dims, each of these is one slice of the windows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graphc.errors import InvalidGraphError
from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Builder, Op, Operand, Value
from graphc.ir.sizes import bound
from graphc.ir.types import TensorType, channels_last_strides, i64
from graphc.ops import composite
from graphc.ops.pooling import UNROLLED_WINDOW, pooled_shape, window_sizes
from graphc.ops.registry import Kind, OpDef, register


@dataclass(frozen=True)
class Line:
    """Windows along one dim.

    Args:
        size: elements of the input.
        count: windows.
        kernel, stride, padding: of the pooling.
    """

    size: int
    count: int
    kernel: int
    stride: int
    padding: int

    @property
    def starts(self) -> int:
        """Places where a window could start, from the first one on, so that all of the input lies behind one."""
        return (self.size + self.padding - 1) // self.stride + 1

    @property
    def reach(self) -> int:
        """Windows that an element may lie in."""
        return -(-self.kernel // self.stride)


def lines_of(sizes: Sequence[Dim], counts: Sequence[Dim], attrs: Mapping[str, Attr]) -> list[Line]:
    """The windows of a pooling, per dim.

    Args:
        sizes: of the input's last dims.
        counts: windows along them.
        attrs: kernel, stride, padding.
    """
    found = []
    settings = zip(attrs["kernel"], attrs["stride"], attrs["padding"], strict=True)
    for size, count, (k, s, p) in zip(composite.static(sizes, "pooling"), counts, settings, strict=True):
        assert isinstance(count, int)
        # a single window has no next one: it may as well start behind the input
        found.append(Line(size, count, k, max(s, k, size + p) if count == 1 else s, p))
    return found


def is_unrolled(lines: Sequence[Line]) -> bool:
    """Whether an element lies in so few windows that they are written out."""
    return math.prod(line.reach for line in lines) <= UNROLLED_WINDOW


class _Windows:
    """What lies in which window: appends ops.

    Args:
        b: the builder.
        lead: dims of the image before those of the lines.
        lines: windows along each of its last dims.
    """

    def __init__(self, b: Builder, lead: tuple[Dim, ...], lines: Sequence[Line], device: str) -> None:
        self.b, self.lead, self.lines, self.device = b, lead, lines, device

    def split(self, alone: bool = False) -> tuple[int, ...]:
        """Sizes of the two dims for each dim of the input; `alone`: with one element behind each start."""
        return tuple(itertools.chain(*((line.starts, 1 if alone else line.stride) for line in self.lines)))

    def shifts(self) -> Iterator[tuple[int, ...]]:
        """How many windows back, per dim, so that windows come in their own order."""
        return itertools.product(*(range(bound(line.reach) - 1, -1, -1) for line in self.lines))

    def spread(self, value: Value, fill: float) -> Value:
        """One value per window with `fill` around it, such that every shift is a slice."""
        none = (0,) * len(self.lead)
        low = tuple(line.reach - 1 for line in self.lines)
        high = tuple(line.starts - line.count for line in self.lines)
        if not any(low) and not any(high):
            return value
        return self.b.op("pad", value, low=none + low, high=none + high, value=fill)

    def shifted(self, spread: Value, shift: Sequence[int]) -> Value:
        """The value of the window `shift` back from the last one that starts before each element."""
        for dim, (line, back) in enumerate(zip(self.lines, shift, strict=True), len(self.lead)):
            first = line.reach - 1 - back
            spread = composite.cut(self.b, spread, dim, first, first + line.starts)
        return composite.reshape(self.b, spread, (*self.lead, *self.split(alone=True)))

    def along(self, dim: int, value: Value, starts: int, behind: int) -> Value:
        """A tensor of one dim of the input, to be broadcast over all."""
        return composite.reshape(self.b, value, (starts, behind, *(1,) * 2 * (len(self.lines) - 1 - dim)))

    def positions(self) -> Value:
        """Row-major position in the input of each element."""
        total: Value | None = None
        for dim, line in enumerate(self.lines):
            count = line.starts * line.stride
            here = self.b.op("iota", size=count, start=-line.padding, step=1, dtype=i64, device=self.device)
            here = self.along(dim, here, line.starts, line.stride)
            total = here if total is None else self.b.op("add", self.b.op("mul", total, line.size), here)
        assert total is not None
        return total

    def within(self, shift: Sequence[int]) -> Value | None:
        """Where an element lies in the window `shift` back; None = everywhere."""
        found: Value | None = None
        for dim, (line, back) in enumerate(zip(self.lines, shift, strict=True)):
            left = line.kernel - back * line.stride
            if left < line.stride:
                behind = self.b.op("iota", size=line.stride, start=0, step=1, dtype=i64, device=self.device)
                here = self.b.op("lt", self.along(dim, behind, 1, line.stride), left)
                found = here if found is None else self.b.op("logical_and", found, here)
        return found

    def joined(self, value: Value) -> Value:
        """A tensor over both dims per dim as one of the input's shape."""
        value = composite.expand_to(self.b, value, (*self.lead, *self.split()))
        value = composite.reshape(self.b, value, (*self.lead, *(line.starts * line.stride for line in self.lines)))
        for dim, line in enumerate(self.lines, len(self.lead)):
            value = composite.cut(self.b, value, dim, line.padding, line.padding + line.size)
        return value


def _image_type(grad: Value, attrs: Mapping[str, Attr], op: str) -> TensorType:
    """The input of a pooling, given a gradient per window."""
    spatial = len(attrs["size"])
    if grad.type.rank not in (spatial + 1, spatial + 2):
        raise InvalidGraphError(f"{op} over {spatial} dims of {grad.type}")
    return grad.type.with_shape((*grad.shape[: grad.type.rank - spatial], *attrs["size"]))


def _max_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    grad, indices = composite.floating(operands[0], "max_pool_backward"), composite.tensor(operands[1], "indices")
    if indices.dtype is not i64 or indices.shape != grad.shape:
        raise InvalidGraphError(f"max_pool_backward takes a position per gradient, got {indices.type} and {grad.type}")
    return [_image_type(grad, attrs, "max_pool_backward")]


def adds_at_positions(device: str, lines: Sequence[Line]) -> bool:
    """Whether gradients are added where their positions say, and not gathered by comparing positions.

    There are fewer windows than elements, so on a CPU that is less work where windows overlap; elsewhere it would take
    atomic additions.
    """
    return not is_unrolled(lines) or (device == "cpu" and any(line.reach > 1 for line in lines))


def _expand_max(b: Builder, op: Op) -> Sequence[Value]:
    grad, indices = composite.tensor(op.operands[0], op.name), composite.tensor(op.operands[1], op.name)
    image, spatial = op.result, len(op.attrs["size"])
    lead = image.shape[: image.type.rank - spatial]
    lines = lines_of(image.shape[len(lead) :], grad.shape[len(lead) :], op.attrs)
    if op.attrs["scattered"] or adds_at_positions(grad.device, lines):
        return [_added_at(b, grad, indices, image, lead)]
    windows = _Windows(b, lead, lines, grad.device)
    positions, given, chosen = windows.positions(), windows.spread(grad, 0.0), windows.spread(indices, -1)
    # eager adds to zeros, which makes a positive zero of a negative one
    total: Value | float = 0.0
    for shift in windows.shifts():
        here = b.op("eq", windows.shifted(chosen, shift), positions)
        term = b.op("where", here, windows.shifted(given, shift), 0.0)
        total = b.op("add", term, total)
    assert isinstance(total, Value)
    return [windows.joined(total)]


def _added_at(b: Builder, grad: Value, indices: Value, image: Value, lead: tuple[Dim, ...]) -> Value:
    """The gradients added up where their positions say, with their channels side by side if the image has them so."""
    wide = composite.wide(b, grad)
    sizes = composite.static(image.shape[len(lead) :], "max_pool_backward")
    flat = (*lead, composite.product(grad.shape[len(lead) :]))
    zeros = b.op("full", shape=(*lead, math.prod(sizes)), dtype=wide.dtype, value=0.0, device=grad.device)
    places, source = composite.reshape(b, indices, flat), composite.reshape(b, wide, flat)
    total = b.op("scatter", zeros, places, source, dim=len(lead), mode="add", check="inside")
    if composite.is_channels_last(image) and len(lead) == 2:
        total.strides = channels_last_strides((*composite.static(total.shape, "max_pool_backward"), 1))[:3]
    return composite.cast(b, composite.reshape(b, total, image.shape), image.dtype)


def _reference_max(
    grad: torch.Tensor, indices: torch.Tensor, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], scattered: bool,
) -> torch.Tensor:  # fmt: skip
    lead = grad.shape[: grad.dim() - len(size)]
    wide = grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad
    total = wide.new_zeros(*lead, math.prod(size))
    total = total.scatter_add(len(lead), indices.reshape(*lead, -1), wide.reshape(*lead, -1))
    return total.reshape(*lead, *size).to(grad.dtype)


register(
    OpDef(
        "max_pool_backward",
        Kind.COMPOSITE,
        "Gradients of windows, and their positions, to the gradient of the image. size: of its last dims; kernel, "
        "stride, padding: as in max_pool; scattered: windows of other forms, of which positions are all that is known.",
        _max_type,
        _reference_max,
        expand=_expand_max,
    )
)


def _avg_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    grad = composite.floating(operands[0], "avg_pool_backward")
    image = _image_type(grad, attrs, "avg_pool_backward")
    if pooled_shape(Value("image", image), attrs) != grad.shape:
        raise InvalidGraphError(f"avg_pool_backward: {image} has other windows than {grad.type} has gradients")
    return [image]


def _expand_avg(b: Builder, op: Op) -> Sequence[Value]:
    """The sum of the gradients of all windows over an element, each divided by what its window was."""
    grad, image = composite.tensor(op.operands[0], op.name), op.result
    lead = image.shape[: image.type.rank - len(op.attrs["size"])]
    windows = _Windows(b, lead, lines_of(op.attrs["size"], grad.shape[len(lead) :], op.attrs), grad.device)
    part = b.op("div", composite.wide(b, grad), window_sizes(b, image, op.attrs, grad.shape))
    spread = windows.spread(part, 0.0)
    total: Value | None = None
    for shift in windows.shifts():
        term, within = windows.shifted(spread, shift), windows.within(shift)
        term = term if within is None else b.op("where", within, term, 0.0)
        total = term if total is None else b.op("add", total, term)
    assert total is not None
    return [composite.cast(b, windows.joined(total), image.dtype)]


def _reference_avg(grad: torch.Tensor, size: Sequence[int], **attrs: Any) -> torch.Tensor:
    spatial = len(size)
    lead = grad.shape[: grad.dim() - spatial]
    wide = grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad
    backward = torch.ops.aten.avg_pool3d_backward if spatial == 3 else torch.ops.aten.avg_pool2d_backward
    settings = (attrs[name] for name in ("kernel", "stride", "padding", "ceil_mode", "count_include_pad", "divisor"))
    image = wide.new_zeros(1, math.prod(lead), *size)
    result = backward(wide.reshape(1, -1, *grad.shape[len(lead) :]), image, *settings)
    return result.reshape(*lead, *size).to(grad.dtype)


register(
    OpDef(
        "avg_pool_backward",
        Kind.COMPOSITE,
        "Gradients of windows to the gradient of the image. size: of its last dims; all else as in avg_pool.",
        _avg_type,
        _reference_avg,
        expand=_expand_avg,
    )
)
