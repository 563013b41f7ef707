"""What ATen dispatch does not show: methods that look at data or memory, and modules as they run."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch.overrides import TorchFunctionMode

from graphc.errors import GraphcError, UnsupportedError
from graphc.frontend import batch_momentum, dynamic_index, host, replay
from graphc.frontend.dispatch import item
from graphc.frontend.recorder import Recorder
from graphc.frontend.traced import TracedTensor

_TENSOR = torch.Tensor
_TRACED_ELEMENTS = 64


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
        try:
            if special is not None:
                return special(self.recorder, func, args, kwargs or {})
            return func(*args, **kwargs) if kwargs else func(*args)
        except GraphcError:
            raise
        except Exception as error:  # torch checks some arguments before any operator runs
            raise replay.with_location(error, self.recorder.locator.here()) from None


def _item(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`.item()` straight to the operator, so that the user gets our number class and not torch's."""
    tensor = args[0]
    if tensor.numel() != 1:
        raise RuntimeError(f"a Tensor with {tensor.numel()} elements cannot be converted to Scalar")
    recorder.builder.location = recorder.locator.here()
    return item(recorder, tensor)


def _number(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`bool(t)`, `int(t)`, `float(t)`, and a tensor as an index of a list."""
    if recorder.decider is None or func is _TENSOR.__complex__:
        raise host.refuse(f"{_named(func)} of a tensor (a Python branch or number)", recorder.locator.here())
    tensor = args[0]
    _check_number(func, tensor)
    node = _item(recorder, func, args, kwargs).node
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
    tensor = args[0]
    if recorder.decider is None:
        return _no_data(recorder, func, args, kwargs)
    if tensor.is_floating_point() and tensor.numel() <= _TRACED_ELEMENTS:
        if tensor.dim() == 0:
            return _item(recorder, func, args, kwargs)
        return [_tolist(recorder, func, (part,), kwargs) for part in tensor.unbind(0)]
    recorder.builder.location = recorder.locator.here()
    return recorder.decider.elements(recorder.value_of(tensor))


def _no_data(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> NoReturn:
    raise UnsupportedError(
        f"{_named(func)} needs the data of a tensor, which does not exist while the program is compiled; keep to torch "
        "operations inside the compiled function, or do this outside of it",
        recorder.locator.here(),
    )


def _no_swap(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> NoReturn:
    raise UnsupportedError(
        f"{_named(func)} changes the storage of an existing tensor, which a compiled program cannot; use copy_() or "
        "make a new tensor",
        recorder.locator.here(),
    )


def _tensor(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`torch.tensor` of a traced number, or of lists with some or with traced tensors of one element in them."""
    data = args[0] if args else kwargs.get("data")
    node = host.node_of(data)
    if node is None:
        if isinstance(data, torch.Tensor) or kwargs.get("requires_grad") or not _holds_traced(data):
            return func(*args, **kwargs)
        stacked = _stacked(data)
        return stacked.to(dtype=kwargs.get("dtype"), device=kwargs.get("device"))
    dtype, device = kwargs.get("dtype") or _default_dtype(node.kind), kwargs.get("device") or torch.get_default_device()
    return torch.full((), data, dtype=dtype, device=device)


def _holds_traced(data: Any) -> bool:
    if type(data) in (float, int, bool):
        return False
    if isinstance(data, (list, tuple)):
        return any(map(_holds_traced, data))
    return type(data) is TracedTensor or host.node_of(data) is not None


def _stacked(data: Any) -> torch.Tensor:
    """Nested lists of numbers and tensors of one element as one tensor."""
    if isinstance(data, torch.Tensor):
        return data.detach().reshape(()) if data.numel() == 1 else data.detach()
    if not isinstance(data, (list, tuple)):
        node = host.node_of(data)
        return torch.tensor(data) if node is None else torch.full((), data, dtype=_default_dtype(node.kind))
    parts = [_stacked(part) for part in data]
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


def _named(func: Any) -> str:
    name: str = getattr(func, "__name__", str(func))
    if name in ("__get__", "__set__"):
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    return f"Tensor.{name}"


_SPECIAL: dict[Any, Callable[[Recorder, Any, Any, Any], Any]] = {
    _TENSOR.item: _item,
    _TENSOR.tolist: _tolist,
    **dynamic_index.SPECIAL,
    torch.nn.functional.batch_norm: batch_momentum.batch_norm,
    torch.tensor: _tensor,
    torch.as_tensor: _tensor,
    torch.tensor_split: _tensor_split,
    _TENSOR.tensor_split: _tensor_split,
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
    **dict.fromkeys((_TENSOR.data.__set__, _TENSOR.set_), _no_swap),  # type: ignore[attr-defined]
}  # fmt: skip

_running = threading.local()


def _call_module(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        recorder: Recorder | None = getattr(_running, "recorder", None)
        if recorder is None:  # another thread, running in eager meanwhile
            return original(self, *args, **kwargs)
        recorder.sources.enter(self)
        try:
            return original(self, *args, **kwargs)
        finally:
            recorder.sources.leave()

    return call


def _compile(original: Callable[..., Any]) -> Callable[..., Any]:
    def compile(model: Any = None, **options: Any) -> Any:
        if getattr(_running, "recorder", None) is None:
            return original(model, **options)
        return model if model is not None else lambda fn: fn

    return compile


@contextlib.contextmanager
def watching(recorder: Recorder) -> Iterator[None]:
    """For the block: modules report to the recorder when they run, and `torch.compiler.is_compiling()` is true.

    Autocast's cache of cast weights is off: it would outlive the capture. Functions under torch.compile run as written.
    """
    call, compile_, flag = torch.nn.Module.__call__, torch.compile, torch.compiler._is_compiling_flag
    cache = torch.is_autocast_cache_enabled()
    _running.recorder = recorder
    torch.nn.Module.__call__ = _call_module(call)  # type: ignore[method-assign]
    torch.compile = _compile(compile_)
    torch.compiler._is_compiling_flag = True
    torch.set_autocast_cache_enabled(False)
    plain = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
    try:
        with plain, batch_momentum.traced_batch_counts(recorder):
            yield
    finally:
        torch.set_autocast_cache_enabled(cache)
        torch.compiler._is_compiling_flag = flag
        torch.compile = compile_
        torch.nn.Module.__call__ = call  # type: ignore[method-assign]
        _running.recorder = None
