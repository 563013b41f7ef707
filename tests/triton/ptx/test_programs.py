"""Whole compiled functions whose kernels run from machine code: products, attention, windows, tables, loops, draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import graphc
from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiles import Choice, Tile
from graphc.ir.dims import symbol
from graphc.ir.types import f32, i8, i32
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.kernel import ROW, Axis, Buffer
from graphc.settings import override
from tests.random_programs import PROGRAMS, assert_same_draws, example
from tests.support import assert_contract
from tests.triton import grouped, products
from tests.triton.attentions import FORMS, inputs
from tests.triton.loops import lstm_by_hand, operands
from tests.triton.products import with_tile

pytest.importorskip("triton")
from tests.triton.ptx.kernels import PtxKernel, from_machine_code

torch.set_num_threads(1)
Tensors = list[torch.Tensor]


@pytest.fixture(autouse=True)
def machine_code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of the target that a test names; of another one than usual with tiles of a warpgroup, on two processors."""
    target = getattr(request, "param", "")
    if target:
        with_tile(monkeypatch, Tile(64, 32, 32, 4, 3, 1.0), processors=2)
    with from_machine_code(target):
        yield


on_all_targets = pytest.mark.parametrize(
    "machine_code", ["", pytest.param("cuda:90", marks=pytest.mark.suite)], indirect=True, ids=["as usual", "cuda:90"]
)


def _list(found: Any) -> Tensors:
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _check(function: Callable[..., Any], args: list[Any], kernels: int = 0) -> None:
    """By the numerics contract; with `kernels`, nothing else than so many of them."""
    with override(templates="always", cache=False):
        compiled = graphc.compile(function, backend="triton")
        found, stats = _list(compiled(*args)), compiled.explain(*args).stats
    if kernels:
        assert stats["kernel_calls"] == kernels and not stats["gemm_calls"] and not stats["extern"], stats
    exact = _list(function(*(x.double() if x.is_floating_point() else x for x in args)))
    for mine, theirs, true in zip(found, _list(function(*args)), exact, strict=True):
        assert_contract(mine, theirs, true)


@on_all_targets
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products_with_a_pipeline_of_copies(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    args = [torch.randn(70, 520).to(dtype), torch.randn(520, 48).to(dtype) / 16, torch.randn(48).to(dtype)]
    _check(lambda x, w, b: F.gelu(x @ w + b, approximate="tanh"), args, 1)


@on_all_targets
@pytest.mark.parametrize("name", products.CASES)
def test_products(name: str) -> None:
    _check(products.CASES[name].function, products.CASES[name].inputs(torch.bfloat16))


def _product(kinds: tuple[Any, Any], tf32: bool, shape: tuple[int, int, int], target: str) -> PtxKernel:
    (m, n, depth), (kind, wide), tile = shape, kinds, Tile(64, 32, 32, 4, 2, 1.0)
    b, (i, j, k) = KernelBuilder((Axis("i", m), Axis("j", n), Axis("k", depth, ROW))), map(symbol, "ijk")
    left, right = b.load("a", kind, i * depth + k), b.load("b", kind, j + k * n)
    if kind != wide:
        left, right = (b.compute("cast", x, dtype=wide) for x in (left, right))
    b.store("out", i * n + j, b.contract(left, right, tf32=tf32))
    buffers = (
        Buffer("a", kind, m * depth, "in"),
        Buffer("b", kind, depth * n, "in"),
        Buffer("out", wide, m * n, "out"),
    )
    return PtxKernel(emit_kernel(b.finish("product", buffers), choice=Choice(tile)), target)


targets = pytest.mark.parametrize("target", ["cuda:80", "cuda:90"])


@targets
def test_products_of_integers_wrap(target: str) -> None:
    a, b = (torch.randint(-128, 128, shape, dtype=torch.int8) for shape in ((20, 70), (70, 17)))
    out = torch.empty(20, 17, dtype=torch.int32)
    _product((i8, i32), False, (20, 17, 70), target)([a, b, out])
    assert torch.equal(out, a.int() @ b.int())


@targets
def test_products_of_float32_in_tf32(target: str) -> None:
    a, b = torch.randn(20, 70), torch.randn(70, 17)
    out = torch.empty(20, 17)
    _product((f32, f32), True, (20, 17, 70), target)([a, b, out])
    cut = [(x.view(torch.int32) & ~0x1FFF).view(torch.float32).double() for x in (a, b)]
    torch.testing.assert_close(out.double(), cut[0] @ cut[1], rtol=1e-5, atol=1e-5)


@on_all_targets
@pytest.mark.parametrize("name", grouped.CASES)
def test_grouped_products(name: str) -> None:
    case = grouped.CASES[name]
    args = case.inputs(torch.bfloat16)
    with override(templates="always", cache=False):
        found = _list(graphc.compile(grouped.grouped(case), backend="triton")(*args))
    theirs = _list(case.function(grouped.exact, *args))
    true = _list(case.function(grouped.exact, *(x.double() if x.is_floating_point() else x for x in args)))
    if case.ends[-1] == args[0].shape[0]:  # eager leaves rows of no group as it finds them in memory
        theirs = _list(grouped.grouped(case)(*args))
    for mine, eager, reference in zip(found, theirs, true, strict=True):
        assert_contract(mine, eager, reference)


def _with_gradients(form: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
    def step(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = (x.detach().requires_grad_() for x in args[:3])
        out = form(q, k, v, *args[3:])
        return (out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v)))

    return step


@on_all_targets
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["plain", "causal", "window"])
def test_attention_and_its_gradients(name: str, dtype: torch.dtype) -> None:
    _check(_with_gradients(FORMS[name][0]), inputs(name, dtype, queries=70, keys=90))


@on_all_targets
def test_a_large_bias_is_added_to_the_whole_product() -> None:
    """Not to its accumulator, where each step would be rounded to the bias."""
    for seed in range(3):
        torch.manual_seed(seed)
        _check(FORMS["alibi"][0], [torch.randn(2, 3, 21, 8), torch.randn(2, 3, 37, 8), torch.randn(2, 3, 37, 8)])
        _check(lambda x, w, b: x @ w + b, [torch.randn(20, 16), torch.randn(16, 12), torch.randn(12) * 1000], 1)


@on_all_targets
def test_convolutions_and_their_gradients() -> None:
    def step(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, w, b = (t.detach().requires_grad_() for t in (x, w, b))
        y = F.conv2d(x, w, b, stride=2, padding=1).relu()
        return (y.detach(), *torch.autograd.grad(y.square().sum(), (x, w, b)))

    torch.manual_seed(0)
    image = torch.randn(2, 8, 9, 7).to(memory_format=torch.channels_last)
    _check(step, [image, torch.randn(5, 8, 3, 3), torch.randn(5)])


def test_a_table_of_parameters() -> None:
    def parameters() -> Tensors:
        torch.manual_seed(0)
        found = [torch.nn.Parameter(torch.randn(size)) for size in (1, 1023, 1025, 40, 3, 77, 8, 30, 600)]
        found.append(torch.nn.Parameter(torch.randn(64)[1:20]))
        for parameter in found:
            parameter.grad = torch.randn_like(parameter)
        return found  # type: ignore[return-value]

    eager, compiled = parameters(), parameters()
    plain, made = torch.optim.AdamW(eager), torch.optim.AdamW(compiled)
    call = graphc.compile(lambda: made.step(), backend="triton")
    for _ in range(2):
        plain.step()
        call()
    assert call.explain().stats["kernel_calls"] == 1
    for mine, theirs in zip(compiled, eager, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


@on_all_targets
def test_a_loop_over_time() -> None:
    args = operands(9, 16, 7, 20)
    with override(cache=False):
        compiled = graphc.compile(lstm_by_hand, backend="triton")
        found = compiled(*args)
        assert any(name.startswith("loop") for name in compiled.source(*args))
    assert_contract(found, lstm_by_hand(*args), lstm_by_hand(*(x.double() for x in args)))


@pytest.mark.parametrize("name", ["dropout", "randn", "randint of 64 bits", "bernoulli of f64", "softmax and dropout"])
def test_draws_are_those_of_other_backends(name: str) -> None:
    found = []
    for backend in ("triton", "interpret"):
        torch.manual_seed(0)
        found.append(graphc.compile(PROGRAMS[name], backend=backend)(example()))
    assert_same_draws(name, *found)


def test_sums_of_nothing() -> None:
    _check(lambda x, w: x @ w + 1, [torch.randn(4, 0), torch.randn(0, 3)])


def test_norms_embeddings_and_indices_with_their_gradients() -> None:
    def step(i: torch.Tensor, table: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
        table, scale = table.detach().requires_grad_(), scale.detach().requires_grad_()
        x = F.layer_norm(F.embedding(i, table), (33,), scale)
        loss = F.cross_entropy(x.logsumexp(-1, keepdim=True) - x, i % 33)
        return loss.detach(), x.argmax(-1), *torch.autograd.grad(loss, (table, scale))

    torch.manual_seed(0)
    _check(step, [torch.randint(0, 9, (50,)), torch.randn(9, 33), torch.randn(33)])
