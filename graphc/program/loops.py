"""Loops in a plan: the steps of one turn, and where their buffers lie from turn to turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from graphc.ir.sizes import bound
from graphc.ir.types import Location

if TYPE_CHECKING:
    from graphc.program.plan import BufferSpec, Step, View


@dataclass(frozen=True)
class Binding:
    """Where a buffer of a loop's body lies in turn n = 0, 1, ...: in buffers of the program, in elements.

    Args:
        buffers: in even and in odd turns.
        offsets: into these, in turn 0.
        stride: from turn to turn.
        first: the buffer in turn 0, when that is another one, else -1.
        first_offset: into it.
    """

    buffers: tuple[int, int]
    offsets: tuple[int, int]
    stride: int = 0
    first: int = -1
    first_offset: int = 0

    def at(self, turn: int) -> tuple[int, int]:
        """Buffer and offset in a turn."""
        if turn == 0 and self.first >= 0:
            return self.first, self.first_offset
        odd = bound(turn % 2)
        return self.buffers[odd], self.offsets[odd] + turn * self.stride


@dataclass(frozen=True)
class LoopStep:
    """Run `steps` `length` times.

    Args:
        length: turns.
        specs: the buffers that the steps name.
        bindings: where each of them lies.
        steps: of one turn.
        rows: of a batch, each of which goes through all turns by itself; 0 = nothing is known of that.
    """

    length: int
    specs: tuple[BufferSpec, ...]
    bindings: tuple[Binding, ...]
    steps: tuple[Step, ...]
    location: Location = Location()
    rows: int = 0

    def buffers(self) -> list[int]:
        """Buffers of the program that the loop uses."""
        found: dict[int, None] = {}
        for binding in self.bindings:
            found.update(dict.fromkeys(index for index in (*binding.buffers, binding.first) if index >= 0))
        return list(found)

    def unrolled(self) -> Iterator[Step]:
        """The same, turn by turn, on the buffers of the program."""
        for turn in range(bound(self.length)):
            places = [binding.at(turn) for binding in self.bindings]
            for step in self.steps:
                yield moved(step, places)


def unroll(steps: Sequence[Step]) -> list[Step]:
    """Steps without loops."""
    found: list[Step] = []
    for step in steps:
        found.extend(step.unrolled() if isinstance(step, LoopStep) else (step,))
    return found


def moved(step: Step, places: Sequence[tuple[int, int]] | Mapping[int, tuple[int, int]]) -> Step:
    """A step on other buffers: kernel, product or ATen call.

    Args:
        places: per buffer that it names the other one, and where in that it begins, in elements.
    """
    from graphc.program.plan import ForeachStep, GemmStep, KernelStep, View

    def view(old: View) -> View:
        buffer, offset = places[old.buffer]
        return replace(old, buffer=buffer, offset=old.offset + offset)

    def argument(item: Any) -> Any:
        if isinstance(item, View):
            return view(item)
        return tuple(map(argument, item)) if isinstance(item, tuple) else item

    if isinstance(step, KernelStep):
        buffers = tuple(places[index][0] for index in step.buffers)
        offsets = tuple(places[index][1] + offset for index, offset in zip(step.buffers, step.offsets, strict=True))
        return replace(step, buffers=buffers, offsets=offsets)
    if isinstance(step, GemmStep):
        return replace(step, a=view(step.a), b=view(step.b), out=view(step.out))
    assert not isinstance(step, (LoopStep, ForeachStep)), "neither is put into loops"
    outs = tuple(index if index < 0 else places[index][0] for index in step.outs)
    return replace(step, args=argument(step.args), kwargs=argument(step.kwargs), outs=outs)
