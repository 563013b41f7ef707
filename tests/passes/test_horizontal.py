"""Kernels that run together: which may, in which order, and that the program computes the same."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.ir import Graph, run
from graphc.loopir.kernel import Kernel
from graphc.passes.devices import most_alive_by_device
from graphc.passes.foreach_tables import ELEMENTS
from graphc.passes.horizontal import FEWEST, FREE_GROWTH, GROWTH, LARGEST, Batch, gather, row_kernel
from graphc.passes.plan import make_plan
from graphc.passes.schedule import Task
from graphc.program.plan import ForeachStep, KernelStep, Plan
from tests.passes.planned import graph_of
from tests.plan_interpreter import run_plan
from tests.strategies import random_inputs

DEVICE = "gpu:0"
KIB = 1 << 10


def gathered(
    tasks: Sequence[Task],
    kinds: dict[int, str],
    sizes: dict[int, int] | None = None,
    moved: dict[int, int] | None = None,
    early: int | None = None,
) -> list[Batch]:
    """Batches of tasks in their own order, each of which makes the storage of its number."""
    order = list(range(len(tasks)))
    limit = len(tasks) if early is None else early
    places = [DEVICE] * len(tasks)
    weights = dict.fromkeys(kinds, KIB) if moved is None else moved
    found = gather(tasks, order, limit, kinds, weights, sizes or {}, places, frozenset())
    check_order(tasks, found, limit)
    for batch in found:
        assert len(batch) == 1 or (len(batch) >= FEWEST and len({kinds[number] for number in batch}) == 1)
    return found


def check_order(tasks: Sequence[Task], batches: Sequence[Batch], early: int) -> None:
    """Every task once, behind all batches that it waits for; early ones first."""
    place = {number: at for at, batch in enumerate(batches) for number in batch}
    assert sorted(place) == list(range(len(tasks))) and sum(map(len, batches)) == len(tasks)
    assert all(place[earlier] < place[number] for number, task in enumerate(tasks) for earlier in task.after)
    flat = [number < early for batch in batches for number in batch]
    assert flat == sorted(flat, reverse=True)


def layers(count: int, waits: bool) -> tuple[list[Task], dict[int, str]]:
    """Layers one after the other; each needs something small of its own, or leaves something."""
    tasks: list[Task] = []
    for layer in range(count):
        before = {2 * layer - (1 if not waits else 2)} if layer else set[int]()
        if waits:  # the layer, then what it leaves
            tasks += [Task(frozenset(before), (2 * layer,), ()), Task(frozenset({2 * layer}), (2 * layer + 1,), ())]
        else:  # what it needs, then the layer
            tasks += [Task(frozenset(), (2 * layer,), ()),
                      Task(frozenset({2 * layer, *before}), (2 * layer + 1,), (2 * layer,))]  # fmt: skip
    return tasks, dict.fromkeys(range(int(waits), 2 * count, 2), "small")


def test_what_can_start_early_is_gathered_in_front() -> None:
    tasks, kinds = layers(6, waits=False)
    assert gathered(tasks, kinds) == [(0, 2, 4, 6, 8, 10), (1,), (3,), (5,), (7,), (9,), (11,)]


def test_what_may_end_late_is_gathered_behind() -> None:
    tasks, kinds = layers(6, waits=True)
    assert gathered(tasks, kinds) == [(0,), (2,), (4,), (6,), (8,), (10,), (1, 3, 5, 7, 9, 11)]


def test_few_stay_where_they_are() -> None:
    tasks, kinds = layers(FEWEST - 1, waits=False)
    assert gathered(tasks, kinds) == [(at,) for at in range(len(tasks))]


def test_large_ones_stay_where_they_are() -> None:
    tasks, kinds = layers(6, waits=False)
    moved = {at: LARGEST[0] + (at < 4) for at in kinds}
    assert gathered(tasks, kinds, moved=moved)[:3] == [(0,), (1,), (2,)]
    assert (4, 6, 8, 10) in gathered(tasks, kinds, moved=moved)


def test_early_and_late_ones_stay_apart() -> None:
    tasks = [Task(frozenset(), (at,), ()) for at in range(12)]
    found = gathered(tasks, dict.fromkeys(range(12), "small"), early=5)
    assert found == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9, 10, 11)]


def test_memory_comes_before_launches() -> None:
    tasks, kinds = layers(64, waits=False)
    few, many = dict.fromkeys(kinds, FREE_GROWTH // 128), dict.fromkeys(kinds, FREE_GROWTH)
    assert len(gathered(tasks, kinds, few)) == 65
    assert len(gathered(tasks, kinds, many)) == len(tasks)
    half = {at: LARGEST[1] if at < 64 else LARGEST[1] + 1 for at in kinds}
    mixed = {at: few[at] if at < 64 else many[at] for at in kinds}
    assert gathered(tasks, kinds, mixed, half)[0] == tuple(range(0, 64, 2))  # without the large ones it fits


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Task], dict[int, str], dict[int, int], dict[int, int], int]:
    count = draw(st.integers(1, 24))
    early = draw(st.integers(0, count))
    tasks: list[Task] = []
    for at in range(count):
        after = draw(st.frozensets(st.integers(0, at - 1), max_size=3)) if at else frozenset[int]()
        tasks.append(Task(after, (at,), tuple(after)))
    kinds = draw(st.dictionaries(st.integers(0, count - 1), st.sampled_from("ab")))
    sizes = {at: draw(st.sampled_from((0, KIB, 4 * FREE_GROWTH))) for at in range(count)}
    moved = {at: draw(st.sampled_from((KIB, *LARGEST, LARGEST[0] + 1))) for at in kinds}
    return tasks, kinds, sizes, moved, early


@settings(max_examples=300, deadline=None)
@given(programs())
def test_any_program_keeps_a_valid_order(
    program: tuple[list[Task], dict[int, str], dict[int, int], dict[int, int], int],
) -> None:
    tasks, kinds, sizes, moved, early = program
    found = gathered(tasks, kinds, sizes, moved, early)
    place = {number: at for at, batch in enumerate(found) for number in batch}
    together = [number for batch in found if len(batch) > 1 for number in batch]
    assert all(moved[number] <= LARGEST[0] for number in together)
    reached: list[set[int]] = []
    for task in tasks:
        reached.append(set(task.after).union(*(reached[earlier] for earlier in task.after)))
    assert all(place[one] != place[number] for number, before in enumerate(reached) for one in before)
    merged = [
        Task(frozenset(), batch, tuple(itertools.chain(*(tasks[number].uses for number in batch)))) for batch in found
    ]
    places = [DEVICE] * len(tasks)
    needed = most_alive_by_device(tasks, range(len(tasks)), sizes, places, frozenset())[DEVICE]
    now = most_alive_by_device(merged, range(len(merged)), sizes, places, frozenset())[DEVICE]
    assert now <= needed + max(needed // GROWTH, FREE_GROWTH)


# kernels of rows


def kernel_of(text: str) -> Kernel:
    plan = make_plan(graph_of(text), backend="triton")
    (step,) = plan.steps
    assert isinstance(step, KernelStep)
    return plan.kernels[step.kernel]


def test_sizes_are_all_that_rows_differ_in() -> None:
    text = 'graph f(%x: f32[N] arg "x") {\n  %0: bf16[N] = cast(%x) {dtype=bf16}\n  return %0\n}'
    short, long = (row_kernel(kernel_of(text.replace("N", str(size)))) for size in (5, 700))
    assert short is not None and long is not None
    assert (short.size, long.size) == (5, 700) and (short.moved, long.moved) == (30, 4200)
    assert short.kernel.key() == long.kernel.key() and short.arguments == long.arguments
    assert all(item.kind == "row" and item.elementwise for item in short.arguments)


def test_a_number_is_a_row_of_one_element() -> None:
    text = 'graph f(%x: i64[] state "x") {\n  %0: i64[] = add(%x, 1)\n  write %x <- %0\n  return\n}'
    found = row_kernel(kernel_of(text))
    assert found is not None and found.size == 1
    assert [str(axis.extent) for axis in found.kernel.axes] == [ELEMENTS]


@pytest.mark.parametrize(
    "body",
    [
        "%0: f32[] = sum(%x) {dims=[0], keepdim=false}\n  return %0",
        "%0: f32[64] = flip(%x) {dims=[0]}\n  return %0",
        "%0: f32[32] = slice(%x) {dim=0, start=0, stop=64, step=2}\n  %1: f32[32] = exp(%0)\n  return %1",
        '%0: f32[64] = iota() {size=64, start=0, step=1, dtype=f32, device="cpu"}\n  %1: f32[64] = mul(%x, %0)\n'
        "  return %1",
    ],
)
def test_what_is_no_map_is_no_row(body: str) -> None:
    assert row_kernel(kernel_of(f'graph f(%x: f32[64] arg "x") {{\n  {body}\n}}')) is None


# plans


def scaled(sizes: Sequence[int]) -> Graph:
    """Tensors of several sizes, all treated alike, and a number that each is scaled by."""
    inputs = ", ".join(f'%x{at}: f32[{size}] arg "x{at}"' for at, size in enumerate(sizes))
    lines = [f"%y{at}: bf16[{size}] = cast(%x{at}) {{dtype=bf16}}" for at, size in enumerate(sizes)]
    return graph_of(
        f"graph f({inputs}) {{\n  "
        + "\n  ".join(lines)
        + f"\n  return {', '.join(f'%y{at}' for at in range(len(sizes)))}\n}}"
    )


def check(graph: Graph, backend: str = "triton") -> Plan:
    given_ours, given_theirs = random_inputs(graph, seed=3), random_inputs(graph, seed=3)
    plan = make_plan(graph, backend=backend)
    for mine, reference in zip(run_plan(plan, given_ours), run(graph, given_theirs), strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=0)
    for mine, reference in zip(given_ours, given_theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=0)
    return plan


def test_kernels_of_several_sizes_are_one_step() -> None:
    sizes = (4, 1000, 1, 1025, 0, 7)
    (step,) = check(scaled(sizes)).steps
    assert isinstance(step, ForeachStep)
    assert sorted(step.sizes) == sorted(size for size in sizes if size)
    assert len(check(scaled(sizes), "c").steps) == 5


def test_state_is_updated_in_place() -> None:
    lines, names = [], ("a", "b", "c", "d", "e")
    inputs = ", ".join(f'%{name}: i64[] state "{name}"' for name in names)
    lines = [f"%{name}1: i64[] = add(%{name}, 1)" for name in names]
    lines += [f"write %{name} <- %{name}1" for name in names]
    (step,) = check(graph_of(f"graph f({inputs}) {{\n  " + "\n  ".join(lines) + "\n  return\n}")).steps
    assert isinstance(step, ForeachStep) and step.sizes == (1,) * 5
