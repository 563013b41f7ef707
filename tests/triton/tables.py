"""Kernels over tables of rows, for the tests of the Triton backend."""

from __future__ import annotations

from graphc.ir.dims import symbol
from graphc.ir.types import DType, f32, f64
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.kernel import ROW, Axis, Buffer, Kernel
from graphc.program.plan import RowArgument

ELEMENTS = symbol("elements")


def momentum(dtype: DType = f32) -> tuple[Kernel, tuple[RowArgument, ...]]:
    """m = 0.9 m + g; p = p - rate * m * scale: both in place, the rate a number of the row, the scale shared."""
    b = KernelBuilder((Axis("i0", ELEMENTS),))
    i = symbol("i0")

    def wide(name: str) -> str:
        return b.compute("cast", b.load(name, dtype, i), dtype=dtype.compute)

    rate = b.compute("cast", b.load("rate", f64, 0), dtype=dtype.compute)
    scale = b.compute("cast", b.load("scale", f32, 0), dtype=dtype.compute)
    m = b.compute("add", b.compute("mul", wide("m"), b.constant(0.9, dtype.compute)), wide("g"))
    p = b.compute("sub", wide("p"), b.compute("mul", b.compute("mul", m, rate), scale))
    b.store("m_out", i, b.compute("cast", m, dtype=dtype))
    b.store("p_out", i, b.compute("cast", p, dtype=dtype))
    given = tuple(Buffer(name, dtype, ELEMENTS, "in") for name in ("p", "m", "g"))
    numbers = (Buffer("rate", f64, 1, "in"), Buffer("scale", f32, 1, "in"))
    made = tuple(Buffer(name, dtype, ELEMENTS, "out") for name in ("m_out", "p_out"))
    rows = tuple(RowArgument("row", number, dtype, True) for number in (0, 1, 2))
    outs = tuple(RowArgument("row", number, dtype, True) for number in (1, 0))
    own = (RowArgument("scratch", 8, f64, False), RowArgument("shared", 0, f32, False))
    return b.finish("momentum", (*given, *numbers, *made)), (*rows, *own, *outs)


def norm_and_peak(dtype: DType = f32) -> tuple[Kernel, tuple[RowArgument, ...]]:
    """Per row the root of the sum of squares, and the largest absolute value times a number that is shared."""
    b = KernelBuilder((Axis("r0", ELEMENTS, ROW),))
    x = b.compute("cast", b.load("x", dtype, symbol("r0")), dtype=dtype.compute)
    total = b.reduce("sum", b.compute("mul", x, x))
    peak = b.reduce("max", b.compute("abs", x))
    scale = b.compute("cast", b.load("scale", f32, 0), dtype=dtype.compute)
    b.store("norm", 0, b.compute("sqrt", total))
    b.store("peak", 0, b.compute("mul", peak, scale))
    buffers = (Buffer("x", dtype, ELEMENTS, "in"), Buffer("scale", f32, 1, "in"))
    made = tuple(Buffer(name, dtype.compute, 1, "out") for name in ("norm", "peak"))
    own = tuple(RowArgument("row", number, dtype.compute, False) for number in (1, 2))
    arguments = (RowArgument("row", 0, dtype, True), RowArgument("shared", 0, f32, False), *own)
    return b.finish("norm_and_peak", (*buffers, *made)), arguments
