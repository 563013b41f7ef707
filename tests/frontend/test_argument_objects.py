"""Containers and plain objects among arguments and results: changed in place as in eager, made anew in each call."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import graphc
from graphc.frontend import tree


class Layer:
    """One layer of a cache, which is empty until the first call."""

    def __init__(self) -> None:
        self.keys: torch.Tensor | None = None
        self.calls = 0


class Cache:
    """What a decoder keeps from token to token."""

    def __init__(self, layers: int = 2) -> None:
        self.layers = [Layer() for _ in range(layers)]
        self.first = self.layers[0]

    def update(self, layer: int, keys: torch.Tensor) -> torch.Tensor:
        mine = self.layers[layer]
        mine.keys = keys if mine.keys is None else torch.cat([mine.keys, keys])
        mine.calls += 1
        return mine.keys


def state(value: Any) -> Any:
    """Everything in a value that can be compared."""
    if isinstance(value, (Cache, Layer)):
        return {"class": type(value).__name__, **{name: state(item) for name, item in vars(value).items()}}
    if isinstance(value, dict):
        return {key: state(item) for key, item in value.items()}
    return [state(item) for item in value] if isinstance(value, (list, tuple)) else value


def agree(fn: Any, *calls: tuple[Any, ...]) -> Any:
    """Several calls, one after the other, compiled and in eager, leave the same arguments and results."""
    compiled = graphc.compile(fn, backend="interpret")
    for args in calls:
        mine, other = copy.deepcopy(args), copy.deepcopy(args)
        found, expected = compiled(*mine), fn(*other)
        for a, b in zip(tree.flatten(state((found, mine)))[0], tree.flatten(state((expected, other)))[0], strict=True):
            assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b
            assert type(a) is type(b)
    assert not compiled.stats().eager_calls
    return compiled


def append(found: list[Any], x: torch.Tensor) -> None:
    found.append(x + 1)


def reorder(found: list[Any], x: torch.Tensor) -> Any:
    found[0], found[1] = found[1], found[0]
    found[0].add_(x)
    del found[2]
    return found


def rename(table: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    table["doubled"] = table.pop("x") * 2
    table["inner"]["count"] += 1
    return table["doubled"] + x


@pytest.mark.parametrize(
    ("fn", "container"),
    [
        (append, []),
        (append, [torch.ones(2)]),
        (reorder, [torch.ones(2), torch.zeros(2), 3]),
        (rename, {"x": torch.ones(2), "inner": {"count": 1}}),
    ],
)
def test_containers(fn, container) -> None:
    agree(fn, (container, torch.randn(2)), (container, torch.randn(2)))


def decode(x: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache]:
    keys = cache.update(0, x * 2)
    return cache.update(1, keys.sum(0, keepdim=True)).sum() + cache.first.keys.mean(), cache


def test_cache_that_fills() -> None:
    """A cache is empty in the first call; another one in the same state is another call of the same program."""
    compiled = graphc.compile(decode, backend="interpret")
    for _ in range(2):
        mine, other = Cache(), Cache()
        for _ in range(3):
            x = torch.randn(2, 3)
            found, expected = compiled(x, mine), decode(x, other)
            assert found[1] is mine and mine.first is mine.layers[0]
            torch.testing.assert_close(found[0], expected[0])
            for layer, theirs in zip(mine.layers, other.layers, strict=True):
                torch.testing.assert_close(layer.keys, theirs.keys)
                assert layer.calls == theirs.calls
    assert (compiled.stats().compiles, compiled.stats().hits) == (3, 3)


def test_counter_in_an_object_becomes_an_input() -> None:
    def count(x: torch.Tensor, layer: Layer) -> torch.Tensor:
        layer.calls += 1
        return x * layer.calls

    compiled = graphc.compile(count, backend="interpret")
    layer, x = Layer(), torch.ones(2)
    layer.keys = x
    for number in range(1, 6):
        assert torch.equal(compiled(x, layer), x * number) and layer.calls == number
    assert compiled.stats().compiles == 2


def test_objects_made_by_the_function() -> None:
    def make(x: torch.Tensor) -> tuple[Cache, torch.Tensor]:
        cache = Cache()
        cache.update(0, x)
        cache.update(1, x + 1)
        return cache, x * 2

    compiled = agree(make, (torch.randn(3),), (torch.randn(3),))
    first, second = compiled(torch.ones(3))[0], compiled(torch.zeros(3))[0]
    assert first is not second and first.first is first.layers[0]
    assert torch.equal(first.layers[1].keys, torch.full((3,), 2.0))


def test_objects_that_refer_to_themselves() -> None:
    def loop(x: torch.Tensor) -> Layer:
        layer = Layer()
        layer.keys, layer.myself = x + 1, layer  # type: ignore[attr-defined]
        return layer

    made = graphc.compile(loop, backend="interpret")(torch.ones(2))
    assert made.myself is made and torch.equal(made.keys, torch.full((2,), 2.0))


def test_gradients_through_a_cache() -> None:
    weight = torch.ones(3, requires_grad=True)

    def store(x: torch.Tensor, cache: Cache) -> torch.Tensor:
        return cache.update(0, x * weight).sum()

    compiled, cache = graphc.compile(store, backend="interpret"), Cache()
    (compiled(torch.ones(2, 3), cache) + cache.first.keys.square().sum()).backward()
    assert torch.equal(weight.grad, torch.full((3,), 6.0))


def test_a_failing_call_leaves_objects_alone() -> None:
    def fail(x: torch.Tensor, cache: Cache) -> torch.Tensor:
        cache.update(0, x)
        raise ValueError("no")

    cache = Cache()
    with pytest.raises(ValueError, match="no"):
        graphc.compile(fail, backend="interpret")(torch.ones(2), cache)
    assert cache.first.keys is None and cache.first.calls == 0


def test_a_decision_after_a_change() -> None:
    def branch(x: torch.Tensor, cache: Cache) -> torch.Tensor:
        keys = cache.update(0, x)
        return cache.update(1, keys * 2 if keys.sum() > 0 else keys - 1)

    agree(branch, (torch.ones(2), Cache()), (-torch.ones(2), Cache()))


def write_and_append(x: torch.Tensor, found: list[torch.Tensor]) -> torch.Tensor:
    found[0].mul_(x)
    found.append(found[0].view(-1))
    return found[0].sum()


def append_twice(x: torch.Tensor, found: list[torch.Tensor]) -> torch.Tensor:
    y = x * 2
    found += [y, y.detach(), y.t(), y]
    return y


def append_selected(x: torch.Tensor, found: list[torch.Tensor]) -> torch.Tensor:
    found.append(x[x > 0] * found[0].sum())
    return found[-1].sum()


@pytest.mark.parametrize("fn", [write_and_append, append_twice, append_selected])
def test_autograd_sees_what_a_list_receives(fn) -> None:
    """Writes to what is in it, views, one tensor in several places, detached ones, shapes that data decide."""
    compiled = graphc.compile(fn, backend="interpret")
    answers = []
    for call in (compiled, fn):
        torch.manual_seed(0)
        x, root = torch.randn(2, 2, requires_grad=True), torch.ones(2, 2, requires_grad=True)
        found = [root * 3]
        total = call(x, found).sum()
        for item in found:
            total = total + item.square().sum()
        total.backward()
        memory = [item.untyped_storage()._cdata for item in found]
        kinds = [(item.requires_grad, item._is_view(), memory.index(place)) for item, place in zip(found, memory)]
        answers.append((kinds, [total, x.grad, root.grad, *found]))
    assert answers[0][0] == answers[1][0] and not compiled.stats().eager_calls
    torch.testing.assert_close(answers[0][1], answers[1][1])


def test_an_object_without_tensors_in_a_list_with_others_is_known_by_its_contents() -> None:
    class Layer:
        def __init__(self, state: torch.Tensor | None, size: int) -> None:
            self.state, self.size = state, size

    class Layers:
        def __init__(self, size: int) -> None:
            self.layers = [Layer(None, size), Layer(torch.ones(2), size)]

    @graphc.compile(backend="interpret")
    def fn(x, cache):
        cache.layers[1].state = cache.layers[1].state + x
        return x * cache.layers[0].size

    for _ in range(3):
        cache = Layers(3)
        assert torch.equal(fn(torch.ones(2), cache), torch.full((2,), 3.0))
        assert torch.equal(cache.layers[1].state, torch.full((2,), 2.0))
    assert fn.stats().compiles == 1
    assert torch.equal(fn(torch.ones(2), Layers(4)), torch.full((2,), 4.0))
