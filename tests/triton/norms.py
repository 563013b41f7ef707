"""Kernels whose rows have several axes, with values that go by some of them: group norm and its gradients."""

from __future__ import annotations

from graphc.ir.dims import Dim, symbol
from graphc.ir.types import DType, f32
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.kernel import ROW, Axis, Kernel
from tests.triton.cases import given, load, out

N, G, C, D, P = (symbol(name) for name in "igcdp")  # image, group, channel of the group, the same, pixel
Moments = tuple[str, str, str]


def _mean(b: KernelBuilder, value: str, size: int, dtype: DType) -> str:
    return b.compute("mul", b.reduce("sum", value), b.constant(1 / size, dtype.compute))


def _moments(b: KernelBuilder, x: str, size: int, dtype: DType) -> Moments:
    """The mean, distances from it, and 1/sqrt(var + eps)."""
    mean = _mean(b, x, size, dtype)
    d = b.compute("sub", x, mean)
    variance = _mean(b, b.compute("mul", d, d), size, dtype)
    return mean, d, b.compute("rsqrt", b.compute("add", variance, b.constant(1e-5, dtype.compute)))


def _rows(n: int, groups: int, channels: int, pixels: int) -> tuple[KernelBuilder, int, Dim]:
    """A builder, the length of a row, and the place of an element."""
    row = channels * pixels
    axes = (Axis("i", n), Axis("g", groups), Axis("c", channels, ROW), Axis("p", pixels, ROW))
    return KernelBuilder(axes), row, N * (groups * row) + G * row + C * pixels + P


def group_norm(n: int, groups: int, channels: int, pixels: int, dtype: DType = f32) -> Kernel:
    """Rows are (channel, pixel), parameters go by channel."""
    b, row, place = _rows(n, groups, channels, pixels)
    x = load(b, "x", dtype, place)
    mean, d, r = _moments(b, x, row, dtype)
    w, c = (load(b, name, dtype, G * channels + C) for name in "wb")
    y = b.compute("add", b.compute("mul", d, b.compute("mul", r, w)), c)
    b.store("y", place, b.compute("cast", y, dtype=dtype))
    b.store("mean", N * groups + G, mean)
    size, parameters = n * groups * row, groups * channels
    buffers = (given("x", dtype, size), given("w", dtype, parameters), given("b", dtype, parameters))
    return b.finish("group_norm", (*buffers, out("y", dtype, size), out("mean", dtype.compute, n * groups)))


def group_norm_gradient(n: int, groups: int, channels: int, pixels: int, dtype: DType = f32) -> Kernel:
    """The result, and the gradient of x for a gradient dy of it."""
    b, row, place = _rows(n, groups, channels, pixels)
    x = load(b, "x", dtype, place)
    _, d, r = _moments(b, x, row, dtype)
    w = load(b, "w", dtype, G * channels + C)
    g = b.compute("mul", load(b, "dy", dtype, place), w)
    xhat = b.compute("mul", d, r)
    along = b.compute("mul", xhat, _mean(b, b.compute("mul", g, xhat), row, dtype))
    found = b.compute("mul", r, b.compute("sub", b.compute("sub", g, _mean(b, g, row, dtype)), along))
    b.store("dx", place, b.compute("cast", found, dtype=dtype))
    b.store("y", place, b.compute("cast", b.compute("mul", xhat, w), dtype=dtype))
    size = n * groups * row
    buffers = (given("x", dtype, size), given("dy", dtype, size), given("w", dtype, groups * channels))
    return b.finish("group_norm_gradient", (*buffers, out("dx", dtype, size), out("y", dtype, size)))


def weight_gradient(n: int, channels: int, pixels: int) -> Kernel:
    """Rows are (image, pixel), statistics go by image."""
    b = KernelBuilder((Axis("c", channels), Axis("i", n, ROW), Axis("p", pixels, ROW)))
    place: Dim = N * (channels * pixels) + C * pixels + P
    mean, r = (load(b, name, f32, N) for name in ("mean", "r"))
    xhat = b.compute("mul", b.compute("sub", load(b, "x", f32, place), mean), r)
    g = load(b, "dy", f32, place)
    b.store("dw", C, b.reduce("sum", b.compute("mul", g, xhat)))
    b.store("db", C, b.reduce("sum", g))
    size = n * channels * pixels
    buffers = (given("x", f32, size), given("dy", f32, size), given("mean", f32, n), given("r", f32, n))
    return b.finish("weight_gradient", (*buffers, out("dw", f32, channels), out("db", f32, channels)))


def three_axes(n: int, a: int, c: int, pixels: int) -> Kernel:
    """Rows of three axes that do not join: a maximum after a sum, with factors along the first two and the last one."""
    b = KernelBuilder((Axis("i", n), Axis("c", a, ROW), Axis("d", c, ROW), Axis("p", pixels, ROW)))
    place: Dim = N * (a * c * pixels) + C * (c * pixels) + D * pixels + P
    x = b.compute("mul", b.load("x", f32, place), b.load("w", f32, C + D * a))
    x = b.compute("mul", x, b.load("u", f32, P))
    y = b.compute("sub", x, _mean(b, x, a * c * pixels, f32))
    b.store("y", N, b.reduce("max", y))
    buffers = (given("x", f32, n * a * c * pixels), given("w", f32, a * c), given("u", f32, pixels))
    return b.finish("three_axes", (*buffers, out("y", f32, n)))
