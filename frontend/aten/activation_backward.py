"""Import rules of the gradients of activation functions: formulas, which fuse like any pointwise code.

Source: the formulas of ATen's own CPU kernels (aten/src/ATen/native/cpu/Activation.cpp), branches at the same points.
"""

from __future__ import annotations

import math

from graphc.frontend.aten.activation import floats, number
from graphc.frontend.aten.expression import Term, formula
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.operands import wrap_dim
from graphc.frontend.aten.registry import CONTIGUOUS, LIKE, POINTWISE, Decline, rule
from graphc.ir.graph import Operand, Value


def _same(*tensors: Value) -> None:
    """Let only floats of one dtype pass.

    Raises:
        Decline: others; eager promotes or raises.
    """
    floats(*tensors)
    if any(tensor.dtype != tensors[0].dtype for tensor in tensors):
        raise Decline("dtypes differ")


@rule("aten.threshold_backward.default", layout=POINTWISE)
def threshold_backward(imp: Importer, grad_output: Value, self: Value, threshold: Operand) -> Value:
    _same(grad_output, self)
    limit = number(threshold)
    return formula(imp, lambda g, x: x.op("le", limit).where(0.0, g), grad_output, self)


@rule("aten.gelu_backward.default", layout=POINTWISE)
def gelu_backward(imp: Importer, grad_output: Value, self: Value, approximate: str = "none") -> Value:
    _same(grad_output, self)
    if approximate not in ("none", "tanh"):
        raise Decline("eager raises")
    return formula(imp, _gelu_tanh if approximate == "tanh" else _gelu_erf, grad_output, self)


def _gelu_erf(g: Term, x: Term) -> Term:
    cdf = 0.5 * (1.0 + (x * math.sqrt(0.5)).op("erf"))
    density = (x * x * -0.5).op("exp") * (1.0 / math.sqrt(2.0 * math.pi))
    return g * (cdf + x * density)


def _gelu_tanh(g: Term, x: Term) -> Term:
    beta, kappa = math.sqrt(2.0 / math.pi), 0.044715
    square = x * x
    inner = (beta * (x + kappa * (square * x))).op("tanh")
    slope = 0.5 * x * (1.0 - inner * inner) * (beta * (1.0 + (3.0 * kappa) * square))
    return g * (0.5 * (1.0 + inner) + slope)


@rule("aten.silu_backward.default", layout=POINTWISE)
def silu_backward(imp: Importer, grad_output: Value, self: Value) -> Value:
    _same(grad_output, self)

    def slope(g: Term, x: Term) -> Term:
        s = x.op("sigmoid")
        return g * s * (1.0 + x * (1.0 - s))

    return formula(imp, slope, grad_output, self)


@rule("aten.mish_backward.default", layout=POINTWISE)
def mish_backward(imp: Importer, grad_output: Value, self: Value) -> Value:
    _same(grad_output, self)

    def slope(g: Term, x: Term) -> Term:
        tanh = x.op("exp").op("log1p").op("tanh")
        return g * (tanh + x * x.op("sigmoid") * (1.0 - tanh * tanh))

    return formula(imp, slope, grad_output, self)


@rule("aten.sigmoid_backward.default", layout=POINTWISE)
def sigmoid_backward(imp: Importer, grad_output: Value, output: Value) -> Value:
    _same(grad_output, output)
    return formula(imp, lambda g, y: g * (1.0 - y) * y, grad_output, output)


@rule("aten.tanh_backward.default", layout=POINTWISE)
def tanh_backward(imp: Importer, grad_output: Value, output: Value) -> Value:
    _same(grad_output, output)
    return formula(imp, lambda g, y: g * (1.0 - y * y), grad_output, output)


@rule("aten.elu_backward.default", layout=POINTWISE)
def elu_backward(
    imp: Importer, grad_output: Value, alpha: Operand, scale: Operand, input_scale: Operand, is_result: bool,
    self_or_result: Value,
) -> Value:  # fmt: skip
    _same(grad_output, self_or_result)
    negative, positive, inner = number(alpha) * number(scale), number(scale), number(input_scale)
    if is_result and number(alpha) < 0:
        raise Decline("eager raises")

    def slope(g: Term, x: Term) -> Term:
        below = (x + negative) * inner if is_result else (x * inner).op("exp") * (inner * negative)
        return x.op("le", 0.0).where(g * below, g * positive)

    return formula(imp, slope, grad_output, self_or_result)


@rule("aten.leaky_relu_backward.default", layout=POINTWISE)
def leaky_relu_backward(
    imp: Importer, grad_output: Value, self: Value, negative_slope: Operand, self_is_result: bool
) -> Value:
    _same(grad_output, self)
    slope = number(negative_slope)
    if self_is_result and slope < 0:
        raise Decline("eager raises")
    return formula(imp, lambda g, x: x.op("gt", 0.0).where(g, g * slope), grad_output, self)


@rule("aten.hardtanh_backward.default", layout=POINTWISE)
def hardtanh_backward(imp: Importer, grad_output: Value, self: Value, min_val: Operand, max_val: Operand) -> Value:
    _same(grad_output, self)
    low, high = number(min_val), number(max_val)
    return formula(
        imp, lambda g, x: x.op("le", low).op("logical_or", x.op("ge", high)).where(0.0, g), grad_output, self
    )


_ONE_SIXTH = 0.16666667163372040
"""Of float32, which eager takes in float64 too."""


@rule("aten.hardsigmoid_backward.default", layout=POINTWISE)
def hardsigmoid_backward(imp: Importer, grad_output: Value, self: Value) -> Value:
    _same(grad_output, self)
    return formula(
        imp,
        lambda g, x: x.op("gt", -3.0).op("logical_and", x.op("lt", 3.0)).where(g * _ONE_SIXTH, 0.0),
        grad_output,
        self,
    )


@rule("aten.softplus_backward.default", layout=POINTWISE)
def softplus_backward(imp: Importer, grad_output: Value, self: Value, beta: Operand, threshold: Operand) -> Value:
    _same(grad_output, self)
    factor, limit = number(beta), number(threshold)

    def slope(g: Term, x: Term) -> Term:
        power = (x * factor).op("exp")
        return (x * factor).op("gt", limit).where(g, g * power / (power + 1.0))

    return formula(imp, slope, grad_output, self)


@rule("aten.log_sigmoid_backward.default", layout=LIKE)
def log_sigmoid_backward(imp: Importer, grad_output: Value, self: Value, buffer: Value) -> Value:
    _same(grad_output, self)

    def slope(g: Term, x: Term) -> Term:
        power = (-x.op("abs")).op("exp")
        share = power / (1.0 + power)
        return g * x.op("lt", 0.0).where(1.0 - share, share)

    return formula(imp, slope, grad_output, self)


@rule("aten.hardshrink_backward.default", "aten.softshrink_backward.default", layout=POINTWISE)
def shrink_backward(imp: Importer, grad_output: Value, self: Value, lambd: Operand) -> Value:
    _same(grad_output, self)
    limit = number(lambd)
    return formula(
        imp, lambda g, x: x.op("ge", -limit).op("logical_and", x.op("le", limit)).where(0.0, g), grad_output, self
    )


@rule("aten.hardswish_backward.default", layout=POINTWISE)
def hardswish_backward(imp: Importer, grad_output: Value, self: Value) -> Value:
    _same(grad_output, self)

    def slope(g: Term, x: Term) -> Term:
        inside = g * (x / 3.0 + 0.5)
        return x.op("le", -3.0).where(0.0, x.op("lt", 3.0).where(inside, g))

    return formula(imp, slope, grad_output, self)


@rule("aten.glu_backward.default", layout=CONTIGUOUS)
def glu_backward(imp: Importer, grad_output: Value, self: Value, dim: int) -> Value:
    _same(grad_output, self)
    axis = wrap_dim(dim, self.type.rank)
    half = grad_output.shape[axis] if self.shape else 0
    if self.shape != (*grad_output.shape[:axis], half * 2, *grad_output.shape[axis + 1 :]):
        raise Decline("eager raises")
    value, gate = (imp.slice(self, axis, start, start + half) for start in (0, half))  # type: ignore[arg-type]  # static
    first = formula(imp, lambda g, y: g * y.op("sigmoid"), grad_output, gate)
    second = formula(imp, _gate_slope, grad_output, value, gate)
    return imp.b.op("concat", first, second, dim=axis)


def _gate_slope(g: Term, x: Term, y: Term) -> Term:
    open_ = y.op("sigmoid")
    return (1.0 - open_) * open_ * x * g


@rule("aten._prelu_kernel_backward.default", layout=POINTWISE)
def prelu_kernel_backward(imp: Importer, grad_output: Value, self: Value, weight: Value) -> tuple[Value, Value]:
    _same(grad_output, self, weight)
    return (
        formula(imp, lambda g, x, w: x.op("gt", 0.0).where(g, w * g), grad_output, self, weight),
        formula(imp, lambda g, x: x.op("gt", 0.0).where(0.0, x * g), grad_output, self),
    )


@rule("aten.native_dropout_backward.default", layout=POINTWISE)
def native_dropout_backward(imp: Importer, grad_output: Value, mask: Value, scale: Operand) -> Value:
    floats(grad_output)
    kept = imp.cast(mask, grad_output.dtype)
    assert isinstance(kept, Value)
    factor = number(scale)
    return formula(imp, lambda g, m: g * m * factor, grad_output, kept)
