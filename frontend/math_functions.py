"""Functions of Python's `math` of traced numbers: `1 + math.cos(math.pi * step / steps)`, `math.isfinite(loss.item())`.

They would ask for the number itself, which made it a constant of the program. Here they are ops on the host. Where
Python's function raises for some numbers, the program checks that it would not, or the number stays a constant.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from graphc.frontend import host
from graphc.frontend.host import HostNode

_LARGEST = sys.float_info.max
_FINITE = (("ge", -_LARGEST), ("le", _LARGEST))
_EXPONENTS = (("ge", -_LARGEST), ("le", math.log(_LARGEST)))
_FUNCTIONS: dict[str, tuple[tuple[str, float], ...]] = {
    "sqrt": (("ge", 0.0), ("le", _LARGEST)), "exp": _EXPONENTS, "log": (("gt", 0.0), ("le", _LARGEST)),
    "log2": (("gt", 0.0), ("le", _LARGEST)), "log10": (("gt", 0.0), ("le", _LARGEST)),
    "log1p": (("gt", -1.0), ("le", _LARGEST)), "sin": _FINITE, "cos": _FINITE, "tanh": (), "atan": (),
}  # fmt: skip
"""Functions of one number that are ops of the same name, with the comparisons under which they raise nothing."""


@contextlib.contextmanager
def traced_math() -> Iterator[None]:
    """For the block, functions of `math` take traced numbers as they are."""
    thread = threading.get_ident()  # others may run in eager meanwhile
    replaced: dict[str, Any] = {name: _unary(name) for name in _FUNCTIONS}
    replaced |= {"pow": _power, "fabs": _absolute, "isfinite": _is_finite, "isnan": _is_nan, "isinf": _is_infinite}
    originals = {name: getattr(math, name) for name in replaced}
    for name, function in replaced.items():
        setattr(math, name, _traced(originals[name], function, thread))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(math, name, original)


def _traced(original: Callable[..., Any], function: Callable[..., HostNode | None], thread: int) -> Callable[..., Any]:
    def call(*items: Any) -> Any:
        nodes = [host.node_of(item) for item in items]
        if not any(nodes) or threading.get_ident() != thread:
            return original(*items)
        found = function(*(item if node is None else node for item, node in zip(items, nodes, strict=True)))
        if found is None:
            return original(*(item if node is None else float(item) for item, node in zip(items, nodes, strict=True)))
        return host.wrap(found)

    return call


def _holds(node: HostNode, conditions: tuple[tuple[str, float], ...]) -> bool:
    """The program checks that a number compares so, now and in each call."""
    found = [node.binary(name, other) for name, other in conditions]
    return all(condition.hint is not False and node.scope.assume(condition) for condition in found)


def _unary(name: str) -> Callable[..., HostNode | None]:
    def function(node: HostNode | float, *base: Any) -> HostNode | None:
        if not isinstance(node, HostNode) or not (base == () or (type(base[0]) in (int, float) and base[0] > 1)):
            return None
        number = node.convert(float)
        if not _holds(number, _FUNCTIONS[name]):
            return None
        return number.unary(name).binary("div", math.log(base[0])) if base else number.unary(name)

    return function


def _power(base: HostNode | float, exponent: HostNode | float) -> HostNode | None:
    number = base.convert(float) if isinstance(base, HostNode) else None
    if not (base > 0 if number is None else _holds(number, (("gt", 0.0), ("le", _LARGEST)))):  # type: ignore[operator]
        return None
    if number is not None:
        result = number.binary("pow", exponent.convert(float) if isinstance(exponent, HostNode) else float(exponent))
    else:
        assert isinstance(exponent, HostNode)
        result = exponent.convert(float).binary("pow", float(base), swap=True)  # type: ignore[arg-type]
    return result if _holds(result, _FINITE) else None


def _absolute(node: HostNode) -> HostNode:
    return node.convert(float).unary("abs")


def _is_finite(node: HostNode) -> HostNode:
    return _absolute(node).binary("le", _LARGEST)


def _is_nan(node: HostNode) -> HostNode:
    return node.binary("ne", node)


def _is_infinite(node: HostNode) -> HostNode:
    return _absolute(node).binary("gt", _LARGEST)
