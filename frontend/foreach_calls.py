"""`torch._foreach_*` calls: what eager does on a CPU, one call per tensor, recorded once for many tensors of a kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from graphc.frontend import functionalize
from graphc.frontend.foreach import grouped_call
from graphc.frontend.functionalize import dynamic_links
from graphc.frontend.traced import TracedTensor

if TYPE_CHECKING:
    from graphc.frontend.recorder import Recorder

_NAMES = {"minimum": "clamp_max", "maximum": "clamp_min", "norm": "linalg_vector_norm"}
"""Operators that the calls on lists are made of where these go by another name."""
_VALUED = ("addcmul", "addcdiv")
"""Operators whose number is an argument by keyword only."""


def single_call(func: Any) -> Callable[..., Any] | None:
    """The call on one tensor that an overload on lists makes for each; None where there is no such."""
    stem = func._schema.name.removeprefix("aten::_foreach_")
    plain = stem.rstrip("_")
    name = _NAMES.get(plain, plain) + ("_" if stem.endswith("_") else "")
    packet = getattr(torch.ops.aten, name, None)
    is_number = any(a.name == "scalars" and str(a.type) == "Tensor" for a in func._schema.arguments)
    if packet is None or is_number or func._overloadname.endswith("out"):
        return None

    def call(*args: Any, **kwargs: Any) -> Any:
        if plain in _VALUED and len(args) == 4:
            return packet(*args[:3], value=args[3])
        if plain == "norm":
            return packet(args[0], *args[1:2], dtype=args[2] if len(args) > 2 else kwargs.get("dtype"))
        return packet(*args, **kwargs)

    return call


def stacked(recorder: Recorder, tensors: Any) -> TracedTensor | None:
    """`torch.stack` of what are all elements of one vector, in order: the vector. None for all else."""
    if not all(type(tensor) is TracedTensor for tensor in tensors):
        return None
    states = [recorder.state_of(tensor) for tensor in tensors]
    root = states[0].storage.root
    if root.shape != (len(states),) or root.strides != (1,) or states[0].shape != ():
        return None
    for place, state in enumerate(states):
        same = state.storage.root is root and state.dtype == root.dtype and state.shape == ()
        if not same or state.offset != root.offset + place or any(dynamic_links(state)):
            return None
    return recorder.wrap(functionalize.read(recorder.builder, root), (1,))


def list_handler(func: Any, single: Callable[..., Any], recording: Callable[[Recorder], Any]) -> Callable[..., Any]:
    """How calls of an overload on lists are handled.

    Args:
        single: what is called for each tensor.
        recording: the mode under which calls are recorded.
    """
    returns = bool(func._schema.returns)
    listed = {a.name for a in func._schema.arguments if str(a.type) in ("List[Tensor]", "List[number]", "List[float]")}
    names = [a.name for a in func._schema.arguments]

    def handle(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        lists = [list(item) if name in listed else item for name, item in zip(names, args, strict=False)]
        count = next(len(item) for item in lists if isinstance(item, list))

        def each(made: list[Any], *given: Any, **named: Any) -> None:
            for number in range(len(made)):
                one = [item[number] if isinstance(item, list) else item for item in given]
                answer = single(*one, **named)
                if returns:
                    made[number] = answer

        made: list[Any] = [None] * count
        with recording(recorder):
            numbers = any(isinstance(item, list) and not isinstance(item[0], torch.Tensor) for item in lists)
            if numbers:
                each(made, *lists, **kwargs)
            else:
                grouped_call(recorder, each, (made, *lists), kwargs)
        return made if returns else None

    return handle
