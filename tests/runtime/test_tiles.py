"""Products and attention by register tiles: odd sizes, strides, special values, against float64 and eager."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from graphc.codegen.gemm import blas_call, fits_tiles, product_of
from graphc.ir.types import contiguous_strides
from graphc.program.plan import GemmStep, View
from graphc.program.record import Program
from tests.runtime.plans import PlanBuilder, dtype_of, load
from tests.support import assert_contract

FLASH = "aten._scaled_dot_product_flash_attention_for_cpu.default"
FLOAT = dtype_of(torch.float32)
STEPS, TILES = "program.c", "tiles.c"

# m, n, k: whole tiles and panels, one over and one under, several depths of a panel, several groups of panels
SIZES = [
    (3, 8, 2), (16, 32, 16), (18, 48, 64), (19, 47, 17), (97, 131, 77), (31, 290, 385), (20, 100, 1024), (65, 700, 33),
]  # fmt: skip


def layouts(m: int, n: int, k: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Operands of m x k and k x n in the layouts that tiles take."""
    return {
        "plain": (torch.randn(m, k), torch.randn(k, n)),
        "b transposed": (torch.randn(m, k), torch.randn(n, k).t()),
        "a transposed": (torch.randn(k, m).t(), torch.randn(k, n)),
        "both transposed": (torch.randn(k, m + 3)[:, 1 : m + 1].t(), torch.randn(n, k).t()),
        "rows of wider matrices": (torch.randn(m, k + 5)[:, 3 : k + 3], torch.randn(n, k + 3)[:, 1 : k + 1].t()),
        "rows a power of two apart": (torch.randn(m, 1024)[:, :k], torch.randn(k, n + 3)[:, 2 : n + 2]),
    }


def add(builder: PlanBuilder, inputs: list[torch.Tensor], a: torch.Tensor, b: torch.Tensor, out: View | int) -> None:
    inputs += [a, b]
    builder.gemm(builder.input(a), builder.input(b), out)


def tile_calls(program: Program) -> int:
    """Products that the steps of a program compute by tiles."""
    return sum(line.startswith("  matmul_tiles(") for line in program.sources[STEPS].splitlines())


def _for_chip(program: Program, chip: str) -> Program:
    """The program compiled for a chip, where this one can run it."""
    known = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if chip != "native" and not ("AuthenticAMD" in known and "vaes" in known):
        pytest.skip(f"this processor is no {chip}")
    return replace(program, flags=tuple(f.replace("-march=native", f"-march={chip}") for f in program.flags))


@pytest.mark.parametrize("chip", ["native", "znver3"])
def test_products(chip: str, tmp_path: Path) -> None:
    """All sizes and layouts, into plain, transposed and padded outputs."""
    torch.manual_seed(0)
    builder = PlanBuilder()
    inputs: list[torch.Tensor] = []
    expected: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    for m, n, k in SIZES:
        for name, (a, b) in layouts(m, n, k).items():
            for strides in (contiguous_strides((m, n)), (n + 3, 1)):
                add(builder, inputs, a, b, builder.output(FLOAT, (m, n), strides))
                expected.append((f"{name} {m}x{n}x{k} {strides}", a, b))
        a, b = torch.randn(n, k), torch.randn(m, k).t()  # computed as out^T = b^T a^T
        add(builder, inputs, a, b, builder.output(FLOAT, (n, m), (1, n)))
        expected.append((f"out transposed {n}x{m}x{k}", a, b))
    program = builder.program()
    assert tile_calls(program) >= len(SIZES) * 12
    for found, (name, a, b) in zip(load(_for_chip(program, chip), tmp_path)(inputs), expected, strict=True):
        try:
            assert_contract(found.contiguous(), a @ b, a.double() @ b.double())
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def test_rounding_errors_are_those_of_short_sums(tmp_path: Path) -> None:
    """One sum of 1,024 products in float32 has twice the mean error of eager's product."""
    torch.manual_seed(0)
    a, b = torch.randn(64, 1024), torch.randn(128, 1024).t()
    builder = PlanBuilder()
    inputs: list[torch.Tensor] = []
    add(builder, inputs, a, b, builder.output(FLOAT, (64, 128)))
    program = builder.program()
    assert tile_calls(program) == 1
    (found,) = load(program, tmp_path)(inputs)
    product = a.double() @ b.double()
    ours, eager = ((x - product).square().mean().sqrt() for x in (found, a @ b))
    assert ours <= 1.2 * eager


@pytest.mark.parametrize("chip", ["native", "znver3"])
def test_batches(chip: str, tmp_path: Path) -> None:
    """Many and few products, batch dims of any strides, one operand for all."""
    torch.manual_seed(0)
    heads = torch.randn(2, 13, 3, 24).transpose(1, 2)
    cases = {
        "many": (torch.randn(20, 5, 33), torch.randn(20, 33, 17 + 15)),
        "few": (torch.randn(2, 19, 17), torch.randn(2, 48, 17).mT),
        "heads": (heads, torch.randn(2, 16, 3, 24).permute(0, 2, 3, 1)),
        "a transposed": (torch.randn(20, 33, 5).mT, torch.randn(20, 33, 32)),
        "few a transposed": (torch.randn(2, 33, 19).mT, torch.randn(2, 32, 33).mT),
        "one a": (torch.randn(1, 7, 20).expand(9, 7, 20), torch.randn(9, 20, 31)),
        "two broadcast batches": (
            torch.randn(3, 1, 4, 16).expand(3, 5, 4, 16),
            torch.randn(1, 5, 16, 16).expand(3, 5, 16, 16),
        ),
    }
    builder = PlanBuilder()
    inputs: list[torch.Tensor] = []
    for a, b in cases.values():
        add(builder, inputs, a, b, builder.output(FLOAT, (*a.shape[:-1], b.shape[-1])))
    program = builder.program()
    assert program.sources[STEPS].count("  matmul_batch_tiles(") == len(cases)
    for found, (name, (a, b)) in zip(load(_for_chip(program, chip), tmp_path)(inputs), cases.items(), strict=True):
        try:
            assert_contract(found, a @ b, a.double() @ b.double())
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@pytest.mark.parametrize("transposed", [False, True])
def test_accumulated_product(transposed: bool, tmp_path: Path) -> None:
    """`out += a b` over more than one depth, and nothing beside the output is written."""
    torch.manual_seed(0)
    a = torch.randn(500, 23).t() if transposed else torch.randn(23, 500)
    b, start = torch.randn(45, 500).t(), torch.randn(25, 64)
    builder = PlanBuilder()
    ia, ib, source = builder.input(a), builder.input(b), builder.input(start)
    out = builder.output(FLOAT, start.shape)
    builder.kernel("fill", "static void fill(const char *x, char *y) { memcpy(y, x, 25 * 64 * 4); }\n", source, out)
    builder.gemm(ia, ib, View(out, FLOAT, (23, 45), (64, 1), 64 + 5), accumulate=True)
    program = builder.program()
    assert tile_calls(program) == 1
    (found,) = load(program, tmp_path)([a, b, start])
    inside = torch.zeros_like(start, dtype=torch.bool)
    inside[1:24, 5:50] = True
    torch.testing.assert_close(found[~inside], start[~inside], rtol=0, atol=0)
    part = start[1:24, 5:50]
    assert_contract(found[1:24, 5:50], torch.addmm(part, a, b), part.double() + a.double() @ b.double())


def test_special_values_stay_in_their_rows_and_columns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(20, 40), torch.randn(40, 45)
    a[3, 7], a[19, 0], b[5, 44] = torch.nan, torch.inf, -torch.inf
    builder = PlanBuilder()
    inputs: list[torch.Tensor] = []
    add(builder, inputs, a, b, builder.output(FLOAT, (20, 45)))
    program = builder.program()
    assert tile_calls(program) == 1
    (found,) = load(program, tmp_path)(inputs)
    eager = a @ b
    assert torch.equal(found.isnan(), eager.isnan())
    assert torch.equal(found.isinf(), eager.isinf())


def test_the_number_of_threads_does_not_show(tmp_path: Path) -> None:
    torch.manual_seed(0)
    a, b, q = torch.randn(70, 300), torch.randn(400, 300).t(), torch.randn(1, 3, 50, 24)
    builder = PlanBuilder()
    inputs: list[torch.Tensor] = []
    add(builder, inputs, a, b, builder.output(FLOAT, (70, 400)))
    attend(builder, inputs, q, q, q, True, None)
    run = load(builder.program(), tmp_path)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(inputs))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], others, strict=True))


def test_processors_without_the_instructions_use_the_libraries(tmp_path: Path) -> None:
    torch.manual_seed(0)
    q = torch.randn(1, 2, 20, 16)
    pairs = [(torch.randn(20, 70), torch.randn(70, 48)), (torch.randn(20, 70), torch.randn(48, 70).t())]
    pairs += [(torch.randn(9, 20, 30), torch.randn(9, 30, 32)), (torch.randn(9, 20, 30), torch.randn(9, 32, 30).mT)]
    builder = PlanBuilder()
    inputs: list[torch.Tensor] = []
    for a, b in pairs:
        add(builder, inputs, a, b, builder.output(FLOAT, (*a.shape[:-1], b.shape[-1])))
    attend(builder, inputs, q, q, q, True, None)
    program = builder.program()
    assert tile_calls(program) == 2
    flags = tuple("-march=x86-64" if flag == "-march=native" else flag for flag in program.flags)
    assert flags != program.flags
    *products, attention = load(replace(program, flags=flags), tmp_path)(inputs)
    for found, (a, b) in zip(products, pairs, strict=True):
        assert_contract(found, a @ b, a.double() @ b.double())
    assert_contract(attention.contiguous(), *flash(q, q, q, True, None))


@pytest.mark.parametrize(
    ("m", "n", "k", "dtype"),
    [(2, 64, 64, torch.float32), (64, 7, 64, torch.float32), (64, 64, 1, torch.float32), (64, 64, 64, torch.float64)],
)
def test_other_products_stay_with_blas(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    views = [View(i, dtype_of(dtype), size, (size[1], 1)) for i, size in enumerate(((m, k), (k, n), (m, n)))]
    step = GemmStep(*views)
    call = blas_call(product_of(step))
    assert call is not None
    assert not fits_tiles(step, call)


def attend(
    builder: PlanBuilder,
    inputs: list[torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool,
    scale: float | None,
    arena: bool = False,
) -> None:
    """An attention step whose output is returned."""
    numbers = [builder.input(x) for x in (q, k, v)]
    inputs += [q, k, v]
    shape = (*q.shape[:3], v.shape[3])
    _, heads, rows, width = shape
    if arena:
        out = builder.output(FLOAT, shape)
    else:
        out = builder.external(FLOAT, shape, (rows * heads * width, width, heads * width, 1))
        builder.returns(out)
    views = tuple(builder.view(number) for number in numbers)
    builder.aten(FLASH, (*views, 0.0, causal), (out, -1), scale=scale)


# batch, heads, rows, keys, width
HEADS = [(2, 3, 16, 16, 32), (1, 2, 8, 9, 8), (1, 1, 7, 1, 4), (2, 1, 13, 40, 20), (1, 2, 50, 17, 33), (1, 1, 6, 33, 5)]


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal: bool, tmp_path: Path) -> None:
    """Odd sizes, heads cut out of one projection, given and default scales, both kinds of output."""
    torch.manual_seed(0)
    builder = PlanBuilder()
    inputs: list[torch.Tensor] = []
    cases: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, float | None]] = []
    for batch, heads, rows, keys, width in HEADS:
        plain = [torch.randn(batch, heads, size, width) for size in (rows, keys, keys)]
        merged = torch.randn(batch, keys, 3, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
        for operands, scale, arena in (
            (plain, None, False),
            (plain, 0.75 if causal else -0.75, True),
            (merged, 0.5, False),
        ):
            q, k, v = operands
            attend(builder, inputs, q, k, v, causal, scale, arena)
            cases.append((q, k, v, scale))
    program = builder.program()
    assert program.sources[TILES].count("attention_") >= len(HEADS)
    for found, (q, k, v, scale) in zip(load(program, tmp_path)(inputs), cases, strict=True):
        assert_contract(found.contiguous(), *flash(q, k, v, causal, scale))


def flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eager's attention, and the same in float64."""
    call = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    eager = call(q, k, v, 0.0, causal, scale=scale)[0].contiguous()
    return eager, call(q.double(), k.double(), v.double(), 0.0, causal, scale=scale)[0].contiguous()


def test_attention_of_special_values(tmp_path: Path) -> None:
    """Scores that are NaN, infinite, or minus infinity all along a row."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 6, 20, 16) for _ in range(3))
    q[0, 0, 3, 2] = torch.nan
    k[0, 1, 4, 0] = torch.inf
    q[0, 2], k[0, 2] = 1.0, -torch.inf
    k[0, 3] = torch.nan
    q[0, 4] *= 1e4
    builder = PlanBuilder()
    inputs: list[torch.Tensor] = []
    attend(builder, inputs, q, k, v, False, None)
    (found,) = load(builder.program(), tmp_path)(inputs)
    assert_contract(found.contiguous(), *flash(q, k, v, False, None))


def test_other_attention_stays_with_libtorch() -> None:
    """A mask, long keys, few rows, other dtypes, rows that are not in one piece."""
    q, long, double = torch.empty(1, 2, 8, 16), torch.empty(1, 2, 9000, 16), torch.empty(1, 2, 8, 16).double()
    spread = torch.empty(1, 2, 16, 8).transpose(2, 3)
    for operands, mask in (
        ((q, q, q), True),
        ((q, long, long), False),
        ((q[:, :, :5], q, q), False),
        ((double, double, double), False),
        ((spread, q, q), False),
    ):
        builder = PlanBuilder()
        numbers = [builder.input(x) for x in operands]
        shape = tuple(operands[0].shape)
        dtype = dtype_of(operands[0].dtype)
        outs = (builder.external(dtype, shape), -1)
        named = {"attn_mask": builder.view(builder.input(torch.zeros(8, 8)))} if mask else {}
        builder.aten(FLASH, (*(builder.view(number) for number in numbers), 0.0, False), outs, **named)
        assert TILES not in builder.program().sources
    for scale in (-0.5, 0.0):  # libtorch multiplies its mask of -inf by the scale
        builder = PlanBuilder()
        attend(builder, [], q, q, q, True, scale)
        assert TILES not in builder.program().sources
