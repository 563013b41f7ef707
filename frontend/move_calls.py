"""Calls that give tensors another geometry or other memory: `t_`, `resize_`, `set_`, `x.data = y` (see `moves`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from graphc.frontend import functionalize, replay
from graphc.frontend.aten import layout
from graphc.frontend.aten.memory_format import suggests_channels_last
from graphc.frontend.aten.views import StorageModeNeeded, as_strided
from graphc.frontend.calls import snapshot, to_states
from graphc.frontend.foreign_views import is_foreign
from graphc.frontend.functionalize import SAME, TensorState, dynamic_links, root_state
from graphc.frontend.moves import refusal
from graphc.frontend.recorder import Recorder


def named(func: Any) -> str:
    """The method that an overload belongs to, as users know it."""
    return f"`{getattr(func, '__name__', str(func)).partition('.')[0]}`"


def inplace_view(view: Callable[..., TensorState]) -> Callable[..., Any]:
    """The handler of `t_`, `squeeze_`, ...: the tensor itself becomes the view that a rule describes."""

    def handle(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            state = view(recorder.state_of(args[0]), *(to_states(recorder, a) for a in args[1:]), **kwargs)
        except StorageModeNeeded as needed:
            recorder.need_storage(needed.state)
        except (IndexError, RuntimeError, ValueError):
            values, keywords = snapshot(recorder, args, kwargs)
            replay.raise_as_eager(recorder.imp, func, values, keywords, recorder.builder.location)
            raise
        recorder.moves.move(args[0], state, named(func))
        return args[0]

    return handle


def resize_(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`x.resize_(sizes)`"""
    shape = tuple(int(size) for size in args[1])
    _resize(recorder, func, args[0], shape, kwargs.get("memory_format"))
    return args[0]


def resize_as_(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`x.resize_as_(template)`"""
    template, memory_format = recorder.state_of(args[1]), kwargs.get("memory_format")
    if memory_format is torch.preserve_format:
        images = suggests_channels_last(template.shape, template.strides)
        memory_format = torch.channels_last if images else torch.contiguous_format
    _resize(recorder, func, args[0], template.shape, memory_format)
    return args[0]


def _resize(recorder: Recorder, func: Any, tensor: torch.Tensor, shape: tuple[int, ...], memory_format: Any) -> None:
    """Source of the rules: `resize_impl_cpu_` of ATen/native/Resize.h."""
    state = recorder.state_of(tensor)
    if shape == state.shape and memory_format is None:
        return
    if memory_format is torch.preserve_format:
        raise refusal(recorder, f"{named(func)} of such a tensor")
    strides = layout.format_strides(shape, layout.contiguous(shape), memory_format or torch.contiguous_format)
    resize(recorder, func, tensor, shape, strides)


def resize(
    recorder: Recorder, func: Any, tensor: torch.Tensor, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    """Give a tensor another shape on its own memory, which grows where it has to.

    Args:
        func: the call that does so.

    Raises:
        EagerOnlyError: it would grow and is the caller's, or not the tensor's alone.
    """
    state = recorder.state_of(tensor)
    if is_foreign(state) or any(dynamic_links(state)):
        raise refusal(recorder, f"{named(func)} of such a tensor")
    try:
        moved = as_strided(state, shape, strides)
    except StorageModeNeeded as needed:
        if recorder.is_part(state.storage):
            recorder.need_storage(needed.state)
        moved = _grown(recorder, func, tensor, shape, strides)
    recorder.moves.move(tensor, moved, named(func))


def _grown(
    recorder: Recorder, func: Any, tensor: torch.Tensor, shape: tuple[int, ...], strides: tuple[int, ...]
) -> TensorState:
    """A view of a larger memory with the same contents, and zeros where eager has whatever was there."""
    state = recorder.state_of(tensor)
    storage, root, imp = state.storage, state.storage.root, recorder.imp
    others = [
        other for ref in recorder.made if (other := ref()) is not None and other is not tensor
        and other.state.storage is storage
    ]  # fmt: skip
    if storage.source is not None or others or not layout.is_dense(root.shape, root.strides):
        raise refusal(
            recorder, f"{named(func)} makes memory larger that the function has not made for this tensor alone"
        )
    count = layout.span(root.shape, root.strides)
    flat = functionalize.read(recorder.builder, as_strided(root, (count,), (1,)))
    memory = imp.full((state.offset + layout.span(shape, strides),), 0, state.dtype, state.device)
    if count:
        memory = recorder.builder.op("update_slice", memory, flat, starts=(0,), steps=(1,))
    return as_strided(root_state(memory, (1,)), shape, strides, state.offset)


def set_(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`x.set_()` and `x.set_(other)`: the memory of another tensor."""
    own = recorder.state_of(args[0])
    if len(args) == 1:
        empty = recorder.imp.full((0,), 0, own.dtype, own.device)
        recorder.moves.move(args[0], root_state(empty, (1,)), named(func))
        return args[0]
    source = recorder.state_of(args[1])
    if (source.dtype, source.device) != (own.dtype, own.device):
        values, keywords = snapshot(recorder, args, kwargs)
        replay.raise_as_eager(recorder.imp, func, values, keywords, recorder.builder.location)
        raise refusal(recorder, f"{named(func)} with memory of another dtype")
    moved = source.view(SAME, source.shape, source.strides)
    recorder.moves.move(args[0], moved, named(func))
    return args[0]


def refuse(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls on storages themselves."""
    raise refusal(recorder, f"{named(func)} changes the storage of a tensor")


def assign_data(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> None:
    """`x.data = y`; nothing where y is x itself, as after `x.data -= 1` and `module.to(...)`.

    Raises:
        EagerOnlyError: dtype or device are others, or a tensor that autograd follows gets another geometry.
    """
    tensor, old, new = args[0], recorder.state_of(args[0]), recorder.state_of(args[1])
    if _is_same_memory(old, new):
        return
    if (new.dtype, new.device) != (old.dtype, old.device):
        raise refusal(recorder, "`tensor.data = other` changes the dtype or the device of a tensor")
    same = (new.shape, new.strides) == (old.shape, old.strides)
    if tensor.requires_grad and recorder.arguments.find(tensor) is None and not same:
        raise refusal(recorder, "`tensor.data = other` changes the geometry of a tensor that is no argument")
    recorder.moves.move(tensor, new.view(SAME, new.shape, new.strides), "`tensor.data = other`", by_data=True)


def _is_same_memory(old: TensorState, new: TensorState) -> bool:
    if old is new:
        return True
    plain = not any(is_foreign(state) or any(dynamic_links(state)) for state in (old, new))
    return plain and (old.storage, old.shape, old.strides, old.offset, old.dtype) == (
        new.storage, new.shape, new.strides, new.offset, new.dtype,
    )  # fmt: skip
