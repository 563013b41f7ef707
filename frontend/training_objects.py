"""Optimizers, schedules and gradient scalers that a captured function uses: they tell the capture what they do."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch

from graphc.frontend import schedulers
from graphc.frontend.optimizers import Optimizers, groups_of
from graphc.frontend.recorder import Recorder

Current: TypeAlias = Callable[[], Recorder | None]
"""Gives the capture of the thread that asks; None on another one, which runs in eager meanwhile."""

_SCALING = ("scale", "unscale_", "step", "update", "get_scale")
_SCALE_ONLY = ("scale", "get_scale")
_LAZILY = "_lazy_init_scale_growth_tracker"


@contextlib.contextmanager
def watching_training(recorder: Recorder, current: Current) -> Iterator[None]:
    """For the block: optimizers, schedules and scalers report to the recorder.

    Args:
        recorder: the capture.
        current: gives the capture of the thread that asks.
    """
    with _watching_optimizers(recorder, current), _watching_schedules(current), _watching_scalers(current):
        yield


def _zero_grad(original: Callable[..., Any], parameters: Callable[[Any], Any], current: Current) -> Callable[..., Any]:
    """`zero_grad` that drops gradients at once, so that it does not matter whether there were any."""

    @functools.wraps(original)
    def zero_grad(self: Any, set_to_none: bool = True) -> Any:
        recorder = current()
        if recorder is not None and set_to_none:
            with torch._C.DisableTorchFunction():
                recorder.gradients.reset(parameters(self))
        with recorder.optimizers.unwatched() if recorder is not None else contextlib.nullcontext():
            return original(self, set_to_none)

    return zero_grad


def _optimized(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in groups_of(optimizer):
        yield from group["params"]


class _Noticed:
    """An attribute of optimizers that is told of to the recorder when Python looks at it; kept where it is kept else.

    Args:
        name: of the attribute.
        look: the method of `Optimizers` to tell.
    """

    def __init__(self, name: str, look: Callable[[Optimizers, torch.optim.Optimizer], None], current: Current) -> None:
        self.name, self.look, self.current = name, look, current

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        found = vars(optimizer).get(self.name, self) if optimizer is not None else self
        if found is self:
            raise AttributeError(self.name)
        recorder = self.current()
        if recorder is not None:
            self.look(recorder.optimizers, optimizer)
        return found

    def __set__(self, optimizer: Any, value: Any) -> None:
        vars(optimizer)[self.name] = value


@contextlib.contextmanager
def _watching_optimizers(recorder: Recorder, current: Current) -> Iterator[None]:
    from torch.optim import optimizer as module

    before, after = module._global_optimizer_pre_hooks, module._global_optimizer_post_hooks
    of_optimizer, of_module = torch.optim.Optimizer.zero_grad, torch.nn.Module.zero_grad
    torch.optim.Optimizer.zero_grad = _zero_grad(of_optimizer, _optimized, current)  # type: ignore[method-assign]
    torch.nn.Module.zero_grad = _zero_grad(of_module, torch.nn.Module.parameters, current)  # type: ignore[method-assign]

    def enter(optimizer: Any, args: Any, kwargs: Any) -> None:
        if current() is recorder:
            recorder.schedules.check(optimizer)
            recorder.optimizers.enter(optimizer)

    def leave(optimizer: Any, args: Any, kwargs: Any) -> None:
        if current() is recorder:
            recorder.optimizers.leave(optimizer)

    before[-1], after[-1] = enter, leave
    looks = {"param_groups": Optimizers.look_into, "state": Optimizers.look_into_state}
    for name, look in looks.items():
        setattr(torch.optim.Optimizer, name, _Noticed(name, look, current))
    try:
        yield
    finally:
        del before[-1], after[-1]
        for name in looks:
            delattr(torch.optim.Optimizer, name)
        torch.optim.Optimizer.zero_grad = of_optimizer  # type: ignore[method-assign]
        torch.nn.Module.zero_grad = of_module  # type: ignore[method-assign]


@contextlib.contextmanager
def _watching_schedules(current: Current) -> Iterator[None]:
    methods = schedulers.stepping()
    for cls, name, original in methods:
        setattr(cls, name, _schedule(original, name != "step", current))
    try:
        yield
    finally:
        for cls, name, original in methods:
            setattr(cls, name, original)


def _schedule(original: Callable[..., Any], reads: bool, current: Current) -> Callable[..., Any]:
    """A method of a learning-rate schedule, which steps it or reads what a step has set."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = current()
        if recorder is None:
            return original(self, *args, **kwargs)
        if not reads:
            return recorder.schedules.step(self, original, args, kwargs)
        recorder.schedules.check_read()
        rates = recorder.optimizers.last_rates(self)
        return original(self) if rates is None else rates

    return method


@contextlib.contextmanager
def _watching_scalers(current: Current) -> Iterator[None]:
    methods = {name: vars(torch.amp.GradScaler)[name] for name in (*_SCALING, _LAZILY)}
    for name, original in methods.items():
        if name == _LAZILY:
            setattr(torch.amp.GradScaler, name, _creating_scale(original, current))
        else:
            setattr(torch.amp.GradScaler, name, _scaling(original, name not in _SCALE_ONLY, current))
    try:
        yield
    finally:
        for name, original in methods.items():
            setattr(torch.amp.GradScaler, name, original)


def _scaling(original: Callable[..., Any], uses_states: bool, current: Current) -> Callable[..., Any]:
    """A method of a gradient scaler, which keeps tensors and stages of the step in Python tables."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = current()
        if recorder is not None and self.is_enabled():
            recorder.scalers.enter(self, uses_states)
        return original(self, *args, **kwargs)

    return method


def _creating_scale(original: Callable[..., Any], current: Current) -> Callable[..., Any]:
    """What makes a scaler's tensors, when it first scales something."""

    @functools.wraps(original)
    def create(self: Any, device: torch.device) -> None:
        recorder = current()
        if recorder is None:
            original(self, device)
        else:
            recorder.scalers.create(self, original, device)

    return create
