"""Attention in the native program: generated C for the plain cases, libtorch's own for all others."""

from __future__ import annotations

from dataclasses import replace

from graphc.codegen.aten_shim import ShimCall, dtype_code
from graphc.codegen.gemm import address, longs
from graphc.codegen.tile_text import ATTENTION, ATTENTION_PROTOTYPE, ATTENTION_WINS
from graphc.ir.types import f32
from graphc.program.plan import EXTERNAL, AtenStep, BufferSpec, View

OP = "aten._scaled_dot_product_flash_attention_for_cpu.default"
_LEAST_ROWS = 6
"""Queries per head from which on packing its keys and values pays."""
_MOST_FLOATS = 160_000
"""Most elements of one head's packed keys and values, and of scores: a thread has them on its stack, in its cache."""
_TILE, _PANEL = 6, 16


def attention_text(step: AtenStep, buffers: list[BufferSpec]) -> str | None:
    """The C function of an attention step, called NAME, or None when libtorch is to compute it.

    Taken are float32 without mask nor dropout, heads whose rows lie in one piece, and keys that fit in the cache. Few
    queries are left to libtorch: packing keys and values for them does not pay.
    """
    if step.op != OP or len(step.args) < 3 or step.outs[0] < 0 or any(index >= 0 for index in step.outs[1:]):
        return None
    named = dict(zip(("query", "key", "value", "dropout_p", "is_causal"), step.args, strict=False)) | dict(step.kwargs)
    query, key, value = (named[name] for name in ("query", "key", "value"))
    out = buffers[step.outs[0]]
    if named.get("attn_mask") is not None or named.get("dropout_p", 0.0) != 0.0:
        return None
    scale = named.get("scale")
    causal = named.get("is_causal", False)
    if not isinstance(scale, (int, float, type(None))) or not isinstance(causal, bool):
        return None
    if causal and scale is not None and not scale > 0:
        return None  # libtorch multiplies its mask of -inf by the scale
    if not _fits(query, key, value, out):
        return None
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
    }
    places = {"query": query, "key": key, "value": value, "out": out}
    strides = {name: ", ".join(map(str, place.strides[:3])) for name, place in places.items()}
    return (ATTENTION % (sizes | strides)).replace("PROTOTYPE", ATTENTION_PROTOTYPE)


def _fits(query: View, key: View, value: View, out: BufferSpec) -> bool:
    places = (query, key, value, out)
    if any(len(x.shape) != 4 or x.dtype is not f32 or 0 in x.shape or x.strides[3] != 1 for x in places):
        return False
    if key.shape[:2] != query.shape[:2] or value.shape[:2] != query.shape[:2]:
        return False
    keys, width, out_width = key.shape[2], key.shape[3], value.shape[3]
    padded_keys, padded_width = (-(-size // _PANEL) * _PANEL for size in (keys, out_width))
    packed = padded_keys * width + keys * padded_width + _TILE * (padded_keys + width + padded_width)
    return query.shape[2] >= _LEAST_ROWS and packed <= _MOST_FLOATS


def attention_call(step: AtenStep, buffers: list[BufferSpec], call: ShimCall, name: str) -> ShimCall:
    """The step as a call of the generated function `name` where that wins, else as libtorch's `call`."""
    out = buffers[step.outs[0]]
    number = {index: f"b[{place}]" for place, index in enumerate(call.buffers)}
    here = number[out.index]
    lines: list[str] = []
    if out.kind == EXTERNAL:
        layout = f"{len(out.shape)}, {longs(out.shape)}, {longs(out.strides)}, {dtype_code(out.dtype)}"
        lines += [
            "AtenTensorHandle r = NULL;",
            f"if (aoti_torch_empty_strided({layout}, CPU, 0, &r) || aoti_torch_get_data_ptr(r, &p[{here}]))",
            "  return drop(r), 1;",
            f"release(h, {here});",
            f"h[{here}] = r;",
        ]
    operands = ", ".join(address(view, number[view.buffer]) for view in step.views())
    lines += [f"{name}({operands}, p[{here}]);", "return 0;"]
    own = "\n".join(f"  {line}" for line in lines)
    return replace(call, body=f"#if {ATTENTION_WINS}\n{own}\n#else\n{call.body}\n#endif")
