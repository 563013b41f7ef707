"""Eager's strides: what TensorIterator, `empty_like` and memory formats give fresh tensors. All in elements.

Source of the algorithms: `TensorIteratorBase::reorder_dimensions`, `compute_fast_setup_type`, `infer_dense_strides` and
`is_channels_last_strides_2d` of ATen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch

from graphc.ir.types import channels_last_strides as channels_last

Shape: TypeAlias = tuple[int, ...]
Layout: TypeAlias = tuple[Shape, Shape]
"""(shape, strides) of an operand."""


def contiguous(shape: Sequence[int]) -> Shape:
    """Row-major strides."""
    strides, step = [0] * len(shape), 1
    for dim in range(len(shape) - 1, -1, -1):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return tuple(strides)


def is_contiguous(shape: Shape, strides: Shape) -> bool:
    """As `Tensor.is_contiguous()`: dims of size 1 may have any stride, empty tensors are contiguous."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size == 0:
            return True
        if size != 1 and stride != step:
            return 0 in shape
        step *= size
    return True


def is_channels_last(shape: Shape, strides: Shape) -> bool:
    """As `Tensor.is_contiguous(memory_format=channels_last or channels_last_3d)`."""
    if len(shape) not in (4, 5):
        return False
    step = 1
    for dim in (1, *range(len(shape) - 1, 1, -1), 0):
        if shape[dim] != 1:
            if strides[dim] != step:
                return False
            step *= shape[dim]
    return True


def is_dense(shape: Shape, strides: Shape) -> bool:
    """Non-overlapping and dense: some order of the dims makes it contiguous."""
    step = 1
    for stride, size in sorted((st, sz) for st, sz in zip(strides, shape, strict=True) if sz != 1):
        if size == 0:
            return True
        if stride != step:
            return 0 in shape
        step *= size
    return True


def tensor_iterator_strides(shape: Shape, operands: Sequence[Layout]) -> Shape:
    """Strides of a fresh result of `shape` computed element by element from `operands`."""
    if not operands or len(shape) <= 1:
        return contiguous(shape)
    if all(s == shape for s, _ in operands):
        fast = _fast_setup(shape, [st for _, st in operands])
        if fast is not None:
            return fast
    order = _iteration_order(shape, [_broadcast_strides(shape, s, st) for s, st in operands])
    if order == list(range(len(shape) - 1, -1, -1)):
        return contiguous(shape)
    strides, step = [0] * len(shape), 1
    for dim in order:
        strides[dim] = step
        step *= shape[dim]
    return tuple(strides)


def _fast_setup(shape: Shape, strides: list[Shape]) -> Shape | None:
    if all(is_contiguous(shape, st) for st in strides):
        return contiguous(shape)
    if len(shape) == 4 and all(is_channels_last(shape, st) for st in strides):
        return channels_last(shape)
    if all(st == strides[0] for st in strides) and is_dense(shape, strides[0]):
        return strides[0]
    return None


def _broadcast_strides(shape: Shape, own: Shape, strides: Shape) -> Shape:
    lead = len(shape) - len(own)
    kept = tuple(0 if own[i] == 1 and shape[lead + i] != 1 else strides[i] for i in range(len(own)))
    return (0,) * lead + kept


def _iteration_order(shape: Shape, strides: list[Shape]) -> list[int]:
    """Dims from fastest to slowest, by an insertion sort that knows ambiguous comparisons."""
    order = list(range(len(shape) - 1, -1, -1))
    for i in range(1, len(order)):
        current = i
        for other in range(i - 1, -1, -1):
            comparison = _should_swap(shape, strides, order[other], order[current])
            if comparison > 0:
                order[other], order[current] = order[current], order[other]
                current = other
            elif comparison < 0:
                break
    return order


def _should_swap(shape: Shape, strides: list[Shape], dim0: int, dim1: int) -> int:
    for operand in strides:
        first, second = operand[dim0], operand[dim1]
        if first == 0 or second == 0:
            continue
        if first != second:
            return -1 if first < second else 1
        if shape[dim0] > shape[dim1]:
            return 1
    return 0


def dense_strides(shape: Shape, strides: Shape) -> Shape:
    """Strides of `torch.empty_like` with `preserve_format`."""
    if is_dense(shape, strides):
        return strides
    order = _iteration_order(shape, [strides])
    result, step = [0] * len(shape), 1
    for dim in order:
        result[dim] = step
        step *= max(shape[dim], 1)
    return tuple(result)


def format_strides(shape: Shape, strides: Shape, memory_format: torch.memory_format | None) -> Shape:
    """Strides of a fresh tensor made with `memory_format=` from one with these strides; None preserves."""
    if memory_format is None or memory_format is torch.preserve_format:
        return dense_strides(shape, strides)
    if memory_format is torch.contiguous_format:
        return contiguous(shape)
    return channels_last(shape)


def span(shape: Shape, strides: Shape) -> int:
    """Elements from the first to the last one, both included; 0 for an empty tensor."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
