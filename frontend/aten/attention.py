"""Import rules of scaled dot-product attention.

Under a dispatch mode on CPU, `F.scaled_dot_product_attention` arrives as the fused CPU kernel for (B, H, S, D) inputs,
and as bmm, `_safe_softmax`, bmm for everything else (three dims, dropout, value of another depth). On a GPU it arrives
as the call of the library that torch chooses. As ops these calls give what the program needs, and neither seeds nor
lengths: what torch returns of those lies with the CPU or with the device, by whether the call is recorded.
"""

from __future__ import annotations

import math
from functools import cache

import torch

from graphc.frontend.aten import layout
from graphc.frontend.aten.activation import floats, number
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.registry import Decline, rule
from graphc.ir.dims import static
from graphc.ir.graph import Attr, Operand, Value
from graphc.ir.types import i64, u64
from graphc.ops.attention import CUDNN, FLASH, GRADIENT, LIBRARIES, NAME


@cache
def _keeps_query_layout() -> bool:
    """Whether this torch lays the output out as the query; else as (B, S, H, D)."""
    query = torch.zeros(1, 2, 3, 8)
    output = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, query, query)[0]
    return bool(output.is_contiguous())


@rule("aten._scaled_dot_product_flash_attention_for_cpu.default")
def flash_attention_for_cpu(
    imp: Importer,
    query: Value,
    key: Value,
    value: Value,
    dropout_p: Operand = 0.0,
    is_causal: bool = False,
    attn_mask: Value | None = None,
    scale: Operand | None = None,
) -> tuple[Value, Value]:
    floats(query, key, value)
    if number(dropout_p) != 0 or query.type.rank != 4 or query.type.numel == 0 or key.type.numel == 0:
        raise Decline("eager raises, or nothing to do")
    depth = query.shape[3]
    attrs = {
        "causal": is_causal,
        "scale": 1.0 / math.sqrt(depth) if scale is None else number(scale),  # type: ignore[arg-type]  # static shapes
        "mask": attn_mask is not None,
    }
    operands = [query, key, value] if attn_mask is None else [query, key, value, attn_mask]
    output, logsumexp = imp.b.multi("attention", operands, attrs).results
    _, heads, length, width = map(static, output.shape)
    if _keeps_query_layout():
        imp.with_strides(output, imp.preserved_strides(query))
    else:
        imp.with_strides(output, (length * heads * width, width, heads * width, 1))
    imp.with_strides(logsumexp, (length * heads, 1, heads))
    return output, logsumexp


def _scale(query: Value, scale: Operand | None) -> Attr:
    width: int = query.shape[3]  # type: ignore[assignment]  # static shapes
    return 1.0 / math.sqrt(width) if scale is None else number(scale)


def _as_it_lies(imp: Importer, value: Value) -> Value:
    """An operand that is to be read where it lies: views know only here where that is."""
    lies = imp.strides(value)
    if value.op is not None and value.strides is None and not layout.is_contiguous(_shape(value), lies):
        value.strides = lies
    return value


def _shape(value: Value) -> tuple[int, ...]:
    return value.shape  # type: ignore[return-value]  # static


def _forward(
    imp: Importer, library: str, query: Value, key: Value, value: Value, dropout_p: Operand, causal: bool,
    scale: Operand | None,
) -> tuple[Value, Value]:  # fmt: skip
    floats(query, key, value)
    if number(dropout_p) != 0 or query.type.rank != 4 or query.type.numel == 0 or key.type.numel == 0:
        raise Decline("it draws random numbers, or eager raises, or there is nothing to do")
    if torch.version.hip is not None:
        raise Decline("what AMD's library does with seeds is not known")
    attrs = {"causal": causal, "scale": _scale(query, scale), "mask": False, "library": library}
    operands = [_as_it_lies(imp, item) for item in (query, key, value)]
    output, sums = imp.b.multi(NAME, operands, attrs).results
    output.strides = layout.dense_strides(_shape(output), imp.strides(query))
    imp.with_strides(output, output.strides)
    return output, sums


def _backward(
    imp: Importer, library: str, operands: tuple[Value, ...], dropout_p: Operand, causal: bool, scale: Operand | None
) -> tuple[Value, ...]:
    query, sums = operands[1], operands[5]
    if number(dropout_p) != 0 or query.type.rank != 4 or sums.type.rank != LIBRARIES[library].sums_rank:
        raise Decline("it draws random numbers, or eager raises")
    if torch.version.hip is not None:
        raise Decline("its forward call is not the op")
    attrs = {"causal": causal, "scale": _scale(query, scale), "library": library}
    results = imp.b.multi(GRADIENT, [_as_it_lies(imp, item) for item in operands], attrs).results
    for result, like in zip(results, operands[1:4], strict=True):
        result.strides = imp.preserved_strides(like)
        imp.with_strides(result, result.strides)
    return tuple(results)


@rule("aten._scaled_dot_product_flash_attention.default")
def flash_attention(
    imp: Importer,
    query: Value,
    key: Value,
    value: Value,
    dropout_p: Operand = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    scale: Operand | None = None,
) -> tuple[Value | int | None, ...]:
    if return_debug_mask:
        raise Decline("a mask of dropout is wanted")
    output, sums = _forward(imp, FLASH, query, key, value, dropout_p, is_causal, scale)
    seed, offset = (imp.full(shape, 0, u64, query.device) for shape in ((2,), ()))
    mask = imp.full((0,), 0, query.dtype, query.device)
    return output, sums, None, None, _shape(query)[2], _shape(key)[2], seed, offset, mask


@rule("aten._scaled_dot_product_flash_attention_backward.default")
def flash_attention_backward(
    imp: Importer,
    grad_out: Value,
    query: Value,
    key: Value,
    value: Value,
    out: Value,
    logsumexp: Value,
    cum_seq_q: Value | None,
    cum_seq_k: Value | None,
    max_q: Operand,
    max_k: Operand,
    dropout_p: Operand,
    is_causal: bool,
    philox_seed: Value,
    philox_offset: Value,
    scale: Operand | None = None,
) -> tuple[Value, ...]:
    if cum_seq_q is not None or cum_seq_k is not None:
        raise Decline("sequences of several lengths")
    return _backward(imp, FLASH, (grad_out, query, key, value, out, logsumexp), dropout_p, is_causal, scale)


@rule("aten._scaled_dot_product_cudnn_attention.default")
def cudnn_attention(
    imp: Importer,
    query: Value,
    key: Value,
    value: Value,
    attn_bias: Value | None,
    compute_log_sumexp: bool,
    dropout_p: Operand = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    scale: Operand | None = None,
) -> tuple[Value | int | None, ...]:
    if return_debug_mask or attn_bias is not None:
        raise Decline("a mask of dropout is wanted, or there is a bias")
    output, sums = _forward(imp, CUDNN, query, key, value, dropout_p, is_causal, scale)
    seed, offset = (imp.full((), 0, i64, query.device) for _ in range(2))
    lengths = _shape(query)[2], _shape(key)[2]
    return output, sums if compute_log_sumexp else None, None, None, *lengths, seed, offset, None


@rule("aten._scaled_dot_product_cudnn_attention_backward.default")
def cudnn_attention_backward(
    imp: Importer,
    grad_out: Value,
    query: Value,
    key: Value,
    value: Value,
    out: Value,
    logsumexp: Value,
    philox_seed: Value,
    philox_offset: Value,
    attn_bias: Value | None,
    cum_seq_q: Value | None,
    cum_seq_k: Value | None,
    max_q: Operand,
    max_k: Operand,
    dropout_p: Operand,
    is_causal: bool,
    scale: Operand | None = None,
) -> tuple[Value, ...]:
    if attn_bias is not None or cum_seq_q is not None or cum_seq_k is not None:
        raise Decline("a bias, or sequences of several lengths")
    return _backward(imp, CUDNN, (grad_out, query, key, value, out, logsumexp), dropout_p, is_causal, scale)
