"""gather, take, index, scatter, put, one_hot, and running reductions."""

from __future__ import annotations

import pytest
import torch

from graphc.ir.types import bool_, f32, i64
from tests.ops import expansion
from tests.ops.core import FLOATS, INTEGERS, check, random, refuses


def places(shape: tuple[int, ...], size: int, dtype: torch.dtype = torch.int64, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-size, size, shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.bool], ids=str)
def test_every_dtype_is_read_as_it_is(dtype: torch.dtype) -> None:
    x = random((5, 4), dtype)
    check("gather", x, places((3, 4), 5) % 5, dim=0)
    check("take", x, places((2, 3), 4, torch.int32), dim=1)
    check("index", x, places((2, 1), 5), places((3,), 4), dims=(0, 1), at=0)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_gather(dim: int) -> None:
    x = random((3, 4, 5))
    indices = places((2, 3, 4), x.shape[dim]) % x.shape[dim]
    found = check("gather", x, indices, dim=dim)
    assert torch.equal(found, torch.gather(x, dim, indices))
    assert check("gather", x, places((0, 3, 4), 3), dim=dim).shape == (0, 3, 4)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (0,), (1, 1)], ids=str)
def test_take(dim: int, shape: tuple[int, ...]) -> None:
    x = random((3, 4, 5))
    indices = places(shape, x.shape[dim])
    expected = torch.movedim(
        torch.movedim(x, dim, 0)[indices], tuple(range(len(shape))), tuple(range(dim, dim + len(shape)))
    )
    assert torch.equal(check("take", x, indices, dim=dim), expected)


def test_an_index_of_a_library_call_runs_too() -> None:
    check("take", random((3, 4)).t(), places((5,), 4), dim=0)


@pytest.mark.parametrize(
    ("dims", "at", "shapes"),
    [((0, 1), 0, [(3,), (2, 1)]), ((1, 2), 1, [(3,), ()]), ((0, 2), 0, [(4,), (4,)]), ((0, 1, 2), 0, [(2,), (1,), ()])],
    ids=str,
)
def test_index(dims: tuple[int, ...], at: int, shapes: list[tuple[int, ...]]) -> None:
    x = random((3, 4, 5))
    tensors = [places(shape, x.shape[d], seed=d) for d, shape in zip(dims, shapes, strict=True)]
    everything = slice(None)
    expected = x[tuple(tensors[dims.index(d)] if d in dims else everything for d in range(3))]
    assert torch.equal(check("index", x, *tensors, dims=dims, at=at), expected)


@pytest.mark.parametrize("mode", ["set", "add", "prod", "amax", "amin"])
@pytest.mark.parametrize("dim", [0, 1])
def test_scatter(mode: str, dim: int) -> None:
    x = random((4, 5))
    indices = (
        torch.stack([torch.randperm(4)[:3] for _ in range(5)], 1)
        if dim == 0
        else torch.arange(5).expand(3, 5).contiguous()
    )
    check("scatter", x, indices, random(tuple(indices.shape), seed=2), dim=dim, mode=mode)


def test_scatter_adds_up_where_indices_meet() -> None:
    x, indices = torch.zeros(3), torch.tensor([0, 0, 2, 2])
    found = check("scatter", x, indices, torch.tensor([1.0, 2.0, 3.0, 4.0]), dim=0, mode="add")
    assert found.tolist() == [3.0, 0.0, 7.0]


@pytest.mark.parametrize("mode", ["set", "add"])
@pytest.mark.parametrize("dim", [0, 1])
def test_put(mode: str, dim: int) -> None:
    x = random((6, 7))
    indices = torch.tensor([[0, -1], [2, 3]])
    shape = (*x.shape[:dim], 2, 2, *x.shape[dim + 1 :])
    found = check("put", x, indices, random(shape, seed=2), dim=dim, mode=mode)
    back = torch.movedim(found, dim, 0)[indices % x.shape[dim]]
    source = torch.movedim(random(shape, seed=2), (dim, dim + 1), (0, 1))
    expected = source if mode == "set" else source + torch.movedim(x, dim, 0)[indices % x.shape[dim]]
    assert torch.equal(back, expected)


def test_put_adds_up_where_indices_meet() -> None:
    found = check("put", torch.zeros(3, 2), torch.tensor([1, 1, 1]), torch.ones(3, 2), dim=0, mode="add")
    assert found.tolist() == [[0.0, 0.0], [3.0, 3.0], [0.0, 0.0]]


def test_one_hot() -> None:
    x = torch.tensor([[0, 2], [1, 5]])
    for dtype in (i64, f32, bool_):
        torch_dtype = getattr(torch, dtype.torch_name)

        def eager(x: torch.Tensor, torch_dtype: torch.dtype = torch_dtype) -> torch.Tensor:
            return torch.nn.functional.one_hot(x, 6).to(torch_dtype)

        expansion.check("one_hot", [x], eager, classes=6, dtype=dtype)


def test_type_rules_refuse() -> None:
    x, n = random((3, 4)), places((2,), 3)
    refuses("gather: .* differ in their number of dims", "gather", x, n, dim=0)
    refuses("gather: operand 1 is f32; it takes", "gather", x, random((2, 2)), dim=0)
    refuses("gather: indices .* reach beyond", "gather", x, places((2, 5), 3), dim=0)
    refuses("take: dim=2 must be an int in", "take", x, n, dim=2)
    refuses("take: .* has nothing to index in dim 0", "take", random((0, 4)), n, dim=0)
    refuses("index: 1 tensors of indices for dims=", "index", x, n, dims=(0, 1), at=0)
    refuses("index: at=3 must be an int", "index", x, n, n, dims=(0, 1), at=3)
    refuses("scatter: mode='mean' is none of", "scatter", x, places((2, 2), 3), random((2, 2)), dim=0, mode="mean")
    refuses("scatter: indices .* differ in shape", "scatter", x, places((2, 2), 3), random((2, 3)), dim=0, mode="set")
    refuses(
        "scatter: base .* differ in dtype", "scatter", x, places((2, 2), 3), random((2, 2)).double(), dim=0, mode="set"
    )
    refuses("put: the source is", "put", x, n, random((2, 2)), dim=0, mode="set")


# running reductions


@pytest.mark.parametrize("name", ["cumsum", "cumprod", "cummax_values", "cummin_values"])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.uint8], ids=str)
def test_scans(name: str, dtype: torch.dtype) -> None:
    x = random((3, 4, 5), dtype)
    for dim in range(3):
        check(name, x, dim=dim)
    check(name, random((0, 3), dtype), dim=0)
    check(name, random((3, 0), dtype), dim=0)
    check(name, random((1,), dtype), dim=0)
    check(name, x.transpose(0, 2), dim=1)


@pytest.mark.parametrize("name", ["cumsum", "cumprod", "cummax_values", "cummin_values"])
def test_scans_of_special_values(name: str) -> None:
    inf, nan = float("inf"), float("nan")
    check(name, torch.tensor([[1.0, inf, -inf, 2.0], [3.0, nan, 5.0, -1.0], [-0.0, 0.0, -0.0, -1.0]]), dim=1)
    refuses(f"{name}: operand 0 is bool", name, random((3,), torch.bool), dim=0)
    refuses(f"{name}: dim=1 must be", name, random((3,)), dim=1)


def test_wide_scan_of_reduced_floats() -> None:
    check("cumsum", torch.full((600,), 0.1, dtype=torch.bfloat16), dim=0)
