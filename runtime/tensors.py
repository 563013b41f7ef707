"""What every kind of program does with torch tensors: views into buffers, strides, version counters."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch

from graphc.ir.types import DType


def torch_dtype(dtype: DType) -> torch.dtype:
    found = getattr(torch, dtype.torch_name)
    assert isinstance(found, torch.dtype)
    return found


def staged(words: np.ndarray[Any, np.dtype[Any]], device: torch.device) -> torch.Tensor:
    """Words in memory from which a device copies while the CPU goes on."""
    made = torch.from_numpy(words)
    return made if device.type == "cpu" else made.pin_memory()


def staged_bytes(data: ctypes.Array[Any], device: torch.device) -> torch.Tensor:
    """Bytes likewise."""
    size = ctypes.sizeof(data)
    made = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=device.type != "cpu")
    ctypes.memmove(made.data_ptr(), data, size)
    return made


EmptyStrided: TypeAlias = Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], torch.Tensor]


def _empty_strided() -> EmptyStrided:
    quick: Any = getattr(getattr(getattr(torch._C, "_dynamo", None), "guards", None), "_empty_strided_cpu", None)
    if quick is not None:
        found: EmptyStrided = quick
        return found
    like = {}

    def slow(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if dtype not in like:
            like[dtype] = torch.empty(0, dtype=dtype, device="cpu")
        return like[dtype].new_empty_strided(shape, strides)

    return slow


empty_strided = _empty_strided()
"""Fresh CPU memory `(shape, strides, dtype)`: torch's function for generated code, where it has that."""


def view_into(
    base: torch.Tensor, dtype: DType, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> torch.Tensor:
    """A view of `base`'s memory; `offset` counts from its first element, in elements of `dtype`."""
    wanted = torch_dtype(dtype)
    if offset == 0 and base.dtype is wanted and base.shape == shape and base.stride() == strides:
        return base
    if base.dtype is not wanted:
        start = base.storage_offset() * base.element_size() // wanted.itemsize
        empty = torch.empty(0, dtype=wanted, device=base.device)
        return empty.set_(base.untyped_storage(), start + offset, shape, strides)
    return base.as_strided(shape, strides, base.storage_offset() + offset)


def same_strides(tensor: torch.Tensor, strides: tuple[int, ...]) -> bool:
    """True when a tensor lies in memory as `strides` say; dims of size 1 do not count."""
    found = tensor.stride()
    if found == strides or tensor.numel() == 0:
        return True
    return all(size < 2 or a == b for size, a, b in zip(tensor.shape, found, strides, strict=True))


def with_strides(tensor: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """A fresh tensor that lies in memory as `strides` say, with just these strides."""
    return tensor if tensor.stride() == strides else tensor.as_strided_(tensor.shape, strides)


def copied(tensor: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """A copy that lies in memory as `strides` say; along dims whose elements are one there, of the first of them."""
    copy = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
    at = tuple(slice(None) if stride else slice(0, 1) for stride in strides)
    copy[at].copy_(tensor[at])
    return copy


def copy_all(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Copy tensors, each to one on its own device, by one call per device."""
    devices = dict.fromkeys(tensor.device for tensor in targets)
    if len(devices) == 1:
        torch._foreach_copy_(targets, sources)
        return
    for device in devices:
        pairs = [pair for pair in zip(targets, sources, strict=True) if pair[0].device == device]
        torch._foreach_copy_([target for target, _ in pairs], [source for _, source in pairs])
