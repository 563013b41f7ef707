"""Import rules of what torch's recurrent cells are made of.

On a CPU these are splits, pieces that promise not to be written through, and plain arithmetic. On a GPU the arithmetic
of a cell, between its products, is one call; here it is written out, so that it fuses and a loop over time is one
kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.frontend.aten.activation import floats
from graphc.frontend.aten.expression import Term, wide
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.operands import wrap_dim
from graphc.frontend.aten.registry import CONTIGUOUS, Decline, rule
from graphc.ir.graph import Value
from graphc.ir.sizes import bound
from graphc.ir.types import DType
from graphc.ops.composite import static


@rule("aten.unsafe_split.Tensor")
def unsafe_split(imp: Importer, self: Value, split_size: int, dim: int = 0) -> list[Value]:
    axis = _axis(self, dim)
    (size,) = static((self.shape[axis],), "unsafe_split")
    if split_size <= 0:
        raise Decline("eager raises, or nothing to split")
    count = bound(max((size + split_size - 1) // split_size, 1))
    return _pieces(imp, self, [min(split_size, size - i * split_size) for i in range(count)], axis)


@rule("aten.unsafe_split_with_sizes.default")
def unsafe_split_with_sizes(imp: Importer, self: Value, split_sizes: Sequence[int], dim: int = 0) -> list[Value]:
    axis = _axis(self, dim)
    if sum(split_sizes) != self.shape[axis] or min(split_sizes, default=0) < 0:
        raise Decline("eager raises")
    return _pieces(imp, self, split_sizes, axis)


def _axis(self: Value, dim: int) -> int:
    if not self.shape:
        raise Decline("eager raises")
    return wrap_dim(dim, self.type.rank)


def _pieces(imp: Importer, self: Value, sizes: Sequence[int], axis: int) -> list[Value]:
    """Slices of the given sizes along a dim; eager's are views, so they have the strides of the whole."""
    found, start = [], 0
    for size in sizes:
        piece = imp.slice(self, axis, start, start + size)
        if piece is self:
            piece = imp.b.op("cast", self, dtype=self.dtype)  # a value of its own, for the strides
        found.append(imp.with_strides(piece, imp.strides(self)))
        start += size
    return found


# cells of GPUs


def _check(state: Value, *others: Value | None) -> None:
    floats(state, *(other for other in others if other is not None))
    if state.type.rank != 2 or state.type.numel == 0 or any(o is not None and o.dtype != state.dtype for o in others):
        raise Decline("eager raises, or there is nothing to do")


def _gates(imp: Importer, gates: Value, bias: Value | None, count: int) -> list[Term]:
    """The (B, H) parts of (B, count * H) gates, with the bias (count * H) of each added."""
    width = static((gates.shape[1],), "a cell")[0] // count
    whole = wide(imp, gates) if bias is None else wide(imp, gates) + wide(imp, bias)
    return [Term(imp, imp.slice(whole.value, 1, n * width, (n + 1) * width)) for n in range(count)]


def _side_by_side(imp: Importer, parts: Sequence[Term], dtype: DType) -> Value:
    return imp.b.op("concat", *(part.to(dtype) for part in parts), dim=1)


def _bias_gradient(imp: Importer, gates: Value) -> Value:
    return wide(imp, gates).sum((0,), keepdim=False).to(gates.dtype)


@rule("aten._thnn_fused_lstm_cell.default", layout=CONTIGUOUS)
def fused_lstm_cell(
    imp: Importer, input_gates: Value, hidden_gates: Value, cx: Value, input_bias: Value | None = None,
    hidden_bias: Value | None = None,
) -> tuple[Value, ...]:  # fmt: skip
    """The last result is the activations of the gates, side by side."""
    _check(cx, input_gates, hidden_gates, input_bias, hidden_bias)
    mine, theirs = _gates(imp, input_gates, input_bias, 4), _gates(imp, hidden_gates, hidden_bias, 4)
    functions = ("sigmoid", "sigmoid", "tanh", "sigmoid")
    active = [(x + h).op(name) for x, h, name in zip(mine, theirs, functions, strict=True)]
    enter, forget, cell, leave = active
    new = forget * wide(imp, cx) + enter * cell
    return (leave * new.op("tanh")).to(cx.dtype), new.to(cx.dtype), _side_by_side(imp, active, cx.dtype)


@rule("aten._thnn_fused_lstm_cell_backward_impl.default", layout=CONTIGUOUS)
def fused_lstm_cell_backward(
    imp: Importer, grad_hy: Value | None, grad_cy: Value | None, cx: Value, cy: Value, workspace: Value, has_bias: bool
) -> tuple[Value | None, ...]:
    _check(cx, grad_hy, grad_cy, cy, workspace)
    enter, forget, cell, leave = _gates(imp, workspace, None, 4)
    bent = wide(imp, cy).op("tanh")
    found = None if grad_cy is None else wide(imp, grad_cy)
    through = None
    if grad_hy is not None:
        slope = wide(imp, grad_hy) * leave * (1.0 - bent * bent)
        found = slope if found is None else slope + found
        through = wide(imp, grad_hy) * bent
    if found is None:
        raise Decline("there is no gradient")
    last = leave * 0.0 if through is None else through * (1.0 - leave) * leave
    parts = [
        found * cell * (1.0 - enter) * enter,
        found * wide(imp, cx) * (1.0 - forget) * forget,
        found * enter * (1.0 - cell * cell),
        last,
    ]
    gates = _side_by_side(imp, parts, cx.dtype)
    return gates, (found * forget).to(cx.dtype), _bias_gradient(imp, gates) if has_bias else None


@rule("aten._thnn_fused_gru_cell.default", layout=CONTIGUOUS)
def fused_gru_cell(
    imp: Importer, input_gates: Value, hidden_gates: Value, hx: Value, input_bias: Value | None = None,
    hidden_bias: Value | None = None,
) -> tuple[Value, ...]:  # fmt: skip
    """The last result is what the gradients need: the gates, the state before, and what the reset gate weighs."""
    _check(hx, input_gates, hidden_gates, input_bias, hidden_bias)
    mine, theirs = _gates(imp, input_gates, input_bias, 3), _gates(imp, hidden_gates, hidden_bias, 3)
    reset, keep = ((mine[n] + theirs[n]).op("sigmoid") for n in range(2))
    new = (mine[2] + reset * theirs[2]).op("tanh")
    before = wide(imp, hx)
    state = new + keep * (before - new)
    return state.to(hx.dtype), _side_by_side(imp, (reset, keep, new, before, theirs[2]), hx.dtype)


@rule("aten._thnn_fused_gru_cell_backward.default", layout=CONTIGUOUS)
def fused_gru_cell_backward(
    imp: Importer, grad_hy: Value, workspace: Value, has_bias: bool
) -> tuple[Value | None, ...]:
    _check(grad_hy, workspace)
    reset, keep, new, before, weighed = _gates(imp, workspace, None, 5)
    grad = wide(imp, grad_hy)
    into_new = grad * (1.0 - keep) * (1.0 - new * new)
    into_keep = grad * (before - new) * (1.0 - keep) * keep
    into_reset = into_new * weighed * (1.0 - reset) * reset
    mine = _side_by_side(imp, (into_reset, into_keep, into_new), grad_hy.dtype)
    theirs = _side_by_side(imp, (into_reset, into_keep, into_new * reset), grad_hy.dtype)
    biases = tuple(_bias_gradient(imp, gates) if has_bias else None for gates in (mine, theirs))
    return mine, theirs, (grad * keep).to(grad_hy.dtype), *biases
