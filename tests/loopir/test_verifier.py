"""Every invariant of kernels, broken once."""

from __future__ import annotations

import pytest

from graphc.errors import InvalidGraphError
from graphc.ir.types import f32, i64
from graphc.loopir import Axis, Buffer, Compute, Const, Kernel, Load, Reduce, Store, parse_kernel, verify

GOOD = """kernel good(x: in f32[60], t: in i64[6], b: in bool[60], y: out f32[60], s: inout f32[6])
    axes(i: 6 parallel, j: 10 row) {
  v0: f32 = load x[i*10 + j]
  v1: i64 = load t[i]
  v2: bool = load b[i*10 + j]
  v3: f32 = load x[v1*10 + j] mask v2 other 0.0
  v4: f32 = add v0 v3
  v5: f32 = reduce sum v4
  store y[i*10 + j] = v4 mask v2
  store s[i] = v5 mode add
}"""


def test_good_kernel_passes() -> None:
    verify(parse_kernel(GOOD))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("v4: f32 = add v0 v3", "v4: f32 = add v0 v9", "v9 is used before it is defined"),
        ("v4: f32 = add v0 v3", "v3: f32 = add v0 v3", "v3 is defined twice"),
        ("load x[i*10 + j]", "load z[i*10 + j]", "there is no buffer z"),
        ("load x[i*10 + j]", "load y[i*10 + j]", "buffer y is out"),
        ("store y[i*10 + j]", "store x[i*10 + j]", "buffer x is in"),
        ("v0: f32 = load", "v0: f64 = load", "v0 is f64, buffer x is f32"),
        ("load x[i*10 + j]\n", "load x[i*10 + j + 1]\n", "index i*10 + j + 1 of x reaches 60, size 60"),
        ("load x[i*10 + j]\n", "load x[i*10 + j - 1]\n", "index i*10 + j - 1 of x reaches -1, below 0"),
        ("mask v2 other 0.0", "mask v0 other 0.0", "mask v0 is f32, not bool"),
        ("load x[v1*10 + j]", "load x[v0*10 + j]", "v0 is f32; an index is an integer"),
        ("add v0 v3", "add v0 v1", "operands of add differ in dtype: f32, i64"),
        ("v4: f32 = add v0 v3", "v4: f64 = add v0 v3", "add gives f32, not f64"),
        ("add v0 v3", "bitwise_and v0 v3", "bitwise_and does not take f32"),
        ("add v0 v3", "where v0 v0 v3", "the first operand of where is bool"),
        ("v4: f32 = add v0 v3", "v4: bool = lt v0 v3", "sum does not take bool"),
        ("v5: f32 = reduce sum v4", "v5: f32 = reduce any v4", "any takes bool, not f32"),
        ("v5: f32 = reduce sum v4", "v5: f32 = reduce argmax v4", "reduce argmax of f32 gives i64, not f32"),
        ("v5: f32 = reduce sum v4", "v5: f64 = reduce sum v4", "reduce sum of f32 gives f32, not f64"),
        ("v5: f32 = reduce sum v4", "v5: f32 = bitcast v1", "bitcast from i64 to f32 changes the size"),
        ("store y[i*10 + j] = v4", "store y[i*10 + j] = v1", "v1 is i64, buffer y is f32"),
        ("store y[i*10 + j] = v4", "store y[i] = v4", "several elements along j go to one place of y"),
        ("store s[i] = v5", "store s[0] = v5", "several elements along i go to one place of s"),
        ("store s[i] = v5 mode add", "store s[0] = v1 mode add", "v1 is i64, buffer s is f32"),
        ("s: inout", "s: out", "buffer s is added to, so it is inout"),
        ("j: 10 row) {", "j: 10 parallel) {", "a reduction needs a row axis"),
        ("axes(i: 6 parallel, j: 10 row)", "axes(i: 6 row, j: 10 parallel)", "row axes come after parallel axes"),
        ("x: in f32[60]", "x: in c64[60]", "buffer x is complex; kernels hold real numbers only"),
        ("x: in f32[60]", "i: in f32[60]", "'i' names an axis and a buffer"),
        ("x: in f32[60], t", "t: in f32[60], t", "two buffers have the same name"),
    ],
)
def test_broken_kernels_are_refused(old: str, new: str, reason: str) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    if new == "store s[0] = v5":
        text = text.replace(" mode add", "")
    with pytest.raises(InvalidGraphError) as caught:
        verify(parse_kernel(text))
    assert caught.value.message.split("\n")[0] == f"kernel good: {reason}"


def test_message_shows_the_line_in_a_window() -> None:
    with pytest.raises(InvalidGraphError) as caught:
        verify(parse_kernel(GOOD.replace("add v0 v3", "add v0 v1")))
    lines = caught.value.message.split("\n")
    assert "> " + "  v4: f32 = add v0 v1" in lines
    assert len(lines) <= 12


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            (Load("v0", f32, "x", 0), Store("y", 0, "v0"), Load("v1", f32, "y", 0)),
            "buffer y is read after it was written",
        ),
        ((Const("v0", f32, 1),), "constant 1 is not a f32"),
        ((Const("w", f32, 1.0),), "a value is named v and a number, not 'w'"),
        ((Compute("v0", f32, "frob", ()),), "there is no scalar op frob"),
        ((Const("v0", f32, 1.0), Compute("v1", f32, "add", ("v0",))), "add takes 2 operands, not 1"),
        ((Const("v0", f32, 1.0), Reduce("v1", f32, "mean", "v0")), "there is no reduction mean"),
        ((Const("v0", f32, 1.0), Store("y", 0, "v0", None, "min")), "there is no store mode min"),
        ((Const("v0", f32, 1.0), Store("y", 0, "v0", None, "max")), "a cell of which the maximum is kept is one place"),
        ((Const("v0", i64, 1), Store("y", 0, "v0", None, "add")), "v0 is i64, buffer y is f32"),
        ((Const("v0", f32, 1.0), Store("y", 0, "v0", None, "add")), "how often to add along i, j is not said"),
    ],
)
def test_kernels_the_text_cannot_say(body: tuple[object, ...], reason: str) -> None:
    axes = (Axis("i", 1), Axis("j", 1), Axis("r", 1, "row"))
    kernel = Kernel("k", axes, (Buffer("x", f32, 1, "in"), Buffer("y", f32, 1, "inout")), body)  # type: ignore[arg-type]
    with pytest.raises(InvalidGraphError, match=f"kernel k: {reason}"):
        verify(kernel)


def test_reduced_floats_are_only_converted() -> None:
    text = """kernel k(x: in bf16[4], y: out bf16[4]) axes(i: 4 parallel) {
  v0: bf16 = load x[i]
  v1: bf16 = neg v0
  store y[i] = v1
}"""
    with pytest.raises(InvalidGraphError, match="neg on bf16: reduced floats are computed in f32, cast first"):
        verify(parse_kernel(text))


def test_scan_needs_one_row_axis() -> None:
    text = """kernel k(x: in f32[4], y: out f32[4]) axes(i: 2 row, j: 2 row) {
  v0: f32 = load x[i*2 + j]
  v1: f32 = scan sum v0
  store y[i*2 + j] = v1
}"""
    with pytest.raises(InvalidGraphError, match="a scan needs exactly one row axis, there are 2"):
        verify(parse_kernel(text))
