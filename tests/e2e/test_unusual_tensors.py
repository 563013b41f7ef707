"""Tensors that are not dense, real and of everyday size: computed as in eager, or refused by name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import graphc
from graphc.errors import FallbackWarning, GraphcError

Tensor = torch.Tensor
BACKENDS = pytest.mark.parametrize("backend", ["c", "interpret"])


class Custom(torch.Tensor):
    pass


EAGER: dict[str, Callable[[], Tensor]] = {
    "layout torch.sparse_coo": lambda: torch.eye(3).to_sparse(),
    "layout torch.sparse_csr": lambda: torch.eye(3).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
}


def test_refused_by_name() -> None:
    with pytest.raises(GraphcError, match=r"x is .* a tensor subclass"):
        graphc.compile(lambda x: x + 1)(torch.ones(2).as_subclass(Custom))


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning", "ignore:.*nested:UserWarning", "ignore:.*quantize:UserWarning")
@pytest.mark.parametrize("kind", list(EAGER))
def test_left_to_eager_by_name(kind: str) -> None:
    """As arguments, where other calls run compiled, and where a closure or a module holds them."""
    tensor, plain = EAGER[kind](), torch.ones(3)
    module = torch.nn.Identity()
    module.held = tensor

    def through(x: Tensor, module: Any = module) -> Tensor:
        return x + module.held.clone().numel()

    fn: Any = graphc.compile(lambda x: x.clone(), backend="interpret")
    with pytest.warns(FallbackWarning, match=f"x is .*{kind}"):
        assert fn(tensor).numel() == tensor.numel()
    assert torch.equal(fn(plain), plain) and (fn.stats().eager_calls, fn.stats().compiles) == (1, 1)
    for held in (lambda x: x + tensor.clone().numel(), through):
        closed: Any = graphc.compile(held, backend="interpret")
        with pytest.warns(FallbackWarning, match=kind):
            assert torch.equal(closed(plain), plain + tensor.numel())
        assert torch.equal(closed(plain), plain + tensor.numel()) and closed.stats().eager_calls == 2


@pytest.mark.filterwarnings("ignore")
def test_the_meta_device_is_for_eager() -> None:
    """Such calls run eager, others of the same function compiled; what eager makes of a mix of devices it does here."""
    f = graphc.compile(lambda x, y: x + y)
    assert f(torch.empty(2, device="meta"), 1).device.type == "meta"
    assert torch.equal(f(torch.ones(2), 1), torch.full((2,), 2.0)) and f.stats().eager_calls == 1
    agree(lambda x, y: x + y, torch.ones(2), torch.ones(2, device="meta"), backend="c")
    agree(lambda x: x + torch.ones(2, device="meta"), torch.ones(2), backend="c")


def agree(fn: Callable[..., Any], *args: Any, backend: str, **tolerance: float) -> None:
    """Compiled and eager give the same, NaN and inf in the same places, or raise errors of the same class."""
    outcomes = []
    for call in (graphc.compile(fn, backend=backend), fn):
        try:
            outcomes.append(call(*args))
        except Exception as error:
            assert not isinstance(error, GraphcError), error
            outcomes.append(type(error))
    ours, theirs = outcomes
    if isinstance(theirs, type):
        assert ours is theirs
    else:
        torch.testing.assert_close(ours, theirs, equal_nan=True, **tolerance)


def gradients(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor | None]:
    def step(x: Tensor) -> Tensor | None:
        leaf = x.detach().requires_grad_()
        result = fn(leaf)
        result.backward(torch.ones_like(result))
        return leaf.grad

    return step


SHAPED: list[Callable[[Tensor], Any]] = [
    lambda x: x.sum(), lambda x: x.mean(-1), lambda x: x.amax(0), lambda x: x.argmax(1), lambda x: x.prod(1),
    lambda x: x.softmax(-1), lambda x: x @ x.mT, lambda x: torch.cat([x, x * 2]), lambda x: x.cumsum(0),
    lambda x: x.sort(-1).values, lambda x: x.reshape(-1).flip(0), lambda x: x.var(-1), lambda x: x.logsumexp(-1),
    lambda x: x[:, :0] + 1, lambda x: F.layer_norm(x, x.shape[-1:]), lambda x: x.norm(dim=0),
    lambda x: x.unfold(0, 0, 1),
    lambda x: F.cross_entropy(x, torch.zeros(x.shape[0], dtype=torch.int64)), lambda x: torch.zeros(3).index_add(
        0, torch.zeros(0, dtype=torch.int64), x.reshape(-1)[:0]),
]  # fmt: skip


@BACKENDS
@pytest.mark.filterwarnings("ignore")
def test_nothing(backend: str) -> None:
    for shape in ((0, 3), (3, 0), (0, 0)):
        for fn in SHAPED:
            agree(fn, torch.zeros(shape), backend=backend)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_a_number_and_infinity(dtype: torch.dtype, backend: str) -> None:
    numbers = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -2.5, 1e30]
    x = torch.tensor([[a, b] for a in numbers for b in numbers], dtype=dtype)
    fns: list[Callable[[Tensor], Tensor]] = [
        lambda x: torch.stack([x[:, 0] + x[:, 1], x[:, 0] * x[:, 1], x[:, 0] / x[:, 1], x[:, 0].maximum(x[:, 1])]),
        lambda x: torch.stack([x.exp(), x.relu(), x.tanh(), x.sigmoid(), x.sqrt(), x.abs(), x.reciprocal(), x.sin()]),
        lambda x: torch.stack([x.clamp(-1, 1), x.nan_to_num(), x.sign(), torch.where(x > 0, x, -x), x.floor()]),
        lambda x: torch.stack([x.sum(-1), x.mean(-1), x.amax(-1), x.amin(-1), x.logsumexp(-1), x.prod(-1)]),
        lambda x: x.softmax(-1), lambda x: x.log_softmax(-1), lambda x: x.cumsum(-1), lambda x: F.silu(x),
    ]  # fmt: skip
    close = {"rtol": 2e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}  # of what eager rounds in between
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for fn in fns:
            agree(fn, x, backend=backend, **close)
            agree(gradients(fn), x, backend=backend, **close)
    agree(lambda x: (x == x, x.isnan(), x.isinf(), x.isfinite(), x.signbit(), x < 1, x.argmax(-1)), x, backend=backend)


@BACKENDS
def test_complex(backend: str) -> None:
    z = torch.randn(3, 4, dtype=torch.complex64)
    fns: list[Callable[[Tensor], Any]] = [
        lambda z: z * z.conj() + 2j, lambda z: (z.real + z.imag, z.abs(), z.angle()), lambda z: z @ z.mH,
        lambda z: torch.fft.fft(z.real), lambda z: z.sum(0).exp(), lambda z: torch.polar(z.abs(), z.angle()),
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for fn in fns:
            agree(fn, z, backend=backend)


@BACKENDS
def test_parts_of_complex_numbers_that_are_one_in_memory(backend: str) -> None:
    """Rows that are all the first one, seen as pairs of numbers: the calls' results lie so, too."""
    memory = torch.randn(8, dtype=torch.complex64)
    for z in (memory.as_strided((2, 3), (0, 2), 1), memory[:3].expand(2, 3), memory[0].expand(2, 3)):
        agree(lambda z: (z.imag == 1).reshape(1, 2, 3), z, backend=backend)
        agree(lambda z: (z.real.clone(), torch.view_as_real(z) * 2), z, backend=backend)


@BACKENDS
def test_diagonals_of_complex_matrices_that_lie_column_by_column(backend: str) -> None:
    def doubled(z: Tensor) -> tuple[Tensor, ...]:
        z = z.clone()
        z.diagonal().mul_(2)
        return z, z.diagonal() + 2, z.as_strided((2, 2), (1, 5), 1) * 1

    memory = torch.randn(21, dtype=torch.complex64)
    for z in (memory.as_strided((3, 7), (1, 3)), memory.view(3, 7), memory.as_strided((3, 3), (7, 2), 1)):
        agree(doubled, z, backend=backend)


@pytest.mark.parametrize("backend", ["c"])  # op by op, a slice of such a tensor would be a copy of it
def test_sizes_beyond_32_bits(backend: str) -> None:
    """Places, strides and counts that need 64 bits, in memory that is hardly there."""
    many = 2**33 + 5
    wide = torch.arange(3.0)[:, None].expand(3, many)
    agree(lambda x: x[1:, 2**32 + 1 : 2**32 + 4] * 2, wide, backend=backend)
    agree(lambda x: x[:, -2:].sum(1) + x.shape[1], wide, backend=backend)
    agree(lambda n: torch.arange(many - 3, many) + n, torch.tensor(2**40), backend=backend)
    large = torch.zeros(2**31 + 9, dtype=torch.int8)
    large[-1], large[2**31] = 7, 5
    agree(lambda x: (x[-3:] + 1, x[2**31 - 1 : 2**31 + 1] * 2, x[:: 2**31]), large, backend=backend)
