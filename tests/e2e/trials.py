"""Training runs to compare: modules, optimizers and a step, in float32 and float64, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import graphc
from benchmarks import zoo


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class SameNoise(TorchFunctionMode):
    """Random numbers in float64 are those that float32 would draw."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn_like:
            return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
        if func is torch.multinomial:
            return func(args[0].float(), *args[1:], **kwargs)
        if func is F.dropout:
            x, p, training, *_ = (*args, *kwargs.values())
            return x * F.dropout(torch.ones_like(x, dtype=torch.float32), p, training).to(x.dtype)
        if func is F.scaled_dot_product_attention and kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0):
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _attention(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: Any = None, dropout_p: float = 0.0, **_: Any
    ) -> torch.Tensor:
        """Attention as its formula, so that its dropout is one of those above."""
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        weights = torch.softmax(scores if attn_mask is None else scores + attn_mask, -1)
        with self:
            return F.dropout(weights, dropout_p, True) @ v


@dataclass
class Trial:
    """Modules and optimizers of one training run, and what a step of it does with a batch."""

    nets: list[nn.Module]
    opts: list[torch.optim.Optimizer]
    batch: Callable[[int], tuple[torch.Tensor, ...]]
    step: Callable[..., Any]
    modules: list[Any] = field(default_factory=list)  # the nets, or compiled ones, that `step` calls

    def numbers(self) -> dict[str, torch.Tensor]:
        """Everything the run has left, as float64."""
        found: dict[str, torch.Tensor] = {}

        def visit(path: str, item: Any) -> None:
            if isinstance(item, torch.Tensor):
                found[path] = item.detach().double().clone()
            elif isinstance(item, dict):
                for key, value in item.items():
                    visit(f"{path}.{key}", value)
            elif isinstance(item, (list, tuple)):
                for number, value in enumerate(item):
                    visit(f"{path}.{number}", value)
            elif isinstance(item, (int, float)):
                found[path] = torch.tensor(float(item), dtype=torch.float64)

        for kind, holders in (("net", self.nets), ("opt", self.opts)):
            for number, holder in enumerate(holders):
                visit(f"{kind}{number}", holder.state_dict())  # type: ignore[attr-defined]
        return found


def of_zoo(name: str, dtype: torch.dtype, optimizer: Callable[..., torch.optim.Optimizer] | None = None) -> Trial:
    """A model of the zoo, tiny, with its own optimizer or another one."""
    with default_dtype(torch.float32):
        torch.manual_seed(0)
        work = zoo.build(name)
    if optimizer is not None:
        work.optimizer = optimizer
    net = work.net.to(dtype)
    trial = Trial([net], [], work.batch, lambda *_: None, [net])
    if work.train is None:
        training = work.training(called=lambda *args: trial.modules[0](*args))
    else:
        training = work.training()
    trial.opts, trial.step = training.optimizers, training.step
    return trial


def run(
    trial: Trial, dtype: torch.dtype, form: str, steps: int, programs: int = 2, falls_back: bool = False
) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Train; gives all numbers it leaves, the losses among them, and what was compiled.

    Args:
        form: `eager`, `step` (the whole step is one program) or `module` (compiled modules in an eager loop).
        programs: that a compiled callable may take.
        falls_back: calls may run eager.
    """
    step: Any = trial.step
    compiled: list[Any] = []
    if form == "step":
        step = graphc.compile(step, numerics="eager")  # the very random numbers of eager
        compiled = [step]
    elif form == "module":
        trial.modules = compiled = [graphc.compile(net, numerics="eager") for net in trial.nets]
    losses = []
    for number in range(steps):
        with default_dtype(torch.float32):
            batch = [t.to(dtype) if t.is_floating_point() else t for t in trial.batch(number)]
        torch.manual_seed(number)
        with default_dtype(dtype):
            losses.append(step(*batch).double())
    assert all(item.stats().compiles <= programs for item in compiled)
    assert falls_back or all(item.stats().eager_calls == 0 for item in compiled)
    return {"losses": torch.stack(losses), **trial.numbers()}, compiled


def deviation(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """Root mean square over all elements of the difference, relative to the largest number of each tensor."""
    parts = [
        ((a - b) / b.abs().max().clamp_min(1e-3)).flatten() for a, b in zip(found, exact, strict=True) if b.numel()
    ]
    return float(torch.cat(parts).square().mean().sqrt())
