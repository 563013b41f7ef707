"""Kernels that draw random words, in every shape of loop: neighbouring words, strided ones, few, many, along rows."""

from __future__ import annotations

from collections.abc import Callable

from graphc.ir.dims import Dim, symbol
from graphc.ir.types import f32, i32, i64, u32
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.kernel import ROW, Axis, Buffer, Kernel

X, Y = symbol("i"), symbol("j")


def _uniform(b: KernelBuilder, number: Dim, lane: int = 0) -> str:
    key = b.load("key", i64, 1)
    if lane:
        key = b.compute("add", key, b.constant(lane << 61, i64))
    word = b.compute("philox", key, b.index_value(number), dtype=u32)
    bits = b.compute("bitcast", b.compute("shr", word, b.constant(8, u32)), dtype=i32)
    return b.compute("mul", b.compute("cast", bits, dtype=f32), b.constant(2.0**-24, f32))


def _words(n: int, m: int, number: Dim, place: Dim, lane: int = 0) -> Kernel:
    """The words themselves."""
    b = KernelBuilder((Axis("i", n), Axis("j", m)))
    key = b.load("key", i64, 1)
    if lane:
        key = b.compute("add", key, b.constant(lane << 61, i64))
    b.store("y", place, b.compute("philox", key, b.index_value(number), dtype=u32))
    return b.finish("words", (Buffer("key", i64, 2, "in"), Buffer("y", u32, n * m, "out")))


def _dropout(n: int, m: int) -> Kernel:
    """Two masks from one key, in one loop."""
    b = KernelBuilder((Axis("i", n), Axis("j", m)))
    x, zero = b.load("x", f32, X * m + Y), b.constant(0.0, f32)
    for lane in (0, 3):
        kept = b.compute("lt", _uniform(b, X * m + Y, lane), b.constant(0.7, f32))
        x = b.compute("where", kept, b.compute("mul", x, b.constant(1.5, f32)), zero)
    b.store("y", X * m + Y, x)
    buffers = (Buffer("key", i64, 2, "in"), Buffer("x", f32, n * m, "in"), Buffer("y", f32, n * m, "out"))
    return b.finish("dropout", buffers)


def _row_maximum(n: int, m: int) -> Kernel:
    """A reduction of what is drawn, drawn again where it is stored."""
    b = KernelBuilder((Axis("i", n), Axis("j", m, ROW)))
    drawn = b.compute("lt", _uniform(b, X * m + Y), b.constant(0.5, f32))
    kept = b.compute("where", drawn, b.load("x", f32, X * m + Y), b.constant(0.0, f32))
    b.store("y", X * m + Y, b.compute("sub", kept, b.reduce("max", kept)))
    buffers = (Buffer("key", i64, 2, "in"), Buffer("x", f32, n * m, "in"), Buffer("y", f32, n * m, "out"))
    return b.finish("row_maximum", buffers)


RANDOM_CASES: dict[str, Callable[[], Kernel]] = {
    "words": lambda: _words(3, 50, X * 50 + Y, X * 50 + Y),
    "words_one": lambda: _words(1, 1, 0, 0),
    "words_shifted": lambda: _words(5, 33, X * 33 + Y + 7, X * 33 + Y, lane=2),
    "words_strided": lambda: _words(6, 40, Y * 6 + X, X * 40 + Y),
    "words_far": lambda: _words(2, 600, X * 600 + Y + (1 << 35), X * 600 + Y),
    "words_shared": lambda: _words(9, 20, X, X * 20 + Y),
    "words_rounded": lambda: _words(4, 64, (X * 64 + Y) // 3, X * 64 + Y),
    "dropout_kernel": lambda: _dropout(7, 300),
    "row_maximum": lambda: _row_maximum(5, 70),
}
"""By name."""
