"""Stacks in the place of sequences and of what they would be copied to; kernels that run again. All with the oracle."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.ir import Graph, Role, TensorType, Value
from graphc.ir.graph import Builder, Output
from graphc.ir.types import f32
from graphc.loopir.parser import parse_kernel
from graphc.ops import infer
from graphc.passes import update_fusion
from graphc.passes.overlay import ALL, Overlays
from graphc.passes.sharing import Sharing
from graphc.program.lifetimes import step_buffers
from graphc.program.loops import Binding, LoopStep
from graphc.program.plan import ARENA, BufferSpec, GemmStep, KernelStep, Plan
from tests.passes.planned import check_plan
from tests.strategies import random_inputs

ROWS, WIDTH = 2, 8
ROW = ROWS * WIDTH * 4
"""Bytes."""


class Chain:
    """A loop over a sequence, and a loop over what that one stacked.

    Attributes:
        graph: so far.
        x: a sequence in memory of its own.
    """

    def __init__(self, turns: int) -> None:
        self.graph = Graph("f")
        self.b = Builder(self.graph, infer)
        self.turns = turns
        self.h = self._input("h", (ROWS, WIDTH))
        flat = self.b.op("matmul", self._input("x", (turns * ROWS, WIDTH)), self._input("w", (WIDTH, WIDTH)))
        self.x = self.b.op("reshape", flat, shape=(turns, ROWS, WIDTH))

    def _input(self, name: str, shape: tuple[int, ...]) -> Value:
        return self.b.input(name, TensorType(f32, shape), Role.ARG, name)

    def rows(self, value: Value, start: int, stop: int) -> Value:
        """Some turns."""
        return self.b.op("slice", value, dim=0, start=start, stop=stop, step=1)

    def row(self, value: Value, at: int) -> Value:
        """One turn."""
        return self.b.op("reshape", self.rows(value, at, at + 1), shape=value.shape[1:])

    def loop(self, first: Value, sequence: Value, reverse: bool, history: bool) -> Value:
        """A loop's stack: of what goes from turn to turn, or of something else."""
        body = Graph("loop")
        b = Builder(body, infer)
        carry, item = (b.input(name, TensorType(f32, (ROWS, WIDTH)), Role.ARG, name) for name in ("c", "s"))
        new = b.op("sin", b.op("add", carry, item))
        body.outputs = [Output(new), Output(new if history else b.op("mul", new, item))]
        attrs = {"carries": 1, "sequences": 1, "length": sequence.shape[0], "reverse": reverse, "body": body}
        return self.b.multi("scan", [first, sequence], attrs).results[1]

    def check(self, *outputs: Value) -> Plan:
        """The plan, which computes what the graph means, on items of at most about 1: larger ones, multiplied with each
        other from loop to loop, would multiply their rounding too."""
        self.graph.outputs = [Output(value) for value in outputs]
        with patch.object(update_fusion, "BIG_CONCAT", 1):  # stored part by part, as large ones are
            return check_plan(self.graph, [given / 4 for given in random_inputs(self.graph, seed=3)])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_loops_over_what_loops_stacked(data: st.DataObject) -> None:
    """Turns before and behind the loops, in whatever order the schedule puts them, find what they read."""
    draw = data.draw
    chain = Chain(draw(st.integers(3, 6)))
    b, outputs, sequence, first = chain.b, [], chain.x, chain.h
    for _ in range(draw(st.integers(1, 3))):
        count = sequence.shape[0]
        assert isinstance(count, int)
        start = draw(st.integers(0, min(1, count - 1)))
        stop = draw(st.integers(count - 1, count)) if count - start > 2 else count
        if draw(st.booleans()):
            first = b.op("add", first, chain.row(sequence, draw(st.integers(0, count - 1))))
        stack = chain.loop(first, chain.rows(sequence, start, stop), draw(st.booleans()), draw(st.booleans()))
        if draw(st.booleans()):
            outputs.append(b.op("exp", chain.row(sequence, draw(st.integers(0, count - 1)))))
        if draw(st.booleans()):
            pieces = [chain.rows(chain.x, 0, 1), stack, b.op("neg", chain.rows(stack, 0, 1))]
            joined = b.op("concat", *pieces[draw(st.integers(0, 1)) :], dim=0)
            outputs.append(b.op("sum", joined, dims=(0, 1), keepdim=False))
            sequence = stack if draw(st.booleans()) else joined
        else:
            sequence = stack
    chain.check(*outputs, b.op("sum", sequence, dims=(0,), keepdim=False))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("history", [False, True])
def test_a_stack_lies_where_the_loop_has_read(reverse: bool, history: bool) -> None:
    chain = Chain(20)
    stack = chain.loop(chain.h, chain.x, reverse, history)
    again = chain.loop(chain.h, stack, not reverse, history)
    plan = chain.check(chain.b.op("sum", again, dims=(0,), keepdim=False))
    assert plan.arena_bytes <= (20 + 1) * ROW + 4 * ROW  # three sequences in one place, and carries


def test_a_sequence_that_is_read_later_stays() -> None:
    chain = Chain(20)
    stack = chain.loop(chain.h, chain.x, False, True)
    total = chain.b.op("sum", chain.b.op("mul", chain.x, stack), dims=(0,), keepdim=False)
    assert chain.check(total).arena_bytes >= 2 * 20 * ROW


@pytest.mark.parametrize(("at", "places"), [(0, 1), (10, 2)])
def test_a_turn_that_is_read_later_may_lie_beside_the_stack(at: int, places: int) -> None:
    """The first turn, which the loop does not go through, is in nobody's way; one in the middle is."""
    chain = Chain(20)
    stack = chain.loop(chain.h, chain.rows(chain.x, 2, 20), True, True)
    late = chain.b.op("mul", chain.row(chain.x, at), chain.row(stack, 0))
    plan = chain.check(late, chain.b.op("sum", stack, dims=(0,), keepdim=False))
    assert (20 * places - 2) * ROW <= plan.arena_bytes <= (20 * places + 5) * ROW


def test_a_stack_is_made_where_it_would_be_copied_to() -> None:
    chain = Chain(20)
    b = chain.b
    first = b.op("reshape", b.op("cos", chain.h), shape=(1, ROWS, WIDTH))
    stack = chain.loop(chain.h, chain.x, False, True)
    joined = b.op("concat", first, stack, dim=0)
    product = b.op("matmul", b.op("reshape", joined, shape=(21 * ROWS, WIDTH)), b.op("permute", chain.h, dims=(1, 0)))
    plan = chain.check(product)
    number, loop = next((n, step) for n, step in enumerate(plan.steps) if isinstance(step, LoopStep))
    (result,) = [binding for spec, binding in zip(loop.specs, loop.bindings, strict=True) if spec.kind == "output"]
    assert not [s for s in plan.steps[number:] if isinstance(s, KernelStep) and result.buffers[0] in s.buffers]
    (product_step,) = [step for step in plan.steps[number:] if isinstance(step, GemmStep)]
    places = [plan.buffers[index].arena_offset for index in (result.buffers[0], product_step.a.buffer)]
    assert places[0] + 4 * result.offsets[0] == places[1] + ROW


def test_what_is_made_of_inputs_is_made_again_behind_a_loop() -> None:
    graph = Graph("f")
    b = Builder(graph, infer)
    chain = Chain(20)
    chain.graph, chain.b = graph, b
    x = b.input("x", TensorType(f32, (ROWS, 8192)), Role.ARG, "x")
    h = b.input("h", TensorType(f32, (ROWS, WIDTH)), Role.ARG, "h")
    w = b.input("w", TensorType(f32, (ROWS * 1024, WIDTH)), Role.ARG, "w")
    wide = b.op("permute", b.op("reshape", x, shape=(ROWS, 1024, 8)), dims=(1, 0, 2))
    rows = b.op("reshape", wide, shape=(8, 2048))  # which is not how x lies in memory
    first = b.op("matmul", rows, w)
    sequence = b.op("expand", b.op("reshape", first, shape=(1, 8, WIDTH)), shape=(20, 8, WIDTH))
    stack = chain.loop(h, b.op("slice", sequence, dim=1, start=0, stop=ROWS, step=1), False, True)
    last = b.op("reshape", chain.row(stack, 19), shape=(ROWS, WIDTH))
    product = b.op("matmul", last, b.op("slice", rows, dim=0, start=0, stop=WIDTH, step=1))
    plan = chain.check(product)
    number = next(n for n, step in enumerate(plan.steps) if isinstance(step, LoopStep))
    copies = [n for n, step in enumerate(plan.steps) if isinstance(step, KernelStep) and 0 in step_buffers(step)]
    assert len(copies) == 2 and copies[0] < number < copies[1]
    assert plan.steps[copies[0]].kernel == plan.steps[copies[1]].kernel  # type: ignore[union-attr]


@pytest.mark.parametrize(("early", "moved"), [(8, False), (16, True)])
def test_a_place_that_is_in_use_is_not_taken(early: int, moved: bool) -> None:
    """The larger value's part is written before the loop: then what the loop stacks is moved there, as planned."""
    kernel = parse_kernel("""
kernel move(x: in f32[16], out: out f32[16]) axes(i0: 16 parallel) {
  v0: f32 = load x[i0]
  store out[i0] = v0
}
""")
    specs = [BufferSpec(n, ARENA, f32, (size,), (1,), 4 * size) for n, size in enumerate((16, 16, 32))]
    turn = [replace(spec, shape=(4,), nbytes=16) for spec in specs[:2]]
    steps = [
        KernelStep("move", (0, 2), (0, early)),
        LoopStep(
            4,
            tuple(turn),
            (Binding((0, 0), (0, 0), 4), Binding((1, 1), (0, 0), 4)),
            (KernelStep("four", (0, 1), (0, 0)),),
        ),
        KernelStep("move", (1, 2), (0, 0)),
    ]
    kernels = {"move": kernel, "four": replace(kernel, name="four", axes=(replace(kernel.axes[0], extent=4),))}
    found = Overlays(steps, specs, kernels, {0, 1, 2}, Sharing(), ALL)
    assert (found.place.get(1) == (2, 0)) is moved and (found.spared == {2}) is moved
