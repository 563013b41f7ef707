"""Import rules of the gradients of the normalizations.

With `xhat = (x - mean) * rstd` and `g` the gradient times the weight, over the normalized elements,
`dx = rstd * (g - mean(g) - xhat * mean(g * xhat))`; the weight gets `sum(grad * xhat)`, the bias `sum(grad)`.

Source: Ba et al., Layer Normalization, 2016; Ioffe and Szegedy, Batch Normalization, 2015; as ATen computes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from graphc.frontend.aten import layout
from graphc.frontend.aten.activation import floats, number
from graphc.frontend.aten.expression import Term, wide
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.memory_format import batch_format, like_input, suggested
from graphc.frontend.aten.normalization import weight_norm_dims
from graphc.frontend.aten.registry import CONTIGUOUS, Decline, rule
from graphc.ir.graph import Operand, Value
from graphc.ir.sizes import one_over


def _check(grad: Value, input: Value, *parameters: Value | None) -> None:
    floats(grad, input)
    if grad.dtype != input.dtype or grad.shape != input.shape or 0 in input.shape:
        raise Decline("dtypes differ, or nothing to normalize")
    for parameter in parameters:
        if parameter is not None:
            floats(parameter)


def _input_gradient(g: Term, xhat: Term, rstd: Term, dims: Sequence[int], count: int) -> Term:
    share = one_over(count)
    return rstd * (g - g.sum(dims) * share - xhat * ((g * xhat).sum(dims) * share))


@rule("aten.native_layer_norm_backward.default", layout=CONTIGUOUS)
def native_layer_norm_backward(
    imp: Importer, grad_out: Value, input: Value, normalized_shape: Sequence[int], mean: Value, rstd: Value,
    weight: Value | None, bias: Value | None, output_mask: Sequence[bool],
) -> tuple[Value | None, ...]:  # fmt: skip
    _check(grad_out, input, weight, bias)
    shape = tuple(normalized_shape)
    lead = input.type.rank - len(shape)
    dims = tuple(range(lead, input.type.rank))
    grad, scale = wide(imp, grad_out), wide(imp, rstd)
    xhat = (wide(imp, input) - wide(imp, mean)) * scale
    results: list[Value | None] = [None, None, None]
    if output_mask[0]:
        g = grad if weight is None else grad * wide(imp, weight)
        results[0] = _input_gradient(g, xhat, scale, dims, math.prod(shape)).to(input.dtype)
    outer = tuple(range(lead))
    if output_mask[1] and weight is not None:
        results[1] = (grad * xhat).sum(outer).reshape(shape).to(weight.dtype)
    if output_mask[2] and bias is not None:
        results[2] = grad.sum(outer).reshape(shape).to(bias.dtype)
    return tuple(results)


@rule("aten._fused_rms_norm_backward.default", layout=CONTIGUOUS)
def fused_rms_norm_backward(
    imp: Importer, grad_out: Value, input: Value, normalized_shape: Sequence[int], rstd: Value, weight: Value | None,
    output_mask: Sequence[bool],
) -> tuple[Value | None, ...]:  # fmt: skip
    _check(grad_out, input, weight)
    shape = tuple(normalized_shape)
    lead = input.type.rank - len(shape)
    grad, scale = wide(imp, grad_out), wide(imp, rstd)
    xhat = wide(imp, input) * scale
    results: list[Value | None] = [None, None]
    if output_mask[0]:
        g = grad if weight is None else grad * wide(imp, weight)
        along = (g * xhat).sum(tuple(range(lead, input.type.rank))) * one_over(math.prod(shape))
        results[0] = (scale * (g - xhat * along)).to(input.dtype)
    if output_mask[1] and weight is not None:
        results[1] = (grad * xhat).sum(tuple(range(lead))).reshape(shape).to(weight.dtype)
    return tuple(results)


@rule("aten.native_group_norm_backward.default", layout=CONTIGUOUS)
def native_group_norm_backward(
    imp: Importer, grad_out: Value, input: Value, mean: Value, rstd: Value, weight: Value | None, N: int, C: int,
    HxW: int, group: int, output_mask: Sequence[bool],
) -> tuple[Value | None, ...]:  # fmt: skip
    _check(grad_out, input, weight)
    if suggested(imp, input):
        raise Decline("channels_last has a kernel of its own")
    size = C // group
    split = (N, group, size, HxW)
    grad, scale = wide(imp, grad_out).reshape(split), wide(imp, rstd).reshape((N, group, 1, 1))
    xhat = (wide(imp, input).reshape(split) - wide(imp, mean).reshape((N, group, 1, 1))) * scale
    results: list[Value | None] = [None, None, None]
    if output_mask[0]:
        g = grad if weight is None else grad * wide(imp, weight).reshape((1, group, size, 1))
        found = _input_gradient(g, xhat, scale, (2, 3), size * HxW)
        results[0] = found.reshape(input.shape).to(input.dtype)  # type: ignore[arg-type]  # static shapes
    stored = input.dtype if weight is None else weight.dtype
    if output_mask[1]:
        results[1] = (grad * xhat).sum((0, 3)).reshape((C,)).to(stored)
    if output_mask[2]:
        results[2] = grad.sum((0, 3)).reshape((C,)).to(stored)
    return tuple(results)


@rule("aten.native_batch_norm_backward.default")
def native_batch_norm_backward(
    imp: Importer, grad_out: Value, input: Value, weight: Value | None, running_mean: Value | None,
    running_var: Value | None, save_mean: Value | None, save_invstd: Value | None, train: bool, eps: Operand,
    output_mask: Sequence[bool],
) -> tuple[Value | None, ...]:  # fmt: skip
    _check(grad_out, input, weight)
    if input.type.rank < 2:
        raise Decline("eager raises")
    shape: tuple[int, ...] = input.shape  # type: ignore[assignment]  # static by construction
    channels, dims = shape[1], (0, *range(2, len(shape)))
    column = (1, channels, *(1 for _ in shape[2:]))
    mean, spread = (save_mean, save_invstd) if train else (running_mean, running_var)
    if mean is None or spread is None:
        raise Decline("eager raises")
    scale = wide(imp, spread).reshape(column)
    if not train:
        scale = (scale + number(eps)).op("rsqrt")
    grad = wide(imp, grad_out)
    xhat = (wide(imp, input) - wide(imp, mean).reshape(column)) * scale
    results: list[Value | None] = [None, None, None]
    if output_mask[0]:
        g = grad if weight is None else grad * wide(imp, weight).reshape(column)
        count = math.prod(shape) // channels
        found = _input_gradient(g, xhat, scale, dims, count) if train else g * scale
        is_alike = suggested(imp, input) == suggested(imp, grad_out)
        results[0] = (batch_format if is_alike else like_input)(imp, found.to(input.dtype), input)
    stored = input.dtype if weight is None else weight.dtype
    if output_mask[1]:
        results[1] = (grad * xhat).sum(dims).reshape((channels,)).to(stored)
    if output_mask[2]:
        results[2] = grad.sum(dims).reshape((channels,)).to(stored)
    return tuple(results)


@rule("aten.cudnn_batch_norm_backward.default")
def cudnn_batch_norm_backward(
    imp: Importer, input: Value, grad_output: Value, weight: Value, running_mean: Value | None,
    running_var: Value | None, save_mean: Value | None, save_var: Value | None, epsilon: Operand, reserveSpace: Value,
) -> tuple[Value | None, ...]:  # fmt: skip
    given = (grad_output, input, weight, running_mean, running_var, save_mean, save_var)
    return native_batch_norm_backward(imp, *given, True, epsilon, (True, True, True))


@rule("aten._weight_norm_interface_backward.default", layout=CONTIGUOUS)
def weight_norm_interface_backward(
    imp: Importer, grad_w: Value, saved_v: Value, saved_g: Value, saved_norms: Value, dim: int
) -> tuple[Value, ...]:
    """With `s = sum(grad * v)`: `dv = g / norm * (grad - v * s / norm^2)` and `dg = s / norm`."""
    rest = weight_norm_dims(saved_v, saved_g, dim)
    if grad_w.shape != saved_v.shape or grad_w.dtype != saved_v.dtype or saved_norms.shape != saved_g.shape:
        raise Decline("eager raises")
    if not layout.is_contiguous(grad_w.shape, imp.strides(grad_w)):  # type: ignore[arg-type]  # static shapes
        raise Decline("eager reads it as if it were")
    grad, v, g, norm = (wide(imp, value) for value in (grad_w, saved_v, saved_g, saved_norms))
    along = (grad * v).sum(rest)
    direction = g / norm * (grad - v * (along / (norm * norm)))
    return direction.to(saved_v.dtype), (along / norm).to(saved_g.dtype)
