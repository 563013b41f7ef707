"""Loops: random recurrences, rolled and unrolled, mean the same; what is no loop stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.ir import Graph, Role, TensorType, Value, parse, run, verify
from graphc.ir.graph import Builder, Output
from graphc.ir.types import f32
from graphc.ops import infer
from graphc.passes.base import PassContext
from graphc.passes.pipeline import ROLL, optimize, run_pass
from graphc.passes.repeats import find_runs
from graphc.passes.roll import RollLoops
from graphc.settings import Settings
from tests.passes.planned import check_plan

ROWS, WIDTH, TURNS = 2, 3, 11
Shape = tuple[int, ...]


class Recurrence:
    """Writes an unrolled loop, and one over what it gave, as the draws say.

    Attributes:
        graph: the result.
    """

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.graph = Graph("f")
        self.b = Builder(self.graph, infer)
        self.weight = self._input("w", (WIDTH, WIDTH))
        self.turns = draw(st.integers(6, TURNS))
        self.parts = [self._part(number) for number in range(draw(st.integers(0, 2)))]
        self.saved: list[list[Value]] = []

    def _input(self, name: str, shape: Shape) -> Value:
        return self.b.input(name, TensorType(f32, shape), Role.ARG, name)

    def _part(self, number: int) -> Callable[[int], Value]:
        """A tensor, and which part of it a turn sees: evenly placed, from either end, or not."""
        dim, step = self.draw(st.sampled_from((0, 1))), self.draw(st.sampled_from((1, 2)))
        backward, broken = self.draw(st.booleans()), self.draw(st.integers(0, 4)) == 0
        size = self.turns * step
        x = self._input(f"x{number}", (size, ROWS, WIDTH) if dim == 0 else (ROWS, size, WIDTH))
        odd = self.draw(st.integers(0, self.turns - 1))

        def part(t: int) -> Value:
            at = step * (self.turns - 1 - t if backward else t)
            at = 0 if broken and t == odd else at
            piece = self.b.op("slice", x, dim=dim, start=at, stop=at + 1, step=1)
            return self.b.op("reshape", piece, shape=(ROWS, WIDTH))

        return part

    def loop(self, backward: bool) -> list[Value]:
        """One loop; the values that go on, after the last turn."""
        draw, b = self.draw, self.b
        count = draw(st.integers(1, 3))
        carries = [self._input(f"h{len(self.saved)}_{number}", (ROWS, WIDTH)) for number in range(count)]
        total = self._input(f"sum{len(self.saved)}", (WIDTH, WIDTH))
        recipe = draw(
            st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=6)
        )
        moves = [draw(st.integers(0, 9)) for _ in range(count)]
        special = draw(st.sampled_from((None, None, 0, self.turns - 1)))  # a turn that is not like the others
        adds = draw(st.booleans())
        kept: list[list[Value]] = []
        for turn in range(self.turns):
            t = self.turns - 1 - turn if backward else turn
            values = [*carries, *(part(t) for part in self.parts), *(past[t] for past in self.saved)]
            for kind, i, j in recipe:
                values.append(self._op(kind, values[i % len(values)], values[j % len(values)]))
            values.append(b.op("matmul", values[-1], self.weight))
            if turn == special:
                values.append(b.op("neg", values[-1]))
            if adds:
                left = b.op("permute", values[-1], dims=(1, 0))
                total = b.op("add", total, b.op("matmul", left, values[moves[0] % len(values)]))
            own = values[len(values) - min(3, len(recipe)) :]
            carries = [own[move % len(own)] for move in moves]
            kept.append(values)
        self.saved.append([values[-1] for values in (reversed(kept) if backward else kept)])
        return [*dict.fromkeys(carries), *([total] if adds else [])]

    def _op(self, kind: int, x: Value, y: Value) -> Value:
        b = self.b
        if kind == 0:
            return b.op("add", x, y)
        if kind == 1:
            return b.op("mul", b.op("tanh", x), y)
        if kind == 2:
            return b.op("matmul", b.op("sin", x), self.weight)
        if kind == 3:
            return b.op("sub", x, b.op("amax", y, dims=(1,), keepdim=True))
        if kind == 4:
            halves = b.op("concat", b.op("slice", x, dim=1, start=1, stop=WIDTH, step=1), self._first(y), dim=1)
            return b.op("sigmoid", halves)
        return b.op("tanh", b.op("sub", x, 0.5))

    def _first(self, x: Value) -> Value:
        return self.b.op("slice", x, dim=1, start=0, stop=1, step=1)

    def finish(self, outputs: list[Value]) -> Graph:
        pieces = [self.b.op("reshape", value, shape=(ROWS, 1, WIDTH)) for value in self.saved[0]]
        outputs.append(self.b.op("concat", *pieces, dim=1))
        self.graph.outputs = [Output(value) for value in dict.fromkeys(outputs) if value.op is not None]
        return self.graph


@st.composite
def recurrences(draw: st.DrawFn) -> Graph:
    recurrence = Recurrence(draw)
    outputs = recurrence.loop(draw(st.booleans()))
    if draw(st.booleans()):
        outputs += recurrence.loop(draw(st.booleans()))
    return recurrence.finish(outputs)


def _inputs(graph: Graph) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(tuple(item.shape)) * 0.5 for item in graph.inputs]  # type: ignore[arg-type]  # static


def _check(graph: Graph, after: Graph, inputs: list[torch.Tensor]) -> None:
    """Both give the same, up to the order of sums."""
    exact = run(parse(str(graph).replace("f32", "f64")), [item.double() for item in inputs])
    for ours, theirs, true in zip(run(after, inputs), run(graph, inputs), exact, strict=True):
        assert isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor) and isinstance(true, torch.Tensor)
        scale = true.abs().max() + 1
        assert (ours - true).abs().max() <= 4 * (theirs - true).abs().max() + 1e-5 * scale


@settings(max_examples=40, deadline=None)
@given(recurrences())
def test_random_recurrences(graph: Graph) -> None:
    after = graph.copy()
    optimize(after, PassContext(settings=Settings(verify_passes=True)))
    assert parse(str(after)) == after
    verify(after)
    _check(graph, after, _inputs(graph))


@settings(max_examples=40, deadline=None)
@given(recurrences())
def test_random_recurrences_short_enough_to_roll_more(graph: Graph) -> None:
    after = graph.copy()
    RollLoops(at_least=3, long=1).run(after, PassContext())
    verify(after)
    _check(graph, after, _inputs(graph))


def _rnn(turns: int, shape: tuple[int, ...] = (ROWS, WIDTH)) -> Graph:
    """tanh(h w + x_t), all of which are needed, side by side in this shape."""
    graph = Graph("rnn")
    b = Builder(graph, infer)
    h: Value = b.input("h", TensorType(f32, (ROWS, WIDTH)), Role.ARG, "h")
    w = b.input("w", TensorType(f32, (WIDTH, WIDTH)), Role.PARAM, "w")
    x = b.input("x", TensorType(f32, (turns, ROWS, WIDTH)), Role.ARG, "x")
    found = []
    for t in range(turns):
        part = b.op("reshape", b.op("slice", x, dim=0, start=t, stop=t + 1, step=1), shape=(ROWS, WIDTH))
        h = b.op("tanh", b.op("add", b.op("matmul", h, w), part))
        found.append(h)
    if shape != (ROWS, WIDTH):
        found = [b.op("reshape", item, shape=shape) for item in found]
    graph.outputs = [Output(b.op("concat", *found, dim=shape.index(1) if 1 in shape else 0)), Output(h)]
    return graph


@pytest.mark.parametrize("shape", [(ROWS, WIDTH), (1, ROWS, WIDTH), (ROWS, 1, WIDTH)])
@pytest.mark.parametrize("turns", [8, 50])
def test_a_graph_is_as_long_for_many_turns_as_for_few(turns: int, shape: tuple[int, ...]) -> None:
    graph = _rnn(turns, shape)
    after = graph.copy()
    optimize(after)
    (loop,) = [op for op in after.ops if op.name == "scan"]
    assert loop.attrs["length"] == turns
    assert [op.name for op in loop.attrs["body"].ops] == ["matmul", "add", "tanh"]
    assert len(after.ops) <= 8
    _check(graph, after, _inputs(graph))


def test_loops_are_left_alone_when_asked() -> None:
    graph = _rnn(20)
    optimize(graph, PassContext(roll=False))
    assert not any(op.name == "scan" for op in graph.ops)


def test_runs_with_repeats_inside_repeats() -> None:
    turn = [1, 2, 3, 4, 1, 2, 3, 5]
    runs = find_runs([9, *turn * 10, 9], 8)
    assert (runs[0].start, runs[0].period, runs[0].length) == (1, 8, 80)
    assert find_runs(list(range(50)), 8) == []


@settings(max_examples=60, deadline=None)
@given(recurrences())
def test_plans_of_random_recurrences(graph: Graph) -> None:
    """In memory that is shared as it will be: stacks over sequences, and where they would be copied to."""
    RollLoops(at_least=3, long=1).run(graph, PassContext())
    for item in ROLL[2:]:
        run_pass(item, graph, PassContext(settings=Settings(verify_passes=True)))
    optimize(graph, PassContext(roll=False))
    check_plan(graph, list(_inputs(graph)))
