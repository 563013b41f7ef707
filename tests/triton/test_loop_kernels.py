"""Which loops over time are one kernel, and what their machine code looks like on four chips."""

from __future__ import annotations

import re

import pytest
import torch

from graphc.codegen.triton.loop_kernels import fits
from graphc.codegen.triton.program import with_loop_kernels
from graphc.program.loops import LoopStep
from graphc.report.static_kernels import launches_of
from graphc.runtime.triton_cross import TARGETS, compile_for
from graphc.settings import override
from tests.triton.loops import (
    LanguageModel,
    language_data,
    language_step,
    lstm_by_hand,
    mixing,
    operands,
    placed,
    rows,
    training,
)
from tests.triton.test_attention import compiles
from tests.triton.test_products import assembly


def test_rows_go_through_a_loop_by_themselves() -> None:
    assert rows(placed(lstm_by_hand, *operands(9, 16, 7, 64))) == [16]
    assert rows(placed(mixing, *operands(9, 16, 7, 64))) == [0]
    with override(templates="never"):
        assert rows(placed(lstm_by_hand, *operands(9, 16, 7, 64))) == [0]


def test_carries_may_lie_here_and_there_in_memory_of_others() -> None:
    """Results that are not stored yet lend theirs, in which the rows of two carries begin at other places."""
    torch.manual_seed(0)
    step = language_step(LanguageModel(33278, 200, 200))
    assert rows(placed(step, *language_data(35, 20, 33278, 200))) == [20, 20]


def test_a_loop_is_one_launch() -> None:
    plan = placed(lstm_by_hand, *operands(50, 16, 7, 64))
    assert launches_of(plan) == {"launches": 2, "library": 1}  # zeros, and the loop; the projected inputs


def test_weights_have_to_fit() -> None:
    """128 KiB of them do on an H100 and not on an MI300X, 256 KiB nowhere."""
    for hidden, dtype, targets in (
        (128, torch.bfloat16, ["cuda:80", "cuda:90", "cuda:100"]),
        (128, torch.float32, []),
        (64, torch.float32, ["cuda:80", "cuda:90", "cuda:100", "hip:gfx942"]),
    ):
        plan = placed(lstm_by_hand, *operands(9, 16, 7, hidden, dtype))
        (loop,) = [step for step in plan.steps if isinstance(step, LoopStep)]
        assert [target for target in TARGETS if fits(loop, target)] == targets


@compiles
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_machine_code(dtype: torch.dtype, target: str) -> None:
    plan = placed(lstm_by_hand, *operands(20, 64, 32, 64, dtype))
    _, loops = with_loop_kernels(plan, target)
    ((_, kernel),) = loops.items()
    (compiled,) = compile_for(kernel, target)
    assert compiled.spills == 0
    text = assembly(compiled)
    if target.startswith("cuda"):
        assert "bar.sync" in text
        assert bool(re.search(r"mma\.sync|wgmma|tcgen05", text)) == (dtype is torch.bfloat16)
        assert max(compiled.loads) == 16  # bytes


@compiles
def test_gradients_compile() -> None:
    torch.manual_seed(0)
    for kind in (torch.nn.GRU, torch.nn.LSTM):
        plan = placed(training(kind(32, 64)), torch.randn(20, 16, 32))
        _, loops = with_loop_kernels(plan, "cuda:90")
        assert len(loops) == 2
        for kernel in loops.values():
            assert all(compiled.spills == 0 for compiled in compile_for(kernel, "cuda:90"))
