"""Losses of rows that a mask selects, in Triton's interpreter."""

from __future__ import annotations

import pytest

import graphc
from tests.e2e.selection_programs import LOSSES, check, given


@pytest.mark.parametrize(
    "name", ["mean of rows", "distance", "mse", "bce of logits", "cross-entropy", "accuracy", "put"]
)
def test_one_program(name: str) -> None:
    f = LOSSES[name]
    compiled = graphc.compile(f, backend="triton")
    for seed, selected in enumerate((4, 0)):
        check(f, compiled, given(seed, selected))
    stats = compiled.stats()
    assert (stats.compiles, stats.paths, stats.eager_calls) == (1, 0, 0)
