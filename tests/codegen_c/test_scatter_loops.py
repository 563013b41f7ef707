"""Sums at places that are data, element by element: places are checked by jumps, and copies are made row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import graphc
from graphc.settings import override

ROWS, WIDTH, WIDE = 3000, 40, 70  # enough work for several threads


def _operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(ROWS, WIDTH), torch.randint(0, WIDTH, (ROWS, WIDE)), torch.randn(ROWS, WIDE)


def _compiled(function: Callable[..., Any], *args: torch.Tensor) -> tuple[Any, str]:
    """The results of a compiled function and its C text."""
    with override(cache=False):
        compiled = graphc.compile(function)
        found = compiled(*args)
        return found, "\n".join(compiled.source(*args).values())


def elements(base: torch.Tensor, index: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    return base.scatter_add(1, index, source)


def test_the_copy_is_made_row_by_row() -> None:
    base, index, source = _operands()
    before = base.clone()
    found, text = _compiled(elements, base, index, source)
    assert torch.equal(found, elements(base, index, source)) and torch.equal(base, before)
    assert f"memcpy((char *)out + i0 * {4 * WIDTH}" in text


@pytest.mark.parametrize("threads", [1, 2])
def test_other_dtypes(threads: int) -> None:
    base, index, source = _operands()
    saved = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for dtype in (torch.float64, torch.int64):
            args = (base * 100).to(dtype), index, (source * 100).to(dtype)
            found, text = _compiled(elements, *args)
            assert torch.equal(found, elements(*args))
            assert "memcpy(" in text
    finally:
        torch.set_num_threads(saved)


@pytest.mark.parametrize("bad", [WIDTH, -1, 2**40, -(2**63)])
@pytest.mark.parametrize("place", [(0, 0), (ROWS - 1, WIDE - 1)])
def test_bad_places(bad: int, place: tuple[int, int]) -> None:
    base, index, source = _operands()
    index[place] = bad
    before = base.clone()
    with pytest.raises(RuntimeError, match=f"index {bad} is out of bounds for dimension 1 with size {WIDTH}"):
        elements(base, index, source)
    with pytest.raises(RuntimeError, match=f"index {max(bad, 1 - 2**63)} is out of bounds for dimension 1"):
        _compiled(elements, base, index, source)
    assert torch.equal(base, before)


def test_in_place() -> None:
    base, index, source = _operands()
    wanted = elements(base, index, source)
    found, _ = _compiled(lambda b, i, s: b.scatter_add_(1, i, s) * 1, base, index, source)
    assert torch.equal(base, wanted) and torch.equal(found, wanted)


def test_a_kernel_with_other_results_leaves_the_copy_apart() -> None:
    """They may be stored where the copied value lay."""

    def two(base: torch.Tensor, index: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        more = source * 2
        return (base + 1).scatter_add(1, index, more), more

    args = _operands()
    found, _ = _compiled(two, *args)
    assert all(map(torch.equal, found, two(*args)))


def test_the_copy_of_what_a_library_call_gives() -> None:
    def of_a_call(base: torch.Tensor, index: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, _ = torch.sort(base, dim=1)
        return values.scatter_add(1, index, source), values.sum(1)

    args = _operands()
    (found, sums), _ = _compiled(of_a_call, *args)
    wanted, exact = of_a_call(*args)
    assert torch.equal(found, wanted)
    torch.testing.assert_close(sums, exact)


def test_places_of_two_dims() -> None:
    def put(base: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return base.index_put((rows, columns), values, accumulate=True)

    base, _, _ = _operands()
    rows, columns, values = torch.randint(-ROWS, ROWS, (999,)), torch.randint(-WIDTH, WIDTH, (999,)), torch.randn(999)
    found, _ = _compiled(put, base, rows, columns, values)
    assert torch.equal(found, put(base, rows, columns, values))
