"""Malformed text: always a ParseError, with the right line, column and reason."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.errors import ParseError
from graphc.ir import Graph, parse
from tests.strategies import graphs

VALID = """graph f(%x: f32[2, s0] arg "x" strides=[1, 2]) {
  %0: f32[2, s0], %1: i64[] = op(%x, 1, -0.5, complex(1.0, nan)) {a=[None, s0*2], b={c=$0}, d=@device.cuda:0}  # a.py:3
  write %x <- %0
  return %0, %x as [2]{1}+(s0 // 2)
}"""

CASES = [
    ("", 1, 1, "expected 'graph', found the end of the text"),
    ("graph f() { return } x", 1, 22, "expected the end of the text, found 'x'"),
    ("graph f(x) {", 1, 9, "expected an input such as %x, found 'x'"),
    ('graph f(%x: f31[2] arg "x") {', 1, 13, "expected a dtype"),
    ('graph f(%x: f32[2, ] arg "x") {', 1, 20, "expected a size: an integer or a symbol, found ']'"),
    ('graph f(%x: f32[2] argh "x") {', 1, 20, "expected the input's role, one of arg, param"),
    ("graph f(%x: f32[2] arg x) {", 1, 24, "expected the input's path in quotes, found 'x'"),
    ('graph f(%x: f32[2] arg "x) {', 1, 24, "a string that does not end on its line"),
    ('graph f(%x: f32[] arg "a\\q") {', 1, 23, "unknown escape \\q in a string"),
    ('graph f(%x: f32[] arg "a", %x: f32[] arg "b") {', 1, 28, "%x is defined twice"),
    ('graph f(%x: f32[nan] arg "x") {', 1, 17, "expected a size"),
    ('graph f(%x: f32[s0 // 0] arg "x") {', 1, 20, "a dim divided by zero"),
    ('graph f(%x: f32[7 % (1 - 1)] arg "x") {', 1, 19, "a dim divided by zero"),
    ('graph f(%x: f32[2]@"cpu" arg "x") {', 1, 19, "unexpected character '@'"),
    ("graph f() {\n  %0: f32[2] = add(%y, 1)\n  return\n}", 2, 20, "%y is not defined before its use"),
    ("graph f() {\n  %0: f32[2] = add(None)\n  return\n}", 2, 20, "expected a value such as %0 or a number"),
    ("graph f() {\n  %0: f32[2] = add(1\n  return\n}", 3, 3, "expected ',' or ')', found 'return'"),
    ("graph f() {\n  %0: f32[2] add(1)\n  return\n}", 2, 14, "expected '=', found 'add'"),
    ("graph f() {\n  %0: f32[2] = add(1) {a=}\n  return\n}", 2, 26, "expected a constant, found '}'"),
    ("graph f() {\n  %0: f32[2] = add() {a=1, a=2}\n  return\n}", 2, 28, "attribute a is given twice"),
    ("graph f() {\n  add() {a=@device}\n  return\n}", 2, 12, "a named constant has the form @kind.name"),
    ("graph f() {\n  add() {a=1e}\n  return\n}", 2, 12, "a malformed number"),
    ("graph f() {\n  add() {a=complex(1, s0)}\n  return\n}", 2, 12, "a complex number is made of two floats"),
    ("graph f() {\n  add() {a=$999999999999}\n  return\n}", 2, 12, "an operand number of more than 8 digits"),
    (f"graph f() {{\n  add({'9' * 5000})\n  return\n}}", 2, 7, "an integer of more than 1000 digits"),
    (f"graph f() {{\n  add() {{a={'[' * 5000}", 2, 76, "nested too deeply"),
    (f"graph f() {{\n  add() {{a={'(' * 5000}", 2, 75, "nested too deeply"),
    ("graph f() {\n  %0: f32[] = add()\n  write %0 <- %0\n  return\n}", 3, 9, "%0 is not an input: only inputs can be"),
    ('graph f(%x: f32[] arg "x") {\n  write %x <- %x\n  add()\n  return\n}', 3, 3, "expected 'write' or 'return'"),
    ('graph f(%x: f32[] arg "x") {\n  return %x as [2]{1, 1}+0\n}', 2, 24, "a view of 1 dims with 2 strides"),
    ('graph f(%x: f32[] arg "x") {\n  return %x\n', 3, 1, "expected ',' or '}', found the end of the text"),
    ("graph f() {\n  é\n}", 2, 3, "unexpected character 'é'"),
]


@pytest.mark.parametrize(("text", "line", "column", "reason"), CASES)
def test_malformed_text(text: str, line: int, column: int, reason: str) -> None:
    with pytest.raises(ParseError) as info:
        parse(text)
    assert (info.value.line, info.value.column) == (line, column), str(info.value)
    assert info.value.reason.startswith(reason), info.value.reason


def test_the_message_shows_line_and_caret() -> None:
    with pytest.raises(ParseError) as info:
        parse("graph f() {\n  return %x\n}")
    assert str(info.value) == "line 2, column 10: %x is not defined before its use\n    return %x\n           ^"


def test_comments_and_layout_are_free() -> None:
    text = """# a comment
    graph f(   # another
      %x: f32[2]
        arg "x"
    ) { %0: f32[2]=neg(%x){} # not a location
    return %0 } # end"""
    graph = parse(text)
    assert [op.name for op in graph.ops] == ["neg"]
    assert not graph.ops[0].location
    assert parse(str(graph)) == graph


def test_ops_may_be_called_write_and_return() -> None:
    graph = parse("graph f() {\n  write()\n  return()\n  return\n}")
    assert [op.name for op in graph.ops] == ["write", "return"]


def _parses_or_refuses(text: str) -> None:
    try:
        graph = parse(text)
    except ParseError as error:
        assert 1 <= error.line <= text.count("\n") + 1 and error.column >= 1 and error.reason
    else:
        assert parse(str(graph)) == graph


def test_the_valid_text_is_valid() -> None:
    assert isinstance(parse(VALID), Graph)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='graph f(){}[]%x0:=,$@"\\#-+*/.<1e s\n', max_size=60), st.integers(0, len(VALID)))
def test_garbage_inserted(garbage: str, position: int) -> None:
    _parses_or_refuses(garbage)
    _parses_or_refuses(VALID[:position] + garbage + VALID[position:])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(VALID)), st.integers(0, 12), st.integers(0, len(VALID)))
def test_pieces_cut_out_or_moved(start: int, length: int, target: int) -> None:
    piece, rest = VALID[start : start + length], VALID[:start] + VALID[start + length :]
    _parses_or_refuses(rest)
    _parses_or_refuses(rest[:target] + piece + rest[target:])


@settings(max_examples=50, deadline=None)
@given(graphs(max_ops=3), st.data())
def test_one_character_changed(graph: Graph, data: st.DataObject) -> None:
    text = str(graph)
    position = data.draw(st.integers(0, len(text) - 1))
    _parses_or_refuses(text[:position] + data.draw(st.characters(max_codepoint=0x2FF)) + text[position + 1 :])
