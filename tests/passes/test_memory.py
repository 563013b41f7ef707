"""The arena: no two values alive together share a byte, and memory is used again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.passes import memory
from graphc.passes.memory import Block, place_blocks
from graphc.passes.schedule import SENDS, WAITS, Task, order_tasks
from tests.passes.planned import check_plan, kernel_calls


def assert_apart(blocks: list[Block]) -> int:
    offsets, total = place_blocks(blocks)
    for i, (block, offset) in enumerate(zip(blocks, offsets, strict=True)):
        assert offset % 64 == 0 and offset + block.size <= max(total, offset)
        for other, start in list(zip(blocks, offsets, strict=True))[:i]:
            meets = block.first <= other.last and other.first <= block.last and block.size and other.size
            assert not meets or offset + block.size <= start or start + other.size <= offset
    return total


BLOCKS = st.lists(
    st.builds(lambda first, length, size: Block(first, first + length, size),
              st.integers(0, 20), st.integers(0, 6), st.sampled_from((0, 1, 64, 65, 200, 1000, 4096))),
    max_size=30,
)  # fmt: skip


@given(BLOCKS)
@settings(max_examples=100, deadline=None)
def test_blocks_alive_together_are_apart(blocks: list[Block]) -> None:
    assert_apart(blocks)


@given(BLOCKS)
@settings(max_examples=100, deadline=None)
def test_so_are_those_placed_by_the_sweep(blocks: list[Block]) -> None:
    exact, memory.EXACT_BLOCKS = memory.EXACT_BLOCKS, 0
    try:
        assert_apart(blocks)
    finally:
        memory.EXACT_BLOCKS = exact


def test_a_chain_needs_two_blocks() -> None:
    assert assert_apart([Block(n, n + 1, 640) for n in range(50)]) == 1280


def test_memory_of_the_dead_is_used_again() -> None:
    blocks = [Block(0, 9, 1024), Block(0, 3, 512), Block(0, 9, 256), Block(4, 9, 128), Block(4, 9, 384)]
    assert assert_apart(blocks) == 1024 + 512 + 256


def test_tasks_that_free_memory_go_first() -> None:
    tasks = [
        Task(frozenset(), (0,), ()),  # makes a big one
        Task(frozenset(), (1,), ()),  # makes another big one
        Task(frozenset({0}), (2,), (0,)),  # turns the first into a small one
        Task(frozenset({1}), (3,), (1,)),
        Task(frozenset({2, 3}), (4,), (2, 3)),
    ]
    sizes = {0: 1000, 1: 1000, 2: 10, 3: 10, 4: 10}
    assert order_tasks(tasks, sizes, frozenset({4})) == [0, 2, 1, 3, 4]


def test_without_gain_program_order_stays() -> None:
    tasks = [Task(frozenset({n - 1} if n else ()), (n,), (n - 1,) if n else ()) for n in range(20)]
    assert order_tasks(tasks, {}, frozenset()) == list(range(20))


def test_what_waits_for_a_device_goes_last_and_what_sends_to_it_first() -> None:
    none, first = frozenset[int](), frozenset({0})
    tasks = [
        Task(none, (0,), ()),
        Task(first, (1,), (0,), WAITS),  # would free the large one
        Task(first, (2,), (0,)),
        Task(frozenset({1}), (3,), (1,)),  # what the CPU makes of it
        Task(none, (4,), (), SENDS),
        Task(frozenset({2, 4}), (5,), (2, 4)),
    ]
    assert order_tasks(tasks, {0: 1000, 1: 1}, frozenset()) == [4, 0, 2, 5, 1, 3]


def test_a_pointwise_kernel_stores_where_its_dying_operand_was() -> None:
    plan = check_plan("""
graph f(%x: f32[16, 16] arg "x", %y: f32[16, 16] arg "y") {
  %0: f32[16, 16] = matmul(%x, %y)
  %1: f32[16, 16] = exp(%0)
  %2: f32[16, 16] = matmul(%1, %y)
  return %2
}""")
    arena = [spec for spec in plan.buffers if spec.kind == "arena"]
    assert len(arena) == 2 and arena[0].arena_offset == arena[1].arena_offset
    assert plan.arena_bytes == 1024 and plan.stats["arena_bytes_without_reuse"] == 2048


def test_softmax_rows_too() -> None:
    plan = check_plan("""
graph f(%x: f32[16, 16] arg "x", %y: f32[16, 16] arg "y") {
  %0: f32[16, 16] = matmul(%x, %y)
  %1: f32[16, 1] = amax(%0) {dims=[1], keepdim=True}
  %2: f32[16, 16] = sub(%0, %1)
  %3: f32[16, 16] = matmul(%2, %y)
  return %3
}""")
    assert plan.arena_bytes == 1024


def test_a_transposing_kernel_does_not() -> None:
    plan = check_plan("""
graph f(%x: f32[16, 16] arg "x", %y: f32[16, 16] arg "y") {
  %0: f32[16, 16] = matmul(%x, %y)
  %1: f32[16, 16] = permute(%0) {dims=[1, 0]}
  %2: f32[16, 16] = add(%0, %1)
  %3: f32[16, 16] = matmul(%2, %y)
  return %3
}""")
    assert plan.arena_bytes == 2048


def test_nor_one_of_another_element_size() -> None:
    plan = check_plan("""
graph f(%x: f32[16, 16] arg "x", %y: f64[16, 16] arg "y") {
  %0: f32[16, 16] = matmul(%x, %x)
  %1: f64[16, 16] = cast(%0) {dtype=f64}
  %2: f64[16, 16] = matmul(%1, %y)
  return %2
}""")
    assert plan.arena_bytes == 1024 + 2048


def test_steps_of_a_deep_net_run_in_constant_memory() -> None:
    lines = "".join(
        f"  %a{n}: f32[8, 8] = matmul(%{f'b{n - 1}' if n else 'x'}, %w)\n  %b{n}: f32[8, 8] = tanh(%a{n})\n"
        for n in range(30)
    )
    plan = check_plan(f'graph deep(%x: f32[8, 8] arg "x", %w: f32[8, 8] arg "w") {{\n{lines}  return %b29\n}}')
    assert plan.arena_bytes == 512 and len(kernel_calls(plan)) == 30
