"""The order of steps on several devices, and where their buffers lie."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from graphc.driver import plan_for
from graphc.ir.parser import parse
from graphc.options import Options
from graphc.passes.devices import FREE_GROWTH, MOST_RUNS, SHORTEST_RUN, group_devices
from graphc.passes.schedule import BETWEEN, WAITS, Task
from graphc.program.lifetimes import step_buffers
from graphc.program.plan import ARENA, AtenStep, Plan

A, B = "gpu:0", "gpu:1"


def runs(tasks: Sequence[Task], order: Sequence[int]) -> list[tuple[str, int]]:
    """Runs of tasks on one device, with their lengths."""
    return [(name, len(list(found))) for name, found in itertools.groupby(tasks[at].device for at in order)]


def grouped(tasks: Sequence[Task], sizes: dict[int, int] | None = None, early: int | None = None) -> list[int]:
    """Each task makes the storage of its number, on its own device; copies make one on the second."""
    order = list(range(len(tasks)))
    places = [B if task.device == BETWEEN else task.device for task in tasks]
    found = group_devices(tasks, order, len(tasks) if early is None else early, sizes or {}, places, frozenset())
    assert sorted(found) == order
    place = {number: at for at, number in enumerate(found)}
    assert all(place[earlier] < place[number] for number, task in enumerate(tasks) for earlier in task.after)
    return found


def chains(count: int, *devices: str) -> list[Task]:
    """As many chains as devices, taken in turns."""
    width = len(devices)
    return [
        Task(frozenset({at - width} if at >= width else ()), (at,), (), 0, devices[at % width])
        for at in range(count * width)
    ]


def test_chains_in_turns_become_a_run_each() -> None:
    tasks = chains(50, A, B)
    assert runs(tasks, grouped(tasks)) == [(A, 50), (B, 50)]


def test_one_device_keeps_its_order() -> None:
    tasks = chains(9, A, "")
    assert grouped(tasks) == list(range(18))


def test_what_is_late_and_what_waits_stay_behind() -> None:
    tasks = chains(6, A, B)
    assert runs(tasks, grouped(tasks, early=6)) == [(A, 3), (B, 6), (A, 3)]
    tasks[0] = tasks[0]._replace(rank=WAITS)
    tasks[2] = tasks[2]._replace(after=frozenset())
    assert grouped(tasks)[-1] == 0


def copies(count: int) -> list[Task]:
    """A chain on the first device; what every task makes is copied and used on the second."""
    tasks: list[Task] = []
    for at in range(0, 3 * count, 3):
        tasks += [
            Task(frozenset({at - 3} if at else ()), (at,), (), 0, A),
            Task(frozenset({at}), (at + 1,), (at,), 0, BETWEEN),
            Task(frozenset({at + 1}), (at + 2,), (at + 1,), 0, B),
        ]
    return tasks


def test_copies_are_made_together() -> None:
    for count in (20, 1000):
        tasks = copies(count)
        found = runs(tasks, grouped(tasks))
        longest = max(SHORTEST_RUN, len(tasks) // MOST_RUNS)
        assert max(length for name, length in found if name == A) <= longest  # the second one is not kept waiting
        assert len(found) <= 3 * (count // longest + 1)


def test_copies_that_take_much_memory_are_not() -> None:
    tasks = [Task(frozenset(), (at,), (), 0, BETWEEN) if at % 2 else Task(frozenset({at - 1} if at else ()), (at,),
             (at - 1,) if at else (), 0, B) for at in range(400)]  # fmt: skip
    tasks += [Task(frozenset(), (400,), (), 0, A)]
    small, large = (dict.fromkeys(range(1, 400, 2), size) for size in (1 << 10, FREE_GROWTH))
    assert runs(tasks, grouped(tasks, small))[1] == (BETWEEN, 200)
    assert all(length <= 2 for name, length in runs(tasks, grouped(tasks, large)) if name == BETWEEN)


def planned(text: str) -> Plan:
    return plan_for(parse(text), Options("f", backend="triton"), "triton")


def test_a_plan_is_grouped_and_has_an_arena_per_device() -> None:
    """What is written to an input comes behind the copies, which can fail."""
    lines = []
    for at in range(6):
        one, two = (f"%a{at - 1}", f"%b{at - 1}") if at else ("%x", "%y")
        lines += [
            f"  %p{at}: f32[8, 8]@cuda:0 = matmul({one}, %v)", f"  %q{at}: f32[8, 8]@cuda:1 = matmul({two}, %w)",
            f"  %a{at}: f32[8, 8]@cuda:0 = tanh(%p{at})", f"  %b{at}: f32[8, 8]@cuda:1 = tanh(%q{at})",
        ]  # fmt: skip
    inputs = [f'%{name}: f32[8, 8]@cuda:{device} arg "{name}"' for name, device in zip("xvyw", (0, 0, 1, 1))]
    plan = planned(
        f"graph f({', '.join(inputs)}) {{\n"
        + "\n".join(lines)
        + """
  %c: f32[8, 8]@cuda:1 = extern(%a5) {op="aten._to_copy.default", args=[$0], kwargs={device=@device.cuda:1}}
  %d: f32[8, 8]@cuda:1 = add(%c, %b5)
  %e: f32[8, 8]@cuda:1 = matmul(%d, %w)
  return %e
}
"""
    )
    names = ["+".join(sorted({plan.buffers[i].device for i in step_buffers(step)})) for step in plan.steps]
    assert [name for name, _ in itertools.groupby(names)] == ["cuda:0", "cuda:0+cuda:1", "cuda:1"]
    assert sum(isinstance(step, AtenStep) for step in plan.steps) == 1
    for device in ("cuda:0", "cuda:1"):
        offsets = [spec.arena_offset for spec in plan.buffers if spec.kind == ARENA and spec.device == device]
        assert offsets and min(offsets) == 0
    ends = [
        max(s.arena_offset + s.nbytes for s in plan.buffers if s.kind == ARENA and s.device == device)
        for device in ("cuda:0", "cuda:1")
    ]
    assert plan.arena_bytes == sum(ends)


def test_buffers_of_a_device_take_no_place_of_another_ones() -> None:
    """A number of the CPU ends in the kernel that makes one of the GPU."""
    plan = planned(
        """
graph f(%x: f32[8, 8]@cuda:0 arg "x", %c: f32[1, 1] arg "c") {
  %m: f32[1, 1] = matmul(%c, %c)
  %0: f32[] = reshape(%m) {shape=[]}
  %1: f32[8, 8]@cuda:0 = matmul(%x, %x)
  %2: f32[]@cuda:0 = sum(%1) {dims=[0, 1], keepdim=False}
  %3: f32[]@cuda:0 = mul(%2, %0)
  %4: f32[8, 8]@cuda:0 = matmul(%1, %x)
  %5: f32[]@cuda:0 = extern(%3) {op="aten.clone.default", args=[$0], kwargs={}}
  %6: f32[8, 8]@cuda:0 = add(%4, %1)
  %7: f32[8, 8]@cuda:0 = mul(%6, %5)
  return %7
}
"""
    )
    uses: dict[int, list[int]] = {}
    for at, step in enumerate(plan.steps):
        for index in step_buffers(step):
            uses.setdefault(index, []).append(at)
    arena = [spec for spec in plan.buffers if spec.kind == ARENA and spec.index in uses]
    assert {spec.device for spec in arena} == {"cpu", "cuda:0"}
    for one, other in itertools.combinations(arena, 2):
        alive = max(uses[one.index][0], uses[other.index][0]) < min(uses[one.index][-1], uses[other.index][-1])
        if alive and one.device == other.device:
            first, second = sorted((one, other), key=lambda spec: spec.arena_offset)
            assert first.arena_offset + first.nbytes <= second.arena_offset
