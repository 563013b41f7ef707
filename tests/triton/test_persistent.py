"""Products whose programs go from tile to tile: what becomes one, and its machine code for GPUs that are not there."""

from __future__ import annotations

import os

import pytest

from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiles import MACHINES
from graphc.ir.types import bf16, f32, i8
from graphc.program.triton_kernel import DESCRIPTOR, TritonKernel
from graphc.runtime.triton_cross import compile_for
from tests.triton.persistent import LAYOUTS, product_kernel
from tests.triton.test_products import UNITS, assembly

pytest.importorskip("triton")
compiles = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter cannot compile")
LARGE = (4096, 4096, 1024)


@compiles
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("target", ["cuda:90", "cuda:100"])
def test_the_chip_copies_blocks(target: str, name: str) -> None:
    made = emit_kernel(product_kernel(*LARGE, bf16, LAYOUTS[name]), target=target)
    (compiled,) = compile_for(made, target)
    text = assembly(compiled)
    assert "cp.async.bulk.tensor" in text and UNITS[target] in text and not compiled.loads
    assert compiled.spills == 0 and min(compiled.stores) >= 8, compiled
    assert compiled.shared <= MACHINES[target].shared
    assert compiled.memory == made.descriptors * DESCRIPTOR


@compiles
def test_the_function_for_other_addresses_has_no_descriptors() -> None:
    from dataclasses import replace

    made = emit_kernel(product_kernel(*LARGE, bf16, LAYOUTS["rows"]), target="cuda:90")
    (launch,) = made.launches
    (compiled,) = compile_for(replace(made, launches=(launch.variant(is_aligned=False),)), "cuda:90")
    assert "cp.async.bulk.tensor" not in assembly(compiled) and UNITS["cuda:90"] in assembly(compiled)
    assert compiled.spills == 0 and compiled.memory == 0


def test_one_program_per_processor() -> None:
    made = emit_kernel(product_kernel(*LARGE, bf16, LAYOUTS["rows"]), target="cuda:90")
    assert [launch.grid for launch in made.launches] == [(132, 1, 1)]
    assert made.descriptor_bytes == 132 * 2 * DESCRIPTOR
    assert TritonKernel.from_plain(made.text, made.to_plain()) == made


@pytest.mark.parametrize(
    "kernel",
    [
        product_kernel(512, 512, 512, bf16, LAYOUTS["rows"]),  # fewer tiles than processors
        product_kernel(4096, 4096, 1023, bf16, LAYOUTS["rows"]),  # rows that begin at no multiple of 16 bytes
        product_kernel(*LARGE, bf16, LAYOUTS["rows"], offset=1),
        product_kernel(*LARGE, bf16, LAYOUTS["rows"], room=4),
        product_kernel(*LARGE, f32, LAYOUTS["rows"]),  # nothing for matrix units
        product_kernel(*LARGE, i8, LAYOUTS["rows"]),  # bytes that lie across the sum
    ],
    ids=["few", "inner", "offset", "room", "f32", "i8"],
)
def test_others_are_left_to_threads(kernel: object) -> None:
    assert emit_kernel(kernel, target="cuda:90").descriptors == 0  # type: ignore[arg-type]


def test_room_between_rows_and_bytes_along_the_sum_are_described() -> None:
    for kernel in (
        product_kernel(*LARGE, bf16, LAYOUTS["rows"], room=8, offset=8),
        product_kernel(*LARGE, i8, LAYOUTS["weights as linear has them"]),
    ):
        assert emit_kernel(kernel, target="cuda:90").descriptors == 2
        assert emit_kernel(kernel, target="cuda:80").descriptors == 0
