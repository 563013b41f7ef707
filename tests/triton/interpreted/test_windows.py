"""Pooling, resampling and paddings, forward and backward, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

import graphc
from graphc.ops import pooling_backward
from graphc.settings import override
from tests.e2e.window_programs import IN_CALLS, SLOWER, programs


@pytest.mark.parametrize("name", sorted(programs().keys() - {*IN_CALLS}))
def test_as_in_eager(name: str) -> None:
    fn, x = programs()[name]
    compiled = graphc.compile(fn, backend="triton")
    for mine, other in zip(compiled(x), fn(x), strict=True):
        torch.testing.assert_close(mine, other)
    assert bool(compiled.explain(x).stats["extern"]) == (name in SLOWER)


@pytest.mark.parametrize("name", ["max overlapping", "max dense", "max volume", "max ceil"])
def test_gathered_by_position(name: str, monkeypatch) -> None:
    """As on a GPU: no atomic additions where windows overlap."""
    monkeypatch.setattr(pooling_backward, "adds_at_positions", lambda device, lines: False)
    fn, x = programs()[name]
    with override(cache=False):
        compiled = graphc.compile(fn, backend="triton")
        for mine, other in zip(compiled(x), fn(x), strict=True):
            torch.testing.assert_close(mine, other)
        assert not any("atomic" in text for text in compiled.source(x).values())
