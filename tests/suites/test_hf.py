"""A sample of the models of transformers; all of them where long runs are asked for."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("transformers")

from tests.suites import hf
from tests.suites.verdicts import RIGHT

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")


def _check(spec: hf.Spec, kinds: tuple[str, ...]) -> None:
    outcome = hf.examine(spec, "c", kinds)
    bad = {kind: verdict.reason for kind, verdict in outcome.verdicts.items() if verdict.kind != RIGHT}
    assert not bad and len(outcome.verdicts) == len(kinds)
    assert all(count == 1 for count in outcome.programs.values())
    if outcome.stats:
        found = hf.coverage(outcome.stats)
        assert 0 < found.ops <= 1 and 0.5 < found.bytes <= 1
        assert spec.name in hf.markdown([outcome])


@pytest.mark.parametrize(
    ("name", "kinds"), [("GPT-2", ("eval", "generate")), ("BERT", ("train",)), ("LLaMA", ("eval",))]
)
def test_sample(name, kinds) -> None:
    _check(next(spec for spec in hf.SPECS if spec.name == name), kinds)


@pytest.mark.suite
@pytest.mark.parametrize("spec", hf.SPECS, ids=lambda spec: spec.name)
def test_all(spec) -> None:
    outcome = hf.examine(spec)
    assert {kind: verdict.reason for kind, verdict in outcome.verdicts.items() if verdict.kind != RIGHT} == {}
