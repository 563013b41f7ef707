"""`mode="max"` with Triton kernels, in its interpreter: templates, tiles and library calls, as the timer says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import graphc
import graphc.options
from graphc.passes import templates
from graphc.program.plan import AtenStep, KernelStep, Plan
from graphc.runtime.timing import timed_by
from graphc.settings import override
from tests.support import assert_contract
from tests.triton.attentions import causal
from tests.triton.interpreted.test_attention_gradients import step_of
from tests.triton.loops import lstm_by_hand, operands
from tests.triton.products import products_left
from tests.tuning.timers import Says

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nothing_measured_yet(tmp_path: Path) -> Iterator[None]:
    with override(cache_dir=tmp_path):
        yield


def layer(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ w + b)


def _operands(*shapes: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype) for shape in shapes]


def _of_tiles(form: str) -> bool:
    return form.startswith("tile ")


@pytest.mark.parametrize(("tiles", "products"), [(1.0, 0), (5.0, 1)])
def test_templates_against_the_library(tiles: float, products: int) -> None:
    """The library's side is a product with its bias and a kernel, 3 s together."""
    x, w, b = _operands((40, 32), (32, 48), (48,))
    timer = Says(lambda label, form: tiles if _of_tiles(form) else 2.0 if "addmm" in label else 1.0)
    compiled = graphc.compile(layer, backend="triton", mode="max")
    with timed_by(timer):
        found = compiled(x, w, b)
    assert_contract(found, layer(x, w, b), layer(x.double(), w.double(), b.double()))
    assert products_left(compiled.graph(x, w, b, stage="scheduled")) == products
    site = compiled.explain(x, w, b).stats["measured"]["matmul bf16 [40, 32] [32, 48]"]
    assert site == {"chosen": "library" if products else "template", "template": tiles, "library": 3.0}


def test_tiles_are_chosen() -> None:
    x, w, b = _operands((40, 32), (32, 48), (48,))
    compiled = graphc.compile(layer, backend="triton", mode="max")
    with timed_by(Says(lambda label, form: 0.5 if form.startswith("tile 16x32") else 1.0)):
        found = compiled(x, w, b)
    assert_contract(found, layer(x, w, b), layer(x.double(), w.double(), b.double()))
    plan = compiled.graph(x, w, b, stage="scheduled")
    ((kernel, form),) = plan.forms.items()
    assert form.startswith("tile 16x32") and [step.kernel for step in plan.steps] == [kernel]


def test_from_the_cache_it_is_the_same_program() -> None:
    x, w, b = _operands((40, 32), (32, 48), (48,))
    timer = Says(lambda label, form: 0.5 if form.startswith("tile 16x32") else 1.0)
    texts, asked = [], []
    with timed_by(timer):
        for _ in range(2):
            compiled = graphc.compile(layer, backend="triton", mode="max")
            compiled(x, w, b)
            texts.append(str(compiled.graph(x, w, b, stage="scheduled")))
            asked.append(len(timer.asked))
    assert asked[0] == asked[1]
    assert texts[0] == texts[1] and "as tile 16x32" in texts[0]


@pytest.mark.parametrize("template", [True, False])
def test_products_ofproducts_left(template: bool) -> None:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax(q @ k.mT, -1) @ v

    args = _operands(*[(2, 24, 16)] * 3)
    compiled = graphc.compile(attend, backend="triton", mode="max")
    with timed_by(Says(lambda label, form: (0.1 if template else 9.0) if _of_tiles(form) else 1.0)):
        found = compiled(*args)
    assert_contract(found, attend(*args), attend(*(x.double() for x in args)))
    plan = compiled.graph(*args, stage="scheduled")
    assert (products_left(plan), len(plan.steps)) == ((0, 1) if template else (2, 3))


@pytest.mark.parametrize("template", [True, False])
def test_convolutions(template: bool) -> None:
    def block(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.nn.functional.conv2d(x, w, padding=1))

    x, w = _operands((2, 16, 6, 6), (16, 16, 3, 3))
    x, w = (item.contiguous(memory_format=torch.channels_last) for item in (x, w))
    compiled = graphc.compile(block, backend="triton", mode="max")
    with timed_by(Says(lambda label, form: (0.1 if template else 9.0) if _of_tiles(form) else 1.0)):
        found = compiled(x, w)
    assert_contract(found, block(x, w), block(x.double(), w.double()))
    steps = compiled.graph(x, w, stage="scheduled").steps
    calls = [step for step in steps if isinstance(step, AtenStep)]
    assert (len(calls), any(isinstance(step, KernelStep) for step in steps)) == (not template, True)


def test_what_cannot_be_run_is_no_choice() -> None:
    """A form that fails is left out, and the report says so."""
    from graphc.trials import TritonBench, trial_of
    from graphc.tuning import Tuning

    x, w, b = _operands((40, 32), (32, 48), (48,))
    with override(templates="always"):
        plan = graphc.compile(layer, backend="triton").graph(x, w, b, stage="scheduled")
    bench = TritonBench("cuda:90")
    trial = trial_of(bench, plan, plan.steps[0], plan.buffers)
    assert trial is not None and len(trial.forms) > 1

    class Breaks(TritonBench):
        def _build(self, plan: Plan) -> object:
            return "does not compile: too large" if trial.forms[0] in plan.forms.values() else super()._build(plan)

    tuning = Tuning(Breaks("cuda:90"), {}, 100.0)
    with timed_by(Says(lambda label, form: 1.0)):
        tuning.learn([trial])
    tuning.note(trial)
    assert tuning.best(trial) == (trial.forms[1], 1.0)
    assert tuning.report[trial.label][trial.forms[0]] == "does not compile: too large"


def test_loops_that_are_one_kernel_stay_so() -> None:
    """A product inside is no template of its own, however fast that may be: the loop would fall apart."""
    args = operands(9, 16, 7, 32, torch.bfloat16)
    compiled = graphc.compile(lstm_by_hand, backend="triton", mode="max")
    with timed_by(Says(lambda label, form: 0.1 if _of_tiles(form) else 1.0)):
        found = compiled(*args)
    assert_contract(found, lstm_by_hand(*args), lstm_by_hand(*(x.double() for x in args)))
    assert any(name.startswith("loop") for name in compiled.source(*args))


@pytest.mark.suite
@pytest.mark.parametrize("template", [True, False])
def test_attention_against_the_library(template: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are measured, forward and backward together."""
    monkeypatch.setattr(graphc.options, "attention_libraries", lambda device: {"cpu": ("cpu",)})
    monkeypatch.setattr(templates, "SMALL", 1)
    form = step_of(causal)
    args = _operands(*[(2, 2, 24, 16)] * 3)
    compiled = graphc.compile(form, backend="triton", mode="max")
    with timed_by(Says(lambda label, form: (20.0 if template else 0.1) if "_scaled_dot_product" in label else 1.0)):
        found = compiled(*args)
    for mine, theirs, true in zip(found, form(*args), form(*(x.double() for x in args)), strict=True):
        assert_contract(mine, theirs, true)
    plan = compiled.graph(*args, stage="scheduled")
    calls = [step.op for step in plan.steps if isinstance(step, AtenStep)]
    assert products_left(plan) == 0 and len(calls) == (0 if template else 2)
    measured = compiled.explain(*args).stats["measured"]["attention bf16 [2, 2, 24, 16], 24 keys, causal"]
    assert measured["chosen"] == ("template" if template else "library")


@pytest.mark.suite
def test_both_halves_of_a_module_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward pass of its own has been made a call before it is known what is faster."""
    monkeypatch.setattr(graphc.options, "attention_libraries", lambda device: {"cpu": ("cpu",)})
    monkeypatch.setitem(templates.ATTENTION_RATES, "cuda:90", {"cpu": 2.0})  # so the model would call it

    class Net(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return causal(q, k, v)

    args = [x.requires_grad_() for x in _operands(*[(2, 4, 96, 16)] * 3)]
    net = graphc.compile(Net(), backend="triton", mode="max")
    timer = Says(lambda label, form: 20.0 if "_scaled" in label else 0.1 if _of_tiles(form) else 1.0)
    with timed_by(timer):
        out = net(*args)
        found = torch.autograd.grad(out, args, torch.ones_like(out))
    expected = torch.autograd.grad(causal(*args), args, torch.ones_like(out))
    wide = [x.detach().double().requires_grad_() for x in args]
    exact = torch.autograd.grad(causal(*wide), wide, torch.ones_like(out).double())
    for mine, theirs, true in zip(found, expected, exact):
        assert_contract(mine, theirs, true)
    report = net.explain(*args)
    for one, name in ((report, "attention"), (report.backward, "attention_gradient")):
        assert one is not None and not one.stats["extern"] and one.stats["gemm_calls"] == 0
        measured = one.stats["measured"]
        (site,) = [site for site in measured if site.startswith(f"{name} bf16")]
        assert measured[site]["chosen"] == "template"
        # what came up when the call was written out
        assert measured["product of products bf16, 73728 scores, 768 rows"]["chosen"] == "template"
