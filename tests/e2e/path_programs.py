"""Functions whose control flow, numbers or shapes depend on data, each with argument lists that take several paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class PathProgram:
    """A program.

    Args:
        make: gives the function or module.
        calls: gives the argument list of each call; the last repeats a path met before.
        paths: how many paths the calls take.
        name: of the test.
    """

    make: Callable[[], Any]
    calls: Callable[[], list[tuple[Any, ...]]]
    paths: int
    name: str


PATH_PROGRAMS: list[PathProgram] = []


def _ones(*factors: float) -> list[tuple[Any, ...]]:
    return [(torch.ones(3) * factor,) for factor in factors]


def _table() -> torch.Tensor:
    return torch.arange(6.0).reshape(2, 3)


def program(calls: Callable[[], list[tuple[Any, ...]]], paths: int) -> Callable[[Any], Any]:
    def note(target: Any) -> Any:
        make = target if isinstance(target, type) else lambda: target
        PATH_PROGRAMS.append(PathProgram(make, calls, paths, target.__name__))
        return target

    return note


@program(lambda: _ones(1, -1, 2, -1), 2)
def branch_with_write_after(x):
    y = x * 2
    if y.sum() > 3:
        return y + 1
    x.add_(1)
    return y


@program(lambda: _ones(1, -4, -4, 1), 2)
def write_before_branch(x):
    view = x[:2]
    x.mul_(2)
    view.add_(1)
    if view.sum() > 0:
        view.zero_()
        return x, view
    return view + x.sum()


@program(lambda: _ones(1, 3, -1, -9, 3), 4)
def nested_branches(x):
    if x.sum() > 1:
        return x * 3 if x.max() > 2 else x * 2
    elif x.min() < -5:
        return x
    return x - 1


@program(lambda: _ones(5, 1, 40, 5), 3)
def halve_until_small(x):
    turns = 0
    while x.abs().max() > 1:
        x = x / 2
        turns += 1
    return x, turns


@program(lambda: [*_ones(1, -1, -1), (torch.tensor([1.0, float("nan"), 1.0]),), *_ones(1)], 3)
def nan_and_inf_decide(x):
    if x.max() > 0:
        return x / 0
    if torch.isnan(x).any():
        return x, x.isnan()
    return -x


@program(lambda: [(torch.tensor([1.0, 0.0, v]),) for v in (1.0, 0.0, -1.0, 2.0)], 2)
def nonzero_shapes(x):
    places = x.nonzero()
    return places, x[x != 0] * 2, x.nonzero().numel()


@program(lambda: [(torch.zeros(3),), (torch.ones(3),), (torch.zeros(3),)], 2)
def empty_selection(x):
    chosen = x[x > 0]
    return chosen.sum(), chosen, torch.argwhere(x), torch.where(x > 0)


@program(lambda: [(torch.tensor(v),) for v in ([3.0, 1.0, 3.0], [1.0, 1.0, 1.0], [0.0, 2.0, 2.0])], 2)
def unique_values(x):
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    return values * 2, counts, values[inverse] - x


@program(lambda: [(_table(), _table() > 2), (_table(), _table() > 9), (_table(), _table() > 2)], 0)
def write_under_mask(x, mask):
    x[mask] = x[mask] * 2
    return x


@program(lambda: [(torch.ones(3), torch.tensor(n)) for n in ([1, 2, 3], [0, 0, 1], [1, 2, 3])], 2)
def repeat_rows(x, counts):
    return torch.repeat_interleave(x, counts) + 1


@program(lambda: [(torch.ones(3), torch.tensor(n)) for n in (3, 0, 3)], 2)
def loop_over_a_range(x, n):
    for i in range(int(n)):
        x = x + i
    return x


@program(lambda: [(torch.arange(4.0), torch.tensor(n)) for n in ([1, 3], [2, 2], [1, 3])], 2)
def split_by_data(x, lengths):
    return x.split(lengths.tolist())


@program(lambda: [(torch.arange(3.0), torch.tensor(n)) for n in ([0, 2], [1, 1], [0, 2])], 0)
def rows_one_by_one(x, places):
    return torch.stack([x[place] * 2 for place in places]), [v * 2 for v in x.tolist()]


@program(lambda: [(_table(), torch.tensor(n)) for n in (1, 0, -1, 1)], 3)
def views_at_data(x, place):
    x[place] += 1
    x[0, place] = 7.0
    inner = (x * 2)[place]
    inner.add_(1)
    return x[place], x[..., place], inner + x[place, place], x


@program(lambda: _ones(1, -1, 1), 2)
def views_and_aliases(x):
    column, doubled = x.view(3, 1), x * 2
    if doubled.sum() > 0:
        return column, doubled, doubled.view(1, 3), x
    doubled.add_(1)
    return doubled.view(3, 1), doubled


@program(lambda: _ones(1, -1, 2), 2)
def host_results(x):
    total = x.sum().item()
    return (total, total * 2, x * total) if total > 0 else (-total, x)


@program(lambda: _ones(2, -3, 2, -3), 2)
def random_on_both_sides(x):
    noise = torch.rand(3)
    x.add_(noise)
    if (noise + x).sum() > 2:
        return torch.rand(3) + noise
    return torch.randn(2), noise


@program(lambda: [(t.t(),) for t in (torch.ones(4, 5), -torch.ones(4, 5), torch.ones(4, 5))], 2)
def strides_of_carried_values(x):
    y = x * 2
    return y if y.sum() > 0 else (y + 1, y, y[1:])


@program(lambda: [(torch.ones(3), s) for s in (0.5, 0.7, -0.9, 2.0, 2.5)], 3)
def numbers_of_arguments(x, s):
    y = x * s
    if y.sum() > 2:
        return y + s
    return y - s if s > 0 else y


@program(lambda: [(torch.ones(3), torch.tensor(k)) for k in (1.5, 2.5, 2.7)], 2)
def sizes_from_data(x, size):
    return x.new_zeros(int(size)), [x, x + 1, x + 2][size.long()]


@program(lambda: _ones(1, -1, 1), 2)
def topk_of_as_many_as_positive(x):
    return torch.topk(x, max(int((x > 0).sum()), 1))


@program(lambda: [(torch.ones(3), torch.ones(3)), (torch.ones(3), -torch.ones(3)), (torch.ones(3), torch.ones(3))], 2)
def equal_tensors(a, b):
    return a + 1 if torch.equal(a, b) else a - 1


@program(lambda: [(torch.eye(3),), (torch.zeros(3, 3),), (torch.eye(3),)], 2)
def inverse_where_there_is_one(a):
    return a + 1 if torch.linalg.det(a) == 0 else torch.linalg.inv(a)


@program(lambda: _ones(1, -1, 1), 2)
def every_exception_caught(x):
    try:
        if x.sum() > 0:
            return x + 1
    except:  # noqa: E722  # the capture must get through such code
        return x * 100
    finally:
        x.add_(1)
    return x - 1


@program(lambda: _ones(3, -3, 3), 2)
def the_same_question_twice(x):
    total = x.sum()
    y = x + 1 if total > 0 else x
    return y * 2 if total > 0 else y * total


@program(lambda: _ones(1, -1, 1), 2)
def slices_and_new_tensors_of_a_size(x):
    size = (x > 0).sum()
    return x[:size], x.narrow(0, 0, int(size)), x.new_ones(size, 2), torch.arange(size), x.expand(size, 3)


@program(lambda: [(torch.arange(6.0), torch.tensor(n)) for n in ([2, 4], [1, 3], [2, 4])], 2)
def split_at_data(x, places):
    return torch.tensor_split(x, places), torch.tensor([x.sum(), 2.0]), torch.tensor([[x.max().item()], [1]])


@program(
    lambda: [(torch.tensor(n),) for n in ([[1, 2, 0], [3, 0, 0]], [[1, 0, 0], [3, 1, 2]], [[1, 2, 0], [3, 0, 0]])], 2
)
def packed_sequences(x):
    steps = x.float()[..., None].expand(-1, -1, 4)
    packed = nn.utils.rnn.pack_padded_sequence(steps, (x > 0).sum(1), batch_first=True, enforce_sorted=False)
    return packed.data * 2, packed.batch_sizes


@program(lambda: [(torch.tensor([0, 2, 1]),), (torch.tensor([0, 0, 0]),), (torch.tensor([2, 2, 2]),)], 2)
def one_hot_of_the_largest(x):
    return torch.nn.functional.one_hot(x) * 2, torch.bincount(x)


@program(lambda: [(torch.randn(5, 8) * k,) for k in (0.1, 1.0, 5.0, 20.0, 1.0)], 2)
class EarlyExit(nn.Module):
    """Stops at the first layer that is sure."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.heads = nn.ModuleList(nn.Linear(8, 3) for _ in range(4))
        self.register_buffer("depth", torch.zeros(()))
        self.register_buffer("last", torch.zeros(8))

    def forward(self, x):
        for layer, head in zip(self.layers, self.heads, strict=True):
            x = torch.relu(layer(x))
            self.depth += 1
            self.last = x[0] * 1
            sure = head(x).softmax(-1)
            if sure.max() > 0.55:
                break
        return sure


@program(
    lambda: [
        (((torch.tensor([a]), torch.tensor([b])), torch.tensor([c])),)
        for a, b, c in ((1, 2, 3), (4, 2, 3), (7, 8, 9), (0, 5, 6), (1, 2, 3))
    ],
    -1,
)
class TreeNet(nn.Module):
    """A recursive net over Python tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.join = nn.Linear(8, 4)
        self.leaf = nn.Embedding(10, 4)

    def encode(self, tree):
        if isinstance(tree, torch.Tensor):
            return self.leaf(tree)
        return torch.tanh(self.join(torch.cat([self.encode(part) for part in tree], -1)))

    def forward(self, tree):
        value = self.encode(tree)
        return value if value.sum() > 0 else -value


@program(lambda: [(torch.randn(6, 8),) for _ in range(3)], -1)
class Experts(nn.Module):
    """Each row goes to the expert that a gate chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        chosen, out = self.gate(x).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            (rows,) = torch.where(chosen == number)
            if rows.numel():
                out[rows] = expert(x[rows])
        return out


@program(lambda: [(torch.randn(6, 4),) for _ in range(4)], 0)
class CumulativeBatchNorm(nn.Module):
    """The momentum is computed from a count that the module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, momentum=None)

    def forward(self, x):
        return self.norm(x)
