"""Printing and parsing kernels."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from graphc.errors import ParseError
from graphc.ir.dims import symbol
from graphc.ir.types import bf16, bool_, f32, i64
from graphc.loopir import (
    Axis,
    Buffer,
    Compute,
    Const,
    Index,
    Kernel,
    Load,
    Reduce,
    Scan,
    Store,
    parse_kernel,
    print_kernel,
)
from tests.kernel_strategies import kernels

SOFTMAX = """\
kernel softmax(x: in f32[4194304], y: out f32[4194304]) axes(i: 4096 parallel, j: 1024 row) {
  # mlp.py:15 softmax
  v0: f32 = load x[i*1024 + j]
  v1: f32 = reduce max v0
  v2: f32 = sub v0 v1
  v3: f32 = exp v2
  v4: f32 = reduce sum v3
  v5: f32 = div v3 v4
  store y[i*1024 + j] = v5
}"""


def test_text_is_what_it_was() -> None:
    kernel = parse_kernel(SOFTMAX)
    assert str(kernel) == SOFTMAX
    assert kernel.notes == ("mlp.py:15 softmax",)
    assert kernel.stages["v5"] == 2


@settings(max_examples=60, deadline=None)
@given(kernels())
def test_random_kernels_round_trip(kernel: Kernel) -> None:
    assert parse_kernel(print_kernel(kernel)) == kernel


def test_every_statement_round_trips() -> None:
    i, j = symbol("i"), symbol("j")
    kernel = Kernel(
        "all",
        (Axis("i", symbol("n")), Axis("j", 6, "row")),
        (Buffer("x", f32, symbol("n") * 6 + 1, "in"), Buffer("y", f32, 100, "inout"), Buffer("b", bf16, 9, "out")),
        (
            Index("v0", i64, (i * 2 + j) // 7 * 3 - i % 5 + (-j) // 2),
            Const("v1", i64, -4),
            Compute("v2", bool_, "lt", ("v0", "v1")),
            Load("v3", f32, "x", i * 6 + j, "v2", float("-inf")),
            Const("v4", f32, float("nan")),
            Const("v5", bool_, True),
            Const("v6", f32, -1e-30),
            Scan("v7", f32, "sum", "v3"),
            Reduce("v8", f32, "max", "v7"),
            Const("v9", bf16, 1.5),
            Store("y", symbol("v0") * 2, "v7", "v5", "add"),
            Store("b", i // symbol("n"), "v9"),
        ),
    )
    again = parse_kernel(str(kernel))
    assert str(again) == str(kernel)
    assert again.key()[:2] == kernel.key()[:2]
    assert again.body[:4] == kernel.body[:4] and again.body[5:] == kernel.body[5:]


HEAD = "kernel k(x: in f32[4], y: out f32[4]) axes(i: 4 parallel) {\n"


@pytest.mark.parametrize(
    ("text", "line", "column", "reason"),
    [
        ("kernl k", 1, 1, "expected 'kernel', found 'kernl'"),
        ("kernel k(x: in f33[4]", 1, 16, "unknown dtype 'f33'"),
        ("kernel k(x: to f32[4]", 1, 13, "unknown access 'to'"),
        ("kernel k() axes(i: 4 sideways)", 1, 22, "unknown axis kind 'sideways'"),
        (HEAD + "  v0: f32 = load x[i\n", 3, 1, "expected ']', found 'end of text'"),
        (HEAD + "  v0: f32 = frob v1\n}", 2, 13, "unknown operator 'frob'"),
        (HEAD + "  w0: f32 = load x[i]\n}", 2, 3, "a value is named v and a number, found 'w0'"),
        (HEAD + "  v0: f32 = add v1 i\n}", 2, 20, "expected a value such as v0, found 'i'"),
        (HEAD + "  v0: i64 = const 1.5\n}", 2, 19, "expected a number of i64, found '1.5'"),
        (HEAD + "  v0: bool = const 1\n}", 2, 20, "expected a number of bool, found '1'"),
        (HEAD + "  v0: f32 = reduce mean v1\n}", 2, 20, "unknown reduction 'mean'"),
        (HEAD + "  v0: i64 = index i // 0\n}", 2, 21, "division by zero"),
        (HEAD + "  v0: i64 = index *\n}", 2, 19, "expected an index expression, found '*'"),
        (HEAD + "  store y[i] = v0 mode min\n}", 2, 24, "unknown store mode 'min'"),
        (HEAD + "} kernel", 2, 3, "expected the end of the kernel, found 'kernel'"),
        (HEAD + "  v0: f32 = load x[i] & v1", 2, 23, "unexpected character '&'"),
    ],
)
def test_malformed_text_names_the_place(text: str, line: int, column: int, reason: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_kernel(text)
    assert (caught.value.line, caught.value.column, caught.value.reason) == (line, column, reason)
    assert "^" in str(caught.value) or not text.split("\n")[line - 1]
