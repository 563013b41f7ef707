"""Matrix products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Op, Operand, Ref, Value
from graphc.ir.types import TensorType
from graphc.ops import rules
from graphc.ops.registry import AtenCall, Kind, OpDef, register


def _infer_matmul(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("matmul", attrs, ())
    rules.check_count("matmul", operands, 2)
    kinds = ("float", "int", "uint")
    a, b = rules.tensor("matmul", operands, 0, kinds).type, rules.tensor("matmul", operands, 1, kinds).type
    if a.dtype != b.dtype or a.device != b.device:
        rules.fail("matmul", f"{a} and {b} differ in dtype or device")
    if a.rank < 2 or b.rank < 2:
        rules.fail("matmul", f"{a} and {b} must have two dims or more")
    if a.shape[-1] != b.shape[-2]:
        rules.fail("matmul", f"{a} has rows of {a.shape[-1]}, {b} columns of {b.shape[-2]}")
    batch = rules.broadcast("matmul", [a.shape[:-2], b.shape[:-2]])
    return (TensorType(a.dtype, (*batch, a.shape[-2], b.shape[-1]), a.device),)


def _flops(op: Op) -> Dim:
    a = op.operands[0]
    assert isinstance(a, Value)
    return op.results[0].type.numel * a.type.shape[-1] * 2


def _call(op: Op) -> AtenCall:
    return "aten.matmul.default", (Ref(0), Ref(1)), {}


register(
    OpDef(
        "matmul", Kind.CONTRACTION,
        "(..., m, k) x (..., k, n) -> (..., m, n), leading dims broadcast. bf16 and f16 accumulate in f32.",
        _infer_matmul, torch.matmul, call=_call, flops=_flops,
    )
)  # fmt: skip
