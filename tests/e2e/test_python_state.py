"""Python state that a function reads and writes outside of itself, wherever it is kept: each call is as in eager."""

from __future__ import annotations

import functools
import itertools
import os
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphc
from graphc.errors import FallbackWarning

Program = tuple[Callable[[torch.Tensor], Any], Callable[[], Any], Callable[[], None]]
"""A function, what is to be seen of its state, and what happens between calls."""
CALLS = 5


def nothing() -> None:
    return None


def default() -> Program:
    def step(x, n=[0]):
        n[0] += 1
        return x * n[0]

    return step, lambda: step.__defaults__, nothing


def default_of_a_helper() -> Program:
    def helper(x, *, seen={"calls": 0}):
        seen["calls"] += 1
        return x * seen["calls"]

    return lambda x: helper(x), lambda: helper.__kwdefaults__, nothing


def default_with_a_tensor() -> Program:
    def step(x, cache={}):
        cache["h"] = cache.get("h", 0.0) * 0.5 + x
        return cache["h"] * 2

    return step, lambda: step.__defaults__, nothing


def default_replaced() -> Program:
    def helper(x, scale=1.0):
        return x * scale

    def between() -> None:
        helper.__defaults__ = (3.0,)

    return lambda x: helper(x), nothing, between


def attribute_of_a_function() -> Program:
    def helper(x):
        helper.calls = getattr(helper, "calls", 0) + 1
        helper.last = x * helper.calls
        return helper.last

    return lambda x: helper(x), lambda: vars(helper), nothing


def attribute_of_a_wrapper() -> Program:
    def counted(fn):
        @functools.wraps(fn)
        def wrapper(*args):
            wrapper.calls += 1
            return fn(*args) * wrapper.calls

        wrapper.calls = 0
        return wrapper

    helper = counted(lambda x: x + 1)
    return lambda x: helper(x), lambda: helper.calls, nothing


def attribute_of_a_class() -> Program:
    class Config:
        scale = 1.0
        table = [1.0, 2.0]

        @classmethod
        def apply(cls, x):
            cls.scale += 1
            return x * cls.scale + cls.table[1]

    def between() -> None:
        Config.table[1] += 1

    return lambda x: Config.apply(x), lambda: Config.scale, between


def class_of_a_module() -> Program:
    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            return x * self.calls

    return Counting(), lambda: Counting.calls, nothing


def class_of_an_argument() -> Program:
    class Scale:
        value = 0

        def __call__(self, x):
            Scale.value += 1
            return x * Scale.value

    scale = Scale()
    return functools.partial(lambda scale, x: scale(x), scale), lambda: Scale.value, nothing


def method_of_the_parent() -> Program:
    class Parent:
        def __init__(self) -> None:
            self.calls = 0

        def apply(self, x):
            self.calls += 1
            return x * self.calls

    class Child(Parent):
        def apply(self, x):
            return super().apply(x) * 2

    child = Child()
    return lambda x: child.apply(x), lambda: child.calls, nothing


def slots() -> Program:
    class State:
        __slots__ = ("calls", "last")

    state = State()
    state.calls, state.last = 0, torch.zeros(3)

    def step(x):
        state.calls += 1
        state.last = state.last * 0.5 + x
        return state.last * state.calls

    return step, lambda: (state.calls, state.last), nothing


def object_in_objects() -> Program:
    root = SimpleNamespace(a=SimpleNamespace(b=SimpleNamespace(scale=1.0)))

    def apply(holder, x):
        return x * holder.b.scale

    def between() -> None:
        root.a.b.scale += 1

    return lambda x: apply(root.a, x), nothing, between


def objects_in_a_list() -> Program:
    layers = [SimpleNamespace(scale=1.0), SimpleNamespace(scale=2.0)]

    def step(x):
        for layer in layers:
            x = x * layer.scale
            layer.scale += 1
        return x

    return step, lambda: [layer.scale for layer in layers], nothing


def functions_in_a_list() -> Program:
    def counting():
        calls = 0

        def apply(x):
            nonlocal calls
            calls += 1
            return x * calls

        return apply

    first, second = counting(), counting()
    functions = {"first": first, "others": [second]}
    return lambda x: functions["first"](x) + functions["others"][0](x), nothing, lambda: second(torch.ones(1))


def function_as_an_argument() -> Program:
    scale = [1.0]

    def double(x):
        return x * scale[0]

    def between() -> None:
        scale[0] += 1

    return functools.partial(lambda fn, x: fn(x), double), nothing, between


def lists_in_lists() -> Program:
    state = ([0], [[1.0], {"scale": 2.0}])

    def step(x):
        state[0][0] += 1
        state[1][0][0] *= 2
        state[1][1]["scale"] += 1
        return x * state[0][0] + state[1][0][0] * state[1][1]["scale"]

    return step, lambda: state, nothing


def mixed_with_objects() -> Program:
    parts = {"scale": 1.0, "net": nn.Identity(), "other": object(), "list": [1.0, nn.Identity()]}

    def step(x):
        parts["scale"] += 1
        return parts["net"](x) * parts["scale"] + parts["list"][0]

    def between() -> None:
        parts["list"][0] += 1

    return step, lambda: parts["scale"], between


def long_list() -> Program:
    values = [float(n) for n in range(200)]

    def between() -> None:
        values[3] += 1

    return lambda x: x * values[3], nothing, between


def tensors_in_a_list() -> Program:
    hidden = [torch.zeros(3), torch.ones(3)]

    def step(x):
        for layer in range(2):
            hidden[layer] = torch.tanh(hidden[layer] + x)
        return hidden[1] * 1

    return step, lambda: hidden, nothing


def module_of_settings() -> Program:
    settings = ModuleType("settings")
    settings.scale = 1.0

    def step(x):
        settings.scale += 1
        return x * settings.scale

    return step, lambda: settings.scale, nothing


def cached_reader() -> Program:
    scale = [1.0]

    @functools.lru_cache
    def read(size):
        return scale[0] * size

    def between() -> None:
        scale[0] += 1
        read.cache_clear()

    return lambda x: x * read(3), nothing, between


class Settings(dict):
    """As configurations often are: keys are attributes."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


def dict_with_attributes() -> Program:
    settings = Settings(scale=1.0, inner=Settings(scale=2.0))

    def step(x):
        settings.scale = settings.scale + 1
        return x * settings.scale * settings.inner.scale

    def between() -> None:
        settings.inner.scale += 1

    return step, lambda: dict(settings), between


def decorated_method() -> Program:
    state = {"scale": 1.0}

    class Scaling:
        @torch.no_grad()
        def apply(self, x):
            state["scale"] += 1
            return x * state["scale"]

    scaling = Scaling()
    return lambda x: scaling.apply(x), lambda: state, nothing


def attribute_of_a_layer() -> Program:
    layer = nn.Identity()
    layer.scale = 1.0

    def between() -> None:
        layer.scale += 1

    return lambda x: layer(x) * layer.scale, nothing, between


def tuple_of_tensors() -> Program:
    state = {"hidden": (torch.zeros(3), torch.ones(3))}

    def step(x):
        h, c = state["hidden"]
        state["hidden"] = (torch.tanh(h + x), c + h)
        return c * 2

    return step, lambda: state, nothing


def by_name() -> Program:
    globals()["SCALE"] = 1.0

    def between() -> None:
        globals()["SCALE"] += 1

    return lambda x: x * globals()["SCALE"], nothing, between


class Making(OrderedDict):
    """A table that makes what it gives."""

    def __getitem__(self, key):
        return super().__getitem__(key)()


def table_that_makes() -> Program:
    table = Making(double=lambda: lambda x: x * 2)
    return lambda x: table["double"](x), lambda: len(table), nothing


COMPILED = (
    table_that_makes,
    dict_with_attributes, decorated_method, attribute_of_a_layer, tuple_of_tensors, by_name,
    default, default_of_a_helper, default_with_a_tensor, default_replaced, attribute_of_a_function,
    attribute_of_a_wrapper, attribute_of_a_class, class_of_a_module, class_of_an_argument, method_of_the_parent, slots,
    object_in_objects, objects_in_a_list, functions_in_a_list, function_as_an_argument, lists_in_lists,
    mixed_with_objects, long_list, tensors_in_a_list, module_of_settings,
)  # fmt: skip


def grown_set() -> Program:
    seen: set[int] = set()

    def step(x):
        seen.add(len(seen))
        return x * len(seen)

    return step, lambda: seen, nothing


def array() -> Program:
    counts = np.zeros(2)

    def step(x):
        counts[0] += 1
        return x * float(counts[0])

    return step, lambda: counts.tolist(), nothing


def list_in_a_list() -> Program:
    found: list[list[int]] = [[0], []]

    def step(x):
        found[1].append(len(found[1]))
        return x * len(found[1])

    return step, lambda: found, nothing


def iterator() -> Program:
    counter = itertools.count(1)
    return lambda x: x * next(counter), nothing, nothing


def generator() -> Program:
    def doubling():
        value = torch.ones(3)
        while True:
            value = value * 2
            yield value

    values = doubling()
    return lambda x: x * next(values), nothing, nothing


EAGER = {
    grown_set: "a set",
    array: "a ndarray",
    list_in_a_list: "a list",
    iterator: "a count",
    generator: "a generator",
}


def runs(make: Callable[[], Program], compiled: bool) -> tuple[list[Any], Any, Any]:
    """What the calls give, the state that is left, and the function."""
    step, state, between = make()
    fn: Any = graphc.compile(step, backend="interpret") if compiled else step
    given = []
    for turn in range(CALLS):
        given.append(fn(torch.full((3,), turn + 1.0)))
        between()
    return given, state(), fn


@pytest.mark.parametrize("make", COMPILED, ids=lambda make: make.__name__)
def test_state_is_read_and_changed_in_each_call(make: Callable[[], Program]) -> None:
    wanted, left, _ = runs(make, False)
    found, kept, fn = runs(make, True)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(kept, left)
    stats = fn.stats() if not isinstance(fn, nn.Module) else fn.compiled.stats()
    assert stats.compiles <= 3 and not stats.eager_calls


@pytest.mark.parametrize("make", EAGER, ids=lambda make: make.__name__)
def test_what_no_program_does_again_is_done_by_eager(make: Callable[[], Program]) -> None:
    wanted, left, _ = runs(make, False)
    with pytest.warns(FallbackWarning, match=EAGER[make]):
        found, kept, fn = runs(make, True)
    torch.testing.assert_close(found, wanted)
    assert kept == left
    assert fn.stats().eager_calls == CALLS


def test_a_cache_that_reads_state_is_cleared() -> None:
    wanted, _, _ = runs(cached_reader, False)
    found, _, _ = runs(cached_reader, True)
    torch.testing.assert_close(found, wanted)


def test_an_object_that_the_first_call_makes() -> None:
    class Counter:
        only = None

        def __init__(self) -> None:
            self.calls = 0

        @classmethod
        def get(cls):
            if cls.only is None:
                cls.only = cls()
            return cls.only

    @graphc.compile(backend="interpret")
    def step(x):
        Counter.get().calls += 1
        return x * Counter.get().calls

    with pytest.warns(FallbackWarning, match="class Counter"):
        assert [float(step(torch.ones(()))) for _ in range(CALLS)] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert (step.stats().eager_calls, step.stats().compiles) == (1, 2)


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    step: Any = graphc.compile(lambda x: x * float(os.environ["GRAPHC_TEST_SCALE"]), backend="interpret")
    for scale in ("1", "2", "2"):
        monkeypatch.setenv("GRAPHC_TEST_SCALE", scale)
        assert float(step(torch.ones(()))) == float(scale)
    assert step.stats().compiles == 2


def test_a_cache_that_the_first_call_fills() -> None:
    """It keeps no tensor of a capture: the call that fills it is eager's, those after it run compiled."""

    @functools.lru_cache
    def positions(size):
        return torch.arange(size) * 2.0

    step: Any = graphc.compile(lambda x: x * positions(3), backend="interpret")
    with pytest.warns(FallbackWarning, match="positions keeps .* the next call is captured again"):
        first = step(torch.ones(3))
    torch.testing.assert_close([first, step(torch.ones(3)), positions(3)], [torch.arange(3) * 2.0] * 3)
    assert (step.stats().eager_calls, step.stats().compiles) == (1, 1)


_FUNCTIONS: dict[type, Any] = {}


def test_a_table_by_classes_of_tensors() -> None:
    """As a library finds out once which functions suit a class (einops does): of traced tensors it may know, too."""

    def double(x):
        if type(x) not in _FUNCTIONS:
            _FUNCTIONS[type(x)] = torch.square
        return _FUNCTIONS[type(x)](x) + 1

    step: Any = graphc.compile(double, backend="interpret")
    for _ in range(3):
        torch.testing.assert_close(step(torch.full((3,), 2.0)), torch.full((3,), 5.0))
    assert step.stats().eager_calls == 0 and not step.stats().recompiles[1:]


@pytest.mark.parametrize("kind", [lambda: defaultdict(int), Counter], ids=["defaultdict", "counter"])
def test_counts_in_tables_become_inputs(kind: Callable[[], Any]) -> None:
    counts = kind()

    def step(x):
        counts["steps"] += 1
        return x * counts["steps"]

    fn: Any = graphc.compile(step, backend="interpret")
    assert [float(fn(torch.ones(()))) for _ in range(CALLS)] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert fn.stats().compiles == 3
