"""Checks and conversions of arguments that the rules of several families share."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from graphc.frontend.aten import promotion
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.registry import Decline, RuleFn
from graphc.ir.graph import Operand, Value
from graphc.ir.sizes import depends_on_sizes, real
from graphc.ir.types import DType, bf16, bool_, f16, f32, f64, i8, i16, i32, i64, u8

Number: TypeAlias = bool | int | float
SUPPORTED = frozenset(d.name for d in (f64, f32, f16, bf16, i64, i32, i16, i8, u8, bool_))
"""Names of the dtypes that generated kernels compute with; tensors of others are left to ATen."""

_INTEGER_BOUNDS = {d: (-(1 << 8 * d.itemsize - 1), (1 << 8 * d.itemsize - 1) - 1) for d in (i64, i32, i16, i8)} | {
    u8: (0, 255),
    bool_: (0, 1),
}
_F32_MAX = torch.finfo(torch.float32).max


def supported(*values: Operand | None) -> None:
    """Check that all are of dtypes kernels compute with.

    Raises:
        Decline: one is not.
    """
    for value in values:
        if isinstance(value, complex) or (isinstance(value, Value) and value.type.dtype.name not in SUPPORTED):
            raise Decline("a dtype kernels do not compute with")


def fitting(value: Number, dtype: DType) -> Number:
    """A Python number as an operand beside tensors of `dtype`.

    Raises:
        Decline: the dtype cannot hold it; eager raises or wraps.
    """
    if isinstance(value, complex):
        raise Decline("a complex number")
    if dtype.is_float and depends_on_sizes(value):
        return real(value) if isinstance(value, int) else value
    if dtype.is_float:
        if dtype.compute == f32 and math.isfinite(value) and abs(value) > _F32_MAX:
            raise Decline("a number beyond f32")
        return float(value)
    if isinstance(value, float):
        raise Decline("a float beside integers")
    low, high = _INTEGER_BOUNDS[dtype]
    if not low <= value <= high:
        raise Decline(f"a number beyond {dtype.name}")
    return value if depends_on_sizes(value) else bool(value) if dtype == bool_ else int(value)


def converted(imp: Importer, args: Sequence[Operand], dtype: DType) -> list[Operand]:
    """Operands of a pointwise op computed in `dtype`: tensors cast, numbers converted, traced numbers as they are."""
    if dtype.name not in SUPPORTED:
        raise Decline(f"arithmetic in {dtype.name}")
    result: list[Operand] = []
    for arg in args:
        if not isinstance(arg, Value):
            result.append(fitting(arg, dtype))  # type: ignore[arg-type]  # complex is declined there
            continue
        supported(arg)
        result.append(arg if arg.type.is_host else imp.cast(arg, dtype))
    return result


def numeric(imp: Importer, *args: Operand) -> list[Operand]:
    """Operands in the dtype `torch.result_type` gives.

    Raises:
        Decline: it is bool or one that kernels do not compute with.
    """
    dtype = promotion.common_dtype(args)
    if dtype == bool_:
        raise Decline("arithmetic on bools")
    return converted(imp, args, dtype)


def comparable(imp: Importer, *args: Operand) -> list[Operand]:
    """As `numeric`, bools allowed."""
    return converted(imp, args, promotion.common_dtype(args))


def floating(imp: Importer, *args: Operand) -> list[Operand]:
    """Operands in their common float dtype; integers and bools in the default one."""
    dtype = promotion.common_dtype(args)
    return converted(imp, args, promotion.from_torch(torch.get_default_dtype()) if dtype.is_integral else dtype)


def rounding_once(fn: RuleFn) -> RuleFn:
    """Let a rule that makes several ops compute bf16 and f16 in f32 and round the result, as eager's kernel does."""

    @functools.wraps(fn)
    def rule(imp: Importer, *args: Any, **kwargs: Any) -> Value:
        tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Value) and not arg.type.is_host]
        if not any(value.type.dtype.is_reduced for value in tensors):
            plain: Value = fn(imp, *args, **kwargs)
            return plain
        mark = len(imp.b.graph.ops)
        result: Value = fn(imp, *args, **kwargs)
        if len(imp.b.graph.ops) - mark <= 1:
            return result  # one op rounds once by itself, or not at all where kernels keep f32
        del imp.b.graph.ops[mark:]
        dtype = promotion.common_dtype(tensors)
        wide = {value: imp.cast(value, f32) for value in tensors if value.dtype.is_reduced}

        def widened(arg: Any) -> Any:
            return wide.get(arg, arg) if isinstance(arg, Value) else arg

        result = fn(imp, *map(widened, args), **{key: widened(arg) for key, arg in kwargs.items()})
        return imp.b.op("cast", result, dtype=dtype) if result.dtype == f32 else result

    return rule


def as_bool(imp: Importer, value: Value) -> Value:
    """Whether elements are not zero."""
    supported(value)
    if value.dtype == bool_:
        return value
    return imp.b.op("ne", value, 0.0 if value.dtype.is_float else 0)


def dtype_of(operands: Sequence[Operand]) -> DType:
    """Dtype of the tensors among the operands of a pointwise op."""
    values = [value for value in operands if isinstance(value, Value)]
    return next((value.dtype for value in values if not value.type.is_host), values[0].dtype)


def wrap_dim(dim: int, rank: int) -> int:
    """A dim counted from 0; a 0-d tensor has one dim for this purpose.

    Raises:
        Decline: there is no such dim; eager raises.
    """
    limit = max(rank, 1)
    if not -limit <= dim < limit:
        raise Decline("no such dim")
    return dim % limit


def wrap_dims(dims: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Dims to reduce over, ascending; None and an empty list mean all, and a 0-d tensor has none.

    Raises:
        Decline: one is wrong or repeated; eager raises.
    """
    if dims is None:
        return tuple(range(rank))
    listed = [dims] if isinstance(dims, int) else list(dims)
    if not listed:
        return tuple(range(rank))
    wrapped = sorted(wrap_dim(dim, rank) for dim in listed)
    if len(set(wrapped)) != len(wrapped):
        raise Decline("a repeated dim")
    return tuple(wrapped) if rank else ()


def is_number(value: object, number: float) -> bool:
    """A Python number equal to `number` (traced numbers are none)."""
    return not isinstance(value, Value) and value == number
