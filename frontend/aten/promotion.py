"""torch's dtype promotion on graph dtypes.

Source of the algorithm: `at::native::result_type` (tensors with dims, then 0-d tensors, then numbers).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch

from graphc.errors import UnsupportedError
from graphc.ir.graph import Operand, Value
from graphc.ir.sizes import real
from graphc.ir.types import BY_TORCH_NAME, DType, bool_, i64


@cache
def from_torch(dtype: torch.dtype) -> DType:
    """The graph dtype of a torch dtype.

    Raises:
        UnsupportedError: graphs have no such dtype (quantized and sub-byte ones).
    """
    name = str(dtype).removeprefix("torch.")
    if name not in BY_TORCH_NAME:
        raise UnsupportedError(f"tensors of dtype {dtype} are not supported; run this part with graphc.eager()")
    return BY_TORCH_NAME[name]


@cache
def to_torch(dtype: DType) -> torch.dtype:
    """The torch dtype of a graph dtype."""
    found = getattr(torch, dtype.torch_name)
    assert isinstance(found, torch.dtype)
    return found


@cache
def promote_types(a: DType, b: DType) -> DType:
    """`torch.promote_types`."""
    return a if a == b else from_torch(torch.promote_types(to_torch(a), to_torch(b)))


def number_dtype(value: bool | int | float | complex) -> DType:
    """The dtype a Python number promotes as: bool, i64, or the default float dtype and its complex."""
    if isinstance(value, bool):
        return bool_
    if isinstance(value, int):
        return i64
    default = torch.get_default_dtype()
    return from_torch(default if isinstance(value, float) else default.to_complex())


def common_dtype(args: Iterable[Operand]) -> DType:
    """`torch.result_type` of any number of tensors and numbers.

    Raises:
        ValueError: there are none.
    """
    dims: DType | None = None
    scalars: DType | None = None
    numbers: DType | None = None
    for arg in args:
        if not isinstance(arg, Value):
            numbers = _join(numbers, number_dtype(arg))
        elif arg.type.is_host:
            numbers = _join(numbers, arg.dtype if arg.dtype.is_integral else from_torch(torch.get_default_dtype()))
        elif arg.shape:
            dims = _join(dims, arg.dtype)
        else:
            scalars = _join(scalars, arg.dtype)
    result = _combine(dims, _combine(scalars, numbers))
    if result is None:
        raise ValueError("no operand to promote")
    return result


def _join(a: DType | None, b: DType) -> DType:
    return b if a is None else promote_types(a, b)


def _combine(higher: DType | None, lower: DType | None) -> DType | None:
    if higher is None or lower is None:
        return higher if lower is None else lower
    if higher.kind == "complex":
        return higher
    if higher.kind == "float":
        return from_torch(to_torch(higher).to_complex()) if lower.kind == "complex" else higher
    if higher.kind == "bool" or lower.kind in ("float", "complex"):
        return promote_types(higher, lower)
    return higher


def convert_number(value: bool | int | float | complex, dtype: DType) -> bool | int | float | complex:
    """A Python number as an operand beside tensors of `dtype`: of the Python type of the dtype where that is exact."""
    if dtype.kind == "float" and isinstance(value, (bool, int)):
        return real(value)
    if dtype.kind in ("int", "uint") and isinstance(value, bool):
        return int(value)
    if dtype.kind == "bool" and not isinstance(value, bool):
        return bool(value)
    return value
