"""Values put by masks and indices whose gradients are wanted, taken outside: one program, as right as eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import graphc
from tests.support import assert_contract

Tensor = torch.Tensor
MASK = torch.tensor([[True, False, True, False], [False, False, True, True], [False, False, False, False]])
ROWS = MASK[0, :3]


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def assigned(*index: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def assign(x: Tensor, values: Tensor) -> Tensor:
        x = x * 1.0
        x[index if len(index) > 1 else index[0]] = values
        return x

    return assign


PLACES = torch.tensor([2, 0, 2])
CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]] = {
    "token": (assigned(MASK), floats(3, 4, 5), floats(5)),
    "token of one row": (assigned(MASK), floats(3, 4, 5), floats(1, 5)),
    "number": (assigned(MASK), floats(3, 4, 5), floats(1)),
    "rows": (assigned(ROWS), floats(3, 4, 5), floats(4, 5)),
    "rows with slices": (assigned(ROWS, slice(None)), floats(3, 4), floats(4)),
    "behind a slice": (assigned(slice(None), MASK), floats(2, 3, 4, 5), floats(2, 1, 5)),
    "behind a slice, alike": (assigned(slice(None), MASK), floats(2, 3, 4), floats(1)),
    "transposed": (assigned(MASK), floats(4, 3).t(), floats(1)),
    "put": (lambda x, v: x.index_put((MASK,), v), floats(3, 4, 5), floats(5)),
    "put rows": (lambda x, v: torch.index_put(x, [ROWS], v), floats(3, 4, 5), floats(1, 4, 5)),
    "add": (lambda x, v: x.index_put((MASK,), v, accumulate=True), floats(3, 4, 5), floats(5)),
    "put in place": (lambda x, v: (x * 2).index_put_(indices=(MASK,), values=v).sin(), floats(3, 4, 5), floats(1, 5)),
    "fill": (lambda x, v: x.index_fill(0, PLACES, v), floats(3, 4), floats()),
    "fill the last": (lambda x, v: torch.index_fill(x, -1, PLACES[0], v), floats(3, 4).t(), floats()),
    "fill a number": (lambda x, v: x.index_fill(-1, PLACES[1:2], v) * 2, floats(), floats()),
    "fill in place": (lambda x, v: (x * 2).index_fill_(dim=1, index=PLACES, value=v), floats(3, 4), floats()),
}


@pytest.mark.parametrize("name", list(CASES))
def test_gradients(name: str) -> None:
    f, *given = CASES[name]
    compiled, found = graphc.compile(f), []
    for call, dtype in ((compiled, torch.float32), (f, torch.float32), (f, torch.float64)):
        tensors = [tensor.detach().to(dtype).requires_grad_() for tensor in given]
        result = call(*tensors)
        weights = torch.linspace(1, 2, result.numel(), dtype=torch.float64).reshape(result.shape).to(dtype)
        found.append((result.detach(), *torch.autograd.grad(result, tensors, weights)))
    for ours, theirs, exact in zip(*found, strict=True):
        assert_contract(ours, theirs, exact)
        assert ours.stride() == theirs.stride()
    assert (compiled.stats().compiles, compiled.stats().eager_calls) == (1, 0)


@pytest.mark.parametrize(
    "f",
    [
        lambda x, v: assigned(MASK[:, :3])(x, v),  # another shape
        lambda x, v: assigned(MASK, slice(None))(x, v),  # too many
        lambda x, v: assigned(MASK)(x, v.expand(3)),  # not as many as there are places
        lambda x, v: x.index_fill(0, PLACES + 1, v[0]),
        lambda x, v: x.index_fill(0, PLACES, v),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_eager_refuses(f: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, v = floats(3, 4).requires_grad_(), floats(1).requires_grad_()
    with pytest.raises(Exception) as eager:  # whichever it is
        f(x, v)
    with pytest.raises(eager.type):
        graphc.compile(f)(x, v)


@pytest.mark.parametrize("shape", [(4,), (4, 5), (1, 4, 5)])
def test_a_value_per_place(shape: tuple[int, ...]) -> None:
    """How many places there are is a decision; another number is for eager to refuse."""

    def f(x: Tensor, mask: Tensor, values: Tensor) -> Tensor:
        x = x * 2
        x[mask] = values.squeeze(0) if values.dim() > 2 else values
        return x.sin()

    compiled, x = graphc.compile(f), floats(3, 4, *shape[1:][-1:])
    for mask in (MASK, MASK.flip(0), MASK.t().reshape(3, 4)):
        found = []
        for call, dtype in ((compiled, torch.float32), (f, torch.float32), (f, torch.float64)):
            tensors = [tensor.to(dtype).requires_grad_() for tensor in (x.clone(), floats(*shape))]
            result = call(tensors[0], mask, tensors[1])
            found.append((result.detach(), *torch.autograd.grad(result.sum(), tensors)))
        for ours, theirs, exact in zip(*found, strict=True):
            assert_contract(ours, theirs, exact)
    assert compiled.stats().eager_calls == 0
    with pytest.raises((RuntimeError, IndexError)) as eager:
        f(x, ~MASK, floats(*shape).requires_grad_())
    with pytest.raises(eager.type):
        compiled(x, ~MASK, floats(*shape).requires_grad_())
