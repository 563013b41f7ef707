"""Products of matrices group by group, as mixtures of experts have them: rows that follow each other share a factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Op, Operand, Ref, Value
from graphc.ir.types import TensorType, bool_, i32, i64
from graphc.ops import rules
from graphc.ops.registry import AtenCall, ElementContext, Kind, LoopValue, OpDef, register

NAME = "grouped_matmul"
ALIGNMENT = 16
"""Bytes: rows that lie side by side begin at multiples of it, or columns do; what the library's call takes."""


def _infer(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs(NAME, attrs, ())
    if len(operands) not in (3, 4):
        rules.fail(NAME, f"takes 3 or 4 operands, not {len(operands)}")
    a, b = (rules.tensor(NAME, operands, number, ("float",)).type for number in (0, 1))
    offsets = rules.tensor(NAME, operands, 2, ("int",)).type
    if a.dtype != b.dtype or a.device != b.device:
        rules.fail(NAME, f"{a} and {b} differ in dtype or device")
    if (a.rank, b.rank) not in ((2, 3), (2, 2)) or offsets.rank != 1 or offsets.dtype != i32:
        rules.fail(NAME, f"multiplies no {a} by {b} in groups that end at {offsets}")
    if a.shape[1] != b.shape[-2]:
        rules.fail(NAME, f"{a} has rows of {a.shape[1]}, {b} columns of {b.shape[-2]}")
    if b.rank == 3 and b.shape[0] != offsets.shape[0]:
        rules.fail(NAME, f"{offsets} does not say where the groups of {b} end")
    if len(operands) == 4:
        groups = rules.tensor(NAME, operands, 3, ("int",)).type
        if b.rank != 3 or groups.shape != (a.shape[0],) or groups.dtype != i64:
            rules.fail(NAME, f"{groups} does not say to which group each row of {a} belongs")
    shape = (a.shape[0], b.shape[2]) if b.rank == 3 else (*offsets.shape, a.shape[0], b.shape[1])
    return (TensorType(a.dtype, shape, a.device),)


def _reference(a: torch.Tensor, b: torch.Tensor, offsets: torch.Tensor, groups: torch.Tensor | None = None) -> object:
    ends = offsets.tolist()
    bounds = list(zip([0, *ends], ends))
    if b.ndim == 2:
        return torch.stack([a[:, start:end] @ b[start:end] for start, end in bounds])
    result = a.new_zeros(a.shape[0], b.shape[2])
    for matrix, (start, end) in zip(b, bounds, strict=True):
        result[start:end] = a[start:end] @ matrix
    return result


def _flops(op: Op) -> Dim:
    a, b = (operand for operand in op.operands[:2] if isinstance(operand, Value))
    return a.type.numel * b.type.shape[-1] * 2


def _call(op: Op) -> AtenCall:
    return "aten._grouped_mm.default", (Ref(0), Ref(1), Ref(2)), {}


def _contract(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    a, b = (operand for operand in op.operands[:2] if isinstance(operand, Value))
    return _row_of_group(ctx, op, a, b, index) if b.type.rank == 3 else _sum_of_group(ctx, op, a, b, index)


def _row_of_group(ctx: ElementContext, op: Op, a: Value, b: Value, index: tuple[Dim, ...]) -> LoopValue:
    """A row times the matrix of its group, which is loaded; 0 for rows behind the last group."""
    row, column = index
    count = b.shape[0]
    assert isinstance(count, int) and len(op.operands) == 4
    group = ctx.element(op.operands[3], (row,))
    last = ctx.constant(count - 1, i64)
    matrix = ctx.data_index(ctx.compute("minimum", group, last, dtype=i64), count)
    product = ctx.contract(a, (1, (row,)), b, (1, (matrix, column)))
    is_in_group = ctx.compute("le", group, last, dtype=bool_)
    dtype = a.dtype.compute
    return ctx.compute("where", is_in_group, product, ctx.constant(0.0, dtype), dtype=dtype)


def _sum_of_group(ctx: ElementContext, op: Op, a: Value, b: Value, index: tuple[Dim, ...]) -> LoopValue:
    """A sum over the positions of one group."""
    group, row, column = index
    before = rules.in_range(ctx, group, 1, None)
    start = ctx.constant(0, i64)
    if before is not None:
        start = ctx.masked_element(op.operands[2], (group - 1,), before, 0)
        start = ctx.compute("cast", start, dtype=i64)
    end = ctx.compute("cast", ctx.element(op.operands[2], (group,)), dtype=i64)
    return ctx.contract(a, (1, (row,)), b, (0, (column,)), (start, end))


register(
    OpDef(
        NAME, Kind.CONTRACTION,
        "(t, k) x (g, k, n) -> (t, n): each row times the matrix of its group, zeros behind the last group; or "
        "(m, t) x (t, n) -> (g, m, n): a sum over each group. Operand 2 says where along t groups end, i32[g]. "
        "Operand 3, which kernels need in the first form: the group of each row, i64[t], g behind the last one.",
        _infer, _reference, call=_call, flops=_flops, contract=_contract,
    )
)  # fmt: skip
