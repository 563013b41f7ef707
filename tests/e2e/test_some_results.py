"""Losses of some of the results: what the others' cotangents would lead to is not computed, as in eager."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphc
from graphc.frontend.not_given import without
from graphc.ir.parser import parse
from graphc.ir.verifier import verify

Results = tuple[torch.Tensor, ...]


def infinite_derivatives(x, w, b):
    hidden = (x @ w).relu()
    share = torch.softmax(hidden * 1000, -1)
    entropy = -(share * share.log()).sum(-1)  # NaN behind shares of 0
    normed = F.layer_norm(hidden, (5,), b)
    return normed, entropy, hidden.max(-1).values, torch.where(hidden > 0, normed, b)[:, :3].cumsum(1), x.sqrt()


class _Affine(torch.autograd.Function):
    """Its backward pass is not 0 where a cotangent is; autograd gives it zeros for those that are absent."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> Any:
        return x * 2, x * 3

    @staticmethod
    def backward(ctx: Any, first: torch.Tensor, second: torch.Tensor) -> Any:
        return first * 2 + (second + 1)


def functions_of_autograd(x, w, b):
    first, second = _Affine.apply(x)
    return first, second * 2, (second @ w) + b


def parts_of_tensors(x, w, b):
    table = torch.zeros(6, 5).index_add(0, torch.tensor([1, 1, 4, 0]), x @ w)
    picked = table[torch.tensor([0, 4, 4])]
    left, right = (x * x).split(3, 1)
    padded = F.pad(left, (1, 2)).flip(0)
    joined = torch.cat([left, right, x[:, :1]], 1)
    return picked, padded, joined, table.select(0, 1) + b, x.gather(1, torch.tensor([[0], [2], [1], [5]]))


def layers(x, w, b):
    image = (x @ w).reshape(2, 1, 2, 5)
    seen = F.conv2d(image, b[:4].reshape(1, 1, 2, 2), padding=1)
    pooled = F.max_pool2d(seen, 2)
    normed = F.batch_norm(seen, None, None, training=True)
    q = (x @ w)[None]
    mixed = F.scaled_dot_product_attention(q, q * 2, q + b, is_causal=True)
    return pooled, normed.mean(), mixed, F.cross_entropy(q[0], torch.arange(4)), F.interpolate(seen, scale_factor=2)


def recurrent(x, w, b):
    out, (h, c) = LSTM(x.reshape(4, 2, 3))
    return out * b[0], h, c.sum() * w.sum()


LSTM = nn.LSTM(3, 4)
FUNCTIONS: dict[str, Callable[..., Results]] = {
    f.__name__: f for f in (infinite_derivatives, functions_of_autograd, parts_of_tensors, layers, recurrent)
}


def _inputs() -> list[torch.Tensor]:
    torch.manual_seed(0)
    x, w, b = torch.rand(4, 6), torch.randn(6, 5), torch.randn(5)
    x[0] = 0
    return [tensor.requires_grad_() for tensor in (x, w, b)]


def _gradients(f: Callable[..., Results], numbers: Sequence[int]) -> list[torch.Tensor | None]:
    inputs = _inputs()
    results = f(*inputs)
    chosen = [results[number] for number in numbers]
    cotangents = [torch.linspace(-1, 2, result.numel()).reshape(result.shape) for result in chosen]
    return list(torch.autograd.grad(chosen, inputs, cotangents, allow_unused=True))


@pytest.mark.parametrize("backend", ["c", "interpret"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_eagers(name: str, backend: str) -> None:
    f = FUNCTIONS[name]
    count = len(f(*_inputs()))
    compiled: Any = graphc.compile(f, backend=backend)
    sizes = (1, 2, count) if backend == "c" else range(1, count + 1)
    for numbers in itertools.chain.from_iterable(itertools.combinations(range(count), size) for size in sizes):
        for ours, theirs in zip(_gradients(compiled, numbers), _gradients(f, numbers), strict=True):
            assert (ours is None) == (theirs is None), numbers
            if ours is not None and theirs is not None:
                torch.testing.assert_close(ours, theirs, equal_nan=True, msg=lambda text: f"{numbers}: {text}")
                assert ours.stride() == theirs.stride()
    assert compiled.stats().eager_calls == 0


def test_programs_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros stand for what is not given where there are programs enough."""
    monkeypatch.setattr("graphc.differentiable._LAYOUTS", 0)
    compiled: Any = graphc.compile(parts_of_tensors, backend="interpret")
    for numbers in ((0,), (1, 2), (3,)):
        found, wanted = _gradients(compiled, numbers), _gradients(parts_of_tensors, numbers)
        torch.testing.assert_close(found, wanted)
    assert compiled._entries[0].compilation.backwards == 1


def test_a_complex_result_that_no_loss_reaches() -> None:
    def f(x, w, b):
        return torch.fft.fft(x @ w), torch.view_as_real(torch.fft.fft(x)).sum(-1) * 2

    found, wanted = _gradients(graphc.compile(f, backend="c"), (1,)), _gradients(f, (1,))
    torch.testing.assert_close(found, wanted)


GRAPH = """\
graph backward(%y: f32[2, 3] arg "y", %a: f32[2, 3] arg "a", %b: f32[2, 3] arg "b") {
  %0: f32[2, 3] = mul(%b, %y)
  %1: f32[2, 3] = sub(%0, %b)
  %2: f32[2, 3] = add(%a, %1)
  %3: f32[6] = reshape(%1) {shape=[6]}
  %4: f32[6] = exp(%3)
  %5: f32[2, 3] = reshape(%4) {shape=[2, 3]}
  return %2, %5, %1
}
"""


def test_graphs_without_a_cotangent() -> None:
    graph = without(parse(GRAPH), 2, {1}, [0, 1])
    assert graph is not None
    verify(graph)
    assert "mul" not in str(graph) and "sub" not in str(graph) and "add" not in str(graph)
    assert str(graph).count("full()") == 1  # of which exp takes zeros
    other = without(parse(GRAPH), 2, {0}, [0, 1, 2])
    assert other is not None and "add" not in str(other) and "full" not in str(other)
