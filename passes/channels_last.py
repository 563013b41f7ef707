"""Images between convolutions, laid out with their channels side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from graphc.ir.graph import Builder, Graph, Op, Operand, Ref, Value
from graphc.ir.types import bf16, channels_last_strides, f32
from graphc.ops.convolution import library_convolves
from graphc.ops.registry import Kind, get
from graphc.passes.base import PassContext, PassResult

BACKWARD = "aten.convolution_backward.default"
LEAST_CHANNELS = 8
"""Kernels walk the channels: fewer fill no vector, and images of few channels convolve as fast either way."""
_WINDOWS = ("slice", "pad")
"""Views whose results are images as their operands are."""


@dataclass(frozen=True)
class ChannelsLast:
    """Chooses the layout of images that only this program sees: the one oneDNN convolves without a copy.

    Before:
        %0: f32[8, 16, 9, 9] = convolution(%x, %w) {...}
        %1: f32[8, 16, 9, 9] = relu(%0)
        %2: f32[8, 32, 7, 7] = convolution(%1, %v) {...}
    After:
        %3: f32[16, 4, 3, 3] strides=[36, 1, 12, 4] = copy(%w) {strides=[36, 1, 12, 4]}
        %0: f32[8, 16, 9, 9] strides=[1296, 1, 144, 16] = convolution(%x, %3) {...}
        %1: f32[8, 16, 9, 9] strides=[1296, 1, 144, 16] = relu(%0)
        %2: f32[8, 32, 7, 7] strides=[1568, 1, 224, 32] = convolution(%1, %v) {...}

    ATen convolves in this layout when the image or the weight has it, so where a convolution begins with an image whose
    layout is given, its weight is copied: that is less than the image. What the user sees keeps eager's strides, and so
    does what calls see that are no convolutions.
    """

    name: ClassVar[str] = "channels-last"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if ctx.target != "cpu" or ctx.numerics != "default":
            return PassResult(False)
        convolutions = {op: images for op in graph.ops if (images := _images(op))}
        if not convolutions:
            return PassResult(False)
        chosen = _reach(graph, [image for images in convolutions.values() for image in images])
        for value in chosen:
            value.strides = _strides(value)
        return PassResult(_copy_weights(graph, convolutions, ctx) or bool(chosen))


def _strides(value: Value) -> tuple[int, ...]:
    return channels_last_strides(value.shape)  # type: ignore[arg-type]  # static


def _images(op: Op) -> list[Value]:
    """The images that a convolution on a CPU takes and gives, its result or gradient first; none for other ops."""
    operands = list(op.inputs)
    is_backward = op.name == "extern" and op.attrs["op"] == BACKWARD
    if not is_backward and op.name != "convolution":
        return []
    if any(value.type.rank != 4 or value.device != "cpu" for value in operands[:2]):
        return []
    if operands[0].dtype not in (f32, bf16) or not library_convolves(operands[0].dtype):
        return []
    if not is_backward:
        return [op.results[0], operands[0]]
    args = op.attrs["args"]
    if [item for item in args if isinstance(item, Ref)] != [Ref(0), Ref(1), Ref(2)] or len(operands) != 3:
        return []
    return [*(op.results[:1] if args[-1][0] else []), *operands[:2]]


def _reach(graph: Graph, images: list[Value]) -> list[Value]:
    """Images computed from those of convolutions, or for them, element by element or window by window."""
    users = graph.uses()
    fixed = graph.live_out() | set(graph.inputs) | _seen_by_calls(graph)
    found: dict[Value, None] = {}
    stack = images
    while stack:
        value = stack.pop()
        if value in found or value in fixed or not _may_choose(value):
            continue
        found[value] = None
        around = [*users[value], *([value.op] if value.op is not None else [])]
        for op in around:
            if _keeps_images(op):
                stack += [item for item in (*op.inputs, *op.results) if item.shape[:1] == value.shape[:1]]
    return list(found)


def _may_choose(value: Value) -> bool:
    static = value.type.rank == 4 and all(isinstance(size, int) for size in value.shape)
    return static and not value.type.is_host and value.shape[1] >= LEAST_CHANNELS  # type: ignore[operator]  # static


def _keeps_images(op: Op) -> bool:
    """Whether a kernel computes the op, and its results are images that belong with its operands."""
    definition = get(op.name)
    if definition.kind is Kind.POINTWISE:
        return op.name != "copy" and definition.lower is not None
    return op.name in _WINDOWS or (definition.expand is not None and definition.call is None)


def _seen_by_calls(graph: Graph) -> set[Value]:
    """Operands and results of whatever may look at strides and is no convolution."""
    seen: set[Value] = set()
    for op in graph.ops:
        images = _images(op)
        if images:
            seen.update(value for value in (*op.inputs, *op.results) if value not in images)
        elif op.name == "copy" or (get(op.name).lower is None and get(op.name).expand is None):
            seen.update((*op.inputs, *op.results))
    return seen


def _copy_weights(graph: Graph, convolutions: Mapping[Op, list[Value]], ctx: PassContext) -> bool:
    """Copy the weights of convolutions that do not find an image in the layout that they are to give."""
    builder = Builder(graph, ctx.infer)
    ops, graph.ops = graph.ops, []
    copies: dict[Value, Value] = {}
    for op in ops:
        if op in convolutions:
            at = 1 if op.name == "convolution" else 2
            wanted, image, weight = convolutions[op][0], op.operands[at - 1], op.operands[at]
            assert isinstance(weight, Value)
            if _is_last(wanted) and not _is_last(image) and not _is_last(weight):
                if weight not in copies:
                    builder.location = op.location
                    copies[weight] = copy = builder.op("copy", weight, strides=_strides(weight))
                    copy.strides = _strides(weight)
                op.operands[at] = copies[weight]
        graph.ops.append(op)
    return bool(copies)


def _is_last(value: Operand) -> bool:
    return isinstance(value, Value) and value.strides == _strides(value)
