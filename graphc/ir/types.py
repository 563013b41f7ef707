"""Types of graph IR values: dtypes, tensor types, source locations. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graphc.ir.dims import Dim


@dataclass(frozen=True)
class DType:
    """An element type.

    Args:
        name: short name as printed in the IR (`f32`).
        torch_name: attribute of `torch` that names it (`float32`).
        itemsize: bytes per element.
        kind: one of `float`, `int`, `uint`, `bool`, `complex`.
    """

    name: str
    torch_name: str = field(compare=False)
    itemsize: int = field(compare=False)
    kind: str = field(compare=False)

    def __repr__(self) -> str:
        return self.name

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integral(self) -> bool:
        """True for signed and unsigned integers and bool."""
        return self.kind in ("int", "uint", "bool")

    @property
    def is_reduced(self) -> bool:
        """True for floats narrower than 32 bits, whose arithmetic is done in f32."""
        return self.kind == "float" and self.itemsize < 4

    @property
    def compute(self) -> DType:
        """The dtype in which arithmetic on this one is done (f32 for reduced floats, else itself)."""
        return f32 if self.is_reduced else self


f64 = DType("f64", "float64", 8, "float")
f32 = DType("f32", "float32", 4, "float")
f16 = DType("f16", "float16", 2, "float")
bf16 = DType("bf16", "bfloat16", 2, "float")
i64 = DType("i64", "int64", 8, "int")
i32 = DType("i32", "int32", 4, "int")
i16 = DType("i16", "int16", 2, "int")
i8 = DType("i8", "int8", 1, "int")
u8 = DType("u8", "uint8", 1, "uint")
u16 = DType("u16", "uint16", 2, "uint")
u32 = DType("u32", "uint32", 4, "uint")
u64 = DType("u64", "uint64", 8, "uint")
bool_ = DType("bool", "bool", 1, "bool")
c64 = DType("c64", "complex64", 8, "complex")
c128 = DType("c128", "complex128", 16, "complex")
c32 = DType("c32", "complex32", 4, "complex")
f8e4m3fn = DType("f8e4m3fn", "float8_e4m3fn", 1, "float")
f8e5m2 = DType("f8e5m2", "float8_e5m2", 1, "float")

FLOAT8 = frozenset((f8e4m3fn, f8e5m2))
"""Floats that kernels multiply as matrices, and do nothing else with."""

DTYPES: dict[str, DType] = {
    d.name: d
    for d in (
        f64, f32, f16, bf16, i64, i32, i16, i8, u8, u16, u32, u64, bool_, c64, c128, c32, f8e4m3fn, f8e5m2,
    )
}  # fmt: skip
BY_TORCH_NAME: dict[str, DType] = {d.torch_name: d for d in DTYPES.values()}

UNFAILED = -(1 << 63)
"""What the i64 cell of a check of data holds as long as nothing has failed it."""

HOST = "host"
"""The pseudo-device of Python scalars: `.item()` results and scalar inputs. Such values have shape ()."""


@dataclass(frozen=True)
class TensorType:
    """`dtype[shape]` on a device. Values have no strides: layout belongs to buffers.

    Args:
        dtype: element type.
        shape: sizes, ints or symbolic dims.
        device: a device as torch writes it, with its number unless it is `cpu`, or `HOST` for Python scalars.
    """

    dtype: DType
    shape: tuple[Dim, ...]
    device: str = "cpu"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_host(self) -> bool:
        return self.device == HOST

    @property
    def numel(self) -> Dim:
        total: Dim = 1
        for size in self.shape:
            total = total * size
        return total

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape, self.device)

    def with_shape(self, shape: tuple[Dim, ...]) -> TensorType:
        return TensorType(self.dtype, tuple(shape), self.device)

    def __str__(self) -> str:
        text = f"{self.dtype.name}[{', '.join(str(size) for size in self.shape)}]"
        return text if self.device == "cpu" else f"{text}@{self.device}"


def contiguous_strides(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Row-major strides in elements, as torch gives them (a size of 0 counts as 1)."""
    strides: list[Dim] = []
    step: Dim = 1
    for size in reversed(shape):
        strides.append(step)
        step = step * (size if not isinstance(size, int) or size > 0 else 1)
    return tuple(reversed(strides))


def channels_last_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of `memory_format=torch.channels_last` (4 dims) or `channels_last_3d` (5 dims), in elements."""
    strides, step = [0] * len(shape), 1
    for dim in (1, *range(len(shape) - 1, 1, -1), 0):
        strides[dim] = step
        step *= shape[dim]
    return tuple(strides)


@dataclass(frozen=True)
class Location:
    """Where in the user's program an op comes from.

    Args:
        file: source file as Python names it; empty when unknown.
        line: 1-based line; 0 when unknown.
        function: qualified or plain name of the user's function.
        module: path of the nn.Module in which the op ran (`blocks.3.fc1`), or empty.
    """

    file: str = ""
    line: int = 0
    function: str = ""
    module: str = ""

    def __bool__(self) -> bool:
        return self.line > 0


UNKNOWN = Location()
