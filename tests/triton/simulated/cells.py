"""Operators that torch has on GPUs only, of plain ones: cells of recurrent networks, attention, and more."""

from __future__ import annotations

import math
from typing import Any

import torch

T = torch.Tensor
Maybe = T | None
_library: list[torch.library.Library] = []


def register() -> None:
    """Put them in the place of torch's kernels; once per process."""
    library = torch.library.Library("aten", "IMPL")
    _library.append(library)
    for name, function in _OPERATORS.items():
        library.impl(name, function, "CUDA", allow_override=True)


def _sum(x: T, b: Maybe) -> T:
    return x if b is None else x + b


def lstm(input_gates: T, hidden_gates: T, cell: T, b: Maybe, c: Maybe) -> tuple[T, T, T]:
    """A step of an LSTM; gives the new state, the new cell and the gates."""
    i, f, g, o = (_sum(input_gates, b) + _sum(hidden_gates, c)).chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    new = f * cell + i * g
    return o * new.tanh(), new, torch.cat([i, f, g, o], 1)


def lstm_backward(
    grad: Maybe, grad_cell: Maybe, cell: T, new: T, gates: T, has_bias: bool
) -> tuple[T, T, Maybe]:  # fmt: skip
    i, f, g, o = gates.chunk(4, 1)
    squashed = new.tanh()
    grad = torch.zeros_like(new) if grad is None else grad
    inner = grad * o * (1 - squashed * squashed) + (0 if grad_cell is None else grad_cell)
    of_gates = torch.cat(
        [inner * g * i * (1 - i), inner * cell * f * (1 - f), inner * i * (1 - g * g), grad * squashed * o * (1 - o)], 1
    )
    return of_gates, inner * f, of_gates.sum(0) if has_bias else None


def gru(input_gates: T, hidden_gates: T, state: T, b: Maybe, c: Maybe) -> tuple[T, T]:
    """A step of a GRU; gives the new state, and what its gradient needs."""
    ir, iz, given = _sum(input_gates, b).chunk(3, 1)
    hr, hz, held = _sum(hidden_gates, c).chunk(3, 1)
    r, z = (ir + hr).sigmoid(), (iz + hz).sigmoid()
    new = (given + r * held).tanh()
    return (state - new) * z + new, torch.cat([r, z, new, state, held], 1)


def gru_backward(grad: T, kept: T, has_bias: bool) -> tuple[T, T, T, Maybe, Maybe]:
    r, z, new, state, held = kept.chunk(5, 1)
    of_new = grad * (1 - z) * (1 - new * new)
    of_z, of_r = grad * (state - new) * z * (1 - z), of_new * held * r * (1 - r)
    of_input, of_hidden = torch.cat([of_r, of_z, of_new], 1), torch.cat([of_r, of_z, of_new * r], 1)
    sums = (of_input.sum(0), of_hidden.sum(0)) if has_bias else (None, None)
    return of_input, of_hidden, grad * z, *sums


def _weights(q: T, k: T, causal: bool, scale: float | None) -> tuple[T, T, float]:
    """Scores and their logarithms of sums of exponentials."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = q.float() @ k.float().mT * scale
    if causal:
        rows, columns = (torch.arange(size, device=q.device) for size in scores.shape[-2:])
        scores = scores.masked_fill(columns > rows[:, None], -math.inf)
    return scores, scores.logsumexp(-1), scale


def _attention(q: T, k: T, v: T, causal: bool, scale: float | None) -> tuple[T, T]:
    scores, sums, _ = _weights(q, k, causal, scale)
    made = (scores - sums[..., None]).exp() @ v.float()
    return torch.empty_like(q).copy_(made), sums


def _attention_backward(
    grad: T, q: T, k: T, v: T, out: T, sums: T, causal: bool, scale: float | None
) -> tuple[T, T, T]:  # fmt: skip
    scores, _, scale = _weights(q, k, causal, scale)
    weights = (scores - sums[..., None]).exp()
    grad = grad.float()
    of_weights = grad @ v.float().mT
    of_scores = weights * (of_weights - (grad * out.float()).sum(-1, keepdim=True)) * scale
    found = of_scores @ k.float(), of_scores.mT @ q.float(), weights.mT @ grad
    of_q, of_k, of_v = (torch.empty_like(x).copy_(one) for x, one in zip((q, k, v), found, strict=True))
    return of_q, of_k, of_v


def _state(q: T) -> T:
    return torch.empty((), dtype=torch.int64, device=q.device)


def flash(
    q: T, k: T, v: T, dropout: float = 0.0, causal: bool = False, debug: bool = False, *, scale: float | None = None
) -> tuple[Any, ...]:
    """`_scaled_dot_product_flash_attention` without dropout."""
    assert not dropout, "dropout is not simulated"
    out, sums = _attention(q, k, v, causal, scale)
    random = torch.empty(2, dtype=torch.uint64, device=q.device)
    return out, sums, None, None, q.shape[2], k.shape[2], random, _state(q).to(torch.uint64), out.new_empty(0)


def flash_backward(
    grad: T, q: T, k: T, v: T, out: T, sums: T, a: Maybe, b: Maybe, rows: int, columns: int, dropout: float,
    causal: bool, seed: T, offset: T, *, scale: float | None = None,
) -> tuple[T, T, T]:  # fmt: skip
    return _attention_backward(grad, q, k, v, out, sums, causal, scale)


def cudnn(
    q: T, k: T, v: T, bias: Maybe, sums_wanted: bool, dropout: float = 0.0, causal: bool = False, debug: bool = False,
    *, scale: float | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    """`_scaled_dot_product_cudnn_attention` without bias and dropout."""
    assert not dropout and bias is None, "neither is simulated"
    out, sums = _attention(q, k, v, causal, scale)
    sums = sums[..., None] if sums_wanted else sums.new_empty(0)
    return out, sums, None, None, q.shape[2], k.shape[2], _state(q), _state(q), None


def cudnn_backward(
    grad: T, q: T, k: T, v: T, out: T, sums: T, seed: T, offset: T, bias: Maybe, a: Maybe, b: Maybe, rows: int,
    columns: int, dropout: float, causal: bool, *, scale: float | None = None,
) -> tuple[T, T, T]:  # fmt: skip
    return _attention_backward(grad, q, k, v, out, sums.squeeze(-1), causal, scale)


def histc(x: T, bins: int = 100, low: float = 0, high: float = 0) -> T:
    """Of whole numbers, too."""
    return torch.histc(x.double().cpu(), bins, low, high).to(x)


def scaled_product(
    x: T, w: T, a: T, b: T, bias: Maybe = None, result: Maybe = None, out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> T:  # fmt: skip
    """`_scaled_mm` with scales of matrices, or of rows and columns; the CPU's knows the first alone."""
    assert result is None, "scales of results are not simulated"
    made = _sum(x.float() @ w.float() * a * b, bias)
    return made.to(x.dtype if out_dtype is None else out_dtype)


_OPERATORS = {
    "histc": histc,
    "_scaled_mm": scaled_product,
    "_thnn_fused_lstm_cell": lstm,
    "_thnn_fused_lstm_cell_backward_impl": lstm_backward,
    "_thnn_fused_gru_cell": gru,
    "_thnn_fused_gru_cell_backward": gru_backward,
    "_scaled_dot_product_flash_attention": flash,
    "_scaled_dot_product_flash_attention_backward": flash_backward,
    "_scaled_dot_product_cudnn_attention": cudnn,
    "_scaled_dot_product_cudnn_attention_backward": cudnn_backward,
}
