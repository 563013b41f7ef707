"""Masks of which edges are known: what is left of `bounded` where a loop keeps to them.

    v8: bool = bounded v4 v5 v6 v7 v3      v3 hides nothing at positions v4 in [v5, v7), and all outside of [v5, v6)

It says nothing that `v3` does not say: so in a loop that leaves out what is hidden, it is `v3`, and in one over what
hides nothing, it is False. The edges are numbers per row of the kernel; a loop that does not go along the positions has
no use for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from graphc.ir.dims import symbol
from graphc.loopir.kernel import Compute, Const, Define, Index, Kernel, Statement
from graphc.loopir.transform import assume, drop_dead, with_operands


def bounded_values(kernel: Kernel) -> Iterator[Compute]:
    """The statements of a kernel that bound a mask."""
    return (s for s in kernel.body if isinstance(s, Compute) and s.op == "bounded")


def goes_along(s: Compute, axis: str, by_id: Mapping[str, Define]) -> bool:
    """Whether the positions of a bounded mask are those along an axis."""
    position = by_id[s.args[0]]
    while isinstance(position, Compute) and position.op == "cast":
        position = by_id[position.args[0]]
    return isinstance(position, Index) and position.expr == symbol(axis)


def drop_idle_bounds(kernel: Kernel) -> Kernel:
    """The kernel without bounds that no loop of it can keep to: those along other axes than its products' outer sum."""
    found = list(bounded_values(kernel))
    if not found:
        return kernel
    rows = frozenset(kernel.contractions[-1].over) if len(kernel.contractions) > 1 else frozenset[str]()
    by_id, domains = {s.id: s for s in kernel.defines}, kernel.domains
    kept = {
        s.id
        for s in found
        if any(goes_along(s, axis, by_id) for axis in rows) and all(rows.isdisjoint(domains[e]) for e in s.args[1:4])
    }
    return unbounded(kernel, {s.id for s in found} - kept)


def unbounded(kernel: Kernel, names: frozenset[str] | set[str]) -> Kernel:
    """The kernel with masks as they are in memory, instead of those named."""
    same: dict[str, str] = {}
    body: list[Statement] = []
    zeros = {s.id for s in kernel.defines if isinstance(s, Const) and s.value == 0}
    for statement in kernel.body:
        s = with_operands(statement, same)
        if isinstance(s, Compute) and s.id in names:
            same[s.id] = s.args[-1]
        elif isinstance(s, Compute) and not names.isdisjoint(_args(statement)) and _other(s, zeros):
            same[s.id] = _other(s, zeros)
        else:
            body.append(s)
    return drop_dead(replace(kernel, body=tuple(body))) if same else kernel


def within_runs(kernel: Kernel, names: frozenset[str] | set[str]) -> Kernel:
    """The kernel where none of the masks named hides anything."""
    by_id = {s.id: s for s in kernel.defines}
    floats = {name for name in names if by_id[name].dtype.is_float}
    same: dict[str, str] = {}
    body: list[Statement] = []
    for statement in kernel.body:
        s = with_operands(statement, same)
        if isinstance(s, Compute) and s.id in floats:
            body.append(Const(s.id, s.dtype, 0.0))
        elif isinstance(s, Compute) and _other(s, floats):
            same[s.id] = _other(s, floats)
        else:
            body.append(s)
    return assume(replace(kernel, body=tuple(body)), {name: False for name in names if name not in floats})


def _args(s: Statement) -> tuple[str, ...]:
    return s.args if isinstance(s, Compute) else ()


def _other(s: Compute, zeros: set[str]) -> str:
    """What a sum is, one term of which is 0; "" for everything else."""
    if s.op != "add" or zeros.isdisjoint(s.args):
        return ""
    return s.args[1] if s.args[0] in zeros else s.args[0]
