"""Single operators that compiled programs once got wrong, each a small case of what PyTorch's own samples found."""

from __future__ import annotations

import pytest
import torch

import graphc
from tests.support import assert_contract


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool])
@pytest.mark.parametrize("backend", ["c", "interpret"])
def test_padding_of_nothing(dtype, backend) -> None:
    """An element that is read under a mask of an empty tensor is the filler, not 0."""
    x = torch.empty(0, 3, dtype=dtype)
    padded = graphc.compile(lambda t: torch.nn.functional.pad(t, (1, 1, 1, 1), value=1), backend=backend)(x)
    assert_contract(padded, torch.ones(2, 5, dtype=dtype))


def test_inverse_error_function_near_one() -> None:
    """Its gradient is the exponential of its square, so what it loses near 1 is lost manifold."""
    x = torch.cat([1 - torch.logspace(-7, 0, 100), torch.linspace(-1, 1, 101)])
    compiled = graphc.compile(torch.erfinv, backend="c")(x)
    assert_contract(compiled, torch.erfinv(x), torch.erfinv(x.double()))


@pytest.mark.parametrize("shape", [(3, 4), (1, 1)])
def test_parts_of_complex_numbers_lie_as_in_eager(shape) -> None:
    z = torch.randn(shape, dtype=torch.complex64)
    parts = graphc.compile(lambda t: (t.real, t.imag.t(), torch.view_as_real(t)))(z)
    for mine, other in zip(parts, (z.real, z.imag.t(), torch.view_as_real(z)), strict=True):
        assert mine.stride() == other.stride() and torch.equal(mine, other)


def test_zeros_that_autograd_makes() -> None:
    """The gradient of sgn is a tensor of zeros without memory."""
    x = torch.randn(4, requires_grad=True)
    graphc.compile(torch.sgn)(x).sum().backward()
    assert x.grad is not None and x.grad.device.index is None and torch.equal(x.grad, torch.zeros(4))


def test_copies_of_storage_and_scatters_into_it() -> None:
    """`as_strided` counts from the start of the storage, gaps and what lies before the tensor included."""
    x, part = torch.arange(12.0)[1::2], torch.tensor([5.0, 6.0])
    for fn in (
        lambda t, _: torch.as_strided_copy(t, (3, 2), (2, 1), 1),
        lambda t, new: torch.as_strided_scatter(t, new, (2,), (4,), 1),
    ):
        mine, other = graphc.compile(fn, backend="c")(x, part), fn(x, part)
        assert mine.stride() == other.stride() and torch.equal(mine, other)


def test_half_precision_that_overflows_in_eager_alone() -> None:
    """Kernels keep intermediates in float32: a finite result is held to float64 then, not to eager's infinity."""
    x = torch.tensor([-13.0, 2.0], dtype=torch.float16)
    fn = lambda t: torch.log1p(torch.exp(-t))
    mine, exact = graphc.compile(fn, backend="c")(x), fn(x.double())
    assert not fn(x).isfinite().all() and mine.isfinite().all()
    assert_contract(mine, fn(x), exact)
    with pytest.raises(AssertionError):
        assert_contract(mine + 1, fn(x), exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_returned_is_what_was_decided_by(dtype) -> None:
    """A stored number is rounded for its own kernel too: two kernels that look at it decide alike."""
    x = torch.linspace(-3, 3, 257).to(dtype)
    limits = x / 3
    third, above = graphc.compile(lambda t, limit: (t / 3, t / 3 > limit), backend="c")(x, limits)
    assert torch.equal(third, limits) and not above.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_that_cancel(dtype) -> None:
    """Both terms of a gradient that is 0 are kept in float32 up to their sum."""
    x = torch.linspace(0.1, 3, 40).to(dtype).view(1, 40).requires_grad_()
    with torch.enable_grad():
        graphc.compile(lambda t: torch.nn.functional.normalize(t, p=0.5, dim=0), backend="c")(x).sum().backward()
    assert x.grad is not None and x.grad.abs().max() < 1e-4


@pytest.mark.parametrize("backend", ["c", "interpret"])
def test_gradient_of_softmax_where_one_weight_is_nearly_one(backend) -> None:
    """It is a difference of large numbers, which eager takes before they are multiplied."""
    generator = torch.Generator().manual_seed(1364)  # where eager is 18 times as exact as differences of products
    scores, slopes = torch.randn(3, 3, generator=generator) * 6, torch.randn(3, 3, generator=generator) * 20

    def gradient(x, g):
        x = x.detach().requires_grad_()
        torch.softmax(x, -1).backward(g)
        return x.grad

    with torch.enable_grad():
        found = graphc.compile(gradient, backend=backend)(scores, slopes)
        assert_contract(found, gradient(scores, slopes), gradient(scores.double(), slopes.double()))


@pytest.mark.parametrize("backend", ["c", "interpret"])
def test_memory_with_gaps_of_complex_numbers(backend) -> None:
    def fill(z):
        made = torch.empty_strided((2, 3), (4, 1), dtype=z.dtype)
        made.copy_(z)
        grown = z.clone().resize_(8)
        return made, grown[:6]

    z = torch.randn(2, 3, dtype=torch.complex64)
    for mine, other in zip(graphc.compile(fill, backend=backend)(z), fill(z), strict=True):
        assert mine.stride() == other.stride() and torch.equal(mine, other)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
def test_gradients_of_batch_norm_of_channels_last(train, mixed) -> None:
    """They are kernels, and lie as in eager."""
    norm = torch.nn.BatchNorm2d(3).train(train)

    def step(x: torch.Tensor, cotangent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(norm(x), (x, norm.weight, norm.bias), cotangent)

    x, cotangent = (torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last) for _ in range(2))
    args = (x, cotangent.contiguous() if mixed else cotangent)
    compiled = graphc.compile(step, backend="c")
    for mine, other in zip(compiled(*args), step(*args), strict=True):
        assert mine.stride() == other.stride()
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    assert not compiled.explain(*args).stats["extern"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("numerics", ["default", "eager"])
def test_products_are_rounded_with_what_is_added(dtype, numerics) -> None:
    """A product that is rounded first loses all digits to a term near its negative."""
    a, b = torch.randn(2, 6, 33).to(dtype), torch.randn(2, 33, 5).to(dtype)
    near = -(a.double() @ b.double())
    for fn, args in (
        (torch.addmm, (near[0].to(dtype), a[0], b[0])),
        (torch.nn.functional.linear, (a, b[0].t(), near[0, 0].to(dtype))),
        (torch.baddbmm, (near.to(dtype), a, b)),
    ):
        exact = fn(*(arg.double() for arg in args))
        assert_contract(graphc.compile(fn, numerics=numerics)(*args), fn(*args), exact)


def test_a_call_in_place_that_raises_raises_again() -> None:
    """By an operator without an import rule, on tensors without elements: nothing else shows that shapes do not fit."""
    for shape, other in (((0, 1), (0, 5)), ((4, 1), (4, 5)), ((0, 1), (0, 5))):
        with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
            graphc.compile(lambda a, b: a.igammac_(b))(torch.ones(shape), torch.ones(other))


def test_results_that_eager_conjugates_lazily() -> None:
    """A call may return memory with a bit that says it is to be read conjugated, and that must not be lost."""
    matrix = torch.randn(3, 3, dtype=torch.complex128)
    factors, pivots = torch.linalg.lu_factor(matrix)
    right, seed = torch.randn(4, 3, dtype=torch.complex128), torch.randn(4, 3, dtype=torch.complex128)

    def step(factors, pivots, right, seed):
        leaf = factors.detach().requires_grad_()
        result = torch.linalg.lu_solve(leaf, pivots, right, left=False)
        return result, *torch.autograd.grad(result, leaf, seed)

    args = (factors, pivots, right, seed)
    torch.testing.assert_close(graphc.compile(step)(*args), step(*args))


def test_bools_as_places() -> None:
    """gcc reads other elements where places are bools as numbers, in a vector."""
    for size in (7, 16, 100):
        x, table = torch.randn(size), torch.randn(40, size)
        for fn in (
            lambda x, t: x[(x > 0).long()],
            lambda x, t: x[torch.where(x > 0, 1, 0)] + t[(x > 0).int().long() + 3, 2],
            lambda x, t: t.gather(0, (t[:5] > 0).long()),
            lambda x, t: torch.zeros_like(x).index_put((torch.tensor([True, False]).long(),), x[:2]),
            lambda x, t: t[(x > 0).long().cumsum(0) % 7, 1],
            lambda x, t: torch.nn.functional.embedding((x > 0).long(), t),
        ):
            assert torch.equal(graphc.compile(fn)(x, table), fn(x, table))


@pytest.mark.parametrize("backend", ["c", "interpret"])
def test_strides_of_dims_of_size_1_are_those_that_eager_gives(backend) -> None:
    """By which nothing is found, and in which torch reads a memory format."""
    x, weight = torch.randn(2).as_strided((1, 2, 1), (2, 1, 2)), torch.randn(3, 2, 1)
    compiled = graphc.compile(torch.nn.functional.conv1d, backend=backend, numerics="eager")
    assert compiled(x, weight).stride() == torch.nn.functional.conv1d(x, weight).stride() == (3, 1, 3)
