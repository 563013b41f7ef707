"""Products whose programs go from tile to tile: what becomes one, and its machine code for GPUs that are not there."""

from __future__ import annotations

import os

import pytest
import torch

from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiles import MACHINES, Choice, Tile, candidate_tiles
from graphc.ir.types import bf16, f32, i8
from graphc.loopir.kernel import Kernel
from graphc.program.triton_kernel import DESCRIPTOR, TritonKernel
from graphc.runtime.triton_cross import compile_for
from tests.triton import grouped
from tests.triton.persistent import BATCHED, LAYOUTS, NOT_BATCHED, batched_kernel, divided_kernel, product_kernel
from tests.triton.products import Case, plan_of
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


# ------------------------------------------------------------------------------------------------ batches and groups

SMALL = Choice(Tile(32, 32, 32, 4, 2, 1.0), programs=3)
HEADS = Case(
    lambda x, w: torch.relu(
        x.unflatten(-1, (8, 64)).transpose(1, 2) @ w.unflatten(-1, (8, 64)).permute(0, 2, 3, 1)
    ),
    ((4, 1024, 512), (4, 1024, 512)),
)  # fmt: skip
SLICED = Case(lambda x, w: torch.relu(x[:, :-1] @ w), ((16, 1024, 512), (512, 1024)))
MANY = Case(lambda x, w: torch.relu(x @ w), ((16, 1024, 512), (16, 512, 1024)))
TINY = Case(lambda x, w: torch.relu(x @ w), ((1024, 64, 64), (1024, 64, 64)))


@pytest.mark.parametrize("name", BATCHED)
def test_matrices_of_a_batch_are_described(name: str) -> None:
    kernel = batched_kernel(BATCHED[name], torch.bfloat16)
    made = emit_kernel(kernel, target="cuda:90", choice=SMALL)
    assert made.descriptors == 2 and made.launches[0].grid == (3, 1, 1)
    for target in ("cuda:80", "hip:gfx942"):
        assert emit_kernel(kernel, target=target).descriptors == 0


@pytest.mark.parametrize("name", NOT_BATCHED)
def test_other_batches_are_left_to_threads(name: str) -> None:
    assert (
        emit_kernel(batched_kernel(NOT_BATCHED[name], torch.bfloat16), target="cuda:90", choice=SMALL).descriptors == 0
    )


def test_what_a_descriptor_of_several_matrices_says() -> None:
    text = emit_kernel(divided_kernel(bf16), target="cuda:90", choice=SMALL).text
    assert "left_blocks = tl.make_tensor_descriptor(x_ptr, [4, 72, 40], [2880, 40, 1], [1, MBLOCK, KBLOCK])" in text
    assert "right_blocks = tl.make_tensor_descriptor(w_ptr, [2, 40, 88], [3520, 88, 1], [1, KBLOCK, NBLOCK])" in text
    assert "right_blocks.load([(n // 2), k_start, n_tile * NBLOCK]).reshape([KBLOCK, NBLOCK])" in text


@pytest.mark.parametrize("rows", [1, 0])
def test_batches_without_tiles_to_go_to(rows: int) -> None:
    case = Case(lambda x, w: torch.relu(x @ w), ((5, rows, 40), (5, 40, 88)))
    for kernel in plan_of(case, torch.bfloat16).kernels.values():
        assert emit_kernel(kernel, target="cuda:90").descriptors == 0


def test_rows_of_few_tiles_stay_one_matrix() -> None:
    """What gains nothing from a batch is not cut for one: `m` runs over all rows."""
    few = Case(SLICED.function, ((2, 520, 512), (512, 64)))
    made = emit_kernel(batched_kernel(few, torch.bfloat16), target="cuda:90")
    assert made.descriptors == 0 and "m = m_tile * MBLOCK" in made.text
    assert " m = m_tile" not in emit_kernel(batched_kernel(SLICED, torch.bfloat16), target="cuda:90").text
    assert " m = m_tile" in emit_kernel(batched_kernel(SLICED, torch.bfloat16), target="cuda:80").text


@compiles
@pytest.mark.parametrize("case", [MANY, HEADS, SLICED, TINY], ids=["many", "heads", "sliced", "tiny"])
@pytest.mark.parametrize("target", ["cuda:90", "cuda:100"])
def test_the_chip_copies_blocks_of_batches(target: str, case: Case) -> None:
    made = emit_kernel(batched_kernel(case, torch.bfloat16), target=target)
    (compiled,) = compile_for(made, target)
    text = assembly(compiled)
    assert "cp.async.bulk.tensor" in text and UNITS[target] in text and not compiled.loads
    assert compiled.spills == 0 and min(compiled.stores) >= 8, compiled
    assert compiled.shared <= MACHINES[target].shared and compiled.memory == 2 * DESCRIPTOR


def test_small_tiles_stay_side_by_side() -> None:
    """As many programs of one processor as registers and shared memory are there for."""
    for size, tile, programs in ((1024, 256, 132), (64, 64, 264)):
        choice = candidate_tiles(
            "cuda:90", 1024, size, size, 256, bf16, loaded=2, stored=2, scalar=False, may_stay=True
        )[0]  # fmt: skip
        assert (choice.tile.columns, choice.programs) == (tile, programs)


def test_only_what_is_described_stays() -> None:
    shape = (1, 4096, 4096, 1024)
    for may_stay, programs in ((True, 132), (False, 0)):
        choice = candidate_tiles("cuda:90", *shape, bf16, loaded=2, scalar=False, may_stay=may_stay)[0]
        assert choice.programs == programs
    for case in (MANY, SLICED):
        kernel = batched_kernel(case, torch.float32)  # nothing for matrix units
        assert emit_kernel(kernel, target="cuda:90").descriptors == 0


GROUPS = grouped.Case(grouped.CASES["plain"].function, ((16384, 512), (8, 512, 1024)), tuple(range(2048, 16385, 2048)))
TURNED = grouped.Case(grouped.CASES["transposed"].function, ((16384, 512), (8, 1024, 512)), GROUPS.ends)


def _grouped_kernel(case: grouped.Case) -> Kernel:
    (kernel,) = (kernel for kernel in grouped.plan_of(case, torch.bfloat16).kernels.values() if kernel.contractions)
    return kernel


@compiles
@pytest.mark.parametrize("case", [GROUPS, TURNED], ids=["rows", "transposed"])
@pytest.mark.parametrize("target", ["cuda:90", "cuda:100"])
def test_the_chip_copies_blocks_of_groups(target: str, case: grouped.Case) -> None:
    made = emit_kernel(_grouped_kernel(case), target=target)
    *before, compiled = compile_for(made, target)
    assert len(before) == 2 and not any(item.spills or item.memory or item.tensor_core for item in before)
    text = assembly(compiled)
    assert "cp.async.bulk.tensor" in text and UNITS[target] in text
    assert max(compiled.loads) <= 8  # which group a row has: nothing of the matrices
    assert compiled.spills == 0 and min(compiled.stores) >= 8, compiled
    assert compiled.shared <= MACHINES[target].shared and compiled.memory == 2 * DESCRIPTOR


SLOTS = grouped.Case(grouped.CASES["slots"].function, ((16384, 2048), (8, 2048, 1024), (16384, 1)), GROUPS.ends)


@compiles
@pytest.mark.parametrize("target", ["cuda:90", "cuda:100"])
def test_groups_whose_rows_are_computed_stay_too(target: str) -> None:
    made = emit_kernel(_grouped_kernel(SLOTS), target=target)
    assert len(made.launches) == 3 and made.descriptors == 0 and not made.launches[-1].unaligned
    compiled = compile_for(made, target)[-1]
    assert compiled.spills == 0 and UNITS[target] in assembly(compiled) and min(compiled.stores) >= 8, compiled


def test_there_are_as_many_matrices_as_memory_holds() -> None:
    text = emit_kernel(_grouped_kernel(GROUPS), target="cuda:90").text
    assert "tl.make_tensor_descriptor(args_1_ptr, [8, 512, 1024], [524288, 1024, 1], [1, KBLOCK, NBLOCK])" in text
    assert "right_blocks.load([group, k_start, n_tile * NBLOCK]).reshape([KBLOCK, NBLOCK])" in text


def test_a_list_says_which_tiles_have_which_groups() -> None:
    made = emit_kernel(_grouped_kernel(GROUPS), target="cuda:90")
    assert [launch.grid for launch in made.launches] == [(128, 1, 1), (128, 1, 1), (132, 1, 1)]
    assert [item.size for item in made.scratch] == [128, 2 + 2 * 16384]
    assert "for tile in tl.range(tl.program_id(0), items * 4, 132, flatten=True):" in made.text
    assert TritonKernel.from_plain(made.text, made.to_plain()) == made


def test_sums_between_loaded_bounds_are_left_to_threads() -> None:
    case = grouped.Case(grouped.CASES["sums"].function, ((16384, 512), (16384, 1024)), GROUPS.ends)
    assert emit_kernel(_grouped_kernel(case), target="cuda:90").descriptors == 0
