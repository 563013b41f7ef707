"""Matrix products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Op, Operand, Ref, Value
from graphc.ir.types import TensorType, i8, i32
from graphc.ops import rules
from graphc.ops.registry import AtenCall, ElementContext, Kind, LoopValue, OpDef, register


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


def flops(op: Op) -> Dim:
    a = op.operands[0]
    assert isinstance(a, Value)
    return op.results[0].type.numel * a.type.shape[-1] * 2


def _contract(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    a, b = (operand for operand in op.operands if isinstance(operand, Value))
    *batch, row, column = index
    return ctx.contract(
        a, (a.type.rank - 1, (*_batch_index(a, batch), row)), b, (b.type.rank - 2, (*_batch_index(b, batch), column))
    )


def _batch_index(operand: Value, batch: Sequence[Dim]) -> tuple[Dim, ...]:
    own = operand.shape[:-2]
    return tuple(0 if size == 1 else part for size, part in zip(own, batch[len(batch) - len(own) :], strict=True))


def _call(op: Op) -> AtenCall:
    return "aten.matmul.default", (Ref(0), Ref(1)), {}


register(
    OpDef(
        "matmul", Kind.CONTRACTION,
        "(..., m, k) x (..., k, n) -> (..., m, n), leading dims broadcast. bf16 and f16 accumulate in f32.",
        _infer_matmul, torch.matmul, call=_call, flops=flops, contract=_contract,
    )
)  # fmt: skip


def _infer_gemm(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("gemm", attrs, ("accumulate",))
    (found,) = _infer_matmul(operands[:2], {})
    shapes = [operand.shape for operand in operands if isinstance(operand, Value)]
    plain = len(shapes) == len(operands) and found.rank in (2, 3)
    if not plain or any(len(shape) != found.rank or shape[:-2] != found.shape[:-2] for shape in shapes[:2]):
        rules.fail("gemm", f"multiplies two matrices, or as many by as many, not {found}")
    if attrs["accumulate"] and (len(operands) < 3 or operands[2].type != found):  # type: ignore[union-attr]
        rules.fail("gemm", f"operand 2 must be what {found} is added to")
    return (found,)


def _gemm(a: torch.Tensor, b: torch.Tensor, *rest: torch.Tensor, accumulate: bool) -> torch.Tensor:
    if not accumulate:
        return torch.matmul(a, b)
    return (torch.addmm if a.dim() == 2 else torch.baddbmm)(rest[0], a, b)


def _gemm_call(op: Op) -> AtenCall:
    rank = op.result.type.rank
    if op.attrs["accumulate"]:
        return ("aten.addmm.default" if rank == 2 else "aten.baddbmm.default"), (Ref(2), Ref(0), Ref(1)), {}
    return ("aten.mm.default" if rank == 2 else "aten.bmm.default"), (Ref(0), Ref(1)), {}


register(
    OpDef(
        "gemm", Kind.CONTRACTION,
        "(m, k) x (k, n) -> (m, n), or as many such products, added to operand 2 in its own memory if accumulate. The "
        "operands that follow are not read: they are there to be computed before, which keeps the pieces of a large "
        "product apart in time.",
        _infer_gemm, _gemm, call=_gemm_call, flops=flops,
    )
)  # fmt: skip


def _infer_int_matmul(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    (found,) = _infer_matmul(operands, attrs)
    if found.rank != 2 or operands[0].type.dtype != i8:  # type: ignore[union-attr]
        rules.fail("int_matmul", f"multiplies two matrices of i8, not {found}")
    return (TensorType(i32, found.shape, found.device),)


def _int_contract(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    a, b = (operand for operand in op.operands if isinstance(operand, Value))
    return ctx.contract(a, (1, index[:1]), b, (0, index[1:]), dtype=i32)


register(
    OpDef(
        "int_matmul", Kind.CONTRACTION,
        "(m, k) x (k, n) -> (m, n) of i8, whose sums are i32 and exact but for what does not fit.",
        _infer_int_matmul, torch._int_mm,
        call=lambda op: ("aten._int_mm.default", (Ref(0), Ref(1)), {}), flops=flops, contract=_int_contract,
    )
)  # fmt: skip
