"""A sample of the models of transformers; `python -m tests.suites.hf` runs all of them."""

from __future__ import annotations

import shutil

import pytest
import torch

pytest.importorskip("transformers")

import graphc
from tests.suites import hf
from tests.suites.verdicts import RIGHT

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")


def _spec(name: str) -> hf.Spec:
    return next(spec for spec in hf.SPECS if spec.name == name)


@pytest.mark.parametrize(
    ("name", "kind", "backend"),
    [
        pytest.param("BERT", "train", "c", marks=needs_gcc),
        pytest.param("GPT-2", "generate", "c", marks=needs_gcc),
        ("LLaVA", "eval", "interpret"),
        ("T5", "generate", "interpret"),
        ("Mamba", "generate", "interpret"),
    ],
)
def test_sample(name: str, kind: str, backend: str) -> None:
    outcome = hf.examine(_spec(name), backend, (kind,))
    verdict = outcome.verdicts[kind]
    assert verdict.kind == RIGHT, verdict.reason
    assert 0 < outcome.programs[kind] <= (hf.TOKENS + hf.PROGRAMS if kind == "generate" else 1)


def test_generate_with_a_compiled_forward() -> None:
    model, inputs = hf._made(_spec("LLaMA"))
    model.eval()
    expected = hf._tokens(model, inputs, "static", False)
    model.forward = forward = graphc.compile(model.forward, backend="interpret")
    assert torch.equal(hf._tokens(model, inputs, "static", False), expected)
    assert (forward.stats().compiles, forward.stats().eager_calls) == (2, 0)


def test_share() -> None:
    outcome = hf.examine(_spec("GPT-J"), kinds=("share",))
    assert len(outcome.stats) == 3  # eval; forward and backward of train
    found = hf.share(outcome.stats)
    assert 0.5 < found.ops <= 1 and 0.9 < found.bytes <= 1
    assert "aten.slice_backward.default" not in found.calls
    assert "| GPT-J |" in hf.markdown([outcome])
