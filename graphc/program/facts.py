"""What guards ask of tables and tensors, as records: the frontend writes them, native code can check them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, eq=False)
class EntryFact:
    """`table[key]` is this very object.

    Args:
        table: a dict, whose subscript runs no Python code.
        key: a string.
        item: the object expected there.
    """

    table: dict[Any, Any]
    key: str
    item: Any


@dataclass(frozen=True, eq=False)
class TensorFact:
    """Metadata of one tensor.

    Args:
        tensor: the tensor when it is the same in every call, None when it is an argument.
        cls: its Python type, subclasses not included.
        keys: its dispatch key set as a number.
        dtype, device: torch's own objects.
        shape, strides: in elements; a size is -1 where it does not matter, and a stride, see `stride_facts`.
        requires_grad: None where that does not matter because grad mode is off.
    """

    tensor: Any
    cls: type
    keys: int
    dtype: Any
    device: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool | None


def stride_facts(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The strides a program depends on, -1 for the others.

    Nothing is found in memory by the stride of a dim of size 1, or by any stride of an empty tensor. Of four and five
    dims torch reads the memory format of results off all strides, so all of those are facts.
    """
    if len(shape) in (4, 5):
        return tuple(strides)
    empty = 0 in shape
    return tuple(-1 if empty or size == 1 else stride for size, stride in zip(shape, strides, strict=True))


FactCheck: TypeAlias = Callable[[tuple[Any, ...]], int]
"""Given the tensors among the arguments: 1 when all facts hold and all tensors are different objects, else 0."""

FactChecker: TypeAlias = Callable[[Sequence[EntryFact], Sequence[TensorFact]], FactCheck | None]
"""Makes a check of facts, those of arguments first; None where it cannot be done."""
