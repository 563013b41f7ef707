"""The fewest bytes to keep from which values can be computed again later: a minimum cut of the data flow.

An edge per value with its size for capacity, from what is at hand to what is needed. Of equal cuts the one next to what
is needed is taken, with the least to compute again.

Source: PyTorch AOTAutograd, `min_cut_rematerialization_partition`; max-flow min-cut by networkx.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from graphc.ir.graph import Value
from graphc.ir.sizes import typical

INFINITE = float("inf")


def smallest_cut(
    needed: Iterable[Value], cost: Callable[[Value], float], is_computed: Callable[[Value], bool]
) -> list[Value]:
    """The values to keep.

    Args:
        needed: later.
        cost: of keeping a value; INFINITE when it cannot be kept.
        is_computed: whether a value may be computed again, from the operands of its op.
    """
    import networkx as nx

    flow = nx.DiGraph()
    wanted = _reach(needed, is_computed)
    for value in wanted:
        size = cost(value)
        flow.add_edge((value, 0), (value, 1), capacity=typical(size) if isinstance(size, int) else size)
        operands = list(value.op.inputs) if value.op is not None and is_computed(value) else []
        for operand in operands:
            flow.add_edge((operand, 1), (value, 0), capacity=INFINITE)
        if not operands:
            flow.add_edge("have", (value, 0), capacity=INFINITE)
    for value in needed:
        flow.add_edge((value, 1), "need", capacity=INFINITE)
    _, (have, _) = nx.minimum_cut(flow, "have", "need", flow_func=nx.algorithms.flow.dinitz)
    return [value for value in wanted if (value, 0) in have and (value, 1) not in have]


def _reach(needed: Iterable[Value], is_computed: Callable[[Value], bool]) -> list[Value]:
    """Needed values and all that they may be computed from."""
    found: dict[Value, None] = {}
    stack = list(needed)
    while stack:
        value = stack.pop()
        if value in found:
            continue
        found[value] = None
        if value.op is not None and is_computed(value):
            stack.extend(value.op.inputs)
    return list(found)
