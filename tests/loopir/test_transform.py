"""Rewrites of kernels as text, each run before and after."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from graphc.ir.dims import symbol
from graphc.loopir import Kernel, parse_kernel, verify
from graphc.loopir.analysis import KernelFacts, breakpoints, known_truths
from graphc.loopir.comparisons import cancel_positions
from graphc.loopir.transform import (
    assume,
    drop_dead,
    drop_idle_axes,
    drop_unit_axes,
    lower_arg_reductions,
    merge_axes,
    split_axis,
    split_divided_axes,
)
from tests.kernel_strategies import kernels, make_buffers, oracle


def same_results(before: Kernel, after: Kernel) -> None:
    verify(after)
    buffers = make_buffers(before)
    expected, actual = oracle(before, buffers), oracle(after, buffers)
    for name in expected:
        assert np.allclose(expected[name], actual[name], rtol=1e-6, equal_nan=True), f"{name}\n{before}\n{after}"


def axes_of(kernel: Kernel) -> list[tuple[str, object]]:
    return [(axis.name, axis.extent) for axis in kernel.axes]


@settings(max_examples=60, deadline=None)
@given(kernels())
def test_rewrites_keep_the_meaning(kernel: Kernel) -> None:
    lowered = lower_arg_reductions(drop_dead(kernel))
    same_results(kernel, lowered)
    same_results(lowered, cancel_positions(lowered))
    dropped = drop_unit_axes(lowered)
    same_results(kernel, dropped)
    split = split_divided_axes(dropped)
    same_results(kernel, split)
    same_results(kernel, merge_axes(split))


RELU = """kernel relu(x: in f32[24], y: out f32[24]) axes(i: 2 parallel, j: 3 parallel, k: 4 parallel) {
  v0: f32 = load x[i*12 + j*4 + k]
  v1: f32 = neg v0
  store y[i*12 + j*4 + k] = v1
}"""


def test_contiguous_axes_become_one() -> None:
    merged = merge_axes(parse_kernel(RELU))
    assert axes_of(merged) == [("k", 24)]
    assert str(merged.body[0].index) == "k"  # type: ignore[union-attr]
    broadcast = RELU.replace("v1: f32 = neg v0", "v1: f32 = load x[k]")
    assert axes_of(merge_axes(parse_kernel(broadcast))) == [("j", 6), ("k", 4)]


def test_unit_axes_go_but_one_row_axis_stays() -> None:
    text = """kernel k(x: in f32[5], y: out f32[5]) axes(i: 1 parallel, j: 5 parallel, r: 1 row, s: 1 row) {
  v0: f32 = load x[i*5 + j + r + s]
  v1: f32 = reduce sum v0
  v2: i64 = index i
  store y[i*5 + j] = v1
}"""
    kernel = drop_unit_axes(parse_kernel(text))
    assert axes_of(kernel) == [("j", 5), ("s", 1)]
    assert "v2: i64 = const 0" in str(kernel)


def test_divided_axes_are_split_where_extents_allow() -> None:
    text = """kernel k(x: in f32[40], b: in f32[5], y: out f32[40]) axes(i: 40 parallel) {
  v0: f32 = load x[(i % 8)*5 + (i // 8)]
  v1: f32 = load b[(i // 8)]
  v2: f32 = add v0 v1
  store y[i] = v2
}"""
    kernel = split_divided_axes(parse_kernel(text))
    assert axes_of(kernel) == [("ia", 5), ("i", 8)]
    assert str(kernel.body[0].index) == "i*5 + ia"  # type: ignore[union-attr]
    odd = parse_kernel(text.replace("i: 40 parallel", "i: 37 parallel"))
    assert split_divided_axes(odd) is odd
    with pytest.raises(ValueError, match="axis i of extent 37 is not a multiple of 8"):
        split_axis(odd, "i", 8)


def test_dead_values_go() -> None:
    kernel = parse_kernel(RELU.replace("v1: f32 = neg v0", "v1: f32 = neg v0\n  v2: f32 = exp v1"))
    assert "exp" not in str(drop_dead(kernel))


def test_masks_cut_an_axis() -> None:
    text = """kernel k(x: in f32[10], y: out f32[30]) axes(i: 30 parallel) {
  v0: i64 = index i
  v1: i64 = const 10
  v2: bool = ge v0 v1
  v3: i64 = const 19
  v4: bool = le v0 v3
  v5: bool = logical_and v2 v4
  v6: f32 = load x[i - 10] mask v5 other 0.0
  store y[i] = v6
}"""
    facts = KernelFacts(parse_kernel(text))
    assert breakpoints(facts, "i", ["v2", "v4", "v5"]) == [10, 20]
    assert known_truths(facts, {"i": (10, 19)}) == {"v2": True, "v4": True, "v5": True}
    assert known_truths(facts, {"i": (0, 9)})["v5"] is False
    assert "v2" not in known_truths(facts, {"i": (5, 15)})


def test_axes_that_own_their_places() -> None:
    text = """kernel k(x: in f32[32], t: in i64[8], y: inout f32[64]) axes(i: 8 parallel, j: 4 parallel) {
  v0: i64 = load t[i]
  v1: f32 = load x[i*4 + j]
  store y[v0*4 + j] = v1 mode add
}"""
    facts = KernelFacts(parse_kernel(text))
    assert facts.is_disjoint("j") and not facts.is_disjoint("i")
    assert facts.step(symbol("i") * 4 + symbol("j"), "j") == 1
    assert facts.vector_axis(["i", "j"]) == "j"


def test_rows_own_their_places_whatever_the_data() -> None:
    text = """kernel k(x: in f32[32], t: in i64[32], y: inout f32[64]) axes(i: 8 parallel, j: 4 parallel) {
  v0: i64 = load t[i*4 + j]
  v1: f32 = load x[i*4 + j]
  store y[i*8 + v0] = v1 mode add
}"""
    facts = KernelFacts(parse_kernel(text))
    assert facts.is_disjoint("i") and not facts.is_disjoint("j")


POSITIONS = """\
kernel pool(where: in {dtype}[24], grad: in f32[24], out: out f32[96])
    axes(i0: 2 parallel, i1: 3 parallel, i2: 2 parallel, i3: 4 parallel, i4: 2 parallel) {{
  v0: {dtype} = load where[i0*12 + i1*4 + i3]
  v1: i64 = cast v0
  v2: i64 = index i1*2
  v3: i64 = const 8
  v4: i64 = mul v2 v3
  v5: i64 = index i3*2
  v6: i64 = add v4 v5
  v7: i64 = {left}
  v8: i64 = index i1*2 + i2
  v9: i64 = mul v8 v3
  v10: i64 = index i3*2 + i4
  v11: i64 = add v9 v10
  v12: bool = {compare}
  v13: f32 = load grad[i0*12 + i1*4 + i3]
  v14: f32 = const 0.0
  v15: f32 = where v12 v13 v14
  store out[i0*48 + i1*16 + i2*8 + i3*2 + i4] = v15
}}
"""


@pytest.mark.parametrize(
    ("dtype", "left", "compare", "expected"),
    [
        ("i8", "add v1 v6", "eq v7 v11", ["i32 = cast v0", "i64 = index i2*8 + i4", "i32 = cast", "bool = eq"]),
        ("i8", "add v6 v1", "ne v11 v7", ["i32 = cast v0", "i64 = index i2*8 + i4", "i32 = cast", "bool = ne"]),
        ("i64", "sub v1 v6", "eq v7 v11", ["i64 = index i1*32 + i2*8 + i3*4 + i4", "bool = eq v1"]),
    ],
)
def test_positions_cancel(dtype: str, left: str, compare: str, expected: list[str]) -> None:
    kernel = parse_kernel(POSITIONS.format(dtype=dtype, left=left, compare=compare))
    after = cancel_positions(kernel)
    lines = [line for line in str(after).splitlines() if "f32" not in line and "load" not in line]
    assert all(any(part in line for line in lines) for part in expected), str(after)
    assert not any(f"= {op} " in line for line in lines for op in ("add", "sub", "mul")), str(after)
    same_results(kernel, after)


def test_other_comparisons_stay() -> None:
    """Of two values, of products with data, of an order: sums that wrap are not ordered as their parts are."""
    for left, compare in (("mul v1 v6", "eq v7 v11"), ("add v1 v6", "lt v7 v11"), ("add v1 v6", "eq v7 v1")):
        kernel = parse_kernel(POSITIONS.format(dtype="i64", left=left, compare=compare))
        assert cancel_positions(kernel) is kernel


def test_idle_axes_go_unless_something_is_added_up_along_them() -> None:
    text = """
kernel k(x: in f32[4], y: {access} f32[4]) axes(i: 4 parallel, j: 9 parallel, k: 5 row) {{
  v0: f32 = load x[i]
  v1: f32 = reduce sum v0
  store y[i] = v1{mode}
}}
"""
    stored = parse_kernel(text.format(access="out", mode=""))
    assert [axis.name for axis in drop_idle_axes(stored).axes] == ["i", "k"]
    added = parse_kernel(text.format(access="inout", mode=" mode add"))
    assert drop_idle_axes(added) is added
    nothing = parse_kernel(text.format(access="out", mode="").replace("j: 9", "j: 0"))
    assert drop_idle_axes(nothing) is nothing


def test_what_is_assumed_decides_conditions_and_choices() -> None:
    kernel = parse_kernel("""
    kernel masked(x: in f32[64], y: out f32[64], z: out f32[64]) axes(i: 8 parallel, j: 8 parallel) {
      v0: i64 = index j
      v1: i64 = index i
      v2: bool = le v0 v1
      v3: bool = const true
      v4: bool = const false
      v5: bool = where v2 v3 v4
      v6: bool = bitwise_not v5
      v7: f32 = load x[i*8 + j]
      v8: bool = isnan v7
      v9: bool = logical_or v6 v8
      v10: f32 = const 0.0
      v11: f32 = where v6 v10 v7
      v12: f32 = where v9 v10 v11
      store y[i*8 + j] = v12
      store z[i*8 + j] = v11
    }""")
    kept = assume(kernel, {"v2": True})
    verify(kept)
    assert [s.id for s in kept.defines] == ["v7", "v8", "v10", "v12"]
    masked = assume(kernel, {"v2": False})
    verify(masked)
    assert [s.id for s in masked.defines] == ["v10"]
    buffers = make_buffers(kernel)
    expected, actual, zeros = (oracle(item, buffers) for item in (kernel, kept, masked))
    below = np.tril(np.ones((8, 8), bool)).ravel()
    for name in ("y", "z"):
        assert np.array_equal(expected[name][below], actual[name][below], equal_nan=True)
        assert np.array_equal(expected[name][~below], zeros[name][~below], equal_nan=True)
