"""Products of matrices as kernels with slots, in Triton's interpreter: against eager, float64 and the plan's oracle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import graphc
from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiles import Choice, Tile
from graphc.ir.dims import symbol
from graphc.ir.types import DTYPES, DType, f16, f32, i32
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.kernel import ROW, Axis, Buffer, Kernel
from graphc.runtime import triton_program
from graphc.runtime.aten_calls import AtenCall, TensorOf, run_call
from graphc.runtime.triton_launcher import InterpretedKernel
from graphc.settings import override
from tests.plan_interpreter import run_plan
from tests.support import assert_contract
from tests.triton.products import CASES, kernel_calls, plan_of, products_left, with_pieces

torch.set_num_threads(1)


def _list(found: object) -> list[torch.Tensor]:
    return list(found) if isinstance(found, (tuple, list)) else [found]  # type: ignore[list-item]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_products_keep_the_contract(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    inputs = case.inputs(dtype)
    with override(templates="always", cache=False):
        found = _list(graphc.compile(case.function, backend="triton")(*inputs))
    eager = _list(case.function(*inputs))
    exact = _list(case.function(*(x.double() for x in inputs)))
    for mine, theirs, true in zip(found, eager, exact, strict=True):
        assert_contract(mine, theirs, true)


@pytest.mark.parametrize("pieces", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_products_whose_epilogue_goes_by_pieces(
    name: str, dtype: torch.dtype, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_pieces(monkeypatch, pieces)
    test_products_keep_the_contract(name, dtype)


@pytest.mark.parametrize("name", CASES)
def test_the_oracle_runs_the_same_plan(name: str) -> None:
    case = CASES[name]
    inputs = case.inputs(torch.float32)
    plan = plan_of(case, torch.float32)
    assert (products_left(plan), kernel_calls(plan)) == (0, case.kernels)
    for mine, true in zip(run_plan(plan, inputs), _list(case.function(*(x.double() for x in inputs))), strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-5)


def test_half_precision() -> None:
    case = CASES["two outputs"]
    inputs = case.inputs(torch.float16)
    with override(templates="always", cache=False):
        found = graphc.compile(case.function, backend="triton")(*inputs)
    for mine, theirs, true in zip(
        found, case.function(*inputs), case.function(*(x.double() for x in inputs)), strict=True
    ):
        assert_contract(mine, theirs, true)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_the_library_adds_a_bias_as_in_eager(dtype: torch.dtype) -> None:
    """Small products are the library's: eager's very numbers, of weights that require grad and of an empty sum too."""

    def layers(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = F.linear(x, w, b)
        return hidden, F.linear(hidden.relu(), v, b[:7]), torch.baddbmm(z, y, y.mT), empty(x)

    def empty(x: torch.Tensor) -> torch.Tensor:
        return F.linear(x[:, :0], w[:, :0], b)

    torch.manual_seed(1)
    w, v, b = (torch.randn(shape).to(dtype).requires_grad_() for shape in ((50, 40), (7, 50), (50,)))
    args = [torch.randn(shape).to(dtype) for shape in ((3, 40), (3, 5, 6), (3, 1, 5))]
    with override(cache=False), torch.no_grad():
        compiled = graphc.compile(layers, backend="triton")
        found, calls = compiled(*args), compiled.explain(*args).stats["extern"]
        for mine, theirs in zip(found, layers(*args), strict=True):
            assert torch.equal(mine, theirs)
    assert calls == {"aten.addmm.out": 3, "aten.baddbmm.out": 1}


def test_a_fault_of_such_a_call_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def off_by_one(call: AtenCall, tensor_of: TensorOf) -> tuple[Any, ...]:
        results = run_call(call, tensor_of)
        if call.step.op == "aten.addmm.out":
            tensor_of(dict(call.step.kwargs)["out"]).add_(1)
        return results

    def layer(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.linear(x, w, b).relu()

    monkeypatch.chdir(tmp_path)  # for the program that shows the fault
    monkeypatch.setattr(triton_program, "run_call", off_by_one)
    with override(cache=False):
        report = graphc.verify(
            graphc.compile(layer, backend="triton"),
            *(torch.randn(shape).bfloat16() for shape in ((6, 4), (5, 4), (5,))),
        )
    assert report.fault is not None
    assert report.fault.stage == "library call matmul" and report.fault.op.startswith("add(")


def test_infinities_and_nan_stay_in_their_rows() -> None:
    x, w = torch.randn(20, 24), torch.randn(24, 20)
    x[3, 5], x[7, 2] = float("inf"), float("nan")

    def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ w)

    with override(templates="always", cache=False):
        found = graphc.compile(product, backend="triton")(x, w)
    assert_contract(found, product(x, w), product(x.double(), w.double()))


def test_weights_are_updated_in_the_product_that_makes_their_gradient() -> None:
    def step(w: torch.Tensor, x: torch.Tensor, g: torch.Tensor) -> None:
        w.sub_(0.1 * (x.mT @ g))

    x, g, w = torch.randn(30, 17), torch.randn(30, 9), torch.randn(17, 9)
    wanted, exact = w.clone(), w.double()
    step(wanted, x, g)
    step(exact, x.double(), g.double())
    with override(templates="always", cache=False):
        compiled = graphc.compile(step, backend="triton")
        compiled(w, x, g)
        assert compiled.explain(w, x, g).stats["kernel_calls"] == 1
    assert_contract(w, wanted, exact)


def test_bytes_are_multiplied_as_bytes() -> None:
    def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x.to(torch.int32) @ w.to(torch.int32) + 1

    x, w = (torch.randint(-128, 128, shape, dtype=torch.int8) for shape in ((20, 70), (70, 9)))
    with override(cache=False):
        compiled = graphc.compile(product, backend="triton")
        assert torch.equal(compiled(x, w), product(x, w))
        (source,) = compiled.source(x, w).values()
    assert "out_dtype=tl.int32" in source and "to(tl.int32)" not in source


def test_quantized_weights_are_scaled_in_the_product() -> None:
    def linear(x: torch.Tensor, w: torch.Tensor, by_row: torch.Tensor, by_column: torch.Tensor) -> torch.Tensor:
        return torch._int_mm(x, w.t()).float() * by_row * by_column

    x, w = (torch.randint(-128, 128, shape, dtype=torch.int8) for shape in ((20, 72), (16, 72)))
    scales = torch.rand(20, 1), torch.rand(16)
    with override(templates="always", cache=False):
        compiled = graphc.compile(linear, backend="triton")
        assert torch.equal(compiled(x, w, *scales), linear(x, w, *scales))
        assert compiled.explain(x, w, *scales).stats["kernel_calls"] == 1
        (source,) = compiled.source(x, w, *scales).values()
    assert "out_dtype=tl.int32" in source and "to(tl.int32)" not in source


# kernels by themselves


def product_kernel(rows: int, columns: int, inner: int, dtype: DType, tf32: bool = False) -> Kernel:
    """out = relu(a @ b)."""
    i, j, k = symbol("i"), symbol("j"), symbol("k")
    b = KernelBuilder((Axis("i", rows), Axis("j", columns), Axis("k", inner, ROW)))
    left, right = b.load("a", dtype, i * inner + k), b.load("b", dtype, k * columns + j)
    made = b.contract(left, right, tf32)
    result = b.compute("maximum", made, b.constant(0, dtype.compute))
    b.store("out", i * columns + j, b.compute("cast", result, dtype=dtype))
    return b.finish(
        "product_relu",
        (
            Buffer("a", dtype, rows * inner, "in"),
            Buffer("b", dtype, inner * columns, "in"),
            Buffer("out", dtype, rows * columns, "out"),
        ),
    )


def _run(kernel: Kernel, choice: Choice, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = torch.empty(a.shape[0], b.shape[1], dtype=a.dtype)
    InterpretedKernel(emit_kernel(kernel, choice=choice))([a, b, out])
    return out


SMALL = Tile(16, 32, 16, 4, 2, 1.0)


@pytest.mark.parametrize("parts, pieces", [(1, 1), (3, 1), (1, 2), (1, 4)])
@pytest.mark.parametrize("shape", [(32, 64, 96), (33, 65, 100), (5, 7, 200), (300, 20, 48)])
def test_tiles_in_any_number(shape: Sequence[int], parts: int, pieces: int) -> None:
    rows, columns, inner = shape
    for name in ("f32", "bf16"):
        dtype = DTYPES[name]
        a, b = torch.randn(rows, inner), torch.randn(inner, columns)
        a, b = (x.to(getattr(torch, dtype.torch_name)) for x in (a, b))
        found = _run(product_kernel(rows, columns, inner, dtype), Choice(SMALL, parts, pieces=pieces), a, b)
        assert_contract(found, torch.relu(a @ b), torch.relu(a.double() @ b.double()))


def test_tf32_rounds_only_when_asked() -> None:
    a, b = torch.randn(32, 64), torch.randn(64, 32)
    exact = torch.relu(a.double() @ b.double())
    plain, rough = (
        (_run(product_kernel(32, 32, 64, DTYPES["f32"], tf32), Choice(SMALL), a, b).double() - exact).abs().max()
        for tf32 in (False, True)
    )
    assert plain < 2e-5
    assert 2e-4 < rough < 5e-2


def test_integers_wrap_as_in_eager() -> None:
    i, j, k = symbol("i"), symbol("j"), symbol("k")
    b = KernelBuilder((Axis("i", 20), Axis("j", 17), Axis("k", 40, ROW)))
    left, right = b.load("a", DTYPES["i8"], i * 40 + k), b.load("b", DTYPES["i8"], k * 17 + j)
    made = b.contract(b.compute("cast", left, dtype=i32), b.compute("cast", right, dtype=i32))
    b.store("out", i * 17 + j, made)
    kernel = b.finish(
        "product",
        (Buffer("a", DTYPES["i8"], 800, "in"), Buffer("b", DTYPES["i8"], 680, "in"), Buffer("out", i32, 340, "out")),
    )
    x, w = (torch.randint(-128, 128, shape, dtype=torch.int8) for shape in ((20, 40), (40, 17)))
    out = torch.empty(20, 17, dtype=torch.int32)
    InterpretedKernel(emit_kernel(kernel, choice=Choice(SMALL)))([x, w, out])
    assert torch.equal(out, x.int() @ w.int())


def odd_sum(depth: int, dtype: DType) -> Kernel:
    """x(20, depth) @ w(24, depth).T: steps along the sum are 1 in both."""
    b, (i, j, k) = KernelBuilder((Axis("i", 20), Axis("j", 24), Axis("k", depth, ROW))), map(symbol, "ijk")
    x, w = b.load("x", dtype, i * depth + k), b.load("w", dtype, j * depth + k)
    b.store("y", i * 24 + j, b.contract(x, w))
    sizes = (("x", dtype, 20 * depth, "in"), ("w", dtype, 24 * depth, "in"), ("y", f32, 480, "out"))
    return b.finish("product", tuple(Buffer(*item) for item in sizes))


@pytest.mark.parametrize("parts", [1, 3, 5])
@pytest.mark.parametrize("depth", [100, 109, 97])
def test_the_last_step_of_a_sum_is_apart_where_its_mask_would_be_narrow(depth: int, parts: int) -> None:
    kernel = odd_sum(depth, f16)
    made = emit_kernel(kernel, choice=Choice(Tile(16, 32, 16, 1, 2, 1.0), parts))
    assert made.text.count("tl.dot(") == 2 and made.text.count("k_start = ") == 1
    assert (f"range(0, {depth - depth % 16}, KBLOCK)" in made.text) == (parts == 1)
    x, w = torch.randn(20, depth).half(), torch.randn(24, depth).half()
    y = torch.full((20, 24), torch.nan)
    InterpretedKernel(made)([x, w, y])
    torch.testing.assert_close(y.double(), x.double() @ w.double().T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [96, 104, 15])
def test_whole_short_and_evenly_masked_sums_have_no_such_step(depth: int) -> None:
    assert "k_start = " not in emit_kernel(odd_sum(depth, f16), choice=Choice(Tile(16, 32, 16, 1, 2, 1.0))).text
