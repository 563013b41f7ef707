"""What eager refuses in data: classes and messages of its errors, for kernels that check and references that raise.

An index is refused by the eager function that the user called, so an op that stands for several of them says in its
attribute `check` which one it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NoReturn

import torch

from graphc.errors import data_error
from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Op, Operand, Value
from graphc.ir.types import DType, bool_, i64
from graphc.ops import rules
from graphc.ops.registry import ElementContext, LoopValue


@dataclass(frozen=True)
class IndexCheck:
    """How one eager function takes indices.

    Args:
        error: name of the class it raises for one out of range; empty: the indices are known to be in range.
        message: with `{value}` for the index, `{dim}` and `{size}`.
        wraps: negative indices count from the end.
    """

    error: str
    message: str
    wraps: bool = False


_OUT_OF_BOUNDS = "index {value} is out of bounds for dimension {dim} with size {size}"

INDEX_CHECKS: dict[str, IndexCheck] = {
    "index": IndexCheck("IndexError", _OUT_OF_BOUNDS, wraps=True),
    "take": IndexCheck(
        "IndexError", "out of range: tried to access index {value} on a tensor of {size} elements.", wraps=True
    ),
    "embedding": IndexCheck("IndexError", "index out of range in self"),
    "index_select": IndexCheck("RuntimeError", "INDICES element is out of DATA bounds, id={value} axis_dim={size}"),
    "gather": IndexCheck("RuntimeError", _OUT_OF_BOUNDS),
    "index_copy": IndexCheck("IndexError", f"index_copy_(): {_OUT_OF_BOUNDS}"),
    "target": IndexCheck("IndexError", "Target {value} is out of bounds."),
    "none": IndexCheck("", "", wraps=True),
    "inside": IndexCheck("", ""),
}
"""By the attribute `check`. `embedding` stands for index_select along all dims but 1 too, `target` for class labels,
`inside` for indices that a program computes itself."""


def check_name(op: str, check: Attr) -> None:
    """Refuse an attribute `check` that is none of `INDEX_CHECKS`."""
    if check not in INDEX_CHECKS:
        rules.fail(op, f"check={check!r} is none of {', '.join(INDEX_CHECKS)}")


def data_index(
    ctx: ElementContext, indices: Operand, at: tuple[Dim, ...], extent: Dim, check: str, dim: int = 0
) -> Dim:
    """Element `at` of an integer tensor as an index into a dim of size `extent`.

    One that is outside has the program raise; until then it is moved to the nearest valid index, so that memory outside
    the tensor is never touched.

    Args:
        check: which of `INDEX_CHECKS`.
        dim: number of the dim in the message.
    """
    rule = INDEX_CHECKS[check]
    given = ctx.element(indices, at)
    if isinstance(indices, Value) and indices.type.dtype != i64:
        given = ctx.compute("cast", given, dtype=i64)
    zero, last = ctx.constant(0, i64), ctx.index_value(extent - 1)
    value = given
    if rule.wraps:
        negative = ctx.compute("lt", given, zero, dtype=bool_)
        value = ctx.compute(
            "where", negative, ctx.compute("add", given, ctx.index_value(extent), dtype=i64), given, dtype=i64
        )
    valid = ctx.compute("minimum", ctx.compute("maximum", value, zero, dtype=i64), last, dtype=i64)
    looks_up = not isinstance(indices, Value) or 0 not in indices.shape  # else there is nothing that could be outside
    if rule.error and valid != value and looks_up:
        failed = ctx.compute("ne", value, valid, dtype=bool_)
        ctx.check(failed, given, rule.error, _of_dim(rule, dim, extent))
    return ctx.data_index(valid, extent)


def _of_dim(rule: IndexCheck, dim: int, size: Dim) -> str:
    return rule.message.replace("{dim}", str(dim)).replace("{size}", str(size))


def checked_indices(indices: torch.Tensor, size: int, check: str, dim: int = 0) -> torch.Tensor:
    """The same for references: indices as i64, negative ones wrapped.

    Raises:
        IndexError, RuntimeError: the first one out of range, as in eager.
    """
    rule = INDEX_CHECKS[check]
    given = indices.long()
    wrapped = torch.where(given < 0, given + size, given) if rule.wraps else given
    outside = (wrapped < 0) | (wrapped >= size)
    if rule.error and bool(outside.any()):
        value = int(given[outside].reshape(-1)[0].item())
        raise_error(rule.error, _of_dim(rule, dim, size), value)
    return wrapped


def raise_error(error: str, message: str, value: int) -> NoReturn:
    """Raise a class by its name, with a value in its message."""
    raise data_error(error)(message.replace("{value}", str(value)))


def nonzero(ctx: ElementContext, divisor: Operand, value: LoopValue, dtype: DType, on_host: bool) -> None:
    """Check an integer divisor, or any divisor of Python numbers, as eager does.

    Args:
        divisor: the operand; a number needs no check unless it is 0.
        value: its element, of `dtype`.
        on_host: Python divides, not ATen.
    """
    if isinstance(divisor, Value) or divisor == 0:
        failed = ctx.compute("eq", value, ctx.constant(0, dtype), dtype=bool_)
        error, message = ("ZeroDivisionError", "division by zero") if on_host else ("RuntimeError", "ZeroDivisionError")
        ctx.check(failed, ctx.constant(0, i64), error, message)


DIVISIONS = frozenset(("div", "floordiv", "truncdiv", "remainder", "fmod"))
"""Ops that divide."""


def divides(op: Op, dtype: DType) -> bool:
    """Whether a division of operands of this dtype raises for a divisor of 0."""
    return op.name in DIVISIONS and (op.results[0].type.is_host or (dtype.is_integral and op.name != "div"))


def may_refuse(op: Op) -> bool:
    """Whether a kernel that computes this op may find data that eager refuses."""
    if op.name == "checked":
        return True
    if op.name in _INDEXED:
        return bool(INDEX_CHECKS[op.attrs.get("check", _INDEXED[op.name])].error)
    if op.name not in DIVISIONS:
        return False
    divisor = op.operands[1]
    zero = isinstance(divisor, Value) or divisor == 0
    return zero and divides(op, divisor.type.dtype if isinstance(divisor, Value) else op.results[0].type.dtype)


_INDEXED = {"gather": "gather", "take": "index", "index": "index", "scatter": "gather", "put": "index"}
"""Ops that read or write at places that are data, with the `check` they make where they name none."""


@cache
def bce_checks_targets() -> bool:
    """Whether this torch's binary_cross_entropy refuses targets outside [0, 1]; not all versions do."""
    try:
        torch.nn.functional.binary_cross_entropy(torch.tensor(0.5), torch.tensor(2.0))
    except RuntimeError:
        return True
    return False
