"""Kernels of products whose operands lie in memory as a chip copies blocks by itself, or nearly so."""

from __future__ import annotations

from graphc.ir.dims import Dim, symbol
from graphc.ir.types import DType
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.kernel import ROW, Axis, Buffer, Kernel

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
