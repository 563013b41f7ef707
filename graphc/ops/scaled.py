"""Products of matrices of 8-bit floats, whose scales are numbers of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Op, Operand, Ref, Value
from graphc.ir.types import FLOAT8, TensorType, bf16, f16, f32
from graphc.ops import rules
from graphc.ops.contraction import flops
from graphc.ops.registry import AtenCall, ElementContext, Kind, LoopValue, OpDef, register

NAME = "scaled_matmul"


def _infer(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs(NAME, attrs, ("dtype", "fast"))
    if len(operands) not in (4, 5):
        rules.fail(NAME, f"takes 4 or 5 operands, not {len(operands)}")
    a, b, *others = (rules.tensor(NAME, operands, number, ("float",)).type for number in range(len(operands)))
    dtype = rules.check_dtype(NAME, attrs["dtype"])
    if a.dtype not in FLOAT8 or b.dtype not in FLOAT8 or dtype not in (bf16, f16, f32):
        rules.fail(NAME, f"does not multiply {a} by {b} to {dtype.name}")
    if a.rank != 2 or b.rank != 2 or a.shape[1] != b.shape[0]:
        rules.fail(NAME, f"{a} and {b} are no matrices that follow each other")
    shape = (a.shape[0], b.shape[1])
    whole, parts = [(1, 1), (1, 1)], [(shape[0], 1), (1, shape[1])]
    if [item.shape for item in others[:2]] not in (whole, parts) or any(item.dtype != f32 for item in others[:2]):
        rules.fail(NAME, f"{others[0]} and {others[1]} are scales neither of matrices nor of rows and columns")
    if others[2:] and (others[2].shape != shape[1:] or others[2].dtype != dtype):
        rules.fail(NAME, f"{others[2]} cannot be added to {dtype.name}{rules.text(shape)}")
    return (TensorType(dtype, shape, a.device),)


def _reference(
    a: torch.Tensor, b: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor, bias: torch.Tensor | None = None,
    *, dtype: object, fast: bool,
) -> torch.Tensor:  # fmt: skip
    result = (a.float() @ b.float()) * (scale_a * scale_b)
    if bias is not None:
        result = result + bias.float()
    return result.to(rules.torch_dtype(dtype))


def _call(op: Op) -> AtenCall:
    bias = Ref(4) if len(op.operands) == 5 else None
    options = {"out_dtype": op.attrs["dtype"], "use_fast_accum": op.attrs["fast"]}
    return "aten._scaled_mm.default", (Ref(0), Ref(1), Ref(2), Ref(3), bias), options


def _contract(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    a, b, scale_a, scale_b, *bias = (operand for operand in op.operands if isinstance(operand, Value))
    row, column = index
    product = ctx.contract(a, (1, (row,)), b, (0, (column,)))
    scales = [ctx.element(scale, rules.broadcast_index(scale, index)) for scale in (scale_a, scale_b)]
    product = ctx.compute("mul", product, ctx.compute("mul", *scales, dtype=f32), dtype=f32)
    if bias:
        product = ctx.compute("add", product, ctx.element(bias[0], (column,)), dtype=f32)
    return product


register(
    OpDef(
        NAME, Kind.CONTRACTION,
        "(m, k) x (k, n) of 8-bit floats, times operands 2 and 3: f32 scales, both (1, 1), or (m, 1) and (1, n); "
        "plus operand 4 if there is one, (n). dtype: of the result. fast: the library may add up with fewer bits.",
        _infer, _reference, call=_call, flops=flops, contract=_contract,
    )
)  # fmt: skip
