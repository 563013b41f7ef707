"""Lists among the arguments that a function adds to: one program, however long they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import graphc


def x_of(call: int) -> torch.Tensor:
    return torch.linspace(-1, 1, 4) + 0.1 * call


def check(step: Callable[..., Any], arguments: Callable[[int, Any], tuple[Any, ...]], store: Any, calls: int) -> Any:
    """Results and what is in the lists, after each call, as in eager; the counters."""
    compiled, ours, theirs = graphc.compile(step, backend="interpret"), store, copy.deepcopy(store)
    for call in range(calls):
        found = compiled(x_of(call), *arguments(call, ours))
        torch.testing.assert_close(found, step(x_of(call), *arguments(call, theirs)))
        torch.testing.assert_close(ours, theirs)
    return compiled.stats()


def test_losses() -> None:
    def step(x: torch.Tensor, losses: list[float]) -> torch.Tensor:
        loss = x.square().mean()
        losses.append(loss.item())
        return loss

    stats = check(step, lambda call, store: (store[call // 5],), [[] for _ in range(4)], 20)
    assert (stats.compiles, stats.eager_calls) == (1, 0)


def test_lists_in_a_dict() -> None:
    """A buffer of what has been seen, as of an agent; keyword arguments; a counter beside."""

    def step(x: torch.Tensor, *, seen: dict[str, Any]) -> torch.Tensor:
        seen["x"].append(x)
        seen["y"].extend([x.sum().detach(), 1])
        seen["count"] += 1
        return x + seen["count"]

    seen: dict[str, Any] = {"x": [], "y": [2.0], "count": 0}
    compiled, wanted = graphc.compile(step, backend="interpret"), copy.deepcopy(seen)
    for call in range(6):
        torch.testing.assert_close(compiled(x_of(call), seen=seen), step(x_of(call), seen=wanted))
        torch.testing.assert_close(seen, wanted)
    assert compiled.stats().compiles == 3  # of the counter: its first, second and further values


def test_behind_a_branch_on_data() -> None:
    def step(x: torch.Tensor, high: list[Any], all_: list[Any]) -> torch.Tensor:
        mean = x.mean()
        all_.append(mean.item())
        if mean > 0.35:
            high.append(mean)
        return x * 2

    stats = check(step, lambda call, store: tuple(store), [[], []], 10)
    assert stats.paths == 2 and stats.eager_calls == 0 and not stats.recompiles


def test_one_list_twice() -> None:
    """As one argument and as another, in some calls: another program; returned, it is the caller's own."""

    def step(x: torch.Tensor, a: list[Any], b: list[Any]) -> Any:
        a.append(x.sum().item())
        b.append(1)
        a.append(2)
        return x * 3, b

    stats = check(step, lambda call, store: (store[0], store[call % 2]), [[], []], 8)
    assert stats.compiles == 2
    a: list[Any] = []
    assert graphc.compile(step, backend="interpret")(x_of(0), a, a)[1] is a


@pytest.mark.parametrize("name", ["looked into", "shortened", "kept", "iterated"])
def test_lists_that_are_more_than_added_to(name: str) -> None:
    """What is in them decides what the function does: facts of a program, as of any argument."""
    kept: list[Any] = []

    def looked_into(x: torch.Tensor, found: list[Any]) -> Any:
        found.append(x.sum().item())
        return x * found[0] if len(found) > 2 else x

    def shortened(x: torch.Tensor, found: list[Any]) -> Any:
        found.append(x.mean())
        if len(found) > 2:
            found.pop(0)
        return x

    def keeps(x: torch.Tensor, found: list[Any]) -> Any:
        found.append(x.sum().item())
        kept.append(found)
        return x * 2

    def iterated(x: torch.Tensor, found: list[Any]) -> Any:
        found.append(x.sum().item())
        return sum(found) * x

    steps = {"looked into": looked_into, "shortened": shortened, "kept": keeps, "iterated": iterated}
    check(steps[name], lambda call, store: (store,), [], 4)


def test_numbers_beside_a_list_become_inputs() -> None:
    """Leaves of the arguments are numbered behind the list as in front of it."""

    def step(losses: list[float], x: torch.Tensor, rate: float, turn: int) -> torch.Tensor:
        losses.append((x * rate).sum().item())
        return x * rate + turn

    compiled = graphc.compile(step, backend="interpret")
    losses: list[float] = [1.0, 2.0, 3.0]
    for turn in range(8):
        torch.testing.assert_close(compiled(losses, x_of(0), 0.5**turn, turn), x_of(0) * 0.5**turn + turn)
    assert len(losses) == 11 and compiled.stats().compiles == 3
