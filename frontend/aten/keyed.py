"""Random numbers as formulas over counter-based ones: what the import rules of random numbers append by default.

Source: normal numbers by G. E. P. Box, M. E. Muller, "A note on the generation of random normal deviates", 1958; the
others by inverting their distribution functions, as ATen does (`at::transformation`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from graphc.frontend.aten.expression import Term
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.registry import Decline, Erroneous
from graphc.ir.graph import Operand, Value
from graphc.ir.types import DType, f32, f64
from graphc.ops.random import MANTISSA

_STD = "normal expects all elements of std >= 0.0"
_PROBABILITY = (
    "Expected p_in >= 0 && p_in <= 1 to be true, but got false.  (Could this error message be improved?  If so, please "
    "report an enhancement request to PyTorch.)"
)
"""Eager's words."""


def draw(imp: Importer, shape: Sequence[int], dtype: DType, device: str, open: bool = False, lane: int = 0) -> Value:
    """Uniform numbers from a key of their own, in [0, 1), or (0, 1) when `open`."""
    return _uniform(imp, imp.keys.key(device), shape, dtype, open, lane)


def _uniform(imp: Importer, key: Value, shape: Sequence[int], dtype: DType, open: bool, lane: int) -> Value:
    return imp.b.op("random_uniform", key, shape=tuple(shape), dtype=dtype, lane=lane, open=open)


def wide(dtype: DType) -> DType:
    """What formulas for numbers of a dtype are computed in."""
    return f64 if dtype == f64 else f32


def uniform(imp: Importer, shape: Sequence[int], dtype: DType, device: str, low: float, high: float) -> Value:
    """Uniform numbers in [low, high)."""
    number = Term(imp, draw(imp, shape, dtype, device))
    if (low, high) != (0.0, 1.0):
        number = number * (high - low) + low
    return number.value


def normal(imp: Importer, shape: Sequence[int], dtype: DType, device: str) -> Term:
    """Standard normal numbers, of the dtype that they are computed in."""
    key, compute = imp.keys.key(device), wide(dtype)
    radius = Term(imp, _uniform(imp, key, shape, compute, True, 0)).op("log") * -2.0
    angle = Term(imp, _uniform(imp, key, shape, compute, False, 2 if compute == f64 else 1)) * (2.0 * math.pi)
    return radius.op("sqrt") * angle.op("cos")


def scaled(imp: Importer, number: Term, mean: Operand, std: Operand, dtype: DType) -> Value:
    """`number * std + mean` in a dtype; what changes nothing is left out."""
    if isinstance(std, Value) or std != 1:
        number = Term(imp, imp.b.op("mul", number.value, std))
    if isinstance(mean, Value) or mean != 0:
        number = Term(imp, imp.b.op("add", number.value, mean))
    return number.to(dtype)


def rounded(imp: Importer, value: Value, dtype: DType) -> Value:
    """`value` in a dtype."""
    cast = imp.cast(value, dtype)
    assert isinstance(cast, Value)
    return cast


def deviation(imp: Importer, std: Operand, compute: DType) -> Operand:
    """A standard deviation as an operand, refused as eager does when negative.

    Raises:
        Erroneous: a negative number.
    """
    if isinstance(std, Value):
        cast = rounded(imp, std, compute)
        return imp.b.op("checked", cast, low=0.0, high=math.inf, error="RuntimeError", message=_STD)
    if not std >= 0:  # type: ignore[operator]  # a real number
        raise Erroneous(f"std={std}")
    return std


def bernoulli(imp: Importer, shape: Sequence[int], dtype: DType, device: str, p: Operand) -> Value:
    """1 with probability p, else 0.

    Args:
        p: a number, or a float tensor that broadcasts to the shape.

    Raises:
        Erroneous: a number that is no probability.
    """
    compute = f32
    if isinstance(p, Value):
        compute = wide(p.dtype)
        cast = rounded(imp, p, compute)
        p = imp.b.op("checked", cast, low=0.0, high=1.0, error="RuntimeError", message=_PROBABILITY)
    elif not 0 <= p <= 1:  # type: ignore[operator]  # a real number
        raise Erroneous(f"p={p}")
    return rounded(imp, imp.b.op("lt", draw(imp, shape, compute, device), p), dtype)


def integers(imp: Importer, shape: Sequence[int], dtype: DType, device: str, low: Operand, high: Operand) -> Value:
    """Integers in [low, high).

    Raises:
        Decline: bounds that the program computes, or that a float dtype cannot tell apart.
        Erroneous: an empty range, or one that the dtype does not hold.
    """
    if type(low) is not int or type(high) is not int or dtype.kind == "complex":
        raise Decline("bounds that the program computes")
    if low >= high:
        raise Erroneous(f"from {low} to {high}")
    if dtype.is_float:
        if max(abs(low), abs(high)) > 1 << MANTISSA[dtype.name]:
            raise Decline("bounds beyond the mantissa")
    else:
        bits = 1 if dtype.kind == "bool" else 8 * dtype.itemsize
        least = -(1 << (bits - 1)) if dtype.kind == "int" else 0
        if low < least or high - 1 > least + (1 << bits) - 1:
            raise Erroneous(f"from {low} to {high} in {dtype.name}")
    key = imp.keys.key(device)
    return imp.b.op("random_integers", key, shape=tuple(shape), dtype=dtype, lane=0, low=low, high=high)


def exponential(imp: Importer, shape: Sequence[int], dtype: DType, device: str, rate: float) -> Value:
    """Exponentially distributed numbers, all above 0.

    Raises:
        Erroneous: a rate that is not positive.
    """
    if not rate > 0:
        raise Erroneous(f"lambd={rate}")
    return (Term(imp, draw(imp, shape, wide(dtype), device, open=True)).op("log") * (-1.0 / rate)).to(dtype)


def geometric(imp: Importer, shape: Sequence[int], dtype: DType, device: str, p: float) -> Value:
    """Number of trials up to the first success.

    Raises:
        Erroneous: p outside (0, 1).
    """
    if not 0 < p < 1:
        raise Erroneous(f"p={p}")
    trials = Term(imp, draw(imp, shape, wide(dtype), device, open=True)).op("log") * (1.0 / math.log1p(-p))
    return trials.op("ceil").to(dtype)


def cauchy(imp: Importer, shape: Sequence[int], dtype: DType, device: str, median: float, sigma: float) -> Value:
    """Cauchy distributed numbers.

    Raises:
        Erroneous: a scale that is not positive.
    """
    if not sigma > 0:
        raise Erroneous(f"sigma={sigma}")
    angle = (Term(imp, draw(imp, shape, wide(dtype), device, open=True)) - 0.5) * math.pi
    return scaled(imp, angle.op("tan"), median, sigma, dtype)
