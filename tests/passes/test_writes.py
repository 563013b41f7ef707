"""What the program overwrites: running statistics, caches, slices, swaps, aliases, calls that mutate."""

from __future__ import annotations

import pytest
import torch

from graphc.program.plan import ARENA, EXTERNAL, INPUT, OUTPUT, AtenStep, KernelStep, Plan
from tests.passes.planned import aten_calls, check_plan, kernel_calls


def stored_sizes(plan: Plan) -> list[int]:
    """Elements that each kernel call stores."""
    sizes = []
    for step in plan.steps:
        if isinstance(step, KernelStep):
            kernel = plan.kernels[step.kernel]
            total = 1
            for axis in kernel.axes:
                total *= int(axis.extent)  # type: ignore[arg-type]
            sizes.append(total)
    return sizes


def test_an_input_is_updated_in_place_by_the_kernel_that_makes_the_value() -> None:
    plan = check_plan("""
graph sgd(%p: f32[8, 8] param "p", %g: f32[8, 8] arg "g") {
  %0: f32[8, 8] = mul(%g, 0.1)
  %1: f32[8, 8] = sub(%p, %0)
  write %p <- %1
  return %p
}""")
    assert len(kernel_calls(plan)) == 1 and plan.arena_bytes == 0 and plan.written == (0,)
    assert plan.outputs[0].whole and plan.buffers[plan.outputs[0].buffer].kind == INPUT


def test_readers_of_the_old_contents_come_first() -> None:
    plan = check_plan("""
graph f(%p: f32[8, 8] param "p", %x: f32[8, 8] arg "x") {
  %0: f32[8, 8] = add(%p, 1.0)
  %1: f32[8, 8] = matmul(%x, %p)
  write %p <- %0
  return %1
}""")
    assert isinstance(plan.steps[-1], KernelStep) and plan.arena_bytes == 0


def test_a_value_that_later_readers_of_the_old_contents_need_goes_by_way_of_memory() -> None:
    plan = check_plan("""
graph f(%p: f32[8, 8] param "p") {
  %0: f32[8, 8] = add(%p, 1.0)
  %1: f32[8, 8] = matmul(%0, %p)
  write %p <- %0
  return %1
}""")
    assert plan.arena_bytes == 256


def test_cache_update_touches_only_its_slice() -> None:
    plan = check_plan("""
graph step(%cache: f32[2, 64, 4] buffer "k", %x: f32[2, 1, 4] arg "x") {
  %0: f32[2, 1, 4] = mul(%x, 2.0)
  %1: f32[2, 64, 4] = update_slice(%cache, %0) {starts=[0, 5, 0], steps=[1, 1, 1]}
  %2: f32[2, 4] = sum(%1) {dims=[1], keepdim=False}
  write %cache <- %1
  return %2
}""")
    assert stored_sizes(plan) == [8, 512] and plan.arena_bytes == 0
    assert plan.steps[0].offsets[-1] == 20  # type: ignore[union-attr]


def test_cache_updates_at_two_places() -> None:
    plan = check_plan("""
graph step(%cache: f32[16, 4] buffer "k", %x: f32[1, 4] arg "x") {
  %0: f32[16, 4] = update_slice(%cache, %x) {starts=[3, 0], steps=[1, 1]}
  %1: f32[1, 4] = slice(%0) {dim=0, start=2, stop=3, step=1}
  %2: f32[16, 4] = update_slice(%0, %1) {starts=[7, 0], steps=[1, 1]}
  write %cache <- %2
  return %x
}""")
    assert stored_sizes(plan) == [4, 4, 4] and plan.arena_bytes == 64  # the row is read before it is stored over


def test_old_cache_read_beside_the_new_one() -> None:
    plan = check_plan("""
graph f(%c: f32[8, 4] buffer "c", %x: f32[2, 4] arg "x") {
  %0: f32[8, 4] = update_slice(%c, %x) {starts=[2, 0], steps=[1, 1]}
  %1: f32[8, 4] = sub(%0, %c)
  write %c <- %0
  return %1
}""")
    assert plan.written == (0,)


def test_shifting_a_buffer_by_one() -> None:
    check_plan("""
graph shift(%c: f32[8, 4] buffer "c") {
  %0: f32[7, 4] = slice(%c) {dim=0, start=1, stop=8, step=1}
  %1: f32[8, 4] = update_slice(%c, %0) {starts=[0, 0], steps=[1, 1]}
  write %c <- %1
  return %c
}""")


def test_adding_to_a_slice_in_place() -> None:
    plan = check_plan("""
graph f(%c: f32[8, 4] buffer "c", %x: f32[2, 4] arg "x") {
  %0: f32[2, 4] = slice(%c) {dim=0, start=2, stop=4, step=1}
  %1: f32[2, 4] = add(%0, %x)
  %2: f32[8, 4] = update_slice(%c, %1) {starts=[2, 0], steps=[1, 1]}
  write %c <- %2
  return %c
}""")
    assert stored_sizes(plan) == [8] and plan.arena_bytes == 0


def test_strided_update_in_place() -> None:
    plan = check_plan("""
graph diagonal(%c: f32[6, 6] buffer "c", %x: f32[6] arg "x") {
  %0: f32[6, 6] = update_strided(%c, %x) {shape=[6], strides=[7], offset=0}
  write %c <- %0
  return %x
}""")
    assert stored_sizes(plan) == [6] and plan.arena_bytes == 0


def test_strided_update_of_a_transposed_input() -> None:
    check_plan("""
graph diagonal(%c: f32[6, 6] buffer "c" strides=[1, 6], %x: f32[6] arg "x") {
  %0: f32[6, 6] = update_strided(%c, %x) {shape=[6], strides=[5], offset=1}
  write %c <- %0
  return %x
}""")


def test_filling_rows_one_by_one_is_linear() -> None:
    lines = "".join(
        f"  %r{n}: f32[1, 4] = mul(%x, {n + 1}.0)\n"
        f"  %u{n}: f32[16, 4] = update_slice(%{f'u{n - 1}' if n else 'e'}, %r{n}) {{starts=[{n}, 0], steps=[1, 1]}}\n"
        for n in range(16)
    )
    plan = check_plan(
        f'graph rows(%x: f32[1, 4] arg "x") {{\n'
        f'  %e: f32[16, 4] = full() {{shape=[16, 4], dtype=f32, value=0.0, device="cpu"}}\n{lines}  return %u15\n}}'
    )
    assert sum(stored_sizes(plan)) == 2 * 64 and plan.arena_bytes == 0


def test_two_inputs_swap() -> None:
    plan = check_plan(
        """
graph swap(%a: f32[4, 4] arg "a", %b: f32[4, 4] arg "b") {
  write %a <- %b
  write %b <- %a
  return %a, %b
}""",
        exact=True,
    )
    assert plan.written == (0, 1)


def test_two_inputs_are_made_of_each_other() -> None:
    check_plan("""
graph f(%a: f32[4, 4] arg "a", %b: f32[4, 4] arg "b") {
  %0: f32[4, 4] = permute(%b) {dims=[1, 0]}
  %1: f32[4, 4] = exp(%0)
  %2: f32[4, 4] = permute(%a) {dims=[1, 0]}
  %3: f32[4, 4] = sin(%2)
  write %a <- %1
  write %b <- %3
  return %a
}""")


def test_an_input_gets_its_own_transpose() -> None:
    plan = check_plan(
        """
graph f(%a: f32[4, 4] arg "a") {
  %0: f32[4, 4] = permute(%a) {dims=[1, 0]}
  write %a <- %0
  return %a
}""",
        exact=True,
    )
    assert plan.arena_bytes == 64


def test_softmax_in_place() -> None:
    plan = check_plan("""
graph f(%a: f32[4, 8] arg "a") {
  %0: f32[4, 1] = amax(%a) {dims=[1], keepdim=True}
  %1: f32[4, 8] = sub(%a, %0)
  %2: f32[4, 8] = exp(%1)
  %3: f32[4, 1] = sum(%2) {dims=[1], keepdim=True}
  %4: f32[4, 8] = div(%2, %3)
  write %a <- %4
  return %a
}""")
    assert len(kernel_calls(plan)) == 1 and plan.arena_bytes == 0


def test_a_store_before_the_last_read_is_put_off() -> None:
    plan = check_plan("""
graph f(%a: f32[4, 8] arg "a") {
  %0: f32[4, 1] = sum(%a) {dims=[1], keepdim=True}
  %1: f32[4, 8] = sub(%a, %0)
  %2: f32[4, 8] = mul(%a, %1)
  %3: f32[4, 1] = sum(%2) {dims=[1], keepdim=True}
  %4: f32[4, 8] = add(%a, %3)
  write %a <- %1
  return %4
}""")
    assert len(kernel_calls(plan)) == 2 and plan.arena_bytes == 128


def test_one_value_is_written_and_returned() -> None:
    plan = check_plan("""
graph f(%a: f32[4] arg "a", %b: f32[4] arg "b") {
  %0: f32[4] = exp(%b)
  write %a <- %0
  return %0, %a
}""")
    assert [plan.buffers[out.buffer].kind for out in plan.outputs] == [OUTPUT, INPUT]
    assert len(kernel_calls(plan)) == 1


def test_one_value_written_to_two_inputs() -> None:
    plan = check_plan("""
graph f(%a: f32[4] arg "a", %b: f32[4] arg "b") {
  %0: f32[4] = exp(%b)
  write %a <- %0
  write %b <- %0
  return %0
}""")
    assert plan.written == (0, 1)


def test_write_to_a_transposed_input() -> None:
    plan = check_plan("""
graph f(%a: f32[4, 3] arg "a" strides=[1, 4], %b: f32[4, 3] arg "b") {
  %0: f32[4, 3] = add(%a, %b)
  write %a <- %0
  return %a
}""")
    assert len(kernel_calls(plan)) == 1 and plan.arena_bytes == 0


def test_outputs_that_alias() -> None:
    plan = check_plan("""
graph f(%a: f32[4, 3] arg "a") {
  %0: f32[4, 3] = exp(%a)
  return %0, %0 as [3, 4]{1, 3}+0, %a, %a as [3]{1}+3, %0
}""")
    assert len(plan.buffers) == 2


def test_an_output_that_is_a_view_of_a_product_is_not_copied() -> None:
    plan = check_plan("""
graph f(%a: f32[4, 3] arg "a", %b: f32[3, 6] arg "b") {
  %0: f32[4, 6] = matmul(%a, %b)
  %1: f32[2, 2, 6] = reshape(%0) {shape=[2, 2, 6]}
  return %1
}""")
    assert not kernel_calls(plan)


def test_but_is_when_the_product_is_handed_out_as_well() -> None:
    plan = check_plan("""
graph f(%a: f32[4, 3] arg "a", %b: f32[3, 6] arg "b") {
  %0: f32[4, 6] = matmul(%a, %b)
  %1: f32[2, 2, 6] = reshape(%0) {shape=[2, 2, 6]}
  return %1, %0
}""")
    assert len(kernel_calls(plan)) == 1


def test_outputs_keep_the_strides_that_eager_gives() -> None:
    plan = check_plan("""
graph f(%a: f32[4, 3, 2] arg "a" strides=[6, 1, 3]) {
  %0: f32[4, 3, 2] strides=[6, 1, 3] = exp(%a)
  return %0
}""")
    assert "axes(i0: 24 parallel)" in str(next(iter(plan.kernels.values())))


def test_a_call_that_mutates_works_on_a_copy() -> None:
    plan = check_plan("""
graph f(%a: f32[4] arg "a") {
  %0: f32[4] = extern(%a) {op="aten.exp_.default", args=[$0], kwargs={}, mutates=[0]}
  return %0
}""")
    assert aten_calls(plan) == ["aten.exp_.default"] and len(kernel_calls(plan)) == 1
    (step,) = (step for step in plan.steps if isinstance(step, AtenStep))
    assert step.mutates == (0,)


def test_on_the_input_itself_when_that_is_written() -> None:
    plan = check_plan("""
graph f(%a: f32[4] arg "a") {
  %0: f32[4] = extern(%a) {op="aten.exp_.default", args=[$0], kwargs={}, mutates=[0]}
  write %a <- %0
  return %a
}""")
    assert not kernel_calls(plan)


def test_or_on_a_value_that_ends_there() -> None:
    plan = check_plan("""
graph f(%a: f32[4] arg "a") {
  %0: f32[4] = add(%a, 1.0)
  %1: f32[4] = extern(%0) {op="aten.exp_.default", args=[$0], kwargs={}, mutates=[0]}
  return %1
}""")
    assert len(kernel_calls(plan)) == 1
    assert [spec.kind for spec in plan.buffers] == [INPUT, OUTPUT]


def test_but_not_on_one_that_is_needed_after() -> None:
    plan = check_plan("""
graph f(%a: f32[4] arg "a") {
  %0: f32[4] = sin(%a)
  %1: f32[4] = extern(%0) {op="aten.exp_.default", args=[$0], kwargs={}, mutates=[0]}
  %2: f32[4] = add(%0, %1)
  return %2
}""")
    assert sum(spec.kind == ARENA for spec in plan.buffers) == 2


def test_nor_on_one_that_is_returned() -> None:
    plan = check_plan("""
graph f(%a: f32[4] arg "a") {
  %0: f32[4] = sin(%a)
  %1: f32[4] = extern(%0) {op="aten.exp_.default", args=[$0], kwargs={}, mutates=[0]}
  return %0, %1
}""")
    assert len({output.buffer for output in plan.outputs}) == 2


def test_what_an_update_in_place_left_is_read_before_the_last_copy() -> None:
    """The second update works on a copy, as both results are read; what it gives is copied into the input last."""
    check_plan("""
graph f(%a: f32[6] arg "a") {
  %0: f32[4] = as_strided(%a) {shape=[4], strides=[1], offset=0}
  %1: f32[4] = mul(%0, 2.0)
  %2: f32[6] = update_strided(%a, %1) {shape=[4], strides=[1], offset=0}
  %3: f32[] = as_strided(%2) {shape=[], strides=[], offset=1}
  %4: f32[4] = div(%1, 3.0)
  %5: f32[6] = update_strided(%2, %4) {shape=[4], strides=[1], offset=0}
  %6: f32[] = as_strided(%5) {shape=[], strides=[], offset=1}
  %7: f32[] = sub(%3, %6)
  write %a <- %5
  return %7
}""")


def test_memory_of_a_library_is_never_overwritten() -> None:
    plan = check_plan(
        """
graph f(%a: f32[4] arg "a") {
  %0: f32[4] = extern(%a) {op="aten.sort.default", args=[$0], kwargs={}}
  %1: f32[4] = extern(%0) {op="aten.exp_.default", args=[$0], kwargs={}, mutates=[0]}
  return %1
}""".replace("%0: f32[4] = extern(%a)", "%0: f32[4], %9: i64[4] = extern(%a)")
    )
    assert len(kernel_calls(plan)) == 1
    assert [spec.kind for spec in plan.buffers].count(EXTERNAL) == 1


@pytest.mark.parametrize("mode", ["set", "add"])
def test_put_into_a_cache_is_done_in_place(mode: str) -> None:
    plan = check_plan(
        f"""
graph f(%c: f32[16, 4] buffer "c", %i: i64[2] arg "i", %x: f32[2, 4] arg "x") {{
  %0: f32[16, 4] = put(%c, %i, %x) {{dim=0, mode="{mode}"}}
  write %c <- %0
  return %x
}}""",
        [torch.randn(16, 4), torch.tensor([3, 9]), torch.randn(2, 4)],
    )
    assert not aten_calls(plan)
    assert len(kernel_calls(plan)) == 2  # indices are checked before anything is written
    assert not any(spec.kind == ARENA for spec in plan.buffers)


def test_scatter_into_something_kept_makes_its_own_copy() -> None:
    plan = check_plan(
        """
graph f(%c: f32[5, 4] arg "c", %i: i64[2, 4] arg "i", %x: f32[2, 4] arg "x") {
  %0: f32[5, 4] = scatter(%c, %i, %x) {dim=0, mode="amax"}
  return %0
}""",
        [torch.randn(5, 4), torch.randint(0, 5, (2, 4)), torch.randn(2, 4)],
    )
    assert aten_calls(plan) == ["aten.scatter_reduce.two"] and not kernel_calls(plan)


def test_what_is_added_to_something_kept_is_added_to_a_copy() -> None:
    plan = check_plan(
        """
graph f(%c: f32[5, 4] arg "c", %i: i64[2, 4] arg "i", %x: f32[2, 4] arg "x") {
  %0: f32[5, 4] = scatter(%c, %i, %x) {dim=0, mode="add"}
  return %0
}""",
        [torch.randn(5, 4), torch.randint(0, 5, (2, 4)), torch.randn(2, 4)],
    )
    assert not aten_calls(plan) and len(kernel_calls(plan)) == 2


def test_scatter_into_fresh_zeros_is_done_in_place() -> None:
    plan = check_plan(
        """
graph f(%i: i64[2, 4] arg "i", %x: f32[2, 4] arg "x") {
  %c: f32[5, 4] = full() {shape=[5, 4], dtype=f32, value=0.0, device="cpu"}
  %0: f32[5, 4] = scatter(%c, %i, %x) {dim=0, mode="add"}
  %1: f32[5, 4] = mul(%0, 2.0)
  return %1
}""",
        [torch.randint(0, 5, (2, 4)), torch.randn(2, 4)],
    )
    assert not aten_calls(plan) and len(kernel_calls(plan)) == 3
    assert [spec.kind for spec in plan.buffers].count(ARENA) == 1


def test_effects_keep_their_order() -> None:
    plan = check_plan("""
graph f(%a: f32[4] arg "a") {
  %0: f32[4] = extern(%a) {op="aten.zeros_like.default", args=[$0], kwargs={}, effect="random"}
  %1: f32[4] = extern(%a) {op="aten.ones_like.default", args=[$0], kwargs={}, effect="random"}
  %2: f32[4] = extern(%a) {op="aten.zeros_like.default", args=[$0], kwargs={}, effect="opaque"}
  %3: f32[4] = add(%1, %2)
  return %3
}""")
    assert [op.split(".")[1] for op in aten_calls(plan)] == ["zeros_like", "ones_like", "zeros_like"]
    assert plan.steps[0].outs == (-1,)  # type: ignore[union-attr]


def test_host_scalars_go_in_and_out() -> None:
    plan = check_plan(
        """
graph f(%x: f32[3, 4] arg "x", %lr: f64[]@host scalar "lr") {
  %0: f32[] = sum(%x) {dims=[0, 1], keepdim=False}
  %1: f64[]@host = item(%0)
  %2: f64[]@host = mul(%1, %lr)
  %3: f32[3, 4] = mul(%x, %2)
  %4: f32[] = to_tensor(%2) {dtype=f32, device="cpu"}
  return %3, %4, %2
}""",
        [torch.ones(3, 4), 0.25],
    )
    assert [spec.host for spec in plan.buffers if spec.kind == INPUT] == [False, True]


def test_a_number_for_a_call() -> None:
    plan = check_plan("""
graph f(%x: f32[3, 4] arg "x") {
  %0: f32[] = amax(%x) {dims=[0, 1], keepdim=False}
  %1: f64[]@host = item(%0)
  %2: f32[3, 4] = extern(%x, %1) {op="aten.mul.Scalar", args=[$0, $1], kwargs={}}
  return %2
}""")
    assert aten_calls(plan) == ["aten.mul.Scalar"]


def test_operands_of_calls_have_the_strides_of_eager() -> None:
    plan = check_plan("""
graph f(%x: f32[3, 4] arg "x") {
  %0: f32[3, 4] = exp(%x)
  %1: f32[4, 3] strides=[1, 4] = permute(%0) {dims=[1, 0]}
  %2: f32[12] = reshape(%1) {shape=[12]}
  %3: f32[4, 3] strides=[1, 4] = extern(%1) {op="aten.abs.default", args=[$0], kwargs={}}
  %4: f32[12] = extern(%2) {op="aten.abs.default", args=[$0], kwargs={}}
  return %3, %4
}""")
    views = [view for step in plan.steps if isinstance(step, AtenStep) for view in step.views()]
    assert {view.strides for view in views} == {(1, 4), (1,)}


@pytest.mark.parametrize("shape", ["[0]", "[0, 4]", "[3, 0, 2]"])
def test_empty_tensors(shape: str) -> None:
    plan = check_plan(f"""
graph f(%x: f32{shape} arg "x") {{
  %0: f32{shape} = exp(%x)
  %1: f32[] = sum(%0) {{dims={list(range(shape.count(",") + 1))}, keepdim=False}}
  %2: f32{shape} = add(%0, %1)
  write %x <- %2
  return %2, %1
}}""")
    assert len(kernel_calls(plan)) == 1


def test_nothing_to_do() -> None:
    plan = check_plan("""
graph f(%x: f32[3] arg "x") {
  return %x
}""")
    assert not plan.steps and plan.outputs[0].whole


def test_a_computed_base_that_is_updated_twice_is_stored_before() -> None:
    """Whoever updates part of a value needs its memory, even where all it reads of it could be computed again."""
    plan = check_plan("""
graph f(%x: f32[2, 12] arg "x", %b: f32[12] arg "b") {
  %0: f32[2, 12] = add(%x, %b)
  %1: f32[2, 6] = slice(%0) {dim=1, start=0, stop=6, step=1}
  %2: f32[2, 6] = add(%1, 1.0)
  %3: f32[2, 12] = update_slice(%0, %2) {starts=[0, 0], steps=[1, 1]}
  %4: f32[2, 6] = exp(%2)
  %5: f32[2, 12] = update_slice(%3, %4) {starts=[0, 0], steps=[1, 1]}
  %6: f32[2, 6] = slice(%5) {dim=1, start=6, stop=12, step=1}
  %7: f32[2, 6] = mul(%6, %4)
  return %7
}""")
    assert stored_sizes(plan)[0] == 24
