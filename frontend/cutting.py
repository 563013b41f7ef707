"""Cutting one program out of the graph of a whole run: its ops, what it takes from earlier programs, what it gives.

Values are numbered anew in each program, so that the turns of a loop, which are programs of their own, are one text and
are built once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeAlias, Union

from graphc.errors import CaptureError
from graphc.frontend.aten.extern import kernels_hold
from graphc.ir.graph import Graph, Input, Op, Output, Ref, Role, Value, Write
from graphc.ops.extern import effect
from graphc.ops.registry import Kind, get

Names: TypeAlias = dict[Value, tuple[str, Union[tuple[int, ...], None]]]
"""Values that earlier programs hand over: the name, and the strides when they are not the contiguous ones."""


class Cutter:
    """Builds the graph of one program of a path.

    Args:
        whole: the graph of the run, from the start of the function.
        start: its first op that belongs to the program.
        names: what earlier programs hand over.
        known: values of tensors of one element that Python has looked at.

    Attributes:
        twin: the graph being built, of its own values.
    """

    def __init__(self, whole: Graph, start: int, names: Names, known: Mapping[Value, bool | int | float]) -> None:
        self.twin = Graph(whole.name)
        self._whole, self._start, self._names, self._known = whole, start, names, known
        self._new: dict[Value, Value] = {}
        self._feeds: list[int | str] = []
        self._numbers: dict[Value, int] = {}
        self._taken = {value.name for value in whole.inputs}
        self._next = 0

    def body(self) -> None:
        """Take over the ops of the program."""
        self._numbers = {value: number for number, value in enumerate(self._whole.inputs)}
        for op in self._whole.ops[self._start :]:
            self._copy(op)

    def feeds(self) -> tuple[int | str, ...]:
        """Where each input of the program is found: a number of an input of the whole, or a name."""
        return tuple(self._feeds)

    def hand_over(self, value: Value, strides: tuple[int, ...] | None) -> None:
        """Make a value an output, laid out with these strides."""
        mine = self._value(value)
        if mine.strides != strides or isinstance(mine, Input):
            location = value.op.location if value.op is not None else self._whole.ops[-1].location
            copy = Op("cast", [mine], {"dtype": mine.dtype}, [mine.type], location, [self._fresh("")])
            copy.result.strides = strides
            self.twin.ops.append(copy)
            mine = copy.result
        self.twin.outputs.append(Output(mine))

    def finish(self) -> None:
        """Take over the writes and outputs of the whole."""
        for write in self._whole.writes:
            target = self._value(write.target)
            assert isinstance(target, Input)
            self.twin.writes.append(Write(target, self._stored(target, write.value)))
        for output in self._whole.outputs:
            self.twin.outputs.append(Output(self._value(output.value), output.view))

    def _stored(self, target: Input, value: Value) -> Value:
        """What is written to an input. What an earlier program hands over is copied: by a call, where no kernel can."""
        mine = self._value(value)
        if not isinstance(mine, Input) or kernels_hold(mine.dtype):
            return mine
        assert value.op is not None
        attrs = {"op": "aten.copy_.default", "args": (Ref(0), Ref(1)), "kwargs": {}, "mutates": (0,)}
        copy = Op("extern", [target, mine], attrs, [target.type], value.op.location, [self._fresh("")])
        self.twin.ops.append(copy)
        return copy.result

    def _value(self, value: Value) -> Value:
        """The program's own value for one of the whole run."""
        found = self._new.get(value)
        if found is not None:
            return found
        if isinstance(value, Input):
            self._input(value, value.name, value.role, value.path, value.strides, self._numbers[value])
        elif value in self._known:
            attrs = {
                "shape": value.shape, "dtype": value.dtype, "value": self._known[value], "device": value.device,
            }  # fmt: skip
            assert value.op is not None
            full = Op("full", [], attrs, [value.type], value.op.location, [self._fresh("")])
            self.twin.ops.append(full)
            self._new[value] = full.result
        elif value in self._names:
            name, strides = self._names[value]
            role = Role.SCALAR if value.type.is_host else Role.STATE
            fresh = self._fresh("carried")
            self._input(value, fresh, role, fresh, strides, name)
        else:
            assert value.op is not None
            if effect(value.op):
                raise CaptureError(f"{value.op.name} would have to run twice on this path", value.op.location)
            self._copy(value.op)  # pure: the same again
        return self._new[value]

    def _input(self, value: Value, name: str, role: Role, path: str, strides: object, feed: int | str) -> None:
        mine = Input(name, value.type, role, path, strides)  # type: ignore[arg-type]  # strides of an input
        self.twin.inputs.append(mine)
        self._feeds.append(feed)
        self._new[value] = mine

    def _fresh(self, stem: str) -> str:
        """A name no other value of the program has."""
        while True:
            name, self._next = f"{stem}{self._next}", self._next + 1
            if name not in self._taken:
                return name

    def _copy(self, op: Op) -> None:
        operands = [self._value(operand) if isinstance(operand, Value) else operand for operand in op.operands]
        types = [result.type for result in op.results]
        made = Op(op.name, operands, op.attrs, types, op.location, [self._fresh("") for _ in types])
        for old, new in zip(op.results, made.results, strict=True):
            new.strides = old.strides
            self._new[old] = new
        self.twin.ops.append(made)


def cheap_source(value: Value, known: Collection[Value], handed_over: Names) -> Value | None:
    """The smallest value that `value` can be read from at other indices; None when nothing need be kept for it.

    Inputs and constants need not be kept, nor what can be read from a value already in `known`.
    """
    best, current = value, value
    while not isinstance(current, Input):
        if current in known:
            return None
        if current in handed_over:
            return best if best.type.numel < current.type.numel else current  # type: ignore[operator]  # static
        assert current.op is not None
        if current.type.numel < best.type.numel:  # type: ignore[operator]  # static by construction
            best = current
        kind = get(current.op.name).kind
        if kind is Kind.CREATION and not current.op.operands:
            return None
        sources = list(current.op.inputs)
        if kind is not Kind.VIEW or len(sources) != 1 or len(current.op.results) != 1:
            return best
        current = sources[0]
    return None
