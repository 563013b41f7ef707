"""Library calls whose result types a rule knows, so that no trial run is needed to learn them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphc.frontend.aten.extern import as_eager_lays_out
from graphc.frontend.aten.importer import Importer
from graphc.ir.graph import Attr, Named, Ref, Value
from graphc.ir.types import TensorType


def stated_call(
    imp: Importer,
    overload: str,
    args: Sequence[Any],
    types: Sequence[TensorType],
    kwargs: dict[str, Attr] | None = None,
    effect: str = "",
) -> list[Value]:
    """Append an `extern` op.

    Args:
        imp: the importer of the call.
        overload: `namespace.name.overload`.
        args: positional arguments: Values, numbers, tuples of them, None.
        types: types of the results.
        kwargs: keyword arguments as attributes (`DType`, `Named`, numbers).
        effect: "random" for calls that draw from torch's generator.

    Returns:
        The results.
    """
    operands: list[Value] = []
    args = as_eager_lays_out(imp, args)

    def encode(item: Any) -> Attr:
        if isinstance(item, Value):
            if item not in operands:
                operands.append(item)
            return Ref(operands.index(item))
        return tuple(encode(part) for part in item) if isinstance(item, (list, tuple)) else item

    attrs: dict[str, Attr] = {"op": overload, "args": tuple(encode(arg) for arg in args), "kwargs": kwargs or {}}
    if effect:
        attrs["effect"] = effect
    return imp.call(operands, attrs, types).results


def device_attr(device: str) -> Named:
    """A device as an attribute."""
    return Named("device", device)
