"""Products of 8-bit floats: type rule, reference, and what becomes of torch's calls."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graphc.ir import interpreter
from graphc.ir.types import DTYPES, DType, bf16, f16, f32
from graphc.loopir.numpy_ops import float8_to_float
from graphc.passes.plan import make_plan
from tests.ops.core import graph_of, random, refuses
from tests.ops.imports import CheckRules
from tests.plan_interpreter import run_plan
from tests.support import ONE_SCALE, SCALES_ROWS, assert_contract

E4, E5 = torch.float8_e4m3fn, torch.float8_e5m2
ONE = torch.full((1, 1), 0.5)


def matrices(
    rows: int, inner: int, columns: int, left: torch.dtype = E4, right: torch.dtype = E4
) -> list[torch.Tensor]:
    """Rows of the left matrix and columns of the right one lie side by side."""
    return [random((rows, inner)).to(left), random((columns, inner), seed=1).to(right).t()]


@pytest.mark.parametrize("dtype", [E4, E5], ids=str)
def test_the_oracle_knows_every_8_bit_float(dtype: torch.dtype) -> None:
    bits = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    found = float8_to_float(bits.numpy(), DTYPES["f8e4m3fn" if dtype == E4 else "f8e5m2"])
    np.testing.assert_array_equal(found, bits.view(dtype).float().numpy())


@pytest.mark.parametrize("kinds", [(E4, E4), (E4, E5), (E5, E4)], ids=str)
def test_scales_and_bias(kinds: tuple[torch.dtype, torch.dtype]) -> None:
    a, b = matrices(5, 32, 16, *kinds)
    for dtype in (bf16, f16, f32):
        _check(a, b, ONE, ONE * 3, dtype=dtype, fast=False)
    if not SCALES_ROWS:
        pytest.skip(ONE_SCALE)
    rows, columns = random((5, 1), seed=2), random((1, 16), seed=3)
    _check(a, b, rows, columns, random((16,), torch.bfloat16, seed=4), dtype=bf16, fast=True)


def _check(*operands: torch.Tensor, dtype: DType, fast: bool) -> None:
    """The reference, which is the meaning of the op, and eager; in 64 bits there is no such call."""
    graph, inputs = graph_of("scaled_matmul", operands, {"dtype": dtype, "fast": fast})
    (result,) = interpreter.run(graph, inputs)
    a, b, scale_a, scale_b, *bias = operands
    exact = a.double() @ b.double() * scale_a.double() * scale_b.double() + (bias[0].double() if bias else 0)
    out = getattr(torch, dtype.torch_name)
    eager = torch._scaled_mm(a, b, scale_a, scale_b, *bias, out_dtype=out, use_fast_accum=fast)
    assert_contract(result, eager, exact)
    (called,) = run_plan(make_plan(graph), inputs)
    assert torch.equal(called, eager)


def test_type_rule_refuses() -> None:
    a, b = matrices(5, 32, 16)
    refuses("scaled_matmul: does not multiply", "scaled_matmul", a.float(), b, ONE, ONE, dtype=bf16, fast=False)
    refuses("scaled_matmul: .* follow each other", "scaled_matmul", a, b.t(), ONE, ONE, dtype=bf16, fast=False)
    refuses("scaled_matmul: .* scales neither", "scaled_matmul", a, b, ONE[0], ONE, dtype=bf16, fast=False)
    bias = random((5,), torch.bfloat16)
    refuses("scaled_matmul: .* cannot be added", "scaled_matmul", a, b, ONE, ONE, bias, dtype=bf16, fast=False)


@pytest.mark.skipif(not SCALES_ROWS, reason=ONE_SCALE)
def test_calls_are_imported() -> None:
    a, b = matrices(5, 32, 16)
    rows, columns, bias = random((5, 1)), random((1, 16)), random((16,), torch.bfloat16)
    with CheckRules() as mode:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            torch._scaled_mm(a, b, ONE[0, 0], ONE[0], out_dtype=dtype)
        torch._scaled_mm(a, b, rows, columns, out_dtype=torch.bfloat16)
        torch._scaled_mm(a, b, ONE, ONE, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True)
    assert not mode.mistakes and mode.used["aten._scaled_mm.default"] == 5
    with CheckRules() as mode:
        torch._scaled_mm(a, b, ONE, ONE)  # 8 bits in the end
        torch._scaled_mm(a, b.contiguous(), ONE, ONE, out_dtype=torch.bfloat16)
        torch._scaled_mm(a[:, :20], b[:20], ONE, ONE, out_dtype=torch.bfloat16)
        torch._scaled_mm(a, b, rows, columns, out_dtype=torch.float32)
    assert not mode.mistakes and mode.declined["aten._scaled_mm.default"] == 4
