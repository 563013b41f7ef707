"""Sums and stores at places that are data in Triton's interpreter: atomic additions, and plain stores."""

from __future__ import annotations

import pytest
import torch

import graphc
from graphc.frontend import tree
from tests.e2e.scatter_programs import IN_KERNELS, programs


@pytest.mark.parametrize("name", IN_KERNELS)
def test_as_in_eager(name: str) -> None:
    fn, args = programs()[name]
    compiled = graphc.compile(fn, backend="triton")
    mine, other = ([a.clone() for a in args] for _ in range(2))
    found, wanted = tree.flatten(compiled(*mine))[0], tree.flatten(fn(*other))[0]
    for one, two in zip([*found, *mine], [*wanted, *other], strict=True):
        torch.testing.assert_close(one, two)
    assert not compiled.explain(*args).stats["extern"]


@pytest.mark.parametrize("name", ["rows", "set rows"])
def test_a_fixed_order_is_left_to_the_library(name: str) -> None:
    fn, args = programs()[name]
    torch.use_deterministic_algorithms(True)
    try:
        assert graphc.compile(fn, backend="triton").explain(*args).stats["extern"]
    finally:
        torch.use_deterministic_algorithms(False)
