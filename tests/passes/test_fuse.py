"""Which ops become one kernel, and that the kernels compute the right thing."""

from __future__ import annotations

import pytest
import torch

from graphc.errors import LoweringError
from graphc.ir import parse
from graphc.passes.base import PassContext
from graphc.passes.pipeline import optimize
from graphc.passes.plan import make_plan
from graphc.program.plan import Plan
from tests.passes.planned import aten_calls, check_plan, gemms, kernel_calls


def planned(text: str, inputs: list[torch.Tensor] | None = None) -> Plan:
    """Expand composites, then plan and check."""
    graph = parse(text)
    optimize(graph, PassContext())
    return check_plan(graph, inputs)


def only_kernel(plan: Plan) -> str:
    assert len(plan.kernels) == len(kernel_calls(plan)) == 1, plan.kernels.keys()
    return str(next(iter(plan.kernels.values())))


def test_pointwise_chain_is_one_kernel_over_one_axis() -> None:
    plan = check_plan("""
graph f(%x: f32[6, 5, 4] arg "x", %y: f32[6, 5, 4] arg "y") {
  %0: f32[6, 5, 4] = mul(%x, 2.0)
  %1: f32[6, 5, 4] = exp(%y)
  %2: f32[6, 5, 4] = add(%0, %1)
  %3: f32[6, 5, 4] = tanh(%2)
  return %3
}""")
    text = only_kernel(plan)
    assert "axes(i0: 120 parallel)" in text
    assert "load x[i0]" in text and "store out[i0]" in text
    assert plan.stats["fused_ops"] == 4 and plan.arena_bytes == 0


def test_softmax_is_one_kernel() -> None:
    plan = planned("""
graph f(%x: f32[4, 3, 8] arg "x") {
  %0: f32[4, 3, 8] = softmax(%x) {dim=2}
  return %0
}""")
    text = only_kernel(plan)
    assert text.startswith("kernel softmax(") and "axes(i0: 12 parallel, r0: 8 row)" in text
    assert text.count("reduce") == 2 and text.count("load") == 1


def test_softmax_over_a_middle_dim() -> None:
    plan = planned("""
graph f(%x: f32[4, 8, 3] arg "x") {
  %0: f32[4, 8, 3] = softmax(%x) {dim=1}
  return %0
}""")
    assert "axes(i0: 4 parallel, i1: 3 parallel, r0: 8 row)" in only_kernel(plan)


def test_log_softmax_and_gather_need_no_stored_probabilities() -> None:
    plan = planned(
        """
graph f(%x: f32[16, 10] arg "x", %t: i64[16] arg "t") {
  %0: f32[16, 10] = log_softmax(%x) {dim=1}
  %1: i64[16, 1] = reshape(%t) {shape=[16, 1]}
  %2: f32[16, 1] = gather(%0, %1) {dim=1}
  %3: f32[16, 1] = neg(%2)
  return %3
}""",
        [torch.randn(16, 10), torch.randint(0, 10, (16,))],
    )
    text = only_kernel(plan)
    assert "axes(i0: 16 parallel, r0: 10 row)" in text


def test_bias_residual_layer_norm_is_one_kernel_with_two_results() -> None:
    plan = planned("""
graph f(%x: f32[4, 8, 16] arg "x", %b: f32[16] arg "b", %r: f32[4, 8, 16] arg "r", %w: f32[16] arg "w",
        %c: f32[16] arg "c") {
  %0: f32[4, 8, 16] = add(%x, %b)
  %1: f32[4, 8, 16] = add(%r, %0)
  %2: f32[4, 8, 16], %3: f32[4, 8, 1], %4: f32[4, 8, 1] = layer_norm(%1, %w, %c) {
    dims=1, eps=1e-05, weight=True, bias=True}
  return %1, %2
}""")
    text = only_kernel(plan)
    assert "axes(i0: 32 parallel, r0: 16 row)" in text and text.count("store") == 2


def test_statistics_and_normalised_batch_are_one_kernel() -> None:
    plan = check_plan("""
graph batch_norm(%x: f32[4, 3, 5, 2] arg "x", %w: f32[3] param "w", %m: f32[3] buffer "running_mean") {
  %0: f32[1, 3, 1, 1] = sum(%x) {dims=[0, 2, 3], keepdim=True}
  %1: f32[1, 3, 1, 1] = mul(%0, 0.025)
  %2: f32[4, 3, 5, 2] = sub(%x, %1)
  %3: f32[4, 3, 5, 2] = mul(%2, %2)
  %4: f32[3] = sum(%3) {dims=[0, 2, 3], keepdim=False}
  %5: f32[3] = rsqrt(%4)
  %6: f32[1, 3, 1, 1] = reshape(%5) {shape=[1, 3, 1, 1]}
  %7: f32[4, 3, 5, 2] = mul(%2, %6)
  %8: f32[1, 3, 1, 1] = reshape(%w) {shape=[1, 3, 1, 1]}
  %9: f32[4, 3, 5, 2] = mul(%7, %8)
  %10: f32[3] = mul(%m, 0.9)
  %11: f32[3] = reshape(%1) {shape=[3]}
  %12: f32[3] = mul(%11, 0.1)
  %13: f32[3] = add(%10, %12)
  write %m <- %13
  return %9
}""")
    text = only_kernel(plan)
    assert "axes(i0: 3 parallel, r0: 4 row, r1: 10 row)" in text
    assert plan.written == (2,) and plan.arena_bytes == 0


def test_group_norm_cuts_the_channel_axis_and_is_one_kernel() -> None:
    plan = planned("""
graph group_norm(%x: f32[2, 6, 5] arg "x", %w: f32[6] param "w") {
  %0: f32[2, 3, 10] = reshape(%x) {shape=[2, 3, 10]}
  %1: f32[2, 3, 1] = sum(%0) {dims=[2], keepdim=True}
  %2: f32[2, 3, 10] = sub(%0, %1)
  %3: f32[2, 6, 5] = reshape(%2) {shape=[2, 6, 5]}
  %4: f32[6, 1] = reshape(%w) {shape=[6, 1]}
  %5: f32[2, 6, 5] = mul(%3, %4)
  return %5
}""")
    assert "axes(i0: 2 parallel, i1: 3 parallel, r0: 2 row, r1: 5 row)" in only_kernel(plan)


def test_gates_of_a_recurrent_cell_are_one_kernel() -> None:
    plan = check_plan("""
graph cell(%g: f32[4, 32] arg "g", %b: f32[32] arg "b", %c: f32[4, 8] arg "c") {
  %0: f32[4, 32] = add(%g, %b)
  %1: f32[4, 32] = sin(%0)
  %2: f32[4, 8] = slice(%1) {dim=1, start=0, stop=8, step=1}
  %3: f32[4, 8] = slice(%1) {dim=1, start=8, stop=16, step=1}
  %4: f32[4, 8] = slice(%1) {dim=1, start=16, stop=24, step=1}
  %5: f32[4, 8] = slice(%1) {dim=1, start=24, stop=32, step=1}
  %6: f32[4, 8] = mul(%2, %c)
  %7: f32[4, 8] = mul(%3, %4)
  %8: f32[4, 8] = add(%6, %7)
  %9: f32[4, 8] = tanh(%8)
  %10: f32[4, 8] = mul(%5, %9)
  return %8, %10
}""")
    assert only_kernel(plan).count(" sin ") == 4 and plan.arena_bytes == 0


def test_reductions_over_the_same_axes_share_a_kernel() -> None:
    plan = check_plan("""
graph f(%x: f32[64, 32] arg "x", %y: f32[64, 32] arg "y") {
  %0: f32[32] = sum(%x) {dims=[0], keepdim=False}
  %1: f32[64, 32] = mul(%x, %y)
  %2: f32[32] = sum(%1) {dims=[0], keepdim=False}
  return %0, %2
}""")
    assert only_kernel(plan).count("reduce sum") == 2


def test_reductions_over_different_axes_do_not() -> None:
    plan = check_plan("""
graph f(%x: f32[64, 32] arg "x") {
  %0: f32[32] = sum(%x) {dims=[0], keepdim=False}
  %1: f32[64] = sum(%x) {dims=[1], keepdim=False}
  return %0, %1
}""")
    assert len(kernel_calls(plan)) == 2


def test_full_reduction_with_scalar_epilogue() -> None:
    plan = check_plan(
        """
graph mean(%x: f32[12, 5] arg "x") {
  %0: f32[] = sum(%x) {dims=[0, 1], keepdim=False}
  %1: f32[] = div(%0, 60.0)
  %2: f32[] = sqrt(%1)
  return %1, %2
}""",
        [torch.rand(12, 5)],
    )
    text = only_kernel(plan)
    assert "axes(r0: 60 row)" in text and text.count("store") == 2


def test_long_rows_that_are_few_are_not_walked_again_by_one_worker() -> None:
    plan = check_plan("""
graph f(%x: f32[200000] arg "x") {
  %0: f32[] = sum(%x) {dims=[0], keepdim=False}
  %1: f32[200000] = div(%x, %0)
  return %1
}""")
    assert len(kernel_calls(plan)) == 2


def test_short_ones_are() -> None:
    plan = check_plan("""
graph f(%x: f32[2000] arg "x") {
  %0: f32[] = amax(%x) {dims=[0], keepdim=False}
  %1: f32[2000] = sub(%x, %0)
  return %1
}""")
    assert len(kernel_calls(plan)) == 1


@pytest.mark.parametrize("backend, squared, kernels", [("triton", "%2", 1), ("triton", "%x", 2), ("c", "%2", 2)])
def test_mean_and_variance_of_few_long_rows(backend: str, squared: str, kernels: int) -> None:
    """Triton's kernels add up both in one pass; anything else that waits for the mean takes another one."""
    graph = parse(f"""
graph f(%x: f32[3, 200000] arg "x") {{
  %0: f32[3, 1] = sum(%x) {{dims=[1], keepdim=True}}
  %1: f32[3, 1] = div(%0, 200000.0)
  %2: f32[3, 200000] = sub(%x, %1)
  %3: f32[3, 200000] = mul(%2, {squared})
  %4: f32[3] = sum(%3) {{dims=[1], keepdim=False}}
  %5: f32[3] = rsqrt(%4)
  %6: f32[3] = reshape(%1) {{shape=[3]}}
  return %5, %6
}}""")
    assert len(kernel_calls(make_plan(graph, backend=backend))) == kernels


def test_views_between_ops_are_index_arithmetic() -> None:
    plan = check_plan(
        """
graph f(%x: f32[4, 6] arg "x") {
  %0: f32[4, 6] = neg(%x)
  %1: f32[6, 4] = permute(%0) {dims=[1, 0]}
  %2: f32[3, 8] = reshape(%1) {shape=[3, 8]}
  %3: f32[3, 4] = slice(%2) {dim=1, start=1, stop=8, step=2}
  %4: f32[3, 4] = flip(%3) {dims=[0]}
  %5: f32[2, 3, 4] = expand(%4) {shape=[2, 3, 4]}
  %6: f32[2, 3, 4] = mul(%5, 3.0)
  return %6
}""",
        exact=True,
    )
    assert only_kernel(plan).count("load") == 1


def test_a_reshape_after_a_permute_cuts_axes_instead_of_dividing() -> None:
    plan = check_plan("""
graph f(%x: f32[2, 4, 8, 16] arg "x") {
  %0: f32[2, 8, 4, 16] = permute(%x) {dims=[0, 2, 1, 3]}
  %1: f32[2, 8, 64] = reshape(%0) {shape=[2, 8, 64]}
  %2: f32[2, 8, 64] = exp(%1)
  return %2
}""")
    text = only_kernel(plan)
    assert "//" not in text and "%" not in text
    assert "axes(i0: 2 parallel, i1: 8 parallel, i2: 4 parallel, i3: 16 parallel)" in text


def test_cheap_values_are_computed_again_and_expensive_ones_stored() -> None:
    text = """
graph f(%x: f32[64, 48] arg "x") {{
  %0: f32[64, 48] = {op}(%x)
  %1: f32[48] = sum(%0) {{dims=[0], keepdim=False}}
  %2: f32[64] = sum(%0) {{dims=[1], keepdim=False}}
  return %1, %2
}}"""
    cheap, dear = check_plan(text.format(op="neg")), check_plan(text.format(op="exp"))
    assert cheap.stats["kernel_calls"] == 2 and cheap.arena_bytes == 0
    assert sum(str(kernel).count(" exp ") for kernel in dear.kernels.values()) == 1
    assert dear.arena_bytes > 0


def test_masks_and_constants_are_never_stored() -> None:
    plan = check_plan("""
graph causal(%x: f32[2, 6, 6] arg "x") {
  %0: i64[6] = iota() {size=6, start=0, step=1, dtype=i64, device="cpu"}
  %1: i64[6, 1] = reshape(%0) {shape=[6, 1]}
  %2: bool[6, 6] = le(%0, %1)
  %3: f32[2, 6, 6] = where(%2, %x, -inf)
  %4: f32[2, 6, 6] = where(%2, %x, 0.0)
  %5: f32[2, 6] = amax(%3) {dims=[2], keepdim=False}
  return %5, %4
}""")
    assert len(kernel_calls(plan)) == 1 and plan.arena_bytes == 0


def test_scan_with_prologue_and_epilogue() -> None:
    plan = check_plan("""
graph f(%x: f64[3, 7, 5] arg "x") {
  %0: f64[3, 7, 5] = mul(%x, 0.5)
  %1: f64[3, 7, 5] = cumsum(%0) {dim=1}
  %2: f64[3, 7, 5] = add(%1, 1.0)
  return %2
}""")
    text = only_kernel(plan)
    assert "scan sum" in text and "axes(i0: 3 parallel, i1: 5 parallel, r0: 7 row)" in text


def test_scan_read_at_other_places_is_stored() -> None:
    plan = check_plan("""
graph f(%x: f64[3, 7] arg "x") {
  %0: f64[3, 7] = cumsum(%x) {dim=1}
  %1: f64[3, 7] = flip(%0) {dims=[1]}
  %2: f64[3, 7] = add(%1, 1.0)
  return %2
}""")
    assert len(kernel_calls(plan)) == 2


@pytest.mark.parametrize("dim", ["0", "1", "None"])
def test_argmax(dim: str) -> None:
    result = "[4, 9]" if dim == "1" else "[3, 9]" if dim == "0" else "[]"
    shape = {"0": "f32[4, 3, 9]", "1": "f32[4, 3, 9]", "None": "f32[4, 3, 9]"}[dim]
    result = {"0": "[3, 9]", "1": "[4, 9]", "None": "[]"}[dim]
    plan = check_plan(f"""
graph f(%x: {shape} arg "x") {{
  %0: i64{result} = argmax(%x) {{dim={dim}, keepdim=False}}
  return %0
}}""")
    assert "reduce argmax" in only_kernel(plan)


def test_pad_and_concat_are_masked_reads() -> None:
    plan = check_plan(
        """
graph f(%x: f32[4, 5] arg "x", %y: f32[4, 3] arg "y") {
  %0: f32[4, 8] = concat(%x, %y) {dim=1}
  %1: f32[6, 8] = pad(%0) {low=[1, 0], high=[1, 0], value=-1.0}
  %2: f32[6, 8] = relu(%1)
  return %2
}""".replace("relu(%1)", "maximum(%1, 0.0)"),
        exact=True,
    )
    assert only_kernel(plan).count("mask") >= 2


def test_reduction_of_a_concat() -> None:
    plan = check_plan("""
graph f(%x: f32[4, 5] arg "x", %y: f32[4, 3] arg "y") {
  %0: f32[4, 1] = sum(%x) {dims=[1], keepdim=True}
  %1: f32[4, 4] = concat(%0, %y) {dim=1}
  %2: f32[4] = amax(%1) {dims=[1], keepdim=False}
  return %2
}""")
    assert len(kernel_calls(plan)) == 2  # a reduction is never computed under a mask


def test_pieces_of_a_long_concat_are_stored_by_the_kernels_that_make_them() -> None:
    lines = "".join(
        f"  %a{n}: f32[4, 4] = matmul(%{f'b{n - 1}' if n else 'x'}, %w)\n  %b{n}: f32[4, 4] = tanh(%a{n})\n"
        f"  %c{n}: f32[1, 4, 4] = reshape(%b{n}) {{shape=[1, 4, 4]}}\n"
        for n in range(12)
    )
    pieces = ", ".join(f"%c{n}" for n in reversed(range(12)))
    plan = check_plan(
        f'graph rnn(%x: f32[4, 4] arg "x", %w: f32[4, 4] arg "w") {{\n{lines}'
        f"  %y: f32[12, 4, 4] = concat({pieces}) {{dim=0}}\n  return %y\n}}"
    )
    assert len(kernel_calls(plan)) == 12 and len(plan.kernels) <= 2 and plan.arena_bytes == 128


def test_pieces_of_a_big_concat_are_copied_one_by_one() -> None:
    plan = check_plan("""
graph cache(%p: f32[2, 63, 64] arg "past", %n: f32[2, 1, 64] arg "new", %q: f32[2, 64, 1] arg "q") {
  %0: f32[2, 64, 64] = concat(%p, %n) {dim=1}
  %1: f32[2, 64, 1] = matmul(%0, %q)
  return %1
}""")
    assert len(kernel_calls(plan)) == 2 and "mask" not in "".join(map(str, plan.kernels.values()))


def test_embedding_with_positions_and_norm() -> None:
    plan = check_plan(
        """
graph f(%w: f32[11, 6] param "wte", %p: f32[8, 6] param "wpe", %i: i64[2, 8] arg "ids") {
  %0: f32[2, 8, 6] = take(%w, %i) {dim=0}
  %1: i64[8] = iota() {size=8, start=0, step=1, dtype=i64, device="cpu"}
  %2: f32[8, 6] = take(%p, %1) {dim=0}
  %3: f32[2, 8, 6] = add(%0, %2)
  %4: f32[2, 8] = sum(%3) {dims=[2], keepdim=False}
  return %3, %4
}""",
        [torch.randn(11, 6), torch.randn(8, 6), torch.randint(0, 11, (2, 8))],
    )
    text = only_kernel(plan)
    assert text.count("minimum") == 1  # the counted positions need no bounds check


def test_matmul_flattens_batches_and_takes_transposed_weights_as_they_are() -> None:
    plan = check_plan("""
graph linear(%x: f32[2, 5, 6] arg "x", %w: f32[7, 6] param "w", %b: f32[7] param "b") {
  %0: f32[6, 7] = permute(%w) {dims=[1, 0]}
  %1: f32[2, 5, 7] = matmul(%x, %0)
  %2: f32[2, 5, 7] = add(%1, %b)
  return %2
}""")
    (gemm,) = gemms(plan)
    assert gemm.a.shape == (10, 6) and gemm.b.strides == (1, 6) and gemm.out.shape == (10, 7)
    assert len(kernel_calls(plan)) == 1


def test_attention_by_hand_copies_no_operand() -> None:
    plan = check_plan("""
graph attention(%x: f32[2, 5, 24] arg "x") {
  %0: f32[2, 5, 8] = slice(%x) {dim=2, start=0, stop=8, step=1}
  %1: f32[2, 5, 2, 4] = reshape(%0) {shape=[2, 5, 2, 4]}
  %2: f32[2, 2, 5, 4] = permute(%1) {dims=[0, 2, 1, 3]}
  %3: f32[4, 5, 4] = reshape(%2) {shape=[4, 5, 4]}
  %4: f32[2, 5, 8] = slice(%x) {dim=2, start=8, stop=16, step=1}
  %5: f32[2, 5, 2, 4] = reshape(%4) {shape=[2, 5, 2, 4]}
  %6: f32[2, 2, 4, 5] = permute(%5) {dims=[0, 2, 3, 1]}
  %7: f32[4, 4, 5] = reshape(%6) {shape=[4, 4, 5]}
  %8: f32[4, 5, 5] = matmul(%3, %7)
  %9: f32[2, 2, 5, 5] = reshape(%8) {shape=[2, 2, 5, 5]}
  %10: f32[2, 2, 5, 5] = exp(%9)
  %11: f32[2, 5, 8] = slice(%x) {dim=2, start=16, stop=24, step=1}
  %12: f32[2, 5, 2, 4] = reshape(%11) {shape=[2, 5, 2, 4]}
  %13: f32[2, 2, 5, 4] = permute(%12) {dims=[0, 2, 1, 3]}
  %14: f32[4, 5, 4] = reshape(%13) {shape=[4, 5, 4]}
  %15: f32[4, 5, 5] = reshape(%10) {shape=[4, 5, 5]}
  %16: f32[4, 5, 4] = matmul(%15, %14)
  %17: f32[2, 2, 5, 4] = reshape(%16) {shape=[2, 2, 5, 4]}
  %18: f32[2, 5, 2, 4] = permute(%17) {dims=[0, 2, 1, 3]}
  %19: f32[2, 5, 8] = reshape(%18) {shape=[2, 5, 8]}
  %20: f32[2, 5, 8] = neg(%19)
  return %20
}""")
    assert len(kernel_calls(plan)) == 2
    assert "axes(i0: 80 parallel)" in str(plan.kernels[kernel_calls(plan)[-1]])


def test_product_over_nothing_is_zero() -> None:
    plan = check_plan("""
graph f(%x: f32[3, 0] arg "x", %y: f32[0, 2] arg "y") {
  %0: f32[3, 2] = matmul(%x, %y)
  return %0
}""")
    assert not gemms(plan) and len(kernel_calls(plan)) == 1


def test_convolution_is_a_call_with_a_fused_epilogue() -> None:
    plan = check_plan("""
graph conv(%x: f32[2, 3, 8, 8] arg "x", %w: f32[4, 3, 3, 3] param "w", %b: f32[4] param "b") {
  %0: f32[2, 4, 6, 6] = convolution(%x, %w, %b) {
    stride=[1, 1], padding=[0, 0], dilation=[1, 1], transposed=False, output_padding=[0, 0], groups=1, bias=True}
  %1: f32[2, 4, 6, 6] = maximum(%0, 0.0)
  return %1
}""")
    assert aten_calls(plan) == ["aten.convolution.default"] and len(kernel_calls(plan)) == 1
    assert plan.stats["extern"] == {"aten.convolution.default": 1}


def test_same_structure_is_one_kernel_at_any_depth() -> None:
    lines = [
        f"  %a{n}: f32[4, 8] = matmul(%{'x' if n == 0 else f'c{n - 1}'}, %w{n})\n"
        f"  %b{n}: f32[4, 8] = add(%a{n}, %v{n})\n  %c{n}: f32[4, 8] = tanh(%b{n})\n"
        for n in range(6)
    ]
    weights = ", ".join(f'%w{n}: f32[8, 8] param "w{n}", %v{n}: f32[8] param "v{n}"' for n in range(6))
    plan = check_plan(f'graph deep(%x: f32[4, 8] arg "x", {weights}) {{\n{"".join(lines)}  return %c5\n}}')
    assert len(plan.kernels) == 1 and len(kernel_calls(plan)) == 6


def test_slices_at_different_places_share_a_kernel() -> None:
    lines = "".join(
        f"  %a{n}: f32[3, 8] = slice(%x) {{dim=1, start={8 * n}, stop={8 * n + 8}, step=1}}\n"
        f"  %b{n}: f32[3, 8] = exp(%a{n})\n  %m{n}: f32[3, 3] = matmul(%b{n}, %w)\n"
        for n in range(4)
    )
    plan = check_plan(
        f'graph steps(%x: f32[3, 32] arg "x", %w: f32[8, 3] arg "w") {{\n{lines}  return %m0, %m1, %m2, %m3\n}}'
    )
    assert len(plan.kernels) == 1 and len(kernel_calls(plan)) == 4


def test_a_thousand_ops_in_a_chain() -> None:
    lines = "".join(f"  %{n}: f32[32] = {'sin' if n % 2 else 'neg'}(%{n - 1 if n else 'x'})\n" for n in range(1000))
    plan = check_plan(f'graph chain(%x: f32[32] arg "x") {{\n{lines}  return %999\n}}')
    assert 2 <= len(kernel_calls(plan)) <= 4


def test_many_operands_are_cut_into_several_kernels() -> None:
    inputs = ", ".join(f'%x{n}: f32[16] arg "x{n}"' for n in range(150))
    lines = "".join(f"  %{n}: f32[16] = add(%{n - 1 if n > 1 else 'x0'}, %x{n})\n" for n in range(1, 150))
    plan = check_plan(f"graph total({inputs}) {{\n{lines}  return %149\n}}")
    assert max(len(kernel.buffers) for kernel in plan.kernels.values()) <= 50


def test_bf16_is_widened_once_and_rounded_once() -> None:
    text = """
graph f(%x: bf16[4, 8] arg "x", %y: bf16[4, 8] arg "y") {
  %0: bf16[4, 8] = add(%x, %y)
  %1: bf16[4, 8] = mul(%0, 3.0)
  %2: bf16[4] = sum(%1) {dims=[1], keepdim=False}
  return %2
}"""
    kernel = only_kernel(check_plan(text))
    assert kernel.count("bf16 = cast") == 1
    eager = only_kernel(check_plan(text, numerics="eager", exact=True))
    assert eager.count("bf16 = cast") == 3


def test_explicit_casts_always_round() -> None:
    plan = check_plan(
        """
graph f(%x: f32[64] arg "x") {
  %0: f16[64] = cast(%x) {dtype=f16}
  %1: f32[64] = cast(%0) {dtype=f32}
  %2: f32[64] = mul(%1, 70000.0)
  return %2
}""",
        exact=True,
    )
    assert "f16 = cast" in only_kernel(plan)


def test_complex_views_are_calls() -> None:
    plan = check_plan(
        """
graph f(%x: c64[4, 6] arg "x") {
  %0: c64[6, 4] = permute(%x) {dims=[1, 0]}
  %1: c64[24] = reshape(%0) {shape=[24]}
  return %1
}""",
        [torch.randn(4, 6, dtype=torch.complex64)],
    )
    assert not kernel_calls(plan) and len(aten_calls(plan)) == 2


def test_an_op_that_nothing_can_do_is_named() -> None:
    graph = parse("""
graph f(%x: c64[4] arg "x") {
  %0: c64[4] = flip(%x) {dims=[0]}
  %1: c64[4] = cummax_values(%0) {dim=0}
  return %1
}""")
    with pytest.raises(LoweringError, match=r"cummax_values on .* neither a lowering nor a library call"):
        make_plan(graph)
