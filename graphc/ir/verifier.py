"""Checks every invariant of a graph and shows the lines around the first fault."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from graphc.errors import InvalidGraphError
from graphc.ir.definitions import Definition, GetDefinition, registry
from graphc.ir.dims import Dim, Expr, symbols
from graphc.ir.graph import Attr, Graph, Input, Named, Op, Output, Ref, Value
from graphc.ir.printer import header_lines, line_count, print_graph
from graphc.ir.text import RESERVED
from graphc.ir.types import DType, TensorType, contiguous_strides

_LINES_BEFORE, _LINES_AFTER = 5, 4


def verify(graph: Graph, get_def: GetDefinition | None = None) -> None:
    """Check that `graph` is well formed: names, dominance, operands, attributes, types, writes and outputs.

    Args:
        graph: the graph to check.
        get_def: look-up of operator definitions; the registry of `graphc.ops` by default.

    Raises:
        InvalidGraphError: the first broken rule, with ten lines of the graph around it.
    """
    _Verifier(graph, get_def or registry()).check()


class _Verifier:
    """The values seen so far, and the place under inspection: (section, number in it), for the window of lines."""

    def __init__(self, graph: Graph, get_def: GetDefinition) -> None:
        self.graph, self.get_def = graph, get_def
        self.defined: set[Value] = set()
        self.names: set[str] = set()
        self.types: set[TensorType] = set()
        self.place = ("inputs", 0)

    def check(self) -> None:
        for number, item in enumerate(self.graph.inputs):
            self.place = ("inputs", number)
            self._input(item)
        for number, op in enumerate(self.graph.ops):
            self.place = ("ops", number)
            self._op(op)
        self._writes()
        self.place = ("outputs", 0)
        for output in self.graph.outputs:
            self._output(output)

    def _fault_line(self) -> int:
        section, number = self.place
        header = len(header_lines(self.graph))
        if section == "inputs":
            return 0 if header == 1 else number + 1
        if section == "ops":
            return header + sum(map(line_count, self.graph.ops[:number]))
        ops = sum(map(line_count, self.graph.ops))
        return header + ops + (number if section == "writes" else len(self.graph.writes))

    def _fail(self, reason: str, op: Op | None = None) -> NoReturn:
        lines, fault = print_graph(self.graph).split("\n"), self._fault_line()
        start = max(0, fault - _LINES_BEFORE)
        window = [
            f"{'>>>' if number == fault else '   '} {number + 1:5d} | {lines[number]}"
            for number in range(start, min(len(lines), fault + _LINES_AFTER + 1))
        ]
        location = op.location if op is not None and op.location else None
        raise InvalidGraphError(f"graph {self.graph.name}: {reason}\n" + "\n".join(window), location)

    # parts

    def _define(self, value: Value, op: Op | None) -> None:
        if not value.name:
            self._fail("a value without a name", op)
        if value.name in self.names:
            self._fail(f"%{value.name} is defined twice", op)
        if value.op is not op:
            self._fail(f"%{value.name} names another op as the one that defines it", op)
        self.names.add(value.name)
        self.defined.add(value)
        if value.type not in self.types:
            self._type(value, op)
        if value.strides is not None:
            if len(value.strides) != len(value.shape):
                self._fail(f"%{value.name} has {len(value.shape)} dims and {len(value.strides)} strides", op)
            if any(isinstance(step, int) and step < 0 for step in value.strides):
                self._fail(f"%{value.name} has a negative stride", op)

    def _type(self, value: Value, op: Op | None) -> None:
        type = value.type
        if not isinstance(type, TensorType) or not isinstance(type.shape, tuple):
            self._fail(f"%{value.name} has no tensor type but {type!r}", op)
        for size in type.shape:
            if isinstance(size, Expr):
                self._symbols(size, f"%{value.name}", op)
            elif size.__class__ is not int or size < 0:
                self._fail(f"%{value.name} has a size {size!r}; sizes are integers from 0 or symbolic dims", op)
        if type.is_host and type.shape:
            self._fail(f"%{value.name} is on the host, so its shape must be ()", op)
        self.types.add(type)

    def _symbols(self, dim: Expr, where: str, op: Op | None) -> None:
        reserved = sorted(symbols(dim) & RESERVED)
        if reserved:
            self._fail(f"{where} uses the reserved word {reserved[0]} as a symbol", op)

    def _input(self, item: Input) -> None:
        if not isinstance(item, Input):
            self._fail(f"%{item.name} stands among the inputs and is none")
        self._define(item, None)

    def _op(self, op: Op) -> None:
        for number, operand in enumerate(op.operands):
            if isinstance(operand, Value):
                if operand not in self.defined:
                    self._fail(f"operand {number} of {op.name}, %{operand.name}, is not defined before its use", op)
            elif not isinstance(operand, (bool, int, float, complex)):
                self._fail(f"operand {number} of {op.name} is a {type(operand).__name__}, not a value or a number", op)
        for key, value in op.attrs.items():
            if isinstance(value, Graph):
                self._region(op, key, value)
            else:
                self._attr(op, key, value)
        try:
            definition = self.get_def(op.name)
        except InvalidGraphError as error:
            self._fail(error.message, op)
        if definition.kind == "extern":
            self._extern(op)
        else:
            self._infer(op, definition)
        for result in op.results:
            self._define(result, op)

    def _region(self, op: Op, key: str, region: Graph) -> None:
        if region.writes:
            self._fail(f"region {key} of {op.name} writes to an input", op)
        try:
            verify(region, self.get_def)
        except InvalidGraphError as error:
            self._fail(f"region {key} of {op.name}: {error.message}", op)

    def _attr(self, op: Op, key: str, value: Attr) -> None:
        kind = type(value)
        if kind in (int, str, bool, float, DType) or value is None:
            return
        if kind is tuple:
            for item in value:
                self._attr(op, key, item)
        elif kind is dict:
            for name, item in value.items():
                if type(name) is not str:
                    self._fail(f"attribute {key} of {op.name} has a dict with a key that is no string", op)
                self._attr(op, key, item)
        elif kind is Expr:
            self._symbols(value, f"attribute {key} of {op.name}", op)
        elif kind not in (complex, Ref, Named):
            hint = "; use a tuple" if isinstance(value, (list, tuple)) else ""
            self._fail(f"attribute {key} of {op.name} holds a {kind.__name__}{hint}", op)

    def _infer(self, op: Op, definition: Definition) -> None:
        try:
            inferred = tuple(definition.infer(op.operands, op.attrs))
        except InvalidGraphError as error:
            self._fail(f"{op.name}: {error.message}", op)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            self._fail(f"{op.name}: operands or attributes that its type rule does not take ({error!r})", op)
        if len(inferred) != len(op.results):
            self._fail(f"{op.name} has {len(inferred)} results, {len(op.results)} are stated", op)
        for result, expected in zip(op.results, inferred, strict=True):
            if result.type != expected:
                self._fail(f"%{result.name} is stated as {result.type}, {op.name} gives {expected}", op)

    def _extern(self, op: Op) -> None:
        if type(op.attrs.get("op")) is not str:
            self._fail("extern without the name of an ATen overload in its attribute op", op)
        for index in _refs([op.attrs.get("args", ()), op.attrs.get("kwargs", {})]):
            if index >= len(op.operands):
                self._fail(f"extern refers to ${index} and has {len(op.operands)} operands", op)
        for index in op.attrs.get("mutates", ()):
            if not isinstance(index, int) or not 0 <= index < len(op.operands):
                self._fail(f"extern mutates operand {index} and has {len(op.operands)} operands", op)

    def _writes(self) -> None:
        written: set[Value] = set()
        inputs = set(self.graph.inputs)
        for number, write in enumerate(self.graph.writes):
            self.place = ("writes", number)
            if write.target not in inputs:
                self._fail(f"write to %{write.target.name}, which is not an input of this graph")
            if write.target in written:
                self._fail(f"%{write.target.name} is written twice")
            if write.value not in self.defined:
                self._fail(f"write of %{write.value.name}, which is not defined")
            if write.target.type != write.value.type:
                self._fail(f"write of {write.value!r} to %{write.target.name}: {write.target.type}")
            written.add(write.target)

    def _output(self, output: Output) -> None:
        value, view = output.value, output.view
        if value not in self.defined:
            self._fail(f"output %{value.name} is not defined")
        if view is None:
            return
        if value.type.is_host:
            self._fail(f"output %{value.name} is a host scalar: it has no storage to view")
        if len(view.shape) != len(view.strides):
            self._fail(f"output view of %{value.name} has {len(view.shape)} dims and {len(view.strides)} strides")
        size = _span(value.shape, contiguous_strides(value.shape) if value.strides is None else value.strides)
        reach = _span(view.shape, view.strides)
        if not isinstance(size, int) or not isinstance(reach, int) or not isinstance(view.offset, int):
            return
        if view.offset < 0 or any(isinstance(step, int) and step < 0 for step in view.strides):
            self._fail(f"output view of %{value.name} has a negative offset or stride")
        if reach and view.offset + reach > size:
            self._fail(f"output view of %{value.name} reaches element {view.offset + reach - 1} of {size}")


def _span(shape: Sequence[Dim], strides: Sequence[Dim]) -> Dim:
    """Elements from the first to the last one that a strided view touches; 0 when it is empty."""
    if any(size == 0 for size in shape):
        return 0
    total: Dim = 1
    for size, step in zip(shape, strides, strict=True):
        total = total + (size - 1) * step
    return total


def _refs(template: Attr) -> list[int]:
    found: list[int] = []
    stack = [template]
    while stack:
        item = stack.pop()
        if isinstance(item, Ref):
            found.append(item.index)
        elif isinstance(item, (tuple, list)):
            stack.extend(item)
        elif isinstance(item, dict):
            stack.extend(item.values())
    return found
