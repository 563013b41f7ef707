"""`x[t]` with a 0-d integer tensor (or a traced number): a view whose place data decide, without a decision of Python.

Eager reads the number and selects; here the view reads with `take` and writes with `put`. Its offset in memory is not
known: where it matters, since the view itself is returned, the number becomes a decision at the end of the function.
Masks beside other indices become places, too, when something is written there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from graphc.frontend import host
from graphc.frontend.aten import layout
from graphc.frontend.functionalize import DynamicSelect, TensorState, dynamic_links
from graphc.frontend.recorder import Recorder
from graphc.frontend.traced import unwrapped
from graphc.ir.graph import Value
from graphc.ir.types import i64


def true_offset(recorder: Recorder, state: TensorState) -> int:
    """Where a view starts, in elements: its offset counts places that depend on data as the first.

    Raises:
        Stop, DataDependentError: such a place is a decision; see `Recorder.specialize`.
    """
    offset = state.offset
    for link in dynamic_links(state):
        number = recorder.builder.op("item", recorder.imp.reshape(link.index, ()))
        place = int(recorder.specialize(host.HostNode(recorder, number, int)))
        offset += (place + link.size if place < 0 else place) * link.stride
    return offset


def getitem(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`x[...]`, with 0-d integer tensors among the indices as dynamic places."""
    found = _view(recorder, args[0], args[1])
    return func(*args) if found is None else found


def setitem(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`x[...] = value`, likewise."""
    found = _view(recorder, args[0], args[1])
    if found is None:
        return func(args[0], _without_masks(args[1]), _without_history(args[0], args[2]))
    value = args[2]
    if not isinstance(value, torch.Tensor):
        found.fill_(value)
        return None
    while value.dim() > found.dim() and value.shape[0] == 1:
        value = value[0]
    found.copy_(value)
    return None


def _without_history(tensor: Any, value: Any) -> Any:
    """What is put into a tensor of integers, through which no gradient goes; autograd refuses a traced one."""
    whole = isinstance(tensor, torch.Tensor) and not (tensor.is_floating_point() or tensor.is_complex())
    return value.detach() if whole and isinstance(value, torch.Tensor) and value.requires_grad else value


def index_put(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`index_put` and `index_put_`."""
    if len(args) > 1 and isinstance(args[1], (list, tuple)):
        args = (args[0], _without_masks(tuple(args[1])), *args[2:])
    return func(*args, **kwargs)


def _without_masks(index: Any) -> Any:
    """Masks beside other indices as the places where they hold: how many these are must fit the other indices."""
    items = index if type(index) is tuple else (index,)
    tensors = [item for item in items if isinstance(item, torch.Tensor)]
    masks = [item for item in tensors if item.dtype == torch.bool and item.dim()]
    if not masks or len(masks) == len(tensors):
        return index
    places: list[Any] = []
    for item in items:
        places += item.nonzero(as_tuple=True) if any(item is mask for mask in masks) else [item]
    return tuple(places)


def _view(recorder: Recorder, tensor: Any, index: Any) -> Any:
    """The view that an index with dynamic places gives; None when it has none, or indices of other kinds too."""
    items = index if type(index) is tuple else (index,)
    if not any(map(_is_dynamic, items)) or not all(isinstance(item, _BASIC) or _is_dynamic(item) for item in items):
        return None
    if (
        not isinstance(tensor, torch.Tensor)
        or tensor.is_complex()
        or (tensor.dtype.itemsize == 1 and tensor.is_floating_point())
    ):
        return None
    consumed = sum(item is not None and item is not Ellipsis for item in items)
    basic: list[Any] = []
    places: list[tuple[int, Any]] = []
    dim = 0  # of the result of the basic indices
    for item in items:
        if _is_dynamic(item):
            places.append((dim, item))
            item = slice(None)
        basic.append(item)
        dim += tensor.dim() - consumed if item is Ellipsis else 0 if isinstance(item, int) else 1
    view = tensor[tuple(basic)]
    if any(place >= view.dim() or view.shape[place] == 0 for place, _ in places):
        return None  # eager raises
    recorder.builder.location = recorder.locator.here()
    for place, item in reversed(places):
        view = view.select(place, _number(recorder, item))
    return view


_BASIC = (int, slice, type(None), type(Ellipsis))


def _is_dynamic(item: Any) -> bool:
    if type(item) in _BASIC:
        return False
    if isinstance(item, torch.Tensor):
        whole = not (item.is_floating_point() or item.is_complex() or item.dtype == torch.bool)
        return item.dim() == 0 and whole and unwrapped(item) is not None
    return _is_number(item)


def _number(recorder: Recorder, item: Any) -> Any:
    """A place as a traced number."""
    if not isinstance(item, torch.Tensor):
        return item
    tensor = unwrapped(item)
    assert tensor is not None
    recorder.builder.location = recorder.locator.here()
    return host.wrap(host.HostNode(recorder, recorder.builder.op("item", recorder.value_of(tensor)), int))


def select(recorder: Recorder, tensor: torch.Tensor, dim: int, item: Any) -> torch.Tensor | None:
    """`tensor.select(dim, item)` at a place that data decide; None at any other."""
    source = recorder.state_of(tensor)
    if not _is_number(item) or not source.shape or not source.shape[dim]:
        return None
    dim %= len(source.shape)
    shape, strides = source.shape, source.strides
    link = DynamicSelect(dim, _index(recorder, item, source.device), shape[dim], strides[dim])
    state = source.view(link, shape[:dim] + shape[dim + 1 :], strides[:dim] + strides[dim + 1 :])
    state.location = recorder.builder.location
    return recorder.make(state)


def select_backward(
    recorder: Recorder, grad: torch.Tensor, sizes: Sequence[int], dim: int, item: Any
) -> torch.Tensor | None:
    """The gradient of the tensor that `select` has taken a part of; None when the place is a plain number."""
    if not _is_number(item):
        return None
    value = recorder.value_of(grad)
    shape = tuple(int(size) for size in sizes)
    zeros = recorder.imp.full(shape, 0, value.dtype, value.device)
    index = _index(recorder, item, value.device)
    result = recorder.builder.op("put", zeros, index, value, dim=dim % len(shape), mode="set")
    return recorder.wrap(result, layout.contiguous(shape))


def _index(recorder: Recorder, item: Any, device: str) -> Value:
    """A place as a 0-d tensor, which it may have been before it was a number."""
    place = item.node.value
    if place.op is not None and place.op.name == "item":
        place = place.op.operands[0]
    return recorder.imp.tensor(place, i64, device)


def _is_number(item: Any) -> bool:
    node = host.node_of(item)
    return node is not None and node.kind is int


SPECIAL: dict[Any, Callable[[Recorder, Any, Any, Any], Any]] = {
    torch.Tensor.__getitem__: getitem,
    torch.Tensor.__setitem__: setitem,
}
