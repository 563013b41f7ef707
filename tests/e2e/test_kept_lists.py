"""Lists and objects in which a function keeps what it made: logs of losses, histories, caches, trackers."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import graphc

Program = tuple[Callable[[torch.Tensor], Any], Callable[[], Any]]
"""A function, and what it has kept."""


class Tracker:
    def __init__(self) -> None:
        self.count, self.values, self.last = 0, [], None

    def log(self, value: Any) -> None:
        self.count += 1
        self.values.append(value)
        self.last = value


def record(owner: Any, value: torch.Tensor) -> None:
    owner.tracker.log(value)
    owner.steps.append(len(owner.sizes))


class Recording(nn.Module):
    """What it calls cannot be seen in its byte code to add to lists."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker, self.steps, self.sizes = Tracker(), [], [4, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x[:, :size] for size in self.sizes]
        record(self, x.sum())
        return torch.cat(parts, 1)


def appended() -> Program:
    kept: list[Any] = []

    def fn(x):
        kept.append(x.sum())
        kept.extend([(x[0, 0], {"mean": x.mean()}), "text", 1])
        return x + 1

    return fn, lambda: kept


def numbers() -> Program:
    history: dict[str, list[float]] = {"largest": [], "smallest": []}

    def fn(x):
        history["largest"].append(x.max().item())
        history["smallest"].append(x.min().item())
        return x * 2

    return fn, lambda: history


def new_keys() -> Program:
    history: defaultdict[str, list[torch.Tensor]] = defaultdict(list)

    def fn(x):
        history["largest"].append(x.max().detach())
        return x * 2

    return fn, lambda: dict(history)


def window() -> Program:
    kept: deque[torch.Tensor] = deque(maxlen=2)

    def fn(x):
        kept.append(x[0])
        return x * 2

    return fn, lambda: list(kept)


def emptied() -> Program:
    kept: list[torch.Tensor] = []

    def fn(x):
        kept.clear()
        kept.append(x[0])
        return x * 2

    return fn, lambda: kept


def joined() -> Program:
    kept: list[torch.Tensor] = []

    def fn(x):
        nonlocal kept
        kept += [x[0]]
        return x * 2

    return fn, lambda: kept


def counted() -> Program:
    kept: list[torch.Tensor] = []

    def fn(x):
        kept.append(x[0])
        return x * len(kept)

    return fn, lambda: kept


def stacked() -> Program:
    kept: list[torch.Tensor] = []

    def fn(x):
        kept.append(x[0])
        return torch.stack(kept)

    return fn, lambda: kept


def popped() -> Program:
    kept: list[torch.Tensor] = [torch.zeros(4), torch.ones(4)]

    def fn(x):
        first = kept.pop(0)
        kept.append(x[0] + first)
        return x + first

    return fn, lambda: kept


def given_back() -> Program:
    kept: list[torch.Tensor] = []

    def fn(x):
        kept.append(x[0])
        return kept

    return fn, lambda: kept


def branching() -> Program:
    kept: list[torch.Tensor] = []

    def fn(x):
        kept.append(x[0])
        if x[1, 1] > 0:
            kept.append(x[1])
        return x * 2

    return fn, lambda: kept


def tracked() -> Program:
    tracker = Tracker()

    def fn(x):
        tracker.log(x.sum())
        return x * 2

    return fn, lambda: vars(tracker)


def unseen() -> Program:
    module = Recording()
    return module, lambda: (vars(module.tracker), module.steps)


def renewed() -> Program:
    """Another object in each call, with a tensor in it."""
    owner = Recording()

    def fn(x):
        owner.tracker = Tracker()
        owner.tracker.last = x.sum()
        return x * 2

    return fn, lambda: vars(owner.tracker)


PROGRAMS = {
    appended: 1, numbers: 1, new_keys: 2, window: 1, emptied: 1, joined: 5, counted: 5, stacked: 5, popped: 5,
    given_back: 5, branching: 5, tracked: 2, unseen: 2, renewed: 5,
}  # fmt: skip
"""With the most captures that five calls may take: more than two where the list is looked into, or a branch."""


@pytest.mark.parametrize("make", PROGRAMS)
def test_what_is_kept(make: Callable[[], Program]) -> None:
    (eager, theirs), (fn, ours) = make(), make()
    compiled = graphc.compile(fn)
    for call in range(5):
        x = torch.arange(12.0).reshape(3, 4) * (-1) ** call + call
        torch.testing.assert_close(compiled(x), eager(x), rtol=0, atol=0)
        assert str(ours()) == str(theirs())
    stats = compiled.stats()
    assert stats.compiles <= PROGRAMS[make]
    assert not stats.eager_calls


def test_a_list_put_in_the_place_of_another() -> None:
    tracker = Tracker()
    compiled = graphc.compile(lambda x: tracker.log(x.sum()))
    for call in range(4):
        if call == 2:
            tracker.values = []
        compiled(torch.ones(2) * call)
    assert tracker.values == [4, 6]
    assert tracker.count == 4


def test_gradients_through_what_is_kept() -> None:
    kept: list[torch.Tensor] = []
    net = nn.Linear(4, 2)

    def forward(x):
        hidden = net(x)
        kept.append(hidden.square())
        return hidden.relu()

    compiled = graphc.compile(forward)
    for _ in range(2):
        compiled(torch.ones(3, 4)).sum().backward(retain_graph=True)
    grad, net.weight.grad = net.weight.grad, None
    torch.stack(kept).sum().backward()
    theirs = nn.Linear(4, 2)
    theirs.load_state_dict(net.state_dict())
    (2 * theirs(torch.ones(3, 4)).relu().sum()).backward()
    torch.testing.assert_close(grad, theirs.weight.grad)
    theirs.weight.grad = None
    (2 * theirs(torch.ones(3, 4)).square().sum()).backward()
    torch.testing.assert_close(net.weight.grad, theirs.weight.grad)


def test_a_hook_keeps_what_a_layer_gives() -> None:
    kept: list[torch.Tensor] = []
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].register_forward_hook(lambda module, args, out: kept.append(out.detach()))
    compiled = graphc.compile(model)
    for _ in range(3):
        compiled(torch.ones(2, 4))
    with torch.no_grad():
        expected = nn.functional.linear(torch.ones(2, 4), model[0].weight, model[0].bias)
    assert len(kept) == 3
    torch.testing.assert_close(kept[2], expected)
    assert compiled.stats().compiles == 1


def test_a_training_step_keeps_its_losses() -> None:
    losses: list[float] = []
    net = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)

    @graphc.compile
    def step(x):
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    for _ in range(4):
        step(torch.ones(3, 4))
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    assert step.stats().compiles == 1


def test_a_function_that_raises_keeps_nothing_of_its_capture() -> None:
    kept: list[torch.Tensor] = []

    @graphc.compile
    def fn(x):
        kept.append(x.sum())
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fn(torch.ones(2))
    assert kept == []


def test_no_fact_is_guarded_twice_or_forgotten() -> None:
    """A list that only grows is not compared; a dict in which it is found again must be the same one."""
    history: dict[str, list[float]] = {"loss": []}
    owner = Recording()
    owner.history = history  # type: ignore[assignment]

    @graphc.compile
    def fn(x):
        owner.history["loss"].append(x.sum().item())
        return x

    fn(torch.ones(2))
    owner.history = {"loss": [0.5]}  # type: ignore[assignment]
    fn(torch.ones(2))
    assert (history, owner.history) == ({"loss": [2.0]}, {"loss": [0.5, 2.0]})


class Anchors(nn.Module):
    """Keeps a list anew that holds what it held, and fills a cache in its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = [torch.ones(2), torch.zeros(2)]
        self.cache: dict[str, int] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cells = [cell.to(torch.float32) for cell in self.cells]
        self.cache = {**self.cache, "calls": len(self.cells)}
        return x + self.cells[0]


def test_a_list_made_anew_of_the_same() -> None:
    compiled = graphc.compile(Anchors())
    for _ in range(3):
        assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 2.0))
    assert compiled.stats().compiles <= 2
    assert not compiled.stats().eager_calls


class Registry:
    """Replaced by a copy of itself whenever it is asked, as libraries do that are safe for threads."""

    def __init__(self, other: Registry | None = None) -> None:
        self.found = dict(other.found) if other is not None else {}


class Registered:
    def __init__(self) -> None:
        self.state = Registry()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.state = Registry(self.state)
        return x * self.state.found.setdefault("scale", 2)


def test_a_cache_that_is_copied_in_each_call() -> None:
    registered = Registered()
    compiled = graphc.compile(lambda x: registered(x))
    for _ in range(3):
        assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 2.0))
    assert registered.state.found == {"scale": 2}
    assert compiled.stats().eager_calls == 1  # that which fills it


def behind_a_decision() -> Program:
    kept: list[Any] = []

    def fn(x):
        total = x.sum()
        if total > 0:
            total = total * 2
        kept.append(total.item())
        return total

    return fn, lambda: kept


def on_one_path() -> Program:
    kept: list[Any] = []

    def fn(x):
        total = x.sum()
        if total > 0:
            kept.append(total.item())
            return total * 2
        return total

    return fn, lambda: kept


def looked_at_on_one_path() -> Program:
    kept: list[Any] = []

    def fn(x):
        total = x.sum()
        kept.append(1.0)
        if total > 0:
            return total * len(kept)
        return total

    return fn, lambda: kept


@pytest.mark.parametrize("make, looks", [(behind_a_decision, 0), (on_one_path, 0), (looked_at_on_one_path, 1)])
def test_what_is_kept_behind_a_decision(make: Callable[[], Program], looks: bool) -> None:
    """As long as a path does not look into a list, it may have grown; where it does, its length is a fact."""
    torch.manual_seed(0)
    (fn, ours), (eager, theirs) = make(), make()
    compiled = graphc.compile(fn)
    for _ in range(12):
        x = torch.randn(4)
        torch.testing.assert_close(compiled(x), eager(x))
    assert ours() == pytest.approx(theirs())
    stats = compiled.stats()
    if not looks:
        assert stats.eager_calls == 0 and not stats.recompiles and stats.compiles <= 5


def test_an_object_that_is_given_a_number_on_one_path() -> None:
    class Best:
        def __init__(self) -> None:
            self.value = float("inf")

    def fn(best: Best, x: torch.Tensor) -> torch.Tensor:
        loss = x.square().sum()
        if loss.item() < best.value:
            best.value = loss.item()
        return loss

    torch.manual_seed(0)
    ours, theirs, compiled = Best(), Best(), graphc.compile(fn)
    for _ in range(8):
        x = torch.randn(4)
        torch.testing.assert_close(compiled(ours, x), fn(theirs, x))
        assert ours.value == pytest.approx(theirs.value)
    assert compiled.stats().eager_calls == 0
