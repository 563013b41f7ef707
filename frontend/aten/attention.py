"""Import rules of scaled dot-product attention.

Under a dispatch mode on CPU, `F.scaled_dot_product_attention` arrives as the fused CPU kernel for (B, H, S, D) inputs,
and as bmm, `_safe_softmax`, bmm for everything else (three dims, dropout, value of another depth).
"""

from __future__ import annotations

import math
from functools import cache

import torch

from graphc.frontend.aten.activation import floats, number
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.registry import Decline, rule
from graphc.ir.graph import Operand, Value


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
    _, heads, length, width = (int(size) for size in output.shape)  # type: ignore[arg-type]  # static shapes
    if _keeps_query_layout():
        imp.with_strides(output, imp.preserved_strides(query))
    else:
        imp.with_strides(output, (length * heads * width, width, heads * width, 1))
    imp.with_strides(logsumexp, (length * heads, 1, heads))
    return output, logsumexp
