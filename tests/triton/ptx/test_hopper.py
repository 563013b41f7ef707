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
from tests.triton import scaled
from tests.triton.attentions import FORMS
from tests.triton.persistent import LAYOUTS, product_kernel
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
    def without(*args: Any) -> tuple[str, int]:
        text, shared = compile_ptx(*args)
        changed, count = re.subn(pattern, other, text)
        assert count, pattern
        return changed, shared

    monkeypatch.setattr(kernels, "compile_ptx", without)
    with pytest.raises(PtxError, match=message):
        kernel = _product((136, 200, 72), bf16, "rows", Choice(SMALL, programs=2))
        raise PtxError("; ".join(kernel.doubts))


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

    def check(function: Callable[..., Any], args: list[torch.Tensor], exact: Any = None) -> dict[str, Any]:
        with override(templates="always", cache=False):
            compiled = graphc.compile(function, backend="triton")
            found = compiled(*args)
            stats = compiled.explain(*args).stats
        if exact is None:
            eager, exact = function(*args), function(*(x.double() if x.is_floating_point() else x for x in args))
        else:  # not every version of torch has the operator on the CPU
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
