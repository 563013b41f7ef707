"""From in-place and out= overloads to the functional overload that computes the same."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch


@cache
def functional_of(func: Any) -> Any:
    """The overload without side effects of an in-place (`add_.Tensor`) or out= (`add.out`) overload, or None."""
    packet_name = func._schema.name.split("::")[1]
    base = packet_name[:-1] if packet_name.endswith("_") and not packet_name.endswith("__") else packet_name
    base = base.replace("__i", "__", 1) if base.startswith("__i") else base
    base = "normal_functional" if packet_name == "normal_" else _IN_PLACE_NAMES.get(base, base)
    packet = getattr(getattr(torch.ops, func.namespace), base, None)
    if packet is None:
        return None
    wanted = _signature(func)
    for name in sorted(packet.overloads(), key=lambda n: n != func._overloadname):
        candidate = getattr(packet, name)
        if not _writes(candidate) and _signature(candidate) == wanted:
            return candidate
    return None


_IN_PLACE_NAMES = {
    "__and__": "bitwise_and", "__or__": "bitwise_or", "__xor__": "bitwise_xor", "__lshift__": "bitwise_left_shift",
    "__rshift__": "bitwise_right_shift",
}  # fmt: skip


def _signature(func: Any) -> list[tuple[str, str]]:
    return [(a.name, str(a.type)) for a in func._schema.arguments if not a.is_out]


def _writes(func: Any) -> bool:
    return any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
