"""Functions and tensor methods that ATen dispatch does not show, above all those that look at data or memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from graphc.errors import EagerOnlyError, GraphcError, UnsupportedError
from graphc.frontend import batch_momentum, dynamic_index, host, masked_values, replay, selections
from graphc.frontend.dispatch import item
from graphc.frontend.move_calls import assign_data
from graphc.frontend.recorder import Recorder
from graphc.frontend.selected import Selected, plain
from graphc.frontend.selected_sums import call_of_selected
from graphc.frontend.traced import TracedTensor, unwrapped
from graphc.frontend.watched import look_into

_TENSOR = torch.Tensor
_TRACED_ELEMENTS = 64
_NO_DATA = "its data is not allocated yet"  # torch, where C++ asks a traced tensor for its memory
_NO_NUMBERS = "expected to contain only concrete integers"  # torch, where a size must be known


class FunctionMode(TorchFunctionMode):
    """Handles the tensor methods that would need data, for traced and real tensors alike.

    Args:
        recorder: the capture.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        special = _SPECIAL.get(func)
        look_into(args)
        try:
            if Selected in types or any(type(arg) is Selected for arg in args):
                found = call_of_selected(self.recorder, func, args, kwargs or {})
                if found is not NotImplemented:
                    return found
                args, kwargs = plain(args), plain(kwargs)
            if special is not None:
                return special(self.recorder, func, args, kwargs or {})
            return func(*args, **kwargs) if kwargs else func(*args)
        except GraphcError:
            raise
        except Exception as error:  # torch checks some arguments before any operator runs
            where = self.recorder.locator.here()
            if _NO_NUMBERS in str(error) and self.recorder.decider is not None:
                return func(*(_sizes(self.recorder, item) for item in args), **_sizes(self.recorder, kwargs or {}))
            if _NO_DATA in str(error):
                raise host.refuse(f"{_named(func)}, which reads numbers in a tensor,", where) from None
            raise replay.with_location(error, where) from None


def _sizes(recorder: Recorder, value: Any) -> Any:
    """An argument, with numbers from data in its lists decided on: `interpolate(x, size=(height, width))`."""

    def known(element: Any) -> Any:
        if isinstance(element, torch.SymInt):
            return int(element)
        whole = isinstance(element, _TENSOR) and not element.dim() and not element.is_floating_point()
        return _number(recorder, _TENSOR.__int__, (element,), {}) if whole else element

    if isinstance(value, dict):
        return {name: _sizes(recorder, item) for name, item in value.items()}
    return tree_map_only((torch.SymInt, _TENSOR), known, value) if isinstance(value, (list, tuple)) else value


def _item(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`.item()` straight to the operator, so that the user gets our number class and not torch's."""
    tensor = unwrapped(args[0])
    if tensor is None:
        return func(*args, **kwargs)
    if tensor.numel() != 1:
        raise RuntimeError(f"a Tensor with {tensor.numel()} elements cannot be converted to Scalar")
    recorder.builder.location = recorder.locator.here()
    return item(recorder, tensor)


def _number(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`bool(t)`, `int(t)`, `float(t)`, and a tensor as an index of a list."""
    tensor = unwrapped(args[0])
    if tensor is None:
        return func(*args, **kwargs)
    if (known := recorder.known_tensor(tensor)) is not None:
        with torch._C._DisableTorchDispatch():
            return func(known)
    if recorder.decider is None or func is _TENSOR.__complex__:
        raise host.refuse(f"{_named(func)} of a tensor (a Python branch or number)", recorder.locator.here())
    _check_number(func, tensor)
    node = _item(recorder, func, (tensor,), {}).node
    if func is _TENSOR.__bool__:
        return bool(host.wrap(node.convert(bool)))
    if func is _TENSOR.__float__:
        return float(host.wrap(node))
    return int(recorder.specialize(node.unary("trunc") if node.kind is float else node))


def _check_number(func: Any, tensor: torch.Tensor) -> None:
    """Raise what eager raises for a tensor that is no single number."""
    if tensor.numel() != 1 or func is _TENSOR.__index__:
        with torch._C._DisableTorchDispatch():
            func(torch.zeros((), dtype=tensor.dtype).expand(tensor.shape))


def _tolist(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Few floats stay traced numbers; others are looked at, as Python does with them in nearly all uses."""
    tensor = unwrapped(args[0])
    if tensor is None:
        return func(*args, **kwargs)
    if (known := recorder.known_tensor(tensor)) is not None:
        with torch._C._DisableTorchDispatch():
            return known.tolist()
    if recorder.decider is None:
        return _no_data(recorder, func, args, kwargs)
    if tensor.is_floating_point() and tensor.numel() <= _TRACED_ELEMENTS:
        if tensor.dim() == 0:
            return _item(recorder, func, args, kwargs)
        return [_tolist(recorder, func, (part,), kwargs) for part in tensor.unbind(0)]
    recorder.builder.location = recorder.locator.here()
    return recorder.decider.elements(recorder.value_of(tensor))


def _no_data(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> NoReturn:
    raise EagerOnlyError(
        f"{_named(func)} needs the data of a tensor, which does not exist while the program is compiled; keep to torch "
        "operations inside the compiled function, or do this outside of it",
        recorder.locator.here(),
    )


def _tensor(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`torch.tensor` of a traced number, or of lists with some or with traced tensors of one element in them."""
    data = args[0] if args else kwargs.get("data")
    node = host.node_of(data)
    if node is None:
        if isinstance(data, torch.Tensor) or kwargs.get("requires_grad") or not holds_traced(data):
            return func(*args, **kwargs)
        device = next((part.device for part in _parts(data) if isinstance(part, torch.Tensor)), None)
        stacked = _stacked(data, device)
        return stacked.to(dtype=kwargs.get("dtype"), device=kwargs.get("device") or torch.get_default_device())
    dtype, device = kwargs.get("dtype") or _default_dtype(node.kind), kwargs.get("device") or torch.get_default_device()
    return torch.full((), data, dtype=dtype, device=device)


def _recurrent(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Recurrent layers go step by step where what a library keeps for their backward pass is not ours.

    That is oneDNN's of an LSTM that will be differentiated, and cuDNN's, which also looks where parameters lie.
    """
    library = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    if func is torch.lstm and torch.is_grad_enabled() and any(map(_requires_grad, args)):
        torch._C._set_mkldnn_enabled(False)
    torch._C._set_cudnn_enabled(False)
    try:
        return func(*args, **kwargs)
    finally:
        torch._C._set_mkldnn_enabled(library[0])
        torch._C._set_cudnn_enabled(library[1])


def _requires_grad(item: Any) -> bool:
    if isinstance(item, (list, tuple)):
        return any(map(_requires_grad, item))
    return isinstance(item, torch.Tensor) and item.requires_grad


def _grad(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`tensor.grad`: that there is one, or none, becomes a fact."""
    if not recorder.arguments.read_gradient(args[0]):
        recorder.gradients.read(args[0])
    return func(*args, **kwargs)


def _set_grad(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`tensor.grad = ...`"""
    recorder.arguments.reset_gradient(args[0])
    return func(*args, **kwargs)


def holds_traced(data: Any) -> bool:
    """Whether there is something traced in nested lists."""
    if type(data) in (float, int, bool):
        return False
    if isinstance(data, (list, tuple)):
        return any(map(holds_traced, data))
    if isinstance(data, torch.Tensor):
        return type(unwrapped(data)) is TracedTensor
    return host.node_of(data) is not None


def _parts(data: Any) -> Iterator[Any]:
    """What nested lists consist of."""
    for part in data:
        if isinstance(part, (list, tuple)):
            yield from _parts(part)
        else:
            yield part


def _stacked(data: Any, device: torch.device | None) -> torch.Tensor:
    """Nested lists of numbers and tensors of one element as one tensor."""
    if isinstance(data, torch.Tensor):
        return (data.detach().reshape(()) if data.numel() == 1 else data.detach()).to(device)
    if not isinstance(data, (list, tuple)):
        node = host.node_of(data)
        if node is None:
            return torch.tensor(data, device=device)
        return torch.full((), data, dtype=_default_dtype(node.kind), device=device)
    parts = [_stacked(part, device) for part in data]
    dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts))
    return torch.stack([part.to(dtype) for part in parts])


def _tensor_split(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Sections given as a tensor are read as numbers."""
    given = {**dict(zip(("input", "indices_or_sections", "dim"), args, strict=False)), **kwargs}
    sections = next((given.pop(k) for k in ("indices_or_sections", "tensor_indices_or_sections") if k in given), None)
    if not isinstance(sections, torch.Tensor):
        return func(*args, **kwargs)
    numbers = _tolist(recorder, func, (sections,), {})
    return torch.tensor_split(given["input"], numbers, given.get("dim", 0))


def _default_dtype(kind: type) -> torch.dtype:
    return {bool: torch.bool, int: torch.int64, float: torch.get_default_dtype()}[kind]


def _ctc_loss(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Lengths given as lists become tensors: torch makes them so itself in memory that traced tensors do not have."""
    arguments = dict(zip(("log_probs", "targets", *_LENGTHS), args, strict=False)) | kwargs
    if all(isinstance(arguments.get(name), (list, tuple)) for name in _LENGTHS):
        lengths = {name: torch.tensor(arguments[name], dtype=torch.int64) for name in _LENGTHS}
        if len(args) >= 4:
            return func(*args[:2], *lengths.values(), *args[4:], **kwargs)
        return func(*args[:2], **{**kwargs, **lengths})
    return func(*args, **kwargs)


_LENGTHS = ("input_lengths", "target_lengths")


def _equal(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`torch.equal` as a number of the program, in the place of a Python bool that torch would need now."""
    mine, other = (*args, *kwargs.values())[:2]
    if mine.dtype != other.dtype or mine.device != other.device or mine.is_complex():
        return func(*args, **kwargs)
    if mine.shape != other.shape:
        return False
    return _item(recorder, func, ((mine == other).all(),), {})


def _allclose(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`torch.allclose`, as `_equal`."""
    return _item(recorder, func, (torch.isclose(*args, **kwargs).all(),), {})


def _left_aligned(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> bool:
    return recorder.encoders.left_aligned(args[1])


def _to_nested(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    if not recorder.encoders.running:
        raise UnsupportedError("nested tensors are not compiled; keep the batch dense", recorder.locator.here())
    return recorder.encoders.to_nested(args[0], args[1])


def _to_padded(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    padded = recorder.encoders.to_padded(args[0])
    return func(*args, **kwargs) if padded is None else padded


def _named(func: Any) -> str:
    name: str = getattr(func, "__name__", str(func))
    if name in ("__get__", "__set__"):
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    return f"Tensor.{name}"


def _max_pool1d(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Where no gradient is recorded, eager has a function of its own on CPUs, whose result is contiguous."""
    tensor = args[0] if args else kwargs["input"]
    is_other = tensor.device.type == "cpu" and not (tensor.requires_grad and torch.is_grad_enabled())
    result = func(*args, **kwargs)
    return result.contiguous() if is_other else result


_SPECIAL: dict[Any, Callable[[Recorder, Any, Any, Any], Any]] = {
    _TENSOR.item: _item,
    _TENSOR.tolist: _tolist,
    **dynamic_index.SPECIAL,
    **masked_values.SPECIAL,  # which hands `x[...] = v` on
    **selections.SPECIAL,  # which hands `x[...]` on
    torch.nn.functional.batch_norm: batch_momentum.batch_norm,
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), _recurrent),
    torch.tensor: _tensor,
    torch.as_tensor: _tensor,
    _TENSOR.grad.__get__: _grad,  # type: ignore[union-attr]
    _TENSOR.grad.__set__: _set_grad,  # type: ignore[union-attr]
    torch.tensor_split: _tensor_split,
    _TENSOR.tensor_split: _tensor_split,
    **dict.fromkeys((torch.equal, _TENSOR.equal), _equal),
    **dict.fromkeys((torch.allclose, _TENSOR.allclose), _allclose),
    torch.ctc_loss: _ctc_loss,
    torch.nn.functional.ctc_loss: _ctc_loss,
    **dict.fromkeys((torch.max_pool1d, torch.nn.functional.max_pool1d), _max_pool1d),
    torch._nested_tensor_from_mask_left_aligned: _left_aligned,
    torch._nested_tensor_from_mask: _to_nested,
    _TENSOR.to_padded_tensor: _to_padded,
    **dict.fromkeys(
        (_TENSOR.__bool__, _TENSOR.__int__, _TENSOR.__float__, _TENSOR.__index__, _TENSOR.__complex__), _number
    ),
    **dict.fromkeys(
        (
            _TENSOR.numpy, _TENSOR.__array__, _TENSOR.__dlpack__, _TENSOR.data_ptr,
            _TENSOR.untyped_storage, _TENSOR.storage,
        ),
        _no_data,
    ),
    _TENSOR.data.__set__: assign_data,  # type: ignore[attr-defined]
}  # fmt: skip
