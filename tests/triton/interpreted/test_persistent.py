"""Products whose programs go from tile to tile, in Triton's interpreter, against float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphc
from graphc.codegen.triton import group_items
from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiles import Choice, Tile
from graphc.ir.types import bf16, f16
from graphc.runtime.triton_launcher import InterpretedKernel
from graphc.settings import override
from tests.support import assert_contract
from tests.triton import grouped
from tests.triton.persistent import (
    BATCHED,
    LAYOUTS,
    Layout,
    divided_kernel,
    grouped_kernel,
    product_kernel,
    unordered,
)
from tests.triton.products import with_tile

torch.set_num_threads(1)
DESCRIBED = frozenset(grouped.CASES) - {"a row each", "slots"}
"""Cases of groups with several tiles, whose rows go to the product as they are."""
CHOICE = Choice(Tile(32, 32, 32, 4, 2, 1.0), programs=3)


def _check(
    shape: tuple[int, int, int], dtype: torch.dtype, layout: Layout, offset: int = 0, choice: Choice = CHOICE
) -> None:
    rows, columns, inner = shape
    kernel = product_kernel(*shape, bf16 if dtype == torch.bfloat16 else f16, layout)
    made = emit_kernel(kernel, target="cuda:90", choice=choice)
    assert made.descriptors == 2 and made.launches[0].grid == (3, 1, 1)
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    a[rows // 2, 0] = float("inf")
    memory = torch.empty(a.numel() + offset, dtype=dtype)[offset:]
    memory.copy_((a if layout[0] else a.mT).flatten())
    assert bool(memory.data_ptr() % 16) == bool(offset)
    out = torch.full((rows, columns), 7.0, dtype=dtype)
    InterpretedKernel(made)([memory, (b if layout[1] else b.mT).contiguous(), out])
    assert_contract(out, torch.relu(a @ b), torch.relu(a.double() @ b.double()))


@pytest.mark.parametrize("name", LAYOUTS)
def test_blocks_are_copied_as_described(name: str) -> None:
    _check((64, 96, 64), torch.bfloat16, LAYOUTS[name])
    _check((72, 88, 40), torch.float16, LAYOUTS[name])


def test_addresses_that_are_no_multiple_are_read_by_threads() -> None:
    _check((72, 88, 40), torch.bfloat16, LAYOUTS["rows"], offset=1)


@pytest.mark.parametrize("pieces", [2, 4])
def test_epilogues_by_pieces(pieces: int) -> None:
    for offset in (0, 1):
        _check((72, 88, 40), torch.bfloat16, LAYOUTS["rows"], offset, replace(CHOICE, pieces=pieces))


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Compares a compiled function by the numerics contract on a chip of one processor; how many matrices its kernels
    described, if they hold a product."""
    found: list[int] = []
    call = InterpretedKernel.__call__

    def noted(kernel: InterpretedKernel, tensors: Sequence[torch.Tensor]) -> None:
        found.extend([kernel.kernel.descriptors] if "tl.dot" in kernel.kernel.text else [])
        call(kernel, tensors)

    monkeypatch.setattr(InterpretedKernel, "__call__", noted)

    def check(function: Callable[..., Any], inputs: list[torch.Tensor], exact: Callable[..., Any]) -> list[int]:
        with override(templates="always", cache=False):
            mine = graphc.compile(function, backend="triton")(*inputs)
        eager, true = exact(*inputs), exact(*(x.double() if x.is_floating_point() else x for x in inputs))
        for results in zip(*(x if isinstance(x, tuple) else (x,) for x in (mine, eager, true)), strict=True):
            assert_contract(*results)
        return found

    return check


def _moved(x: torch.Tensor, offset: int) -> torch.Tensor:
    """The tensor in memory that begins at no multiple of 16 bytes, or does."""
    memory = torch.empty(x.numel() + offset, dtype=x.dtype)[offset:]
    return memory.copy_(x.flatten()).view(x.shape)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("name", BATCHED)
def test_batches(
    name: str, offset: int, compiles: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    with_tile(monkeypatch, Tile(32, 32, 32, 8, 2, 1.0), processors=1)
    case = BATCHED[name]
    x, w = case.inputs(torch.bfloat16)
    x.view(-1)[0] = float("inf")
    assert compiles(case.function, [_moved(x, offset), w], case.function) == [2]


@pytest.mark.parametrize("pieces", [1, 2])
def test_batches_that_share_matrices(pieces: int) -> None:
    made = emit_kernel(divided_kernel(bf16), target="cuda:90", choice=replace(CHOICE, pieces=pieces))
    x, w = torch.randn(4, 72, 40).bfloat16(), torch.randn(2, 40, 88).bfloat16()
    out = torch.full((72, 4, 88), 7.0, dtype=torch.bfloat16)
    InterpretedKernel(made)([x.view(-1), w.view(-1), out.view(-1)])
    whole = w.repeat_interleave(2, 0)
    assert_contract(out.transpose(0, 1), x @ whole, x.double() @ whole.double())


@pytest.mark.parametrize("name", [name for name in grouped.CASES if "sums" not in name])
def test_groups(name: str, compiles: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    with_tile(monkeypatch, Tile(16, 16, 16, 8, 2, 1.0), processors=1)
    case = grouped.CASES[name]
    found = compiles(
        grouped.grouped(case), case.inputs(torch.bfloat16), functools.partial(case.function, grouped.exact)
    )
    assert (2 in found) == (name in DESCRIBED) and len(found) == case.kernels, found


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("step", [1, 1024])
def test_groups_in_any_order(step: int, offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts of tiles are added up by many at once, or one by one."""
    monkeypatch.setattr(group_items, "_STEP", step)
    made = emit_kernel(grouped_kernel(120, 40, 24, 7, bf16), target="cuda:90", choice=CHOICE)
    assert made.descriptors == 2 and len(made.launches) == 3
    groups, x, w = unordered(120, 7), torch.randn(120, 24).bfloat16(), torch.randn(7, 24, 40).bfloat16()
    out = torch.full((120, 40), 7.0, dtype=torch.bfloat16)
    InterpretedKernel(made)([groups, _moved(x, offset).view(-1), w.view(-1), out.view(-1)])
    eager, true = (torch.bmm(x.to(kind)[:, None], w.to(kind)[groups])[:, 0] for kind in (x.dtype, torch.float64))
    assert_contract(out, eager, true)


@st.composite
def operands(draw: st.DrawFn, batch: tuple[int, ...], rows: int, columns: int) -> torch.Tensor:
    """A matrix per index of the batch: its dims in any order in memory, with gaps, some of the batch expanded."""
    sizes = [1 if draw(st.booleans()) else size for size in batch] + [rows, columns]
    order = draw(st.permutations(range(len(sizes))))
    gaps = [draw(st.sampled_from((0, 0, 8))) for _ in sizes]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    memory = torch.randn([sizes[at] + gaps[at] for at in order], generator=generator).bfloat16()
    for dim, at in enumerate(order):
        memory = memory.narrow(dim, draw(st.sampled_from((0, gaps[at]))), sizes[at])
    return memory.permute([order.index(at) for at in range(len(sizes))]).expand(*batch, rows, columns)


@st.composite
def batched(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    batch = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    rows, inner, columns = (draw(st.sampled_from((8, 24, 32, 40))) for _ in range(3))
    return draw(operands(batch, rows, inner)), draw(operands(batch, inner, columns))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(batched())
def test_random_batches(compiles: Callable[..., list[int]], pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        with_tile(monkeypatch, Tile(16, 16, 16, 8, 2, 1.0), processors=1)
        compiles(lambda x, w: x @ w + 1, list(pair), lambda x, w: x @ w + 1)
