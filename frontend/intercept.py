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
from graphc.frontend import host, replay
from graphc.frontend.dispatch import item
from graphc.frontend.recorder import Recorder

_TENSOR = torch.Tensor


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
        if special is not None:
            return special(self.recorder, func, args, kwargs or {})
        try:
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


def _branch(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> NoReturn:
    raise host.refuse(f"{_named(func)} of a tensor (a Python branch or number)", recorder.locator.here())


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
    """`torch.tensor` of a traced number."""
    data = args[0] if args else kwargs.get("data")
    node = host.node_of(data)
    if node is None:
        return func(*args, **kwargs)
    default = {bool: torch.bool, int: torch.int64, float: torch.get_default_dtype()}[node.kind]
    dtype, device = kwargs.get("dtype") or default, kwargs.get("device") or torch.get_default_device()
    return torch.full((), data, dtype=dtype, device=device)


def _grad(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`tensor.grad`: that there is one, or none, becomes a fact."""
    recorder.gradients.read(args[0])
    return func(*args, **kwargs)


def _named(func: Any) -> str:
    name: str = getattr(func, "__name__", str(func))
    if name in ("__get__", "__set__"):
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    return f"Tensor.{name}"


_SPECIAL: dict[Any, Callable[[Recorder, Any, Any, Any], Any]] = {
    _TENSOR.item: _item,
    torch.tensor: _tensor,
    torch.as_tensor: _tensor,
    _TENSOR.grad.__get__: _grad,  # type: ignore[union-attr]
    **dict.fromkeys(
        (_TENSOR.__bool__, _TENSOR.__int__, _TENSOR.__float__, _TENSOR.__index__, _TENSOR.__complex__), _branch
    ),
    **dict.fromkeys(
        (
            _TENSOR.numpy, _TENSOR.tolist, _TENSOR.__array__, _TENSOR.__dlpack__, _TENSOR.data_ptr,
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


def _zero_grad(original: Callable[..., Any], parameters: Callable[[Any], Any]) -> Callable[..., Any]:
    """`zero_grad` that drops gradients at once, so that it does not matter whether there were any."""

    @functools.wraps(original)
    def zero_grad(self: Any, set_to_none: bool = True) -> Any:
        recorder: Recorder | None = getattr(_running, "recorder", None)
        if recorder is not None and set_to_none:
            with torch._C.DisableTorchFunction():
                recorder.gradients.reset(parameters(self))
        return original(self, set_to_none)

    return zero_grad


def _optimized(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


@contextlib.contextmanager
def _watching_optimizers(recorder: Recorder) -> Iterator[None]:
    from torch.optim import optimizer as module

    before, after = module._global_optimizer_pre_hooks, module._global_optimizer_post_hooks
    of_optimizer, of_module = torch.optim.Optimizer.zero_grad, torch.nn.Module.zero_grad
    torch.optim.Optimizer.zero_grad = _zero_grad(of_optimizer, _optimized)  # type: ignore[method-assign]
    torch.nn.Module.zero_grad = _zero_grad(of_module, torch.nn.Module.parameters)  # type: ignore[method-assign]

    def enter(optimizer: Any, args: Any, kwargs: Any) -> None:
        if getattr(_running, "recorder", None) is recorder:
            recorder.optimizers.enter(optimizer)

    def leave(optimizer: Any, args: Any, kwargs: Any) -> None:
        if getattr(_running, "recorder", None) is recorder:
            recorder.optimizers.leave(optimizer)

    before[-1], after[-1] = enter, leave
    try:
        yield
    finally:
        del before[-1], after[-1]
        torch.optim.Optimizer.zero_grad = of_optimizer  # type: ignore[method-assign]
        torch.nn.Module.zero_grad = of_module  # type: ignore[method-assign]


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
        with plain, _watching_optimizers(recorder):
            yield
    finally:
        torch.set_autocast_cache_enabled(cache)
        torch.compiler._is_compiling_flag = flag
        torch.compile = compile_
        torch.nn.Module.__call__ = call  # type: ignore[method-assign]
        _running.recorder = None
