"""Tensors that get another geometry or other memory inside a compiled function, against eager."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import graphc
from graphc.errors import FallbackWarning

BACKENDS = pytest.mark.parametrize("backend", ["interpret", "c"])
Tensor = torch.Tensor


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def transposed(x: Tensor) -> Any:
    x.t_().add_(1)
    return x, x[0]


def chained(x: Tensor) -> Any:
    return x.unsqueeze_(0).transpose_(0, 1).squeeze_(1).swapaxes_(0, 1)


def by_strides(x: Tensor) -> Any:
    x.as_strided_((2, 2), (1, 2), x.storage_offset() + 1).mul_(3)
    return x + 1


def smaller(x: Tensor) -> Any:
    x.resize_(2, 2).neg_()
    return x.sum()


def own_tensors(x: Tensor) -> Any:
    larger = x.clone().resize_(10)
    larger[x.numel() :] = 1
    two = x.clone().view(-1)
    part = two[1:]
    part.resize_(2).add_(3)
    images = torch.zeros(2, 3, 4, 5)
    images.resize_as_(images.clone(), memory_format=torch.channels_last)
    other = torch.zeros(2)
    other.set_(two)
    other.add_(1)
    none = torch.ones(3)
    none.set_()
    return larger, two, part, images, other, none


def other_memory(x: Tensor, y: Tensor) -> Any:
    x.set_(y.t())
    x.add_(1)
    return x, y


def other_data(x: Tensor, y: Tensor) -> Any:
    x.data = y * 2
    x.add_(1)
    y.data = y.data
    return x


def swapped_data(x: Tensor, y: Tensor) -> Any:
    x.data, y.data = y.data, x.data
    x.add_(1)
    return x + 1


def as_template(x: Tensor, y: Tensor) -> Any:
    return x.resize_as_(y[:1])


def results(x: Tensor, y: Tensor) -> Any:
    none, larger, few, flat = torch.empty(0), torch.empty(9), torch.empty(3), torch.empty(1, 6)
    torch.add(x, y, out=none)
    torch.mul(x, y, out=larger)
    torch.linalg.inv(x[:, :2] @ y[:, :2].t(), out=few)
    torch.add(x.t(), y.t(), out=flat)
    whole = x.new_ones(1)
    whole.addbmm_(x[:, None], y[:, :, None])
    places = torch.empty(0, dtype=torch.int64)
    sorted_ = torch.sort(x, out=(torch.empty(1), places))
    return none, larger, few, flat, whole, places, sorted_.values


def into_arguments(x: Tensor, y: Tensor) -> Any:
    torch.cat([y, y[:1]], out=x)
    return x + 1


CASES: list[tuple[Callable[..., Any], Callable[[], list[Tensor]]]] = [
    (transposed, lambda: [rand(2, 3)]),
    (transposed, lambda: [rand(4, 3)[1:, :2]]),
    (chained, lambda: [rand(2, 3)]),
    (by_strides, lambda: [rand(2, 3)]),
    (by_strides, lambda: [rand(4, 3)[1:]]),
    (smaller, lambda: [rand(2, 3)]),
    (smaller, lambda: [rand(4, 3).t()[:2]]),
    (own_tensors, lambda: [rand(2, 3)]),
    (other_memory, lambda: [rand(2, 3), rand(4, 2)]),
    (other_data, lambda: [rand(2, 3), rand(4, 2)]),
    (swapped_data, lambda: [rand(2, 3), rand(2, 3)]),
    (as_template, lambda: [rand(2, 3), rand(4, 2)]),
    (results, lambda: [rand(2, 3), rand(3, 2).t()]),
    (into_arguments, lambda: [rand(4, 3), rand(1, 3)]),
]


def leaves(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def facts(tensors: list[Tensor]) -> list[Any]:
    """Geometry, and which tensors share memory."""
    storages = [tensor.untyped_storage()._cdata for tensor in tensors]
    return [
        (tensor.shape, tensor.stride(), tensor.storage_offset(), storages.index(storage))
        for tensor, storage in zip(tensors, storages, strict=True)
    ]


@BACKENDS
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("number", range(len(CASES)))
def test_geometry_and_memory(number: int, grad: bool, backend: str) -> None:
    fn, make = CASES[number]
    ours, theirs = make(), make()
    compiled = graphc.compile(fn, backend=backend)
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            found, expected = leaves(compiled(*ours)), leaves(fn(*theirs))
            assert facts([*ours, *found]) == facts([*theirs, *expected])
            torch.testing.assert_close([*ours, *found], [*theirs, *expected])
            for mine, other in zip(found, expected, strict=True):
                assert [mine is x for x in ours] == [other is x for x in theirs]
    assert compiled.stats().eager_calls == 0


def test_a_larger_result_that_meets_an_operand() -> None:
    def gathered(x: Tensor, places: Tensor) -> Tensor:
        return torch.gather(x, 0, places[1:], out=places[:1])

    places = torch.tensor([2, 1, 0])
    with pytest.raises(RuntimeError, match="unsupported operation"):
        gathered(places.clone(), places)
    with pytest.raises(RuntimeError, match="unsupported operation"):
        graphc.compile(gathered)(places.clone(), places)


def test_results_whose_size_is_data() -> None:
    def positive(x: Tensor) -> Tensor:
        found, places = torch.ones(7), torch.zeros(2, 9, dtype=torch.int64)
        torch.masked_select(x, x > 0, out=found)
        torch.nonzero(x > 0, out=places)
        return found * 2 + places.sum()

    compiled = graphc.compile(positive, backend="interpret")
    for x in (rand(2, 3), -rand(2, 3), rand(2, 3)):
        torch.testing.assert_close(compiled(x), positive(x))
    assert compiled.stats().eager_calls == 0


def steps(net: nn.Module, x: Tensor, form: int) -> Any:
    net.zero_grad()
    loss = net(x).square().mean()
    loss.backward()
    for p in net.parameters():
        if form == 0:
            p.data -= 0.1 * p.grad
        elif form == 1:
            p.data = p.data - 0.1 * p.grad
        else:
            with torch.no_grad():
                p.set_(p - 0.1 * p.grad)
    return loss.detach(), next(net.parameters())


@BACKENDS
@pytest.mark.parametrize("form", [0, 1, 2])
def test_updates_written_by_hand(form: int, backend: str) -> None:
    theirs = nn.Linear(3, 2)
    ours = copy.deepcopy(theirs)
    compiled = graphc.compile(steps, backend=backend)
    with torch.enable_grad():
        for _ in range(3):
            (found, weight), (expected, _) = compiled(ours, rand(4, 3), form), steps(theirs, rand(4, 3), form)
            torch.testing.assert_close(found, expected)
            torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))
            assert weight is ours.weight
    assert (compiled.stats().compiles, compiled.stats().eager_calls) == (1, 0)


def test_data_of_what_autograd_follows() -> None:
    def halve(w: Tensor, x: Tensor) -> Tensor:
        y = (x @ w).square()
        w.data = w.data * 0.5
        return y + w.sum()

    compiled = graphc.compile(halve, backend="interpret")
    with torch.enable_grad():
        ours, theirs = rand(3, 2).requires_grad_(), rand(3, 2).requires_grad_()
        for _ in range(2):
            compiled(ours, rand(4, 3)).sum().backward()
            halve(theirs, rand(4, 3)).sum().backward()
            torch.testing.assert_close([ours, ours.grad], [theirs, theirs.grad])
    assert compiled.stats().eager_calls == 0


NET = nn.Linear(2, 3)


def larger_argument(x: Tensor) -> Tensor:
    return x.resize_(x.numel() + 2)[:2]


def larger_result(x: Tensor) -> Tensor:
    return torch.cat([x + 1, x + 2], out=x.detach())


def flipped_parameter(x: Tensor) -> Tensor:
    NET.weight.data = NET.weight.data.t()
    return x + 1


def of_a_non_leaf(x: Tensor) -> Tensor:
    return (x * 2).t_() + x.clone().t_()


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (larger_argument, "`resize_` makes memory larger"),
        (larger_result, "`cat` makes memory larger"),
        (flipped_parameter, "changes the geometry of a tensor that is no argument"),
    ],
)
def test_what_only_eager_does(fn: Callable[[Tensor], Tensor], said: str) -> None:
    ours, theirs = rand(2, 3), rand(2, 3)
    compiled = graphc.compile(fn, backend="interpret")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = compiled(ours)
    assert any(issubclass(w.category, FallbackWarning) and said in str(w.message) for w in caught)
    torch.testing.assert_close(found, fn(theirs))
    assert (ours.shape, compiled.stats().eager_calls) == (theirs.shape, 1)


def test_geometry_of_what_autograd_follows() -> None:
    """Tensors of the function's own are compiled; arguments that require grad run eager, which says why."""
    with torch.enable_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours, theirs = rand(2, 3).requires_grad_(), rand(2, 3).requires_grad_()
        compiled = graphc.compile(of_a_non_leaf, backend="interpret")
        compiled(ours).square().sum().backward()
        of_a_non_leaf(theirs).square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)
        assert compiled.stats().eager_calls == 0 and not caught
        flip = graphc.compile(lambda x: x.t_(), backend="interpret")
        inner = ours * 1
        flip(inner).square().sum().backward()
        assert inner.shape == (3, 2) and flip.stats().eager_calls == 1
        assert any("changes the geometry or the memory of x" in str(w.message) for w in caught)
    torch.testing.assert_close(ours.grad, theirs.grad + 2 * theirs)


def _clone_then_write(a):
    a.igamma_(torch.ones(3))
    copy = a.clone()
    copy.igamma_(torch.ones(3))
    return copy


def _equal_then_write(a):
    a.index_fill_(0, torch.tensor([0]), 2.0)
    same = torch.maximum(a, a)
    same.igamma_(torch.ones(3))
    return same


def _part_put(a):
    a[torch.tensor([1, 1])] += 2.0
    return a.ravel().flip(())


@pytest.mark.parametrize("fn", [_clone_then_write, _equal_then_write, _part_put])
@pytest.mark.parametrize("backend", ["interpret", "c"])
def test_results_are_not_the_memory_that_an_argument_ends_with(fn, backend) -> None:
    """What is equal to the new contents of an argument, or is made of them in place, is memory of its own."""
    start = torch.tensor([1.25, 1.5, 1.75])
    mine, other = start.clone(), start.clone()
    found, expected = graphc.compile(fn, backend=backend)(mine), fn(other)
    torch.testing.assert_close((found, mine), (expected, other))
    assert found.data_ptr() != mine.data_ptr()
