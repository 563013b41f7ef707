"""What ATen dispatch does not show: methods that look at data or memory, and modules as they run."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch._functorch import eager_transforms
from torch.autograd.grad_mode import _force_original_view_tracking
from torch.nn.modules import transformer
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import stateless
from torch.overrides import TorchFunctionMode

from graphc.errors import EagerOnlyError, GraphcError, UnsupportedError
from graphc.frontend import batch_momentum, dynamic_index, host, masked_values, prints, replay, schedulers
from graphc.frontend.dispatch import item
from graphc.frontend.encoder import no_causal_hint
from graphc.frontend.extremes import traced_extremes
from graphc.frontend.foreach import grouped_updates
from graphc.frontend.math_functions import traced_math
from graphc.frontend.move_calls import assign_data
from graphc.frontend.optimizers import groups_of
from graphc.frontend.recorder import Recorder, Uninitialized
from graphc.frontend.traced import TracedTensor, unwrapped
from graphc.frontend.watched import look_into

_TENSOR = torch.Tensor
_TRACED_ELEMENTS = 64
_NO_DATA = "its data is not allocated yet"  # torch, where C++ asks a traced tensor for its memory


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
            if special is not None:
                return special(self.recorder, func, args, kwargs or {})
            return func(*args, **kwargs) if kwargs else func(*args)
        except GraphcError:
            raise
        except Exception as error:  # torch checks some arguments before any operator runs
            where = self.recorder.locator.here()
            if _NO_DATA in str(error):
                raise host.refuse(f"{_named(func)}, which reads numbers in a tensor,", where) from None
            raise replay.with_location(error, where) from None


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
    raise UnsupportedError(
        f"{_named(func)} needs the data of a tensor, which does not exist while the program is compiled; keep to torch "
        "operations inside the compiled function, or do this outside of it",
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


def _lstm(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """An LSTM that will be differentiated goes step by step: the state oneDNN keeps for its backward is not ours."""
    if not torch.is_grad_enabled() or not any(map(_requires_grad, args)):
        return func(*args, **kwargs)
    was_enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        return func(*args, **kwargs)
    finally:
        torch._C._set_mkldnn_enabled(was_enabled)


def _no_packing(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> NoReturn:
    raise EagerOnlyError(
        "recurrent layers go through packed sequences by the lengths of these, which are data; pad them and mask what "
        "is behind their ends to have them compiled",
        recorder.locator.here(),
    )


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


def _holds_traced(data: Any) -> bool:
    if type(data) in (float, int, bool):
        return False
    if isinstance(data, (list, tuple)):
        return any(map(_holds_traced, data))
    if isinstance(data, torch.Tensor):
        return type(unwrapped(data)) is TracedTensor
    return host.node_of(data) is not None


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


_SPECIAL: dict[Any, Callable[[Recorder, Any, Any, Any], Any]] = {
    _TENSOR.item: _item,
    _TENSOR.tolist: _tolist,
    **dynamic_index.SPECIAL,
    **masked_values.SPECIAL,  # which hands `x[...] = v` on
    torch.nn.functional.batch_norm: batch_momentum.batch_norm,
    torch.lstm: _lstm,
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

_running = threading.local()


def _call_module(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        recorder: Recorder | None = getattr(_running, "recorder", None)
        if recorder is None:  # another thread, running in eager meanwhile
            return original(self, *args, **kwargs)
        if isinstance(self, LazyModuleMixin) and self.has_uninitialized_params():
            raise Uninitialized(recorder.sources.module_paths.get(id(self), type(self).__name__))
        if isinstance(self, torch.nn.RNNBase) and args and isinstance(args[0], torch.nn.utils.rnn.PackedSequence):
            _no_packing(recorder, original, args, kwargs)
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
        recorder: Recorder | None = getattr(_running, "recorder", None)
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
        recorder: Recorder | None = getattr(_running, "recorder", None)
        if recorder is None or torch._C._len_torch_function_stack() > recorder.function_modes:
            return original(relevant)
        return False  # traced tensors do not, and those of other classes are refused when they meet an operator

    return has_torch_function


def _seeding(original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that sets random generators: it would do so while the function is captured, and never again."""

    def set_generator(*args: Any, **kwargs: Any) -> Any:
        recorder: Recorder | None = getattr(_running, "recorder", None)
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
        recorder: Recorder | None = getattr(_running, "recorder", None)
        if recorder is None:
            return original()
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            return recorder.imp.tape.save(original())

    return get_rng_state


_GENERATORS = ("manual_seed", "seed", "set_rng_state")


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
        with recorder.optimizers.unwatched() if recorder is not None else contextlib.nullcontext():
            return original(self, set_to_none)

    return zero_grad


def _optimized(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in groups_of(optimizer):
        yield from group["params"]


class _Groups:
    """`optimizer.param_groups`, told of to the recorder when Python looks at it; kept where it is kept without this."""

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        found = vars(optimizer).get("param_groups", self) if optimizer is not None else self
        if found is self:
            raise AttributeError("param_groups")
        recorder = _current()
        if recorder is not None:
            recorder.optimizers.look_into(optimizer)
        return found

    def __set__(self, optimizer: Any, groups: Any) -> None:
        vars(optimizer)["param_groups"] = groups


@contextlib.contextmanager
def _watching_optimizers(recorder: Recorder) -> Iterator[None]:
    from torch.optim import optimizer as module

    before, after = module._global_optimizer_pre_hooks, module._global_optimizer_post_hooks
    of_optimizer, of_module = torch.optim.Optimizer.zero_grad, torch.nn.Module.zero_grad
    torch.optim.Optimizer.zero_grad = _zero_grad(of_optimizer, _optimized)  # type: ignore[method-assign]
    torch.nn.Module.zero_grad = _zero_grad(of_module, torch.nn.Module.parameters)  # type: ignore[method-assign]

    def enter(optimizer: Any, args: Any, kwargs: Any) -> None:
        if getattr(_running, "recorder", None) is recorder:
            recorder.schedules.check(optimizer)
            recorder.optimizers.enter(optimizer)

    def leave(optimizer: Any, args: Any, kwargs: Any) -> None:
        if getattr(_running, "recorder", None) is recorder:
            recorder.optimizers.leave(optimizer)

    before[-1], after[-1] = enter, leave
    torch.optim.Optimizer.param_groups = _Groups()  # type: ignore[assignment]
    try:
        yield
    finally:
        del before[-1], after[-1]
        delattr(torch.optim.Optimizer, "param_groups")
        torch.optim.Optimizer.zero_grad = of_optimizer  # type: ignore[method-assign]
        torch.nn.Module.zero_grad = of_module  # type: ignore[method-assign]


def _schedule(original: Callable[..., Any], reads: bool) -> Callable[..., Any]:
    """A method of a learning-rate schedule, which steps it or reads what a step has set."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder: Recorder | None = getattr(_running, "recorder", None)
        if recorder is None:
            return original(self, *args, **kwargs)
        if not reads:
            return recorder.schedules.step(self, original, args, kwargs)
        recorder.schedules.check_read()
        rates = recorder.optimizers.last_rates(self)
        return original(self) if rates is None else rates

    return method


def _scaling(original: Callable[..., Any], uses_states: bool) -> Callable[..., Any]:
    """A method of a gradient scaler, which keeps tensors and stages of the step in Python tables."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder: Recorder | None = getattr(_running, "recorder", None)
        if recorder is not None and self.is_enabled():
            recorder.scalers.enter(self, uses_states)
        return original(self, *args, **kwargs)

    return method


def _creating_scale(original: Callable[..., Any]) -> Callable[..., Any]:
    """What makes a scaler's tensors, when it first scales something."""

    @functools.wraps(original)
    def create(self: Any, device: torch.device) -> None:
        recorder: Recorder | None = getattr(_running, "recorder", None)
        if recorder is None:
            original(self, device)
        else:
            recorder.scalers.create(self, original, device)

    return create


_SCALING = ("scale", "unscale_", "step", "update", "get_scale")
_SCALE_ONLY = ("scale", "get_scale")
_LAZILY = "_lazy_init_scale_growth_tracker"


def _tracing(original: Callable[..., Any]) -> Callable[..., Any]:
    """What `torch.func.linearize` calls before it traces a function, which takes tensors with data."""

    def disallow(function: Callable[..., Any]) -> Callable[..., Any]:
        recorder: Recorder | None = getattr(_running, "recorder", None)
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


@contextlib.contextmanager
def _watching_scalers() -> Iterator[None]:
    methods = {name: vars(torch.amp.GradScaler)[name] for name in (*_SCALING, _LAZILY)}
    for name, original in methods.items():
        watched = _creating_scale(original) if name == _LAZILY else _scaling(original, name not in _SCALE_ONLY)
        setattr(torch.amp.GradScaler, name, watched)
    try:
        yield
    finally:
        for name, original in methods.items():
            setattr(torch.amp.GradScaler, name, original)


@contextlib.contextmanager
def _watching_schedules() -> Iterator[None]:
    methods = schedulers.stepping()
    for cls, name, original in methods:
        setattr(cls, name, _schedule(original, name != "step"))
    try:
        yield
    finally:
        for cls, name, original in methods:
            setattr(cls, name, original)


@contextlib.contextmanager
def _watching_backward(recorder: Recorder) -> Iterator[None]:
    """Python that autograd runs in a backward pass (hooks, forward passes of checkpoints) is watched like any other.

    A function mode is off while a function that it was told of runs, and `backward` is one.
    """
    module: Any = torch.autograd
    original = module._engine_run_backward

    @functools.wraps(original)
    def run_backward(*args: Any, **kwargs: Any) -> Any:
        is_ours = getattr(_running, "recorder", None) is recorder
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
        if getattr(_running, "recorder", None) is None:
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


def _current() -> Recorder | None:
    """The capture of this thread."""
    recorder: Recorder | None = getattr(_running, "recorder", None)
    return recorder


@contextlib.contextmanager
def watching(recorder: Recorder) -> Iterator[None]:
    """For the block: modules report to the recorder when they run, and `torch.compiler.is_compiling()` is true.

    Autocast's cache of cast weights is off: it would outlive the capture. Functions under torch.compile run as written.
    Modules take the fused kernels that eager would take.
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
            plain, _without_saved_tensors_hooks(), _packing_detached(), _force_original_view_tracking(True),
            batch_momentum.traced_batch_counts(recorder), traced_extremes(), traced_math(),
            _watching_optimizers(recorder), _watching_schedules(), _watching_scalers(), grouped,
            _watching_transforms(), _watching_backward(recorder), prints.noted(_current),
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
