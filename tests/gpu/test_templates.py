"""Products as kernels on a real CUDA device: groups, batches, programs that stay, bytes, 8-bit floats; replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import graphc
from graphc.settings import override
from tests.support import assert_contract
from tests.triton import grouped, scaled
from tests.triton.products import Case

pytestmark = pytest.mark.gpu


def _agrees(fn: Callable[..., Any], given: list[torch.Tensor], eager: Any, exact: Any) -> None:
    """Three calls, the last of them replayed, against eager's results and exact ones."""
    with override(templates="always", cache=False):
        compiled = graphc.compile(fn)
        for _ in range(3):
            found = compiled(*given)
            for mine, theirs, true in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, eager, exact))):
                assert_contract(mine.cpu(), theirs.cpu(), true.cpu())


def _wide(given: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x.double() if x.is_floating_point() else x for x in given]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", grouped.CASES)
def test_groups(name: str, dtype: torch.dtype) -> None:
    case = grouped.CASES[name]
    given = [x.cuda() for x in case.inputs(dtype)]
    eager = case.function(grouped.exact, *given)
    _agrees(grouped.grouped(case), given, eager, case.function(grouped.exact, *_wide(given)))


def test_groups_of_programs_that_stay() -> None:
    """Tiles for more than all processors; groups end within them, one has no rows, some rows no group."""
    case = grouped.Case(grouped.CASES["plain"].function, ((3400, 72), (4, 72, 1040)), (13, 13, 1700, 3300))
    given = [x.cuda() for x in case.inputs(torch.bfloat16)]
    eager = case.function(grouped.exact, *given)
    _agrees(grouped.grouped(case), given, eager, case.function(grouped.exact, *_wide(given)))


def _heads(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    queries, keys = (item.unflatten(-1, (8, 40)).transpose(1, 2) for item in (x, w))
    return torch.relu(queries @ keys.mT)


BATCHES = {
    "small": Case(lambda x, w: torch.relu(x @ w), ((272, 72, 40), (272, 40, 56))),
    "heads": Case(_heads, ((2, 264, 320), (2, 520, 320))),
    "rows with gaps": Case(lambda x, w: torch.relu(x[:, :-8] @ w), ((7, 520, 40), (40, 1040))),
}
"""Of more tiles than processors."""


@pytest.mark.parametrize("name", BATCHES)
def test_batches(name: str) -> None:
    case = BATCHES[name]
    given = [x.cuda() for x in case.inputs(torch.bfloat16)]
    _agrees(case.function, given, case.function(*given), case.function(*_wide(given)))


def _linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.relu(F.linear(x, w, b))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("shape", [(4096, 4096, 512), (4100, 3992, 328), (2052, 1000, 72)], ids=str)
def test_programs_that_go_from_tile_to_tile(shape: tuple[int, int, int], offset: int) -> None:
    """With an offset addresses are no multiple of 16 bytes: the function without descriptors is launched."""
    rows, columns, inner = shape
    x, w, b = torch.randn(rows * inner + offset), torch.randn(columns, inner), torch.randn(columns)
    x, w, b = (item.cuda().bfloat16() for item in (x, w, b))
    given = [x[offset:].view(rows, inner), w, b]
    _agrees(_linear, given, _linear(*given), _linear(*_wide(given)))


def test_bytes() -> None:
    def linear(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch._int_mm(x, w.t()).float() * scale

    x, w = (torch.randint(-128, 128, (size, 256), dtype=torch.int8, device="cuda") for size in (2052, 1008))
    given = [x, w, torch.rand(1008, device="cuda")]
    _agrees(linear, given, linear(*given), linear(*given).double())


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="no units for 8-bit floats"
)
@pytest.mark.parametrize("function", [scaled.by_matrix, scaled.by_row])
def test_8_bit_floats(function: Callable[..., torch.Tensor]) -> None:
    given = [x.cuda() for x in scaled.inputs(2052, 256, 1008)]
    _agrees(function, given, function(*given), scaled.exact(function, *given))
