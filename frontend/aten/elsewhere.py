"""Tensors that are made on one device and sent to another: made there, where nothing but positions decides them.

    mask = torch.triu(torch.full((n, n), -inf), diagonal=1).to("cuda")

is no copy, and what reads the mask knows what it is.
"""

from __future__ import annotations

import torch

from graphc.frontend.aten.importer import Importer
from graphc.ir.graph import Operand, Value

_EXACT = frozenset(
    ("full", "iota", "reshape", "permute", "expand", "slice", "concat", "cast", "where", "eq", "ne", "lt", "le", "gt",
     "ge", "logical_and", "logical_or", "logical_xor", "logical_not", "add", "sub", "mul", "neg", "abs", "maximum",
     "minimum")
)  # fmt: skip
"""Ops that give the same bits on every device."""
_MOST = 64
"""Ops that are worth doing again."""


def made_on(imp: Importer, value: Value, device: str) -> Value | None:
    """The same tensor made on another device, None where it depends on inputs, draws or inexact functions."""
    ops, found = _ops_of(value), dict[Value, Value]()
    if ops is None:
        return None
    for made in ops:
        op = made.op
        assert op is not None
        operands: list[Operand] = [found[item] if isinstance(item, Value) else item for item in op.operands]
        attrs = {**op.attrs, "device": device} if "device" in op.attrs else op.attrs
        found[made] = imp.b.op(op.name, *operands, **attrs)
    return found[value]


def moved(imp: Importer, value: Value, device: str) -> Value:
    """A tensor on a device: as it is, made there, or copied."""
    if value.device == device:
        return value
    made = made_on(imp, value, device)
    if made is None:
        found: Value = imp.extern("aten._to_copy.default", (value,), {"device": torch.device(device)})
        return found
    return made


def _ops_of(value: Value) -> list[Value] | None:
    """The values that lead to one, in an order to make them in; None where that cannot be done elsewhere."""
    order: list[Value] = []
    seen: set[Value] = set()
    stack = [(value, False)]
    while stack:
        item, is_ready = stack.pop()
        if is_ready:
            order.append(item)
            continue
        if item in seen:
            continue
        seen.add(item)
        op = item.op
        if op is None or op.name not in _EXACT or item.type.is_host or len(seen) > _MOST:
            return None
        if op.name == "cast" and item.dtype.is_integral and any(given.dtype.is_float for given in op.inputs):
            return None  # devices differ in what they make of a number that is out of range
        stack.append((item, True))
        stack += [(given, False) for given in op.inputs]
    return order
