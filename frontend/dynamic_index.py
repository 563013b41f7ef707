"""`x[t]` and `x[t : t + 8]` with a 0-d integer tensor (or a traced number): views whose place data decide, without a
decision of Python.

Eager reads the number and selects; here the view reads with `take` and writes with `put`. Its offset in memory is not
known: where it matters, since the view itself is returned, the number becomes a decision at the end of the function.
Masks beside other indices become places, too, when something is written there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graphc.frontend import host
from graphc.frontend.alike import is_same
from graphc.frontend.aten import layout
from graphc.frontend.functionalize import DynamicSelect, DynamicWindow, TensorState, dynamic_links, window
from graphc.frontend.host import HostNode
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
    windows = {at: found for at, item in enumerate(items) if (found := _window(recorder, item)) is not None}
    moving = [at in windows or _is_dynamic(item) for at, item in enumerate(items)]
    if not any(moving) or not all(is_one or _is_basic(item) for is_one, item in zip(moving, items, strict=True)):
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
    for at, item in enumerate(items):
        if moving[at]:
            places.append((dim, windows.get(at, item)))
            item = slice(None)
        basic.append(item)
        dim += tensor.dim() - consumed if item is Ellipsis else 0 if isinstance(item, int) else 1
    view = tensor[tuple(basic)]
    if any(place >= view.dim() or view.shape[place] == 0 for place, _ in places):
        return None  # eager raises
    if not all(item.is_inside(view.shape[place]) for place, item in places if isinstance(item, Window)):
        return None
    recorder.builder.location = recorder.locator.here()
    for place, item in reversed(places):
        if isinstance(item, Window):
            recorder.windows.add((item.start.node.value, item.stop.node.value, view.shape[place]))
            view = torch.ops.aten.slice.Tensor(view, place, item.start, item.stop)
        else:
            view = view.select(place, _number(recorder, item))
    return view


@dataclass(frozen=True)
class Window:
    """A slice of known length that begins where data decide: `x[t : t + 8]`.

    Args:
        start, stop: traced numbers.
        count: the length.
    """

    start: Any
    stop: Any
    count: int

    def is_inside(self, size: int) -> bool:
        """Whether all of it lies in a dim of this size, as the program checks; where it once did not, a decision."""
        node: HostNode = self.start.node
        if self.count > size:
            return False
        conditions = node.binary("ge", 0), node.binary("le", size - self.count)
        if all(condition.hint is not False and node.scope.assume(condition) for condition in conditions):
            return True
        return all(bool(host.wrap(condition)) for condition in conditions)


def _window(recorder: Recorder, item: Any) -> Window | None:
    """What a slice is, if it is one."""
    if (
        type(item) is not slice
        or item.step not in (None, 1)
        or not (_is_dynamic(item.start) and _is_dynamic(item.stop))
    ):
        return None
    count = _distance(_value(recorder, item.start), _value(recorder, item.stop))
    if count is None or count <= 0:
        return None
    return Window(_number(recorder, item.start), _number(recorder, item.stop), count)


def narrow(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`x.narrow(dim, start, length)`."""
    given = {**dict(zip(("input", "dim", "start", "length"), args, strict=False)), **kwargs}
    tensor, dim, start, length = map(given.get, ("input", "dim", "start", "length"))
    if not (isinstance(tensor, torch.Tensor) and type(dim) is type(length) is int and _is_dynamic(start)):
        return func(*args, **kwargs)
    if not -tensor.dim() <= dim < tensor.dim():
        return func(*args, **kwargs)
    place: Any = _number(recorder, start)
    index = (slice(None),) * (dim % tensor.dim()) + (slice(place, place + length),)
    return getitem(recorder, torch.Tensor.__getitem__, (tensor, index), {})


def _value(recorder: Recorder, item: Any) -> Value:
    tensor = unwrapped(item) if isinstance(item, torch.Tensor) else None
    value: Value = item.node.value if tensor is None else recorder.value_of(tensor)
    return value


def _distance(start: Value, stop: Value) -> int | None:
    """How far it is from one to the other, if that is a constant."""
    (base, before), (other, behind) = _shifted(start), _shifted(stop)
    return behind - before if is_same(base, other) else None


def _shifted(value: Value) -> tuple[Value, int]:
    """A number as another one plus a constant."""
    total = 0
    while value.op is not None:
        match value.op.name, value.op.operands:
            case "item", (Value() as inner,):
                shift = 0
            case ("add", (Value() as inner, int(shift))) | ("add", (int(shift), Value() as inner)):
                pass
            case "sub", (Value() as inner, int(taken)):
                shift = -taken
            case _:
                break
        value, total = inner, total + shift
    return value, total


_BASIC = (int, slice, type(None), type(Ellipsis))


def _is_basic(item: Any) -> bool:
    """An index that says where it leads by itself."""
    if type(item) is slice:
        return not any(map(_is_dynamic, (item.start, item.stop, item.step)))
    return isinstance(item, _BASIC)


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


def slice_window(
    recorder: Recorder, tensor: torch.Tensor, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1
) -> torch.Tensor | None:
    """`tensor[start:stop]` along a dim, of a window that is inside of it; None of any other slice."""
    source = recorder.state_of(tensor)
    if not (_is_number(start) and _is_number(stop) and step == 1 and -len(source.shape) <= dim < len(source.shape)):
        return None
    dim %= len(source.shape)
    shape, strides = source.shape, source.strides
    if (start.node.value, stop.node.value, shape[dim]) not in recorder.windows:
        return None
    count = _distance(start.node.value, stop.node.value)
    assert count is not None
    link = DynamicWindow(dim, _index(recorder, start, source.device), shape[dim], strides[dim], count)
    state = source.view(link, (*shape[:dim], count, *shape[dim + 1 :]), strides)
    state.location = recorder.builder.location
    return recorder.make(state)


def slice_backward(
    recorder: Recorder, grad: torch.Tensor, sizes: Sequence[int], dim: int, start: Any, stop: Any, step: int
) -> torch.Tensor | None:
    """The gradient of the tensor that `slice_window` has taken a part of; None when the place is a plain number."""
    if not _is_number(start):
        return None
    value = recorder.value_of(grad)
    shape = tuple(int(size) for size in sizes)
    dim %= len(shape)
    zeros = recorder.imp.full(shape, 0, value.dtype, value.device)
    count: int = value.shape[dim]  # type: ignore[assignment]  # static
    places = window(recorder.builder, _index(recorder, start, value.device), shape[dim], count)
    result = recorder.builder.op("put", zeros, places, value, dim=dim, mode="set", check="inside")
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
    **dict.fromkeys((torch.narrow, torch.Tensor.narrow), narrow),
}
