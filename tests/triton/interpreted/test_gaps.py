"""Matrices inside of programs whose rows lie apart, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import graphc
from graphc.passes import pad_rows
from graphc.settings import override
from tests.support import assert_contract

ROWS, WIDTH, CLASSES = 40, 8, 1003


@pytest.fixture(autouse=True)
def small_matrices_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pad_rows, "_SMALLEST", 0)


def loss_and_gradients(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    loss = F.cross_entropy(F.linear(x, w).view(4, -1, len(w)).flatten(0, 1), y)
    return loss.detach(), *torch.autograd.grad(loss, (x, w))


def strides_inside(compiled: Any, args: list[torch.Tensor]) -> set[tuple[int, ...]]:
    plan = compiled.graph(*args, stage="scheduled")
    return {spec.strides for spec in plan.buffers if spec.kind == "arena" and spec.shape == (ROWS, CLASSES)}


@pytest.mark.parametrize("templates", ["never", "always"])
@pytest.mark.parametrize("dtype, pitch", [(torch.float32, 1004), (torch.bfloat16, 1008)])
def test_an_odd_number_of_classes(dtype: torch.dtype, pitch: int, templates: str) -> None:
    torch.manual_seed(0)
    x, w = (torch.randn(n, WIDTH, dtype=dtype, requires_grad=True) for n in (ROWS, CLASSES))
    y = torch.randint(0, CLASSES, (ROWS,))
    with override(cache=False, templates=templates):
        compiled = graphc.compile(loss_and_gradients, backend="triton")
        found = compiled(x, w, y)
        assert strides_inside(compiled, [x, w, y]) == {(pitch, 1)}
        source = "".join(text for name, text in compiled.source(x, w, y).items() if name.endswith(".py"))
    assert f"by_r0 = r0 < {pitch}" in source and "mask=by_r0)" in source
    assert ("mask=in_i0 & by_i1)" in source) == (templates == "always")
    exact = loss_and_gradients(x.detach().double().requires_grad_(), w.detach().double().requires_grad_(), y)
    for ours, eager, true in zip(found, loss_and_gradients(x, w, y), exact, strict=True):
        assert_contract(ours, eager, true)


@pytest.mark.parametrize("backend", ["triton", "c"])
def test_what_lies_between_the_rows_of_the_users_tensors_is_theirs(backend: str) -> None:
    def scaled(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        return F.softmax(x, 1) @ w

    torch.manual_seed(0)
    whole, w = torch.randn(ROWS, CLASSES + 5), torch.randn(CLASSES, 3)
    mine, theirs = whole.clone(), whole.clone()
    with override(cache=False):
        found = graphc.compile(scaled, backend=backend)(mine[:, :CLASSES], w)
    torch.testing.assert_close(found, scaled(theirs[:, :CLASSES], w))
    assert torch.equal(mine, theirs)


def test_results_lie_as_in_eager() -> None:
    def product(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x @ w
        return y.relu() @ w.T, y.T

    x, w = torch.randn(ROWS, WIDTH), torch.randn(WIDTH, CLASSES)
    with override(cache=False):
        found = graphc.compile(product, backend="triton")(x, w)
    assert [y.stride() for y in found] == [y.stride() for y in product(x, w)]
    torch.testing.assert_close(found, product(x, w))
