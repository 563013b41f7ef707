"""The examples run: eager and compiled learn the same, a resumed run ends where an uninterrupted one does."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from graphc.frontend import tree

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@dataclass(frozen=True)
class Case:
    """Small settings of one example.

    Args:
        floor: the least test score compiled, or the largest where lower is better; None where so short a run has none.
        compiles: the most captures that training and evaluation may take.
        falls: the last loss is at most this share of the first.
        same: the losses are eager's, since no random numbers are drawn inside compiled code.
    """

    samples: int
    epochs: int
    floor: float | None
    compiles: int
    lower_is_better: bool = False
    same: bool = True
    falls: float = 1.0


CASES = {
    "digits_cnn": Case(1797, 4, 0.88, 5),
    "cifar_net": Case(600, 3, 0.3, 6, same=False),
    "mlp_sgd": Case(1797, 4, 0.75, 5),
    "lstm_tagger": Case(160, 3, 0.65, 3),
    "gru_waves": Case(600, 4, 0.7, 4),
    "translation": Case(220, 3, None, 5, falls=0.75),
    "gpt": Case(200, 2, 0.1, 6),
    "seq2seq": Case(500, 3, 0.4, 4),
    "vae": Case(1797, 4, 32.0, 5, lower_is_better=True, same=False),
    "dcgan": Case(640, 3, 0.2, 3, lower_is_better=True, same=False),
    "recommender": Case(2560, 3, 0.5, 6),
    "finetune_resnet": Case(900, 4, 0.4, 7),
    "policy_gradient": Case(90, 2, 20.0, 12, same=False),
}


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Examples import each other by name; what they leave in torch is put back."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    random = torch.get_rng_state()
    yield
    torch.set_rng_state(random)


def _run(name: str, tmp_path: Path, *flags: str, epochs: int | None = None, file: str = "run") -> Any:
    case = CASES[name]
    arguments = [f"--samples={case.samples}", f"--epochs={epochs or case.epochs}"]
    return importlib.import_module(name).main([*arguments, f"--checkpoint={tmp_path / file}.pt", *flags])


def test_every_example_is_run_here() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py") if "@example(" in path.read_text()}
    assert scripts == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_compiled_learns_what_eager_learns(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    eager = _run(name, tmp_path, "--eager", file="eager")
    assert eager.compiles == 0
    compiled = _run(name, tmp_path)
    assert compiled.eager_calls == 0
    assert 0 < compiled.compiles <= case.compiles, compiled.reasons
    if case.floor is not None:
        assert compiled.test <= case.floor if case.lower_is_better else compiled.test >= case.floor
    if case.same:
        assert compiled.losses == pytest.approx(eager.losses, rel=2e-2)
        assert compiled.losses[-1] < case.falls * compiled.losses[0]
        assert compiled.losses[0] == pytest.approx(eager.losses[0], rel=1e-3)
    assert sys.modules[name].__doc__


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.suite] * (place % 3 > 0)) for place, name in enumerate(CASES)]
)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(name: str, tmp_path: Path) -> None:
    """Noise, dropout, momentum, schedules, shuffling and the best weights so far go on from the checkpoint."""
    whole = _run(name, tmp_path, epochs=2, file="whole")
    _run(name, tmp_path, epochs=1, file="parts")
    resumed = _run(name, tmp_path, "--resume", epochs=2, file="parts")
    assert len(whole.losses) == 2
    assert (resumed.losses, resumed.scores, resumed.test) == (whole.losses, whole.scores, whole.test)
    ours, theirs = (torch.load(tmp_path / f"{file}.pt") for file in ("parts", "whole"))
    for saved in (ours, theirs):
        del saved["result"]  # which has the seconds
    mine, other = tree.flatten(ours), tree.flatten(theirs)
    assert mine[1] == other[1]
    for a, b in zip(mine[0], other[0], strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    _run("vae", tmp_path, "--eager", epochs=1)
    with pytest.raises(SystemExit, match=r"this run of \{'samples': 1797, 'seed': 1\}"):
        _run("vae", tmp_path, "--eager", "--resume", "--seed=1", epochs=2)
    with pytest.raises(SystemExit):
        _run("vae", tmp_path, "--eager", epochs=-1)


def test_a_resumed_run_may_go_on_for_longer_than_was_planned(tmp_path: Path) -> None:
    _run("cifar_net", tmp_path, "--eager", epochs=1)
    assert len(_run("cifar_net", tmp_path, "--eager", "--resume", epochs=6).losses) == 6


def test_early_stopping(tmp_path: Path) -> None:
    result = _run("recommender", tmp_path, "--patience=1", "--eager", epochs=30)
    scores = result.scores
    assert len(scores) < 30 and scores[-1] <= max(scores)
    assert len(scores) - (scores.index(max(scores)) + 1) == 2
