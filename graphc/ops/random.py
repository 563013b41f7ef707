"""Random numbers: element i of a draw is made of word i of the streams of its key, wherever and whenever computed.

    %keys: i64[2] = extern() {op="aten.randint.default", args=[2305843009213693952, [2]], ..., effect="random"}
    %key: i64[1] = slice(%keys) {dim=0, start=1, stop=2, step=1}
    %u: f32[64, 10] = random_uniform(%key) {shape=[64, 10], dtype=f32, lane=0, open=False}

Keys come from torch's generator, one per draw and run; they are below 2**61. `lane` goes above that: draws of one op
that shall not depend on each other have lanes of their own. Elements are counted in row-major order.

Source: Philox4x32-10, see `graphc.loopir.philox`. The intervals and resolutions of uniform numbers are ATen's
(`at::transformation::uniform_real`): as many bits as the mantissa has, so every dtype holds them exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Op, Operand
from graphc.ir.types import DType, TensorType, f32, f64, i32, i64, u32, u64
from graphc.loopir.philox import KEY_STEPS, MULTIPLIERS, ROUNDS
from graphc.ops import rules
from graphc.ops.registry import ElementContext, Kind, LoopValue, OpDef, register

KEY_BITS, LANES = 61, 4
"""Keys are in [0, 2**KEY_BITS)."""

MANTISSA: dict[str, int] = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}
WIDE = 1 << 25
"""Sizes of ranges of integers from which on 64 bits are taken: with 32, some would come up 1 % more often."""

_LOW = 0xFFFFFFFF


# words


def _row_major(index: tuple[Dim, ...], shape: tuple[Dim, ...]) -> Dim:
    position: Dim = 0
    for at, size in zip(index, shape, strict=True):
        position = position * size + at
    return position


def _word(ctx: ElementContext, op: Op, index: tuple[Dim, ...], lane: int) -> LoopValue:
    """The u32 of an element in one of the lanes of a draw."""
    key = ctx.element(op.operands[0], (0,))
    if lane:
        key = ctx.compute("add", key, ctx.constant(lane << KEY_BITS, i64), dtype=i64)
    number = ctx.index_value(_row_major(index, op.results[0].type.shape))
    return ctx.compute("philox", key, number, dtype=u32)


def _shifted(ctx: ElementContext, word: LoopValue, bits: int) -> LoopValue:
    return word if bits == 0 else ctx.compute("shr", word, ctx.constant(bits, u32), dtype=u32)


def words(key: torch.Tensor, count: int, lane: int) -> torch.Tensor:
    """The first words of a stream.

    Args:
        key: (1,) int64.
        count: how many.
        lane: added to the key above its 61 bits.

    Returns:
        (count,) int64, each in [0, 2**32).
    """
    whole = key.reshape(()) + (lane << KEY_BITS)
    number = torch.arange(count, dtype=torch.int64, device=key.device)
    block = number >> 2
    c0, c1 = block & _LOW, block >> 32
    c2, c3 = torch.zeros_like(block), torch.zeros_like(block)
    k0, k1 = whole & _LOW, (whole >> 32) & _LOW
    for _ in range(ROUNDS):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # of 64 bits, the sign is the highest
        c0, c1 = ((second >> 32) & _LOW) ^ c1 ^ k0, second & _LOW
        c2, c3 = ((first >> 32) & _LOW) ^ c3 ^ k1, first & _LOW
        k0, k1 = (k0 + KEY_STEPS[0]) & _LOW, (k1 + KEY_STEPS[1]) & _LOW
    place = number & 3
    return torch.where(place < 2, torch.where(place == 0, c0, c1), torch.where(place == 2, c2, c3))


def _check(name: str, operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> tuple[tuple[Dim, ...], DType, str]:
    key = rules.only_tensor(name, operands, ("int",))
    if key.type.dtype != i64 or key.type.shape != (1,):
        rules.fail(name, f"takes a key of type i64[1], got {key.type}")
    if attrs["lane"] not in range(LANES):
        rules.fail(name, f"lane={attrs['lane']!r} must be an int in [0, {LANES})")
    return rules.check_shape(name, attrs["shape"]), rules.check_dtype(name, attrs["dtype"]), key.type.device


# uniform numbers


def _infer_uniform(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("random_uniform", attrs, ("shape", "dtype", "lane", "open"))
    shape, dtype, device = _check("random_uniform", operands, attrs)
    if dtype.name not in MANTISSA or (dtype == f64 and attrs["lane"] % 2):
        rules.fail(
            "random_uniform", f"has no {dtype.name} in lane {attrs['lane']}; f64 takes two lanes from an even one"
        )
    return (TensorType(dtype, shape, device),)


def _uniform(key: torch.Tensor, shape: tuple[int, ...], dtype: DType, lane: int, open: bool) -> torch.Tensor:
    count, bits = math.prod(shape), MANTISSA[dtype.name] - open
    low = words(key, count, lane)
    if dtype == f64:
        low = (words(key, count, lane + 1) << (bits - 32)) + (low >> (64 - bits))
    else:
        low = low >> (32 - bits)
    wide = torch.float64 if dtype == f64 else torch.float32
    number = low.to(wide)
    if open:
        number = number + 0.5
    return (number * 2.0**-bits).to(rules.torch_dtype(dtype)).reshape(shape)


def _lower_uniform(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    dtype, lane, is_open = op.results[0].type.dtype, op.attrs["lane"], bool(op.attrs["open"])
    bits, wide = MANTISSA[dtype.name] - is_open, f64 if dtype == f64 else f32
    word = _word(ctx, op, index, lane)
    if dtype == f64:
        high = ctx.compute("cast", _word(ctx, op, index, lane + 1), dtype=i64)
        low = ctx.compute("cast", ctx.compute("shr", word, ctx.constant(64 - bits, u32), dtype=u32), dtype=i64)
        high = ctx.compute("mul", high, ctx.constant(1 << (bits - 32), i64), dtype=i64)
        whole = ctx.compute("add", high, low, dtype=i64)
    else:  # below 2**31, so converted as signed: there are vector instructions for that
        whole = ctx.compute("shr", word, ctx.constant(32 - bits, u32), dtype=u32)
        whole = ctx.compute("bitcast", whole, dtype=i32)
    number = ctx.compute("cast", whole, dtype=wide)
    if is_open:
        number = ctx.compute("add", number, ctx.constant(0.5, wide), dtype=wide)
    return ctx.compute("mul", number, ctx.constant(2.0**-bits, wide), dtype=wide)


register(
    OpDef(
        "random_uniform", Kind.RANDOM,
        "Uniform numbers from a key, i64[1]: in [0, 1), or (0, 1) when open. shape; dtype; lane; open.",
        _infer_uniform, _uniform, lower=_lower_uniform,
    )
)  # fmt: skip


# integers


def _infer_integers(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("random_integers", attrs, ("shape", "dtype", "lane", "low", "high"))
    shape, dtype, device = _check("random_integers", operands, attrs)
    low, high = attrs["low"], attrs["high"]
    if not all(type(bound) is int for bound in (low, high)) or not 0 < high - low < 1 << 64:
        rules.fail("random_integers", f"low={low!r} and high={high!r} are no range of integers")
    if dtype.kind == "complex":
        rules.fail("random_integers", f"does not make {dtype.name}")
    return (TensorType(dtype, shape, device),)


def _integers(key: torch.Tensor, shape: tuple[int, ...], dtype: DType, lane: int, low: int, high: int) -> torch.Tensor:
    count, size = math.prod(shape), high - low
    first = words(key, count, lane)
    if size < WIDE:
        number = ((first * size) >> 32) + low
    else:
        import numpy as np  # torch has no division of unsigned 64-bit numbers

        both = ((words(key, count, lane + 1) << 32) | first).cpu().numpy().view(np.uint64)
        rest = torch.from_numpy((both % np.uint64(size)).view(np.int64)).to(key.device)
        number = rest + torch.tensor(_signed(low), dtype=torch.int64, device=key.device)
    return number.to(rules.torch_dtype(dtype)).reshape(shape)


def _signed(number: int) -> int:
    """The number of 64 bits with a sign that has the same bits."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _lower_integers(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    low, lane = op.attrs["low"], op.attrs["lane"]
    size = op.attrs["high"] - low
    first = ctx.compute("cast", _word(ctx, op, index, lane), dtype=i64)
    if size < WIDE:
        number = ctx.compute("mul", first, ctx.constant(size, i64), dtype=i64)
        number = ctx.compute("shr", number, ctx.constant(32, i64), dtype=i64)
    else:
        second = ctx.compute("cast", _word(ctx, op, index, lane + 1), dtype=i64)
        second = ctx.compute("shl", second, ctx.constant(32, i64), dtype=i64)
        both = ctx.compute("bitcast", ctx.compute("bitwise_or", second, first, dtype=i64), dtype=u64)
        rest = ctx.compute("remainder", both, ctx.constant(size, u64), dtype=u64)
        number = ctx.compute("bitcast", rest, dtype=i64)
    if low:
        number = ctx.compute("add", number, ctx.constant(_signed(low), i64), dtype=i64)
    return ctx.compute("cast", number, dtype=op.results[0].type.dtype.compute)


register(
    OpDef(
        "random_integers", Kind.RANDOM,
        "Integers from a key, i64[1]: each of [low, high) as likely as any other. shape; dtype; lane; low; high.",
        _infer_integers, _integers, lower=_lower_integers,
    )
)  # fmt: skip
