"""What type rules, references and lowerings of the families share: checks, broadcasting, index arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NoReturn

import torch

from graphc.errors import InvalidGraphError
from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Op, Operand, Value
from graphc.ir.types import HOST, DType, TensorType, bool_, contiguous_strides, f64, i64
from graphc.ops.registry import ElementContext, LoopValue

Shape = tuple[Dim, ...]
HOST_DTYPES = (f64, i64, bool_)


def fail(op: str, reason: str) -> NoReturn:
    """Refuse an op.

    Raises:
        InvalidGraphError: always.
    """
    raise InvalidGraphError(f"{op}: {reason}")


def check_attrs(op: str, attrs: Mapping[str, Attr], required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Refuse missing and unknown attributes."""
    for name in required:
        if name not in attrs:
            fail(op, f"attribute {name!r} is missing")
    if len(attrs) > len(required):
        for name in attrs:
            if name not in required and name not in optional:
                fail(op, f"unknown attribute {name!r}; it takes {', '.join((*required, *optional)) or 'none'}")


def check_count(op: str, operands: Sequence[Operand], count: int) -> None:
    """Refuse another number of operands than `count`."""
    if len(operands) != count:
        fail(op, f"takes {count} operand{'s' if count != 1 else ''}, got {len(operands)}")


def tensor(op: str, operands: Sequence[Operand], position: int, kinds: Sequence[str] = ()) -> Value:
    """The operand at `position`, which must be a tensor (not a number, not a host scalar) of one of the dtype kinds."""
    value = operands[position]
    if not isinstance(value, Value):
        fail(op, f"operand {position} must be a tensor, got the number {value!r}")
    if value.type.device == HOST:
        fail(op, f"operand {position} must be a tensor, got the host scalar %{value.name}; use to_tensor")
    if kinds and value.type.dtype.kind not in kinds:
        fail(op, f"operand {position} is {value.type.dtype.name}; it takes {', '.join(kinds)}")
    return value


def only_tensor(op: str, operands: Sequence[Operand], kinds: Sequence[str] = ()) -> Value:
    """The single operand, which must be a tensor."""
    check_count(op, operands, 1)
    return tensor(op, operands, 0, kinds)


def check_dim(op: str, dim: Attr, rank: int, name: str = "dim") -> int:
    """A dim number in `[0, rank)`; graphs hold no negative ones."""
    if isinstance(dim, bool) or not isinstance(dim, int) or not 0 <= dim < rank:
        fail(op, f"{name}={dim!r} must be an int in [0, {rank})")
    return dim


def check_dims(op: str, dims: Attr, rank: int) -> tuple[int, ...]:
    """A strictly ascending tuple of dim numbers in `[0, rank)`."""
    if not isinstance(dims, tuple):
        fail(op, f"dims={dims!r} must be a tuple of ints")
    for dim in dims:
        check_dim(op, dim, rank, "dims entry")
    if list(dims) != sorted(set(dims)):
        fail(op, f"dims={dims!r} must be ascending, without repeats")
    return dims


def check_shape(op: str, shape: Attr, name: str = "shape") -> Shape:
    """A tuple of sizes, none negative."""
    if not isinstance(shape, tuple):
        fail(op, f"{name}={shape!r} must be a tuple of sizes")
    for size in shape:
        if isinstance(size, int) and (isinstance(size, bool) or size < 0):
            fail(op, f"{name}={shape!r} has the size {size!r}")
    return shape


def check_dtype(op: str, dtype: Attr) -> DType:
    """The `dtype` attribute."""
    if not isinstance(dtype, DType):
        fail(op, f"dtype={dtype!r} must be a dtype such as f32")
    return dtype


def broadcast(op: str, shapes: Iterable[Shape]) -> Shape:
    """The common shape of operands under numpy's broadcasting rule."""
    result: Shape = ()
    for shape in shapes:
        if shape == result:
            continue
        longer, shorter = (shape, result) if len(shape) >= len(result) else (result, shape)
        if not shorter:
            result = longer
            continue
        lead = len(longer) - len(shorter)
        merged = list(longer)
        for i, size in enumerate(shorter):
            other = merged[lead + i]
            if size == other or size == 1:
                continue
            if other != 1:
                fail(op, f"shapes {text(result)} and {text(shape)} do not broadcast together")
            merged[lead + i] = size
        result = tuple(merged)
    return result


def common_device(op: str, values: Sequence[Value]) -> str:
    """The device of a result: 0-d cpu tensors and host scalars may mix with tensors elsewhere."""
    first = values[0].type.device
    for value in values:
        if value.type.device != first:
            break
    else:
        return first
    found = ""
    for value in values:
        device = value.type.device
        if device == HOST or (device == "cpu" and not value.type.shape):
            continue
        if found and device != found:
            fail(op, f"operands are on {found} and {device}")
        found = device
    return found or "cpu"


def text(shape: Shape) -> str:
    """A shape as messages print it."""
    return f"[{', '.join(map(str, shape))}]"


# lowering


def broadcast_index(operand: Value, index: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Index of the operand's element that a broadcast reads at `index` of the result."""
    shape = operand.type.shape
    if not shape:
        return ()
    lead = len(index) - len(shape)
    return tuple(0 if size == 1 else index[lead + i] for i, size in enumerate(shape))


def operand_element(ctx: ElementContext, operand: Operand, index: tuple[Dim, ...], dtype: DType) -> LoopValue:
    """A pointwise operand at `index` of the result, in the compute dtype of `dtype`; numbers become constants."""
    compute = dtype.compute
    if not isinstance(operand, Value):
        return ctx.constant(operand, compute)  # type: ignore[arg-type]  # no complex pointwise op exists
    value = ctx.element(operand, broadcast_index(operand, index))
    return value if operand.type.dtype.compute == compute else ctx.compute("cast", value, dtype=compute)


def flatten_index(index: Sequence[Dim], shape: Shape) -> Dim:
    """Position of `index` in the row-major flattening of `shape`."""
    flat: Dim = 0
    for position, stride, size in zip(index, contiguous_strides(shape), shape, strict=True):
        if size != 1:
            flat = flat + position * stride
    return flat


def unflatten_index(flat: Dim, shape: Shape) -> tuple[Dim, ...]:
    """The index of element number `flat` of the row-major flattening of `shape`."""
    result: list[Dim] = []
    outermost = True
    for size, stride in zip(shape, contiguous_strides(shape), strict=True):
        if size == 1:
            result.append(0)
            continue
        position = flat // stride
        result.append(position if outermost else position % (size if size != 0 else 1))
        outermost = False
    return tuple(result)


def in_range(ctx: ElementContext, position: Dim, low: Dim | None, high: Dim | None) -> LoopValue | None:
    """A bool value for `low <= position < high`; None for a bound = not checked; None when nothing is."""
    found: list[LoopValue] = []
    if low is not None:
        found.append(ctx.compute("ge", ctx.index_value(position), ctx.index_value(low), dtype=bool_))
    if high is not None:
        found.append(ctx.compute("lt", ctx.index_value(position), ctx.index_value(high), dtype=bool_))
    return all_of(ctx, found)


def all_of(ctx: ElementContext, conditions: Iterable[LoopValue | None]) -> LoopValue | None:
    """The conjunction of conditions, None ones left out; None when none is left."""
    result: LoopValue | None = None
    for condition in conditions:
        if condition is not None:
            result = condition if result is None else ctx.compute("logical_and", result, condition, dtype=bool_)
    return result


# references


@cache
def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch dtype of a graph dtype."""
    found = getattr(torch, dtype.torch_name)
    assert isinstance(found, torch.dtype)
    return found


def in_compute_dtype(fn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A reference that computes bf16 and f16 operands in f32 and rounds the result once, as kernels do."""

    def reference(x: torch.Tensor, **attrs: Any) -> torch.Tensor:
        if x.dtype in (torch.bfloat16, torch.float16):
            result = fn(x.float(), **attrs)
            return result.to(x.dtype) if result.dtype == torch.float32 else result
        return fn(x, **attrs)

    return reference


def operand_numel(op: Op) -> Dim:
    """Elements of operand 0: the flops of a reduction."""
    operand = op.operands[0]
    return operand.type.numel if isinstance(operand, Value) else 0


def same_type(value: Value) -> tuple[TensorType]:
    return (value.type,)
