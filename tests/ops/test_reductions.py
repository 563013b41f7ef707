"""Reductions and their composites."""

from __future__ import annotations

import pytest
import torch

from tests.ops import expansion
from tests.ops.core import FLOATS, INTEGERS, check, random, refuses

DIMS = [(), (0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)]


@pytest.mark.parametrize("name", ["sum", "prod", "amax", "amin"])
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_numbers(name: str, dtype: torch.dtype) -> None:
    x = random((3, 4, 5), dtype)
    for dims in DIMS if dtype == torch.float32 else [(1,), (0, 1, 2)]:
        for keepdim in (False, True):
            check(name, x, dims=dims, keepdim=keepdim)
    check(name, random((), dtype), dims=(), keepdim=False)
    check(name, random((1, 3, 1), dtype), dims=(0, 2), keepdim=False)
    check(name, random((3, 4, 5), dtype).permute(2, 0, 1), dims=(0, 2), keepdim=False)


@pytest.mark.parametrize("name", ["any", "all"])
def test_bools(name: str) -> None:
    for dims in DIMS:
        check(name, random((3, 4, 5), torch.bool), dims=dims, keepdim=False)
    for value in (True, False):
        check(name, torch.full((2, 2), value), dims=(0, 1), keepdim=True)
    refuses(f"{name}: operand 0 is f32; it takes bool", name, random((2,)), dims=(0,), keepdim=False)


@pytest.mark.parametrize(("name", "value"), [("sum", 0.0), ("prod", 1.0), ("any", False), ("all", True)])
def test_reductions_of_nothing(name: str, value: float) -> None:
    x = random((2, 0, 3), torch.bool if name in ("any", "all") else torch.float32)
    result = check(name, x, dims=(1,), keepdim=False)
    assert bool((result == value).all()) and result.shape == (2, 3)
    assert check(name, x, dims=(0, 1, 2), keepdim=False) == value
    assert check(name, x, dims=(0,), keepdim=False).shape == (0, 3)


@pytest.mark.parametrize("name", ["amax", "amin"])
def test_extremes(name: str) -> None:
    nan, inf = float("nan"), float("inf")
    check(name, torch.tensor([[1.0, nan, 2.0], [inf, -inf, 0.0], [-inf, -inf, -inf]]), dims=(1,), keepdim=False)
    refuses(f"{name}: has no value over an empty dim", name, random((2, 0)), dims=(1,), keepdim=False)
    assert check(name, random((2, 0)), dims=(0,), keepdim=False).shape == (0,)
    refuses("does not|it takes", name, random((2,), torch.bool), dims=(0,), keepdim=False)


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8], ids=str)
def test_arguments_of_extremes(name: str, dtype: torch.dtype) -> None:
    x = random((3, 4, 5), dtype) if dtype != torch.int64 else random((3, 4, 5), dtype) % 3
    for dim in (0, 1, 2, None):
        check(name, x, dim=dim, keepdim=False)
        check(name, x, dim=dim, keepdim=True)
    check(name, random((), dtype), dim=None, keepdim=False)
    refuses(f"{name}: has no value over an empty dim", name, random((2, 0), dtype), dim=1, keepdim=False)


def test_ties_and_nan() -> None:
    nan = float("nan")
    x = torch.tensor([[1.0, 3.0, 3.0], [nan, 1.0, nan], [2.0, 2.0, 2.0]])
    assert check("argmax", x, dim=1, keepdim=False).tolist() == [1, 0, 0]
    assert check("argmin", x, dim=1, keepdim=False).tolist() == [0, 0, 0]
    assert check("argmax", x, dim=None, keepdim=False) == 3


def test_sums_of_special_values() -> None:
    inf, nan = float("inf"), float("nan")
    check("sum", torch.tensor([[inf, 1.0], [inf, -inf], [nan, 1.0], [-0.0, -0.0]]), dims=(1,), keepdim=False)
    check("sum", torch.full((70000,), 1.0, dtype=torch.float16), dims=(0,), keepdim=False)


def test_attributes_are_checked() -> None:
    x = random((2, 3))
    refuses("sum: dims=.* must be a tuple", "sum", x, dims=0, keepdim=False)
    refuses("sum: dims=.* must be ascending", "sum", x, dims=(1, 0), keepdim=False)
    refuses("sum: dims entry=2 must be an int in", "sum", x, dims=(2,), keepdim=False)
    refuses("sum: attribute 'keepdim' is missing", "sum", x, dims=(0,))
    refuses("var: correction='x' must be a number", "var", x, dims=(0,), keepdim=False, correction="x")


# composites: type rule, reference and expansion


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dims", [(0,), (1,), (0, 2), (0, 1, 2)], ids=str)
def test_composites(dtype: torch.dtype, dims: tuple[int, ...]) -> None:
    x = random((3, 4, 5), dtype)
    for keepdim in (False, True):
        expansion.check("mean", [x], lambda x: x.mean(dims, keepdim), dims=dims, keepdim=keepdim)
        expansion.check("logsumexp", [x], lambda x: x.logsumexp(dims, keepdim), dims=dims, keepdim=keepdim)
        for correction in (0, 1, 2.5):
            attrs = {"dims": dims, "keepdim": keepdim, "correction": correction}
            expansion.check("var", [x], lambda x: x.var(dims, correction=correction, keepdim=keepdim), **attrs)
            expansion.check("std", [x], lambda x: x.std(dims, correction=correction, keepdim=keepdim), **attrs)
        for p in (0.0, 1.0, 2.0, 3.0, 0.5, float("inf"), float("-inf")):
            expansion.check(
                "norm", [x], lambda x: torch.linalg.vector_norm(x, p, dims, keepdim), dims=dims, keepdim=keepdim, p=p
            )


@pytest.mark.filterwarnings("ignore:var")
def test_composites_of_few_elements() -> None:
    for shape, dims in (((), ()), ((3, 0), (1,)), ((1, 3), (0,))):
        x = random(shape)
        # torch takes an empty tuple as all dims, which for a 0-d tensor is the same
        expansion.check("mean", [x], lambda x: x.mean(dims), dims=dims, keepdim=False)
        expansion.check("norm", [x], lambda x: torch.linalg.vector_norm(x, 2, dims), dims=dims, keepdim=False, p=2.0)
        expansion.check("var", [x], lambda x: x.var(dims), dims=dims, keepdim=False, correction=1)
        expansion.check("logsumexp", [x], lambda x: x.logsumexp(dims), dims=dims, keepdim=False)


def test_logsumexp_of_infinities() -> None:
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[inf, 1.0], [-inf, -inf], [nan, 1.0], [inf, -inf], [1000.0, 1000.0]])
    expansion.check("logsumexp", [x], lambda x: x.logsumexp(1), dims=(1,), keepdim=False)


def test_means_take_floats_only() -> None:
    for name, attrs in (("mean", {}), ("var", {"correction": 1}), ("logsumexp", {}), ("norm", {"p": 2.0})):
        refuses(f"{name}: operand 0 is i64", name, random((3,), torch.int64), dims=(0,), keepdim=False, **attrs)


def test_variance_far_from_zero_does_not_cancel() -> None:
    x = random((4, 1000)) + 1e4
    expansion.check("var", [x], lambda x: x.var(1), dims=(1,), keepdim=False, correction=1)
