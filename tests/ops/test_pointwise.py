"""Elementwise ops: every scalar operator on every dtype, special values, broadcasting, numbers, host scalars."""

from __future__ import annotations

import itertools

import pytest
import torch

from graphc import ops
from graphc.ir.types import BY_TORCH_NAME, bf16, bool_, f32, f64, i16, i32, i64
from graphc.loopir.scalar import SCALAR_OPS
from graphc.ops import Kind
from tests.ops.core import FLOATS, INTEGERS, SPECIAL, Host, check, random, refuses

UNARY = sorted(name for name, op in SCALAR_OPS.items() if op.arity == 1 and op.result != "given")
BINARY = sorted(name for name, op in SCALAR_OPS.items() if op.arity == 2 and op.result != "given")
DTYPES = (*FLOATS, *INTEGERS, torch.bool)
POSITIVE_DIVISOR = ("floordiv", "truncdiv", "remainder", "fmod")
SHIFTS = ("shl", "shr")


def kind_of(dtype: torch.dtype) -> str:
    return BY_TORCH_NAME[str(dtype).removeprefix("torch.")].kind


def domain(name: str, x: torch.Tensor) -> torch.Tensor:
    """Random numbers moved to where a function is smooth; special values have a test of their own."""
    if name in ("acosh",):
        return x.abs() + 1
    if name in ("asin", "acos", "atanh", "erfinv"):
        return x.tanh() * 0.9
    if name in ("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "digamma", "lgamma", "reciprocal"):
        return x.abs() + 0.25
    return x


def test_every_scalar_operator_is_a_graph_op() -> None:
    for name in SCALAR_OPS.keys() - {"philox"}:  # which random ops are made of
        definition = ops.get(name)
        assert definition.kind is Kind.POINTWISE
        assert definition.lower is not None
        assert definition.doc


@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str) -> None:
    for dtype in DTYPES:
        x = random((3, 5), dtype)
        if kind_of(dtype) not in SCALAR_OPS[name].kinds:
            refuses(f"{name}: does not take", name, x)
            continue
        check(name, domain(name, x) if dtype.is_floating_point else x)
        check(name, random((), dtype) if not dtype.is_floating_point else domain(name, random((), dtype)))
        check(name, random((0, 3), dtype))


@pytest.mark.parametrize("name", [n for n in UNARY if "float" in SCALAR_OPS[n].kinds])
def test_unary_on_special_values(name: str) -> None:
    values = [v for v in SPECIAL if abs(v) != 300.0 or name not in ("lgamma", "digamma", "tan")]
    check(name, torch.tensor(values))


@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str) -> None:
    for dtype in DTYPES:
        x, y = random((3, 1, 5), dtype), random((4, 1), dtype, seed=1)
        if kind_of(dtype) not in SCALAR_OPS[name].kinds:
            refuses(f"{name}: does not take", name, x, y)
            continue
        if name == "pow":
            x, y = x.abs() + 0.5 if dtype.is_floating_point else x, y if dtype.is_floating_point else y.abs() % 4
        if name in POSITIVE_DIVISOR:
            y = torch.where(y == 0, torch.ones_like(y), y)
        if name in SHIFTS:
            y = y.abs() % 7
        check(name, x, y)
        check(name, x, y[0, 0])
        check(name, random((0, 1), dtype), y[:1])


@pytest.mark.parametrize("name", [n for n in BINARY if "float" in SCALAR_OPS[n].kinds and n != "nextafter"])
def test_binary_on_special_values(name: str) -> None:
    pairs = torch.tensor(list(itertools.product(SPECIAL, SPECIAL)))
    check(name, pairs[:, 0].contiguous(), pairs[:, 1].contiguous())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_where(dtype: torch.dtype) -> None:
    condition = random((4, 1), torch.bool)
    check("where", condition, random((1, 3), dtype), random((4, 3), dtype, seed=1))
    number = True if dtype == torch.bool else 2.5 if dtype.is_floating_point else 2
    check("where", condition, number, random((4, 3), dtype))
    check("where", condition, random((3,), dtype), number)


def test_bounded() -> None:
    """On operands that agree, as they have to."""
    hidden = torch.tensor([[True, False, False, True, False, True], [True, True, True, False, True, True]])
    edges = [torch.tensor([[a], [b]], dtype=torch.int32) for a, b in ((1, 3), (5, 4), (3, 4))]
    at = torch.arange(6, dtype=torch.int32)
    assert torch.equal(check("bounded", at, *edges, hidden), hidden)
    added = torch.where(hidden, float("-inf"), 0.0)
    assert torch.equal(check("bounded", at, *edges, added), added)
    refuses("bounded: does not take i32", "bounded", at, *edges, at)
    refuses("bounded: operands are f32 and i32", "bounded", at.float(), *edges, hidden)


def test_where_needs_a_bool_condition_and_one_dtype() -> None:
    x = random((3,))
    refuses("where: does not take f32", "where", x, x, x)
    refuses("where: operands are f32 and f64", "where", random((3,), torch.bool), x, x.double())
    refuses("where: needs a tensor", "where", random((3,), torch.bool), 1.0, 2.0)


def test_numbers_take_the_dtype_of_tensors() -> None:
    assert check("mul", random((3,), torch.bfloat16), 0.1).dtype == torch.bfloat16
    assert check("sub", 1.0, random((3,))).dtype == torch.float32
    assert check("add", random((3,), torch.int8), 3).dtype == torch.int8
    assert check("eq", random((3,), torch.bool), True).dtype == torch.bool


def test_a_number_beside_bf16_is_not_rounded_to_bf16() -> None:
    x = torch.tensor([3.0], dtype=torch.bfloat16)
    assert check("mul", x, 1.0 / 3.0 + 1e-3) == (x.float() * (1.0 / 3.0 + 1e-3)).bfloat16()


def test_host_scalars() -> None:
    assert check("add", Host(2), 3) == 5
    assert check("mul", Host(0.5), Host(4.0)) == 2.0
    assert check("lt", Host(2), Host(3)) is True
    assert check("cast", Host(2.7), dtype=i64) == 2
    assert check("where", Host(True), Host(1.5), 2.0) == 1.5
    check("mul", random((3,)), Host(0.25))
    check("add", random((3,), torch.bfloat16), Host(0.3))
    check("add", random((3,), torch.int32), Host(7))
    check("pow", Host(2.0), random((3,)))


def test_operands_that_do_not_fit_are_refused() -> None:
    x, n = random((3,)), random((3,), torch.int64)
    refuses("add: operands are f32 and i64; insert a cast", "add", x, n)
    refuses("add: 1.5 does not fit beside i64", "add", n, 1.5)
    refuses("does not fit beside i64", "add", n, Host(1.5))
    refuses("add: takes 2 operands, got 1", "add", x)
    refuses("add: needs a tensor beside the numbers 1, 2", "add", 1, 2)
    refuses("add: unknown attribute 'alpha'", "add", x, x, alpha=2)
    refuses(r"add: shapes \[3\] and \[4\] do not broadcast", "add", x, random((4,)))
    refuses("add: does not take bool", "add", random((3,), torch.bool), True)


@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_cast(source: torch.dtype) -> None:
    for dtype in (f64, f32, bf16, i64, i32, bool_):
        check("cast", random((2, 3), source), dtype=dtype)


def test_cast_to_bool_is_not_zero() -> None:
    assert check("cast", torch.tensor([0.0, -0.0, 0.3, float("nan")]), dtype=bool_).tolist() == [
        False,
        False,
        True,
        True,
    ]


def test_casts_that_are_refused() -> None:
    refuses("cast: does not convert f32 to c64", "cast", random((2,)), dtype=BY_TORCH_NAME["complex64"])
    refuses("cast: host scalars are f64, i64 or bool, not f32", "cast", Host(1.5), dtype=f32)
    refuses("cast: attribute 'dtype' is missing", "cast", random((2,)))
    refuses("cast: dtype='f32' must be a dtype", "cast", random((2,)), dtype="f32")


def test_bitcast() -> None:
    x = torch.tensor([1.0, -0.0, float("inf")])
    assert check("bitcast", x, dtype=i32).tolist() == [0x3F800000, -0x80000000, 0x7F800000]
    check("bitcast", random((4,), torch.int64), dtype=f64)
    refuses("bitcast: cannot reinterpret f32 as i16", "bitcast", x, dtype=i16)
    refuses("bitcast: cannot reinterpret bf16 as i16", "bitcast", x.bfloat16(), dtype=i16)


def test_devices() -> None:
    from graphc.ir.graph import Builder, Graph, Role
    from graphc.ir.types import TensorType

    builder = Builder(Graph("devices"), ops.infer)

    def value(shape: tuple[int, ...], device: str) -> object:
        return builder.input("x", TensorType(f32, shape, device), Role.ARG, "x")

    near, far, number = value((3,), "cuda:0"), value((3,), "cuda:1"), value((), "cpu")
    assert builder.op("add", near, number).device == "cuda:0"
    assert builder.op("add", number, near).device == "cuda:0"
    assert builder.op("add", value((), "cuda:0"), number).device == "cuda:0"
    with pytest.raises(Exception, match="add: operands are on cuda:0 and cuda:1"):
        builder.op("add", near, far)
    with pytest.raises(Exception, match="add: operands are on cuda:0 and cpu"):
        builder.op("add", near, value((3,), "cpu"))
