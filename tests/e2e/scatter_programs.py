"""Small programs that add to places that are data, or store there, for every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Program = tuple[Callable[..., Any], tuple[Tensor, ...]]


def _messages(x: Tensor, source: Tensor, target: Tensor, w: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(0, target, (x[source] @ w).relu())


def _in_place(x: Tensor, i: Tensor, s: Tensor) -> Tensor:
    x.index_add_(0, i, s.relu())
    return x * 2


def _through_a_view(x: Tensor, i: Tensor, s: Tensor) -> Tensor:
    x[1:].t().index_add_(1, i, s.t())
    return x + 1


def _of_what_it_adds_to(x: Tensor, i: Tensor, j: Tensor) -> Tensor:
    h = x * 2
    return h.index_add(0, i, h[j] * 3)


def _kept_base(x: Tensor, i: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    zeros = s.new_zeros(7, 5)
    return zeros.index_add(0, i, s + zeros[:4]), zeros + 1


def _two_with_rows(i: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    return s.new_zeros(9, 5).index_add(0, i, torch.softmax(s, -1)), s.new_zeros(9).index_add(0, i, s.sum(1))


def _embedding_gradient(w: Tensor, ids: Tensor) -> Tensor | None:
    w = w.detach().requires_grad_()
    functional.embedding(ids, w, padding_idx=2).square().sum().backward()
    return w.grad


def _gather_gradient(x: Tensor, i: Tensor) -> Tensor | None:
    x = x.detach().requires_grad_()
    (x.gather(1, i).exp() * 2).sum().backward()
    return x.grad


def _put_in_place(x: Tensor, i: Tensor, s: Tensor) -> Tensor:
    x[i] = s.relu()
    return x * 2


def _cache(keys: Tensor, i: Tensor, new: Tensor) -> Tensor:
    """As a cache of keys of a fixed size is written."""
    keys.index_copy_(1, i, new * 2)
    return keys.sum(-1)


def _of_what_it_overwrites(x: Tensor, i: Tensor, j: Tensor) -> Tensor:
    h = x * 2
    h[i] = h[j] * 3
    return h


def programs() -> dict[str, Program]:
    """Functions with their arguments, by name."""
    draw = torch.Generator().manual_seed(0)

    def floats(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    rows = torch.tensor([0, 3, 3, 6])
    return {
        "rows": (lambda i, s: s.new_zeros(7, 5).index_add(0, i, s * 2) + 1, (rows, floats(4, 5))),
        "argument": (lambda x, i, s: x.index_add(0, i, s.relu()), (floats(7, 5), rows, floats(4, 5))),
        "in_place": (_in_place, (floats(7, 5), rows, floats(4, 5))),
        "view": (_through_a_view, (floats(8, 5), rows, floats(4, 5))),
        "strided": (lambda x, i, s: x.index_add(0, i, s), (floats(7, 10)[:, ::2], rows, floats(5, 4).t())),
        "columns": (lambda x, i, s: x.index_add(1, i, s, alpha=2), (floats(4, 7), rows, floats(4, 4))),
        "elements": (lambda x, i, s: x.scatter_add(1, i, s.exp()), (floats(4, 7), _below(7, 4, 9), floats(4, 9))),
        "few_elements": (lambda x, i, s: x.scatter_add(0, i, s), (floats(4, 7), _below(4, 9, 3), floats(9, 4))),
        "negative": (lambda x, i, s: x.index_put((i,), s, accumulate=True), (floats(4, 7), rows - 4, floats(4, 7))),
        "points": (
            lambda x, i, j, s: x.index_put((i, j), s, accumulate=True),
            (floats(4, 7), _below(4, 9), _below(7, 9), floats(9)),
        ),
        "itself": (lambda x, i: x.index_add(0, i, x), (floats(4, 7), torch.tensor([0, 2, 2, 1]))),
        "of_itself": (_of_what_it_adds_to, (floats(4, 7), torch.tensor([0, 2, 2, 1]), torch.tensor([3, 2, 1, 1]))),
        "messages": (_messages, (floats(6, 8), _below(6, 9), _below(6, 9), floats(8, 8))),
        "embedding": (_embedding_gradient, (floats(10, 6), torch.tensor([[0, 2, 2], [9, 9, 1]]))),
        "gather": (_gather_gradient, (floats(5, 6), _below(6, 5, 4))),
        "kept": (_kept_base, (floats(7, 5), rows, floats(4, 5))),
        "twice": (lambda x, i, s: x.index_add(0, i, s).index_add(0, i + 1, s * 2), (floats(9, 5), rows, floats(4, 5))),
        "with_rows": (_two_with_rows, (rows, floats(4, 5))),
        "counts": (lambda i: torch.zeros(9, dtype=torch.int64).index_add(0, i, torch.ones_like(i)), (rows,)),
        "broadcast": (lambda i, s: s.new_zeros(9, 5).index_add(0, i, s[:, None].expand(4, 5)), (rows, floats(4))),
        "nothing": (lambda i, s: s.new_zeros(9, 5).index_add(0, i, s) + 1, (rows[:0], floats(0, 5))),
        "doubles": (lambda x, i, s: x.index_add(0, i, s), (floats(7, 1).double(), rows, floats(4, 1).double())),
        "set elements": (lambda x, i, s: x.scatter(1, i, s.exp()), (floats(4, 7), _apart(4, 7, 5), floats(4, 5))),
        "set columns": (lambda x, i, s: x.scatter(0, i.t(), s.t()), (floats(7, 4), _apart(4, 7, 5), floats(4, 5))),
        "set last": (
            lambda x, i, s: x.scatter(1, i, s * 2),
            (floats(2, 3), torch.tensor([[0, 2, 0, 1]]), floats(1, 4)),
        ),
        "set one place": (lambda x, i, s: x.scatter(1, i.expand(4, 3), s), (floats(4, 7), rows[:, None], floats(4, 3))),
        "set number": (lambda x, i: x.scatter(1, i, 2.5) + x, (floats(4, 7), _apart(4, 7, 5))),
        "set rows": (lambda x, i, s: x.index_put((i,), s.relu()) + 1, (floats(7, 5), _apart(1, 7, 4)[0], floats(4, 5))),
        "set in place": (_put_in_place, (floats(7, 5), _apart(1, 7, 4)[0] - 7, floats(4, 5))),
        "set points": (
            lambda x, i, j, s: x.index_put((i, j), s),
            (floats(4, 7), rows[:2], torch.tensor([5, 2]), floats(2)),
        ),
        "set table": (
            lambda x, i, s: torch.ops.aten.index_put(x, [None, i.t()], s),
            (floats(2, 9), _apart(1, 9, 6).reshape(2, 3), floats(2, 3, 2)),
        ),
        "set cache": (_cache, (floats(2, 8, 3), torch.tensor([5]), floats(2, 1, 3))),
        "set of itself": (_of_what_it_overwrites, (floats(4, 7), torch.tensor([0, 2]), torch.tensor([2, 1]))),
        "set bools": (lambda x, i: (x > 0).index_fill(0, i, True), (floats(7, 5), rows)),
        "set integers": (
            lambda i: torch.zeros(4, 9, dtype=torch.int64).scatter(1, i, i * 2),
            (_apart(4, 9, 5),),
        ),
        "set halves": (
            lambda x, i, s: x.scatter(1, i, s * 3),
            (
                floats(4, 7).bfloat16(),
                _apart(4, 7, 5),
                floats(4, 5).bfloat16(),
            ),
        ),
        "set fill": (lambda x, i: x.index_fill(1, i, 3.0), (floats(4, 7), rows)),
        "halves": (lambda x, i, s: x.index_add(0, i, s), (floats(7, 5).half(), rows, floats(4, 5).half())),
    }


def _below(limit: int, *shape: int) -> Tensor:
    return torch.randint(0, limit, shape, generator=torch.Generator().manual_seed(1))


def _apart(count: int, limit: int, size: int) -> Tensor:
    """Rows of `size` different numbers below a limit."""
    draw = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(limit, generator=draw)[:size] for _ in range(count)])


IN_KERNELS = sorted(programs().keys() - {"itself", "halves"})
"""Those with no ATen call: what is added to itself, and sums of 16 bits, are left to the library."""
