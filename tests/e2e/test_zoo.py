"""Every model of the zoo, tiny: results in eval mode and three whole training steps, against eager and float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

import graphc
from benchmarks import zoo
from tests.e2e.trials import SameNoise, default_dtype, deviation, of_zoo, run
from tests.support import assert_contract

STEPS = 3
ULPS = 4
"""Units in the last place that the contract grants on top of eager's own error."""
BRANCHING = {"policy_gradient": {"forward", "step"}, "tree_net": {"forward", "step"}}
"""What looks at its data, and so takes several programs."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these models are too small for more
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def evaluate(name: str, dtype: torch.dtype, compiler: Any = lambda fn: fn) -> tuple[list[torch.Tensor], Any]:
    """Tensors that the model gives for three batches, and what called it."""
    with default_dtype(torch.float32):
        torch.manual_seed(0)
        work = zoo.build(name)
    net = work.net.to(dtype).eval()
    called = compiler(lambda *batch: work.run(net, *batch))
    found = []
    for seed in range(STEPS):
        batch = [t.to(dtype) if t.is_floating_point() else t for t in work.batch(seed)]
        torch.manual_seed(seed)
        with torch.no_grad(), default_dtype(dtype):
            found += tree_leaves(called(*batch))
    return found, called


@pytest.mark.parametrize("name", list(zoo.ENTRIES))
def test_forward(name: str) -> None:
    with SameNoise():
        exact, _ = evaluate(name, torch.float64)
    eager, _ = evaluate(name, torch.float32)
    found, compiled = evaluate(name, torch.float32, lambda fn: graphc.compile(fn, numerics="eager"))
    assert len(found) == len(eager) == len(exact) and found
    for ours, theirs, right in zip(found, eager, exact, strict=True):
        assert_contract(ours, theirs, right)
        assert ours.stride() == theirs.stride()
    check_programs(name, "forward", compiled.stats())


@pytest.mark.parametrize("name", list(zoo.ENTRIES))
def test_training_step(name: str) -> None:
    """Losses, parameters, buffers and the state of optimizers after three steps, each one program."""
    programs = zoo.build(name).programs.get("step", 1)
    with torch.enable_grad():
        with SameNoise():
            exact, _ = run(of_zoo(name, torch.float64), torch.float64, "eager", STEPS)
        eager, _ = run(of_zoo(name, torch.float32), torch.float32, "eager", STEPS)
        found, (compiled,) = run(of_zoo(name, torch.float32), torch.float32, "step", STEPS, programs)
    assert found.keys() == eager.keys() == exact.keys()
    for kind in ("losses", "net", "opt"):
        keys = [key for key in exact if key.startswith(kind)]
        ours, theirs = (
            deviation([numbers[key] for key in keys], [exact[key] for key in keys]) for numbers in (found, eager)
        )
        assert ours <= 2 * theirs + ULPS * torch.finfo(torch.float32).eps, (kind, ours, theirs)
    check_programs(name, "step", compiled.stats())


def check_programs(name: str, form: str, stats: Any) -> None:
    """One program, unless data decide; then as many as the zoo says."""
    assert stats.eager_calls == 0
    assert stats.compiles == zoo.build(name).programs.get(form, 1), stats
    assert bool(stats.paths) == (form in BRANCHING.get(name, ())), stats
