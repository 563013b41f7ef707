"""Random inputs: dtypes, shapes with 0, 1 and odd sizes, strides, shared memory, special values."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import torch

from tests.fuzz.program import Inputs, Storage, View

SIZES = (0, 1, 1, 2, 2, 3, 3, 4, 5, 7)
FLOATS = ("float32", "float32", "float32", "float32", "float64", "float16", "bfloat16")
INTEGERS = ("int64", "int64", "int32", "int16", "int8", "uint8")
OTHERS = ("bool", "bool", "complex64", "complex128")
SPECIALS = (math.nan, math.inf, -math.inf, 0.0, -0.0)


def draw_inputs(random: Random, resized: bool, gradients: bool) -> tuple[Inputs, Inputs]:
    """Inputs of two calls: other numbers and, of a resized program, other sizes.

    Args:
        random: decides everything.
        resized: sizes differ between the calls.
        gradients: some of the floats require gradients.
    """
    rank = random.choice((0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4))
    shape = tuple(random.choice(SIZES) for _ in range(rank))
    if math.prod(shape) > 200:
        shape = shape[:2]
    specials = not random.randrange(5)
    layouts = [_layout(random, shape, number) for number in range(random.choice((1, 2, 2, 3)))]
    main = random.choice(FLOATS) if random.randrange(5) else random.choice(INTEGERS)
    dtypes = [main if random.randrange(3) else random.choice((*FLOATS, *INTEGERS, *OTHERS)) for _ in layouts]
    tracked = [gradients and "float" in dtype and bool(random.randrange(4)) for dtype in dtypes]
    shared = not gradients and not resized and len(layouts) > 1 and not random.randrange(6)
    grown = {size: size + random.choice((1, 2, 3)) for size in set(shape) if size > 1} if resized else {}
    calls = []
    for number in range(2):
        sizes = grown if number else {}
        storages, views = [], []
        for (own, order, step, expanded), dtype, grad in zip(layouts, dtypes, tracked):
            resized = tuple(sizes.get(size, size) for size in own)
            strides, length = _strides(resized, order, step, expanded)
            values = tuple(_value(random, dtype, specials) for _ in range(length + 2))
            storages.append(Storage(dtype, values))
            offset = step - 1
            views.append(View("abc"[len(views)], len(storages) - 1, resized, strides, offset, grad))
        if shared:
            views[1] = View("b", 0, *_overlapping(views[0]))
        calls.append(Inputs(tuple(storages), tuple(views)))
    return calls[0], calls[1]


def _layout(random: Random, shape: tuple[int, ...], number: int) -> tuple[Any, ...]:
    """Shape, order of the dims from the outermost, step of the innermost, dims of stride 0."""
    own = tuple(size if random.randrange(5) else 1 for size in shape)
    if number and not random.randrange(3):
        own = own[random.randint(0, len(own)) :]
    order = list(range(len(own)))
    if not random.randrange(3):
        random.shuffle(order)
    step = 1 if random.randrange(6) else 2
    expanded = [dim for dim in order if not random.randrange(4)] if not random.randrange(8) else []
    return own, order, step, expanded


def _strides(shape: tuple[int, ...], order: list[int], step: int, expanded: list[int]) -> tuple[tuple[int, ...], int]:
    strides, length = [0] * len(shape), step
    for dim in reversed(order):
        if dim not in expanded:
            strides[dim] = length
            length *= max(shape[dim], 1)
    return tuple(strides), length


def _overlapping(view: View) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """All but the first row of another view."""
    if not view.shape or not view.shape[0]:
        return view.shape, view.strides, view.offset
    return (view.shape[0] - 1, *view.shape[1:]), view.strides, view.offset + view.strides[0]


def _value(random: Random, dtype: str, specials: bool) -> Any:
    """Mostly numbers that short chains of sums and products keep exact in every dtype."""
    if dtype == "bool":
        return bool(random.randrange(2))
    if dtype == "uint8":
        return random.choice((0, 1, 2, 3, 7, 100, 255)) if specials else random.randrange(8)
    if "int" in dtype:
        limits = torch.iinfo(getattr(torch, dtype))
        return random.choice((0, -1, 3, limits.min, limits.max)) if specials else random.randrange(-6, 7)
    if "complex" in dtype:
        return complex(_value(random, "float16", False), _value(random, "float16", False))
    if specials and not random.randrange(4):
        return random.choice(SPECIALS)
    return random.randrange(-12, 13) / 4
