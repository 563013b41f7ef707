"""Everything that people put into training, compiled against eager; and what is refused, by name and line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from torch import nn

import graphc
from graphc.errors import CaptureError, FallbackWarning, UnsupportedError
from tests.e2e import (  # noqa: F401  # their programs are registered
    attribute_features,
    backward_features,
    bind_features,
    functional_features,
    gradient_features,
    hook_features,
    inplace_features,
    kept_features,
    module_features,
    object_features,
    path_features,
    scaler_features,
    state_features,
    step_features,
    transform_features,
    update_features,
    view_features,
)
from tests.e2e.features import CASES, agree, data, net


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", list(CASES))
def test_features(name: str) -> None:
    CASES[name].check()


NATIVE = [
    "many_outputs", "modes", "post_accumulate_hook_in_step", "hook_added_between", "counter", "state_attr_tensor",
    "branch_on_data", "early_exit", "branch_dropout", "schedule_onecycle_inside", "plateau_inside", "gan",
    "custom_op_step", "fn_dirty", "spectral_norm_old", "weight_norm", "checkpoint_step", "resume",
    "gradscaler_disabled", "per_sample_tutorial", "place_as_data_is_differentiated", "save_on_cpu", "arg_grad_zero",
    "arg_attack_loop", "inplace_relu_on_arg_nonleaf", "arg_written_nonleaf2", "needs_old_value", "kv_cache",
    "view_of_result", "view_results_many", "chunk_results2",
    "scaler_skips_steps", "scaler_skips_the_first_step", "scaler_float16", "gradscaler_inf",
    "queue_of_keys", "swapped_weights", "parameters_bound_in_each_step", "attack_on_an_argument",
]  # fmt: skip


@pytest.mark.parametrize("name", NATIVE)
def test_features_in_native_code(name: str) -> None:
    case = CASES[name]
    agree(case.program, eager=case.eager, compiles=case.compiles, backend="c")


def test_gradients_are_differentiated_once() -> None:
    x = data(0).requires_grad_()
    loss = graphc.compile(net(), backend="interpret")(x).sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    assert grad.requires_grad
    with pytest.raises(UnsupportedError, match=r"Sequential is compiled.*Compile the function that calls"):
        grad.square().sum().backward()


def test_what_a_function_keeps_is_refused_with_the_line() -> None:
    model, kept = net(), ContextVar("kept")
    model[0].register_forward_hook(lambda module, args, out: bool(kept.set(out)) and None)
    with pytest.raises(CaptureError, match=r"keeps a tensor it made[\s\S]*test_training_features.py:\d+"):
        graphc.compile(model)(data(0))


def test_why_calls_run_eager_is_said_once() -> None:
    """Though what they leave behind has them looked at anew."""
    model, kept = net(), {}
    model[0].register_forward_hook(lambda module, args, out: kept.update(out=out))
    model[0].register_full_backward_hook(lambda module, given, got: kept.update(grad=got[0]))

    def weighed(x: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        model(x).sum().backward()
        return kept["out"] * kept["grad"]

    compiled = graphc.compile(weighed, backend="interpret")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [compiled(data(i)) for i in range(3)]
    torch.testing.assert_close(found, [weighed(data(i)) for i in range(3)])
    assert compiled.stats().eager_calls == 3
    said = [str(w.message) for w in caught if issubclass(w.category, FallbackWarning)]
    assert len(said) == 1 and "has backward hooks" in said[0]


def test_what_a_schedule_sets_is_not_known_in_the_step() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def step(x: torch.Tensor, what: str) -> Any:
        model(x).sum().backward()
        if what == "before":
            schedule.step()
        optimizer.step()
        schedule.step()
        return {"last": schedule.get_last_lr, "rate": lambda: optimizer.param_groups[0]["lr"]}.get(what, int)()

    compiled = graphc.compile(step, backend="interpret")
    for what, words in (("before", "follows scheduler.step"), ("last", "read it outside"), ("rate", "read it outside")):
        with pytest.raises(UnsupportedError, match=words):
            compiled(data(0), what)
        assert optimizer.param_groups[0]["lr"] == 0.1 and schedule.last_epoch == 0
    compiled(data(0), "")
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01) and schedule.last_epoch == 1


def test_an_operator_without_a_fake_says_so() -> None:
    @torch.library.custom_op("graphc_features::without_fake", mutates_args=())
    def without_fake(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.detach().numpy() * 2)

    with pytest.raises(RuntimeError, match=r"register_fake[\s\S]*test_training_features.py:\d+"):
        graphc.compile(lambda x: without_fake(x) + 1)(data(0))


def test_a_parameter_without_memory_is_an_error() -> None:
    model = nn.Linear(4, 3)
    compiled = graphc.compile(model)
    with torch.no_grad():
        compiled(data(0))
        model.weight.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="out of bounds for storage of size 0"):
            compiled(data(0))


def test_surroundings_are_said_once() -> None:
    f = graphc.compile(lambda x: x.sin().sum(), backend="interpret")
    with pytest.warns(FallbackWarning, match=r"inside a torch.func transform"):
        torch.func.grad(f)(data(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.func.grad(f)(data(1))
    assert f.stats().eager_calls == 2
    with pytest.raises(TypeError, match="is a class; compile its methods"):
        graphc.compile(int)
