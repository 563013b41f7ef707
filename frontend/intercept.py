"""Modules as they run, and what else of torch a captured function meets that no dispatch shows: told to the capture."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._functorch import eager_transforms
from torch.autograd.grad_mode import _force_original_view_tracking
from torch.nn.modules import transformer
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import stateless

from graphc.errors import DataLoopError, EagerOnlyError
from graphc.frontend import batch_momentum, legacy_tensors, prints, selections
from graphc.frontend.encoder import no_causal_hint
from graphc.frontend.extremes import traced_extremes
from graphc.frontend.foreach import grouped_updates
from graphc.frontend.function_mode import FunctionMode
from graphc.frontend.locations import is_user_code
from graphc.frontend.loop_bodies import innermost_loop
from graphc.frontend.math_functions import traced_math
from graphc.frontend.packed import packing_nothing
from graphc.frontend.recorder import Recorder, Uninitialized
from graphc.frontend.scans import written_out_scans
from graphc.frontend.training_objects import watching_training

_running = threading.local()


def _current() -> Recorder | None:
    """The capture of this thread."""
    recorder: Recorder | None = getattr(_running, "recorder", None)
    return recorder


def _call_module(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        recorder = _current()
        if recorder is None:  # another thread, running in eager meanwhile
            return original(self, *args, **kwargs)
        if isinstance(self, LazyModuleMixin) and self.has_uninitialized_params():
            raise Uninitialized(recorder.sources.module_paths.get(id(self), type(self).__name__))
        recorder.sources.enter(self)
        kwargs = recorder.encoders.enter(self, args, kwargs)
        flag, torch.compiler._is_compiling_flag = torch.compiler._is_compiling_flag, not recorder.encoders.is_one(self)
        try:
            return original(self, *args, **kwargs)
        finally:
            torch.compiler._is_compiling_flag = flag
            recorder.encoders.leave(self)
            recorder.sources.leave()

    return call


def _reparametrize(original: Callable[..., Any]) -> Callable[..., Any]:
    """What `torch.func.functional_call` puts other tensors into a module with: it is known from before that."""

    @contextlib.contextmanager
    def reparametrize(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Iterator[None]:
        recorder = _current()
        if recorder is None:
            with original(module, *args, **kwargs):
                yield
            return
        recorder.sources.learn(module)
        lists = [(m.__dict__, m._flat_weights) for m in module.modules() if isinstance(m, torch.nn.RNNBase)]
        try:
            with original(module, *args, **kwargs):
                yield
        finally:  # they go on holding the other tensors until they run again
            for own, weights in lists:
                own["_flat_weights"] = weights

    return reparametrize


def _has_torch_function(original: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether tensors override torch functions, our own mode left out: modules choose their fused kernels by it."""

    def has_torch_function(relevant: Any) -> bool:
        recorder = _current()
        if recorder is None or torch._C._len_torch_function_stack() > recorder.function_modes:
            return original(relevant)
        return False  # traced tensors do not, and those of other classes are refused when they meet an operator

    return has_torch_function


def _seeding(original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that sets random generators: it would do so while the function is captured, and never again."""

    def set_generator(*args: Any, **kwargs: Any) -> Any:
        recorder = _current()
        if recorder is None:
            return original(*args, **kwargs)
        if args and recorder.imp.tape.knows(args[0]):
            return recorder.imp.tape.rewind(args[0])
        raise EagerOnlyError(
            f"torch.{original.__name__} sets the state of a random generator, which a compiled program does not; call "
            "it before the compiled function",
            recorder.locator.here(),
        )

    return set_generator


def _saving(original: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The state of torch's generator, which in a capture stands for a place among the draws."""

    def get_rng_state() -> torch.Tensor:
        recorder = _current()
        if recorder is None:
            return original()
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            return recorder.imp.tape.save(original())

    return get_rng_state


_GENERATORS = ("manual_seed", "seed", "set_rng_state")


def _compile(original: Callable[..., Any]) -> Callable[..., Any]:
    def compile(model: Any = None, **options: Any) -> Any:
        if _current() is None:
            return original(model, **options)
        return model if model is not None else lambda fn: fn

    return compile


def _tracing(original: Callable[..., Any]) -> Callable[..., Any]:
    """What `torch.func.linearize` calls before it traces a function, which takes tensors with data."""

    def disallow(function: Callable[..., Any]) -> Callable[..., Any]:
        recorder = _current()
        if recorder is not None:
            raise EagerOnlyError(
                "torch.func.linearize traces a function by itself; use torch.func.jvp, which is compiled",
                recorder.locator.here(),
            )
        return original(function)

    return disallow


@contextlib.contextmanager
def _watching_transforms() -> Iterator[None]:
    disallow = eager_transforms.lazy_dynamo_disallow
    eager_transforms.lazy_dynamo_disallow = _tracing(disallow)
    try:
        yield
    finally:
        eager_transforms.lazy_dynamo_disallow = disallow


_MANY = 100
"""Times that a function trains, after which its loop runs turn by turn."""


def _check_many(recorder: Recorder, target: Any) -> None:
    """The function trains for the `_MANY`th time: it has a whole training loop, which would be unrolled.

    Raises:
        DataLoopError: the loop can be run turn by turn.
    """
    function = getattr(target, "__func__", target)
    if not isinstance(function, types.FunctionType) or (recorder.decider is not None and recorder.decider.taken):
        return
    frame: types.FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    loop = None if frame is None else innermost_loop(function, frame.f_lineno)
    if loop is not None:
        raise DataLoopError(f"it trains {_MANY} times and more in one call", loop.line)


@contextlib.contextmanager
def _watching_backward(recorder: Recorder, target: Any) -> Iterator[None]:
    """Python that autograd runs in a backward pass (hooks, forward passes of checkpoints) is watched like any other.

    A function mode is off while a function that it was told of runs, and `backward` is one.

    Args:
        target: what is captured.
    """
    module: Any = torch.autograd
    original = module._engine_run_backward
    count = 0

    @functools.wraps(original)
    def run_backward(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        is_ours = _current() is recorder
        if is_ours:
            selections.check_roots(args)
        if is_ours and kwargs.get("accumulate_grad"):
            count += 1
            if count == _MANY:
                _check_many(recorder, target)
        if not is_ours or torch._C._len_torch_function_stack() >= recorder.function_modes:
            return original(*args, **kwargs)
        with FunctionMode(recorder):
            return original(*args, **kwargs)

    module._engine_run_backward = run_backward
    try:
        yield
    finally:
        module._engine_run_backward = original


@contextlib.contextmanager
def _packing_detached() -> Iterator[None]:
    """The function's own hooks of saved tensors get these without their place in autograd's graph.

    A hook that keeps the tensor itself (`save_on_cpu` does, on a CPU) would make a circle that is never let go.
    """
    autograd: Any = torch._C._autograd
    push = autograd._push_saved_tensors_default_hooks

    def push_detached(pack: Callable[[torch.Tensor], Any], unpack: Callable[[Any], torch.Tensor]) -> None:
        if _current() is None:
            push(pack, unpack)
        else:
            push(lambda tensor: pack(tensor.detach()), unpack)

    autograd._push_saved_tensors_default_hooks = push_detached
    try:
        yield
    finally:
        autograd._push_saved_tensors_default_hooks = push


@contextlib.contextmanager
def _without_saved_tensors_hooks() -> Iterator[None]:
    """What autograd saves in the capture is not handed to the caller's hooks, which expect tensors with data."""
    autograd, hooks = torch._C._autograd, []
    while (top := autograd._top_saved_tensors_default_hooks(True)) is not None:
        hooks.append(top)
        autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(hooks):
            autograd._push_saved_tensors_default_hooks(pack, unpack)


@contextlib.contextmanager
def _without_data_loaders(target: Any) -> Iterator[None]:
    """Nothing goes through the items of a data loader.

    Args:
        target: what is captured.
    """
    original = torch.utils.data.DataLoader.__iter__

    def iterate(self: Any) -> Any:
        if _current() is None:
            return original(self)
        own = getattr(target, "__code__", None)
        where, line, frame = "", 0, sys._getframe().f_back
        while frame is not None and not line:
            if not where and is_user_code(frame.f_code):
                where = f"{frame.f_code.co_name} (line {frame.f_lineno})"
            line = frame.f_lineno if frame.f_code is own else 0
            frame = frame.f_back
        raise DataLoopError(
            f"{where or 'it'} goes through the items of a {type(self).__name__}, which are other ones in every run; "
            "compile the function that has the loop, or what it does in a turn",
            line,
        )

    torch.utils.data.DataLoader.__iter__ = iterate  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.utils.data.DataLoader.__iter__ = original  # type: ignore[method-assign]


@contextlib.contextmanager
def watching(recorder: Recorder, target: Any = None) -> Iterator[None]:
    """For the block: modules report to the recorder when they run, and `torch.compiler.is_compiling()` is true.

    Autocast's cache of cast weights is off: it would outlive the capture. Functions under torch.compile run as written.
    Modules take the fused kernels that eager would take. Backward passes run in this thread, also those of GPUs, for
    which autograd has threads of its own: what is patched here, and the user's frames, are this thread's.
    """
    call, compile_, flag = torch.nn.Module.__call__, torch.compile, torch.compiler._is_compiling_flag
    overridden, causal = torch.overrides.has_torch_function, transformer._detect_is_causal_mask
    reparametrized = stateless._reparametrize_module
    cache = torch.is_autocast_cache_enabled()
    _running.recorder = recorder
    torch.nn.Module.__call__ = _call_module(call)  # type: ignore[method-assign]
    torch.compile = _compile(compile_)
    torch.overrides.has_torch_function = _has_torch_function(overridden)  # type: ignore[assignment]
    transformer._detect_is_causal_mask = no_causal_hint
    stateless._reparametrize_module = _reparametrize(reparametrized)
    torch.compiler._is_compiling_flag = True
    torch.set_autocast_cache_enabled(False)
    seeding = [
        (owner, name, getattr(owner, name)) for owner in (torch, torch.random) for name in _GENERATORS
        if hasattr(owner, name)
    ]  # fmt: skip
    for owner, name, function in seeding:
        setattr(owner, name, _seeding(function))
    reading = torch.get_rng_state
    torch.get_rng_state = torch.random.get_rng_state = _saving(reading)
    plain = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
    grouped = grouped_updates(_current)
    try:
        with (
            plain, torch.autograd.set_multithreading_enabled(False), _without_saved_tensors_hooks(),
            _packing_detached(), _force_original_view_tracking(True),
            batch_momentum.traced_batch_counts(recorder), traced_extremes(), traced_math(),
            watching_training(recorder, _current), grouped, written_out_scans(_current),
            _watching_transforms(), _watching_backward(recorder, target), prints.noted(_current),
            _without_data_loaders(target), packing_nothing(recorder), legacy_tensors.stacking(),
            selections.real_arguments(_current),
        ):  # fmt: skip
            yield
    finally:
        torch.get_rng_state = torch.random.get_rng_state = reading
        for owner, name, function in seeding:
            setattr(owner, name, function)
        torch.set_autocast_cache_enabled(cache)
        torch.compiler._is_compiling_flag = flag
        torch.compile = compile_
        torch.overrides.has_torch_function = overridden
        transformer._detect_is_causal_mask = causal
        stateless._reparametrize_module = reparametrized
        torch.nn.Module.__call__ = call  # type: ignore[method-assign]
        _running.recorder = None
