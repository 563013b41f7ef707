"""`x[t]` with a 0-d integer tensor (or a traced number): a view whose place data decide, without a decision of Python.

Eager reads the number and selects; here the view reads with `take` and writes with `put`. Its offset in memory is not
known: where it matters, since the view itself is returned, the number becomes a decision at the end of the function.
Autograd knows nothing of such views: what is differentiated is read and written by its own operators.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from graphc.frontend import host
from graphc.frontend.functionalize import DynamicSelect, TensorState, dynamic_links
from graphc.frontend.recorder import Recorder
from graphc.ir.graph import Value
from graphc.ir.types import i64

Store: TypeAlias = Callable[[torch.Tensor], None]
Select: TypeAlias = Callable[[Recorder, torch.Tensor, int, Any], torch.Tensor]


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
    found = _view(recorder, args[0], args[1], _select)
    return func(*args) if found is None else found


def setitem(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`x[...] = value`, likewise."""
    value = args[2]
    differentiates = torch.is_grad_enabled() and any(getattr(t, "requires_grad", False) for t in (args[0], value))
    stores: list[Store] = []
    found = _view(recorder, args[0], args[1], functools.partial(_storing, stores) if differentiates else _select)
    if found is None:
        return func(*args)
    if not isinstance(value, torch.Tensor):
        if not stores:
            found.fill_(value)
            return None
        value = torch.full((), value, dtype=found.dtype, device=found.device)
    while value.dim() > found.dim() and value.shape[0] == 1:
        value = value[0]
    if stores:
        stores[-1](value)
    else:
        found.copy_(value)
    return None


def _view(recorder: Recorder, tensor: Any, index: Any, select: Select) -> Any:
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
        view = select(recorder, view, place, item)
    return view


_BASIC = (int, slice, type(None), type(Ellipsis))


def _is_dynamic(item: Any) -> bool:
    if type(item) in _BASIC:
        return False
    if isinstance(item, torch.Tensor):
        return item.dim() == 0 and not (item.is_floating_point() or item.is_complex() or item.dtype == torch.bool)
    node = host.node_of(item)
    return node is not None and node.kind is int and node.hint is None


def _index(recorder: Recorder, item: Any, device: str) -> Value:
    node = host.node_of(item)
    place = recorder.value_of(item) if node is None else node.value
    return recorder.imp.tensor(place, i64, device)


def _places(recorder: Recorder, tensor: torch.Tensor, dim: int, item: Any) -> torch.Tensor:
    """The place as a tensor of one element, which is not negative."""
    place = recorder.wrap(_index(recorder, item, recorder.state_of(tensor).device), ()).reshape(1)
    return torch.where(place < 0, place + tensor.shape[dim], place)


def _storing(stores: list[Store], recorder: Recorder, tensor: torch.Tensor, dim: int, item: Any) -> torch.Tensor:
    """As `_select` for what is differentiated, of which `stores` receives how it is given new contents."""
    places = _places(recorder, tensor, dim, item)
    shape = (*tensor.shape[:dim], *tensor.shape[dim + 1 :])
    outer = stores[-1] if stores else None

    def store(value: torch.Tensor) -> None:
        value = value.to(tensor.dtype).expand(shape).unsqueeze(dim)
        if outer is None:
            tensor.index_copy_(dim, places, value)
        else:
            outer(tensor.index_copy(dim, places, value))

    stores.append(store)
    return tensor.index_select(dim, places).squeeze(dim)


def _select(recorder: Recorder, tensor: torch.Tensor, dim: int, item: Any) -> torch.Tensor:
    source = recorder.state_of(tensor)
    if torch.is_grad_enabled() and tensor.requires_grad:
        row = tensor.index_select(dim, _places(recorder, tensor, dim, item)).squeeze(dim)
        recorder.copied.add(recorder.state_of(row).storage)
        return row
    index = _index(recorder, item, source.device)
    shape, strides = source.shape, source.strides
    link = DynamicSelect(dim, index, shape[dim], strides[dim])
    state = source.view(link, shape[:dim] + shape[dim + 1 :], strides[:dim] + strides[dim + 1 :])
    state.location = recorder.builder.location
    return recorder.make(state)


SPECIAL: dict[Any, Callable[[Recorder, Any, Any, Any], Any]] = {
    torch.Tensor.__getitem__: getitem,
    torch.Tensor.__setitem__: setitem,
}
