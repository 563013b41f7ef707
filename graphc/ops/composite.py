"""What the families of composite ops share: type checks, computing in a wide dtype, and reductions of losses.

A composite op of reduced floats (bf16, f16) is expanded as: cast up, compute in f32, cast down once at the end. So it
rounds where eager's own kernels round, whether or not the expansion ends in one generated kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphc.errors import InvalidGraphError
from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Builder, Operand, Value
from graphc.ir.sizes import Size
from graphc.ir.types import DType, TensorType, channels_last_strides, i64

REDUCTIONS = ("none", "mean", "sum")
"""The `reduction` attribute of losses; the position is ATen's number."""


def tensor(operand: Operand, op: str) -> Value:
    """`operand` as a tensor.

    Raises:
        InvalidGraphError: it is a literal.
    """
    if not isinstance(operand, Value):
        raise InvalidGraphError(f"{op} takes tensors, got the literal {operand!r}")
    return operand


def floating(operand: Operand, op: str) -> Value:
    """`operand` as a tensor of floats.

    Raises:
        InvalidGraphError: it is a literal or of another dtype.
    """
    value = tensor(operand, op)
    if not value.dtype.is_float:
        raise InvalidGraphError(f"{op} takes floats, got {value.type}")
    return value


def same_floats(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    """Type rule: the result is like operand 0, a tensor of floats."""
    return [floating(operands[0], "the op").type]


def same_numbers(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    """Type rule: the result is like operand 0, a tensor of floats or integers."""
    value = tensor(operands[0], "the op")
    if value.dtype.kind in ("bool", "complex"):
        raise InvalidGraphError(f"the op takes floats or integers, got {value.type}")
    return [value.type]


def static(sizes: Sequence[Dim], op: str) -> tuple[int, ...]:
    """Sizes as numbers.

    Raises:
        InvalidGraphError: one is symbolic.
    """
    if not all(isinstance(size, int) for size in sizes):
        raise InvalidGraphError(f"{op} needs static sizes, got {sizes}")
    return tuple(size for size in sizes if isinstance(size, int))


def wide(builder: Builder, value: Value) -> Value:
    """`value` in the dtype arithmetic is done in: reduced floats are cast to f32."""
    return value if value.dtype.compute == value.dtype else builder.op("cast", value, dtype=value.dtype.compute)


def cast(builder: Builder, value: Value, dtype: DType) -> Value:
    """`value` as `dtype`; the value itself when it is that already."""
    return value if value.dtype == dtype else builder.op("cast", value, dtype=dtype)


def reshape(builder: Builder, value: Value, shape: Sequence[Dim]) -> Value:
    """`value` with another shape; the value itself when it has that already."""
    return value if value.shape == tuple(shape) else builder.op("reshape", value, shape=tuple(shape))


def expand_to(builder: Builder, value: Value, shape: Sequence[Dim]) -> Value:
    """`value` broadcast to `shape`; the value itself when it has that already."""
    return value if value.shape == tuple(shape) else builder.op("expand", value, shape=tuple(shape))


def cut(builder: Builder, value: Value, dim: int, start: int, stop: int) -> Value:
    """Elements `start:stop` along a dim; the value itself when these are all."""
    if start == 0 and stop == value.shape[dim]:
        return value
    return builder.op("slice", value, dim=dim, start=start, stop=stop, step=1)


def lay_out_like(value: Value, image: Value) -> None:
    """Have a value between others lie with its channels side by side if the image that is made of it does."""
    if is_channels_last(image) and value.type.rank == 4:
        value.strides = channels_last_strides(value.shape)  # type: ignore[arg-type]  # static


def is_channels_last(value: Value) -> bool:
    """Whether an image lies with its channels side by side."""
    return value.type.rank == 4 and value.strides is not None and value.strides == channels_last_strides(value.shape)  # type: ignore[arg-type]


def product(sizes: Sequence[Dim]) -> Dim:
    """The number of elements of a shape."""
    total: Dim = 1
    for size in sizes:
        total = total * size
    return total


def mean(builder: Builder, value: Value, dims: tuple[int, ...]) -> Value:
    """Mean over `dims`, kept as size 1, as a sum and one division (0/0 = NaN over nothing, as in eager)."""
    total = builder.op("sum", value, dims=dims, keepdim=True)
    return builder.op("div", total, as_count(builder, product([value.shape[d] for d in dims]), total))


def as_count(builder: Builder, count: Dim, like: Value) -> Operand:
    """A number of elements as a float literal, or as a scalar of the dtype of `like` when it is symbolic."""
    if isinstance(count, int):
        return count if type(count) is Size else float(count)
    size = builder.op("full", shape=(), dtype=i64, value=count, device=like.device)
    return builder.op("cast", size, dtype=like.dtype)


def all_dims(value: Value) -> tuple[int, ...]:
    return tuple(range(value.type.rank))


def reduce_loss(builder: Builder, loss: Value, reduction: str) -> Value:
    """A loss per element as it is, its mean or its sum over all elements."""
    if reduction == "none":
        return loss
    total = builder.op("sum", loss, dims=all_dims(loss), keepdim=False) if loss.shape else loss
    if reduction == "sum":
        return total
    return builder.op("div", total, as_count(builder, loss.type.numel, total))


def reduced_type(shape: tuple[Dim, ...], like: TensorType, reduction: str) -> TensorType:
    """Type of a loss with the elements `shape`.

    Raises:
        InvalidGraphError: no such reduction.
    """
    if reduction not in REDUCTIONS:
        raise InvalidGraphError(f"reduction is one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    return like.with_shape(shape if reduction == "none" else ())
