"""What a compiled function prints and logs: in each call, with that call's numbers, in eager's order."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import graphc

LOG = logging.getLogger("test_prints")


def values(x):
    total = x.sum()
    print("sum", total, total.item(), f"{total.item():.3f} and {total:.2f}", [total.item(), {"a": total}], sep="; ")
    print(x.shape, f"{x.shape}", end="|\n")
    return x + 1


def message_made_before(x):
    loss = x.mean()
    message = f"loss: {loss.item():>7f}"
    print(message)
    print("loss " + str(loss.item()))
    return loss


def logged(x):
    loss = x.mean()
    LOG.info("norm %s %.2f", loss, loss.item())
    LOG.info(f"again {loss:.3f}")
    LOG.debug("not shown %s", loss)
    return loss


def written_between(x):
    print(x)
    x.add_(1)
    print(x, f"{x[0]}")
    return x * 1


def on_one_side(x):
    print("before")
    if x.sum() > 0:
        print("positive", x.sum().item())
    else:
        print("negative")
    return x * 2


def integers(x):
    count = (x > 0).sum()
    print(f"{count} of {x.numel()}", count.item(), f"{count.item():>4d}")
    return x * count


def in_containers(x):
    total, small = x.sum(), (x * 0.5).sum()
    print([total.item()], {"total": total.item()}, (small, [small]), f"{total.item()!r} {small} {small!r}")
    print(str(small), repr(x * 2), "%s %r" % (small, total.item()), sep="; ")  # noqa: UP031
    return x * total


@pytest.mark.parametrize(
    ("fn", "most"),
    [
        (values, 1),
        (in_containers, 1),
        (message_made_before, 1),
        (logged, 1),
        (written_between, 1),
        (on_one_side, 4),
        (integers, 1),
    ],
)
def test_printed_as_in_eager(fn: Callable[[torch.Tensor], Any], most: int) -> None:
    compiled = graphc.compile(fn)
    for x in (torch.ones(3), torch.full((3,), 2.0), torch.tensor([-1.0, 0.5, 0.25]), torch.zeros(3)):
        assert _shown(compiled, x) == _shown(fn, x)
    stats = compiled.stats()
    assert stats.compiles <= most
    assert not stats.eager_calls


def _shown(fn: Callable[[torch.Tensor], Any], x: torch.Tensor) -> str:
    shown = io.StringIO()
    LOG.handlers, LOG.propagate = [logging.StreamHandler(shown)], False
    LOG.setLevel("INFO")
    with contextlib.redirect_stdout(shown):
        fn(x.clone())
    return shown.getvalue()


def test_text_that_is_a_result_is_made_of_true_numbers() -> None:
    names = graphc.compile(lambda x: {f"n{x.sum().int()}": x})
    text = graphc.compile(lambda x: f"{x.sum().item():.3f}")
    for size in (1, 2):
        x = torch.ones(size)
        assert list(names(x)) == [f"n{size}"]
        assert text(x) == f"{size}.000"


TEXTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "in a list": lambda x: str([x.sum().item()]),
    "in a dict": lambda x: f"{ {'sum': x.sum().item()} }",
    "repr": lambda x: repr(x.sum().item()),
    "converted": lambda x: f"{x.sum().item()!r}",
    "percent": lambda x: "%s %r" % (x.sum().item(), x.sum().item()),  # noqa: UP031
    "a tensor": lambda x: str(x.sum()),
    "a tensor in a list": lambda x: f"{[x.sum()]}",
    "an integer": lambda x: repr((x > 0).sum()),
    "all elements": lambda x: str(x * 2),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_of_containers_is_made_of_true_numbers(name: str) -> None:
    fn = TEXTS[name]
    compiled = graphc.compile(fn)
    for x in (torch.ones(2), torch.tensor([1.5, -0.25]), torch.ones(2)):
        assert compiled(x) == fn(x)


def test_a_module_prints_in_a_training_step(capsys: pytest.CaptureFixture[str]) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 1)

        def forward(self, x):
            print("in", tuple(x.shape))
            return self.linear(x)

    net = Noisy()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    @graphc.compile
    def step(x):
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step()
        print(f"loss: {loss.item():.4f}")
        return loss.detach()

    losses = [step(torch.ones(4, 2)) for _ in range(3)]
    assert capsys.readouterr().out == "".join(f"in (4, 2)\nloss: {loss.item():.4f}\n" for loss in losses)
    assert step.stats().compiles == 1


def test_nothing_is_printed_when_it_is_only_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    compiled = graphc.compile(values)
    compiled.graph(torch.ones(3))
    assert not capsys.readouterr().out
