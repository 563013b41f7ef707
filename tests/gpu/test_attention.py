"""Attention on a real CUDA device by the libraries for it: by hand and by torch's function, replayed as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import graphc
from graphc.runtime.device import find_device
from graphc.settings import override
from tests.support import assert_contract
from tests.triton.attentions import causal, plain

pytestmark = pytest.mark.gpu
T = torch.Tensor
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def _runs(library: str, dtype: torch.dtype, *shape: int) -> bool:
    device = find_device("cuda")
    assert device is not None
    return library in device.attention_libraries() and device.runs_attention(
        library, dtype, shape, shape[2], False, True
    )


def with_gradients(form: Callable[..., T]) -> Callable[..., tuple[T, ...]]:
    def step(q: T, k: T, v: T, g: T) -> tuple[T, ...]:
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        out = form(q, k, v)
        return out.detach(), *torch.autograd.grad(out, (q, k, v), g)

    return step


def projected(q: T, k: T, v: T) -> T:
    """Heads as projections give them, (B, S, H, D)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return causal(q, k, v).transpose(1, 2).contiguous()


def tensors(*shape: int, dtype: torch.dtype = torch.bfloat16, offset: int = 0) -> list[T]:
    count = torch.Size(shape).numel()
    return [torch.randn(count + offset, device="cuda").to(dtype)[offset:].view(shape) for _ in range(4)]


def agrees(compiled: Callable[..., Any], step: Callable[..., Any], given: list[T], reference: Any = None) -> None:
    """Four calls, the last of them replayed."""
    eager, exact = (reference or step)(*given), (reference or step)(*(x.double() for x in given))
    for _ in range(4):
        for mine, theirs, true in zip(compiled(*given), eager, exact, strict=True):
            assert_contract(mine.cpu(), theirs.cpu(), true.cpu())


@pytest.mark.parametrize("policy", ["never", "auto", "always"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("form", "shape"),
    [(plain, (2, 4, 512, 64)), (causal, (8, 1024, 128)), (causal, (2, 4, 520, 64)), (projected, (2, 512, 4, 64))],
    ids=["plain", "causal", "odd", "projected"],
)
def test_written_by_hand(form: Callable[..., T], shape: tuple[int, ...], dtype: torch.dtype, policy: str) -> None:
    given, step = tensors(*shape, dtype=dtype), with_gradients(form)
    with override(templates=policy, cache=False):
        compiled = graphc.compile(step)
        agrees(compiled, step, given)
        calls = compiled.explain(*given).stats["extern"]
    if policy == "always":
        assert not calls
    if policy == "never" and any(_runs(name, dtype, 1, 4, 512, shape[-1]) for name in BACKENDS):
        assert sum("_scaled_dot_product" in name for name in calls) == 2


def test_tensors_that_begin_anywhere() -> None:
    given, step = tensors(4, 512, 64, offset=1), with_gradients(causal)
    with override(templates="never", cache=False):
        agrees(graphc.compile(step), step, given)


def test_a_module_in_an_eager_loop() -> None:
    class Net(torch.nn.Module):
        def forward(self, q: T, k: T, v: T) -> T:
            return causal(q, k, v)

    net = Net()
    with override(templates="never", cache=False):
        agrees(with_gradients(graphc.compile(net)), with_gradients(net), tensors(2, 4, 512, 64))


@pytest.mark.parametrize("name", BACKENDS)
def test_torchs_function(name: str) -> None:
    """A whole step is recorded: nothing in it lies with the CPU."""
    if not _runs(name, torch.bfloat16, 2, 4, 512, 64):
        pytest.skip(f"torch does not run {name} here")
    step = with_gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    given = tensors(2, 4, 512, 64)
    with override(cache=False), sdpa_kernel(BACKENDS[name]):
        compiled = graphc.compile(step)
        agrees(compiled, step, given, with_gradients(causal))
        report = compiled.explain(*given)
    assert all(f"_scaled_dot_product_{name}_attention" in call for call in report.stats["extern"])
    assert "CPU" not in report.stats["launch"]["replay"]


def test_both_are_measured() -> None:
    """One of the two wins; what is chosen is right."""
    given, step = tensors(8, 1024, 128), with_gradients(causal)
    with override(templates="auto", cache=False):
        compiled = graphc.compile(step, mode="max")
        agrees(compiled, step, given)
        measured = compiled.explain(*given).stats["measured"]
    if _runs("cudnn", torch.bfloat16, 1, 8, 1024, 128):
        (site,) = [site for site in measured if site.startswith("attention ")]
        assert all(isinstance(measured[site][form], float) for form in ("template", "library")), measured[site]
