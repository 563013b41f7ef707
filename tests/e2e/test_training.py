"""Training compiled: a function or module in the user's own loop, and whole steps as one program, against eager."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphc
from benchmarks import zoo

NAMES = (
    "mlp", "mnist_cnn", "resnet18", "lstm", "gru", "rnn", "hand_written_lstm", "gpt", "bert", "translation", "vae",
    "autoencoder", "recommender", "policy_gradient", "norm_and_dropout",
)  # fmt: skip
"""Models of the zoo that are trained in every form; `test_zoo.py` has a few steps of all of them."""
STEPS = 12
TOLERANCE = 1e-7
"""Of losses and states after `STEPS` steps in float64: rounding alone is below 1e-9 (Adam divides by eps=1e-8)."""


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """Training amplifies rounding: in float64 what is left is wrong formulas."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(before)


def assert_same_state(a: Any, b: Any, tolerance: float = TOLERANCE) -> None:
    """Two state dicts, nested, agree."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_state(a[key], b[key], tolerance)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same_state(x, y, tolerance)
    else:
        assert a == b


def assert_same_grads(a: nn.Module, b: nn.Module) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert p.grad.stride() == q.grad.stride()  # type: ignore[union-attr]
            torch.testing.assert_close(p.grad, q.grad, rtol=TOLERANCE, atol=TOLERANCE)


def run(name: str, form: str, optimizer: Callable[[Any], Any], steps: int = STEPS) -> Any:
    """Train a model of the zoo compiled and eager from the same seed; returns the compiled callable."""
    torch.manual_seed(0)
    work = zoo.build(name)
    net, data, loss, draws = work.net, work.batch, work.loss, work.draws
    reference = copy.deepcopy(net)
    ours, theirs = optimizer(net.parameters()), optimizer(reference.parameters())
    compiled: Any

    def train(model: Any, opt: Any, call: Callable[..., Any], *batch: Any) -> torch.Tensor:
        opt.zero_grad()
        value = call(model, *batch)
        value.backward()
        opt.step()
        return value.detach()

    if form == "module":
        compiled = graphc.compile(net, numerics="eager" if draws else "default")
        step = lambda *batch: train(compiled, ours, loss, *batch)
    else:
        compiled = step = graphc.compile(
            lambda *batch: train(net, ours, loss, *batch), numerics="eager" if draws else "default"
        )
    for number in range(steps):
        batch = data(number)
        torch.manual_seed(number)
        found = step(*batch)
        torch.manual_seed(number)
        torch.testing.assert_close(found, train(reference, theirs, loss, *batch), rtol=TOLERANCE, atol=TOLERANCE)
    assert_same_state(net.state_dict(), reference.state_dict())
    assert_same_state(ours.state_dict(), theirs.state_dict())
    assert_same_grads(net, reference)
    assert compiled.stats().eager_calls == 0
    return compiled


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2)


@pytest.mark.parametrize("form", ["module", "step"])
@pytest.mark.parametrize("name", NAMES)
def test_models(name: str, form: str) -> None:
    programs = zoo.build(name).programs if form == "step" else {}
    assert run(name, form, adam).stats().compiles == programs.get(form, 1)


# how to build one, and how many programs a training run takes
OPTIMIZERS: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], int]] = {
    "SGD": (lambda p: torch.optim.SGD(p, 1e-2), 1),
    "SGD momentum": (lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, nesterov=True, weight_decay=0.1), 2),
    "Adam amsgrad": (lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True, weight_decay=0.1), 1),
    "AdamW": (lambda p: torch.optim.AdamW(p, 1e-2), 1),
    "RMSprop": (lambda p: torch.optim.RMSprop(p, 1e-2, centered=True, momentum=0.5), 1),
    "Adagrad": (lambda p: torch.optim.Adagrad(p, 1e-2, lr_decay=0.1), 1),
    "Adadelta": (lambda p: torch.optim.Adadelta(p, 0.5), 1),
    "Adamax": (lambda p: torch.optim.Adamax(p, 1e-2), 1),
    "NAdam": (lambda p: torch.optim.NAdam(p, 1e-2), 1),
    "Rprop": (lambda p: torch.optim.Rprop(p, 1e-2), 1),
    "RAdam": (lambda p: torch.optim.RAdam(p, 1e-2), 1),
    "ASGD": (lambda p: torch.optim.ASGD(p, 1e-2, t0=3), 1),
    "Adafactor": (lambda p: torch.optim.Adafactor(p, 1e-2), 1),
}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_optimizers(name: str) -> None:
    build, compiles = OPTIMIZERS[name]
    stats = run("mlp", "step", build, 8).stats()
    assert stats.compiles == compiles
    assert not torch.compiler.is_compiling()


@pytest.mark.parametrize("form", ["for-loop", "foreach"])
def test_adafactor_takes_no_decisions(form: str) -> None:
    """Its `max(1, norm)` and `min(rate, 1 / root)` stay in the program, whichever is larger, NaN as in Python."""

    def train(compiler: Callable[..., Any]) -> tuple[list[nn.Parameter], Any]:
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(shape)) for shape in ((3, 4), (5,), (2, 3, 2))]
        optimizer = torch.optim.Adafactor(params, 0.6, d=1.5, foreach=form == "foreach")
        step = compiler(optimizer.step)
        for number in range(6):
            for param in params:
                param.grad = torch.randn_like(param) * 10.0 ** (number % 3)
            if number == 5:
                params[1].grad[0] = float("nan")  # type: ignore[index]
            optimizer.param_groups[0]["lr"] *= 0.9
            step()
        return params, step

    (ours, step), (theirs, _) = train(graphc.compile), train(lambda fn: fn)
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=TOLERANCE, atol=TOLERANCE)
    stats = step.stats()
    assert (stats.compiles, stats.paths, stats.eager_calls) == (1, 0, 0)


class Pair:
    """A small model twice: one to train compiled, one eager."""

    def __init__(self, build: Callable[[], nn.Module] | None = None) -> None:
        torch.manual_seed(0)
        self.ours = build() if build else nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        self.theirs = copy.deepcopy(self.ours)

    def check(self) -> None:
        assert_same_state(self.ours.state_dict(), self.theirs.state_dict())
        assert_same_grads(self.ours, self.theirs)


def batch(seed: int) -> torch.Tensor:
    return zoo.floats(seed, 5, 4)


def test_learning_rate_schedule_compiles_once() -> None:
    pair = Pair()
    ours, theirs = adam(pair.ours.parameters()), adam(pair.theirs.parameters())

    def step(net: nn.Module, opt: Any, x: torch.Tensor) -> None:
        opt.zero_grad()
        net(x).square().mean().backward()
        opt.step()

    compiled = graphc.compile(lambda x: step(pair.ours, ours, x))
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.7) for o in (ours, theirs)]
    for number in range(5):
        compiled(batch(number))
        step(pair.theirs, theirs, batch(number))
        for schedule in schedules:
            schedule.step()
    pair.check()
    assert compiled.stats().compiles == 1


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_clipping_and_accumulation(set_to_none: bool) -> None:
    pair = Pair()
    ours, theirs = adam(pair.ours.parameters()), adam(pair.theirs.parameters())

    def step(net: nn.Module, opt: Any, x: torch.Tensor) -> torch.Tensor:
        opt.zero_grad(set_to_none=set_to_none)
        for part in x.chunk(2):
            (net(part).square().mean() / 2).backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        opt.step()
        return norm

    compiled = graphc.compile(lambda x: step(pair.ours, ours, x))
    for number in range(4):
        torch.testing.assert_close(compiled(batch(number)), step(pair.theirs, theirs, batch(number)))
    pair.check()
    assert compiled.stats().compiles <= 2


def test_accumulation_over_calls() -> None:
    pair = Pair()
    backward = lambda net, x: net(x).square().mean().backward()
    compiled = graphc.compile(lambda x: backward(pair.ours, x))
    for epoch in range(3):
        for number in range(3):
            compiled(batch(number))
            backward(pair.theirs, batch(number))
        pair.check()
        if epoch % 2:
            pair.ours.zero_grad()
            pair.theirs.zero_grad()
    assert compiled.stats().compiles == 2  # without gradients to add to, and with


def test_two_optimizers() -> None:
    def build() -> nn.Module:
        return nn.ModuleDict({"g": nn.Linear(3, 4), "d": nn.Linear(4, 1)})

    pair = Pair(build)

    def make(net: Any) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        g, d = adam(net["g"].parameters()), adam(net["d"].parameters())

        def step(noise: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            fake = net["g"](noise)
            d.zero_grad()
            ones, zeros = torch.ones(5, 1), torch.zeros(5, 1)
            loss_d = F.binary_cross_entropy_with_logits(net["d"](real), ones)
            loss_d = loss_d + F.binary_cross_entropy_with_logits(net["d"](fake.detach()), zeros)
            loss_d.backward()
            d.step()
            g.zero_grad()
            loss_g = F.binary_cross_entropy_with_logits(net["d"](fake), ones)
            loss_g.backward()
            g.step()
            return loss_d.detach(), loss_g.detach()

        return step

    compiled, eager = graphc.compile(make(pair.ours)), make(pair.theirs)
    for number in range(4):
        noise = zoo.floats(number, 5, 3)
        torch.testing.assert_close(compiled(noise, batch(number)), eager(noise, batch(number)))
    pair.check()


def test_moving_average_of_weights() -> None:
    pair = Pair()

    def make(net: nn.Module) -> tuple[nn.Module, Callable[[torch.Tensor], None]]:
        average, opt = copy.deepcopy(net).requires_grad_(False), torch.optim.SGD(net.parameters(), 0.1)

        def step(x: torch.Tensor) -> None:
            opt.zero_grad()
            net(x).square().mean().backward()
            opt.step()
            with torch.no_grad():
                for slow, fast in zip(average.parameters(), net.parameters(), strict=True):
                    slow.lerp_(fast, 0.1)

        return average, step

    (ours, step), (theirs, eager) = make(pair.ours), make(pair.theirs)
    compiled = graphc.compile(step)
    for number in range(4):
        compiled(batch(number))
        eager(batch(number))
    pair.check()
    assert_same_state(ours.state_dict(), theirs.state_dict())


def test_frozen_tied_and_hooked_parameters() -> None:
    def build() -> nn.Module:
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        net[2].weight = net[0].weight
        net[1].requires_grad_(False)
        return net

    pair = Pair(build)
    seen: list[torch.Tensor] = []
    for net in (pair.ours, pair.theirs):
        net[0].bias.register_hook(lambda grad: seen.append(grad) or grad * 2)
    compiled: Any = graphc.compile(pair.ours)
    for number in range(2):
        compiled(batch(number)).square().sum().backward()
        pair.theirs(batch(number)).square().sum().backward()
    pair.check()
    torch.testing.assert_close(seen[0], seen[1])


def test_gradients_of_inputs_and_of_some_results() -> None:
    @graphc.compile
    def f(x: torch.Tensor, y: torch.Tensor, scale: float) -> dict[str, Any]:
        return {"a": x * y.sin() * scale, "b": (x + y).exp(), "n": 3, "mask": x > 0}

    x, y = batch(0).requires_grad_(), batch(1)
    h = (x * 2).sigmoid()
    out = f(h, y, 2.0)
    assert out["n"] == 3 and not out["mask"].requires_grad
    (got,) = torch.autograd.grad(out["a"].sum(), x)
    want = torch.autograd.grad(((x * 2).sigmoid() * y.sin() * 2).sum(), x)[0]
    torch.testing.assert_close(got, want)


def test_retain_graph_double_backward_and_second_backward() -> None:
    f = graphc.compile(lambda x: (x.exp() * x).sum())
    x = batch(0).requires_grad_()
    loss = f(x)
    loss.backward(retain_graph=True)
    first = x.grad.clone()  # type: ignore[union-attr]
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    (grad,) = torch.autograd.grad(f(x), x, create_graph=True)
    with pytest.raises(graphc.errors.UnsupportedError, match="differentiated again"):
        grad.sum().backward()


def test_modes_and_changed_facts() -> None:
    pair = Pair()
    compiled: Any = graphc.compile(pair.ours)
    x = batch(0)
    with torch.no_grad():
        assert not compiled(x).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), pair.theirs(x))
    for rows in (5, 3):
        compiled(x[:rows]).sum().backward()
        pair.theirs(x[:rows]).sum().backward()
    for net in (pair.ours, pair.theirs):
        net[0].requires_grad_(False)
        net.zero_grad()
    compiled(x).sum().backward()
    pair.theirs(x).sum().backward()
    pair.check()


def test_saved_parameter_changed_before_backward_is_an_error() -> None:
    pair = Pair()
    loss = graphc.compile(pair.ours)(batch(0)).square().sum()
    with torch.no_grad():
        pair.ours[2].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_autocast() -> None:
    torch.set_default_dtype(torch.float32)
    pair = Pair()

    def loss(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out = net(x)
        return out.float().square().mean()

    compiled = graphc.compile(lambda x: loss(pair.ours, x))
    compiled(batch(0)).backward()
    loss(pair.theirs, batch(0)).backward()
    for p, q in zip(pair.ours.parameters(), pair.theirs.parameters(), strict=True):
        assert p.grad is not None and p.grad.dtype == torch.float32
        torch.testing.assert_close(p.grad, q.grad, rtol=2e-2, atol=2e-3)
    assert compiled.stats().eager_calls == 0


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return grad * 3 * x * x + 1  # not quite the gradient, so that we see it is this that runs


def test_custom_function_checkpoint_and_func() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        y = Cube.apply(x)
        return torch.utils.checkpoint.checkpoint(lambda t: t.sin().exp(), y, use_reentrant=False).sum()

    x = batch(0).requires_grad_()
    (got,) = torch.autograd.grad(graphc.compile(f)(x), x)
    torch.testing.assert_close(got, torch.autograd.grad(f(x), x)[0])
    per_sample = torch.func.vmap(torch.func.grad(lambda t: (t.sin() * t).sum()))
    torch.testing.assert_close(graphc.compile(per_sample)(batch(1)), per_sample(batch(1)))
    tangent = lambda t: torch.func.jvp(torch.sin, (t,), (t * 2,))
    torch.testing.assert_close(graphc.compile(tangent)(batch(1)), tangent(batch(1)))


def test_checkpointed_dropout_has_one_mask() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.3))

    def f(x: torch.Tensor) -> torch.Tensor:
        first = torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False)
        return (first * torch.rand(5, 8)).sum()

    x = batch(0).requires_grad_()
    torch.manual_seed(3)
    got = torch.autograd.grad(graphc.compile(f, numerics="eager")(x), [x, *net.parameters()])
    after = torch.rand(3)
    torch.manual_seed(3)
    want = torch.autograd.grad(f(x), [x, *net.parameters()])
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(after, torch.rand(3))


def test_state_dict_pickle_deepcopy_and_resume(tmp_path: Path) -> None:
    pair = Pair()
    ours, theirs = adam(pair.ours.parameters()), adam(pair.theirs.parameters())

    def step(net: Any, opt: Any, x: torch.Tensor) -> None:
        opt.zero_grad()
        net(x).square().mean().backward()
        opt.step()

    compiled = graphc.compile(lambda x: step(pair.ours, ours, x))
    compiled(batch(0))
    step(pair.theirs, theirs, batch(0))
    torch.save({"net": pair.ours.state_dict(), "opt": ours.state_dict()}, tmp_path / "c.pt")
    compiled(batch(1))
    saved = torch.load(tmp_path / "c.pt")
    pair.ours.load_state_dict(saved["net"])
    ours.load_state_dict(saved["opt"])
    compiled(batch(2))
    step(pair.theirs, theirs, batch(2))
    pair.check()
    twin = pickle.loads(pickle.dumps(graphc.compile(pair.ours)))
    other = copy.deepcopy(graphc.compile(pair.ours))
    for net in (twin, other):
        torch.testing.assert_close(net(batch(3)), pair.theirs(batch(3)))


def test_a_failing_step_changes_nothing() -> None:
    pair = Pair()
    opt = adam(pair.ours.parameters())

    @graphc.compile
    def step(x: torch.Tensor, bad: bool) -> None:
        opt.zero_grad()
        pair.ours(x).square().mean().backward()
        opt.step()
        if bad:
            raise ValueError("stop")

    pair.ours(batch(0)).sum().backward()
    pair.theirs(batch(0)).sum().backward()
    with pytest.raises(ValueError, match="stop"):
        step(batch(0), True)
    pair.check()
    assert not opt.state and opt.param_groups[0]["lr"] == 1e-2 and not torch.compiler.is_compiling()


def test_gradients_of_arguments_are_left_as_eager_leaves_them() -> None:
    f = graphc.compile(lambda t: (t * t).sum().backward())
    x = batch(0).requires_grad_()
    f(x)
    torch.testing.assert_close(x.grad, 2 * x.detach())
    h = x * 3  # its graph goes on outside of the function
    with pytest.warns(graphc.errors.FallbackWarning, match="leaves the gradient of the argument t"):
        f(h)
    assert f.stats().eager_calls == 1
    torch.testing.assert_close(x.grad, 20 * x.detach())
    both = graphc.compile(lambda t, u: ((t * t).sum().backward(), u.exp())[1])  # and a result to differentiate
    y = batch(1).requires_grad_()
    both(x, y).sum().backward()
    assert both.stats().eager_calls == 0
    torch.testing.assert_close(x.grad, 22 * x.detach())
    torch.testing.assert_close(y.grad, y.detach().exp())
    torch.testing.assert_close(graphc.compile(lambda t: t.grad * 2)(x), 44 * x.detach())


def test_two_steps_of_one_optimizer_in_a_function() -> None:
    pair = Pair()

    def make(net: nn.Module) -> Callable[[torch.Tensor], None]:
        first, second = adam(net[0].parameters()), adam(net[2].parameters())  # type: ignore[index]

        def step(x: torch.Tensor) -> None:
            for opt in (first, second, first):
                net.zero_grad()
                net(x).square().mean().backward()
                opt.step()

        return step

    compiled, eager = graphc.compile(make(pair.ours)), make(pair.theirs)
    for number in range(3):
        compiled(batch(number))
        eager(batch(number))
    pair.check()
    assert compiled.stats().compiles == 1


def test_what_must_run_eager_says_why() -> None:
    def doubled(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = t.detach().requires_grad_()
        return leaf, leaf * 2

    f = graphc.compile(doubled)
    with pytest.warns(graphc.errors.FallbackWarning, match="by a leaf tensor that the function makes and gives away"):
        leaf, out = f(batch(0))
    out.sum().backward()
    assert f.stats().eager_calls == 1 and torch.equal(leaf.grad, torch.full_like(leaf, 2.0))


def test_no_memory_is_kept() -> None:
    compiled = graphc.compile(nn.Linear(4, 4))
    for _ in range(3):
        compiled(batch(0)).sum().backward()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(20):
        compiled(batch(0)).sum().backward()
    gc.collect()
    assert len(gc.get_objects()) - before < 20


def test_no_warning_from_ordinary_training() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run("mlp", "module", adam, 2)


@pytest.mark.parametrize("place", ["buffer", "part of a buffer", "result", "argument", "part of an argument"])
def test_autograd_follows_what_is_written_in_place(place: str) -> None:
    """Writes that become part of autograd's history run eager, unless to arguments; all leave eager's history."""

    def make() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Callable[..., None]]:
        weight, argument = torch.ones(3, requires_grad=True), batch(0)[0, :3].clone()
        target = argument if "argument" in place else weight * 2 if place == "result" else torch.ones(3)

        def write(x: torch.Tensor) -> None:
            into = x if "argument" in place else target
            (into[1:] if "part" in place else into).mul_(weight[1:] if "part" in place else weight)

        return weight, target, argument, write

    for grad in (True, False):
        (weight, target, argument, write), (other, expected, given, eager) = make(), make()
        compiled = graphc.compile(write)
        with torch.set_grad_enabled(grad), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                compiled(argument)
                eager(given)
        runs_eager = grad and "argument" not in place
        assert compiled.stats().eager_calls == (2 if runs_eager else 0)
        assert bool(caught) == runs_eager and all(issubclass(w.category, graphc.errors.FallbackWarning) for w in caught)
        assert target.requires_grad == expected.requires_grad
        torch.testing.assert_close(target, expected)
        if grad:
            target.sum().backward()
            expected.sum().backward()
            torch.testing.assert_close(weight.grad, other.grad)
