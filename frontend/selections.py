"""`x[mask]` and `x.masked_select(mask)` whose number of rows data decide, without a decision of Python.

What a loss does with the rows that a mask selects can mostly be done to all rows, and be summed where the mask is true:

    loss[mask].mean()                   where(mask, loss, 0).sum() / mask.sum()

A `Selected` stands for the selected rows. It holds all rows and the mask, and is handed from function to function as
long as `selected_functions` has a rule; what has none is given the real rows, as are results: a decision on how many
there are, made once. Rows that are not selected may hold anything, and come to nothing: what leaves them out is a
`where`, at the end for values and at the beginning for gradients (`Selected.guarded`).

A `Selected` is a tensor to Python, and to torch's functions, which all come here first. What reaches an operator by
another way, or is kept in a place of the user's, is found out; then the function is captured again, and selects at once
(`Escaped`).
"""

from __future__ import annotations

import contextlib
import functools
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

from graphc.frontend import dynamic_index
from graphc.frontend.recorder import Recorder
from graphc.frontend.selected import Escaped, Selected, plain

_Tensor = torch.Tensor
_AT_ONCE: weakref.WeakSet[Any] = weakref.WeakSet()
"""Functions that select at once."""


# what selects


def _getitem(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`x[mask]`, `x[mask, 1]`, `x[mask, ..., 2:]`"""
    tensor, index = args
    items = index if type(index) is tuple else (index,)
    if items and _selects(recorder, tensor, items[0]) and all(map(_is_static, items[1:])):
        mask = items[0]
        taken = mask.dim() + sum(isinstance(item, (int, slice)) for item in items[1:])
        if tensor.shape[: mask.dim()] == mask.shape and taken <= tensor.dim():
            if items[1:]:
                tensor = tensor[(slice(None),) * mask.dim() + items[1:]]
            return recorder.selections.make(tensor.clone(), recorder.selections.mask(mask), raw=True)
    return dynamic_index.getitem(recorder, func, args, kwargs)


def _masked_select(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`x.masked_select(mask)`"""
    given = {**dict(zip(("input", "mask"), args, strict=False)), **kwargs}
    tensor, mask = given.get("input"), given.get("mask")
    if len(given) == 2 and _selects(recorder, tensor, mask):
        tensor, mask = torch.broadcast_tensors(tensor, mask)
        return recorder.selections.make(tensor.clone(), recorder.selections.mask(mask), raw=True)
    return func(*args, **kwargs)


def _selects(recorder: Recorder, tensor: Any, mask: Any) -> bool:
    """Whether a mask of unknown contents may wait."""
    if not recorder.selections.allowed or not isinstance(mask, _Tensor) or not isinstance(tensor, _Tensor):
        return False
    if mask.dtype != torch.bool or not mask.dim() or tensor.is_complex() or tensor.device != mask.device:
        return False
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return not wrapped(tensor) and not wrapped(mask) and recorder.known_tensor(mask) is None


def _is_static(index: Any) -> bool:
    """A basic index, of plain numbers."""
    if type(index) is slice:
        return all(type(bound) in (int, types.NoneType) for bound in (index.start, index.stop, index.step))
    return type(index) is int or index is None or index is Ellipsis


SPECIAL: dict[Any, Callable[[Recorder, Any, Any, Any], Any]] = {
    _Tensor.__getitem__: _getitem,
    **dict.fromkeys((torch.masked_select, _Tensor.masked_select), _masked_select),
}
"""What is handled here, by the function that Python calls."""


# the function that is captured


def are_allowed(function: Any) -> bool:
    """Whether selections of a function may wait."""
    return _owner(function) not in _AT_ONCE


def at_once(function: Any) -> None:
    """From now on this function selects at once."""
    _AT_ONCE.add(_owner(function))


def _owner(function: Any) -> Any:
    while isinstance(function, (functools.partial, types.MethodType)):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    try:
        hash(function)
        weakref.ref(function)
    except TypeError:  # an object of a class that allows neither
        return type(function)
    return function


@contextlib.contextmanager
def real_arguments(is_capturing: Callable[[], Any]) -> Iterator[None]:
    """For the block, what takes tensors without telling any mode of torch's is given real rows: functions with a
    derivative of their own, and TorchScript."""
    places: list[tuple[Any, str]] = [(torch.autograd.Function, "apply")]
    places += [(torch._C.ScriptFunction, "__call__"), (torch._C.ScriptMethod, "__call__")]
    originals = [vars(owner)[name] for owner, name in places]

    def given_rows(original: Any) -> Any:
        function = original.__func__ if isinstance(original, classmethod) else original.__get__(None, object)

        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            if is_capturing() is not None:
                args, kwargs = plain(args), plain(kwargs)
            return function(first, *args, **kwargs)

        return classmethod(call) if isinstance(original, classmethod) else call

    for (owner, name), original in zip(places, originals, strict=True):
        setattr(owner, name, given_rows(original))
    try:
        yield
    finally:
        for (owner, name), original in zip(places, originals, strict=True):
            setattr(owner, name, original)


def check_roots(arguments: Any) -> None:
    """Of a backward pass.

    Raises:
        Escaped: a selection is among what it begins or ends at.
    """
    if type(arguments) is Selected:
        raise Escaped
    if isinstance(arguments, (list, tuple)):
        for argument in arguments:
            check_roots(argument)
