"""Scaled dot-product attention as one op: a library or template call, which can also be written out in core ops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from graphc.errors import InvalidGraphError
from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Builder, Op, Operand, Ref, Value
from graphc.ir.types import TensorType, i64
from graphc.ops import composite, rules
from graphc.ops.registry import AtenCall, Kind, OpDef, register


def _attention_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    q, k, v, *rest = (composite.tensor(operand, "attention") for operand in operands)
    if any(t.type.rank != 4 or t.dtype != q.dtype or not t.dtype.is_float for t in (q, k, v)):
        raise InvalidGraphError(f"attention takes (B, H, S, D) floats, got {q.type}, {k.type}, {v.type}")
    batch, heads, length, depth = q.shape
    if k.shape[0] != batch or k.shape[3] != depth or k.shape[:3] != v.shape[:3]:
        raise InvalidGraphError(f"attention: query {q.type}, key {k.type}, value {v.type} do not fit")
    if heads != k.shape[1] and (k.shape[1] == 0 or heads % k.shape[1] != 0):
        raise InvalidGraphError(f"attention: {heads} query heads are no multiple of {k.shape[1]} key heads")
    if len(rest) != bool(attrs["mask"]):
        raise InvalidGraphError("attention: attribute mask does not agree with the number of operands")
    if rest:
        scores = (batch, heads, length, k.shape[2])
        if rules.broadcast("attention", [rest[0].shape, scores]) != scores:
            raise InvalidGraphError(f"attention: mask {rest[0].type} does not broadcast to {scores}")
    out = q.type.with_shape((batch, heads, length, v.shape[3]))
    return [out, TensorType(q.dtype.compute, (batch, heads, length), q.device)]


def _repeat_heads(b: Builder, x: Value, heads: Dim) -> Value:
    """Key or value heads repeated so that each query head has its own (grouped-query attention)."""
    batch, own, length, depth = x.shape
    if own == heads:
        return x
    group = b.op("reshape", x, shape=(batch, own, 1, length, depth))
    wide = b.op("expand", group, shape=(batch, own, heads // own, length, depth))
    return b.op("reshape", wide, shape=(batch, heads, length, depth))


def _causal_mask(b: Builder, scores: Value) -> Value:
    """True where a query may look: key position <= query position, both counted from 0."""
    *_, rows, columns = scores.shape
    row = b.op("iota", size=rows, start=0, step=1, dtype=i64, device=scores.device)
    column = b.op("iota", size=columns, start=0, step=1, dtype=i64, device=scores.device)
    return b.op("le", column, b.op("reshape", row, shape=(rows, 1)))


def _expand_attention(b: Builder, op: Op) -> Sequence[Value]:
    q, k, v, *rest = (composite.tensor(operand, op.name) for operand in op.operands)
    out, logsumexp = op.results
    heads = q.shape[1]
    wide_q = composite.wide(b, q)
    wide_k, wide_v = (_repeat_heads(b, composite.wide(b, t), heads) for t in (k, v))
    scores = b.op("matmul", wide_q, b.op("permute", wide_k, dims=(0, 1, 3, 2)))
    scores = b.op("mul", scores, float(op.attrs["scale"]))
    if op.attrs["causal"]:
        scores = b.op("where", _causal_mask(b, scores), scores, -math.inf)
    if rest:
        scores = b.op("add", scores, composite.cast(b, composite.wide(b, rest[0]), scores.dtype))
    peak = b.op("amax", scores, dims=(3,), keepdim=True)
    # a row with every key masked gives zeros, not NaN
    empty = b.op("eq", peak, -math.inf)
    base = b.op("where", empty, 0.0, peak)
    exponential = b.op("exp", b.op("sub", scores, base))
    total = b.op("sum", exponential, dims=(3,), keepdim=True)
    weights = b.op("where", empty, 0.0, b.op("div", exponential, total))
    lse = b.op("where", empty, 0.0, b.op("add", base, b.op("log", total)))
    y = composite.cast(b, b.op("matmul", weights, wide_v), out.dtype)
    return [y, b.op("reshape", lse, shape=logsumexp.shape)]


def _reference_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: torch.Tensor, causal: bool, scale: float, mask: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    compute = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q.to(compute) @ k.to(compute).transpose(-2, -1) * scale
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril(), -math.inf)
    if mask:
        scores = scores + rest[0].to(compute)
    empty = (scores == -math.inf).all(-1, keepdim=True)
    weights = torch.softmax(scores, -1).masked_fill(empty, 0.0)
    lse = torch.logsumexp(scores, -1).masked_fill(empty.squeeze(-1), 0.0)
    return (weights @ v.to(compute)).to(q.dtype), lse


def _call_attention(op: Op) -> AtenCall:
    kwargs: dict[str, Any] = {"scale": op.attrs["scale"]}
    if op.attrs["mask"]:
        kwargs["attn_mask"] = Ref(3)
    args = (Ref(0), Ref(1), Ref(2), 0.0, op.attrs["causal"])
    return "aten._scaled_dot_product_flash_attention_for_cpu.default", args, kwargs


def _attention_flops(op: Op) -> Dim:
    q, _, v = (composite.tensor(operand, op.name) for operand in op.operands[:3])
    batch, heads, length, depth = q.shape
    return 2 * batch * heads * length * v.shape[2] * (depth + v.shape[3])


register(
    OpDef(
        "attention",
        Kind.CONTRACTION,
        "softmax(scale * q @ k^T + mask) @ v for q (B, H, S, D), k (B, G, T, D), v (B, G, T, E), H a multiple of G. "
        "causal: a query sees keys up to its own position; mask: whether operand 3, added to the scores, is there. "
        "Rows with nothing to see give 0. Results: output (B, H, S, E), log-sum-exp of the scores (B, H, S). "
        "Source: Vaswani et al., arXiv 1706.03762; Dao et al., arXiv 2205.14135.",
        _attention_type,
        _reference_attention,
        expand=_expand_attention,
        call=_call_attention,
        flops=_attention_flops,
    )
)
