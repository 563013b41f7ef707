"""Graph IR to text. `graphc.ir.parser` reads the same text back; together they are the identity.

    graph mlp(%x: f32[64, 784] arg "x", %w: f32[128, 784] param "fc1.weight", %h: f32[64, 128] state "h") {
      %0: f32[784, 128] strides=[1, 784] = permute(%w) {dims=[1, 0]}  # mlp.py:14 in forward @ fc1
      %1: f32[64, 128] = matmul(%x, %0)  # mlp.py:14 in forward @ fc1
      %2: f32[64, 128] = maximum(%1, 0)  # mlp.py:15 in forward
      write %h <- %2
      return %2, %h, %1 as [64, 64]{128, 2}+1
    }

A region, an attribute that is a graph, stands below its op, indented; its values are its own:

      %4: f32[3, 8] = scan(%h, %x) {carries=1, sequences=1, length=5, reverse=False}  # rnn.py:7
        body graph step(%h: f32[3, 8] arg "h", %x: f32[3, 8] arg "x") {
          %0: f32[3, 8] = add(%h, %x)
          return %0
        }

Literals keep their Python type: `1`, `1.0` and `True` differ. Floats are printed by `repr`: they come back bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphc.ir.dims import Dim, Expr
from graphc.ir.graph import Graph, Input, Named, Op, Output, Ref, Value, regions
from graphc.ir.sizes import Real, Reciprocal, Size
from graphc.ir.text import identifier, location_comment, named_constant, quote, value_name
from graphc.ir.types import DType, Location, TensorType

_HEADER_WIDTH = 120


def print_graph(graph: Graph) -> str:
    """The whole graph as text; no final newline.

    Never raises: what the IR does not allow (a list or a tensor as an attribute) is shown as `<...>`, which the parser
    and the verifier refuse.
    """
    printer = _Printer()
    lines = header_lines(graph)
    lines.extend(printer.op_line(op) for op in graph.ops)
    lines.extend(f"  write {value_name(write.target.name)} <- {value_name(write.value.name)}" for write in graph.writes)
    lines.append(f"  return {', '.join(_output(output) for output in graph.outputs)}".rstrip())
    lines.append("}")
    return "\n".join(lines)


def header_lines(graph: Graph) -> list[str]:
    """The line or lines up to and with the opening brace: one input per line when they do not fit on one."""
    inputs = [_input(item) for item in graph.inputs]
    name = identifier(graph.name)
    single = f"graph {name}({', '.join(inputs)}) {{"
    if len(single) <= _HEADER_WIDTH:
        return [single]
    return [f"graph {name}(", *(f"    {item}," for item in inputs[:-1]), f"    {inputs[-1]}", ") {"]


def print_op(op: Op) -> str:
    """One op as a line, without indent; its regions follow in lines of their own."""
    return _Printer().op_line(op)[2:]


def line_count(op: Op) -> int:
    """Lines that an op takes: one, and those of its regions."""
    return 1 + sum(print_graph(region).count("\n") + 1 for region in regions(op))


def attr_text(value: Any) -> str:
    """An attribute or a literal operand as text."""
    kind = type(value)
    if kind is int or kind is float or kind is bool or value is None:
        return repr(value)
    if kind is tuple:
        return f"[{', '.join([attr_text(item) for item in value])}]"
    if kind is str:
        return quote(value)
    if kind is Size or kind is Reciprocal or kind is Real:
        return str(value)
    if kind is DType or kind is Expr or kind is Ref:
        return value.name if kind is DType else f"${value.index}" if kind is Ref else str(value)
    if kind is Named:
        return named_constant(value.kind, value.name)
    if kind is Graph:
        return f"<graph {value.name}>"  # a region is no constant: it may not stand inside another attribute
    if kind is dict and all(type(key) is str for key in value):
        return f"{{{_attrs_body(value)}}}"
    if kind is complex:
        return f"complex({value.real!r}, {value.imag!r})"
    return f"<{value!r}>"


def _attrs_body(attrs: Mapping[str, Any]) -> str:
    return ", ".join([f"{identifier(key)}={attr_text(value)}" for key, value in attrs.items()])


def _dims(dims: tuple[Dim, ...]) -> str:
    return ", ".join([str(size) for size in dims])


def _input(item: Input) -> str:
    strides = "" if item.strides is None else f" strides=[{_dims(item.strides)}]"
    role = f"{item.role.value} {quote(item.path)}" if isinstance(item, Input) else "<not an input>"
    return f"{value_name(item.name)}: {item.type} {role}{strides}"


def _output(output: Output) -> str:
    name, view = value_name(output.value.name), output.view
    if view is None:
        return name
    return f"{name} as [{_dims(view.shape)}]{{{_dims(view.strides)}}}+{view.offset}"


class _Printer:
    """Prints ops, remembering the texts of types and locations: a graph has far fewer of them than ops."""

    def __init__(self) -> None:
        self._types: dict[tuple[str, tuple[Dim, ...], str], str] = {}
        self._locations: dict[int, str] = {}  # by id: ops of one line share the object, and it is slow to hash

    def op_line(self, op: Op) -> str:
        results = ", ".join([self._result(value) for value in op.results])
        operands = ", ".join(
            [value_name(item.name) if isinstance(item, Value) else attr_text(item) for item in op.operands]
        )
        equals = " = " if results else ""
        plain = op.attrs
        if regions(op):
            plain = {key: value for key, value in op.attrs.items() if not isinstance(value, Graph)}
        attrs = f" {{{_attrs_body(plain)}}}" if plain else ""
        line = f"  {results}{equals}{identifier(op.name)}({operands}){attrs}{self._location(op.location)}"
        return line if plain is op.attrs else line + self._regions(op)

    def _regions(self, op: Op) -> str:
        """Each region as lines below its op, deeper by two levels."""
        found = ""
        for key, value in op.attrs.items():
            if isinstance(value, Graph):
                body = print_graph(value).replace("\n", "\n    ")
                found += f"\n    {identifier(key)} {body}"
        return found

    def _result(self, value: Value) -> str:
        strides = "" if value.strides is None else f" strides=[{_dims(value.strides)}]"
        return f"{value_name(value.name)}: {self._type(value.type)}{strides}"

    def _type(self, type: TensorType) -> str:
        key = type.dtype.name, type.shape, type.device
        text = self._types.get(key)
        if text is None:
            text = self._types[key] = str(type)
        return text

    def _location(self, location: Location) -> str:
        text = self._locations.get(id(location))
        if text is None:
            comment = location_comment(location)
            text = self._locations[id(location)] = f"  {comment}" if comment else ""
        return text
