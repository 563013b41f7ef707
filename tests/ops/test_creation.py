"""full, iota, and the crossings between tensors and host scalars."""

from __future__ import annotations

import pytest
import torch

from graphc.ir.types import BY_TORCH_NAME, bf16, bool_, f32, f64, i8, i32, i64, u8
from tests.ops.core import FLOATS, INTEGERS, Host, check, random, refuses

ALL = [BY_TORCH_NAME[str(d).removeprefix("torch.")] for d in (*FLOATS, *INTEGERS, torch.bool)]


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_full(dtype: object) -> None:
    for shape in ((2, 3), (), (0, 4)):
        check("full", shape=shape, dtype=dtype, value=1, device="cpu")
    for value in (0.1, float("nan"), float("inf"), -0.0):
        if dtype.is_float:  # type: ignore[attr-defined]
            check("full", shape=(2,), dtype=dtype, value=value, device="cpu")
        else:
            refuses("full: value=.* does not fit", "full", shape=(2,), dtype=dtype, value=value, device="cpu")


def test_full_refuses() -> None:
    refuses("full: attribute 'device' is missing", "full", shape=(), dtype=f32, value=1)
    refuses(r"full: shape=\(-1,\) has the size -1", "full", shape=(-1,), dtype=f32, value=1, device="cpu")
    refuses("full: takes 0 operands, got 1", "full", random((1,)), shape=(), dtype=f32, value=1, device="cpu")
    refuses("does not fit c64", "full", shape=(), dtype=BY_TORCH_NAME["complex64"], value=1, device="cpu")


@pytest.mark.parametrize("dtype", [f64, f32, bf16, i64, i32, i8, u8], ids=str)
def test_iota(dtype: object) -> None:
    check("iota", size=7, start=3, step=2, dtype=dtype, device="cpu")
    check("iota", size=0, start=3, step=2, dtype=dtype, device="cpu")
    if dtype.is_float:  # type: ignore[attr-defined]
        check("iota", size=300, start=-1.0, step=0.01, dtype=dtype, device="cpu")
        check("iota", size=5, start=1 << 24, step=3, dtype=dtype, device="cpu")


def test_iota_refuses() -> None:
    refuses("iota: does not count in bool", "iota", size=3, start=0, step=1, dtype=bool_, device="cpu")
    refuses("iota: step=0.5 does not fit i64", "iota", size=3, start=0, step=0.5, dtype=i64, device="cpu")
    refuses("iota: size", "iota", size=-3, start=0, step=1, dtype=i64, device="cpu")


@pytest.mark.parametrize("value", [True, 3, -2.75, float("inf")])
@pytest.mark.parametrize("dtype", [f64, f32, bf16, i64, bool_], ids=str)
def test_to_tensor(value: bool | int | float, dtype: object) -> None:
    if value == float("inf") and dtype == i64:
        return  # no such integer
    check("to_tensor", Host(value), dtype=dtype, device="cpu")


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.bool], ids=str)
def test_item(dtype: torch.dtype) -> None:
    x = random((), dtype)
    assert check("item", x) == x.item()


def test_crossings_refuse() -> None:
    refuses("to_tensor: operand 0 must be a host scalar", "to_tensor", random(()), dtype=f32, device="cpu")
    refuses("item: takes a 0-d tensor", "item", random((2,)))
    refuses("item: operand 0 must be a tensor, got the host scalar", "item", Host(2))
