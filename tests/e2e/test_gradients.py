"""Gradients that are imported as formulas, against eager's own kernels, within the numerics contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn import functional as F

import graphc
from tests.support import assert_contract

Function = Callable[..., torch.Tensor]

ACTIVATIONS: dict[str, Function] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "elu": lambda x: F.elu(x, 0.7),
    "elu in place": lambda x: F.elu(x * 1.0, 0.7, inplace=True),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 1.3),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.5),
    "relu6": F.relu6,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "softplus": lambda x: F.softplus(x, 2.0, 3.0),
    "logsigmoid": F.logsigmoid,
    "hardshrink": lambda x: F.hardshrink(x, 0.4),
    "softshrink": lambda x: F.softshrink(x, 0.4),
    "threshold": lambda x: F.threshold(x, 0.3, 2.0),
    "prelu": lambda x: F.prelu(x, torch.full((7,), 0.25, dtype=x.dtype)),
    "softmax": lambda x: torch.softmax(x, 0),
    "log_softmax": lambda x: torch.log_softmax(x, -1),
    "layer_norm": lambda x: F.layer_norm(x, (7,)),
    "group_norm": lambda x: F.group_norm(x[:, :6], 3),
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
}


@pytest.fixture(autouse=True)
def _grad() -> Iterator[None]:
    with torch.enable_grad():
        yield


def gradients(f: Function, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Gradients with respect to all tensors, for a cotangent that differs by element."""
    out = f(*tensors)
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).reshape(out.shape).to(out.dtype)
    return torch.autograd.grad(out, tensors, weights)


def compare(f: Function, *tensors: torch.Tensor, backend: str = "c", rounding: float = 1e-12) -> None:
    leaves = [tensor.requires_grad_() for tensor in tensors]
    found = gradients(graphc.compile(f, backend=backend), *leaves)
    eager = gradients(f, *leaves)
    exact = gradients(f, *(leaf.detach().double().requires_grad_() for leaf in leaves))
    for ours, theirs, reference in zip(found, eager, exact, strict=True):
        assert ours.stride() == theirs.stride()
        if ours.dtype == torch.float64:  # nothing is more exact: differences are those of rounding
            torch.testing.assert_close(ours, theirs, rtol=rounding, atol=rounding)
        else:
            assert_contract(ours, theirs, reference)


def values(dtype: torch.dtype) -> torch.Tensor:
    """Both sides of every branch, its points, and numbers that overflow."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, generator=generator, dtype=torch.float64) * 3
    x[0] = torch.tensor([0.0, -0.0, 0.4, -0.4, 3.0, -3.0, 6.0])
    x[1, :4] = torch.tensor([0.5, -0.5, 40.0, -40.0])
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations_and_norms(name: str, dtype: torch.dtype) -> None:
    # eager's kernel of hardsigmoid has its constant 1/6 in float32
    compare(ACTIVATIONS[name], values(dtype), rounding=1e-7 if name == "hardsigmoid" else 1e-12)


@pytest.mark.parametrize("name", ["softmax", "attention"])
def test_peaked_softmax_over_many_seeds(name: str) -> None:
    """Where eager's cancellation leaves no error by chance, nor does ours: with sums in float32 one in 25 fails."""

    def attention(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ x.mT, -1) @ x

    f = {"softmax": lambda x: torch.softmax(x, -1), "attention": attention}[name]
    compiled = graphc.compile(lambda x, g: torch.autograd.grad(f(y := x.detach().requires_grad_()), y, g)[0])
    generator = torch.Generator().manual_seed(3)
    for _ in range(300):
        x, g = (torch.randn(3, 5, generator=generator) * scale for scale in (5, 1))
        wide = x.double().requires_grad_()
        (exact,) = torch.autograd.grad(f(wide), wide, g.double())
        leaf = x.clone().requires_grad_()
        (eager,) = torch.autograd.grad(f(leaf), leaf, g)
        assert_contract(compiled(x, g), eager, exact)


@pytest.mark.parametrize("name", ["relu", "gelu", "softmax", "hardtanh", "batch_norm"])
def test_nothing_is_an_extern_call(name: str) -> None:
    f, x = graphc.compile(ACTIVATIONS[name]), values(torch.float32).requires_grad_()
    gradients(f, x)
    backward = f._entries[0].compilation.backward
    assert backward.program.stats["extern"] == {}


def test_nan_and_infinity() -> None:
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0])
    for name in ("relu", "tanh", "sigmoid", "leaky_relu", "hardtanh", "threshold"):
        f, x = ACTIVATIONS[name], special.clone().requires_grad_()
        (found,), (eager,) = gradients(graphc.compile(f), x), gradients(f, x)
        assert torch.equal(found.isnan(), eager.isnan()), name
        torch.testing.assert_close(found, eager, equal_nan=True)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("loss", [F.mse_loss, F.smooth_l1_loss, F.huber_loss, F.l1_loss, F.binary_cross_entropy])
def test_losses(loss: Function, reduction: str) -> None:
    x, y = (torch.rand(4, 5, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    compare(lambda a: loss(a * 0.9 + 0.05, y.to(a.dtype), reduction=reduction), x)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_class_losses(reduction: str, weighted: bool) -> None:
    labels = torch.tensor([2, 0, -100, 4])
    weight = torch.linspace(0.5, 1.5, 5)

    def f(x: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(x, labels, weight.to(x.dtype) if weighted else None, reduction=reduction)

    compare(f, torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))
    maps = labels[:, None, None].expand(4, 2, 3).contiguous()
    compare(
        lambda x: F.cross_entropy(x, maps, weight.to(x.dtype) if weighted else None, reduction=reduction),
        torch.randn(4, 5, 2, 3, generator=torch.Generator().manual_seed(1)),
    )


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_nearest_upsampling(mode: str, channels_last: bool) -> None:
    """By whole factors, each dim its own, the gradient is a sum; by others it is the library's."""
    generator = torch.Generator().manual_seed(0)
    for shape, size, fused in (((2, 3, 5), (10,), True), ((2, 3, 3, 4), (9, 8), True), ((2, 3, 3, 4), (3, 4), True),
                               ((1, 2, 2, 3, 2), (4, 3, 8), True), ((2, 3, 3, 4), (7, 8), False)):  # fmt: skip
        x = torch.randn(shape, generator=generator)
        if channels_last and len(shape) == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        weights = torch.rand(*shape[:2], *size, generator=generator)

        def slope(x: torch.Tensor, weights: torch.Tensor, size: tuple[int, ...] = size) -> torch.Tensor:
            out = F.interpolate(x, size=size, mode=mode)
            return torch.autograd.grad(out, x, weights.to(out).as_strided(out.shape, out.stride()))[0]

        compiled = graphc.compile(slope)
        x.requires_grad_()
        ours, theirs = compiled(x, weights), slope(x, weights)
        assert_contract(ours, theirs, slope(x.detach().double().requires_grad_(), weights))
        assert ours.stride() == theirs.stride()
        assert (compiled.explain(x, weights).stats["extern"] == {}) == fused


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("zero_infinity", [False, True])
def test_ctc_is_one_program_whatever_the_lengths(reduction: str, zero_infinity: bool) -> None:
    """Texts that do not fit their input, empty ones and all lengths: the numbers of the library call itself."""
    targets = torch.tensor([[1, 2, 2, 3], [4, 1, 1, 2], [3, 3, 0, 0]])
    f = lambda x, heard, sizes: F.ctc_loss(
        x.log_softmax(-1), targets, heard, sizes, reduction=reduction, zero_infinity=zero_infinity
    )
    compiled = graphc.compile(f)
    for heard, sizes in (([9, 8, 7], [4, 2, 3]), ([9, 2, 7], [3, 3, 0]), ([1, 1, 1], [1, 1, 1])):
        x = values(torch.float32)[:3, :5].expand(9, 3, 5).contiguous().requires_grad_()
        lengths = torch.tensor(heard), torch.tensor(sizes)
        (found,), (eager,) = (gradients(lambda x, g=g: g(x, *lengths), x) for g in (compiled, f))
        torch.testing.assert_close(found, eager, equal_nan=True)
    assert (compiled.stats().compiles, compiled.stats().paths) == (1, 0)
    with pytest.raises(RuntimeError, match="Expected input_lengths to have value at most 9, but got value 10"):
        compiled(x, torch.tensor([10, 1, 1]), torch.tensor([1, 1, 1]))


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5), (2, 4, 3, 3)])
@pytest.mark.parametrize("train", [True, False])
def test_norm_parameters(shape: tuple[int, ...], train: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight, bias = torch.rand(4, generator=generator), torch.rand(4, generator=generator)
    mean, var = torch.rand(4, generator=generator), torch.rand(4, generator=generator) + 0.5
    compare(
        lambda x, w, b: F.batch_norm(x, mean.to(x.dtype).clone(), var.to(x.dtype).clone(), w, b, training=train),
        x, weight, bias,
    )  # fmt: skip
    compare(lambda x, w, b: F.group_norm(x, 2, w, b), x.detach(), weight.detach(), bias.detach())
    last = torch.rand(shape[-1], generator=generator)
    compare(lambda x, w, b: F.layer_norm(x, w.shape, w, b), x.detach(), last, last.clone())


@pytest.mark.parametrize("backend", ["interpret"])
def test_other_backends(backend: str) -> None:
    compare(lambda x, w: F.gelu(x @ w).sum(0), torch.randn(3, 4), torch.randn(4, 5), backend=backend)


@pytest.mark.parametrize("backend", ["interpret", "c"])
def test_views_of_a_result_that_lies_in_all_of_its_memory(backend: str) -> None:
    """What `linear` returns is a view of a product, of which autograd knows nothing."""
    linear = torch.nn.Linear(4, 6, bias=False)

    def logits(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = linear(x)
        return y, y[:, -1:], y[:, 1]

    compiled, found = graphc.compile(logits, backend=backend), []
    x = torch.randn(2, 3, 4)
    for call in (compiled, logits):
        linear.zero_grad()
        results = call(x)
        with torch.no_grad():
            results[1].mul_(2)
        sum(result.square().sum() for result in results).backward()
        found.append([linear.weight.grad, *(result.detach() for result in results)])
        assert [result._base is results[0] for result in results] == [False, True, True]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert compiled.stats().eager_calls == 0


@pytest.mark.parametrize("backend", ["interpret", "c"])
def test_results_without_a_gradient_require_grad(backend) -> None:
    """The norm of order 0 counts elements: eager gives no gradient, and its result requires grad nonetheless."""
    x = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0]], requires_grad=True)
    result = graphc.compile(lambda t: torch.linalg.vector_norm(t, 0, dim=1), backend=backend)(x)
    assert result.requires_grad and result.tolist() == [2.0, 1.0]
    result.sum().backward()
    assert x.grad is None
