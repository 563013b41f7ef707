"""Whole loops over data loaders, as tutorials write them: compiled turn by turn, and as in eager."""

from __future__ import annotations

import copy
import io
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from tqdm import tqdm

import graphc
from graphc.errors import FallbackWarning, UnsupportedError

COUNT, BATCH = 22, 4


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def dataset() -> TensorDataset:
    return TensorDataset(torch.randn(COUNT, 6), torch.randint(0, 3, (COUNT,)))


def loader(data: Dataset[Any] | None = None, **more: Any) -> DataLoader[Any]:
    """In an order that a seed gives, with a smaller last batch."""
    return DataLoader(data or dataset(), BATCH, shuffle=True, generator=torch.Generator().manual_seed(1), **more)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1)


def check(function: Callable[..., Any], arguments: Callable[[nn.Module], tuple[Any, ...]], calls: int = 2) -> Any:
    """Two networks, one trained by the compiled function: same results, same parameters.

    Args:
        arguments: of the function, for a network.
        calls: of the function, with the same arguments.
    """
    ours = network()
    theirs = copy.deepcopy(ours)
    torch.manual_seed(1)
    given = arguments(ours)
    torch.manual_seed(1)
    reference = arguments(theirs)
    compiled = graphc.compile(function)
    for _ in range(calls):
        found, wanted = compiled(*given), function(*reference)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    return compiled


def train(data: Any, model: Any, loss_fn: Any, optimizer: Any) -> float:
    size = len(data.dataset)
    model.train()
    for batch, (X, y) in enumerate(data):
        pred = model(X)
        loss = loss_fn(pred, y)

        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

        if batch % 2 == 0:
            loss, current = loss.item(), (batch + 1) * len(X)
            print(f"loss: {loss:>7f}  [{current:>5d}/{size:>5d}]")
    return loss if isinstance(loss, float) else loss.item()


def evaluate(data: Any, model: Any, loss_fn: Any) -> tuple[float, float]:
    model.eval()
    test_loss, correct = 0, 0
    with torch.no_grad():
        for X, y in data:
            pred = model(X)
            test_loss += loss_fn(pred, y).item()
            correct += (pred.argmax(1) == y).type(torch.float).sum().item()
    return test_loss / len(data), correct / len(data.dataset)


def test_training_as_tutorials_write_it(capsys: pytest.CaptureFixture[str]) -> None:
    compiled = check(train, lambda net: (loader(), net, nn.CrossEntropyLoss(), sgd(net)), calls=3)
    stats = compiled.stats()
    assert stats.eager_calls == 0 and stats.paths <= 4  # the full and the last batch, with and without a line printed
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 3 * 3 and lines[:3] == lines[3:6]


def test_evaluation_as_tutorials_write_it() -> None:
    compiled = check(evaluate, lambda net: (loader(), net, nn.CrossEntropyLoss()))
    stats = compiled.stats()
    assert stats.eager_calls == 0 and stats.compiles <= 4  # counters are integers first; the last batch is smaller


def fit(net: Any, data: Any, optimizer: Any, schedule: Any, epochs: int) -> tuple[list[float], list[float]]:
    history: list[float] = []
    losses: list[float] = []
    for _ in range(epochs):
        running = 0.0
        for step, (x, y) in enumerate(data):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            running += loss.item() * len(x)
        schedule.step()
        history.append(running / (step + 1))
    return history, losses


def test_epochs_with_a_list_of_losses() -> None:
    def arguments(net: nn.Module) -> tuple[Any, ...]:
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        return net, loader(), optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), 3

    stats = check(fit, arguments).stats()
    assert stats.eager_calls == 0 and stats.compiles <= 3


class Meter:
    """The average of what it is told."""

    def __init__(self) -> None:
        self.sum, self.count, self.last = 0.0, 0, 0.0

    def update(self, value: float, count: int) -> None:
        self.last = value
        self.sum += value * count
        self.count += count


class Trainer:
    def __init__(self, net: nn.Module) -> None:
        self.net, self.optimizer, self.epoch = net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), 0

    def run(self, data: Any) -> tuple[float, int]:
        """One epoch."""
        meter = Meter()
        for x, y in data:
            loss = F.cross_entropy(self.net(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            meter.update(loss.item(), x.size(0))
        self.epoch += 1
        return meter.sum / meter.count, self.epoch


def test_methods_and_meters() -> None:
    compiled = check(Trainer.run, lambda net: (Trainer(net), loader()), calls=4)
    stats = compiled.stats()
    assert stats.eager_calls == 0
    assert (
        stats.compiles <= 7
    )  # momentum comes with the first step, the last batch is smaller, an attribute counts epochs


def test_a_bound_method() -> None:
    ours = network()
    theirs = copy.deepcopy(ours)
    one, other = Trainer(ours), Trainer(theirs)
    compiled, data = graphc.compile(one.run), dataset()
    for _ in range(2):
        assert compiled(loader(data)) == pytest.approx(other.run(loader(data)), rel=1e-5)
    assert compiled.stats().eager_calls == 0 and compiled.stats().compiles > 0


def accumulate(net: Any, data: Any, optimizer: Any, every: int) -> int:
    steps = 0
    for i, (x, y) in enumerate(data):
        loss = F.cross_entropy(net(x), y) / every
        loss.backward()
        if (i + 1) % every == 0:
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
    return steps


def test_gradients_accumulated_over_turns() -> None:
    check(accumulate, lambda net: (net, loader(), sgd(net), 2))


def stopping(net: Any, data: Any, optimizer: Any, limit: int) -> tuple[int, float] | None:
    for i, (x, y) in enumerate(data):
        if i == limit:
            break
        loss = F.cross_entropy(net(x), y)
        if not torch.isfinite(loss):
            return None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return i, loss.item()


def test_turns_that_end_the_loop() -> None:
    check(stopping, lambda net: (net, loader(), sgd(net), 3))


def recurrent(net: Any, data: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    state = torch.zeros(3)
    outputs = []
    with torch.no_grad():
        for x, _ in data:
            state = torch.tanh(net(x).mean(0) + state)
            outputs.append(state.clone())
    return state, outputs


def test_state_that_turns_hand_on() -> None:
    stats = check(recurrent, lambda net: (net, loader())).stats()
    assert stats.eager_calls == 0 and stats.compiles <= 3


def pairs(net: Any, data: Any, other: Any, optimizer: Any) -> float:
    total = 0.0
    for (x, y), (u, _) in zip(data, other, strict=False):
        loss = F.cross_entropy(net(x), y) + 0.1 * net(u).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total


def test_two_loaders_at_once() -> None:
    check(pairs, lambda net: (net, loader(), loader(), sgd(net)))


class Named(Dataset[Any]):
    """Items are dicts, with noise that is drawn anew each time."""

    def __init__(self) -> None:
        self.images, self.labels = torch.randn(COUNT, 6), torch.randint(0, 3, (COUNT,))

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": self.images[index] + 0.1 * torch.randn(6), "label": self.labels[index]}


def named(net: Any, data: Any, optimizer: Any) -> dict[str, float]:
    metrics = {"loss": 0.0, "right": 0.0}
    for batch in data:
        batch = {key: value.clone() for key, value in batch.items()}
        scores = net(batch["image"])
        loss = F.cross_entropy(scores, batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        metrics["loss"] += loss.item()
        metrics["right"] += (scores.argmax(-1) == batch["label"]).float().mean().item()
    return metrics


def test_items_that_are_dicts_and_drawn_anew() -> None:
    ours = network()
    theirs, data = copy.deepcopy(ours), Named()
    compiled, mine, reference = graphc.compile(named), sgd(ours), sgd(theirs)
    for epoch in range(3):
        torch.manual_seed(epoch)
        found = compiled(ours, loader(data), mine)
        torch.manual_seed(epoch)
        assert found == pytest.approx(named(theirs, loader(data), reference), rel=1e-4)


class Stream(IterableDataset[Any]):
    """Numbers that go on from run to run."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(3):
            self.at += 1
            yield torch.full((2,), float(self.at))


def add_up(data: Any) -> torch.Tensor:
    total = torch.zeros(())
    for x in data:
        total = total + x.sum()
    return total


def test_a_stream_goes_on() -> None:
    compiled, data = graphc.compile(add_up), DataLoader(Stream(), batch_size=None)
    assert [compiled(data).item() for _ in range(3)] == [12.0, 30.0, 48.0]
    assert compiled.stats().eager_calls == 0


def test_plain_lists_are_captured_as_before() -> None:
    compiled = graphc.compile(add_up)
    items = [torch.ones(2), torch.ones(2)]
    assert compiled(items).item() == 4.0
    assert "sum" in str(compiled.graph(items))


def test_generators_as_arguments() -> None:
    """Their items come once."""
    torch.manual_seed(0)
    compiled = graphc.compile(add_up)
    for count in (3, 5):
        items = [torch.randn(4) for _ in range(count)]
        torch.testing.assert_close(compiled(item for item in items), add_up(items))
        torch.testing.assert_close(compiled(map(torch.neg, items)), add_up(map(torch.neg, items)))
    assert compiled.stats().compiles == 1 and compiled.stats().eager_calls == 0


def outer(data: Any, net: Any) -> float:
    return train(data, net, nn.CrossEntropyLoss(), sgd(net))


def test_loops_of_other_functions_run_eager() -> None:
    with pytest.warns(FallbackWarning, match=r"train \(line \d+\) goes through the items of a DataLoader"):
        compiled = check(outer, lambda net: (loader(), net))
    assert compiled.stats().eager_calls == 2


def by_hand(data: Any, count: int) -> float:
    items = iter(data)
    total = 0.0
    for _ in range(count):
        try:
            x, _ = next(items)
        except StopIteration:
            items = iter(data)
            x, _ = next(items)
        total += x.sum().item()
    return total


def test_items_that_are_asked_for_run_eager() -> None:
    with pytest.warns(FallbackWarning, match=r"by_hand \(line \d+\) goes through the items"):
        compiled = check(by_hand, lambda net: (loader(), 8))
    assert compiled.stats().eager_calls == 2


class Bar:
    """Goes through what it is given, as bars of progress do."""

    def __init__(self, items: Any) -> None:
        self.items, self.count = items, 0

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            self.count += 1
            yield item


def watched(net: Any, data: Any, optimizer: Any) -> tuple[float, int]:
    import math

    def penalty(weight: torch.Tensor) -> torch.Tensor:
        return 1e-3 * weight.pow(2).sum()

    bar, criterion, total = Bar(data), nn.CrossEntropyLoss(label_smoothing=0.1), 0.0
    for x, y in bar:
        loss = criterion(net(x), y) + sum(penalty(parameter) for parameter in net.parameters())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += math.sqrt(loss.item())
    return total, bar.count


def test_what_each_call_makes_anew_is_no_new_program() -> None:
    stats = check(watched, lambda net: (net, loader(), sgd(net)), calls=4).stats()
    assert stats.eager_calls == 0 and stats.compiles <= 2


def test_what_users_ask_about_such_a_function() -> None:
    compiled = graphc.compile(add_up)
    data = DataLoader(Stream(), batch_size=None)
    for _ in range(2):  # before the first call, and after it
        with pytest.raises(UnsupportedError, match="goes through the items"):
            compiled.graph(data)
        compiled(data)


def test_eager_and_nested_calls() -> None:
    compiled, data = graphc.compile(add_up), DataLoader(Stream(), batch_size=None)
    with graphc.eager():
        assert compiled(data).item() == 12.0
    assert compiled(data).item() == 30.0
    with graphc.eager():
        assert compiled(data).item() == 48.0
    assert compiled.stats().compiles == 1


def test_errors_come_from_the_users_line() -> None:
    def wrong(data: Any) -> torch.Tensor:
        for x, y in data:
            result = x @ y
        return result

    compiled = graphc.compile(wrong)
    with pytest.raises(RuntimeError) as found:
        compiled(loader())
    assert any(entry.lineno == wrong.__code__.co_firstlineno + 1 for entry in found.traceback)


def test_threads_with_lists_of_their_own() -> None:
    def collect(data: Any, scale: torch.Tensor) -> list[float]:
        found: list[float] = []
        for (x,) in data:
            found.append((x * scale).sum().item())
        return found

    compiled = graphc.compile(collect)
    results: dict[int, list[float]] = {}

    def run(number: int) -> None:
        data = DataLoader(TensorDataset(torch.ones(6, 2)), 1)
        results[number] = compiled(data, torch.tensor(float(number)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {number: [2.0 * number] * 6 for number in range(3)}


class Screen(io.StringIO):
    """Where a bar is drawn."""


def with_bar(net: Any, data: Any, optimizer: Any, screen: Any) -> tuple[float, int]:
    total = 0.0
    with tqdm(data, file=screen, mininterval=0, leave=True) as bar:
        for x, y in bar:
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            bar.set_postfix(loss=f"{loss.item():.3f}", size=len(x))
    return total, bar.n


def test_bars_of_progress() -> None:
    screens = [Screen(), Screen()]
    compiled = check(with_bar, lambda net: (net, loader(), sgd(net), screens.pop()), calls=3)
    stats = compiled.stats()
    assert stats.eager_calls == 0 and stats.compiles <= 2
    assert not screens


class Fitting:
    """Keeps its loader, and what it has seen."""

    def __init__(self, net: nn.Module, data: Any) -> None:
        self.net, self.data = net, data
        self.optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        self.best, self.history = float("inf"), list[float]()

    def run(self, epochs: int) -> float:
        for _ in range(epochs):
            for x, y in self.data:
                loss = F.cross_entropy(self.net(x), y)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.history.append(loss.item())
                if loss.item() < self.best:
                    self.best = loss.item()
        return sum(self.history) / len(self.history)


def test_objects_that_keep_their_loader_and_history() -> None:
    data = dataset()
    compiled = check(Fitting.run, lambda net: (Fitting(net, loader(data)), 2), calls=3)
    stats = compiled.stats()
    assert stats.eager_calls == 0 and not any("history" in reason for reason in stats.recompiles)


def test_a_loop_that_trains_many_times() -> None:
    """Through batches by their numbers, in two loops, the last batch smaller: not unrolled into one program."""
    x, y = torch.randn(250, 6), torch.randint(0, 3, (250,))

    def fit(net: nn.Module) -> float:
        total = 0.0
        for _ in range(2):
            for batch in range((len(x) - 1) // BATCH + 1):
                start = batch * BATCH
                loss = F.cross_entropy(net(x[start : start + BATCH]), y[start : start + BATCH])
                loss.backward()
                total += loss.item()
                with torch.no_grad():
                    for p in net.parameters():
                        p -= p.grad * 0.05  # type: ignore[operator]
                    net.zero_grad()
        return total

    ours = network()
    theirs, compiled = copy.deepcopy(ours), graphc.compile(fit, backend="interpret")
    for _ in range(2):
        assert compiled(ours) == pytest.approx(fit(theirs), rel=1e-4)
    for found, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, wanted)
    assert compiled.stats().compiles <= 8 and compiled.stats().eager_calls == 1, compiled.stats()
