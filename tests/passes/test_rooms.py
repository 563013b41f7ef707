"""Memory of results and of calls as working memory, values computed early, and results that are whole buffers."""

from __future__ import annotations

import pytest
import torch

from graphc.ir.graph import Graph
from graphc.ir.types import f32, i64
from graphc.passes.memory import Block
from graphc.passes.rooms import Mover, Room, fill_rooms
from graphc.passes.transient import EMPTY, coming_and_going
from graphc.program.lifetimes import step_buffers
from graphc.program.loops import Binding, LoopStep
from graphc.program.plan import ARENA, AtenStep, BufferSpec, ForeachStep, GemmStep, KernelStep, Plan
from tests.passes.planned import check_plan, graph_of, kernel_calls

ATTRS = (
    "{stride=[1, 1], padding=[0, 0], dilation=[1, 1], transposed=False, output_padding=[0, 0], groups=1, bias=False}"
)


def across(plan: Plan, step: int) -> int:
    """Bytes of buffers made before a step and read after it, inputs and results aside."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for at, item in enumerate(plan.steps):
        for index in step_buffers(item):
            first.setdefault(index, at)
            last[index] = at
    return sum(
        spec.nbytes
        for spec in plan.buffers
        if spec.index in first and spec.kind in ("arena", "external") and first[spec.index] < step < last[spec.index]
    )


def test_a_result_is_working_memory_until_it_is_stored() -> None:
    plan = check_plan("""
graph f(%x: f32[64, 64] arg "x") {
  %0: f32[64, 64] = matmul(%x, %x)
  %1: f32[64, 64] = matmul(%0, %x)
  %2: f32[64, 64] = matmul(%1, %x)
  return %2
}""")
    (result,) = plan.outputs
    steps = [step for step in plan.steps if isinstance(step, GemmStep)]
    assert steps[0].out.buffer == steps[1].a.buffer == result.buffer  # %0 lies where the result is stored last
    assert plan.arena_bytes == 64 * 64 * 4 and plan.stats["arena_bytes_without_reuse"] == 2 * 64 * 64 * 4


def test_rooms_hold_what_ends_before_and_never_two_at_a_time() -> None:
    blocks = {number: Block(number, number + 2, 5000) for number in range(6)}
    rooms = [Room(100, 4, 12_000), Room(101, 100, 5_000)]
    found = fill_rooms(blocks, rooms)
    for number, (room, offset) in found.items():
        until, size = {100: (4, 12_000), 101: (100, 5_000)}[room]
        assert blocks[number].last < until and offset % 64 == 0 and offset + blocks[number].size <= size
        for other, (place, at) in found.items():
            if other != number and place == room and abs(other - number) <= 2:
                assert at + 5000 <= offset or offset + 5000 <= at
    assert len(found) >= 3 and found == fill_rooms(blocks, rooms)
    assert fill_rooms(blocks, [Room(1, 100, 100), Room(2, 0, 10_000)]) == {}


def test_the_slope_of_an_activation_is_computed_with_it() -> None:
    plan = check_plan("""
graph f(%x: f32[48, 64] arg "x", %w: f32[64, 128] param "w", %v: f32[128, 32] param "v") {
  %h: f32[48, 128] = matmul(%x, %w)
  %e: f32[48, 128] = erf(%h)
  %a: f32[48, 128] = add(%e, 1.0)
  %y: f32[48, 128] = mul(%h, %a)
  %o: f32[48, 32] = matmul(%y, %v)
  %t: f32[32, 128] = permute(%v) {dims=[1, 0]}
  %d: f32[48, 128] = matmul(%o, %t)
  %s: f32[48, 128] = mul(%h, %h)
  %p: f32[48, 128] = exp(%s)
  %q: f32[48, 128] = mul(%h, %p)
  %l: f32[48, 128] = add(%a, %q)
  %g: f32[48, 128] = mul(%d, %l)
  return %g, %o
}""")
    middle = [at for at, step in enumerate(plan.steps) if isinstance(step, GemmStep)][1]
    assert across(plan, middle) == 48 * 128 * 4  # the slope alone; before: the argument and erf of it
    assert len(kernel_calls(plan)) == 2


def test_what_an_activation_gives_for_nothing_is_not_computed_early() -> None:
    plan = check_plan("""
graph f(%x: f32[48, 64] arg "x", %w: f32[64, 64] param "w") {
  %h: f32[48, 64] = matmul(%x, %w)
  %e: f32[48, 64] = exp(%h)
  %a: f32[48, 64] = add(%e, 1.0)
  %y: f32[48, 64] = div(1.0, %a)
  %o: f32[48, 64] = matmul(%y, %w)
  %l: f32[48, 64] = sub(1.0, %y)
  %g: f32[48, 64] = mul(%o, %l)
  %k: f32[48, 64] = matmul(%g, %w)
  %m: f32[48, 64] = mul(%k, %y)
  return %m
}""")
    middle = [at for at, step in enumerate(plan.steps) if isinstance(step, GemmStep)][1]
    assert across(plan, middle) == 48 * 64 * 4


def test_what_is_picked_from_a_large_value_lets_go_of_it() -> None:
    graph: Graph = graph_of("""
graph f(%x: f32[64, 64] arg "x", %w: f32[64, 4096] param "w", %y: i64[64, 1] arg "y") {
  %h: f32[64, 4096] = matmul(%x, %w)
  %m: f32[64, 1] = amax(%h) {dims=[1], keepdim=True}
  %p: f32[64, 1] = gather(%h, %y) {dim=1}
  %q: f32[64, 1] = sub(%p, %m)
  %s: f32[64, 4096] = sub(%h, %m)
  %e: f32[64, 4096] = exp(%s)
  %t: f32[4096, 64] = permute(%w) {dims=[1, 0]}
  %o: f32[64, 64] = matmul(%e, %t)
  %r: f32[64] = reshape(%q) {shape=[64]}
  %l: f32[] = sum(%r) {dims=[0], keepdim=False}
  return %o, %l
}""")
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*shape, generator=generator) / 8 for shape in ((64, 64), (64, 4096)))
    plan = check_plan(graph, [x, w, torch.randint(0, 4096, (64, 1), generator=generator)])
    assert 64 * 4096 * 4 <= plan.arena_bytes < 64 * 4096 * 4 + 4096  # exp lies where the product lay


def test_a_transposed_result_is_a_buffer_of_its_own_shape() -> None:
    plan = check_plan("""
graph f(%x: f32[16, 8] arg "x", %y: f32[16, 4] arg "y") {
  %0: f32[8, 16] = permute(%x) {dims=[1, 0]}
  %1: f32[8, 4] = matmul(%0, %y)
  %2: f32[32] = reshape(%1) {shape=[32]}
  return %2
}""")
    (result,) = plan.outputs
    assert result.whole and plan.buffers[result.buffer].shape == (32,)


def test_memory_of_a_call_is_stored_into_where_nothing_reads_it_any_more() -> None:
    text = """
graph f(%x: f32[2, 3, 16, 16] arg "x", %w: f32[8, 3, 3, 3] param "w", %v: f32[4, 8, 3, 3] param "v") {
  %0: f32[2, 8, 14, 14] = convolution(%x, %w) ATTRS
  %1: f32[2, 8, 14, 14] = exp(%0)
  %2: f32[2, 4, 12, 12] = convolution(%1, %v) ATTRS
  return %2
}""".replace("ATTRS", ATTRS)
    plan = check_plan(text)
    kernel = next(step for step in plan.steps if isinstance(step, KernelStep))
    assert len(set(kernel.buffers)) == 1 and plan.arena_bytes == 0


def test_blocks_come_and_go_where_calls_hold_more_than_the_arena() -> None:
    blocks = {1: Block(0, 2, 1 << 20), 2: Block(4, 6, 1 << 20), 3: Block(0, 1, 100)}
    held = [Block(5, 5, 1 << 23), Block(1, 1, 1 << 19)]
    assert coming_and_going(blocks, held) == [1]
    assert coming_and_going(blocks, [Block(5, 5, 1 << 19)]) == []


def test_allocations_are_no_library_calls_to_report() -> None:
    text = """
graph f(%x: f32[4, 16, 64, 64] arg "x",
        %a: f32[16, 64] arg "a", %b: f32[64, 4096] arg "b", %w: f32[16, 16, 1, 1] param "w") {
  %0: f32[16, 4096] = matmul(%a, %b)
  %1: f32[16, 4096] = tanh(%0)
  %2: f32[4096] = sum(%1) {dims=[0], keepdim=False}
  %3: f32[64, 64] = reshape(%2) {shape=[64, 64]}
  %4: f32[4, 16, 64, 64] = mul(%x, %3)
  %5: f32[4, 16, 64, 64] = convolution(%4, %w) ATTRS
  %6: f32[4, 16, 64, 64] = convolution(%5, %w) ATTRS
  return %6
}""".replace("ATTRS", ATTRS)
    shapes = ((4, 16, 64, 64), (16, 64), (64, 4096), (16, 16, 1, 1))
    plan = check_plan(text, [torch.randn(*shape, generator=torch.Generator().manual_seed(0)) / 16 for shape in shapes])
    allocations = [step for step in plan.steps if isinstance(step, AtenStep) and step.op == EMPTY]
    assert EMPTY not in plan.stats["extern"] and sum(plan.stats["extern"].values()) == 2
    assert all(plan.buffers[step.outs[0]].kind == "external" for step in allocations)


LOOP = """
graph f(%h: f32[64, 64] arg "h", %x: f32[9, 64, 64] arg "x", %w: f32[64, 64] arg "w") {
  %l: f32[64, 64], %s: f32[9, 64, 64] = scan(%h, %x, %w) {carries=1, sequences=1, length=9, reverse=REVERSE}
    body graph loop(%c: f32[64, 64] arg "c", %i: f32[64, 64] arg "i", %v: f32[64, 64] arg "v") {
      %0: f32[64, 64] = matmul(%c, %v)
      %1: f32[64, 64] = tanh(%0)
      %2: f32[64, 64] = add(%1, %i)
      %3: f32[64, 64] = matmul(%2, %v)
      %4: f32[64, 64] = sin(%3)
      return %4, %2
    }
  %a: f32[64, 64] = matmul(%l, %w)
  %b: f32[64, 64] = tanh(%a)
  %t: f32[64, 64] = sum(%s) {dims=[0], keepdim=False}
  %c: f32[64, 64] = matmul(%t, %w)
  return %b, %c
}"""


@pytest.mark.parametrize("reverse", [False, True])
def test_what_goes_from_turn_to_turn_lies_in_results_that_are_stored_later(reverse: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*shape, generator=generator) / 16 for shape in ((64, 64), (9, 64, 64), (64, 64))]
    plan = check_plan(LOOP.replace("REVERSE", str(reverse)), inputs)
    (loop,) = [step for step in plan.steps if isinstance(step, LoopStep)]
    results = {output.buffer for output in plan.outputs}
    homes = [b.buffers for b in loop.bindings if not results.isdisjoint(b.buffers)]
    assert len(homes) >= 2 and all(plan.buffers[index].nbytes for pair in homes for index in pair)


@pytest.mark.parametrize("turn", range(5))
@pytest.mark.parametrize("stride", [0, 16, -16])
def test_loops_name_moved_buffers_in_every_turn(turn: int, stride: int) -> None:
    buffers = [BufferSpec(index, ARENA, f32, (512,), (1,), 2048) for index in range(6)]
    mover = Mover(buffers, {1: (4, 256), 3: (5, 64)})
    old = Binding((1, 2), (80, 96), stride, 3, 7)
    (new,) = mover.step(LoopStep(5, (), (old,), ())).bindings  # type: ignore[union-attr]
    moved = {1: (4, 64), 3: (5, 16)}
    buffer, offset = old.at(turn)
    home, start = moved.get(buffer, (buffer, 0))
    assert new.at(turn) == (home, start + offset)
    plain = Binding((2, 2), (0, 0))
    assert mover.step(LoopStep(5, (), (plain,), ())).bindings == (plain,)  # type: ignore[union-attr]


def test_tables_name_moved_buffers() -> None:
    buffers = [BufferSpec(index, ARENA, i64 if index == 2 else f32, (64,), (1,), 512) for index in range(5)]
    table = ForeachStep(("k",), ((),), ((0, 1), (1, 2)), ((0, 3), (5, 7)), (1, 1), (0,), shared=(3,))
    moved = Mover(buffers, {1: (4, 64), 2: (4, 128)}).step(table)
    assert isinstance(moved, ForeachStep)
    assert moved.rows == ((0, 4), (4, 4)) and moved.offsets == ((0, 19), (21, 23))
    assert Mover(buffers, {4: (0, 0)}).step(table) is table
