"""View ops: reference, type rule and lowering against plain torch, with sizes of 0 and 1 and every dtype."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tests.ops.core import FLOATS, INTEGERS, check, random, refuses

RESHAPES = [
    ((2, 3, 4), (6, 4)), ((2, 3, 4), (2, 12)), ((2, 3, 4), (24,)), ((24,), (2, 3, 4)), ((6, 4), (3, 8)),
    ((4, 6), (6, 4)), ((2, 1, 3), (2, 3)), ((2, 3), (1, 2, 1, 3, 1)), ((1, 1), ()), ((), (1, 1)), ((0, 3), (3, 0)),
    ((2, 0), (0,)), ((2, 1, 6), (1, 4, 3)), ((2, 3, 5, 4), (6, 20)), ((2, 3, 5, 4), (2, 15, 2, 2)), ((1, 6), (2, 1, 3)),
    ((8, 3), (2, 2, 2, 3)), ((5, 1), (5,)), ((5,), (1, 5)),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), RESHAPES, ids=str)
def test_reshape(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    x = random(old)
    assert torch.equal(check("reshape", x, shape=new), x.reshape(new))


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.bool], ids=str)
def test_every_dtype_is_moved_as_it_is(dtype: torch.dtype) -> None:
    x = random((4, 6), dtype)
    check("reshape", x, shape=(8, 3))
    check("permute", x, dims=(1, 0))
    check("slice", x, dim=1, start=1, stop=6, step=2)
    check("pad", x, low=(1, 0), high=(0, 2), value=True if dtype == torch.bool else 3)
    check("concat", x, x, dim=0)
    check("update_slice", x, random((2, 6), dtype, seed=1), starts=(1, 0), steps=(2, 1))


def test_operands_with_other_strides() -> None:
    x = random((4, 6)).t()
    check("reshape", x, shape=(8, 3))
    check("as_strided", x, shape=(2, 3), strides=(3, 2), offset=4)
    check("update_strided", x, random((2, 3), seed=1), shape=(2, 3), strides=(12, 2), offset=4)


@pytest.mark.parametrize("dims", list(itertools.permutations(range(3))), ids=str)
def test_permute(dims: tuple[int, ...]) -> None:
    x = random((2, 3, 4))
    assert torch.equal(check("permute", x, dims=dims), x.permute(dims))


def test_permute_of_few_elements() -> None:
    check("permute", random(()), dims=())
    check("permute", random((0, 2)), dims=(1, 0))


@pytest.mark.parametrize(
    ("old", "new"),
    [((), (2, 3)), ((1,), (3,)), ((3,), (2, 3)), ((2, 1), (4, 2, 3)), ((1, 3), (0, 3)), ((2,), (2,))],
    ids=str,
)
def test_expand(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    x = random(old)
    assert torch.equal(check("expand", x, shape=new), x.expand(new))


@pytest.mark.parametrize(("start", "stop", "step"), [(0, 7, 1), (2, 5, 1), (1, 7, 2), (0, 7, 3), (3, 3, 1), (6, 7, 5)])
def test_slice(start: int, stop: int, step: int) -> None:
    x = random((3, 7, 2))
    assert torch.equal(check("slice", x, dim=1, start=start, stop=stop, step=step), x[:, start:stop:step])


@pytest.mark.parametrize("dims", [(), (0,), (1, 2), (0, 1, 2)], ids=str)
def test_flip(dims: tuple[int, ...]) -> None:
    x = random((3, 4, 1))
    assert torch.equal(check("flip", x, dims=dims), x.flip(dims))


@pytest.mark.parametrize(
    ("shape", "low", "high"),
    [((3, 4), (1, 0), (0, 2)), ((3, 4), (0, 0), (0, 0)), ((3,), (2,), (2,)), ((), (), ()), ((0, 2), (1, 1), (0, 1))],
    ids=str,
)
@pytest.mark.parametrize("value", [0.0, float("-inf"), 2])
def test_pad(shape: tuple[int, ...], low: Any, high: Any, value: float) -> None:
    x = random(shape)
    widths = [w for pair in zip(reversed(low), reversed(high), strict=True) for w in pair]
    expected = torch.nn.functional.pad(x, widths, value=float(value)) if widths else x
    assert torch.equal(check("pad", x, low=low, high=high, value=value), expected)


@pytest.mark.parametrize("sizes", [(2, 3), (1,), (0, 2, 0, 1), (4, 0), (0,), (1, 1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("dim", [0, 1])
def test_concat(sizes: tuple[int, ...], dim: int) -> None:
    pieces = [random((size, 3) if dim == 0 else (3, size), seed=i) for i, size in enumerate(sizes)]
    assert torch.equal(check("concat", *pieces, dim=dim), torch.cat(pieces, dim))


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((2, 3), (1, 4), 2),
        ((3, 3), (1, 1), 0),
        ((), (), 5),
        ((4,), (0,), 3),
        ((0, 2), (5, 1), 0),
        ((2, 1, 2), (9, 7, 4), 1),
    ],
    ids=str,
)
def test_as_strided(shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> None:
    x = random((3, 5))
    expected = x.as_strided(shape, strides, offset)
    assert torch.equal(check("as_strided", x, shape=shape, strides=strides, offset=offset), expected)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((2, 3), (7, 2), 1), ((3, 2), (2, 7), 1), ((), (), 5), ((3,), (6,), 0), ((0, 2), (5, 1), 0),
        ((1, 2), (1, 1), 3), ((3, 5), (5, 1), 0),
    ],
    ids=str,
)  # fmt: skip
def test_update_strided(shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> None:
    base, source = random((3, 5)), random(shape, seed=1)
    expected = torch.as_strided_scatter(base, source, shape, strides, offset)
    found = check("update_strided", base, source, shape=shape, strides=strides, offset=offset)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("size", "starts", "steps"),
    [
        ((2, 3), (0, 1), (1, 1)), ((2, 2), (1, 0), (2, 3)), ((4, 5), (0, 0), (1, 1)), ((0, 5), (0, 0), (1, 1)),
        ((1, 5), (3, 0), (1, 1)), ((4, 2), (0, 1), (1, 2)), ((4, 1), (0, 4), (1, 9)),
    ],
    ids=str,
)  # fmt: skip
def test_update_slice(size: tuple[int, ...], starts: tuple[int, ...], steps: tuple[int, ...]) -> None:
    base, source = random((4, 5)), random(size, seed=1)
    expected = base.clone()
    window = [slice(a, a + n * s, s) for a, n, s in zip(starts, size, steps, strict=True)]
    expected[tuple(window)] = source
    assert torch.equal(check("update_slice", base, source, starts=starts, steps=steps), expected)


def test_update_of_a_0d_tensor() -> None:
    assert check("update_slice", torch.tensor(1.0), torch.tensor(2.0), starts=(), steps=()) == 2.0


@pytest.mark.parametrize(
    ("message", "name", "operands", "attrs"),
    [
        ("reshape: .* has not as many elements as", "reshape", [(2, 3)], {"shape": (5,)}),
        ("reshape: shape=.* must be a tuple", "reshape", [(2, 3)], {"shape": [6]}),
        ("reshape: shape=.* has the size -1", "reshape", [(2, 3)], {"shape": (-1,)}),
        ("permute: dims=.* is no permutation", "permute", [(2, 3)], {"dims": (0, 0)}),
        ("expand: .* does not broadcast to", "expand", [(2, 3)], {"shape": (2, 4)}),
        ("slice: step=0 must be", "slice", [(4,)], {"dim": 0, "start": 0, "stop": 4, "step": 0}),
        ("slice: 0:5 is outside dim 0", "slice", [(4,)], {"dim": 0, "start": 0, "stop": 5, "step": 1}),
        ("slice: 3:2 is no range", "slice", [(4,)], {"dim": 0, "start": 3, "stop": 2, "step": 1}),
        ("slice: dim=-1 must be an int", "slice", [(4,)], {"dim": -1, "start": 0, "stop": 2, "step": 1}),
        ("flip: dims=.* ascending", "flip", [(4, 2)], {"dims": (1, 0)}),
        ("pad: low=.* need one entry per dim", "pad", [(4, 2)], {"low": (1,), "high": (1,), "value": 0}),
        ("concat: needs at least one", "concat", [], {"dim": 0}),
        ("concat: .* differ in another dim", "concat", [(2, 3), (2, 4)], {"dim": 0}),
        (
            "as_strided: elements 0 to 9 are outside",
            "as_strided",
            [(4, 2)],
            {"shape": (10,), "strides": (1,), "offset": 0},
        ),
        (
            "update_strided: the source is",
            "update_strided",
            [(4,), (3,)],
            {"shape": (2,), "strides": (1,), "offset": 0},
        ),
        (
            "update_strided: strides=.* overlap",
            "update_strided",
            [(4,), (2, 2)],
            {"shape": (2, 2), "strides": (1, 1), "offset": 0},
        ),
        ("update_slice: .* is outside", "update_slice", [(4,), (3,)], {"starts": (2,), "steps": (1,)}),
        ("update_slice: .* differ in their number of dims", "update_slice", [(4,), (3,)], {"starts": (), "steps": ()}),
    ],
    ids=lambda item: item if isinstance(item, str) else None,
)
def test_type_rules_refuse(message: str, name: str, operands: list[Any], attrs: dict[str, Any]) -> None:
    refuses(message, name, *(random(shape) for shape in operands), **attrs)


def test_pad_value_must_fit() -> None:
    refuses("pad: value=0.5 does not fit i64", "pad", random((2,), torch.int64), low=(1,), high=(0,), value=0.5)


def test_concat_of_two_dtypes_is_refused() -> None:
    refuses("concat: .* differ in dtype", "concat", random((2,)), random((2,), torch.int64), dim=0)
