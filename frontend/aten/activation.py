"""Import rules of activation functions. Dtypes that eager refuses are declined, so that eager's own error shows."""

from __future__ import annotations

import torch

from graphc.frontend.aten import layout, promotion
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.registry import LIKE, POINTWISE, Decline, Erroneous, rule
from graphc.ir.graph import Operand, Value
from graphc.ir.types import contiguous_strides


def number(value: Operand) -> float:
    """A Python number that becomes an attribute.

    Raises:
        Decline: it is a traced number, whose value is not known yet.
    """
    if isinstance(value, (Value, complex)):
        raise Decline("the call has a number that is computed by the program")
    return value


def floats(*tensors: Value) -> None:
    """Let only floats pass.

    Raises:
        Decline: a tensor of another dtype.
    """
    for tensor in tensors:
        if not tensor.dtype.is_float or tensor.type.is_host:
            raise Decline(f"not for {tensor.dtype.name}")


def _simple(overload: str, name: str, integers: bool = False) -> None:
    """A rule for an activation without parameters."""

    @rule(overload, layout=POINTWISE)
    def activation(imp: Importer, self: Value) -> Value:
        if not integers or self.dtype.kind in ("bool", "complex"):
            floats(self)
        return imp.b.op(name, self)


_simple("aten.relu.default", "relu", integers=True)
_simple("aten.silu.default", "silu")
_simple("aten.mish.default", "mish")
_simple("aten.hardswish.default", "hardswish")
_simple("aten.hardsigmoid.default", "hardsigmoid")


@rule("aten.sigmoid.default", layout=POINTWISE)
def sigmoid(imp: Importer, self: Value) -> Value:
    (x,), dtype = imp.promote(self, kind="int_to_float")
    if not dtype.is_float:
        raise Decline("complex sigmoid")
    return imp.b.op("sigmoid", x)


@rule("aten.gelu.default", layout=POINTWISE)
def gelu(imp: Importer, self: Value, approximate: str = "none") -> Value:
    floats(self)
    if approximate not in ("none", "tanh"):
        raise Erroneous("no such approximation")
    return imp.b.op("gelu", self, approximate=approximate)


@rule("aten.elu.default", layout=POINTWISE)
def elu(imp: Importer, self: Value, alpha: Operand = 1, scale: Operand = 1, input_scale: Operand = 1) -> Value:
    floats(self)
    return imp.b.op("elu", self, alpha=number(alpha), scale=number(scale), input_scale=number(input_scale))


@rule("aten.celu.default", layout=POINTWISE)
def celu(imp: Importer, self: Value, alpha: Operand = 1.0) -> Value:
    if number(alpha) == 0:
        raise Decline("eager raises")
    return elu(imp, self, number(alpha), 1.0, 1.0 / number(alpha))


@rule("aten.selu.default", layout=POINTWISE)
def selu(imp: Importer, self: Value) -> Value:
    return elu(imp, self, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1)


@rule("aten.leaky_relu.default", layout=POINTWISE)
def leaky_relu(imp: Importer, self: Value, negative_slope: Operand = 0.01) -> Value:
    floats(self)
    return imp.b.op("leaky_relu", self, negative_slope=number(negative_slope))


@rule("aten._prelu_kernel.default", layout=POINTWISE)
def prelu_kernel(imp: Importer, self: Value, weight: Value) -> Value:
    floats(self, weight)
    if self.dtype != weight.dtype:
        raise Decline("eager raises")
    return imp.b.op("prelu", self, weight)


@rule("aten.hardtanh.default", layout=LIKE)
def hardtanh(imp: Importer, self: Value, min_val: Operand = -1, max_val: Operand = 1) -> Value:
    if self.dtype.kind in ("bool", "complex", "uint"):
        raise Decline("eager raises or wraps")
    return imp.b.op("hardtanh", self, min_val=number(min_val), max_val=number(max_val))


@rule("aten.relu6.default", layout=LIKE)
def relu6(imp: Importer, self: Value) -> Value:
    return hardtanh(imp, self, 0, 6)


@rule("aten.softplus.default", layout=POINTWISE)
def softplus(imp: Importer, self: Value, beta: Operand = 1, threshold: Operand = 20) -> Value:
    floats(self)
    return imp.b.op("softplus", self, beta=number(beta), threshold=number(threshold))


@rule("aten.log_sigmoid_forward.default")
def log_sigmoid_forward(imp: Importer, self: Value) -> tuple[Value, Value]:
    floats(self)
    out = imp.b.op("logsigmoid", self)
    buffer = imp.b.op("exp", imp.b.op("neg", imp.b.op("abs", self)))
    for value in (out, buffer):
        imp.with_strides(value, contiguous_strides(self.shape))  # type: ignore[arg-type]  # static shapes
    return out, buffer


@rule("aten.log_sigmoid.default")
def log_sigmoid(imp: Importer, self: Value) -> Value:
    floats(self)
    return imp.with_strides(imp.b.op("logsigmoid", self), contiguous_strides(self.shape))  # type: ignore[arg-type]


@rule("aten.softshrink.default", layout=POINTWISE)
def softshrink(imp: Importer, self: Value, lambd: Operand = 0.5) -> Value:
    floats(self)
    if not 0 <= number(lambd) <= torch.finfo(promotion.to_torch(self.dtype)).max:
        raise Erroneous("lambda out of range")
    return imp.b.op("softshrink", self, lambd=number(lambd))


@rule("aten.hardshrink.default", layout=POINTWISE)
def hardshrink(imp: Importer, self: Value, lambd: Operand = 0.5) -> Value:
    floats(self)
    return imp.b.op("hardshrink", self, lambd=number(lambd))


@rule("aten.threshold.default", layout=POINTWISE)
def threshold(imp: Importer, self: Value, threshold: Operand, value: Operand) -> Value:
    if self.dtype.kind in ("bool", "complex"):
        raise Decline("eager raises")
    if self.dtype.is_integral and not (isinstance(threshold, int) and isinstance(value, int)):
        raise Decline("eager converts the numbers to integers")
    return imp.b.op("threshold", self, threshold=number(threshold), value=number(value))


@rule("aten.glu.default")
def glu(imp: Importer, self: Value, dim: int = -1) -> Value:
    floats(self)
    if not -self.type.rank <= dim < self.type.rank:
        raise Erroneous("no such dim")
    out = imp.b.op("glu", self, dim=dim % self.type.rank)
    # eager runs over two views of half the size each, with the strides of the whole
    half = [(out.shape, imp.strides(self))] * 2
    return imp.with_strides(out, layout.tensor_iterator_strides(out.shape, half))  # type: ignore[arg-type]
