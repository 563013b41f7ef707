"""Gradients of attention in the forms people write it: kernels that compute the weights again, and keep no scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphc
from graphc.settings import override
from tests.support import assert_contract
from tests.triton.attentions import FORMS, Form, causal, dropped, inputs, plain, safe, shared, window

torch.set_num_threads(1)
LARGE = 21 * 37 * 6


def step_of(form: Form) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The form with the gradients of q, k and v."""

    def step(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = (x.detach().requires_grad_() for x in args[:3])
        out = form(q, k, v, *args[3:])
        return (out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v)))

    return step


def _exact(args: list[Any]) -> list[Any]:
    return [x.double() if x.is_floating_point() else x for x in args]


@pytest.mark.parametrize("name", FORMS)
def test_gradients_keep_the_contract_and_no_scores(name: str) -> None:
    dtype = torch.float16 if name == "causal" else torch.bfloat16
    step, args = step_of(FORMS[name][0]), inputs(name, dtype)
    with override(templates="always", cache=False):
        compiled = graphc.compile(step, backend="triton")
        found = compiled(*args)
        plan = compiled.graph(*args, stage="scheduled")
    assert not any(type(item).__name__ == "GemmStep" for item in plan.steps)
    floats = [spec for spec in plan.buffers if spec.dtype.is_float and spec.kind != "input"]
    assert all(spec.nbytes < LARGE * spec.dtype.itemsize for spec in floats), plan
    for mine, theirs, true in zip(found, step(*args), step(*_exact(args)), strict=True):
        assert_contract(mine, theirs, true)


@pytest.mark.parametrize("name", ["causal", "plain"])
def test_gradients_in_float32_keep_the_contract(name: str) -> None:
    step, args = step_of(FORMS[name][0]), inputs(name)
    with override(templates="always", cache=False):
        found = graphc.compile(step, backend="triton")(*args)
    for mine, theirs, true in zip(found, step(*args), step(*_exact(args)), strict=True):
        assert_contract(mine, theirs, true)


@pytest.mark.parametrize("name", [name for name in FORMS if name != "in_float32"])
def test_backward_passes_of_their_own_are_kept_two_numbers_per_row(name: str) -> None:
    """The function is compiled alone, in an eager loop: nothing as large as the scores lies in between."""
    form, args = FORMS[name][0], inputs(name, torch.bfloat16)

    def passed(function: Callable[..., torch.Tensor], given: list[Any]) -> list[torch.Tensor]:
        q, k, v = (x.detach().requires_grad_() for x in given[:3])
        out = function(q, k, v, *given[3:])
        out.square().sum().backward()
        return [out.detach(), *(x.grad for x in (q, k, v) if x.grad is not None)]

    with override(templates="always", cache=False):
        compiled = graphc.compile(form, backend="triton")
        found = passed(compiled, args)
        q, k, v = (x.detach().requires_grad_() for x in args[:3])
        plan = compiled.graph(q, k, v, *args[3:], stage="scheduled")
    outputs = [spec for spec in plan.buffers if spec.dtype.is_float and spec.kind == "output"]
    assert all(spec.nbytes < LARGE * spec.dtype.itemsize for spec in outputs), plan
    for mine, theirs, true in zip(found, passed(form, args), passed(form, _exact(args)), strict=True):
        assert_contract(mine, theirs, true)


def test_gradients_through_dropout_have_the_mask_of_the_forward_pass() -> None:
    args = inputs("plain", torch.bfloat16)
    found = []
    for backend, given in (("triton", args), ("interpret", args), ("interpret", [x.float() for x in args])):
        torch.manual_seed(0)
        with override(templates="always", cache=False):
            compiled = graphc.compile(step_of(dropped), backend=backend)
            found.append(compiled(*given))
            if backend == "triton":
                assert compiled.explain(*given).stats["gemm_calls"] == 0
    for mine, theirs, true in zip(*found, strict=True):
        assert_contract(mine, theirs, true)


def grouped_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Six query heads on three key heads."""
    q = torch.cat([q, q.flip(1)], 1)
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    return causal(q, k, v)


def shared_window(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The last 40 keys of one head, for all query heads."""
    rows, columns = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    near = (columns <= rows) & (columns > rows - 40)
    scores = torch.einsum("bhid,bjd->bhij", q, k[:, 0])
    return torch.einsum("bhij,bjd->bhid", F.softmax(torch.where(near, scores, float("-inf")), dim=-1), v[:, 0])


def _blocks() -> Iterator[Any]:
    """Numbers of queries and keys for each form; those that take the interpreter long only once in a short run."""
    for form in (causal, window, grouped_heads, shared, shared_window):
        for sizes in ((1, 37), (37, 1), (130, 5), (5, 150), (300, 290), (256, 256)):
            takes_long = sizes[0] > 100 and form is not {130: window, 300: causal, 256: causal}[sizes[0]]
            yield pytest.param(form, sizes, marks=pytest.mark.suite if takes_long else ())


@pytest.mark.parametrize("form, sizes", list(_blocks()))
def test_blocks_in_any_number(form: Form, sizes: tuple[int, int]) -> None:
    args = inputs("plain", torch.bfloat16, queries=sizes[0], keys=sizes[1])
    step = step_of(form)
    with override(templates="always", cache=False):
        found = graphc.compile(step, backend="triton")(*args)
    for mine, theirs, true in zip(found, step(*args), step(*_exact(args)), strict=True):
        assert torch.equal(mine.isnan(), theirs.isnan())
        if not theirs.isnan().any():  # rows behind the last window see nothing
            assert_contract(mine, theirs, true)


def test_loops_over_heads_that_share_keys_are_cut_for_each_of_them() -> None:
    args = inputs("plain", torch.bfloat16, queries=300, keys=290)
    step = step_of(shared)
    with override(templates="always", cache=False):
        compiled = graphc.compile(step, backend="triton")
        found = compiled(*args)
        sources = compiled.source(*args)
    loops = {name: text.count(" in range(") for name, text in sources.items() if "tl.dot(" in text}
    joined = [text for text in sources.values() if "for step in range(0, 3 * steps)" in text]
    assert sorted(loops.values()) == [2, 2, 3] and len(joined) == 1, sources
    assert "first = tl.maximum(0, (m_tile * MBLOCK) + 0) // JBLOCK * JBLOCK" in joined[0]
    with override(templates="always", cache=False):
        oracle = graphc.compile(step, backend="interpret")(*args)
    for mine, theirs in zip(found, oracle, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_queries_that_see_one_key_have_no_gradient(dtype: torch.dtype) -> None:
    q, k, v = inputs("plain", dtype)
    mask = torch.rand(21, 37, generator=torch.Generator().manual_seed(0)) < 0.7
    alone = [0, 7, 20]
    mask[alone] = torch.nn.functional.one_hot(torch.tensor([3, 30, 36]), 37).bool()

    def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return F.softmax((q @ k.mT).masked_fill(~mask, float("-inf")), dim=-1) @ v

    for form, args, rows in (
        (causal, (q, k, v), [0]),
        (masked, (q, k, v, mask), alone),
        (safe, (q, k, v, mask), alone),
    ):
        step = step_of(form)
        with override(templates="always", cache=False):
            found = graphc.compile(step, backend="triton")(*args)
        assert bool((found[1][:, :, rows] == 0).all())
        for mine, theirs, true in zip(found, step(*args), step(*_exact(list(args))), strict=True):
            assert_contract(mine, theirs, true)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_infinities_and_nan_show_in_queries_that_see_one_key(value: float) -> None:
    q, k, v = inputs("plain", torch.bfloat16)
    v[0, 0, 0, 2] = value
    step = step_of(causal)
    with override(templates="always", cache=False):
        found = graphc.compile(step, backend="triton")(q, k, v)
    for result in (found, step(q, k, v)):
        assert bool(result[1][0, 0, 0].isnan().all()) and not result[1][0, 1].isnan().any()


def added(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.softmax(q @ k.mT + bias, dim=-1) @ v


@pytest.mark.parametrize("least", [torch.finfo(torch.bfloat16).min, -1e9])
def test_rows_that_are_masked_by_large_numbers_are_means(least: float) -> None:
    q, k, v = inputs("plain", torch.bfloat16)
    mask = torch.rand(21, 37, generator=torch.Generator().manual_seed(0)) < 0.7
    mask[4], mask[20] = False, False
    args = q, k, v, torch.where(mask, 0.0, least).to(torch.bfloat16)
    step = step_of(added)
    with override(templates="always", cache=False):
        found = graphc.compile(step, backend="triton")(*args)
    assert bool((found[0][:, :, 4] - v.float().mean(2)).abs().max() < 0.01)
    for mine, theirs, true in zip(found, step(*args), step(*_exact(list(args))), strict=True):
        assert_contract(mine, theirs, true)


@pytest.mark.parametrize("sizes", [(0, 37), (21, 0)])
def test_no_queries_or_no_keys(sizes: tuple[int, int]) -> None:
    args = inputs("plain", torch.bfloat16, queries=sizes[0], keys=sizes[1])
    with override(templates="always", cache=False):
        found = graphc.compile(step_of(plain), backend="triton")(*args)
    for mine, theirs in zip(found, step_of(plain)(*args), strict=True):
        assert torch.equal(mine, theirs)


def test_rows_that_see_nothing_reach_all_keys_as_in_eager() -> None:
    """Queries from 209 on have weights NaN; no block of keys may end its loop before them."""
    args = inputs("plain", torch.bfloat16, queries=400, keys=200)
    with override(templates="always", cache=False):
        found = graphc.compile(step_of(window), backend="triton")(*args)
    wanted = step_of(window)(*args)
    assert bool(wanted[3].isnan().all()) and not wanted[1].isnan().any()
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.equal(mine.isnan(), theirs.isnan())


def late(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Keys long past only: whole blocks of queries see none."""
    rows, columns = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    return F.softmax(torch.where(columns <= rows - 128, q @ k.mT, float("-inf")), dim=-1) @ v


def soon(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Keys not long past only."""
    rows, columns = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    return F.softmax(torch.where(rows < columns + 128, q @ k.mT, float("-inf")), dim=-1) @ v


@pytest.mark.parametrize(("form", "blind"), [(late, slice(128)), (soon, slice(191, 260))])
def test_blocks_of_rows_that_see_nothing_are_as_in_eager(form: Form, blind: slice) -> None:
    args = inputs("plain", torch.bfloat16, queries=260, keys=64)
    with override(templates="always", cache=False):
        found = graphc.compile(step_of(form), backend="triton")(*args)
    wanted = step_of(form)(*args)
    assert bool(wanted[0][:, :, blind].isnan().all()) and bool(wanted[3].isnan().all())
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.equal(mine.isnan(), theirs.isnan())


def relative(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """A learned bias per pair of positions, and one per key, which every query takes."""
    mask = torch.tril(torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool))
    scores = (q @ k.mT + table + row).masked_fill(~mask, float("-inf"))
    return F.softmax(scores, dim=-1) @ v


@pytest.mark.parametrize("sizes", [(21, 37), (70, 66)])
def test_gradients_of_biases_keep_the_contract(sizes: tuple[int, int]) -> None:
    def step(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = [x.detach().requires_grad_() for x in args]
        out = relative(*given)
        return (out.detach(), *torch.autograd.grad(out.square().sum(), given))

    generator = torch.Generator().manual_seed(5)
    args = inputs("plain", torch.bfloat16, queries=sizes[0], keys=sizes[1])
    for shape in ((3, *sizes), (2, 1, 1, sizes[1])):
        args.append(torch.randn(shape, generator=generator).to(torch.bfloat16))
    with override(templates="always", cache=False):
        found = graphc.compile(step, backend="triton")(*args)
    for mine, theirs, true in zip(found, step(*args), step(*_exact(args)), strict=True):
        assert_contract(mine, theirs, true)


def test_masked_rows_are_as_in_eager() -> None:
    q, k, v = inputs("plain", torch.bfloat16)
    mask = torch.rand(21, 37, generator=torch.Generator().manual_seed(0)) < 0.7
    mask[4], mask[20] = False, False
    step = step_of(safe)
    with override(templates="always", cache=False):
        found = graphc.compile(step, backend="triton")(q, k, v, mask)
    for mine, theirs, true in zip(found, step(q, k, v, mask), step(*_exact([q, k, v]), mask), strict=True):
        assert_contract(mine, theirs, true)
    assert bool((found[1][:, :, [4, 20]] == 0).all())


def scaled_by_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.tanh((q @ k.mT) / scale[:, None]) @ v


def test_quotients_by_numbers_of_any_size_are_as_in_eager() -> None:
    q, k, v = inputs("plain", torch.bfloat16)
    q[:, :, ::2] *= 1e-20
    q[:, :, 6:9] *= 1e-20
    q[0, 0, 5] = 0
    edges = [0.0, -0.0, 1e-40, -1e-39, 2e-38, 3e38, -3e38, float("inf"), float("nan"), 1.0, -7.0, 1e-25, 1e25]
    scale = torch.tensor([*edges, *edges[:8]]).to(torch.bfloat16)
    with override(templates="always", cache=False):
        compiled = graphc.compile(scaled_by_rows, backend="triton")
        found = compiled(q, k, v, scale)
        assert any("_inverse(" in text for text in compiled.source(q, k, v, scale).values())
    wanted = scaled_by_rows(*(x.float() for x in (q, k, v, scale)))
    torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=2e-2, equal_nan=True)


class Block(nn.Module):
    """A small attention block as tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)
        self.register_buffer("mask", torch.tril(torch.ones(19, 19)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (part.view(batch, length, 3, 8).transpose(1, 2) for part in self.qkv(x).split(width, dim=2))
        scores = (q @ k.transpose(-2, -1)) * 8**-0.5
        scores = scores.masked_fill(self.mask[:length, :length] == 0, float("-inf"))
        y = F.softmax(scores, dim=-1) @ v
        return self.out(y.transpose(1, 2).contiguous().view(batch, length, width))


def _trained(block: Block, x: torch.Tensor, call: Callable[..., Any]) -> list[torch.Tensor]:
    block.zero_grad()
    call(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in block.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("whole", [True, False], ids=["whole step", "module"])
def test_a_block_trains(whole: bool) -> None:
    torch.manual_seed(0)
    block, x = Block(), torch.randn(2, 19, 24)
    wanted = _trained(block, x, block)

    def step(x: torch.Tensor) -> torch.Tensor:
        loss = block(x).square().sum()
        loss.backward()
        return loss

    with override(templates="always", cache=False):
        if whole:
            block.zero_grad()
            graphc.compile(step, backend="triton")(x)
            found = [parameter.grad for parameter in block.parameters()]
        else:
            found = _trained(block, x, graphc.compile(block, backend="triton"))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
