"""Calls that write to memory which they also read: eager refuses some of them, so it is asked on real tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from graphc.frontend import replay
from graphc.frontend.aten import layout, promotion
from graphc.frontend.aten.extern import generators_kept
from graphc.frontend.foreign_views import is_foreign
from graphc.frontend.functionalize import Storage, TensorState, repeats
from graphc.frontend.recorder import Recorder
from graphc.ir.sizes import bound, plain

_LIMIT_BYTES = 1 << 30


def refuse_as_eager(
    recorder: Recorder,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    written: list[torch.Tensor],
    may_resize: bool = False,
) -> bool:
    """Make a call on zeros that lie in memory as its arguments do, where one that it writes to meets another or itself.

    Args:
        may_resize: the call may make what it writes to larger, so that it then meets another one of its memory.

    Returns:
        Whether one meets another.

    Raises:
        Exception: what eager raises, with the user's line.
    """
    states = [recorder.state_of(tensor) for tensor in tensors([args, kwargs])]
    targets = [recorder.state_of(tensor) for tensor in written]
    meet = _any_meet(states, targets)
    if not meet and not any(map(repeats, targets)) and not (may_resize and _any_shares(states, targets)):
        return False
    size = sum(layout.span(s.shape, s.strides) * s.dtype.itemsize for s in states)
    if size > _LIMIT_BYTES or any(map(is_foreign, states)):
        return meet
    memory = _Memory(states, plain if _lie_alike(states, targets) else bound)

    def real(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return memory.tensor(recorder.state_of(item))
        if isinstance(item, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return 1
        return [real(part) for part in item] if isinstance(item, (list, tuple)) else item

    random = torch.Tag.nondeterministic_seeded in func.tags
    with replay.located(recorder.builder.location), torch.no_grad(), generators_kept((-1,) if random else ()):
        func(*map(real, args), **{key: real(item) for key, item in kwargs.items()})
    return meet


def _lie_alike(states: list[TensorState], targets: list[TensorState]) -> bool:
    """Whether all that is in the memory of what is written lies there as that does: so eager says the same for any
    sizes."""
    return all(
        (state.shape, state.strides, state.offset) == (target.shape, target.strides, target.offset)
        for target in targets
        for state in states
        if state.storage is target.storage
    )


def _any_shares(states: list[TensorState], targets: list[TensorState]) -> bool:
    """Whether another argument is in the memory of one written to."""
    return any(sum(state.storage is target.storage for state in states) > 1 for target in targets)


def _any_meet(states: list[TensorState], targets: list[TensorState]) -> bool:
    """Whether a tensor written to shares memory with another argument."""
    for target in targets:
        others = [state for state in states if state.storage is target.storage]
        if len(others) > 1 and sum(_meet(target, other) for other in others) > 1:  # one of them is itself
            return True
    return False


def _meet(a: TensorState, b: TensorState) -> bool:
    return a.offset < b.offset + layout.span(b.shape, b.strides) and b.offset < a.offset + layout.span(
        a.shape, a.strides
    )


class _Memory:
    """Zeros in the place of the storages of some tensors.

    Args:
        known: gives the value of a number that sizes may be in.
    """

    def __init__(self, states: list[TensorState], known: Callable[[int], int]) -> None:
        self._known = known
        self._flat: dict[Storage, torch.Tensor] = {}
        sizes: dict[Storage, int] = {}
        for state in states:
            bytes_ = (state.offset + layout.span(state.shape, state.strides)) * state.dtype.itemsize
            sizes[state.storage] = max(sizes.get(state.storage, 0), bytes_)
        for storage, size in sizes.items():
            root = storage.root
            count = -(-known(size) // root.dtype.itemsize)
            self._flat[storage] = torch.zeros(count, dtype=promotion.to_torch(root.dtype), device=root.device)
        self._made: dict[int, torch.Tensor] = {}

    def tensor(self, state: TensorState) -> torch.Tensor:
        """The real tensor of a state; the same one for the same state."""
        if id(state) not in self._made:
            flat, dtype = self._flat[state.storage], promotion.to_torch(state.dtype)
            flat = flat if flat.dtype == dtype else flat.view(dtype)
            self._made[id(state)] = flat.as_strided(
                tuple(map(self._known, state.shape)), tuple(map(self._known, state.strides)), self._known(state.offset)
            )
        return self._made[id(state)]


def tensors(item: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested arguments of a call."""
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, dict):
        yield from tensors(list(item.values()))
    elif isinstance(item, (list, tuple)):
        for part in item:
            yield from tensors(part)
