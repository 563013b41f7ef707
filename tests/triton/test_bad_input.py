"""Sizes and pointers at which careless kernels read from wrong places: compiled and looked at, no memory is needed."""

from __future__ import annotations

import os
import re

import pytest

from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.foreach import emit_table_kernel
from graphc.loopir.kernel import Kernel
from graphc.runtime.triton_cross import compile_for
from graphc.runtime.triton_foreach import over_blocks
from graphc.runtime.triton_launcher import compile_launch
from tests.triton.cases import chain, gather, layer_norm, reduce_all, softmax, transpose
from tests.triton.tables import momentum

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter cannot compile")

LARGE = {
    "chain": chain(1 << 17, 1 << 15),
    "odd": chain((1 << 16) + 1, (1 << 15) + 3),
    "softmax": softmax(1 << 18, 1 << 14),
    "columns": softmax(1 << 12, 1 << 20, strided=True),
    "layer_norm": layer_norm(1 << 19, 1 << 13),
    "long row": softmax(2, (1 << 31) + 8),
    "transpose": transpose(1 << 16, (1 << 16) + 1),
    "sum": reduce_all((1 << 32) + 5, "sum"),
    "gather": gather(1 << 20, 1 << 12, 1 << 20),
}
"""More than 2**31 elements."""
_NARROW_POINTER = re.compile(r"tt\.addptr .*?, (?:tensor<[\dx]*xi32>|i32\b)")
_NARROW_PRODUCT = re.compile(r"arith\.muli .* : (?:tensor<[\dx]*xi32>|i32\b)")


def first_form(kernel: Kernel, target: str) -> list[str]:
    """Triton's own IR of each launch."""
    return [found.asm["ttir"] for found in compile_for(emit_kernel(kernel, target=target), target)]


@pytest.mark.parametrize("name", LARGE)
def test_addresses_beyond_32_bits_are_computed_in_64(name: str) -> None:
    made = emit_kernel(LARGE[name], target="cuda:90")
    for text in (found.asm["ttir"] for found in compile_for(made, "cuda:90")):
        assert "tt.addptr" in text
        # partial results of parts of rows are few, and counted in 32 bits
        assert not _NARROW_POINTER.findall(text) or made.scratch
        assert [found for found in _NARROW_PRODUCT.findall(text) if "%parts" not in found] == []
    assert all(part.size < 1 << 31 for part in made.scratch)


@pytest.mark.parametrize("name", ["chain", "softmax", "sum"])
def test_they_are_so_on_other_chips(name: str) -> None:
    for target in ("cuda:80", "hip:gfx942"):
        for text in first_form(LARGE[name], target):
            assert not _NARROW_PRODUCT.findall(text)


def test_small_sizes_are_counted_in_32_bits() -> None:
    """So that the tests above can fail."""
    (text,) = first_form(chain(1 << 10, 1 << 10), "cuda:90")
    assert _NARROW_POINTER.findall(text) and _NARROW_PRODUCT.findall(text)


@pytest.mark.parametrize("name", LARGE)
def test_grids_are_what_devices_take(name: str) -> None:
    for launch in emit_kernel(LARGE[name]).launches:
        x, y, z = launch.grid
        assert 0 < x < 1 << 31 and 0 < y < 1 << 16 and 0 < z < 1 << 16


def test_rows_of_a_table_may_be_as_long() -> None:
    (found,) = compile_for(over_blocks(emit_table_kernel(*momentum(), 3, 2), 1 << 22, 2, True), "cuda:90")
    assert not _NARROW_POINTER.findall(found.asm["ttir"].split("tt.load")[-1])


def test_a_pointer_that_is_not_aligned_takes_narrow_accesses() -> None:
    made = emit_kernel(chain(1 << 10, 1 << 10))
    from graphc.runtime.triton_cross import gpu_target

    for unaligned, widest in (((), 16), ((0, 1, 2), 4)):
        compiled = compile_launch(made, made.launches[0], gpu_target("cuda:90"), unaligned)
        ptx = compiled.asm["ptx"]
        vectors = [int(n) for n in re.findall(r"ld\.global\S*?\.v(\d)\.b32", ptx)] or [1]
        assert max(vectors) * 4 == widest
