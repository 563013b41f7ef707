"""What is watched for in all launches is found: programs that meet in memory, and accesses outside of it."""

from __future__ import annotations

import torch

from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiling import Limits, choose_tiling
from graphc.loopir.parser import parse_kernel
from graphc.program.triton_kernel import Launch, TritonKernel
from graphc.runtime.triton_launcher import InterpretedKernel
from tests.triton.interpreted.conftest import WRONG

SCALED = parse_kernel("""
kernel scaled(w: in f32[4], x: in f32[32768], out: out f32[4], y: out f32[32768]) axes(i0: 4 parallel, r0: 8192 row) {
  v0: f32 = load w[i0]
  v1: f32 = load x[i0*8192 + r0]
  v2: f32 = reduce sum v1
  v3: f32 = add v0 v2
  v4: f32 = sub v1 v2
  v5: f32 = mul v4 v0
  store out[i0] = v3
  store y[i0*8192 + r0] = v5
}
""")
TEXT = """\
import triton
import triton.language as tl


@triton.jit
def shift(x_ptr, y_ptr, BLOCK: tl.constexpr):
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    BODY
"""


def found(body: str, *tensors: torch.Tensor) -> list[str]:
    """What is wrong with four programs on eight elements each."""
    launch = Launch("shift", (4, 1, 1), (("BLOCK", 8),), 1)
    signature = (("x_ptr", "*fp32"), ("y_ptr", "*fp32"))
    InterpretedKernel(TritonKernel("shift", TEXT.replace("BODY", body), signature, (launch,)))(tensors)
    wrong = [*WRONG]
    WRONG.clear()
    return wrong


def test_one_program_loads_what_another_one_stores() -> None:
    x, y = torch.zeros(64), torch.zeros(64)
    moved = "tl.store(y_ptr + x, tl.load(x_ptr + x + 8))"
    assert found(moved, x, y) == []
    assert found(moved, x, x) == ["shift: a program loads what another one stores"]
    assert found("tl.store(y_ptr + x, tl.load(x_ptr + x) + 1)", x, x) == []  # each what it reads itself
    assert found("tl.store(y_ptr + x, tl.load(x_ptr + x + 8, mask=x < 0, other=0.0))", x, x) == []


def test_two_programs_store_to_one_place() -> None:
    x, y = torch.zeros(64), torch.zeros(64)
    assert found("tl.store(y_ptr + x // 16, tl.load(x_ptr + x))", x, y) == [
        "shift: a program stores what another one stores"
    ]
    assert found("tl.atomic_add(y_ptr + x // 16, tl.load(x_ptr + x))", x, y) == []
    assert found("tl.atomic_add(y_ptr + x // 16, tl.load(y_ptr + x))", x, y) == [
        "shift: a program loads what another one adds to"
    ]


def test_accesses_outside_of_memory() -> None:
    memory = torch.zeros(128)
    x, y = memory[:32].clone(), memory[64:96]
    assert found("tl.store(y_ptr + x, tl.load(x_ptr + x))", x, y) == []
    assert found("tl.store(y_ptr + x, tl.load(x_ptr + x + 1))", x, y) == [
        "shift: an access outside of the memory that it was handed"
    ]


def test_what_a_mask_hides_is_rubbish_unless_it_is_told() -> None:
    x, y = torch.ones(64), torch.zeros(64)
    assert found("tl.store(y_ptr + x, tl.load(x_ptr + x, mask=x < 8))", x, y) == []
    assert torch.equal(y[:8], x[:8]) and (y[8:32] != 0).all() and (y[8:32] != 1).all()
    assert found("tl.store(y_ptr + x, tl.load(x_ptr + x, mask=x < 8, other=2.0))", x, y) == []
    assert (y[8:32] == 2).all()
    # one number each: the interpreter itself drops an `other` that is 0
    assert found("tl.store(y_ptr + tl.program_id(0), tl.load(x_ptr, mask=tl.program_id(0) < 2, other=0.0))", x, y) == []
    assert y[:4].tolist() == [1, 1, 0, 0]
    assert found("tl.store(y_ptr + tl.program_id(0), tl.load(x_ptr, mask=tl.program_id(0) < 2))", x, y) == []
    assert y[:2].tolist() == [1, 1] and (y[2:4] != 0).all()


def test_a_row_that_programs_share_is_not_read_behind_its_update() -> None:
    limits = Limits(persistent=512, loop=256, fill=64, split=4)
    made = emit_kernel(SCALED, tiling=choose_tiling(SCALED, limits))
    assert [launch.grid for launch in made.launches] == [(4, 4, 1), (4, 4, 1)]
    w, x, y = torch.randn(4), torch.randn(4, 8192), torch.empty(4, 8192)
    InterpretedKernel(made)([w, x, torch.empty(4), y])
    assert not WRONG
    InterpretedKernel(made)([w, x, w, y])
    assert WRONG == ["scaled_pass2: a program loads what another one stores"]
    WRONG.clear()
