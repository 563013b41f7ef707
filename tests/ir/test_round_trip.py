"""`parse(str(graph)) == graph`, locations too, for graphs that use everything the text form can say."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.ir import Graph, Input, Location, Named, Op, Output, Ref, Role, StridedView, TensorType, Value, Write, parse
from graphc.ir.dims import symbol
from graphc.ir.types import DTYPES
from tests.strategies import graphs

NAMES = st.text(min_size=1, max_size=6) | st.sampled_from(("0", "x", "a.b", "write", "return", "strides", "as"))
INTEGERS = st.integers(-9, 9) | st.integers()
FLOATS = st.floats() | st.sampled_from((0.0, -0.0, 1e16, 5e-324, -math.inf))
DIMS = st.recursive(
    st.integers(-5, 70) | st.sampled_from([symbol(name) for name in ("s0", "s1", "batch")]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] * pair[1]),
        st.tuples(inner, st.integers(1, 8)).map(lambda pair: pair[0] // pair[1]),
        st.tuples(inner, st.integers(1, 8)).map(lambda pair: pair[0] % pair[1]),
        inner.map(lambda dim: symbol("s2") // dim if dim != 0 else dim),
    ),
    max_leaves=5,
)
CONSTANTS = st.recursive(
    st.one_of(
        INTEGERS, FLOATS, st.booleans(), st.none(), st.text(max_size=8), st.sampled_from(list(DTYPES.values())), DIMS,
        st.complex_numbers(), st.integers(0, 99).map(Ref),
        st.builds(Named, st.sampled_from(("device", "memory_format")), NAMES),
    ),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
SHAPES = st.lists(DIMS, max_size=3).map(tuple)
TYPES = st.builds(
    TensorType, st.sampled_from(list(DTYPES.values())), SHAPES, st.sampled_from(("cpu", "cuda:0", "host", "meta"))
)
STRIDES = st.none() | SHAPES
LOCATIONS = st.builds(
    Location,
    st.sampled_from(("mlp.py", "/home/me/my model.py", "C:\\x:3.py", "", "<stdin>")) | st.text(max_size=5),
    st.integers(0, 2000),
    st.sampled_from(("", "forward", "f.<locals>.<lambda>")) | st.text(max_size=5),
    st.sampled_from(("", "blocks.3.fc1")) | st.text(max_size=5),
)


@st.composite
def wild_graphs(draw: st.DrawFn, depth: int = 2) -> Graph:
    """Any graph that the classes can hold and dominance allows; ops, attributes and regions mean nothing."""
    graph, values = Graph(draw(NAMES)), []
    names = iter(draw(st.lists(NAMES, min_size=12, max_size=12, unique=True)))
    for _ in range(draw(st.integers(0, 3))):
        item = Input(next(names), draw(TYPES), draw(st.sampled_from(Role)), draw(st.text(max_size=6)), draw(STRIDES))
        graph.inputs.append(item)
        values.append(item)
    for _ in range(draw(st.integers(0, 3))):
        literals = st.one_of(INTEGERS, FLOATS, st.booleans(), st.complex_numbers())
        operands = draw(st.lists(st.sampled_from(values) | literals if values else literals, max_size=3))
        types = draw(st.lists(TYPES, max_size=2))
        attrs = draw(st.dictionaries(NAMES, CONSTANTS, max_size=3))
        if depth and draw(st.integers(0, 3)) == 0:
            attrs.update(draw(st.dictionaries(NAMES, wild_graphs(depth - 1), min_size=1, max_size=2)))
        op = Op(draw(NAMES), operands, attrs, types, draw(LOCATIONS), [next(names) for _ in types])
        for result in op.results:
            result.strides = draw(STRIDES)
        graph.ops.append(op)
        values.extend(op.results)
    for target in graph.inputs:
        if draw(st.booleans()):
            graph.writes.append(Write(target, draw(st.sampled_from(values))))
    for _ in range(draw(st.integers(0, 2)) if values else 0):
        graph.outputs.append(Output(draw(st.sampled_from(values)), draw(st.none() | _views())))
    return graph


@st.composite
def _views(draw: st.DrawFn) -> StridedView:
    shape = draw(SHAPES)
    return StridedView(shape, tuple(draw(DIMS) for _ in shape), draw(DIMS))


def _check(graph: Graph) -> None:
    text = str(graph)
    again = parse(text)
    assert again == graph
    assert str(again) == text
    assert [op.location for op in again.ops] == [op.location for op in graph.ops]


@settings(max_examples=120, deadline=None)
@given(wild_graphs())
def test_any_graph(graph: Graph) -> None:
    _check(graph)


@settings(max_examples=100, deadline=None)
@given(graphs())
def test_well_typed_graphs(graph: Graph) -> None:
    _check(graph)


def test_numbers_keep_their_type_and_bits() -> None:
    operands = [1, 1.0, True, False, -0.0, math.nan, math.inf, -math.inf, 0.1, 1e16, 10**40, complex(-0.0, 1.0)]
    graph = Graph("f", ops=[Op("f", operands, {}, [])])
    text = str(graph)
    assert "f(1, 1.0, True, False, -0.0, nan, inf, -inf, 0.1, 1e+16, 1" in text
    again = parse(text).ops[0].operands
    assert list(map(repr, again)) == list(map(repr, operands))
    assert list(map(type, again)) == list(map(type, operands))


def test_long_header_has_one_input_per_line() -> None:
    type_ = TensorType(DTYPES["f32"], (64, 784))
    graph = Graph("f", [Input(f"x{i}", type_, Role.PARAM, f"layers.{i}.weight") for i in range(9)])
    lines = str(graph).split("\n")
    assert lines[0] == "graph f("
    assert lines[9] == '    %x8: f32[64, 784] param "layers.8.weight"'
    assert lines[10] == ") {"
    assert parse(str(graph)) == graph


def test_example_of_the_design_page() -> None:
    text = """graph mlp(%x: f32[64, 784] arg "x", %w: f32[128, 784] param "fc1.weight", %h: f32[64, 128] state "h") {
  %0: f32[784, 128] strides=[1, 784] = permute(%w) {dims=[1, 0]}  # mlp.py:14 in forward @ fc1
  %1: f32[64, 128] = matmul(%x, %0)  # mlp.py:14 in forward @ fc1
  %2: f32[64, 128] = maximum(%1, 0)  # mlp.py:15
  write %h <- %2
  return %2, %h, %1 as [64, 64]{128, 2}+1
}"""
    graph = parse(text)
    assert str(graph) == text
    assert graph.ops[0].location == Location("mlp.py", 14, "forward", "fc1")
    assert graph.outputs[2].view == StridedView((64, 64), (128, 2), 1)


def test_an_attribute_that_the_ir_does_not_have_is_shown_and_not_parsed() -> None:
    graph = Graph("f", ops=[Op("f", [], {"dims": [1, 2]}, [])])
    assert "dims=<[1, 2]>" in str(graph)
    assert not isinstance(graph.ops[0].attrs["dims"], Value)
