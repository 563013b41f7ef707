"""Calls whose data eager refuses. A case is (function, arguments); it stands on the line that errors must name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

Case: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...]]

X = torch.arange(12.0).reshape(4, 3)
IMAGE = torch.arange(24.0).reshape(1, 4, 3, 2)
BAD = torch.tensor([0, 9, 1])
FAR = torch.tensor([0, -9, 1])
NEGATIVE = torch.tensor([0, -1, 1])
COLUMN = BAD[:, None]
LOGITS = torch.arange(15.0).reshape(3, 5)
PIXELS = torch.tensor([[[0, 1], [9, 2], [3, 0]]])
SEVEN, DIVISOR = torch.full((40,), 7), torch.arange(40) % 39
WEIGHT = torch.ones(5)
OUTSIDE = torch.tensor([0.2, 1.5, 0.3])
INSIDE = torch.tensor([0.2, 0.5, 0.3])
NAN = torch.tensor([0.2, float("nan"), 0.3])

LOWERED: dict[str, Case] = {
    "embedding": (lambda i, x: F.embedding(i, x) * 2, (BAD, X)),
    "embedding of a negative": (lambda i, x: F.embedding(i, x) * 2, (NEGATIVE, X)),
    "embedding of a far negative": (lambda i, x: F.embedding(i, x) * 2, (FAR, X)),
    "embedding of i32": (lambda i, x: F.embedding(i, x) + 1, (BAD.int(), X)),
    "embedding in rows": (lambda i, x: torch.softmax(F.embedding(i, x), -1), (BAD, X)),
    "embedding of bfloat16": (lambda i, x: F.embedding(i, x) * 2, (BAD, X.bfloat16())),
    "lowest index": (lambda i, x: F.embedding(i, x) * 2, (torch.tensor([1, -(1 << 63)]), X)),
    "highest index": (lambda x, i: x[i], (X, torch.tensor([1, (1 << 63) - 1]))),
    "index": (lambda x, i: x[i] * 2, (X, BAD)),
    "index of a far negative": (lambda x, i: x[i] * 2, (X, FAR)),
    "index of dim 1": (lambda x, i: x[:, i], (X, BAD)),
    "index summed": (lambda x, i: x[i].sum(), (X, BAD)),
    "two indices": (lambda x, i: x[i % 3, i], (X, BAD)),
    "two indices, the first": (lambda x, i: x[i, i % 3], (X, BAD)),
    "index made by arithmetic": (lambda x, i: x[i * 5 - 1], (X, torch.tensor([0, 1]))),
    "index known while compiling": (lambda x: x[torch.full((2,), 9)] + 1, (X,)),
    "index in a concat": (lambda x, i: torch.cat([x[i], x]) + 1, (X, BAD)),
    "index_select": (lambda x, i: x.index_select(0, i), (X, BAD)),
    "index_select of a negative": (lambda x, i: x.index_select(0, i), (X, NEGATIVE)),
    "index_select of dim 1": (lambda x, i: x.index_select(1, i), (X, BAD)),
    "index_select of dim 2": (lambda x, i: x.index_select(2, i), (IMAGE, BAD)),
    "take": (lambda x, i: torch.take(x, i * 3), (X, BAD)),
    "take of a far negative": (lambda x, i: torch.take(x, i * 3), (X, FAR)),
    "gather": (lambda x, i: x.gather(0, i) * 2, (X, COLUMN)),
    "gather of a negative": (lambda x, i: x.gather(1, i), (X, NEGATIVE[:, None])),
    "long gather": (lambda x, i: x.gather(1, i), (torch.ones(3, 90), (torch.arange(270) % 91).reshape(3, 90))),
    "cross_entropy": (lambda x, t: F.cross_entropy(x, t), (LOGITS, BAD)),
    "cross_entropy of a negative": (lambda x, t: F.cross_entropy(x, t), (LOGITS, NEGATIVE)),
    "cross_entropy, summed": (lambda x, t: F.cross_entropy(x, t, reduction="sum"), (LOGITS, BAD)),
    "cross_entropy, weighted": (lambda x, t, w: F.cross_entropy(x, t, w), (LOGITS, BAD, WEIGHT)),
    "cross_entropy, ignoring another": (lambda x, t: F.cross_entropy(x, t, ignore_index=1), (LOGITS, BAD)),
    "nll_loss": (lambda x, t: F.nll_loss(x, t, reduction="none"), (LOGITS, BAD)),
    "nll_loss of pixels": (lambda x, t: F.nll_loss(x, t), (IMAGE, PIXELS)),
    "floor_divide": (lambda a, b: a // b + 1, (SEVEN, DIVISOR)),
    "floor_divide by a literal 0-d tensor": (lambda a, b: a // b, (SEVEN, torch.tensor(0))),
    "floor_divide of int8": (lambda a, b: a // b, (SEVEN.to(torch.int8), DIVISOR.to(torch.int8))),
    "floor_divide of uint8": (lambda a, b: a // b, (SEVEN.to(torch.uint8), DIVISOR.to(torch.uint8))),
    "remainder": (lambda a, b: a % b, (SEVEN, DIVISOR)),
    "remainder of int32": (lambda a, b: (a % b).sum(), (SEVEN.int(), DIVISOR.int())),
    "fmod": (lambda a, b: torch.fmod(a, b), (SEVEN, DIVISOR)),
    "truncating division": (lambda a, b: torch.div(a, b, rounding_mode="trunc"), (SEVEN, DIVISOR)),
    "flooring division": (lambda a, b: torch.div(a, b, rounding_mode="floor"), (SEVEN, DIVISOR)),
    "division by zeros known while compiling": (lambda a: a // torch.zeros_like(a), (SEVEN,)),
    "division in place": (lambda a, b: a.clone().floor_divide_(b), (SEVEN, DIVISOR)),
    "division of a number": (lambda b: 7 // b, (DIVISOR,)),
    "division in rows": (lambda a, b: (a.view(4, 10) // b.view(4, 10)).sum(1), (SEVEN, DIVISOR)),
    "division in columns": (lambda a, b: (a.view(4, 10) // b.view(4, 10)).sum(0), (SEVEN, DIVISOR)),
    "running sum of quotients": (lambda a, b: (a // b).cumsum(0), (SEVEN, DIVISOR)),
    "binary_cross_entropy": (lambda x, y: F.binary_cross_entropy(x, y), (OUTSIDE, INSIDE)),
    "binary_cross_entropy of NaN": (lambda x, y: F.binary_cross_entropy(x, y), (NAN, INSIDE)),
    "binary_cross_entropy of f64": (lambda x, y: F.binary_cross_entropy(-x, y), (INSIDE.double(), INSIDE.double())),
    "bernoulli": (lambda p: torch.bernoulli(p), (OUTSIDE,)),
    "scatter_add": (lambda x, i: x.scatter_add(0, i, x), (X, COLUMN)),
    "index_add": (lambda x, i: x.index_add(0, i, x[:3]), (X, BAD)),
    "index_add of a negative": (lambda x, i: x.index_add(0, i, x[:3]), (X, NEGATIVE)),
    "index_add in place": (lambda x, i: x.clone().index_add_(0, i, x[:3]), (X, NEGATIVE)),
    "scatter": (lambda x, i: x.scatter(0, i, 1.0), (X, COLUMN)),
    "scatter of a negative": (lambda x, i: x.scatter(0, i, x), (X, NEGATIVE[:, None])),
    "index_put": (lambda x, i: x.index_put((i,), x[:3]), (X, BAD)),
    "index assignment": (lambda x, i: x.clone().index_put_((i,), x[:3]), (X, FAR)),
    "index_copy": (lambda x, i: x.index_copy(0, i, x[:3]), (X, BAD)),
    "index_copy of a negative": (lambda x, i: x.index_copy(0, i, x[:3]), (X, NEGATIVE)),
    "index_fill": (lambda x, i: x.index_fill(0, i, 2.0), (X, BAD)),
}
"""What graphc computes in kernels of its own."""

CALLED: dict[str, Case] = {
    "division by a literal zero": (lambda a: a // 0, (SEVEN,)),
    "scatter_reduce": (lambda x, i: x.scatter_reduce(0, i, x, "amax"), (X, COLUMN)),
    "multi_margin_loss": (lambda x, t: F.multi_margin_loss(x, t), (LOGITS, BAD)),
    "embedding_bag": (lambda i, x: F.embedding_bag(i, x), (COLUMN, X)),
    "multinomial": (lambda p: torch.multinomial(-p, 1), (OUTSIDE,)),
}
"""What graphc leaves to ATen."""

CASES = {**LOWERED, **CALLED}


def refused(fn: Callable[..., Any], args: tuple[Any, ...]) -> Exception:
    """The exception that a call ends in."""
    try:
        result = fn(*args)
    except Exception as error:
        return error
    raise AssertionError(f"nothing was raised, the result is {result}")


def check(case: Case, compiled: Callable[..., Any]) -> None:
    """A compiled function raises eager's class and message, and names the line of the case; twice."""
    fn, args = case
    with torch.no_grad():
        eager = refused(fn, args)
        for _ in range(2):
            ours = refused(compiled, args)
            assert type(ours) is type(eager), repr(ours)
            assert str(ours).split("\n")[0] == str(eager).split("\n")[0]
            assert f"{__file__}:{fn.__code__.co_firstlineno}" in str(ours), str(ours)
