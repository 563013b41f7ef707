"""`torch.LongTensor([[t[0] for t in best]])` in a captured function: constructors that no dispatch shows.

They are classes made in C, which take elements of a list as numbers: each traced one would be a decision. While a
function is captured, something that calls them stands in their place; what holds traced elements is stacked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from graphc.frontend.function_mode import holds_traced

_DTYPES = {
    "LongTensor": torch.int64, "IntTensor": torch.int32, "ShortTensor": torch.int16, "ByteTensor": torch.uint8,
    "BoolTensor": torch.bool, "FloatTensor": torch.float32, "DoubleTensor": torch.float64,
}  # fmt: skip


class _Constructor:
    """In the place of such a class."""

    def __init__(self, own: Any, dtype: torch.dtype) -> None:
        self._own, self._dtype = own, dtype

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and isinstance(args[0], (list, tuple)) and holds_traced(args[0]):
            stacked = torch.tensor(args[0], device="cpu")
            if self._dtype.is_floating_point or not stacked.is_floating_point():  # else an error of eager's
                return stacked.to(self._dtype)
        return self._own(*args, **kwargs)

    def __instancecheck__(self, item: Any) -> bool:
        return isinstance(item, self._own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


@contextlib.contextmanager
def stacking() -> Iterator[None]:
    """For the block, constructors of tensors take lists with traced elements as they are."""
    own = {name: getattr(torch, name) for name in _DTYPES}
    for name, constructor in own.items():
        setattr(torch, name, _Constructor(constructor, _DTYPES[name]))
    try:
        yield
    finally:
        for name, constructor in own.items():
            setattr(torch, name, constructor)
