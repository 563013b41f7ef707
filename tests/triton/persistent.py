"""Kernels of products whose operands lie in memory as a chip copies blocks by itself, or nearly so."""

from __future__ import annotations

import torch

from graphc.ir.dims import Dim, symbol
from graphc.ir.types import DType, i64
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.kernel import ROW, Axis, Buffer, Kernel
from tests.triton.products import Case, plan_of

Layout = tuple[bool, bool]
"""Whether rows of the left operand lie side by side, and those of the right one; else columns do."""
LAYOUTS: dict[str, Layout] = {
    "rows": (True, True), "weights as linear has them": (True, False), "columns": (False, False),
    "both sums outermost": (False, True),
}  # fmt: skip


def product_kernel(
    rows: int, columns: int, inner: int, dtype: DType, layout: Layout, *, room: int = 0, offset: int = 0
) -> Kernel:
    """out = relu(a @ b).

    Args:
        room: elements between what lies side by side of the left operand.
        offset: elements before its first one.
    """
    i, j, k = symbol("i"), symbol("j"), symbol("k")
    b = KernelBuilder((Axis("i", rows), Axis("j", columns), Axis("k", inner, ROW)))
    left: Dim = i * (inner + room) + k if layout[0] else k * (rows + room) + i
    right: Dim = k * columns + j if layout[1] else j * inner + k
    made = b.contract(b.load("a", dtype, left + offset), b.load("b", dtype, right))
    result = b.compute("maximum", made, b.constant(0, dtype.compute))
    b.store("out", i * columns + j, b.compute("cast", result, dtype=dtype))
    size = (rows * (inner + room) if layout[0] else inner * (rows + room)) + offset
    buffers = (
        Buffer("a", dtype, size, "in"),
        Buffer("b", dtype, inner * columns, "in"),
        Buffer("out", dtype, rows * columns, "out"),
    )
    return b.finish("product_relu", buffers)


def _heads(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Heads that lie next to each other in every row."""
    queries, keys = (item.unflatten(-1, (3, 40)).transpose(1, 2) for item in (x, w))
    return torch.relu(queries @ keys.mT)


def _shared(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Two heads for each matrix."""
    return torch.relu(x.unflatten(-1, (6, 40)).transpose(1, 2) @ w.repeat_interleave(2, dim=1))


BATCHED: dict[str, Case] = {
    "batch": Case(lambda x, w: torch.relu(x @ w), ((5, 72, 40), (5, 40, 88))),
    "sums along memory": Case(lambda x, w: torch.relu(x @ w.mT), ((5, 72, 40), (5, 88, 40))),
    "sums across memory": Case(lambda x, w: torch.relu(x.mT @ w), ((5, 40, 72), (5, 40, 88))),
    "heads": Case(_heads, ((2, 72, 120), (2, 88, 120))),
    "shared": Case(_shared, ((2, 520, 240), (2, 3, 40, 88))),
    "every second": Case(lambda x, w: torch.relu(x[::2, 8:] @ w[1::2, 8:48]), ((6, 80, 40), (6, 80, 88))),
    "expanded": Case(lambda x, w: torch.relu(x @ w), ((2, 3, 520, 40), (3, 40, 88))),
    "rows with gaps": Case(lambda x, w: torch.relu(x[:, :-8] @ w), ((3, 520, 40), (40, 88))),
    "columns with gaps": Case(
        lambda x, w: torch.relu(x @ w[:, 8:].flatten(0, 1).mT).unflatten(-1, (2, 512)), ((72, 40), (2, 520, 40))
    ),
}
"""Products of many matrices that lie in memory as descriptors say it, though not one after the other."""

NOT_BATCHED: dict[str, Case] = {
    "matrices 8 bytes off": Case(
        lambda x, w: torch.relu(x[:, 4:].unflatten(1, (72, 40)) @ w), ((5, 2884), (5, 40, 88))
    ),
    "backwards": Case(lambda x, w: torch.relu(x.flip(0) @ w), ((5, 72, 40), (5, 40, 88))),
    "six dims": Case(
        lambda x, w: torch.relu(x[:, :2, :2, :2] @ w[:, :2, :2, :2]), ((2, 3, 3, 3, 72, 40), (2, 3, 3, 3, 40, 88))
    ),
}
"""Those that do not."""


def batched_kernel(case: Case, dtype: torch.dtype) -> Kernel:
    (kernel,) = plan_of(case, dtype).kernels.values()
    return kernel


def divided_kernel(dtype: DType, batch: int = 4, rows: int = 72, columns: int = 88, inner: int = 40) -> Kernel:
    """out[:, b] = x[b] @ w[b // 2]."""
    i, j, k, n = symbol("i"), symbol("j"), symbol("k"), symbol("n")
    b = KernelBuilder((Axis("i", rows), Axis("n", batch), Axis("j", columns), Axis("k", inner, ROW)))
    left = b.load("x", dtype, n * (rows * inner) + i * inner + k)
    right = b.load("w", dtype, (n // 2) * (inner * columns) + k * columns + j)
    result = b.compute("cast", b.contract(left, right), dtype=dtype)
    b.store("out", i * (batch * columns) + n * columns + j, result)
    sizes = {"x": batch * rows * inner, "w": batch // 2 * inner * columns, "out": batch * rows * columns}
    buffers = [Buffer(name, dtype, size, "out" if name == "out" else "in") for name, size in sizes.items()]
    return b.finish("divided", tuple(buffers))


def grouped_kernel(rows: int, columns: int, inner: int, matrices: int, dtype: DType) -> Kernel:
    """out[i] = x[i] @ w[groups[i]]."""
    i, j, k = symbol("i"), symbol("j"), symbol("k")
    b = KernelBuilder((Axis("i", rows), Axis("j", columns), Axis("k", inner, ROW)))
    group = symbol(b.load("groups", i64, i))
    left, right = b.load("x", dtype, i * inner + k), b.load("w", dtype, group * (inner * columns) + k * columns + j)
    b.store("out", i * columns + j, b.compute("cast", b.contract(left, right), dtype=dtype))
    sizes = {"x": rows * inner, "w": matrices * inner * columns, "out": rows * columns}
    buffers = [Buffer(name, dtype, size, "out" if name == "out" else "in") for name, size in sizes.items()]
    return b.finish("by_group", (Buffer("groups", i64, rows, "in"), *buffers))


def unordered(rows: int, matrices: int) -> torch.Tensor:
    """Groups of rows in any order: many in the first tiles, one in the last ones, some nowhere."""
    found = torch.randint(0, matrices, (rows,), generator=torch.Generator().manual_seed(4))
    found[found == 1] = 2
    found[rows // 2 :] = matrices - 1
    return found
