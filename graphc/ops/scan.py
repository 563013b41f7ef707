"""Running reductions along one dim."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Op, Operand, Ref
from graphc.ir.types import TensorType
from graphc.ops import rules
from graphc.ops.registry import (
    AtenCall,
    CallRule,
    ElementContext,
    Kind,
    LoopValue,
    LowerRule,
    OpDef,
    TypeRule,
    register,
)


def _infer(name: str) -> TypeRule:
    def infer(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
        rules.check_attrs(name, attrs, ("dim",))
        value = rules.only_tensor(name, operands, ("float", "int", "uint"))
        rules.check_dim(name, attrs["dim"], value.type.rank)
        return (value.type,)

    return infer


def _lower(loop_op: str) -> LowerRule:
    def lower(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
        return ctx.scan(loop_op, op.operands[0], op.attrs["dim"], index, op.results[0].type.dtype.compute)

    return lower


def _call(name: str) -> CallRule:
    def call(op: Op) -> AtenCall:
        return f"aten.{name}.default", (Ref(0), op.attrs["dim"]), {"dtype": op.results[0].type.dtype}

    return call


def _register_all() -> None:
    def of(fn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return rules.in_compute_dtype(lambda x, dim: fn(x, dim, dtype=x.dtype))

    for name, loop_op, reference, call, doc in (
        ("cumsum", "sum", of(torch.cumsum), _call("cumsum"), "Running sum."),
        ("cumprod", "prod", of(torch.cumprod), _call("cumprod"), "Running product."),
        ("cummax_values", "max", lambda x, dim: torch.cummax(x, dim).values, None, "Running maximum; NaN stays."),
        ("cummin_values", "min", lambda x, dim: torch.cummin(x, dim).values, None, "Running minimum; NaN stays."),
    ):
        register(
            OpDef(
                name, Kind.SCAN, f"{doc} dim: along which.", _infer(name), reference,
                lower=_lower(loop_op), call=call, flops=rules.operand_numel,
            )
        )  # fmt: skip


_register_all()
