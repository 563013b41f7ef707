"""Axes of lowered kernels: cut, ordered, joined; the numbers stay."""

from __future__ import annotations

import numpy as np

from graphc.loopir import parse_kernel, run, verify
from graphc.passes.axes import tidy


def check_tidy(text: str, expected: str) -> None:
    """Tidy a kernel, compare its axes, and run both."""
    kernel = parse_kernel(text)
    plain = tidy(kernel)
    verify(plain)
    axes = ", ".join(f"{axis.name}: {axis.extent} {axis.kind}" for axis in plain.axes)
    assert axes == expected
    results = []
    for candidate in (kernel, plain):
        buffers = {b.name: np.arange(int(b.size), dtype=np.float32) for b in kernel.buffers}
        buffers["y"][:] = -1
        run(candidate, buffers)
        results.append(buffers["y"])
    np.testing.assert_array_equal(*results)


def test_contiguous_axes_become_one() -> None:
    check_tidy(
        """
kernel f(x: in f32[24], y: out f32[24]) axes(a: 2 parallel, b: 3 parallel, c: 4 parallel) {
  v0: f32 = load x[a*12 + b*4 + c]
  v1: f32 = neg v0
  store y[a*12 + b*4 + c] = v1
}""",
        "i0: 24 parallel",
    )


def test_only_those_that_step_evenly_everywhere() -> None:
    check_tidy(
        """
kernel f(x: in f32[4], y: out f32[24]) axes(a: 2 parallel, b: 3 parallel, c: 4 parallel) {
  v0: f32 = load x[c]
  store y[a*12 + b*4 + c] = v0
}""",
        "i0: 6 parallel, i1: 4 parallel",
    )


def test_divisions_by_a_reshape_cut_the_axis() -> None:
    check_tidy(
        """
kernel f(x: in f32[24], y: out f32[24]) axes(a: 2 parallel, b: 12 parallel) {
  v0: f32 = load x[a*4 + (b // 4)*8 + b % 4]
  store y[a*12 + b] = v0
}""",
        "i0: 2 parallel, i1: 3 parallel, i2: 4 parallel",
    )


def test_the_innermost_axis_walks_along_the_store() -> None:
    check_tidy(
        """
kernel f(x: in f32[24], y: out f32[24]) axes(a: 4 parallel, b: 6 parallel) {
  v0: f32 = load x[a*6 + b]
  store y[a + b*4] = v0
}""",
        "i0: 6 parallel, i1: 4 parallel",
    )


def test_row_axes_join_only_with_row_axes() -> None:
    check_tidy(
        """
kernel f(x: in f32[24], y: out f32[2]) axes(a: 2 parallel, b: 3 row, c: 4 row) {
  v0: f32 = load x[a*12 + b*4 + c]
  v1: f32 = reduce sum v0
  store y[a] = v1
}""",
        "i0: 2 parallel, r0: 12 row",
    )


def test_positions_as_numbers_keep_their_axis() -> None:
    check_tidy(
        """
kernel f(y: out f32[12]) axes(a: 3 parallel, b: 4 parallel) {
  v0: i64 = index b
  v1: f32 = cast v0
  store y[a*4 + b] = v1
}""",
        "i0: 3 parallel, i1: 4 parallel",
    )


def test_what_nothing_needs_goes() -> None:
    kernel = parse_kernel("""
kernel f(x: in f32[4], y: out f32[4]) axes(a: 4 parallel) {
  v0: f32 = load x[a]
  v1: f32 = exp v0
  v2: f32 = neg v0
  store y[a] = v2
}""")
    assert [s.op for s in tidy(kernel).defines if hasattr(s, "op")] == ["neg"]
