"""Import rules: every call of the table against eager, call by call on many dtypes, and through the capture."""

from __future__ import annotations

import itertools
import random as python_random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from graphc.frontend.aten.registry import RULES
from tests.frontend import harness
from tests.ops.core import random
from tests.ops.imports import CheckRules

Call = Callable[[Any], Any]
aten = torch.ops.aten


def _words(text: str) -> list[str]:
    return text.split()


UNARY = _words(
    "acos acosh asin asinh atan atanh cos cosh digamma erf erfc erfinv exp exp2 expm1 lgamma log log10 log1p log2 "
    "reciprocal rsqrt sin sinh sqrt tan tanh abs neg sign sgn bitwise_not logical_not floor ceil trunc round frac "
    "isnan isinf isposinf isneginf isfinite signbit sinc deg2rad rad2deg angle nan_to_num square positive"
)
BINARY = _words(
    "eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor remainder fmod "
    "floor_divide maximum minimum fmax fmin atan2 copysign hypot add sub mul div pow logaddexp logaddexp2 xlogy "
    "heaviside nextafter ldexp float_power rsub"
)
WITH_NUMBER = _words(
    "eq ne lt le gt ge bitwise_and bitwise_or bitwise_xor remainder fmod floor_divide copysign add sub mul div pow "
    "xlogy float_power rsub"
)


def _functions() -> dict[str, Call]:
    calls: dict[str, Call] = {}
    for name in UNARY:
        calls[name] = lambda t, f=getattr(torch, name): f(t.x)
    for name in BINARY:
        calls[name] = lambda t, f=getattr(torch, name): f(t.x, t.y)
        calls[f"{name} broadcast"] = lambda t, f=getattr(torch, name): f(t.row, t.turned)
        calls[f"{name} 0-d"] = lambda t, f=getattr(torch, name): f(t.x, t.s)
    for name in WITH_NUMBER:
        calls[f"{name} int"] = lambda t, f=getattr(torch, name): f(t.x, 3)
        calls[f"{name} float"] = lambda t, f=getattr(torch, name): f(t.x, 2.5)
    for power in (0, 1, 2, 3, 7, -1, -2, 0.5, -0.5, 1.5, float("nan")):
        calls[f"pow {power}"] = lambda t, p=power: torch.pow(t.x, p)
    return calls


POINTWISE: dict[str, Call] = {
    **_functions(),
    "add alpha": lambda t: torch.add(t.x, t.y, alpha=3),
    "add float alpha": lambda t: torch.add(t.x, t.y, alpha=0.3),
    "add number alpha": lambda t: torch.add(t.x, 2, alpha=3),
    "sub alpha": lambda t: torch.sub(t.x, t.y, alpha=3),
    "rsub alpha": lambda t: torch.rsub(t.x, t.y, alpha=2),
    "add integers and floats": lambda t: t.x + t.places,
    "add a mask": lambda t: t.x * t.mask,
    "number beside a mask": lambda t: t.mask + 1.5,
    "div trunc": lambda t: torch.div(t.x, t.y, rounding_mode="trunc"),
    "div floor": lambda t: torch.div(t.x, 0.7, rounding_mode="floor"),
    "div no mode": lambda t: torch.div(t.x, t.y, rounding_mode=None),
    "pow of number": lambda t: torch.pow(2.5, t.x),
    "pow of one": lambda t: torch.pow(1, t.x),
    "pow of two, turned": lambda t: torch.pow(2, t.turned),
    "remainder of number": lambda t: torch.remainder(7, t.y),
    "xlogy of number": lambda t: torch.xlogy(2, t.x),
    "xlogy number": lambda t: torch.xlogy(t.x, 2),
    "xlog1py": lambda t: torch.special.xlog1py(t.x, t.y),
    "xlog1py number": lambda t: torch.special.xlog1py(t.x, 2),
    "entr": lambda t: torch.special.entr(t.x),
    "logit": lambda t: torch.logit(t.x),
    "logit eps": lambda t: torch.logit(t.x, 0.1),
    "round decimals": lambda t: torch.round(t.x, decimals=2),
    "round tens": lambda t: torch.round(t.x, decimals=-1),
    "nan_to_num given": lambda t: torch.nan_to_num(t.x, 1.5, 10.0, -10.0),
    "addcmul": lambda t: torch.addcmul(t.x, t.y, t.row, value=2),
    "addcdiv": lambda t: torch.addcdiv(t.x, t.y, t.row, value=2),
    "lerp near": lambda t: torch.lerp(t.x, t.y, 0.3),
    "lerp far": lambda t: torch.lerp(t.x, t.y, 0.8),
    "lerp tensor": lambda t: torch.lerp(t.x, t.y, t.row),
    "where": lambda t: torch.where(t.mask, t.x, t.row),
    "where number": lambda t: torch.where(t.mask, t.x, 0),
    "where promoted": lambda t: torch.where(t.mask, t.x, t.places),
    "masked_fill": lambda t: t.x.masked_fill(t.mask, 1),
    "masked_fill tensor": lambda t: t.turned.masked_fill(t.mask, t.s),
    "masked_fill inf": lambda t: t.x.masked_fill(t.mask, float("-inf")),
    "clamp": lambda t: torch.clamp(t.x, -1, 1),
    "clamp float": lambda t: torch.clamp(t.x, 0.5),
    "clamp max": lambda t: torch.clamp(t.x, max=2),
    "clamp tensors": lambda t: torch.clamp(t.x, t.y, t.row),
    "clamp nan": lambda t: torch.clamp(t.x, min=float("nan")),
    "clamp_min": lambda t: torch.clamp_min(t.x, 1),
    "clamp_max tensor": lambda t: torch.clamp_max(t.x, t.y),
    "shift left": lambda t: t.x << 3,
    "shift right": lambda t: t.x >> 3,
    "and number": lambda t: t.x & 6,
    "number and": lambda t: torch.bitwise_and(6, t.x),
    "polygamma": lambda t: torch.polygamma(0, t.x),
}

CREATION: dict[str, Call] = {
    "zeros": lambda t: torch.zeros(2, 3),
    "ones": lambda t: torch.ones(2, 3, dtype=torch.int32),
    "full": lambda t: (torch.full((2,), 1.5), torch.full((), 3), torch.full((0, 2), True)),
    "full dtype": lambda t: torch.full((2,), 2, dtype=torch.bfloat16),
    "empty": lambda t: torch.empty(2, 3).fill_(2.0),
    "empty channels_last": lambda t: torch.empty(2, 3, 4, 5, memory_format=torch.channels_last).zero_(),
    "empty_strided": lambda t: torch.empty_strided((2, 3), (1, 2)).fill_(1.0),
    "empty_permuted": lambda t: torch.empty_permuted((2, 3, 4), (2, 0, 1)).fill_(1.0),
    "arange": lambda t: (torch.arange(5), torch.arange(2, 9), torch.arange(9, 2, -2), torch.arange(0)),
    "arange float": lambda t: (torch.arange(0.5, 3.0, 0.3), torch.arange(3, dtype=torch.float64), torch.arange(1.0, 2)),
    "arange int of floats": lambda t: torch.arange(0.9, 7.7, dtype=torch.int64),
    "linspace": lambda t: (torch.linspace(-1, 2, 7), torch.linspace(0.0, 1.0, 1), torch.linspace(0, 1, 0)),
    "linspace bf16": lambda t: torch.linspace(-1, 2, 6, dtype=torch.bfloat16),
    "eye": lambda t: (torch.eye(3), torch.eye(2, 4, dtype=torch.int64), torch.eye(3, 2, dtype=torch.bool)),
    "scalar_tensor": lambda t: (torch.scalar_tensor(2.5), torch.scalar_tensor(3, dtype=torch.int16)),
    "like": lambda t: (torch.zeros_like(t.turned), torch.ones_like(t.x, dtype=torch.bool), torch.full_like(t.x, 3)),
    "like contiguous": lambda t: torch.zeros_like(t.turned, memory_format=torch.contiguous_format),
    "new": lambda t: (t.x.new_zeros(2), t.x.new_ones(2, 2), t.x.new_full((3,), 1), t.x.new_empty(2).zero_()),
    "new dtype": lambda t: t.x.new_zeros((2, 2), dtype=torch.float64),
    "fill": lambda t: (torch.fill(t.x, 2), torch.fill(t.turned, t.s)),
    "zero": lambda t: torch.ops.aten.zero(t.turned),
    "clone": lambda t: (t.x.clone(), t.turned.clone(), t.turned.clone(memory_format=torch.contiguous_format)),
    "to": lambda t: (t.x.to(torch.float64), t.turned.to(torch.float16), t.x.to(torch.int32), t.x.bool()),
    "to copy": lambda t: t.turned.to(t.turned.dtype, copy=True),
    "contiguous": lambda t: (t.turned.contiguous(), t.image.contiguous(memory_format=torch.channels_last)),
    "copy": lambda t: aten.copy.default(t.turned, t.row),
    "tril": lambda t: (torch.tril(t.x), torch.tril(t.cube, -1), torch.tril(t.turned, 2)),
    "triu": lambda t: (torch.triu(t.x), torch.triu(t.cube, -1), torch.triu(t.turned, 2)),
}

REDUCTIONS: dict[str, Call] = {
    "sum": lambda t: (t.x.sum(), t.cube.sum(1), t.cube.sum((0, -1), keepdim=True), t.turned.sum(0)),
    "sum dtype": lambda t: t.x.sum(0, dtype=torch.float64),
    "sum empty": lambda t: (t.x[:0].sum(), t.x[:0].sum(0), t.s.sum(), t.s.sum(0)),
    "nansum": lambda t: (t.x.nansum(), t.cube.nansum((0, 1))),
    "prod": lambda t: (t.x.prod(), t.cube.prod(1, keepdim=True), t.s.prod()),
    "mean": lambda t: (t.x.mean(), t.cube.mean((0, 2)), t.s.mean(), t.x[:0].mean()),
    "mean dtype": lambda t: t.x.mean(0, dtype=torch.float32),
    "count_nonzero": lambda t: (t.x.count_nonzero(), t.cube.count_nonzero((0, 1))),
    "trace": lambda t: (t.x.trace(), t.turned.trace()),
    "amax": lambda t: (t.x.amax(), t.cube.amax((0, 2)), t.cube.amin(1, keepdim=True), t.s.amin()),
    "max": lambda t: (t.x.max(), t.x.min(), *t.cube.max(1), *t.cube.min(-1, keepdim=True), *t.s.max(0)),
    "aminmax": lambda t: (*torch.aminmax(t.x), *torch.aminmax(t.cube, dim=1)),
    "argmax": lambda t: (t.x.argmax(), t.cube.argmax(1), t.cube.argmin(-1, keepdim=True), t.s.argmin()),
    "any": lambda t: (t.x.any(), t.cube.any(1), t.cube.any((0, 2)), t.s.any(), t.x[:0].any(0)),
    "all": lambda t: (t.x.all(), t.cube.all(1, keepdim=True), t.s.all(), t.x[:0].all()),
    "var": lambda t: (t.x.var(), t.cube.var(1), t.cube.var((0, 2), correction=0, keepdim=True)),
    "std": lambda t: (t.x.std(), t.cube.std((0, 1), correction=2), *torch.std_mean(t.cube, 2)),
    "var_mean": lambda t: (*torch.var_mean(t.cube, 1), *torch.var_mean(t.x, correction=0)),
    "logsumexp": lambda t: (t.x.logsumexp(0), t.cube.logsumexp((0, 2), keepdim=True)),
    "norms": lambda t: tuple(
        torch.linalg.vector_norm(t.cube, p, 1) for p in (0, 1, 2, 3.5, float("inf"), float("-inf"))
    ),
    "norm": lambda t: (t.x.norm(), t.x.norm(1, 1), torch.norm(t.cube, 3, (0, 1), True)),
    "dist": lambda t: (torch.dist(t.x, t.y), torch.dist(t.x, t.row, 1)),
    "cumsum": lambda t: (t.x.cumsum(0), t.cube.cumsum(-1), t.turned.cumsum(1), t.s.cumsum(0), t.x[:0].cumsum(0)),
    "cumprod": lambda t: (t.x.cumprod(0), t.cube.cumprod(1), t.x.cumprod(0, dtype=torch.float64)),
}

CONTRACTION: dict[str, Call] = {
    "mm": lambda t: (t.x @ t.turned.t(), torch.mm(t.x, t.x.t())),
    "int_mm": lambda t: torch._int_mm(t.x, t.y.t()),
    "bmm": lambda t: torch.bmm(t.cube, t.cube.transpose(1, 2)),
    "matmul": lambda t: (t.cube @ t.x.t(), t.cube @ t.row, t.row @ t.x.t(), t.row @ t.row),
    "mv": lambda t: torch.mv(t.x, t.row),
    "dot": lambda t: (torch.dot(t.row, t.row), torch.vdot(t.row, t.row)),
    "addmm": lambda t: (torch.addmm(t.x[:, :3], t.x, t.y.t()), torch.addmm(t.s, t.x, t.y.t(), beta=2, alpha=3)),
    "addmm beta 0": lambda t: torch.addmm(t.x[:, :3] / 0, t.x, t.y.t(), beta=0),
    "addmv": lambda t: torch.addmv(t.x[:, 0], t.x, t.row, beta=2, alpha=2),
    "baddbmm": lambda t: torch.baddbmm(t.cube[:, :, :3], t.cube, t.cube.transpose(1, 2), beta=2, alpha=3),
    "addbmm": lambda t: torch.addbmm(t.x[:, :3], t.cube, t.cube.transpose(1, 2), beta=2),
    "addr": lambda t: (torch.addr(t.x, t.x[:, 0], t.row, beta=2, alpha=3), torch.addr(t.turned, t.x[:, 0], t.row)),
    "outer": lambda t: torch.outer(t.row, t.row),
    "linear": lambda t: torch.nn.functional.linear(t.cube, t.x, t.x[:, 0]),
    "einsum": lambda t: (torch.einsum("bij,kj->bik", t.cube, t.x), torch.einsum("ij->j", t.x)),
}

INDEXING: dict[str, Call] = {
    "embedding": lambda t: torch.nn.functional.embedding(t.places[:, :2] % 3, t.x, padding_idx=1),
    "index_select": lambda t: (torch.index_select(t.x, 1, t.where), torch.index_select(t.cube, 0, t.where[:2] % 2)),
    "index_select of 0-d": lambda t: torch.index_select(t.s, 0, t.where[:1] * 0),
    "take": lambda t: torch.take(t.x, t.places),
    "gather": lambda t: (torch.gather(t.x, 1, t.places % 4), torch.gather(t.x, 0, t.places % 3), t.s.gather(0, t.zero)),
    "index": lambda t: (t.x[t.where % 3], t.cube[:, t.where % 3], t.x[-t.where % 3 - 1]),
    "index two": lambda t: (t.x[t.where % 3, t.where], t.cube[:, t.where % 3, t.where]),
    "index apart": lambda t: t.cube[t.where % 2, :, t.where],
    "index broadcast": lambda t: (t.cube[:, t.where[:3, None] % 3, t.where], t.x[None, t.where % 3]),
    "index turned": lambda t: (
        t.turned[:, t.where], t.turned_cube[:, t.where % 3], t.turned_cube[t.where % 2, :, t.where],
    ),
    "index int32": lambda t: t.x[t.where.int() % 3],
    "index nothing": lambda t: t.x[t.where[:0]],
    "index_put": lambda t: (t.x.index_put((t.where[:2],), t.y[:2]), t.cube.index_put((None, t.where[:2]), t.row)),
    "index_put two": lambda t: t.cube.index_put((t.zero + 1, None, t.where), t.cube[0, 0, :1, None].expand(4, 3)),
    "index_put pairs": lambda t: t.x.index_put((t.where[:3], -t.where[:3] - 1), t.x[:, 0]),
    "index_put accumulate": lambda t: t.x.index_put((t.where % 2,), t.row, accumulate=True),
    "index_put mask": lambda t: (t.x.index_put((t.mask,), t.s), t.cube.index_put((None, t.mask), t.s)),
    "index_add": lambda t: (torch.index_add(t.x, 1, t.where % 2, t.y), t.x.index_add(0, t.where[:3], t.y, alpha=2)),
    "index_copy": lambda t: torch.index_copy(t.x, 0, t.where[:3], t.y),
    "index_fill": lambda t: (torch.index_fill(t.x, 1, t.where[:2], 2), torch.index_fill(t.turned, 0, t.where[:2], t.s)),
    "scatter": lambda t: (t.x.scatter(1, t.perms, t.y), t.x.scatter(1, t.perms[:2], 1), t.x.scatter(0, t.none, 1)),
    "scatter reduce": lambda t: (
        t.x.scatter(1, t.perms, t.y, reduce="add"), t.x.scatter(1, t.perms, t.y, reduce="multiply"),
        t.x.scatter(1, t.perms, 2, reduce="add"),
    ),
    "scatter_add": lambda t: torch.scatter_add(t.x, 0, t.places % 3, t.y),
    "scatter_reduce": lambda t: tuple(
        torch.scatter_reduce(t.x, 0, t.places % 3, t.y, how) for how in ("sum", "prod", "amax", "amin")
    ),
    "slice_scatter": lambda t: (torch.slice_scatter(t.x, t.y[:2], 0, 1), t.x.slice_scatter(t.y[:, :2], 1, 0, 4, 2)),
    "select_scatter": lambda t: (torch.select_scatter(t.x, t.row, 0, -1), t.turned.select_scatter(t.row, 0, 1)),
    "diagonal_scatter": lambda t: (torch.diagonal_scatter(t.x, t.row[:3]), t.x.diagonal_scatter(t.row[:3], 1)),
}  # fmt: skip

REARRANGE: dict[str, Call] = {
    "cat": lambda t: (torch.cat([t.x, t.y]), torch.cat([t.x, t.turned, t.x[:, :0]], 1), torch.cat([t.x])),
    "cat dtypes": lambda t: torch.cat([t.x, t.places, t.mask]),
    "cat empty vector": lambda t: torch.cat([torch.empty(0), t.x]),
    "cat channels_last": lambda t: torch.cat([t.pixels, t.pixels], 1),
    "stack": lambda t: (torch.stack([t.x, t.y]), torch.stack([t.x, t.turned], -1), torch.stack([t.s, t.s])),
    "repeat": lambda t: (
        t.x.repeat(2, 3),
        t.row.repeat(2, 1, 3),
        t.s.repeat(4),
        t.x.repeat(0, 1),
        t.turned.repeat(1, 2),
    ),
    "flip": lambda t: (t.x.flip(0), t.cube.flip(0, 2), t.turned.flip(1), t.x.flip([])),
    "roll": lambda t: (t.x.roll(1), t.x.roll(-5, 1), t.cube.roll((1, 2), (0, 2)), t.turned.roll(1, 0)),
    "pad": lambda t: (torch.nn.functional.pad(t.x, (1, 2)), torch.nn.functional.pad(t.cube, (1, -1, 0, 2), value=3)),
    "pad channels_last": lambda t: torch.nn.functional.pad(t.pixels, (1, 1, 1, 1)),
    "crop": lambda t: torch.nn.functional.pad(t.turned, (-1, 0)),
    "diag_embed": lambda t: (torch.diag_embed(t.x), torch.diag_embed(t.x, 1, 0, 2), torch.diag_embed(t.row, -2)),
    "pixel_shuffle": lambda t: (torch.pixel_shuffle(t.image, 2), torch.pixel_shuffle(t.pixels, 2)),
    "pixel_unshuffle": lambda t: torch.pixel_unshuffle(t.image, 2),
    "channel_shuffle": lambda t: torch.channel_shuffle(t.image, 2),
}

IN_PLACE: dict[str, Call] = {
    "add_": lambda t: t.x.clone().add_(t.y, alpha=2),
    "mul_": lambda t: t.turned.clone().mul_(2),
    "relu_ by clamp": lambda t: t.x.clone().clamp_(min=0),
    "masked_fill_": lambda t: t.turned.clone().masked_fill_(t.mask, 0),
    "index_put_": lambda t: t.x.clone().index_put_((t.where[:2],), t.y[:2]),
    "scatter_add_": lambda t: t.x.clone().scatter_add_(0, t.places % 3, t.y),
    "index_add_": lambda t: t.x.clone().index_add_(1, t.where % 2, t.y),
    "fill_ and zero_": lambda t: (t.x.clone().fill_(3), t.x.clone().zero_(), t.x.clone().copy_(t.row)),
    "tril_": lambda t: t.x.clone().tril_(),
    "cumsum_": lambda t: t.x.clone().cumsum_(0),
    "out=": lambda t: (torch.add(t.x, t.y, out=torch.empty_like(t.x)), torch.sum(t.x, 0, out=t.row.clone())),
    "addmm_": lambda t: t.x[:, :3].clone().addmm_(t.x, t.y.t()),
    "assignment": lambda t: _assigned(t),
}

CALLS = {**CREATION, **REDUCTIONS, **CONTRACTION, **INDEXING, **REARRANGE}
DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int8, torch.uint8,
    torch.bool,
)  # fmt: skip


def _assigned(t: Any) -> torch.Tensor:
    x = t.x.clone()
    x[0] = 1
    x[:, 1] = t.x[:, 0]
    x[t.mask] = 2
    x[t.where[:2], t.where[:2]] = 3
    return x  # type: ignore[no-any-return]


def samples(dtype: torch.dtype) -> SimpleNamespace:
    """Operands of the calls."""
    generator = python_random.Random(0)
    turned = random((4, 3), dtype, seed=2).t()
    return SimpleNamespace(
        x=random((3, 4), dtype),
        y=random((3, 4), dtype, seed=1),
        turned=turned,
        row=random((4,), dtype, seed=3),
        s=random((), dtype, seed=4),
        cube=random((2, 3, 4), dtype, seed=5),
        turned_cube=random((4, 3, 2), dtype, seed=6).permute(2, 1, 0),
        image=random((2, 4, 4, 6), dtype, seed=7),
        pixels=random((2, 4, 4, 6), dtype, seed=8).contiguous(memory_format=torch.channels_last),
        mask=random((3, 4), torch.bool, seed=9),
        places=random((3, 4), torch.int64, seed=10).abs() % 12,
        where=torch.tensor([0, 2, 1, 3]),
        none=torch.empty(0, 4, dtype=torch.int64),
        perms=torch.tensor([generator.sample(range(4), 4) for _ in range(3)]),
        zero=torch.tensor(0),
    )


def works(call: Call, t: Any) -> bool:
    """Eager takes these operands."""
    try:
        call(t)
    except (RuntimeError, TypeError, ValueError, ZeroDivisionError, IndexError, NotImplementedError):
        return False
    return True


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("table", [POINTWISE, CALLS], ids=["pointwise", "others"])
@pytest.mark.filterwarnings("ignore:The reduce argument")
def test_call_by_call(table: dict[str, Call], dtype: torch.dtype) -> None:
    t, mode = samples(dtype), CheckRules()
    for call in table.values():
        if works(call, t):
            with mode:
                call(t)
    assert not mode.mistakes, "\n".join(mode.mistakes)
    assert len(mode.used) > 10


def test_special_values_call_by_call() -> None:
    inf, nan = float("inf"), float("nan")
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, inf, -inf, nan, 0.5, -2.5, 1e-38, 3e38, 100.0])
    for dtype in (torch.float32, torch.bfloat16):
        t, mode = samples(dtype), CheckRules()
        t.x, t.y, t.row = values.reshape(3, 4).to(dtype), values.flip(0).reshape(3, 4).to(dtype), values[3:7].to(dtype)
        t.turned = values.reshape(4, 3).to(dtype).t()
        for call in POINTWISE.values():
            with mode:
                call(t) if works(call, t) else None
        assert not mode.mistakes, "\n".join(mode.mistakes)


def _checked(calls: Sequence[Call], t: SimpleNamespace) -> list[str]:
    """Capture the calls as one program, compare with eager, and name what became an extern call."""

    def program(operands: dict[str, torch.Tensor]) -> list[Any]:
        return [call(SimpleNamespace(**operands)) for call in calls]

    captured = harness.check(program, vars(t), calls=1)
    return [str(op.attrs["op"]) for op in captured.graph.ops if op.name == "extern"]


@pytest.mark.parametrize("name", [*CALLS, *IN_PLACE])
@pytest.mark.filterwarnings("ignore:The reduce argument")
def test_through_the_capture(name: str) -> None:
    call = {**CALLS, **IN_PLACE}[name]
    t = samples(torch.float32)
    if works(call, t):
        assert not _checked([call], t)


def test_pointwise_calls_through_the_capture() -> None:
    for dtype in (torch.float32, torch.int64):
        t = samples(dtype)
        valid = [call for call in POINTWISE.values() if works(call, t)]
        for start in range(0, len(valid), 20):
            _checked(valid[start : start + 20], t)


SAMPLED = frozenset(
    _words(
        "add addcmul addmm addr amax any arange argmin baddbmm cat clamp constant_pad_nd copysign count_nonzero cumsum "
        "diag_embed diagonal_scatter div dot einsum embedding eye fill flip floor_divide fmod full_like gather "
        "heaviside index_add index_put index_select lerp linspace logaddexp logit logsumexp masked_fill "
        "matmul max nan_to_num pow prod remainder repeat roll round scatter scatter_reduce select_scatter "
        "sinc slice_scatter std sum take tril var_mean where xlogy zeros_like"
    )
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_samples_of_the_operator_database(dtype: torch.dtype) -> None:
    from torch.testing._internal.common_methods_invocations import op_db

    mode = CheckRules()
    for entry in op_db:
        if entry.name not in SAMPLED or dtype not in entry.dtypes or entry.variant_test_name:
            continue
        torch.manual_seed(0)
        for sample in itertools.islice(entry.sample_inputs("cpu", dtype), 3):
            with mode, torch.no_grad():
                entry.op(sample.input, *sample.args, **sample.kwargs)
    assert not mode.mistakes, "\n".join(mode.mistakes)
    assert len(mode.used) > 40


def test_every_rule_names_an_overload_of_torch() -> None:
    import transformers.integrations.moe  # noqa: F401  # registers operators of its own

    for name in RULES:
        namespace, packet, overload = name.split(".")
        assert hasattr(getattr(getattr(torch.ops, namespace), packet), overload), name


def test_enough_overloads_are_covered() -> None:
    assert len(RULES) >= 300


@pytest.mark.parametrize("size", [7, 8, 1, 0])
@pytest.mark.parametrize("cut", [(0, 8, 2), (1, 8, 2), (1, 6, 3), (0, 100, 4), (5, 2, 2), (-3, 100, 2), (2, 5, 1)])
def test_gradients_of_slices(size: int, cut: tuple[int, int, int]) -> None:
    count = len(range(*slice(*cut).indices(size)))
    with CheckRules() as checked:
        aten.slice_backward(random((2, count, 3), torch.float32), [2, size, 3], 1, *cut)
        aten.slice_backward(random((count,), torch.float32), [size], 0, *cut)
    assert not checked.mistakes
    assert checked.used["aten.slice_backward.default"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [0, 2])
def test_weight_norm(dtype: torch.dtype, dim: int) -> None:
    v, grad = random((6, 4, 3), dtype), random((6, 4, 3), dtype, seed=1)
    g = random((6, 1, 1) if dim == 0 else (1, 1, 3), dtype).abs() + 0.5
    with CheckRules() as checked:
        _, norms = aten._weight_norm_interface(v, g, dim)
        aten._weight_norm_interface_backward(grad, v, g, norms, dim)
    assert not checked.mistakes
    assert not checked.declined and checked.used.total() == 2


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 2), {}),
        ((9, 1), {"padding": (4, 0)}),
        ((2, 2), {"stride": 2, "padding": 1}),
        ((2, 3), {"dilation": (2, 1), "stride": (1, 3), "padding": (0, 2)}),
        ((1, 1), {}),
    ],
)
def test_windows_as_columns_and_back(kernel: tuple[int, int], options: dict[str, Any]) -> None:
    with CheckRules() as checked:
        for x in (random((2, 3, 9, 7)), random((3, 9, 7), torch.float64), random((2, 9, 7, 3)).permute(0, 3, 1, 2)):
            columns = torch.nn.functional.unfold(x, kernel, **options)
            torch.nn.functional.fold(random(columns.shape, columns.dtype, seed=1), (9, 7), kernel, **options)
    assert not checked.mistakes
    assert (checked.used["aten.im2col.default"], checked.used["aten.col2im.default"]) == (3, 3)
