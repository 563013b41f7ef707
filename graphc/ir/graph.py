"""The graph IR: an SSA, functional, flat list of tensor operators with explicit inputs, writes and outputs.

There are no views and no mutation inside a graph. What the user's program mutated is said at the end: a `Write` gives
an input its new contents, and an `Output` may live inside the storage of another value (an alias), as eager leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias, Union

from graphc.ir.dims import Dim
from graphc.ir.types import UNKNOWN, DType, Location, TensorType

Literal: TypeAlias = Union[bool, int, float, complex]
"""A Python number used as an operand of a pointwise op; it takes the dtype of the op's tensor operands."""

Operand: TypeAlias = Union["Value", bool, int, float, complex]


@dataclass(frozen=True)
class Ref:
    """Placeholder `$i` for operand i inside the `args` and `kwargs` attributes of an `extern` op."""

    index: int

    def __repr__(self) -> str:
        return f"${self.index}"


@dataclass(frozen=True)
class Named:
    """A torch constant inside an attribute, by kind and name: `@memory_format.channels_last`, `@device.cpu`."""

    kind: str
    name: str

    def __repr__(self) -> str:
        return f"@{self.kind}.{self.name}"


Attr: TypeAlias = Any
"""An attribute: bool, int, float, complex, str, None, DType, Dim, Ref, Named, or a tuple or dict of these; or
itself a Graph: a region that the op runs, printed below it."""


class Role(str, Enum):
    """What an input of a graph is to the user's program."""

    ARG = "arg"
    PARAM = "param"
    BUFFER = "buffer"
    STATE = "state"  # optimizer state, .grad, any tensor met in a closure or global
    SCALAR = "scalar"  # a Python number that may change between calls; its type is on the HOST device
    CONST = "const"  # a tensor made by the function from Python data, the same in every call


class Value:
    """One tensor in a graph. Compared by identity.

    Attributes:
        name: printed without the `%`; unique in its graph.
        type: dtype, shape, device.
        op: the op that defines it, or None for an input.
        strides: the strides eager gave it, in elements, when they are not the contiguous ones; else None. A hint for
            layout on inner values, a promise on inputs.
    """

    __slots__ = ("name", "op", "strides", "type")

    def __init__(
        self, name: str, type: TensorType, op: Op | None = None, strides: tuple[Dim, ...] | None = None
    ) -> None:
        self.name, self.type, self.op, self.strides = name, type, op, strides

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    @property
    def device(self) -> str:
        return self.type.device

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


class Input(Value):
    """A value that comes from outside.

    Attributes:
        role: what it is to the user's program.
        path: its name there, such as `x`, `args[0]['ids']` or `blocks.3.fc1.weight`.
    """

    __slots__ = ("path", "role")

    def __init__(
        self, name: str, type: TensorType, role: Role, path: str, strides: tuple[Dim, ...] | None = None
    ) -> None:
        super().__init__(name, type, None, strides)
        self.role, self.path = role, path


class Op:
    """One operator: `results = name(operands) {attrs}  # location`. Compared by identity.

    Attributes:
        origin: the composite op of the user's program that this op is a part of; kernels are named after it. Empty when
            it is one itself. It is no part of the text.
    """

    __slots__ = ("attrs", "location", "name", "operands", "origin", "results")

    def __init__(
        self,
        name: str,
        operands: Sequence[Operand],
        attrs: Mapping[str, Attr],
        result_types: Sequence[TensorType],
        location: Location = UNKNOWN,
        result_names: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self.operands: list[Operand] = list(operands)
        self.attrs: dict[str, Attr] = dict(attrs)
        self.location = location
        self.origin = ""
        names = result_names if result_names is not None else [""] * len(result_types)
        self.results = [Value(n, t, self) for n, t in zip(names, result_types, strict=True)]

    @property
    def result(self) -> Value:
        """The only result.

        Raises:
            ValueError: the op has several results or none.
        """
        (value,) = self.results
        return value

    @property
    def inputs(self) -> Iterator[Value]:
        """Operands that are values, literals left out, in order, with repeats."""
        return (operand for operand in self.operands if isinstance(operand, Value))

    def __repr__(self) -> str:
        return f"{', '.join(map(repr, self.results))} = {self.name}({', '.join(map(repr, self.operands))}) {self.attrs}"


@dataclass(frozen=True)
class Write:
    """At the end of the program `target` gets the contents of `value` (same shape, dtype and device)."""

    target: Input
    value: Value


@dataclass(frozen=True)
class StridedView:
    """A view onto a storage, in elements, as `torch.as_strided` takes it."""

    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    offset: Dim = 0


@dataclass(frozen=True)
class Output:
    """One output of a graph.

    Args:
        value: its contents; for an alias the value whose storage it lives in (an Input: the user's own tensor, after
            the writes). Two outputs with the same value share one storage.
        view: how it looks into that storage; None = the whole of it, and for an Input the very tensor passed in.
    """

    value: Value
    view: StridedView | None = None


@dataclass(eq=False)
class Graph:
    """A whole program. `==` compares structure: names, types, ops, attributes, writes and outputs, not locations."""

    name: str
    inputs: list[Input] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self.signature() == other.signature()

    __hash__ = None  # type: ignore[assignment]

    def signature(self) -> tuple[Any, ...]:
        """A plain nested tuple that two structurally equal graphs share."""
        return (
            self.name,
            tuple((i.name, i.type, i.role, i.path, i.strides) for i in self.inputs),
            tuple(
                (
                    op.name,
                    tuple(_operand_key(operand) for operand in op.operands),
                    tuple(sorted((key, _attr_key(value)) for key, value in op.attrs.items())),
                    tuple((r.name, r.type, r.strides) for r in op.results),
                )
                for op in self.ops
            ),
            tuple((w.target.name, w.value.name) for w in self.writes),
            tuple((o.value.name, o.view) for o in self.outputs),
        )

    def copy(self) -> Graph:
        """An equal graph of its own values and ops, so that passes may rewrite one and leave the other."""
        twin = Graph(self.name)
        twin.inputs = [Input(i.name, i.type, i.role, i.path, i.strides) for i in self.inputs]
        inputs = dict(zip(self.inputs, twin.inputs, strict=True))
        new: dict[Value, Value] = dict(zip(self.inputs, twin.inputs, strict=True))
        for op in self.ops:
            operands = [new[operand] if isinstance(operand, Value) else operand for operand in op.operands]
            types, names = [r.type for r in op.results], [r.name for r in op.results]
            made = Op(op.name, operands, copied_attrs(op.attrs), types, op.location, names)
            made.origin = op.origin
            for old_result, result in zip(op.results, made.results, strict=True):
                result.strides = old_result.strides
                new[old_result] = result
            twin.ops.append(made)
        twin.writes = [Write(inputs[w.target], new[w.value]) for w in self.writes]
        twin.outputs = [Output(new[o.value], o.view) for o in self.outputs]
        return twin

    def values(self) -> Iterator[Value]:
        """Inputs, then results in program order."""
        yield from self.inputs
        for op in self.ops:
            yield from op.results

    def uses(self) -> dict[Value, list[Op]]:
        """For each value the ops that read it, in order, once per op."""
        users: dict[Value, list[Op]] = {value: [] for value in self.values()}
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                users[value].append(op)
        return users

    def live_out(self) -> set[Value]:
        """Values that outputs and writes need."""
        return {o.value for o in self.outputs} | {w.value for w in self.writes} | {w.target for w in self.writes}

    def __str__(self) -> str:
        from graphc.ir.printer import print_graph

        return print_graph(self)


def _operand_key(operand: Operand) -> tuple[str, str]:
    # repr keeps 1, 1.0, True, -0.0 and nan apart, which == does not
    return ("value", operand.name) if isinstance(operand, Value) else (type(operand).__name__, repr(operand))


def _attr_key(value: Attr) -> str:
    return repr(value.signature() if isinstance(value, Graph) else value)


def copied_attrs(attrs: Mapping[str, Attr]) -> dict[str, Attr]:
    """Attributes for a twin of an op: regions are copied, since passes rewrite graphs in place."""
    return {key: value.copy() if isinstance(value, Graph) else value for key, value in attrs.items()}


def regions(op: Op) -> list[Graph]:
    """The graphs among an op's attributes, in order."""
    return [value for value in op.attrs.values() if isinstance(value, Graph)]


InferRule: TypeAlias = Callable[[str, Sequence[Operand], Mapping[str, Attr]], Sequence[TensorType]]


class Builder:
    """Appends ops to a graph, inferring result types by the registry's type rules.

    Args:
        graph: the graph to append to.
        infer: type rule look-up, `graphc.ops.infer` in all uses but tests of the IR itself.
    """

    def __init__(self, graph: Graph, infer: InferRule) -> None:
        self.graph = graph
        self.infer = infer
        self.location = UNKNOWN
        self.origin = ""
        self._next = len(graph.ops)
        self._ops = graph.ops  # a pass that builds ops anew gives the graph another list
        self._names: set[str] | None = None

    @property
    def _taken(self) -> set[str]:
        """Names in use; found out when the first one is made, which many passes never come to."""
        if self._names is None:
            self._names = {value.name for value in self.graph.inputs}
            self._names.update([result.name for op in self._ops for result in op.results])
        return self._names

    def fresh_name(self) -> str:
        taken, number = self._taken, self._next
        while (name := str(number)) in taken:
            number += 1
        taken.add(name)
        self._next = number + 1
        return name

    def input(
        self, name: str, type: TensorType, role: Role, path: str, strides: tuple[Dim, ...] | None = None
    ) -> Input:
        """Add an input; `name` is made unique."""
        taken, unique, count = self._taken, name, 1
        while unique in taken:
            unique, count = f"{name}_{count}", count + 1
        taken.add(unique)
        value = Input(unique, type, role, path, strides)
        self.graph.inputs.append(value)
        return value

    def op(self, name: str, *operands: Operand, **attrs: Attr) -> Value:
        """Append an op with one result and return that result."""
        return self.multi(name, operands, attrs).result

    def multi(
        self,
        name: str,
        operands: Iterable[Operand],
        attrs: Mapping[str, Attr],
        types: Sequence[TensorType] | None = None,
    ) -> Op:
        """Append an op with any number of results; `types` overrides the type rule (needed by `extern`)."""
        operand_list = list(operands)
        result_types = self.infer(name, operand_list, attrs) if types is None else types
        op = Op(name, operand_list, attrs, result_types, self.location, [self.fresh_name() for _ in result_types])
        op.origin = self.origin
        self.graph.ops.append(op)
        return op
