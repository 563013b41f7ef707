"""Attention in the native program, forward and backward: C for the plain cases, libtorch's own for all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from graphc.codegen.aten_shim import ShimCall, dtype_code
from graphc.codegen.attention_text import ATTENTION, ATTENTION_PROTOTYPE, BACKWARD, BACKWARD_PROTOTYPE
from graphc.codegen.gemm import address, longs
from graphc.codegen.size_text import has_sizes, with_sizes
from graphc.codegen.tile_text import ATTENTION_WINS
from graphc.ir.sizes import depends_on_sizes, typical
from graphc.ir.types import f32
from graphc.program.plan import EXTERNAL, AtenStep, BufferSpec, View

LIBRARY, GENERATED = "library", "generated"
"""The forms of an attention step for which there is a C function."""
FORWARD_OP = "aten._scaled_dot_product_flash_attention_for_cpu.default"
BACKWARD_OP = "aten._scaled_dot_product_flash_attention_for_cpu_backward.default"
_LEAST_ROWS = 6
"""Queries per head from which on packing its keys and values pays."""
_LEAST_WIDTH = 4
"""Width of a head from which on it fills enough of a panel; over less, libtorch sums with smaller errors, too."""
_MOST_FLOATS = 160_000
"""Most elements of what a thread packs and computes of a head: it has them on its stack, in its cache."""
_LEAST_BLOCK = 64
"""Queries at a time from which on the backward pays: keys are packed anew for each block."""
_TILE, _PANEL = 8, 32  # with AVX-512; elsewhere less
_KNOWN = {"names": "enum {", "end": " }", "table": "static const"}
"""How a function has its numbers where it is for one size."""


@dataclass(frozen=True)
class Attention:
    """The C function of an attention step.

    Args:
        text: all of it, called NAME.
        prototype: likewise.
    """

    text: str
    prototype: str

    @property
    def is_backward(self) -> bool:
        """Whether it computes gradients."""
        return self.prototype == BACKWARD_PROTOTYPE


def attention_text(step: AtenStep, buffers: Sequence[BufferSpec]) -> Attention | None:
    """The C function of an attention step, forward or backward, or None when libtorch is to compute it.

    Taken are float32 without mask nor dropout, heads whose rows lie in one piece, and keys that fit in the cache. Few
    queries are left to libtorch: packing keys and values for them does not pay.
    """
    if step.op not in (FORWARD_OP, BACKWARD_OP):
        return None
    backward = step.op == BACKWARD_OP
    tensors = ("grad", "query", "key", "value", "out", "logsumexp") if backward else ("query", "key", "value")
    named = dict(zip((*tensors, "dropout_p", "is_causal"), step.args, strict=False)) | dict(step.kwargs)
    results = ("grad_query", "grad_key", "grad_value") if backward else ("out", "logsumexp")
    places: dict[str, Any] = {name: named.get(name) for name in tensors}
    places |= {name: buffers[index] for name, index in zip(results, step.outs, strict=True) if index >= 0}
    if named.get("attn_mask") is not None or named.get("dropout_p", 0.0) != 0.0:
        return None
    scale, causal = named.get("scale"), named.get("is_causal", False)
    if not isinstance(scale, (int, float, type(None))) or not isinstance(causal, bool):
        return None
    if causal and scale is not None and not scale > 0:
        return None  # libtorch multiplies its mask of -inf by the scale
    if not _fits(places) or (backward and len(places) < len(tensors) + len(results)):
        return None
    query, key, value = places["query"], places["key"], places["value"]
    batch, heads, rows, width = query.shape
    sizes = {
        "batch": batch,
        "heads": heads,
        "rows": rows,
        "keys": key.shape[2],
        "width": width,
        "out_width": value.shape[3],
        "causal": int(causal),
        "scale": float(width**-0.5 if scale is None else scale).hex(),
        "logsumexp": "0, 0, 0",
    }
    strides = {name: ", ".join(map(str, place.strides[:3])) for name, place in places.items()}
    if not backward:
        return _function(ATTENTION, ATTENTION_PROTOTYPE, sizes | strides)
    block = _block(rows, key.shape[2], width, value.shape[3])
    return _function(BACKWARD, BACKWARD_PROTOTYPE, sizes | strides | {"block": block}) if block else None


def _function(text: str, prototype: str, values: dict[str, Any]) -> Attention:
    varies = has_sizes(" ".join(map(str, values.values())))
    names = {"names": "const long", "end": "", "table": "const"} if varies else _KNOWN
    return Attention(with_sizes((text % (values | names)).replace("PROTOTYPE", prototype)), prototype)


def _fits(places: dict[str, View | BufferSpec]) -> bool:
    sums = places.get("logsumexp")
    heads = [place for name, place in places.items() if name != "logsumexp"]
    if "out" not in places or any(not isinstance(x, (View, BufferSpec)) or x.dtype is not f32 for x in places.values()):
        return False
    if any(len(x.shape) != 4 or 0 in x.shape or x.strides[3] != 1 for x in heads):
        return False
    query, key, value, out = (places[name] for name in ("query", "key", "value", "out"))
    if key.shape[:2] != query.shape[:2] or value.shape[:2] != query.shape[:2]:
        return False
    if sums is not None and tuple(sums.shape) != tuple(out.shape[:3]):
        return False
    keys, width, out_width = key.shape[2], key.shape[3], value.shape[3]
    if min(width, out_width) < _LEAST_WIDTH:
        return False
    padded_keys, padded_width = _panels(keys), _panels(out_width)
    packed = padded_keys * width + keys * padded_width + _TILE * (padded_keys + width + padded_width)
    return typical(query.shape[2]) >= _LEAST_ROWS and packed <= _MOST_FLOATS


def _panels(size: int) -> int:
    """The size filled up to whole panels."""
    return -(-size // _PANEL) * _PANEL


def _block(rows: int, keys: int, width: int, out_width: int) -> str:
    """How many queries the backward takes at a time, whole panels of them, in C; empty when too few fit."""
    per_query = width + _panels(width) + out_width + _panels(out_width) + keys + 3 * _TILE
    once = (
        (width + _TILE) * (keys + _TILE + 2 * _PANEL) + _PANEL * out_width + 4 * _TILE * _panels(max(width, out_width))
    )
    most = (_MOST_FLOATS - once) // per_query // _PANEL * _PANEL
    panels = _panels(rows)
    if depends_on_sizes(most - panels) and most >= _LEAST_BLOCK:
        return f"{most} < {panels} ? {most} : {panels}"
    block = min(most, panels)
    return str(block) if block >= min(_LEAST_BLOCK, panels) else ""


def attention_call(step: AtenStep, buffers: Sequence[BufferSpec], call: ShimCall, name: str) -> ShimCall:
    """The step as a call of the generated function `name` where that wins, else as libtorch's `call`."""
    number = {index: f"b[{place}]" for place, index in enumerate(call.buffers)}
    lines: list[str] = []
    made = [buffers[index] for index in step.outs if index >= 0 and buffers[index].kind == EXTERNAL]
    if made:
        lines.append(f"AtenTensorHandle r[{len(made)}] = {{0}};")
    for place, out in enumerate(made):
        here = number[out.index]
        layout = f"{len(out.shape)}, {longs(out.shape)}, {longs(out.strides)}, {dtype_code(out.dtype)}"
        lines += [
            f"if (aoti_torch_empty_strided({layout}, CPU, 0, &r[{place}])) return 1;",
            f"release(h, {here});",
            f"h[{here}] = r[{place}];",
            f"if (aoti_torch_get_data_ptr(r[{place}], &p[{here}])) return 1;",
        ]
    operands = [address(view, number[view.buffer]) for view in step.views()]
    results = [f"p[{number[index]}]" if index >= 0 else "NULL" for index in step.outs]
    lines += [f"{name}({', '.join(operands + results)});", "return 0;"]
    own = "\n".join(f"  {line}" for line in lines)
    if step.form == GENERATED:
        return replace(call, body=own)
    return replace(call, body=f"#if {ATTENTION_WINS}\n{own}\n#else\n{call.body}\n#endif")
