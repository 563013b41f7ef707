"""What differs from call to call whatever the arguments: clocks, random bytes, identifiers."""

from __future__ import annotations

import os
import time
import types
import uuid
from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest
import torch

import graphc
from graphc.errors import FallbackWarning

HOLDER = types.SimpleNamespace(now=time.monotonic)


def under_its_own_name(x):
    return x.double() * 0 + perf_counter()


def in_a_closure() -> Callable[..., Any]:
    clock = time.perf_counter_ns
    return lambda x: x.double() * 0 + clock()


ASKING: dict[str, Callable[..., Any]] = {
    "time": lambda x: x.double() * 0 + time.time(),
    "time_ns": lambda x: x.double() * 0 + time.monotonic_ns(),
    "under_its_own_name": under_its_own_name,
    "in_a_closure": in_a_closure(),
    "in_an_object": lambda x: x.double() * 0 + HOLDER.now(),
    "urandom": lambda x: x * 0 + os.urandom(1)[-1],
    "uuid": lambda x: x.double() * 0 + uuid.uuid4().int % 1000003,
}


@pytest.mark.parametrize("name", ASKING)
def test_is_asked_for_in_each_call(name: str) -> None:
    """A program would hold the first answer for good: such functions run eager."""
    step: Any = graphc.compile(ASKING[name], backend="interpret")
    with pytest.warns(FallbackWarning, match="would not ask for again"):
        found = {float(step(torch.ones(()))) for _ in range(20)}
    assert len(found) > 1 and step.stats().eager_calls == 20


def test_is_as_before_behind_the_capture() -> None:
    before = time.time, perf_counter, HOLDER.now, os.urandom, input
    for fn in ASKING.values():
        with pytest.warns(FallbackWarning):
            graphc.compile(fn, backend="interpret")(torch.ones(()))
    assert (time.time, perf_counter, HOLDER.now, os.urandom, input) == before


def test_what_is_read_and_not_asked_runs_compiled() -> None:
    profile = False

    def step(x):
        start = perf_counter() if profile else 0.0
        return x * 2 + start

    compiled: Any = graphc.compile(step, backend="interpret")
    assert float(compiled(torch.ones(()))) == 2.0 and compiled.stats().eager_calls == 0
