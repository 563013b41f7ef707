"""Linear and cross-entropy in chunks of rows, as Triton kernels in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import graphc
from graphc.passes import row_chunks
from graphc.settings import override
from tests.support import assert_contract

ROWS, WIDTH, CLASSES = 96, 8, 80


def loss_and_gradients(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    loss = F.cross_entropy(F.linear(x, w), y, label_smoothing=0.1)
    return loss.detach(), *torch.autograd.grad(loss, (x, w))


def test_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(row_chunks.MIN_ROWS, "gpu", 32)
    torch.manual_seed(0)
    x, w = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(CLASSES, WIDTH, requires_grad=True)
    y = torch.randint(0, CLASSES, (ROWS,))
    with override(chunk_bytes=1, cache=False):
        compiled = graphc.compile(loss_and_gradients, backend="triton")
        found = compiled(x, w, y)
        plan = compiled.graph(x, w, y, stage="scheduled")
    assert max(spec.nbytes for spec in plan.buffers) == 32 * CLASSES * 4
    torch.testing.assert_close(found, loss_and_gradients(x, w, y))


def test_chunks_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms of a weight's gradient are products in bf16, as a GPU multiplies fast, added up in f32."""
    monkeypatch.setitem(row_chunks.MIN_ROWS, "gpu", 32)
    torch.manual_seed(0)
    x = torch.randn(ROWS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    w = torch.randn(CLASSES, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    y = torch.randint(0, CLASSES, (ROWS,))
    with override(chunk_bytes=1, cache=False):
        compiled = graphc.compile(loss_and_gradients, backend="triton")
        plan = compiled.graph(x, w, y, stage="scheduled")
        assert max(spec.nbytes for spec in plan.buffers) < ROWS * CLASSES * 2
        found = compiled(x, w, y)
    exact = loss_and_gradients(x.detach().double().requires_grad_(), w.detach().double().requires_grad_(), y)
    for ours, eager, reference in zip(found, loss_and_gradients(x, w, y), exact, strict=True):
        assert_contract(ours, eager, reference)
