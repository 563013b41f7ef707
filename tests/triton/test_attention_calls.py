"""Library calls for attention as a GPU would run them: their arguments and results, on tensors without data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import graphc
from graphc.passes.templates import Templates
from graphc.program.plan import AtenStep, KernelStep, Plan, View
from graphc.report.placed import placed_plan
from graphc.runtime.aten_calls import AtenCall, at_whole_accesses, reads_whole_accesses
from graphc.runtime.tensors import torch_dtype
from graphc.settings import override

T = torch.Tensor
FLASH, CUDNN = (f"aten._scaled_dot_product_{name}_attention" for name in ("flash", "cudnn"))


def half(*shape: int) -> T:
    return torch.empty(*shape, dtype=torch.bfloat16)


def with_gradients(form: Callable[..., T]) -> Callable[..., tuple[T, ...]]:
    def step(*args: T) -> tuple[T, ...]:
        q, k, v = (x.detach().requires_grad_() for x in args[:3])
        out = form(q, k, v)
        return out.detach(), *torch.autograd.grad(out, (q, k, v), args[3])

    return step


def by_hand(q: T, k: T, v: T) -> T:
    ahead = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).triu(1)
    return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(ahead, -math.inf).softmax(-1) @ v


def projected(q: T, k: T, v: T) -> T:
    """Heads as projections give them: (B, S, H, D)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return by_hand(q, k, v).transpose(1, 2)


def of_user_flash(q: T, k: T, v: T) -> T:
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0]


def of_user_cudnn(q: T, k: T, v: T) -> T:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True)[0].transpose(1, 2)


def with_flash_only(self: Templates, *facts: Any) -> str:
    return "flash"


FORMS: dict[str, tuple[Callable[..., T], Sequence[int], str]] = {
    "by hand": (by_hand, (4, 256, 64), CUDNN),
    "by hand with a batch": (by_hand, (2, 4, 256, 64), CUDNN),
    "projected": (projected, (2, 256, 4, 64), CUDNN),
    "by hand for flash": (projected, (2, 256, 4, 64), FLASH),
    "the user's flash": (of_user_flash, (2, 4, 256, 64), FLASH),
    "the user's cudnn": (of_user_cudnn, (2, 256, 4, 64), CUDNN),
}


@pytest.fixture(params=FORMS)
def plan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Plan, str]:
    form, shape, overload = FORMS[request.param]
    if request.param == "by hand for flash":
        monkeypatch.setattr(Templates, "library_for_attention", with_flash_only)
    return placed_plan(with_gradients(form), tuple(half(*shape) for _ in range(4))), overload


def test_forward_and_backward_are_calls(plan: tuple[Plan, str]) -> None:
    made, overload = plan
    calls = [step.op for step in made.steps if isinstance(step, AtenStep)]
    assert calls == [f"{overload}.default", f"{overload}_backward.default"]


def test_calls_give_what_the_plan_expects(plan: tuple[Plan, str]) -> None:
    """Shapes, dtypes, strides and devices of results, by what torch says of its own operators: nothing is copied."""
    made, _ = plan
    with FakeTensorMode():

        def tensor_of(view: View) -> T:
            spec = made.buffers[view.buffer]
            assert spec.device == "cuda:0" and not spec.host
            dtype = torch_dtype(view.dtype)
            return torch.empty_strided(view.shape, view.strides, dtype=dtype, device=spec.device)

        for step in made.steps:
            if not isinstance(step, AtenStep):
                continue
            for index, result in zip(step.outs, AtenCall(step)(tensor_of), strict=True):
                assert index >= 0
                spec = made.buffers[index]
                found = tuple(result.shape), result.stride(), result.dtype, str(result.device)
                assert found == (spec.shape, spec.strides, torch_dtype(spec.dtype), spec.device)


def test_operands_are_read_where_they_lie(plan: tuple[Plan, str]) -> None:
    """No kernel but those that give results eager's strides."""
    made, _ = plan
    kernels = [step for step in made.steps if isinstance(step, KernelStep)]
    handed = {output.buffer for output in made.outputs}
    assert all(step.buffers[-1] in handed for step in kernels)
    for step in made.steps:
        if isinstance(step, AtenStep):
            assert all(view.strides[-1] == 1 and view.offset % 8 == 0 for view in step.views() if len(view.shape) == 4)


def test_packed_projections_are_read_where_they_lie() -> None:
    net = torch.nn.Linear(64, 192).bfloat16()

    def attend(x: T) -> T:
        q, k, v = (t.unflatten(-1, (1, 64)).transpose(1, 2) for t in net(x).split(64, -1))
        return by_hand(q, k, v).transpose(1, 2)

    with torch.no_grad():
        made = placed_plan(attend, (half(2, 256, 64),))
    (call,) = [step for step in made.steps if isinstance(step, AtenStep) and step.op.startswith(CUDNN)]
    assert [(view.strides[2], view.offset) for view in call.views()] == [(192, 0), (192, 64), (192, 128)]
    assert len({view.buffer for view in call.views()}) == 1


@pytest.mark.parametrize(("policy", "launches"), [("always", 4), ("auto", 1)])
def test_the_setting_has_it_the_other_way(policy: str, launches: int) -> None:
    with override(templates=policy):
        made = placed_plan(with_gradients(by_hand), tuple(half(4, 2048, 64) for _ in range(4)))
    assert sum(isinstance(step, KernelStep) for step in made.steps) == launches
    assert any(isinstance(step, AtenStep) for step in made.steps) == (policy == "auto")


def test_it_is_explained(plan: tuple[Plan, str]) -> None:
    made, overload = plan
    names = (f"{overload}.default", f"{overload}_backward.default")
    assert made.stats["extern_reasons"] == dict.fromkeys(names, "library call")


@pytest.mark.parametrize("name", ["flash", "cudnn"])
@pytest.mark.parametrize("causal", [False, True])
def test_what_the_users_calls_mean(name: str, causal: bool) -> None:
    """Result, sums and gradients, for keys that queries share; lengths and seeds are there to be handed on."""

    def attend(q: T, k: T, v: T, g: T) -> tuple[T, ...]:
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        call = torch.ops.aten
        if name == "flash":
            found = call._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=0.3)
        else:
            found = call._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, scale=0.3)
        assert found[2] is None and found[4:6] == (16, 16)
        return found[0].detach(), found[1].detach(), *torch.autograd.grad(found[0], (q, k, v), g)

    q, g = (torch.randn(2, 4, 16, 8) for _ in range(2))
    k, v = (torch.randn(2, 2, 16, 8) for _ in range(2))
    found = graphc.run(graphc.trace(attend, q, k, v, g), q, k, v, g, backend="interpret")
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    out = F.scaled_dot_product_attention(*wide, is_causal=causal, scale=0.3, enable_gqa=True)
    scores = wide[0] @ wide[1].repeat_interleave(2, 1).mT * 0.3
    if causal:
        scores = scores.masked_fill(~torch.ones(16, 16).tril().bool(), -math.inf)
    exact = out, scores.logsumexp(-1).reshape(found[1].shape), *torch.autograd.grad(out, wide, g.double())
    for mine, true in zip(found, exact, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-5)


def test_calls_with_dropout_stay_as_they_are() -> None:
    def attend(q: T) -> T:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, q, q, 0.5)[0]

    with pytest.raises(NotImplementedError, match="flash_attention"):  # as eager: only a GPU has it
        graphc.trace(attend, torch.randn(2, 4, 16, 8))


def test_tensors_that_begin_anywhere_are_copied() -> None:
    memory = torch.zeros(64, dtype=torch.uint8)
    first = -memory.data_ptr() % 16
    whole, apart = (memory[first + skip : first + skip + 16].view(torch.bfloat16) for skip in (0, 2))
    assert at_whole_accesses(whole) is whole and at_whole_accesses(3) == 3
    copy = at_whole_accesses(apart)
    assert copy.data_ptr() % 16 == 0 and torch.equal(copy, apart)
    assert reads_whole_accesses(f"{CUDNN}_backward.default") and not reads_whole_accesses("aten.mm.default")
    assert not reads_whole_accesses(f"{FLASH}_for_cpu.default")
