"""Kernels over tables of rows: compiled for GPUs that are not there, and launched on one that is made up."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from graphc.codegen.triton.foreach import emit_table_kernel
from graphc.ir.types import bf16, f32
from graphc.runtime.triton_cross import TARGETS, compile_for
from graphc.runtime.triton_foreach import over_blocks
from tests.triton.tables import momentum, norm_and_peak

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter cannot compile")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [f32, bf16], ids=str)
def test_full_blocks_have_the_widest_accesses(target: str, dtype: SimpleNamespace) -> None:
    made = emit_table_kernel(*momentum(dtype), 3, 2)
    (compiled,) = compile_for(over_blocks(made, 5, 2, True), target)
    assert compiled.spills == 0
    assert max(compiled.loads) == max(compiled.stores) == max(compiled.widths[-1]) == 16
    (narrow,) = compile_for(over_blocks(made, 5, 2, False), target)
    assert max(narrow.stores) == dtype.itemsize


def test_in_place_buffers_are_one_pointer() -> None:
    text = emit_table_kernel(*momentum(), 3, 2).text
    assert text.count("tl.multiple_of(") == 3
    assert "tl.store(p_ptr + " in text and "tl.store(m_ptr + " in text


@pytest.mark.parametrize("target", TARGETS)
def test_reductions_are_a_launch_over_blocks_and_one_over_rows(target: str) -> None:
    ready = over_blocks(emit_table_kernel(*norm_and_peak(bf16), 3, 0), 5, 2, True)
    assert [launch.grid for launch in ready.launches] == [(5, 1, 1), (2, 1, 1)]
    assert [part.size for part in ready.scratch] == [5, 5]
    blocks, rows = compile_for(ready, target)
    assert max(blocks.loads) == 16 and not blocks.spills and not rows.spills
