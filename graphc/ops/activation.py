"""Activation functions: composite ops that expand into a few pointwise ops each.

Formulas are those of eager's CPU kernels (aten/src/ATen/native/cpu/Activation.cpp), so that NaN, infinities and signed
zeros come out alike: comparisons are written so that NaN takes the branch that keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from graphc.errors import InvalidGraphError
from graphc.ir.graph import Attr, Builder, Op, Operand, Value
from graphc.ir.types import TensorType
from graphc.ops import composite, rules
from graphc.ops.registry import ExpandRule, Kind, OpDef, register

Formula: TypeAlias = Callable[[Builder, Value, Mapping[str, Attr]], Value]
"""Writes an activation of a value in compute dtype."""


def _in_compute_dtype(formula: Formula) -> ExpandRule:
    def expand(builder: Builder, op: Op) -> Sequence[Value]:
        x = composite.tensor(op.operands[0], op.name)
        return [composite.cast(builder, formula(builder, composite.wide(builder, x), op.attrs), x.dtype)]

    return expand


def _activation(name: str, doc: str, formula: Formula, reference: Callable[..., Any], integers: bool = False) -> OpDef:
    rule = composite.same_numbers if integers else composite.same_floats
    return register(OpDef(name, Kind.COMPOSITE, doc, rule, reference, expand=_in_compute_dtype(formula)))


def _sigmoid(b: Builder, x: Value) -> Value:
    return b.op("div", 1.0, b.op("add", b.op("exp", b.op("neg", x)), 1.0))


def _clamp(b: Builder, x: Value, low: float, high: float) -> Value:
    # compare and choose, not maximum/minimum: a zero keeps its sign and NaN stays, as in eager
    above = b.op("where", b.op("lt", x, low), low, x)
    return b.op("where", b.op("gt", above, high), high, above)


def relu(b: Builder, x: Value, attrs: Mapping[str, Attr]) -> Value:
    zero = 0.0 if x.dtype.is_float else 0
    return b.op("where", b.op("lt", x, zero), zero, x)


def sigmoid(b: Builder, x: Value, attrs: Mapping[str, Attr]) -> Value:
    return _sigmoid(b, x)


def silu(b: Builder, x: Value, attrs: Mapping[str, Attr]) -> Value:
    return b.op("div", x, b.op("add", b.op("exp", b.op("neg", x)), 1.0))


def gelu(b: Builder, x: Value, attrs: Mapping[str, Attr]) -> Value:
    half = b.op("mul", x, 0.5)
    if attrs["approximate"] == "none":
        inner = b.op("erf", b.op("mul", x, math.sqrt(0.5)))
    else:
        cube = b.op("mul", b.op("mul", x, x), x)
        inner = b.op("tanh", b.op("mul", b.op("add", x, b.op("mul", cube, 0.044715)), math.sqrt(2.0 / math.pi)))
    return b.op("mul", half, b.op("add", inner, 1.0))


def elu(b: Builder, x: Value, attrs: Mapping[str, Attr]) -> Value:
    alpha, scale, input_scale = attrs["alpha"], attrs["scale"], attrs["input_scale"]
    inner = x if input_scale == 1 else b.op("mul", x, float(input_scale))
    negative = b.op("expm1", inner)
    if alpha * scale != 1:
        negative = b.op("mul", negative, float(alpha * scale))
    positive = x if scale == 1 else b.op("mul", x, float(scale))
    return b.op("where", b.op("gt", x, 0.0), positive, negative)


def leaky_relu(b: Builder, x: Value, attrs: Mapping[str, Attr]) -> Value:
    return b.op("where", b.op("gt", x, 0.0), x, b.op("mul", x, float(attrs["negative_slope"])))


def hardtanh(b: Builder, x: Value, attrs: Mapping[str, Attr]) -> Value:
    number = float if x.dtype.is_float else int
    return _clamp(b, x, number(attrs["min_val"]), number(attrs["max_val"]))


def hardswish(b: Builder, x: Value, attrs: Mapping[str, Attr]) -> Value:
    return b.op("div", b.op("mul", x, _clamp(b, b.op("add", x, 3.0), 0.0, 6.0)), 6.0)


def hardsigmoid(b: Builder, x: Value, attrs: Mapping[str, Attr]) -> Value:
    return b.op("div", _clamp(b, b.op("add", x, 3.0), 0.0, 6.0), 6.0)


def softplus(b: Builder, x: Value, attrs: Mapping[str, Attr]) -> Value:
    beta = float(attrs["beta"])
    scaled = x if beta == 1 else b.op("mul", x, beta)
    soft = b.op("log1p", b.op("exp", scaled))
    if beta != 1:
        soft = b.op("div", soft, beta)
    return b.op("where", b.op("gt", scaled, float(attrs["threshold"])), x, soft)


def mish(b: Builder, x: Value, attrs: Mapping[str, Attr]) -> Value:
    # tanh(log(1 + n)) = n (n + 2) / (n (n + 2) + 2) with n = exp(x); above 20 it is 1 to double precision
    n = b.op("exp", x)
    product = b.op("mul", n, b.op("add", n, 2.0))
    small = b.op("mul", x, b.op("div", product, b.op("add", product, 2.0)))
    return b.op("where", b.op("gt", x, 20.0), x, small)


def logsigmoid(b: Builder, x: Value, attrs: Mapping[str, Attr]) -> Value:
    return b.op("sub", b.op("minimum", x, 0.0), b.op("log1p", b.op("exp", b.op("neg", b.op("abs", x)))))


def softshrink(b: Builder, x: Value, attrs: Mapping[str, Attr]) -> Value:
    lambd = float(attrs["lambd"])
    # x * 0 is 0, and NaN for a NaN
    low = b.op("where", b.op("lt", x, -lambd), b.op("add", x, lambd), b.op("mul", x, 0.0))
    return b.op("where", b.op("gt", x, lambd), b.op("sub", x, lambd), low)


def hardshrink(b: Builder, x: Value, attrs: Mapping[str, Attr]) -> Value:
    lambd = float(attrs["lambd"])
    inside = b.op("logical_and", b.op("ge", x, -lambd), b.op("le", x, lambd))
    return b.op("where", inside, 0.0, x)


def threshold(b: Builder, x: Value, attrs: Mapping[str, Attr]) -> Value:
    number = float if x.dtype.is_float else int
    return b.op("where", b.op("le", x, number(attrs["threshold"])), number(attrs["value"]), x)


_activation("relu", "0 where x < 0, else x (NaN and -0.0 stay).", relu, F.relu, integers=True)
_activation("sigmoid", "1 / (1 + exp(-x)).", sigmoid, torch.sigmoid)
_activation("silu", "x / (1 + exp(-x)).", silu, F.silu)
_activation(
    "gelu",
    "Gaussian error linear unit. approximate: none = x/2 (1 + erf(x/sqrt 2)), "
    "tanh = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). Source: Hendrycks and Gimpel, arXiv 1606.08415.",
    gelu,
    F.gelu,
)
_activation(
    "elu",
    "scale * x where x > 0, else alpha * scale * expm1(input_scale * x); selu and celu are cases of it. "
    "Source: Clevert et al., arXiv 1511.07289.",
    elu,
    lambda x, alpha, scale, input_scale: torch.ops.aten.elu(x, alpha, scale, input_scale),
)
_activation("leaky_relu", "x where x > 0, else negative_slope * x.", leaky_relu, F.leaky_relu)
_activation("hardtanh", "x clamped to [min_val, max_val].", hardtanh, F.hardtanh, integers=True)
_activation("hardswish", "x * clamp(x + 3, 0, 6) / 6. Source: Howard et al., arXiv 1905.02244.", hardswish, F.hardswish)
_activation("hardsigmoid", "clamp(x + 3, 0, 6) / 6.", hardsigmoid, F.hardsigmoid)
_activation("softplus", "log1p(exp(beta * x)) / beta, and x itself where beta * x > threshold.", softplus, F.softplus)
_activation("mish", "x * tanh(log1p(exp(x))). Source: Misra, arXiv 1908.08681.", mish, F.mish)
_activation("logsigmoid", "log(sigmoid(x)) as min(x, 0) - log1p(exp(-|x|)).", logsigmoid, F.logsigmoid)
_activation(
    "softshrink", "x - lambd where x > lambd, x + lambd where x < -lambd, else 0 (NaN stays).", softshrink, F.softshrink
)
_activation("hardshrink", "0 where -lambd <= x <= lambd, else x.", hardshrink, F.hardshrink)
_activation("threshold", "value where x <= threshold, else x.", threshold, F.threshold, integers=True)


def _prelu_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    x, weight = composite.floating(operands[0], "prelu"), composite.floating(operands[1], "prelu")
    if x.dtype != weight.dtype:
        raise InvalidGraphError(f"prelu: weight is {weight.type}, input {x.type}")
    return [x.type.with_shape(rules.broadcast("prelu", [x.shape, weight.shape]))]


def _expand_prelu(b: Builder, op: Op) -> Sequence[Value]:
    source = composite.tensor(op.operands[0], op.name)
    x, weight = composite.wide(b, source), composite.wide(b, composite.tensor(op.operands[1], op.name))
    return [composite.cast(b, b.op("where", b.op("gt", x, 0.0), x, b.op("mul", x, weight)), source.dtype)]


register(
    OpDef(
        "prelu",
        Kind.COMPOSITE,
        "x where x > 0, else weight * x; weight (operand 1) broadcasts. Source: He et al., arXiv 1502.01852.",
        _prelu_type,
        lambda x, weight: torch.where(x > 0, x, weight * x),
        expand=_expand_prelu,
    )
)


def _glu_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    x, dim = composite.floating(operands[0], "glu"), attrs["dim"]
    if not 0 <= dim < x.type.rank or x.shape[dim] % 2 != 0:
        raise InvalidGraphError(f"glu halves dim {dim} of {x.type}")
    return [x.type.with_shape((*x.shape[:dim], x.shape[dim] // 2, *x.shape[dim + 1 :]))]


def _expand_glu(b: Builder, op: Op) -> Sequence[Value]:
    source, dim = composite.tensor(op.operands[0], op.name), op.attrs["dim"]
    half = op.result.shape[dim]
    first = b.op("slice", source, dim=dim, start=0, stop=half, step=1)
    second = b.op("slice", source, dim=dim, start=half, stop=source.shape[dim], step=1)
    gated = b.op("mul", composite.wide(b, first), _sigmoid(b, composite.wide(b, second)))
    return [composite.cast(b, gated, source.dtype)]


register(
    OpDef(
        "glu",
        Kind.COMPOSITE,
        "First half along dim times the sigmoid of the second. Source: Dauphin et al., arXiv 1612.08083.",
        _glu_type,
        F.glu,
        expand=_expand_glu,
    )
)
