"""Generated attention of training: log-sum-exp and gradients, against float64 and eager."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from graphc.codegen import attention
from tests.runtime.plans import PlanBuilder, dtype_of, load
from tests.support import assert_contract

FORWARD = "aten._scaled_dot_product_flash_attention_for_cpu.default"
BACKWARD = "aten._scaled_dot_product_flash_attention_for_cpu_backward.default"
FLOAT = dtype_of(torch.float32)
TILES = "tiles.c"
NAMES = ("out", "log-sum-exp", "gradient of query", "gradient of key", "gradient of value")

Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Query, key, value, gradient of the output."""


def train(builder: PlanBuilder, operands: Operands, causal: bool, scale: float | None, arena: bool = False) -> None:
    """A forward and a backward step; both their results, five tensors, are returned."""
    q, k, v, grad = (builder.input(x) for x in operands)

    def made(shape: tuple[int, ...], strides: tuple[int, ...] | None = None) -> int:
        if arena:
            return builder.output(FLOAT, shape)
        out = builder.external(FLOAT, shape, strides)
        builder.returns(out)
        return out

    def heads_inside(shape: torch.Size) -> int:
        _, heads, rows, width = shape
        return made(tuple(shape), (rows * heads * width, width, heads * width, 1))

    batch, heads, rows, _ = operands[0].shape
    out = heads_inside(operands[3].shape)
    sums = made((batch, heads, rows), (rows * heads, 1, heads))
    views = [builder.view(number) for number in (q, k, v)]
    builder.aten(FORWARD, (*views, 0.0, causal), (out, sums), scale=scale)
    results = tuple(heads_inside(x.shape) for x in operands[:3])
    args = (builder.view(grad), *views, builder.view(out), builder.view(sums), 0.0, causal)
    builder.aten(BACKWARD, args, results, scale=scale)


def by_libtorch(operands: Operands, causal: bool, scale: float | None) -> list[torch.Tensor]:
    q, k, v, grad = operands
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    out, sums = forward(q, k, v, 0.0, causal, scale=scale)
    return [out, sums, *backward(grad, q, k, v, out, sums, 0.0, causal, scale=scale)]


def check(found: list[torch.Tensor], operands: Operands, causal: bool, scale: float | None) -> None:
    eager = by_libtorch(operands, causal, scale)
    q, k, v, grad = (x.double() for x in operands)
    exact = by_libtorch((q, k, v, grad), causal, scale)
    for name, ours, theirs, reference in zip(NAMES, found, eager, exact, strict=True):
        try:
            assert_contract(ours.contiguous(), theirs.contiguous(), reference.contiguous())
        except AssertionError as error:
            shapes = [tuple(x.shape) for x in operands]
            raise AssertionError(f"{name} of {shapes} causal={causal} scale={scale}: {error}") from None


def random_operands(batch: int, heads: int, rows: int, keys: int, width: int) -> Operands:
    q, k, v, grad = (torch.randn(batch, heads, size, width) for size in (rows, keys, keys, rows))
    return q, k, v, grad


def runs_generated(builder: PlanBuilder, folder: Path) -> Callable[[list[torch.Tensor]], list[torch.Tensor]]:
    program = builder.program()
    assert "void attention_1(const float *grad" in program.sources[TILES]
    return load(program, folder)  # type: ignore[no-any-return]


# batch, heads, rows, keys, width: whole tiles and panels, one over and one under, more rows than keys and fewer
HEADS = [
    (2, 3, 16, 16, 32), (1, 2, 8, 9, 8), (1, 1, 7, 1, 4), (2, 1, 13, 40, 20), (1, 2, 50, 17, 33), (1, 1, 6, 33, 5),
    (3, 2, 97, 97, 16), (1, 1, 33, 31, 17), (1, 2, 129, 70, 24),
]  # fmt: skip


@pytest.mark.parametrize("causal", [False, True])
def test_gradients(causal: bool, tmp_path: Path) -> None:
    """Odd sizes; heads in one piece and cut out of one projection; scales; both kinds of results."""
    torch.manual_seed(0)
    builder = PlanBuilder()
    cases: list[tuple[Operands, float | None]] = []
    for batch, heads, rows, keys, width in HEADS:
        q, k, v, grad = random_operands(batch, heads, rows, keys, width)
        merged = torch.randn(batch, keys, 3, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
        turned = torch.randn(batch, keys, heads, width).transpose(1, 2)
        both = ((q, k, v, grad), None, True), ((merged[0], merged[1], merged[2], turned), 0.75, False)
        for operands, scale, arena in both:
            if operands[0].shape[2] >= 6:  # fewer are libtorch's
                train(builder, operands, causal, scale, arena)
                cases.append((operands, scale))
    call = runs_generated(builder, tmp_path)
    found = call([x for operands, _ in cases for x in operands])
    for number, (operands, scale) in enumerate(cases):
        check(found[5 * number : 5 * number + 5], operands, causal, scale)


@pytest.mark.parametrize("causal", [False, True])
def test_queries_in_blocks(causal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over queries that take several blocks; blocks that end within a tile of keys."""
    monkeypatch.setattr(attention, "_block", lambda rows, keys, width, out_width: "32")
    torch.manual_seed(0)
    builder = PlanBuilder()
    cases = [random_operands(1, 2, rows, keys, 24) for rows, keys in ((70, 70), (64, 33), (33, 64), (16, 96), (17, 20))]
    for operands in cases:
        train(builder, operands, causal, None)
    call = runs_generated(builder, tmp_path)
    found = call([x for operands in cases for x in operands])
    for number, operands in enumerate(cases):
        check(found[5 * number : 5 * number + 5], operands, causal, None)


def test_long_rows_are_taken_in_blocks(tmp_path: Path) -> None:
    """What a thread holds stays bounded: 700 queries take several blocks."""
    torch.manual_seed(0)
    operands = random_operands(1, 2, 700, 700, 32)
    assert 64 <= int(attention._block(700, 700, 32, 32)) < 700
    builder = PlanBuilder()
    train(builder, operands, True, None)
    check(runs_generated(builder, tmp_path)(list(operands)), operands, True, None)


def test_hidden_values_reach_nothing(tmp_path: Path) -> None:
    """A NaN in one row of an operand under a causal mask: what does not look at it is as if it were a 0."""
    torch.manual_seed(0)
    cases: list[tuple[Operands, int, int]] = []
    builder = PlanBuilder()
    for at in (0, 3, 17, 30, 36, 39):
        for place in range(4):
            operands = random_operands(1, 1, 40, 40, 16)
            operands[place][0, 0, at, 5] = torch.nan
            train(builder, operands, True, None)
            cases.append((operands, place, at))
    found = runs_generated(builder, tmp_path)([x for operands, _, _ in cases for x in operands])
    for number, (operands, place, at) in enumerate(cases):
        whole = [torch.nan_to_num(x) for x in operands]
        expected = by_libtorch((whole[0], whole[1], whole[2], whole[3]), True, None)
        ours = found[5 * number : 5 * number + 5]
        if place in (1, 2):  # a key: queries before it do not look at it
            of_others, rows = (0, 1, 2), slice(0, at)
        else:  # a query: it does not look at keys after it
            of_others, rows = (3, 4), slice(at + 1, None)
        for result in of_others:
            torch.testing.assert_close(ours[result][:, :, rows], expected[result][:, :, rows])
    assert all(any(x.isnan().any() for x in found[5 * n : 5 * n + 5]) for n in range(len(cases)))


def test_special_values_of_whole_heads(tmp_path: Path) -> None:
    """NaN and infinite scores, and rows of minus infinity, which give 0: as eager."""
    torch.manual_seed(0)
    operands = random_operands(1, 6, 20, 20, 16)
    q, k, _, grad = operands
    q[0, 0, 3, 2] = torch.nan
    k[0, 1, 4, 0] = torch.inf
    q[0, 2], k[0, 2] = 1.0, -torch.inf
    k[0, 3] = torch.nan
    q[0, 4] *= 1e4
    grad[0, 5, 7, 3] = torch.inf
    builder = PlanBuilder()
    train(builder, operands, False, None)
    found = runs_generated(builder, tmp_path)(list(operands))
    # head 1, of infinite scores: float64 has NaN for the log-sum-exp where float32 has infinity
    for ours, eager in zip(found, by_libtorch(operands, False, None), strict=True):
        torch.testing.assert_close(ours[:, 1], eager[:, 1], equal_nan=True)
    others = [0, 2, 3, 4, 5]
    heads = tuple(x[:, others] for x in operands)
    check([x[:, others] for x in found], (heads[0], heads[1], heads[2], heads[3]), False, None)


def test_threads_do_not_matter(tmp_path: Path) -> None:
    """The same bits with any number of threads."""
    torch.manual_seed(0)
    operands = random_operands(2, 5, 61, 61, 32)
    builder = PlanBuilder()
    train(builder, operands, True, None)
    call = runs_generated(builder, tmp_path)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([x.clone() for x in call(list(operands))])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_other_gradients_stay_with_libtorch() -> None:
    """A mask, dropout, doubles, gradients whose rows do not lie in one piece or are not all asked for, few rows."""
    q = torch.empty(1, 2, 8, 16)
    spread, double = torch.empty(1, 2, 16, 8).transpose(2, 3), q.double()
    few = q[:, :, :5]
    for tensors, rest, wanted, named in (
        ((q, q), (0.0, False), 3, {"attn_mask": True}),
        ((q, q), (0.1, False), 3, {}),
        ((double, double), (0.0, False), 3, {}),
        ((q, spread), (0.0, False), 3, {}),
        ((q, q), (0.0, False), 2, {}),
        ((few, few), (0.0, False), 3, {}),
        ((q, q), (0.0, True), 3, {"scale": -1.0}),
    ):
        builder = PlanBuilder()
        x, grad = tensors
        dtype, shape = dtype_of(x.dtype), tuple(x.shape)
        view, sums = builder.view(builder.input(x)), builder.view(builder.input(x[..., 0].contiguous()))
        args = (builder.view(builder.input(grad)), view, view, view, view, sums, *rest)
        outs = (*(builder.external(dtype, shape) for _ in range(wanted)), *[-1] * (3 - wanted))
        if "attn_mask" in named:
            named = {"attn_mask": builder.view(builder.input(torch.zeros(8, 8)))}
        builder.aten(BACKWARD, args, outs, **named)
        assert TILES not in builder.program().sources
