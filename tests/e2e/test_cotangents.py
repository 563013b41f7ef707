"""Backward passes outside of compiled functions: gradients lie in memory as eager's, wherever cotangents lie."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import graphc
from graphc.errors import CaptureError
from graphc.frontend.cotangents import canonical, laid_out
from graphc.settings import override, settings
from tests.support import assert_contract

Function = Callable[..., torch.Tensor]

COTANGENTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda g: g.contiguous(),
    "expanded": lambda g: g.flatten()[0].expand(g.shape),
    "expanded rows": lambda g: g[:1].expand(g.shape),
    "transposed": lambda g: g.transpose(0, -1).contiguous().transpose(0, -1),
    "slice": lambda g: F.pad(g, (1, 2))[..., 1:-2],
    "steps": lambda g: torch.stack([g, g], -1)[..., 1],
}
CASES: dict[str, tuple[Function, list[tuple[int, ...]]]] = {
    "pointwise": (lambda x, y: (x * y).sin(), [(4, 6), (4, 6)]),
    "the cotangent itself": (lambda x, y: x + y, [(4, 6), (4, 6)]),
    "broadcast": (lambda x, y: x.exp() * y, [(4, 6), (6,)]),
    "transposed": (lambda x, y: x.t() * y, [(4, 6), (6, 4)]),
    "reshaped": (lambda x, y: (x.reshape(-1) * y).reshape(3, 8), [(4, 6), (24,)]),
    "product": (lambda x, y: x @ y, [(4, 6), (6, 5)]),
    "linear": (F.linear, [(2, 4, 6), (5, 6)]),
    "convolution": (lambda x, w: F.conv2d(x, w).relu(), [(2, 3, 6, 7), (4, 3, 3, 3)]),
    "softmax": (lambda x, y: torch.softmax(x, 0) * y, [(4, 6), (4, 6)]),
    "norm": (lambda x, w: F.layer_norm(x, (6,), w), [(4, 6), (6,)]),
    "pooling": (lambda x, y: F.max_pool2d(x * y, 2), [(2, 3, 6, 8), (2, 3, 6, 8)]),
    "expand inside": (lambda x, y: (x * y).sum(1), [(4, 6), (4, 6)]),
}


def leaves(shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def gradients(f: Function, tensors: Sequence[torch.Tensor], lay: Function) -> tuple[torch.Tensor, ...]:
    result = f(*tensors)
    weights = torch.linspace(-1, 2, result.numel(), dtype=torch.float64).reshape(result.shape).to(result.dtype)
    return torch.autograd.grad(result, tensors, lay(weights))


def backwards(compiled: Any) -> int:
    count: int = compiled._entries[0].compilation.backwards
    return count


@pytest.mark.parametrize("name", list(CASES))
def test_strides_and_values_are_eagers(name: str) -> None:
    f, shapes = CASES[name]
    tensors, compiled = leaves(shapes), graphc.compile(f)
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    for label, lay in COTANGENTS.items():
        found, eager, exact = (
            gradients(g, given, lay) for g, given in ((compiled, tensors), (f, tensors), (f, doubles))
        )
        for ours, theirs, reference in zip(found, eager, exact, strict=True):
            assert_contract(ours, theirs, reference)
            if _is_packed(theirs):
                assert ours.stride() == theirs.stride(), label
    assert compiled.stats().compiles == 1


def _is_packed(tensor: torch.Tensor) -> bool:
    """Not a part of something larger: of the cotangent, which is packed for the program."""
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    return canonical(shape, strides) == strides


def test_a_program_per_layout_and_no_more() -> None:
    f, tensors = graphc.compile(lambda x, y: (x * y).sin()), leaves([(4, 6), (4, 6)])
    for _ in range(2):
        for lay in COTANGENTS.values():
            gradients(f, tensors, lay)
    assert backwards(f) == 4  # slices and steps are packed
    for width in range(3, 9):
        gradients(f, tensors, lambda g, width=width: F.pad(g, (0, width))[:, :6])
    assert backwards(f) == 4
    assert f.explain(*tensors).stats["backward programs"] == 4


def test_layouts_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphc.differentiable._LAYOUTS", 2)
    f, tensors = CASES["pointwise"][0], leaves([(4, 6), (4, 6)])
    compiled = graphc.compile(f)
    for lay in COTANGENTS.values():
        for ours, theirs in zip(gradients(compiled, tensors, lay), gradients(f, tensors, lay), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert backwards(compiled) == 2


@pytest.mark.parametrize("loss", ["sum", "weighted", "permuted"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_convolutions_with_a_loss_outside(loss: str, channels_last: bool) -> None:
    """Gradients that lie as parameters are asked for by autograd are taken over, others copied: the same in eager."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)
    )
    image, weights = torch.randn(2, 3, 6, 6), torch.randn(2, 2, 4, 4)
    if channels_last:
        net, image = net.to(memory_format=torch.channels_last), image.contiguous(memory_format=torch.channels_last)
    compiled, found = graphc.compile(net), []
    for forward in (net.forward, compiled):
        net.zero_grad()
        x = image.clone().requires_grad_()
        seen: list[torch.Tensor] = []
        inner = x * 1.0
        inner.register_hook(seen.append)
        out = forward(inner)
        losses = {"sum": out.sum, "weighted": (out * weights).sum, "permuted": (out.permute(0, 2, 3, 1) ** 2).sum}
        losses[loss]().backward()
        found.append([x.grad, *seen, *(parameter.grad for parameter in net.parameters())])
    for theirs, ours in zip(*found, strict=True):
        assert ours.stride() == theirs.stride()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_parameters_that_have_moved_on_since_the_capture() -> None:
    """The first layout is compiled before the optimizer's step, the second one after it; neither notes the other."""
    net = torch.nn.Linear(6, 5)
    compiled, x = graphc.compile(net), torch.randn(4, 6, requires_grad=True)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for lay in (COTANGENTS["contiguous"], COTANGENTS["transposed"]):
        version = net.weight._version
        (ours,), (theirs,) = gradients(compiled, [x], lay), gradients(net.forward, [x], lay)
        assert net.weight._version == version
        assert ours.stride() == theirs.stride()
        torch.testing.assert_close(ours, theirs)
        compiled(x).sum().backward()
        optimizer.step()


class _Keeps(torch.autograd.Function):
    """Its context holds a tensor by an attribute, which eager allows too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.kept = x.cos()
        return x.sin()

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> torch.Tensor:
        return cotangent * ctx.kept


def test_a_function_whose_context_holds_a_tensor() -> None:
    f, (x,) = graphc.compile(_Keeps.apply), leaves([(4, 6)])
    for lay in COTANGENTS.values():
        (ours,), (theirs,) = gradients(f, [x], lay), gradients(_Keeps.apply, [x], lay)
        torch.testing.assert_close(ours, theirs)


KEPT: ContextVar[torch.Tensor] = ContextVar("KEPT")


@pytest.mark.parametrize("saved", [False, True])
def test_tensors_left_behind_are_found(saved: bool) -> None:
    """Autograd's graph of the capture is kept; what Python keeps besides is told from it."""

    def f(x: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        KEPT.set(y if saved else y.detach() * 2)
        return y * y

    with pytest.raises(CaptureError, match="keeps a tensor it made"):
        graphc.compile(f)(*leaves([(4, 6)]))


def test_a_thread_of_autograd_knows_of_the_settings_in_force(tmp_path: Path) -> None:
    """For GPUs autograd has threads of its own; the backward program is compiled there."""
    from concurrent.futures import ThreadPoolExecutor

    with override(dump=tmp_path):
        result = graphc.compile(lambda x: torch.tanh(x) * 2)(torch.ones(3, requires_grad=True))
        before = len(list(tmp_path.rglob("*")))
        assert before
        with ThreadPoolExecutor(1) as pool:
            pool.submit(result.sum().backward).result()
    assert len(list(tmp_path.rglob("*"))) > before
    assert settings().dump is None


def test_arguments_are_not_kept() -> None:
    table = torch.randn(6, 3, requires_grad=True)
    f = graphc.compile(lambda x: torch.tanh(x @ table) * x.sum())
    x = torch.randn(4, 6, requires_grad=True)
    f(x).sum().backward()
    gone = weakref.ref(x)
    del x
    gc.collect()
    assert gone() is None


def test_tensors_laid_out_anew() -> None:
    x = torch.arange(24.0).reshape(4, 6)
    for lay in COTANGENTS.values():
        given = lay(x)
        strides = canonical((4, 6), tuple(given.stride()))
        assert laid_out(given, strides).stride() == strides
        torch.testing.assert_close(laid_out(given, strides), given)
    assert canonical((4, 6), (0, 9)) == (0, 1)
    assert canonical((1, 6), (0, 9)) == (6, 1)
    assert canonical((4, 6), (0, 0)) == (0, 0)
    assert canonical((4, 6), (0, 0), expands=False) == (6, 1)


@pytest.mark.filterwarnings("ignore")
def test_complex_numbers() -> None:
    """Kernels hold none: gradients and cotangents are copied by library calls."""
    generator = torch.Generator().manual_seed(0)
    for f in (lambda x, y: x + y, lambda x, y: (x * y).t().exp()):
        tensors = [torch.randn(4, 6, generator=generator, dtype=torch.complex64).requires_grad_() for _ in "xy"]
        compiled = graphc.compile(f)
        for name in ("contiguous", "transposed", "slice", "expanded"):
            found, eager = (gradients(call, tensors, COTANGENTS[name]) for call in (compiled, f))
            for ours, theirs in zip(found, eager, strict=True):
                torch.testing.assert_close(ours, theirs)
                if name in ("contiguous", "transposed"):
                    assert ours.stride() == theirs.stride()
        assert compiled.stats().eager_calls == 0


class Heads(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.first, self.second = (torch.nn.Linear(3, 3) for _ in range(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.trunk(x).relu()
        return self.first(hidden), self.second(hidden) * 2


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_what_no_loss_reaches_has_no_gradient(used: tuple[int, ...]) -> None:
    """So that an optimizer leaves it alone, weight decay and all."""
    torch.manual_seed(0)
    eager = Heads()
    module = copy.deepcopy(eager)
    compiled, x = graphc.compile(module), torch.randn(4, 3)
    for run in (eager, compiled):
        results = run(x)
        sum(results[number].square().sum() for number in used).backward()
    for (name, mine), other in zip(module.named_parameters(), eager.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None), name
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad)


def test_an_argument_that_was_written_leads_to_no_gradient_of_another_result() -> None:
    @graphc.compile
    def fn(a, b, c):
        a.sub_(b)
        return torch.atanh(c)

    b, c = torch.tensor(0.1, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    fn(torch.tensor(0.5), b, c).backward()
    assert b.grad is None and c.grad is not None


@pytest.mark.parametrize("backend", ["interpret", "c"])
def test_a_gradient_that_is_one_number_for_other_cotangents(backend) -> None:
    """It is an expanded number for the cotangents that were expected, and for those that lie otherwise too."""
    b, a = torch.randn(3, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    compiled = graphc.compile(lambda b, a: (b.sum(), a * 2), backend=backend)
    for seed in (torch.ones(5, 4), torch.ones(4, 5).t(), torch.ones(1, 1).expand(5, 4)):
        found = torch.autograd.grad(compiled(b, a), (b, a), (torch.tensor(2.0), seed))
        assert torch.equal(found[0], torch.full((3,), 2.0)) and torch.equal(found[1], 2 * seed)
