"""`x[t : t + 8]` with a tensor or a number t: one program for all places, read, written and differentiated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import graphc
from tests.support import assert_contract


def batch(data: torch.Tensor, t: torch.Tensor) -> Any:
    """As a language model's: windows of the text, and the same one further."""
    inputs = torch.stack([data[i : i + 4] for i in (t, t + 2, t * 2)])
    return inputs, torch.stack([data[i + 1 : i + 4 + 1] for i in (t, t + 2)])


def crop(data: torch.Tensor, t: torch.Tensor) -> Any:
    image = data.view(4, 6)
    return image[..., t : t + 2] + image[None, -1:, t - 1 : t + 1], image.narrow(1, t, 2) + 1, -image[1, t : t + 1]


def written(data: torch.Tensor, t: torch.Tensor) -> Any:
    """Masked stretches, a view written through, and a window that is written while another one is read."""
    image = data.reshape(4, 6).clone()
    image[:, t : t + 2] = 0
    row = image[t : t + 2]
    row.mul_(2)
    row[0, t : t + 3] += 1
    image[2:4, t : t + 2] = image[0:2, t + 1 : t + 3]
    return image, row.clone()


def of_numbers(data: torch.Tensor, t: torch.Tensor) -> Any:
    start = t.item()
    middle = start * 2 + 1
    return -data[start : start + 3], data[middle - 1 : middle + 2] * start, data[start * 3 : start * 3 + 4] + 1


def dtypes(data: torch.Tensor, t: torch.Tensor) -> Any:
    return data.half()[t : t + 2] * 2, ~(data > 3)[t : t + 2], data.long()[t * 2 : 2 + t * 2] + 1


PROGRAMS: list[Callable[..., Any]] = [batch, crop, written, of_numbers, dtypes]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("backend", ["interpret", "c"])
def test_one_program_for_all_places(program: Callable[..., Any], backend: str) -> None:
    compiled = graphc.compile(program, backend=backend)
    data = torch.arange(24.0)
    for place in (1, 2, 1, 0 if program is batch else 2):
        torch.testing.assert_close(compiled(data, torch.tensor(place)), program(data, torch.tensor(place)))
    stats = compiled.stats()
    assert (stats.compiles, stats.eager_calls) == (1, 0), stats


def test_gradients() -> None:
    """Of overlapping windows, into a parameter, in float64's terms."""

    def loss(w: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        part = w[t : t + 3, t - 1 : t + 1]
        return (part * part.flip(0)).sum() + w[t + 1 : t + 3].exp().sum()

    compiled = graphc.compile(loss, backend="c")
    for place in (1, 2):
        found = []
        for function, dtype in ((compiled, torch.float32), (loss, torch.float32), (loss, torch.float64)):
            w = torch.linspace(-1, 1, 30, dtype=dtype).reshape(5, 6).requires_grad_()
            function(w, torch.tensor(place)).backward()
            found.append(w.grad)
        assert_contract(*found)
    assert compiled.stats().compiles == 1


@pytest.mark.parametrize("backend", ["interpret", "c"])
def test_slices_that_end_outside(backend: str) -> None:
    """Python counts negative bounds from the end and cuts off what is not there: other shapes, each its own path."""

    def program(x: torch.Tensor, t: torch.Tensor) -> Any:
        return x[t : t + 3] * 2

    compiled, x = graphc.compile(program, backend=backend), torch.arange(5.0)
    for place in (1, 2, 4, -2, -5, -3, 9, 2, -9):
        torch.testing.assert_close(compiled(x, torch.tensor(place)), program(x, torch.tensor(place)))


def test_a_cache_that_is_written_at_a_position() -> None:
    """The position is a Python number that is another one in each call."""
    cache = torch.zeros(2, 16, 3)

    @graphc.compile(backend="c")
    def step(x: torch.Tensor, position: int) -> torch.Tensor:
        cache[:, position : position + 2] = x
        return cache.sum() + x

    wanted = torch.zeros(2, 16, 3)
    for position in range(8):
        x = torch.full((2, 2, 3), float(position))
        wanted[:, position : position + 2] = x
        torch.testing.assert_close(step(x, position), wanted.sum() + x)
        torch.testing.assert_close(cache, wanted)
    assert step.stats().compiles == 3


def test_batches_of_which_the_last_is_cut_off() -> None:
    """One program for all whole ones, whatever their number, and one for the rest, once it has come."""
    data = torch.arange(70.0)

    @graphc.compile(backend="c")
    def batch(turn: int) -> torch.Tensor:
        start = turn * 8
        return data[start : start + 8] * 2

    for _ in range(2):
        for turn in range(9):
            torch.testing.assert_close(batch(turn), data[turn * 8 : turn * 8 + 8] * 2)
    stats = batch.stats()
    assert stats.compiles <= 8 and stats.eager_calls == 1, stats


def test_a_view_at_a_place_is_returned_as_one() -> None:
    def program(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x[t : t + 2]

    compiled, x = graphc.compile(program, backend="interpret"), torch.arange(5.0)
    for place in (0, 2, 3):
        view = compiled(x, torch.tensor(place))
        assert view.data_ptr() == x[place:].data_ptr() and torch.equal(view, x[place : place + 2])
