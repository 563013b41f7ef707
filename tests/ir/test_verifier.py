"""Every invariant the verifier promises: the class and the message of its error, and the window of lines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings

from graphc.errors import InvalidGraphError
from graphc.ir import Graph, Input, Location, Op, Output, Role, StridedView, TensorType, Write, parse, verify
from graphc.ir.dims import symbol
from graphc.ir.types import f32, i64
from tests.strategies import graphs

TEXT = """graph f(%x: f32[2, 3] arg "x", %n: i64[3] arg "n") {
  %0: f32[2, 3] = exp(%x)  # model.py:7 in forward
  %1: f32[3, 2] = permute(%0) {dims=[1, 0]}  # model.py:8 in forward
  write %x <- %0
  return %1
}"""


def _graph() -> Graph:
    return parse(TEXT)


def _swap(graph: Graph) -> None:
    graph.ops.reverse()


def _literal(graph: Graph) -> None:
    graph.ops[0].operands[0] = "x"  # type: ignore[call-overload]


def _rename(graph: Graph) -> None:
    graph.ops[1].result.name = "0"


def _unnamed(graph: Graph) -> None:
    graph.ops[1].result.name = ""


def _foreign_definition(graph: Graph) -> None:
    graph.ops[1].results = list(parse(TEXT).ops[1].results)


def _wrong_type(graph: Graph) -> None:
    graph.ops[1].result.type = TensorType(f32, (2, 3))


def _unknown_op(graph: Graph) -> None:
    graph.ops[0].name = "expp"


def _arity(graph: Graph) -> None:
    graph.ops[0].operands.append(1.0)


def _missing_attribute(graph: Graph) -> None:
    graph.ops[1].attrs.clear()


def _list_attribute(graph: Graph) -> None:
    graph.ops[1].attrs["dims"] = [1, 0]


def _dict_key(graph: Graph) -> None:
    graph.ops[1].attrs["dims"] = {1: 2}


def _reserved_symbol(graph: Graph) -> None:
    graph.ops[1].attrs["dims"] = (symbol("nan"), 0)


def _extra_result(graph: Graph) -> None:
    op = graph.ops[0]
    op.results.append(Op("exp", [], {}, [f32_type()]).result)


def f32_type() -> TensorType:
    return TensorType(f32, (2, 3))


def _negative_size(graph: Graph) -> None:
    graph.inputs[1].type = TensorType(i64, (-1,))


def _host_shape(graph: Graph) -> None:
    graph.inputs[1].type = TensorType(i64, (3,), "host")


def _reserved_dim(graph: Graph) -> None:
    graph.inputs[1].type = TensorType(i64, (symbol("f32") + 1,))


def _no_type(graph: Graph) -> None:
    graph.inputs[1].type = None  # type: ignore[assignment]


def _not_an_input(graph: Graph) -> None:
    graph.inputs.append(graph.ops[0].result)  # type: ignore[arg-type]


def _strides(graph: Graph) -> None:
    graph.inputs[0].strides = (1,)


def _negative_stride(graph: Graph) -> None:
    graph.inputs[0].strides = (-3, 1)


def _write_type(graph: Graph) -> None:
    graph.writes[0] = Write(graph.inputs[0], graph.ops[1].result)


def _write_twice(graph: Graph) -> None:
    graph.writes.append(graph.writes[0])


def _write_stranger(graph: Graph) -> None:
    graph.writes[0] = Write(Input("y", f32_type(), Role.ARG, "y"), graph.ops[0].result)


def _write_undefined(graph: Graph) -> None:
    graph.writes[0] = Write(graph.inputs[0], _graph().ops[0].result)


def _output_undefined(graph: Graph) -> None:
    graph.outputs[0] = Output(_graph().ops[0].result)


def _view(view: StridedView) -> Callable[[Graph], None]:
    def mutate(graph: Graph) -> None:
        graph.outputs[0] = Output(graph.ops[1].result, view)

    return mutate


CASES: list[tuple[Callable[[Graph], None], str]] = [
    (_swap, "operand 0 of permute, %0, is not defined before its use"),
    (_literal, "operand 0 of exp is a str, not a value or a number"),
    (_rename, "%0 is defined twice"),
    (_unnamed, "a value without a name"),
    (_foreign_definition, "%1 names another op as the one that defines it"),
    (_wrong_type, "%1 is stated as f32[2, 3], permute gives f32[3, 2]"),
    (_unknown_op, "no op named 'expp'; did you mean"),
    (_arity, "exp: exp: takes 1 operand, got 2"),
    (_missing_attribute, "attribute 'dims' is missing"),
    (_list_attribute, "attribute dims of permute holds a list; use a tuple"),
    (_dict_key, "attribute dims of permute has a dict with a key that is no string"),
    (_reserved_symbol, "attribute dims of permute uses the reserved word nan as a symbol"),
    (_extra_result, "exp has 1 results, 2 are stated"),
    (_negative_size, "%n has a size -1; sizes are integers from 0 or symbolic dims"),
    (_host_shape, "%n is on the host, so its shape must be ()"),
    (_reserved_dim, "%n uses the reserved word f32 as a symbol"),
    (_no_type, "%n has no tensor type but None"),
    (_not_an_input, "%0 stands among the inputs and is none"),
    (_strides, "%x has 2 dims and 1 strides"),
    (_negative_stride, "%x has a negative stride"),
    (_write_type, "write of %1: f32[3, 2] to %x: f32[2, 3]"),
    (_write_twice, "%x is written twice"),
    (_write_stranger, "write to %y, which is not an input of this graph"),
    (_write_undefined, "write of %0, which is not defined"),
    (_output_undefined, "output %0 is not defined"),
    (_view(StridedView((2, 2), (3, 1), 2)), "output view of %1 reaches element 6 of 6"),
    (_view(StridedView((2,), (1, 1))), "output view of %1 has 1 dims and 2 strides"),
    (_view(StridedView((2,), (1,), -1)), "output view of %1 has a negative offset or stride"),
]


@pytest.mark.parametrize(("mutate", "message"), CASES, ids=lambda item: getattr(item, "__name__", None))
def test_broken_graph(mutate: Callable[[Graph], None], message: str) -> None:
    graph = _graph()
    verify(graph)
    mutate(graph)
    with pytest.raises(InvalidGraphError) as info:
        verify(graph)
    assert message in info.value.message
    assert ">>> " in info.value.message


def test_the_window_marks_the_line_and_the_users_line_follows() -> None:
    lines = "\n".join(f"  %{i}: f32[2] = neg(%{i - 1 if i else 'x'})  # model.py:{i + 1}" for i in range(20))
    graph = parse(f'graph f(%x: f32[2] arg "x") {{\n{lines}\n  return %19\n}}')
    graph.ops[10].result.type = TensorType(f32, (3,))
    with pytest.raises(InvalidGraphError) as info:
        verify(graph)
    window = info.value.message.split("\n")[1:]
    assert len(window) == 10
    assert window[5] == ">>>    12 |   %10: f32[3] = neg(%9)  # model.py:11"
    assert window[0] == "        7 |   %5: f32[2] = neg(%4)  # model.py:6"
    assert info.value.location == Location("model.py", 11)
    assert str(info.value).endswith("at model.py:11")


def test_the_window_marks_inputs_of_a_long_header() -> None:
    inputs = ", ".join(f'%x{i}: f32[2] param "layers.{i}.weight"' for i in range(12))
    graph = parse(f"graph f({inputs}) {{ return }}")
    graph.inputs[7].strides = (1, 1)
    with pytest.raises(InvalidGraphError, match=r'>>>     9 \|     %x7: f32\[2\] param "layers.7.weight"'):
        verify(graph)


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ("args=[$0]", "extern without the name of an ATen overload"),
        ('op="aten.sin.default", args=[$1]', "extern refers to $1 and has 1 operands"),
        ('op="aten.sin_.default", args=[$0], mutates=[2]', "extern mutates operand 2 and has 1 operands"),
    ],
)
def test_broken_extern(attrs: str, message: str) -> None:
    graph = parse(f'graph f(%x: f32[2] arg "x") {{\n  %0: f32[2] = extern(%x) {{{attrs}}}\n  return %0\n}}')
    with pytest.raises(InvalidGraphError) as info:
        verify(graph)
    assert message in info.value.message


def test_views_of_strided_storage_are_measured_by_its_strides() -> None:
    graph = parse('graph f(%x: f32[2, 3] arg "x" strides=[8, 1]) { return %x as [2]{8}+2 }')
    verify(graph)
    graph.outputs[0] = Output(graph.inputs[0], StridedView((2,), (8,), 3))
    with pytest.raises(InvalidGraphError, match="reaches element 11 of 11"):
        verify(graph)


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_random_graphs_are_well_formed(graph: Graph) -> None:
    verify(graph)
