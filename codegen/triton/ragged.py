"""What data say about the extents of a product: groups of rows with a matrix each, and sums over a part of the axis.

v0: i64 = load groups[i0]              i0 is a row of the result
v1: bf16 = load w[v0*K*N + r0*N + i1]
  -> the program walks the groups that its rows belong to

v2: bool = ge r0 v0                    v0 and v1 belong to the batch
v3: bool = lt r0 v1
v5: bf16 = load x[r0*N + i1] if v4     v4 = v2 and v3; the other operand likewise
  -> the loop over the sum goes from v0 to v1
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from graphc.ir.dims import Dim, substitute, symbol, symbols
from graphc.loopir.kernel import Compute, Const, Define, Index, Kernel, Load, Store, is_value, operands
from graphc.loopir.transform import map_indices, with_operands


def closure(kernel: Kernel, wanted: Iterable[str], stop: frozenset[str] = frozenset()) -> list[Define]:
    """Statements that values come from, in order, without those in `stop` and what only they need."""
    names, kept = set(wanted), list[Define]()
    for s in reversed(list(kernel.defines)):
        if s.id in names and s.id not in stop:
            kept.append(s)
            names.update(operands(s))
    return kept[::-1]


def group_of_rows(kernel: Kernel, left: str, right: str) -> str | None:
    """The value that says by which matrix each row of the left operand is multiplied.

    Returns:
        A value that the right operand is loaded at, by which alone it varies with axes of the left one; None when there
        is no such value, or several.
    """
    rows = frozenset(axis.name for axis in kernel.row_axes)
    shared = kernel.domains[left] & kernel.domains[right] - rows
    loads = [s for s in closure(kernel, (right,)) if isinstance(s, Load)]
    places = {name for s in loads for name in symbols(s.index) if is_value(name)}
    found = [name for name in places if kernel.domains[name] and kernel.domains[name] <= shared]
    if len(found) != 1 or domain_without(kernel, right, found[0]) & kernel.domains[left] - rows:
        return None
    return found[0]


def domain_without(kernel: Kernel, name: str, given: str) -> frozenset[str]:
    """The axes that a value varies with, when another one is taken as a number."""
    axes = frozenset(axis.name for axis in kernel.axes)
    found: dict[str, frozenset[str]] = {}
    for s in closure(kernel, (name,)):
        own: frozenset[str] = frozenset().union(*(found[item] for item in operands(s)))
        if isinstance(s, (Load, Index)):
            own |= symbols(s.index if isinstance(s, Load) else s.expr) & axes
        found[s.id] = frozenset() if s.id == given else own
    return found[name]


def with_number(statements: Sequence[Define], value: str, number: str, first: int) -> dict[str, Define]:
    """Those statements that come from a value, written for one number that it may be.

    Args:
        value: the value, among the statements or not.
        number: a variable that takes its place.
        first: the statements are called `v{first}` and so on.

    Returns:
        The new statements, by what they were called.
    """
    found: dict[str, Define] = {}
    names = {value: number}
    for s in statements:
        if s.id == value or not any(item in names for item in operands(s)):
            continue
        names[s.id] = f"v{first + len(found)}"
        found[s.id] = renamed(s, names, {})
    return found


def renamed(s: Define, names: dict[str, str], axes: dict[str, Dim]) -> Define:
    """A statement with other names of values and other positions for axes."""
    (moved,) = map_indices((with_operands(s, names),), lambda index: substitute(index, axes))
    assert not isinstance(moved, Store)
    return replace(moved, id=names.get(s.id, s.id))


def bounds_of_sum(
    kernel: Kernel, factors: Sequence[str], axis: str, outer: Collection[str]
) -> tuple[set[str], set[str]]:
    """Loaded bounds of the axis that a product sums over.

    Args:
        factors: both operands; outside of the bounds they are zero.
        axis: its name.
        outer: axes that do not change while the loop runs.

    Returns:
        Values which the position is at least, and values which it stays below.
    """
    by_id = {s.id: s for s in kernel.defines}
    low, high = set[str](), set[str]()
    shared = set.intersection(*(set(_needed(by_id, name)) for name in factors))
    for condition in shared:
        s = by_id[condition]
        if not isinstance(s, Compute) or s.op not in ("ge", "lt"):
            continue
        position, bound = (by_id[arg] for arg in s.args)
        is_position = (
            isinstance(position, Index) and not isinstance(position.expr, int) and position.expr == symbol(axis)
        )
        if is_position and kernel.domains[bound.id] <= frozenset(outer):
            (low if s.op == "ge" else high).add(bound.id)
    return low, high


def _needed(by_id: dict[str, Define], name: str) -> list[str]:
    """Conditions that must all hold for a value not to be zero."""
    s = by_id[name]
    if isinstance(s, Load) and s.mask is not None and s.other == 0:
        return _parts(by_id, s.mask)
    if isinstance(s, Compute) and s.op == "cast":
        return _needed(by_id, s.args[0])
    if isinstance(s, Compute) and s.op == "where":
        filler = by_id[s.args[2]]
        return _parts(by_id, s.args[0]) if isinstance(filler, Const) and filler.value == 0 else []
    return []


def _parts(by_id: dict[str, Define], condition: str) -> list[str]:
    s = by_id[condition]
    if isinstance(s, Compute) and s.op == "logical_and":
        return [part for arg in s.args for part in _parts(by_id, arg)]
    return [condition]
