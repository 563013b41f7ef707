"""A hundred steps of training, compiled against eager: losses, parameters, buffers, state of optimizers.

Two comparisons per model. In float64 rounding stays tiny, so that any state handled wrong shows at once. In float32 the
numerics contract holds for the whole trajectory: the compiled one deviates from that in float64 no more than twice as
far as eager's does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import graphc

_SPEC = importlib.util.spec_from_file_location("training_zoo", Path(__file__).with_name("training_zoo.py"))
assert _SPEC is not None and _SPEC.loader is not None
zoo = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(zoo)

STEPS = 100
STRICT = 1e-9
"""Of float64 runs, relative to the largest number of each tensor: rounding comes to 1e-13, one wrong step to 1e-4."""
ULPS = 4
"""Units in the last place that the contract grants on top."""


@pytest.fixture(autouse=True)
def _gradients() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these models are too small for more
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)


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
        if func is F.dropout:
            x, p, training, *_ = (*args, *kwargs.values())
            return x * F.dropout(torch.ones_like(x, dtype=torch.float32), p, training).to(x.dtype)
        return func(*args, **kwargs)


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


def adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), 1e-3, eps=1e-5)


def of_zoo(name: str, dtype: torch.dtype) -> Trial:
    with default_dtype(torch.float32):
        torch.manual_seed(0)
        net, data, loss = zoo.MODELS[name]()
    net.to(dtype)
    opt = adam(net)
    trial = Trial([net], [opt], data, lambda *_: None, [net])

    def step(*batch: torch.Tensor) -> torch.Tensor:
        opt.zero_grad()
        value: torch.Tensor = loss(trial.modules[0], *batch)
        value.backward()
        opt.step()
        return value.detach()

    trial.step = step
    return trial


def gan(dtype: torch.dtype) -> Trial:
    with default_dtype(torch.float32):
        torch.manual_seed(0)
        maker = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 6)).to(dtype)
        judge = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1)).to(dtype)
    first, second = adam(judge), adam(maker)
    trial = Trial(
        [maker, judge], [first, second], lambda i: (zoo.floats(i, 8, 3), zoo.floats(i + 999, 8, 6)), lambda: None
    )
    trial.modules = [maker, judge]

    def step(noise: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        make, judged = trial.modules
        yes, no = torch.ones(8, 1, dtype=noise.dtype), torch.zeros(8, 1, dtype=noise.dtype)
        first.zero_grad()
        fake = make(noise)
        bce = F.binary_cross_entropy_with_logits
        loss_judge = bce(judged(real), yes) + bce(judged(fake.detach()), no)
        loss_judge.backward()
        first.step()
        second.zero_grad()
        loss_maker = bce(judged(fake), yes)
        loss_maker.backward()
        second.step()
        return torch.stack([loss_judge.detach(), loss_maker.detach()])

    trial.step = step
    return trial


def mixed_precision(dtype: torch.dtype) -> Trial:
    """Autocast to bfloat16 with float32 weights; in float64 there is no autocast."""
    trial = of_zoo("mlp", dtype)
    (net,), (opt,) = trial.nets, trial.opts

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        opt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=x.dtype is torch.float32):
            out = trial.modules[0](x)
        loss = F.cross_entropy(out.to(x.dtype), y)
        loss.backward()
        opt.step()
        return loss.detach()

    assert net is trial.modules[0]
    trial.step = step
    return trial


TRIALS: dict[str, Callable[[torch.dtype], Trial]] = {
    **{name: (lambda dtype, name=name: of_zoo(name, dtype)) for name in zoo.MODELS},
    "gan": gan,
    "mixed_precision": mixed_precision,
}


def run(trial: Trial, dtype: torch.dtype, form: str, falls_back: bool = False) -> dict[str, torch.Tensor]:
    """Train; the losses are among the numbers it gives.

    Args:
        form: `eager`, `step` (the whole step is one program) or `module` (compiled modules in an eager loop).
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
    for number in range(STEPS):
        with default_dtype(torch.float32):
            batch = [t.to(dtype) if t.is_floating_point() else t for t in trial.batch(number)]
        torch.manual_seed(number)
        with default_dtype(dtype):
            losses.append(step(*batch).double())
    assert all(item.stats().compiles <= 2 for item in compiled)
    assert falls_back or all(item.stats().eager_calls == 0 for item in compiled)
    return {"losses": torch.stack(losses), **trial.numbers()}


@pytest.mark.parametrize("name", list(TRIALS))
def test_float64(name: str) -> None:
    """The whole step as one program."""
    eager = run(TRIALS[name](torch.float64), torch.float64, "eager")
    found = run(TRIALS[name](torch.float64), torch.float64, "step")
    assert found.keys() == eager.keys()
    for key, theirs in eager.items():
        scale = float(theirs.abs().max()) if theirs.numel() else 0.0
        assert float((found[key] - theirs).abs().max()) <= STRICT * max(scale, 1e-3), key


@pytest.mark.filterwarnings("ignore::graphc.errors.FallbackWarning")
@pytest.mark.parametrize("name", list(TRIALS))
def test_float32(name: str) -> None:
    """Compiled modules in the user's own loop."""
    with SameNoise():
        exact = run(TRIALS[name](torch.float64), torch.float64, "eager")
    eager = run(TRIALS[name](torch.float32), torch.float32, "eager")
    # oneDNN's LSTM, which runs in float32 alone, has a backward pass of its own that cannot be captured
    found = run(TRIALS[name](torch.float32), torch.float32, "module", falls_back=name == "lstm")
    assert found.keys() == eager.keys() == exact.keys()
    for kind in ("losses", "net", "opt"):
        keys = [key for key in exact if key.startswith(kind)]
        ours, theirs = (
            deviation([numbers[key] for key in keys], [exact[key] for key in keys]) for numbers in (found, eager)
        )
        assert ours <= 2 * theirs + ULPS * torch.finfo(torch.float32).eps, (kind, ours, theirs)


def deviation(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """Root mean square over all elements of the difference, relative to the largest number of each tensor."""
    parts = [
        ((a - b) / b.abs().max().clamp_min(1e-3)).flatten() for a, b in zip(found, exact, strict=True) if b.numel()
    ]
    return float(torch.cat(parts).square().mean().sqrt())


def norm_and_dropout() -> Trial:
    return TRIALS["norm_and_dropout"](torch.float64)


@pytest.mark.parametrize("form", ["step", "module"])
def test_validation_schedule_and_checkpoint(form: str, tmp_path: Path) -> None:
    """Ten epochs of training and validation, a learning rate per epoch; and half of them again from a checkpoint."""

    def epochs(trial: Trial, form: str, first: int, last: int, resume: bool = False, save: bool = False) -> Any:
        (net,), (opt,) = trial.nets, trial.opts
        schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.8)
        if resume:
            saved = torch.load(tmp_path / "half.pt")
            for holder, state in zip((net, opt, schedule), saved, strict=True):
                holder.load_state_dict(state)
        step: Any = trial.step
        check: Any = lambda x, y: F.cross_entropy(trial.modules[0](x), y)
        if form == "step":
            step, check = graphc.compile(step, numerics="eager"), graphc.compile(check, numerics="eager")
        elif form == "module":
            trial.modules = [graphc.compile(net, numerics="eager")]
        losses = []
        for epoch in range(first, last):
            net.train()
            for number in range(10 * epoch, 10 * epoch + 10):
                torch.manual_seed(number)
                losses.append(step(*trial.batch(number)))
            net.eval()
            with torch.no_grad():
                losses.append(check(*trial.batch(-1 - epoch)))
            schedule.step()
            if save and epoch == (first + last) // 2 - 1:
                torch.save([holder.state_dict() for holder in (net, opt, schedule)], tmp_path / "half.pt")
        callables = [step, check] if form == "step" else [trial.modules[0]] if form == "module" else []
        assert sum(item.stats().compiles for item in callables) in (0, 2)  # never for a learning rate
        return torch.stack(losses), trial.numbers()

    with default_dtype(torch.float64):
        eager, state = epochs(norm_and_dropout(), "eager", 0, 10)
        found, mine = epochs(norm_and_dropout(), form, 0, 10, save=True)
        resumed, after = epochs(norm_and_dropout(), form, 5, 10, resume=True)
    torch.testing.assert_close(found, eager, rtol=STRICT, atol=STRICT)
    assert torch.equal(resumed, found[55:])  # the very numbers of the run that was not interrupted
    assert mine.keys() == after.keys() == state.keys()
    for key, theirs in state.items():
        torch.testing.assert_close(mine[key], theirs, rtol=STRICT, atol=STRICT)
        assert torch.equal(after[key], mine[key]), key
