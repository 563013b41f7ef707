"""Faults on purpose: raise at a chosen place of a capture, a compilation or a run, and see what has changed since."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import transformer
from torch.optim import optimizer as optimizer_module
from torch.utils._python_dispatch import _get_current_dispatch_mode

from graphc.frontend.dispatch import CaptureMode
from graphc.frontend.recorder import Recorder
from graphc.frontend.traced import TracedTensor
from graphc.ir.graph import Graph


class Fault(Exception):
    """What the injectors raise."""


def _tensor(tensor: torch.Tensor | None) -> Any:
    """Identity, place, version, contents."""
    if tensor is None:
        return None
    with torch._C._DisableTorchDispatch():
        return (
            id(tensor), tensor.data_ptr(), tensor._version, tensor.requires_grad, tensor.dtype, tuple(tensor.stride()),
            tensor.detach().clone().view(torch.uint8).flatten().tolist() if tensor.dim() else repr(tensor.item()),
        )  # fmt: skip


def _module(module: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        for key, value in vars(part).items():
            if isinstance(value, dict):
                found[f"{path}.{key}"] = list(value), [id(item) for item in value.values()]
            else:
                found[f"{path}.{key}"] = _tensor(value) if isinstance(value, torch.Tensor) else repr(value)
        for key, tensor in [*part._parameters.items(), *part._buffers.items()]:
            found[f"{path}.{key} tensor"] = _tensor(tensor)
            if tensor is not None:
                found[f"{path}.{key}.grad"] = _tensor(tensor.grad)
                found[f"{path}.{key} hooks"] = list(tensor._backward_hooks or ())
    return found


def _optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for index, group in enumerate(optimizer.param_groups):
        found[f"group {index}"] = (
            id(group),
            [(k, [*map(id, v)] if k == "params" else repr(v)) for k, v in group.items()],
        )
    for param, home in optimizer.state.items():
        for key, value in home.items():
            found[f"state {id(param)}.{key}"] = _tensor(value) if isinstance(value, torch.Tensor) else repr(value)
        found[f"state {id(param)}"] = id(home), list(home)
    for name, value in vars(optimizer).items():
        if name.endswith("_hooks"):
            found[name] = list(value.items())
    return found


def _globals() -> dict[str, Any]:
    """Torch's flags, what a capture patches, and what it puts on stacks."""
    return {
        "rng": torch.get_rng_state().tolist(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "autocast depth": (torch.autocast_increment_nesting(), torch.autocast_decrement_nesting()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "is_compiling": (torch.compiler.is_compiling(), torch.compiler._is_compiling_flag),
        "dispatch mode": _get_current_dispatch_mode(),
        "function modes": torch._C._len_torch_function_stack(),
        "function off": torch._C._is_torch_function_enabled(),
        "collector": gc.isenabled(),
        "optimizer hooks": (
            list(optimizer_module._global_optimizer_pre_hooks), list(optimizer_module._global_optimizer_post_hooks)
        ),
        "patched": [
            nn.Module.__call__, nn.Module.zero_grad, torch.optim.Optimizer.zero_grad, torch.compile,
            torch.overrides.has_torch_function, transformer._detect_is_causal_mask, torch.get_rng_state,
            torch.random.get_rng_state, torch.manual_seed, torch.seed, torch.set_rng_state, torch.random.manual_seed,
            torch.nn.functional.batch_norm, sys.gettrace(), sys.getprofile(),
        ],
    }  # fmt: skip


class World:
    """Everything that a failing call must leave alone.

    Args:
        things: modules, optimizers and tensors that the call can reach.
    """

    def __init__(self, *things: nn.Module | torch.optim.Optimizer | torch.Tensor) -> None:
        self.things = things
        self.before = self._now()

    def _now(self) -> dict[str, Any]:
        found = _globals()
        for number, thing in enumerate(self.things):
            if isinstance(thing, torch.Tensor):
                parts = {"": _tensor(thing), ".grad": _tensor(thing.grad)}
            else:
                parts = _module(thing) if isinstance(thing, nn.Module) else _optimizer(thing)
            found.update({f"{number}:{name}": part for name, part in parts.items()})
        return found

    def changes(self) -> list[str]:
        """What is another thing than it was."""
        now = self._now()
        return sorted(name for name in now.keys() | self.before.keys() if now.get(name) != self.before.get(name))

    def check(self) -> None:
        assert self.changes() == []


def leftovers() -> dict[str, int]:
    """Objects of captures that are alive once the garbage collector has run."""
    gc.collect()
    kinds = (TracedTensor, Recorder, Graph)
    counts = {kind.__name__: 0 for kind in kinds}
    for item in gc.get_objects():
        if type(item) in kinds:
            counts[type(item).__name__] += 1
    return counts


def are_no_more_than(alive: dict[str, int]) -> bool:
    """Whether nothing is left over that was not before; what earlier tests have left may have gone meanwhile."""
    return all(count <= alive[kind] for kind, count in leftovers().items())


class Counter:
    """Counts events and raises at one of them.

    Args:
        at: the event, from 0; -1 for none.
        error: what to raise.
    """

    def __init__(self, at: int, error: type[BaseException] = Fault) -> None:
        self.at, self.error, self.count = at, error, 0

    def event(self) -> None:
        self.count += 1
        if self.count == self.at + 1:
            raise self.error("injected")


@contextlib.contextmanager
def at_dispatch(counter: Counter, after: bool = False) -> Iterator[None]:
    """An event before (or right after) each ATen call of a capture."""
    original = CaptureMode.__torch_dispatch__

    def dispatch(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not after:
            counter.event()
        result = original(self, func, types, args, kwargs)
        if after:
            counter.event()
        return result

    CaptureMode.__torch_dispatch__ = dispatch  # type: ignore[method-assign]
    try:
        yield
    finally:
        CaptureMode.__torch_dispatch__ = original  # type: ignore[method-assign]


@contextlib.contextmanager
def at_lines(counter: Counter, *functions: Callable[..., Any]) -> Iterator[None]:
    """An event before each line of these functions."""
    codes = {function.__code__ for function in functions}

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code not in codes:
            return None
        if event == "line":
            counter.event()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@contextlib.contextmanager
def on_entry(module: Any, name: str, counter: Counter) -> Iterator[None]:
    """An event before each call of `module.name`, a function or method of a class."""
    original = module.__dict__[name] if isinstance(module, type) else getattr(module, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        counter.event()
        return original(*args, **kwargs)

    setattr(module, name, call)
    try:
        yield
    finally:
        setattr(module, name, original)
