"""Where a value lies in memory, for the calls that care: values have no strides, but library calls may look at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Op, Operand
from graphc.ir.types import TensorType
from graphc.ops import rules
from graphc.ops.registry import ElementContext, Kind, LoopValue, OpDef, register


def _infer_copy(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("copy", attrs, ("strides",))
    value = rules.only_tensor("copy", operands)
    if not isinstance(attrs["strides"], tuple) or len(attrs["strides"]) != value.type.rank:
        rules.fail("copy", f"strides={attrs['strides']!r} must be a tuple of {value.type.rank} numbers")
    return (value.type,)


def _copy(x: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


def _lower_copy(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    return ctx.element(op.operands[0], index)


register(
    OpDef(
        "copy",
        Kind.POINTWISE,
        "The same elements in memory of their own with the given strides, for a library call that depends on them.",
        _infer_copy,
        _copy,
        lower=_lower_copy,
        flops=lambda op: 0,
    )
)
