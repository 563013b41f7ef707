"""Products whose programs go from tile to tile, in Triton's interpreter, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiles import Choice, Tile
from graphc.ir.types import bf16, f16
from graphc.runtime.triton_launcher import InterpretedKernel
from tests.support import assert_contract
from tests.triton.persistent import LAYOUTS, Layout, product_kernel

torch.set_num_threads(1)
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
