"""Values put where a mask or an index says, as functions of these values: `x[mask] = token`, `index_put`, `index_fill`.

Eager's gradient of the values takes rows by the mask, or distinct indices, whose number data decide. Where a value goes
to all places alike, `torch.where` gives the same result, and a gradient that is a sum of fixed shape. Where each place
has a value of its own, they are put in order before that, once it is known that there are as many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch

from graphc.frontend import dynamic_index
from graphc.frontend.dispatch import item
from graphc.frontend.recorder import Recorder

_Tensor = torch.Tensor


def _setitem(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`x[mask] = values`"""
    tensor, index, values = args
    items = list(index) if type(index) is tuple else [index]
    plain = all(isinstance(i, _Tensor) or (type(i) is slice and i == slice(None)) for i in items)
    if plain and _is_wanted(values) and isinstance(tensor, _Tensor):
        new = _put(recorder, tensor, [i if isinstance(i, _Tensor) else None for i in items], values, False)
        if new is not None:
            tensor.copy_(new)
            return None
    return dynamic_index.setitem(recorder, func, args, kwargs)


def _index_put(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`x.index_put((None, mask), values)`, also in place."""
    found = {**dict(zip(("input", "indices", "values", "accumulate"), args, strict=False)), **kwargs}
    tensor, indices, values = (found.get(name) for name in ("input", "indices", "values"))
    if isinstance(tensor, _Tensor) and isinstance(indices, (list, tuple)) and _is_wanted(values):
        new = _put(recorder, tensor, list(indices), values, bool(found.get("accumulate", False)))
        if new is not None:
            return _given(func, tensor, new)
    return dynamic_index.index_put(recorder, func, args, kwargs)


def _index_fill(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`x.index_fill(dim, index, value)`, also in place."""
    found = {**dict(zip(("input", "dim", "index", "value"), args, strict=False)), **kwargs}
    tensor, dim, index, value = (found.get(name) for name in ("input", "dim", "index", "value"))
    if (
        isinstance(tensor, _Tensor) and isinstance(index, _Tensor) and _is_wanted(value)
        and value.dim() == 0 and _is_alike(tensor, value) and index.dim() <= 1 and index.dtype == torch.int64
        and type(dim) is int and -max(tensor.dim(), 1) <= dim < max(tensor.dim(), 1)
    ):  # fmt: skip
        size = tensor.shape[dim] if tensor.dim() else 1
        mask = torch.zeros(size, dtype=torch.bool, device=tensor.device).index_fill(0, index, True)
        mask = mask.reshape([-1 if place == dim % tensor.dim() else 1 for place in range(tensor.dim())])
        return _given(func, tensor, torch.where(mask, value, tensor))
    return func(*args, **kwargs)


def _is_wanted(values: Any) -> TypeGuard[torch.Tensor]:
    """Whether gradients of these values may be taken."""
    return (
        isinstance(values, _Tensor)
        and values.requires_grad
        and torch.is_grad_enabled()
        and not torch._C._functorch.is_functorch_wrapped_tensor(values)
    )


def _is_alike(tensor: torch.Tensor, values: torch.Tensor) -> bool:
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return not wrapped and tensor.dtype == values.dtype and tensor.device == values.device


def _given(func: Any, tensor: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """The result of a call, in the tensor itself where its name ends in `_`."""
    in_place = func.__name__.endswith("_")
    return (tensor if in_place else tensor.clone(memory_format=torch.preserve_format)).copy_(new)


def _counts(recorder: Recorder, mask: torch.Tensor, count: int) -> bool:
    """Whether a mask is true at so many places, which is a decision where the function may take some."""
    return recorder.decider is not None and count > 0 and bool(item(recorder, mask.sum() == count))


def _put(
    recorder: Recorder, tensor: torch.Tensor, indices: Sequence[Any], values: torch.Tensor, accumulate: bool,
) -> torch.Tensor | None:  # fmt: skip
    """A tensor with `values` where a mask is true.

    Args:
        indices: None for dims that are taken whole, and a mask.

    Returns:
        None where there is no mask, or more than one, or as many values as eager refuses.
    """
    masks = [item for item in indices if item is not None]
    if len(masks) != 1 or not _is_alike(tensor, values):
        return None
    (mask,), first = masks, next(place for place, item in enumerate(indices) if item is not None)
    if not isinstance(mask, _Tensor) or mask.dtype != torch.bool or mask.device != tensor.device:
        return None
    rest = tensor.shape[first + mask.dim() :]
    if len(indices) - 1 + mask.dim() > tensor.dim():
        return None
    if not mask.dim() or tensor.shape[first : first + mask.dim()] != mask.shape:
        return None
    place = values.dim() - len(rest) - 1  # of the dim of `values` along which the mask's places are
    if place >= 0:
        if place > first:
            return None
        along: tuple[int, ...] = (1,) * mask.dim()
        if values.shape[place] != 1:
            if not _counts(recorder, mask, values.shape[place]):
                return None
            values, along = values.index_select(place, (mask.reshape(-1).cumsum(0) - 1).clamp(min=0)), mask.shape
        values = values.reshape(*values.shape[:place], *along, *values.shape[place + 1 :])
    mask = mask.reshape(*mask.shape, *(1,) * len(rest))
    return torch.where(mask, tensor + values if accumulate else values, tensor)


SPECIAL: dict[Any, Callable[[Recorder, Any, Any, Any], Any]] = {
    _Tensor.__setitem__: _setitem,
    **dict.fromkeys((torch.index_put, torch.index_put_, _Tensor.index_put, _Tensor.index_put_), _index_put),
    **dict.fromkeys((torch.index_fill, _Tensor.index_fill, _Tensor.index_fill_), _index_fill),
}
"""What is handled here, by the function that Python calls."""
