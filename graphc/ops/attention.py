"""Scaled dot-product attention and its gradient as one op each: library calls, which can also be written out.

The attribute `library` says which one an op is for: a key of `LIBRARIES`, absent for that of CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graphc.errors import InvalidGraphError
from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Builder, Op, Operand, Ref, Value
from graphc.ir.types import DType, TensorType, i64
from graphc.ops import composite, rules
from graphc.ops.registry import AtenCall, Kind, OpDef, register

NAME, GRADIENT = "attention", "attention_gradient"


@dataclass(frozen=True)
class Library:
    """Calls that compute attention and its gradient on one kind of device.

    Args:
        forward, backward: their overloads.
        widest: elements of a head, at most; multiples of `step` only.
        sums_rank: dims of the log-sum-exp that the calls pass on: (B, H, S), cuDNN's have a last one of size 1 since
            torch 2.9.
        step: elements that are read at once: heads begin at multiples of it, and are so wide.
    """

    forward: str
    backward: str
    widest: int
    sums_rank: int = 3
    step: int = 8


_MOST_PROGRAMS = (1 << 16) - 1
"""Of a GPU's grid along all but its first dim, which is what libraries lay batch and heads along."""
CPU, FLASH, CUDNN = "cpu", "flash", "cudnn"
LIBRARIES = {
    CPU: Library(
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        "aten._scaled_dot_product_flash_attention_for_cpu_backward.default",
        256,
    ),
    FLASH: Library(
        "aten._scaled_dot_product_flash_attention.default",
        "aten._scaled_dot_product_flash_attention_backward.default",
        256,
    ),
    CUDNN: Library(
        "aten._scaled_dot_product_cudnn_attention.default",
        "aten._scaled_dot_product_cudnn_attention_backward.default",
        128,
        sums_rank=4,
    ),
}


def library_takes(library: str, dtype: DType, query: Sequence[int], keys: int, causal: bool) -> bool:
    """Whether a library computes attention without a bias, with heads of one width, as far as the sizes tell.

    Args:
        query: (B, H, S, D).
        keys: how many there are.
        causal: the mask begins at the first query and key, and both are as many.
    """
    batch, heads, rows, width = query
    aligned = width % LIBRARIES[library].step == 0 and 0 < width <= LIBRARIES[library].widest
    is_small = 0 not in query and max(batch, heads) <= _MOST_PROGRAMS
    return dtype.is_reduced and dtype.itemsize == 2 and aligned and is_small and (rows == keys or not causal)


def library_of(op: Op) -> str:
    """The library that an attention op, or its gradient, is for."""
    found: str = op.attrs.get("library", CPU)
    return found


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
    return [out, TensorType(q.dtype.compute, _sums_shape(q, attrs), q.device)]


def _sums_shape(q: Value, attrs: Mapping[str, Attr]) -> tuple[Dim, ...]:
    rank = LIBRARIES[attrs.get("library", CPU)].sums_rank
    return (*q.shape[:3], *(1 for _ in range(3, rank)))


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


def _flat(b: Builder, x: Value, heads: Dim) -> Value:
    """(B, H, S, D) as (B * H, S, D), heads that several queries share repeated: as eager multiplies matrices."""
    x = _repeat_heads(b, x, heads)
    batch, _, length, depth = x.shape
    return b.op("reshape", x, shape=(batch * heads, length, depth))


def _scores(b: Builder, op: Op, q: Value, k: Value) -> Value:
    """Scaled scores in the dtype that softmax computes in; of 16-bit floats they are products of such."""
    scores = composite.wide(b, b.op("matmul", q, b.op("permute", k, dims=(0, 2, 1))))
    scores = b.op("mul", scores, float(op.attrs["scale"]))
    return b.op("where", _causal_mask(b, scores), scores, -math.inf) if op.attrs["causal"] else scores


def _weights(b: Builder, scores: Value) -> tuple[Value, Value]:
    """Softmax along rows of which not all is hidden, and its log-sum-exp, of maxima and sums that a kernel keeps."""
    peak = b.op("amax", scores, dims=(2,), keepdim=True)
    exponential = b.op("exp", b.op("sub", scores, peak))
    total = b.op("sum", exponential, dims=(2,), keepdim=True)
    return b.op("div", exponential, total), b.op("add", peak, b.op("log", total))


def _weights_of_some(b: Builder, scores: Value) -> tuple[Value, Value]:
    """The same where rows may be hidden as a whole: these give zeros, not NaN."""
    peak = b.op("amax", scores, dims=(2,), keepdim=True)
    empty = b.op("eq", peak, -math.inf)
    base = b.op("where", empty, 0.0, peak)
    exponential = b.op("exp", b.op("sub", scores, base))
    total = b.op("sum", exponential, dims=(2,), keepdim=True)
    weights = b.op("where", empty, 0.0, b.op("div", exponential, total))
    return weights, b.op("where", empty, 0.0, b.op("add", base, b.op("log", total)))


def _expand_attention(b: Builder, op: Op) -> Sequence[Value]:
    q, k, v, *rest = (composite.tensor(operand, op.name) for operand in op.operands)
    out, logsumexp = op.results
    heads, dtype = q.shape[1], q.dtype
    wide_shape = (*q.shape[:3], k.shape[2])
    q, k, v = (_flat(b, t, heads) for t in (q, k, v))
    scores = _scores(b, op, q, k)
    if rest:
        mask = composite.expand_to(b, composite.cast(b, composite.wide(b, rest[0]), scores.dtype), wide_shape)
        scores = b.op("add", scores, b.op("reshape", mask, shape=scores.shape))
    weights, lse = _weights_of_some(b, scores) if rest else _weights(b, scores)
    y = composite.cast(b, b.op("matmul", composite.cast(b, weights, dtype), v), out.dtype)
    return [b.op("reshape", y, shape=out.shape), b.op("reshape", lse, shape=logsumexp.shape)]


def _reference_scores(q: torch.Tensor, k: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
    scores = q @ k.transpose(-2, -1) * scale
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril(), -math.inf)
    return scores


def _reference_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: torch.Tensor, causal: bool, scale: float, mask: bool,
    library: str = CPU,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    compute = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = _reference_scores(q.to(compute), k.to(compute), causal, scale)
    if mask:
        scores = scores + rest[0].to(compute)
    empty = (scores == -math.inf).all(-1, keepdim=True)
    weights = torch.softmax(scores, -1).masked_fill(empty, 0.0)
    lse = torch.logsumexp(scores, -1, keepdim=True).masked_fill(empty, 0.0)
    lse = lse if LIBRARIES[library].sums_rank == 4 else lse.squeeze(-1)
    return (weights @ v.to(compute)).to(q.dtype), lse


def _call_attention(op: Op) -> AtenCall:
    kwargs: dict[str, Any] = {"scale": op.attrs["scale"]}
    name, causal = library_of(op), op.attrs["causal"]
    if name == CUDNN:
        args: tuple[Attr, ...] = (Ref(0), Ref(1), Ref(2), None, True, 0.0, causal, False)
    elif name == FLASH:
        args = (Ref(0), Ref(1), Ref(2), 0.0, causal, False)
    else:
        args = (Ref(0), Ref(1), Ref(2), 0.0, causal)
    if op.attrs["mask"]:
        kwargs["attn_mask"] = Ref(3)
    return LIBRARIES[name].forward, args, kwargs


def _attention_flops(op: Op) -> Dim:
    q, _, v = (composite.tensor(operand, op.name) for operand in op.operands[:3])
    batch, heads, length, depth = q.shape
    return 2 * batch * heads * length * v.shape[2] * (depth + v.shape[3])


register(
    OpDef(
        NAME,
        Kind.CONTRACTION,
        "softmax(scale * q @ k^T + mask) @ v for q (B, H, S, D), k (B, G, T, D), v (B, G, T, E), H a multiple of G. "
        "causal: a query sees keys up to its own position; mask: whether operand 3, added to the scores, is there; "
        "library: which one is called, absent for the CPU's. "
        "Rows with nothing to see give 0. Results: output (B, H, S, E), log-sum-exp of the scores (B, H, S). "
        "Source: Vaswani et al., arXiv 1706.03762; Dao et al., arXiv 2205.14135.",
        _attention_type,
        _reference_attention,
        expand=_expand_attention,
        call=_call_attention,
        flops=_attention_flops,
    )
)


# the gradient


def _gradient_type(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    grad, q, k, v, out, lse = (composite.floating(operand, GRADIENT) for operand in operands)
    wanted_out, wanted_lse = _attention_type((q, k, v), {**attrs, "mask": False})
    if grad.type != wanted_out or out.type != wanted_out or lse.type != wanted_lse:
        raise InvalidGraphError(f"{GRADIENT} of {wanted_out} and {wanted_lse} for {grad.type}, {out.type}, {lse.type}")
    return [q.type, k.type, v.type]


OTHER_KEYS = 2.0**-14
"""Weights of all keys but one, below which a query of 16 bits sees that one alone: its gradient is then below what the
rounding of the result does to `delta`, and in truth 0 where the others are hidden."""
_UNSURE = 2.0**-22
"""What a weight may be off in units of the log-sum-exp that it is made of, a float32."""


def _sum_heads(b: Builder, x: Value, like: Value, heads: Dim) -> Value:
    """(B * H, S, D) as the gradient of `like`; those of heads that several queries share are added up."""
    batch, own, length, depth = like.shape
    if own == heads:
        return b.op("reshape", x, shape=like.shape)
    groups = b.op("reshape", composite.wide(b, x), shape=(batch, own, heads // own, length, depth))
    return composite.cast(b, b.op("sum", groups, dims=(2,), keepdim=False), x.dtype)


def _expand_gradient(b: Builder, op: Op) -> Sequence[Value]:
    grad, q, k, v, out, lse = (composite.tensor(operand, op.name) for operand in op.operands)
    wanted, heads = (q, k, v), q.shape[1]
    grad, q, k, v, out = (_flat(b, t, heads) for t in (grad, q, k, v, out))
    rows = b.op("reshape", lse, shape=(*q.shape[:2], 1))
    weights = b.op("exp", b.op("sub", _scores(b, op, q, k), rows))
    dv = b.op("matmul", b.op("permute", composite.cast(b, weights, q.dtype), dims=(0, 2, 1)), grad)
    slope = composite.wide(b, b.op("matmul", grad, b.op("permute", v, dims=(0, 2, 1))))
    delta = b.op("sum", b.op("mul", composite.wide(b, grad), composite.wide(b, out)), dims=(2,), keepdim=True)
    if q.dtype.is_reduced:
        limit = b.op("sub", 1 - OTHER_KEYS, b.op("mul", b.op("abs", rows), _UNSURE))
        weights = b.op("where", b.op("lt", weights, limit), weights, 0.0)
    slope = b.op("mul", b.op("mul", b.op("sub", slope, delta), weights), float(op.attrs["scale"]))
    slope = composite.cast(b, slope, q.dtype)
    dq = b.op("matmul", slope, k)
    dk = b.op("matmul", b.op("permute", slope, dims=(0, 2, 1)), q)
    return [_sum_heads(b, x, like, heads) for x, like in zip((dq, dk, dv), wanted, strict=True)]


def _reference_gradient(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    causal: bool, scale: float, library: str = CPU,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    compute = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype
    own, dtype = k.shape[1], q.dtype
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    grad, q, k, v, out = (t.to(compute) for t in (grad, q, k, v, out))
    rows = lse.reshape(*q.shape[:3], 1)
    weights = torch.exp(_reference_scores(q, k, causal, scale) - rows)
    sloping = weights.where(weights < 1 - OTHER_KEYS - rows.abs() * _UNSURE, 0) if compute != dtype else weights
    slope = sloping * (grad @ v.mT - (grad * out).sum(-1, keepdim=True)) * scale
    found = slope @ k, slope.mT @ q, weights.mT @ grad
    groups = (t.reshape(t.shape[0], own, -1, *t.shape[2:]).sum(2) for t in found[1:])
    dq, dk, dv = (t.to(dtype) for t in (found[0], *groups))
    return dq, dk, dv


def _call_gradient(op: Op) -> AtenCall:
    """Without dropout the calls never look at seeds and offsets, but ask for tensors: any that there are will do.

    Those that the forward call returns lie with the CPU or with the device, depending on whether it is recorded.
    Source: `mha_bwd` in flash_api.cpp and `run_cudnn_SDP_bprop` in MHA.cpp of ATen; in the machine code of torch 2.11,
    too, they are read only behind the test for dropout.
    """
    name, causal = library_of(op), op.attrs["causal"]
    tensors = tuple(Ref(number) for number in range(6))
    q, k = (composite.tensor(operand, op.name) for operand in op.operands[1:3])
    seeds, lengths = (Ref(5), Ref(5)), (q.shape[2], k.shape[2])
    if name == CUDNN:
        args: tuple[Attr, ...] = (*tensors, *seeds, None, None, None, *lengths, 0.0, causal)
    elif name == FLASH:
        args = (*tensors, None, None, *lengths, 0.0, causal, *seeds)
    else:
        args = (*tensors, 0.0, causal)
    return LIBRARIES[name].backward, args, {"scale": op.attrs["scale"]}


def _gradient_flops(op: Op) -> Dim:
    """Scores again, and four products of their size."""
    _, q, _, v = (composite.tensor(operand, op.name) for operand in op.operands[:4])
    batch, heads, length, depth = q.shape
    return 2 * batch * heads * length * v.shape[2] * (3 * depth + 2 * v.shape[3])


register(
    OpDef(
        GRADIENT,
        Kind.CONTRACTION,
        "The gradients of query, key and value for that of attention's output (operand 0), which is linear in it; "
        "operands 1 to 5 are query, key, value, and both results of attention. causal, scale, library: as there. "
        "There is no mask: a log-sum-exp near the least float has no digit that tells how many keys such a mask hides. "
        "A query of 16 bits that sees one key has no gradient.",
        _gradient_type,
        _reference_gradient,
        expand=_expand_gradient,
        call=_call_gradient,
        flops=_gradient_flops,
    )
)
