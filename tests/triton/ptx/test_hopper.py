"""Kernels of `cuda:90` from their machine code: programs that stay, with blocks that the chip copies; 8-bit floats;
products inside of attention, by warpgroups."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import graphc
from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiles import Choice, Tile
from graphc.ir.types import DType, bf16, f16, f32
from graphc.settings import override
from tests.support import assert_contract
from tests.triton import grouped, scaled
from tests.triton.attentions import FORMS
from tests.triton.persistent import BATCHED, LAYOUTS, grouped_kernel, product_kernel, unordered
from tests.triton.products import with_tile

pytest.importorskip("triton")
import triton

from tests.triton.ptx import kernels
from tests.triton.ptx.kernels import PtxKernel, compile_ptx, from_machine_code
from tests.triton.ptx.parse import PtxError

torch.set_num_threads(1)
TARGET = "cuda:90"
SMALL, WIDE = Tile(64, 64, 64, 4, 3, 1.0), Tile(128, 256, 64, 8, 4, 1.0)
DTYPES = {bf16: torch.bfloat16, f16: torch.float16, f32: torch.float32}
suite = pytest.mark.suite
FENCES_COPIES = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7)
"""Triton 3.6 leaves out fences between `cp.async` and the products that read its copies."""


def _laid(matrix: torch.Tensor, by_rows: bool, room: int, shift: int) -> torch.Tensor:
    """The matrix in a buffer that begins `shift` elements behind an aligned address, NaN between its rows."""
    lines = matrix if by_rows else matrix.T
    buffer = torch.full((shift + lines.shape[0] * (lines.shape[1] + room),), float("nan"), dtype=matrix.dtype)[shift:]
    buffer.view(lines.shape[0], -1)[:, : lines.shape[1]] = lines
    return buffer


def _product(
    shape: tuple[int, int, int], dtype: DType, layout: str, choice: Choice, room: int = 0, shift: int = 0
) -> PtxKernel:
    """Run relu(a @ b), which must be exact up to its last rounding."""
    (rows, columns, inner), by_rows = shape, LAYOUTS[layout]
    made = emit_kernel(product_kernel(rows, columns, inner, dtype, by_rows, room=room), choice=choice, target=TARGET)
    kernel, kind = PtxKernel(made, TARGET), DTYPES[dtype]
    torch.manual_seed(0)
    a, b = (torch.randint(-8, 9, size).to(kind) / 8 for size in ((rows, inner), (inner, columns)))
    out = torch.full((rows, columns), float("nan"), dtype=kind)
    kernel([_laid(a, by_rows[0], room, shift), _laid(b, by_rows[1], 0, 0), out.view(-1)])
    torch.testing.assert_close(out, (a.double() @ b.double()).relu().to(kind), rtol=0, atol=0)
    return kernel


@pytest.mark.parametrize("tile", [SMALL, pytest.param(WIDE, marks=suite)], ids=lambda tile: f"{tile.rows}")
@pytest.mark.parametrize("dtype", [bf16, pytest.param(f16, marks=suite)], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_of_all_layouts(layout: str, dtype: DType, tile: Tile) -> None:
    """Sizes that blocks do not divide, and room between rows."""
    kernel = _product((136, 200, 72), dtype, layout, Choice(tile, programs=2), room=8)
    assert kernel.kernel.descriptors == 2 and not kernel.doubts


def _change(monkeypatch: pytest.MonkeyPatch, pattern: str, other: str) -> None:
    """Have what copies by descriptors compiled to something else."""

    def changed(kernel: Any, *args: Any) -> tuple[str, int]:
        text, shared = compile_ptx(kernel, *args)
        if "cp.async.bulk.tensor" not in text:
            return text, shared
        text, count = re.subn(pattern, other, text)
        assert count, pattern
        return text, shared

    monkeypatch.setattr(kernels, "compile_ptx", changed)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether blocks are copied by descriptors, for each launch with a product that is compiled."""
    found: list[bool] = []

    def noted(kernel: Any, *args: Any) -> tuple[str, int]:
        text, shared = compile_ptx(kernel, *args)
        found.extend(["cp.async.bulk.tensor" in text] if "wgmma" in text else [])
        return text, shared

    monkeypatch.setattr(kernels, "compile_ptx", noted)
    return found


@pytest.mark.parametrize(
    ("pattern", "other", "message"),
    [
        (r"fence\.proxy\.async\S*;", "", "no fence.proxy.async behind what a thread has stored"),
        (r"@%p\d+ fence\.proxy\.tensormap\S+ [^;]*;", "", "no fence.proxy.tensormap has acquired"),
        (r"mbarrier\.try_wait\S+ complete, [^;]*;", "mov.pred complete, -1;", "copy to here has not been waited for"),
        (r"(expect_tx\S+ _, \[%r\d+\]), \d+", r"\1, 16", "threads wait for ever"),
        (r"bar\.sync\s+0;", "", "a race: another warp has"),
        (r"wgmma\.fence\S*;", "", "no wgmma.fence since the last wait"),
        (r"(swizzle_mode\S+ \[[^]]*\]), 0x3", r"\1, 0x2", "rows of a block that are longer than the swizzle"),
        (r"wgmma\.wait_group\S+ 0;", "", "sums are used before they have been waited for"),
    ],
)
def test_what_triton_must_not_leave_out(
    pattern: str, other: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    _change(monkeypatch, pattern, other)
    with pytest.raises(PtxError, match=message):
        kernel = _product((136, 200, 72), bf16, "rows", Choice(SMALL, programs=2))
        raise PtxError("; ".join(kernel.doubts))


BATCHES = [
    pytest.param(name, marks=[] if name in ("heads", "every second", "sums across memory") else suite)
    for name in BATCHED
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=suite)], ids=str)
@pytest.mark.parametrize("name", BATCHES)
def test_batches(
    name: str, dtype: torch.dtype, compiles: Callable[..., Any], copies: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    with_tile(monkeypatch, SMALL, processors=1)
    compiles(BATCHED[name].function, BATCHED[name].inputs(dtype))
    assert copies == [True]


def _between(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """NaN wherever the product of every second matrix is not to look."""
    x[1::2], x[:, :8], w[::2] = float("nan"), float("nan"), float("nan")
    w[:, :8], w[:, 48:] = float("nan"), float("nan")
    return x, w


@pytest.mark.parametrize("is_bounded", [True, False])
def test_a_matrix_ends_before_the_next_one(
    is_bounded: bool, compiles: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The sum of 40 is in blocks of 64."""
    with_tile(monkeypatch, SMALL, processors=1)
    given = _between(*BATCHED["every second"].inputs(torch.bfloat16))
    if is_bounded:
        compiles(BATCHED["every second"].function, list(given))
        return
    _change(monkeypatch, r"(mov\.b32\s+%r\d+), 40;", r"\1, 64;")
    with pytest.raises(AssertionError, match="error nan"):
        compiles(BATCHED["every second"].function, list(given))


GROUPS = {
    "plain": grouped.Case(grouped.CASES["plain"].function, ((200, 72), (4, 72, 144)), (13, 13, 140, 190)),
    "transposed": grouped.Case(grouped.CASES["transposed"].function, ((200, 72), (4, 144, 72)), (64, 130, 131, 200)),
    "gradients": grouped.Case(
        grouped.CASES["gradients"].function, ((200, 72), (3, 72, 144), (200, 144)), (13, 130, 200), 3
    ),
    "slots": grouped.Case(
        grouped.CASES["slots"].function, ((200, 72), (4, 72, 144), (200, 1)), (13, 13, 140, 190)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["plain", "transposed", "slots", pytest.param("gradients", marks=suite)])
def test_groups(
    name: str, compiles: Callable[..., Any], copies: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Groups that begin and end anywhere, and have no rows at all; rows of none."""
    with_tile(monkeypatch, SMALL, processors=1)
    case = GROUPS[name]
    given = case.inputs(torch.bfloat16)
    wide = [x.double() if x.is_floating_point() else x for x in given]
    results = case.function(grouped.exact, *given)
    compiles(grouped.grouped(case), given, case.function(grouped.exact, *wide), results)
    assert sorted(copies) == ([False] if name == "slots" else [False, True, True][-case.kernels :])


@pytest.mark.parametrize("shift", [0, 1])
def test_groups_in_any_order(shift: int) -> None:
    made = emit_kernel(grouped_kernel(200, 144, 72, 7, bf16), choice=Choice(SMALL, programs=3), target=TARGET)
    torch.manual_seed(0)
    groups, x, w = unordered(200, 7), torch.randint(-8, 9, (200, 72)) / 8, torch.randint(-8, 9, (7, 72, 144)) / 8
    out = torch.full((200, 144), float("nan"), dtype=torch.bfloat16)
    kernel = PtxKernel(made, TARGET)
    kernel([groups, _laid(x.bfloat16(), True, 0, shift), w.bfloat16().view(-1), out.view(-1)])
    right = torch.bmm(x.double()[:, None], w.double()[groups])[:, 0].bfloat16()
    torch.testing.assert_close(out, right, rtol=0, atol=0)
    assert made.descriptors == 2 and (shift or not kernel.doubts)


@pytest.mark.parametrize(
    ("pattern", "other", "message"),
    [
        (r"mbarrier\.try_wait\S+ complete, [^;]*;", "mov.pred complete, -1;", "copy to here has not been waited for"),
        (r"bar\.sync\s+0;", "", "a race: another warp has"),
        (r"@%p\d+ fence\.proxy\.tensormap\S+ [^;]*;", "", "no fence.proxy.tensormap has acquired"),
    ],
)
@pytest.mark.parametrize("name", ["batch", "groups"])
def test_what_triton_must_not_leave_out_of_batches_and_groups(
    name: str, pattern: str, other: str, message: str, compiles: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tile(monkeypatch, SMALL, processors=1)
    _change(monkeypatch, pattern, other)
    case = GROUPS["plain"]
    with pytest.raises(PtxError, match=message):
        if name == "batch":
            compiles(BATCHED["batch"].function, BATCHED["batch"].inputs(torch.bfloat16))
        else:
            given = case.inputs(torch.bfloat16)
            compiles(grouped.grouped(case), given, case.function(grouped.exact, *given))


@pytest.mark.parametrize("depth", [32, pytest.param(64, marks=suite)])
@pytest.mark.parametrize("stages", [2, pytest.param(4, marks=suite)])
def test_pipelines_of_all_lengths(stages: int, depth: int) -> None:
    for inner in (16, 72, 200):
        _product((80, 136, inner), bf16, "rows", Choice(Tile(64, 64, depth, 4, stages, 1.0), programs=3))


def test_float32_is_copied_by_blocks_too() -> None:
    assert _product((80, 72, 24), f32, "weights as linear has them", Choice(SMALL, programs=2)).kernel.descriptors


def test_the_function_for_other_addresses() -> None:
    kernel = _product((136, 200, 72), bf16, "rows", Choice(SMALL, programs=2), shift=1)
    assert kernel.kernel.descriptors == 2 and not kernel.doubts


@pytest.mark.parametrize("tile", [SMALL, pytest.param(WIDE, marks=suite)], ids=lambda tile: f"{tile.rows}")
def test_programs_of_one_tile(tile: Tile) -> None:
    doubts = _product((136, 200, 136), bf16, "rows", Choice(tile)).doubts
    assert bool(doubts) is not FENCES_COPIES and all("behind cp.async" in text for text in doubts)


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """Compares a compiled function by the numerics contract and gives its statistics; two processors, small tiles."""
    with_tile(monkeypatch, SMALL, processors=2)

    def check(
        function: Callable[..., Any], args: list[torch.Tensor], exact: Any = None, eager: Any = None
    ) -> dict[str, Any]:
        with override(templates="always", cache=False):
            compiled = graphc.compile(function, backend="triton")
            found = compiled(*args)
            stats = compiled.explain(*args).stats
        if exact is None:
            eager, exact = function(*args), function(*(x.double() if x.is_floating_point() else x for x in args))
        elif eager is None:  # not every version of torch has the operator on the CPU
            eager = exact.to(found.dtype)
        pairs = [x if isinstance(x, tuple) else (x,) for x in (found, eager, exact)]
        for mine, theirs, right in zip(*pairs, strict=True):
            assert_contract(mine, theirs, right)
        assert not stats["gemm_calls"] and not stats["extern"], stats
        return dict(stats)

    with from_machine_code(TARGET):
        yield check


def _two_outputs(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    made = x @ w + b
    return made, F.gelu(made, approximate="tanh")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "epilogue": lambda x, w, b: F.gelu(F.linear(x, w.T, b), approximate="tanh"),
    "prologue": lambda x, w, b: (F.relu(x) * 2) @ (w + 1) - b,
    "two outputs": _two_outputs,
    "product of a product": lambda x, w, b: torch.sigmoid(F.relu(x @ w) @ w.T) + b.sum(),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=suite)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_around_products(name: str, dtype: torch.dtype, compiles: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    compiles(FUNCTIONS[name], [x.to(dtype) for x in (torch.randn(136, 72), torch.randn(72, 144) / 8, torch.randn(144))])


def test_bytes(compiles: Callable[..., Any]) -> None:
    x, w = (torch.randint(-128, 128, (size, 96), dtype=torch.int8) for size in (136, 144))
    compiles(lambda x, w, scale: torch._int_mm(x, w.t()).float() * scale, [x, w, torch.rand(144)])


def _with_gradients(form: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
    def step(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = (x.detach().requires_grad_() for x in args)
        out = form(q, k, v)
        return (out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v)))

    return step


@pytest.mark.parametrize("width", [16, pytest.param(64, marks=suite), pytest.param(128, marks=suite)])
@pytest.mark.parametrize("name", ["causal", pytest.param("plain", marks=suite)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=suite)], ids=str)
def test_attention_and_its_gradients(
    dtype: torch.dtype, name: str, width: int, compiles: Callable[..., Any]
) -> None:  # fmt: skip
    """More rows than blocks have, of several kinds."""
    torch.manual_seed(0)
    compiles(_with_gradients(FORMS[name][0]), [torch.randn(2, 1, 300, width).to(dtype) for _ in range(3)])


@pytest.mark.parametrize("left", [scaled.E4, pytest.param(scaled.E5, marks=suite)], ids=str)
@pytest.mark.parametrize("function", [scaled.by_matrix, pytest.param(scaled.by_row, marks=suite)])
def test_8_bit_floats(
    function: Callable[..., torch.Tensor], left: torch.dtype, compiles: Callable[..., Any]
) -> None:  # fmt: skip
    given = scaled.inputs(136, 160, 144, left)
    compiles(function, given, scaled.exact(function, *given))
