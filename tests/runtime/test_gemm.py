"""Matrix products in native programs: strides, transposes, batches, dtypes, empty and odd sizes, against torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from graphc.codegen.gemm import blas_call, product_of
from graphc.ir.types import contiguous_strides
from graphc.program.plan import GemmStep, View
from tests.runtime.plans import PlanBuilder, dtype_of, load
from tests.support import assert_contract

Pair = tuple[torch.Tensor, torch.Tensor]


def operands(dtype: torch.dtype) -> dict[str, Pair]:
    """Pairs of operands by what is special about them."""

    def t(*shape: int) -> torch.Tensor:
        if not dtype.is_floating_point:
            return torch.randint(-9, 9, shape).to(dtype)
        return torch.randn(shape).to(dtype)

    return {
        "plain": (t(5, 7), t(7, 3)),
        "b transposed": (t(5, 7), t(3, 7).t()),
        "a transposed": (t(7, 5).t(), t(7, 3)),
        "both transposed": (t(7, 5).t(), t(3, 7).t()),
        "rows of a wider matrix": (t(5, 9)[:, 1:8], t(7, 8)[:, 2:5]),
        "every second row": (t(10, 7)[::2], t(14, 3)[1::2]),
        "no unit stride": (t(5, 14)[:, ::2], t(7, 6)[:, ::2]),
        "one a has no unit stride": (t(5, 14)[:, ::2], t(7, 3)),
        "row vector": (t(1, 7), t(7, 3)),
        "strided row vector": (t(7, 4)[:, :1].t(), t(7, 3)),
        "column vector": (t(5, 7), t(7, 1)),
        "strided column vector": (t(5, 7), t(7, 4)[:, 1:2]),
        "outer": (t(5, 1), t(1, 3)),
        "scalar": (t(1, 1), t(1, 1)),
        "k is 0": (t(5, 0), t(0, 3)),
        "m is 0": (t(0, 7), t(7, 3)),
        "broadcast rows": (t(1, 7).expand(5, 7), t(7, 3)),
        "broadcast columns": (t(5, 1).expand(5, 7), t(7, 1).expand(7, 3)),
        "overlapping windows": (t(20).as_strided((5, 7), (2, 1)), t(7, 3)),
        "batch": (t(4, 5, 7), t(4, 7, 3)),
        "batch of transposed": (t(4, 7, 5).mT, t(4, 3, 7).mT),
        "batch, one b": (t(4, 5, 7), t(1, 7, 3).expand(4, 7, 3)),
        "batch, one a": (t(1, 5, 7).expand(4, 5, 7), t(4, 7, 3)),
        "batch of row vectors, one b": (t(4, 1, 7), t(1, 7, 3).expand(4, 7, 3)),
        "rows between batches": (t(4, 6, 7)[:, :5], t(1, 7, 3).expand(4, 7, 3)),
        "heads": (t(2, 5, 3, 7).transpose(1, 2), t(2, 5, 3, 7).permute(0, 2, 3, 1)),
        "heads, one b": (t(2, 5, 3, 7).transpose(1, 2), t(1, 3, 7, 4).expand(2, 3, 7, 4)),
        "heads, strided": (t(2, 3, 5, 14)[..., ::2], t(2, 3, 7, 4)),
        "two broadcast batches": (t(2, 1, 5, 7).expand(2, 3, 5, 7), t(1, 3, 7, 4).expand(2, 3, 7, 4)),
        "batch of size 1": (t(1, 1, 5, 7), t(1, 1, 7, 3)),
        "empty batch": (t(0, 5, 7), t(0, 7, 3)),
        "batch, k is 0": (t(4, 5, 0), t(4, 0, 3)),
        "five batch dims": (t(2, 1, 2, 1, 2, 2, 3), t(2, 1, 2, 1, 2, 3, 2).transpose(0, 2)),
        "many small": (t(300, 2, 3), t(300, 3, 2)),
    }


def exact(a: torch.Tensor, b: torch.Tensor, start: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The product in eager, and the same from float64 (from 80-bit floats for float64)."""
    wide = torch.float64 if a.dtype.is_floating_point else torch.int64
    if a.dtype is torch.float64:
        long = np.matmul(*(x.numpy().astype(np.longdouble) for x in (a, b))) + (0 if start is None else start.numpy())
        eager = torch.matmul(a, b) + (0 if start is None else start)
        return eager.contiguous(), torch.from_numpy(long.astype(np.float64))
    eager, product = torch.matmul(a, b), torch.matmul(a.to(wide), b.to(wide))
    if start is not None:
        eager, product = eager + start, product + start.to(wide)
    return eager.contiguous(), product


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.complex64]
)
def test_all_layouts(dtype: torch.dtype, accumulate: bool, tmp_path: Path) -> None:
    """All cases of one dtype as one program, written into plain, transposed and padded outputs."""
    if dtype.is_complex and accumulate:
        pytest.skip("covered by the other dtypes")
    torch.manual_seed(0)
    builder = PlanBuilder()
    inputs: list[torch.Tensor] = []
    expected: list[tuple[str, Pair, torch.Tensor | None]] = []
    for name, (a, b) in operands(dtype).items():
        ia, ib = builder.input(a), builder.input(b)
        inputs += [a, b]
        shape = (*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        plain = contiguous_strides(shape)
        swapped = (*(s for s in contiguous_strides((*shape[:-2], shape[-1], shape[-2]))[:-2]), 1, max(shape[-2], 1))
        padded = contiguous_strides((*shape[:-1], 2 * shape[-1] + 1))
        for strides in (plain, swapped, padded):
            out = builder.output(dtype_of(dtype), shape, strides)
            start = None
            if accumulate:
                start = torch.ones(shape, dtype=dtype)
                source = builder.input(start)
                inputs.append(start)
                _fill(builder, source, out, shape, strides, dtype.itemsize)
            builder.gemm(ia, ib, out, accumulate)
            expected.append((name, (a, b), start))
    program = builder.program()
    assert program.stats["python_steps"] == {}
    for found, (name, (a, b), start) in zip(load(program, tmp_path)(inputs), expected, strict=True):
        if dtype.is_complex:
            torch.testing.assert_close(found, torch.matmul(a, b), msg=name)
            continue
        eager, product = exact(a, b, start)
        try:
            assert_contract(found.contiguous(), eager, product)
        except AssertionError as error:
            raise AssertionError(f"{name}, strides {found.stride()}: {error}") from None


def _fill(
    builder: PlanBuilder, source: int, out: int, shape: tuple[int, ...], strides: tuple[int, ...], size: int
) -> None:
    """Copy a contiguous input into a strided output by a kernel made for that layout."""
    name = f"fill{out}"
    body, index, flat = "", "0", "0"
    for d, (n, s) in enumerate(zip(shape, strides, strict=True)):
        body += f"for (long i{d} = 0; i{d} < {n}; i{d}++) "
        index, flat = f"{index} + i{d} * {s}L", f"({flat}) * {n} + i{d}"
    copy = f"memcpy(y + ({index}) * {size}, x + ({flat}) * {size}, {size});"
    builder.kernel(name, f"static void {name}(const char *x, char *y) {{ {body}{copy} }}\n", source, out)


def test_special_values(tmp_path: Path) -> None:
    """NaN and inf flow through; beta = 0 does not read what was in the output."""
    builder = PlanBuilder()
    a, b = torch.tensor([[1.0, torch.inf], [torch.nan, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    dirty = builder.arena(dtype_of(torch.float32), (2, 2))
    builder.kernel(
        "dirty", 'static void dirty(float *y) { for (int i = 0; i < 4; i++) y[i] = __builtin_nanf(""); }\n', dirty
    )
    builder.gemm(builder.input(a), builder.input(b), dirty)
    out = builder.output(dtype_of(torch.float32), (2, 2))
    builder.kernel(
        "copy", "static void copy(const float *x, float *y) { for (int i = 0; i < 4; i++) y[i] = x[i]; }\n", dirty, out
    )
    (found,) = load(builder.program(), tmp_path)([a, b])
    torch.testing.assert_close(found, a @ b, equal_nan=True)


def product(a: torch.Tensor, b: torch.Tensor) -> tuple[int, ...]:
    """Batch dims, m, n, k of the BLAS call for two operands."""
    shape = (*a.shape[:-1], b.shape[-1])
    views = [
        View(0, dtype_of(torch.float32), tuple(x), tuple(s))
        for x, s in ((a.shape, a.stride()), (b.shape, b.stride()), (shape, contiguous_strides(shape)))
    ]
    call = blas_call(product_of(GemmStep(*views)))
    assert call is not None
    return (*call.product.batch, call.product.m, call.product.n, call.product.k)


def test_batches_become_rows_where_they_can() -> None:
    weight = torch.randn(7, 3)
    assert product(torch.randn(4, 5, 7), weight.expand(4, 7, 3)) == (20, 3, 7)
    assert product(torch.randn(2, 4, 5, 7), weight.expand(2, 4, 7, 3)) == (40, 3, 7)
    assert product(torch.randn(4, 5, 7), torch.randn(4, 7, 3)) == (4, 5, 3, 7)
    assert product(torch.randn(2, 4, 5, 7), torch.randn(2, 4, 7, 3)) == (8, 5, 3, 7)
    heads = torch.randn(2, 5, 4, 7).transpose(1, 2)
    assert product(heads, torch.randn(2, 4, 7, 3)) == (2, 4, 5, 3, 7)
