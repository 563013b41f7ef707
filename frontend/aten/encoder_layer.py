"""Import rule of a whole encoder layer of a transformer, which `nn.TransformerEncoderLayer` calls in eval mode."""

from __future__ import annotations

import math

from graphc.frontend.aten.activation import floats
from graphc.frontend.aten.contraction import linear
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.normalization import native_layer_norm
from graphc.frontend.aten.registry import CONTIGUOUS, Decline, rule
from graphc.ir.graph import Value
from graphc.ir.types import bool_

WITH_WEIGHTS, PADDING, GENERIC = 0, 1, 2
"""Kinds of masks, by ATen's number: (L, L), (B, L), (B, heads, L, L)."""


@rule("aten._transformer_encoder_layer_fwd.default", layout=CONTIGUOUS)
def transformer_encoder_layer(
    imp: Importer,
    src: Value,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Value,
    qkv_bias: Value,
    proj_weight: Value,
    proj_bias: Value,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Value,
    norm_bias_1: Value,
    norm_weight_2: Value,
    norm_bias_2: Value,
    ffn_weight_1: Value,
    ffn_bias_1: Value,
    ffn_weight_2: Value,
    ffn_bias_2: Value,
    mask: Value | None = None,
    mask_type: int | None = None,
) -> Value:
    """Written out in the order of the library's own function, so that all but products and attention fuse."""
    floats(src, qkv_weight)
    if src.type.rank != 3 or src.type.numel == 0 or src.dtype.is_reduced or src.shape[2] != embed_dim:
        raise Decline("eager raises, rounds in between, or there is nothing to do")
    first, second = (norm_weight_1, norm_bias_1), (norm_weight_2, norm_bias_2)

    def norm(x: Value, parameters: tuple[Value, Value]) -> Value:
        return native_layer_norm(imp, x, (embed_dim,), *parameters, eps)[0]

    x = norm(src, first) if norm_first else src
    qkv = linear(imp, x, qkv_weight, qkv_bias)
    attended = linear(imp, _attention(imp, qkv, num_heads, mask, mask_type), proj_weight, proj_bias)
    x = imp.b.op("add", attended, src)
    if not norm_first:
        x = norm(x, first)
    hidden = linear(imp, norm(x, second) if norm_first else x, ffn_weight_1, ffn_bias_1)
    hidden = imp.b.op("gelu", hidden, approximate="none") if use_gelu else imp.b.op("relu", hidden)
    x = imp.b.op("add", linear(imp, hidden, ffn_weight_2, ffn_bias_2), x)
    return x if norm_first else norm(x, second)


def _attention(imp: Importer, qkv: Value, heads: int, mask: Value | None, mask_type: int | None) -> Value:
    """Projections (B, L, 3 E) -> what each place looks at (B, L, E); a mask of any dtype hides where it is not zero.

    The op `attention` is what torch has on CPUs; elsewhere its products are written out.
    """
    batch, length, width = (int(size) for size in qkv.shape)  # type: ignore[arg-type]  # static
    depth = width // (3 * heads)
    parts = imp.permute(imp.reshape(qkv, (batch, length, 3, heads, depth)), (2, 0, 3, 1, 4))
    q, k, v = (imp.reshape(imp.slice(parts, 0, n, n + 1), (batch, heads, length, depth)) for n in range(3))
    if mask is None and qkv.device == "cpu":
        attrs = {"causal": False, "scale": 1 / math.sqrt(depth), "mask": False}
        looked_at = imp.b.multi("attention", [q, k, v], attrs).results[0]
    else:
        scores = imp.b.op("matmul", imp.b.op("mul", q, 1 / math.sqrt(depth)), imp.permute(k, (0, 1, 3, 2)))
        if mask is not None:
            hidden = imp.cast(_spread(imp, mask, mask_type, (batch, heads, length, length)), bool_)
            scores = imp.b.op("where", hidden, -math.inf, scores)
        weights = imp.b.op("softmax", scores, dim=3)
        looked_at = imp.b.op("matmul", weights, v)  # NaN where all places are hidden, as eager
    return imp.reshape(imp.permute(looked_at, (0, 2, 1, 3)), (batch, length, heads * depth))


def _spread(imp: Importer, mask: Value, mask_type: int | None, shape: tuple[int, ...]) -> Value:
    """A mask with one element per score."""
    batch, _, length, _ = shape
    wanted, lies = {
        WITH_WEIGHTS: ((length, length), (1, 1, length, length)),
        PADDING: ((batch, length), (batch, 1, 1, length)),
        GENERIC: (shape, shape),
    }.get(mask_type if mask_type is not None else -1, ((), ()))
    if not wanted or mask.shape != wanted:
        raise Decline("eager raises, or broadcasts in ways of its own")
    return imp.expand(imp.reshape(mask, lies), shape)
