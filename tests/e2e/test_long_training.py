"""A hundred steps of training, compiled against eager: losses, parameters, buffers, state of optimizers.

Two comparisons per model. In float64 rounding stays tiny, so that any state handled wrong shows at once. In float32 the
numerics contract holds for the whole trajectory: the compiled one deviates from that in float64 no more than twice as
far as eager's does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphc
from benchmarks import zoo
from tests.e2e.trials import SameNoise, Trial, default_dtype, deviation, of_zoo, run

NAMES = (
    "mlp", "mnist_cnn", "resnet18", "lstm", "gru", "rnn", "hand_written_lstm", "gpt", "vae", "autoencoder",
    "recommender", "policy_gradient", "norm_and_dropout", "translation",
)  # fmt: skip
"""Models of the zoo that train so long."""
PROGRAMS = {"policy_gradient": 3}
"""Programs of a step, where these are more than two."""
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


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-3, eps=1e-5)


def gan(dtype: torch.dtype) -> Trial:
    with default_dtype(torch.float32):
        torch.manual_seed(0)
        maker = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 6)).to(dtype)
        judge = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1)).to(dtype)
    first, second = adam(judge.parameters()), adam(maker.parameters())
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
    trial = of_zoo("mlp", dtype, adam)
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
    **{name: (lambda dtype, name=name: of_zoo(name, dtype, adam)) for name in NAMES},
    "gan": gan,
    "mixed_precision": mixed_precision,
}


@pytest.mark.parametrize("name", list(TRIALS))
def test_float64(name: str) -> None:
    """The whole step as one program."""
    eager, _ = run(TRIALS[name](torch.float64), torch.float64, "eager", STEPS)
    found, _ = run(TRIALS[name](torch.float64), torch.float64, "step", STEPS, PROGRAMS.get(name, 2))
    assert found.keys() == eager.keys()
    for key, theirs in eager.items():
        scale = float(theirs.abs().max()) if theirs.numel() else 0.0
        assert float((found[key] - theirs).abs().max()) <= STRICT * max(scale, 1e-3), key


@pytest.mark.filterwarnings("ignore::graphc.errors.FallbackWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.suite] * (place % 2)) for place, name in enumerate(TRIALS)]
)
def test_float32(name: str) -> None:
    """Compiled modules in the user's own loop."""
    with SameNoise():
        exact, _ = run(TRIALS[name](torch.float64), torch.float64, "eager", STEPS)
    eager, _ = run(TRIALS[name](torch.float32), torch.float32, "eager", STEPS)
    # oneDNN's LSTM, which runs in float32 alone, has a backward pass of its own that cannot be captured
    found, _ = run(TRIALS[name](torch.float32), torch.float32, "module", STEPS, falls_back=name == "lstm")
    assert found.keys() == eager.keys() == exact.keys()
    for kind in ("losses", "net", "opt"):
        keys = [key for key in exact if key.startswith(kind)]
        ours, theirs = (
            deviation([numbers[key] for key in keys], [exact[key] for key in keys]) for numbers in (found, eager)
        )
        assert ours <= 2 * theirs + ULPS * torch.finfo(torch.float32).eps, (kind, ours, theirs)


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
